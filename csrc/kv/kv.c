/* Keys and values of one sequence, in blocks.
 *
 *   block = for each layer: K [RV_KV_BLOCK][heads][head_dim], then V of the same shape */
#include "kv/kv.h"

#include "rvk.h"

struct rv_kv {
    size_t n_layers, head_dim, size; /* size: bytes per value */
    size_t *row;                     /* [n_layers] values per position */
    size_t *off;                     /* [n_layers] byte offset of K in a block */
    size_t block_bytes;
    char **blocks;
    size_t n_blocks, cap_blocks;
};

rv_status rv_kv_new(rv_kv **out, size_t n_layers, const int32_t *heads, size_t head_dim,
                    rv_kv_type type, rv_err *err) {
    *out = NULL;
    rv_kv *kv = rv_calloc(1, sizeof *kv);
    if (kv) {
        kv->row = rv_calloc(n_layers + 1, sizeof *kv->row);
        kv->off = rv_calloc(n_layers + 1, sizeof *kv->off);
    }
    if (!kv || !kv->row || !kv->off) {
        rv_kv_free(&kv);
        return rv_fail(err, RV_ENOMEM, "kv: out of memory");
    }
    kv->n_layers = n_layers;
    kv->head_dim = head_dim;
    kv->size = type == RV_KV_F32 ? 4 : 2;
    for (size_t i = 0; i < n_layers; i++) {
        kv->row[i] = (size_t)heads[i] * head_dim;
        kv->off[i] = kv->block_bytes;
        kv->block_bytes += 2 * RV_KV_BLOCK * kv->row[i] * kv->size;
    }
    *out = kv;
    return RV_OK;
}

void rv_kv_free(rv_kv **pkv) {
    rv_kv *kv = *pkv;
    *pkv = NULL;
    if (!kv) return;
    rv_kv_truncate(kv, 0);
    rv_free(kv->blocks);
    rv_free(kv->row);
    rv_free(kv->off);
    rv_free(kv);
}

rv_status rv_kv_reserve(rv_kv *kv, size_t n, rv_err *err) {
    size_t need = (n + RV_KV_BLOCK - 1) / RV_KV_BLOCK;
    if (kv->block_bytes == 0 || need <= kv->n_blocks) return RV_OK;
    void *blocks = kv->blocks;
    bool ok = rv_grow(&blocks, &kv->cap_blocks, need, sizeof *kv->blocks);
    kv->blocks = blocks;
    while (ok && kv->n_blocks < need) {
        char *b = rv_alloc_aligned(kv->block_bytes);
        if (b) kv->blocks[kv->n_blocks++] = b;
        ok = b != NULL;
    }
    if (ok) return RV_OK;
    return rv_fail(err, RV_ENOMEM, "kv: no memory for %zu positions of %zu bytes", n,
                   rv_kv_bytes_per_token(kv));
}

static char *row_at(const rv_kv *kv, size_t i_layer, size_t pos, bool values) {
    size_t in_block = pos % RV_KV_BLOCK + (values ? (size_t)RV_KV_BLOCK : 0);
    return kv->blocks[pos / RV_KV_BLOCK] + kv->off[i_layer] +
           in_block * kv->row[i_layer] * kv->size;
}

void rv_kv_write(rv_kv *kv, size_t i_layer, size_t pos, const float *k, const float *v) {
    size_t n = kv->row[i_layer];
    char *pk = row_at(kv, i_layer, pos, false), *pv = row_at(kv, i_layer, pos, true);
    if (kv->size == 4) {
        memcpy(pk, k, n * 4);
        memcpy(pv, v, n * 4);
    } else {
        rvk.quant[RVK_F16](pk, k, n);
        rvk.quant[RVK_F16](pv, v, n);
    }
}

rv_kv_span rv_kv_at(const rv_kv *kv, size_t i_layer, size_t i_head, size_t pos) {
    size_t head = i_head * kv->head_dim * kv->size;
    return (rv_kv_span){.k = row_at(kv, i_layer, pos, false) + head,
                        .v = row_at(kv, i_layer, pos, true) + head,
                        .stride = kv->row[i_layer] * kv->size,
                        .n = RV_KV_BLOCK - pos % RV_KV_BLOCK};
}

void rv_kv_truncate(rv_kv *kv, size_t n) {
    size_t keep = (n + RV_KV_BLOCK - 1) / RV_KV_BLOCK;
    while (kv->n_blocks > keep) rv_free(kv->blocks[--kv->n_blocks]);
}

size_t rv_kv_bytes(const rv_kv *kv) {
    return kv->n_blocks * kv->block_bytes;
}

size_t rv_kv_bytes_per_token(const rv_kv *kv) {
    return kv->block_bytes / RV_KV_BLOCK;
}

bool rv_kv_is_f16(const rv_kv *kv) {
    return kv->size == 2;
}
