/* Keys and values of one sequence, in blocks.
 *
 *   block = for each layer, for each of its heads: what rvk_attn_put makes of RV_KV_BLOCK
 *           positions */
#include "kv/kv.h"

#include "rvk.h"

_Static_assert(RV_KV_BLOCK == (int)RVK_ATTN_BLOCK, "attention reads whole blocks");

struct rv_kv {
    size_t n_layers, head_dim, head_bytes; /* head_bytes: one head in a block */
    int type;                              /* RVK_F16 .. */
    size_t *off;                           /* [n_layers] byte offset of a layer in a block */
    size_t block_bytes;
    char **blocks;
    size_t n_blocks, cap_blocks;
};

int rv_kv_kernel_type(rv_kv_type type) {
    switch (type) {
    case RV_KV_F16: return RVK_F16;
    case RV_KV_F32: return RVK_F32;
    case RV_KV_Q8_0: return RVK_Q8_0;
    case RV_KV_Q4_0: return RVK_Q4_0;
    default: return -1;
    }
}

size_t rv_kv_head_bytes(rv_kv_type type, size_t head_dim) {
    return rvk_attn_run_bytes(rv_kv_kernel_type(type), head_dim) / RVK_ATTN_RUN;
}

rv_status rv_kv_new(rv_kv **out, size_t n_layers, const int32_t *heads, size_t head_dim,
                    rv_kv_type type, rv_err *err) {
    *out = NULL;
    rv_kv *kv = rv_calloc(1, sizeof *kv);
    if (kv) kv->off = rv_calloc(n_layers + 1, sizeof *kv->off);
    if (!kv || !kv->off) {
        rv_kv_free(&kv);
        return rv_fail(err, RV_ENOMEM, "kv: out of memory");
    }
    kv->n_layers = n_layers;
    kv->head_dim = head_dim;
    kv->type = rv_kv_kernel_type(type);
    kv->head_bytes = RV_KV_BLOCK * rv_kv_head_bytes(type, head_dim);
    for (size_t i = 0; i < n_layers; i++) {
        kv->off[i] = kv->block_bytes;
        kv->block_bytes += (size_t)heads[i] * kv->head_bytes;
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

static char *head_at(const rv_kv *kv, size_t i_layer, size_t i_head, size_t i_block) {
    return kv->blocks[i_block] + kv->off[i_layer] + i_head * kv->head_bytes;
}

void rv_kv_write(rv_kv *kv, size_t i_layer, size_t i_head, size_t pos, size_t n, const float *k,
                 const float *v, size_t ld) {
    for (size_t i = 0; i < n; i++) {
        char *head = head_at(kv, i_layer, i_head, (pos + i) / RV_KV_BLOCK);
        rvk_attn_put(kv->type, head, (pos + i) % RV_KV_BLOCK, k + i * ld, v + i * ld, kv->head_dim);
    }
}

const void *rv_kv_block(const rv_kv *kv, size_t i_layer, size_t i_head, size_t i_block) {
    return head_at(kv, i_layer, i_head, i_block);
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

int rv_kv_type_of(const rv_kv *kv) {
    return kv->type;
}
