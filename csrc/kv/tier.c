/* The two tiers: where the store ends, which HOT pages stay behind that, and how pages move. */
#include "kv/impl.h"
#include "rvk.h"

enum { HOT = RV_KEEP_HOT, COLD = RV_KEEP_COLD };

size_t rv_kv_tail_of(const rv_kv_cache *c, size_t tail) {
    return tail && c->type[COLD] >= 0 ? tail : c->f.tail;
}

size_t rv_kv_bound(const rv_kv_cache *c, size_t tail, size_t n) {
    if (c->type[COLD] < 0 || n <= tail) return 0;
    return (n - tail) / c->f.batch * c->f.batch;
}

/* Forgetting up to a block of positions may move the boundary back by one batch. */
size_t rv_kv_keep_from(const rv_kv_cache *c, size_t tail, size_t len) {
    const size_t m = rv_kv_bound(c, tail, len);
    const size_t before = rv_kv_bound(c, tail, len < RV_KV_BLOCK ? 0 : len - RV_KV_BLOCK + 1);
    return RV_MIN(before, m < RV_KV_BLOCK ? 0 : m - RV_KV_BLOCK);
}

typedef struct move {
    rv_kv *kv;
    size_t lo, hi;
} move;

/* One head, counted through all layers: the same number in both kinds of pages.  Keys and values
 * get as wide as the store holds them first, so that a rotated key may fill that. */
static void move_head(void *arg, size_t i_head, int i_thread) {
    (void)i_thread;
    const move *m = arg;
    const rv_kv_cache *c = m->kv->c;
    const size_t d = c->f.head_dim, w = rvk_attn_width(c->type[COLD], d);
    float k[RV_KV_MAX_STORE_DIM], v[RV_KV_MAX_STORE_DIM];
    for (size_t j = d; j < w; j++) v[j] = 0.0f;
    for (size_t i = m->lo; i < m->hi; i++) {
        const rv_kv_entry *e = &m->kv->e[i];
        if (!e->fresh) continue;
        for (size_t p = 0; p < RV_PAGE_TOKENS; p++) {
            rvk_attn_get(c->type[HOT], e->at[HOT] + i_head * c->run_bytes[HOT], p, k, v, d);
            for (size_t j = d; j < w; j++) k[j] = 0.0f;
            if (c->f.rotate) rvk_hadamard(k, 1, w, w);
            rvk_attn_put(c->type[COLD], e->at[COLD] + i_head * c->run_bytes[COLD], p, k, v, w);
        }
    }
}

size_t rv_kv_migrate(rv_kv *kv, size_t lo, size_t hi, rv_pool *pool) {
    size_t n = 0;
    for (size_t i = lo; i < hi; i++) n += kv->e[i].fresh;
    if (!n) return 0;
    move m = {kv, lo, hi};
    const size_t n_heads = kv->c->n_heads;
    if (pool)
        rv_pool_run(pool, n_heads, move_head, &m);
    else
        for (size_t h = 0; h < n_heads; h++) move_head(&m, h, 0);
    for (size_t i = lo; i < hi; i++) kv->e[i].fresh = false;
    return n;
}
