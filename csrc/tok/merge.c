/* Byte pair merging: join the neighbours with the least key, the leftmost first among equals, until
 * no neighbours can be joined.
 *
 * The symbols form a list over array indices; a symbol keeps the index of its leftmost part.  Each
 * pair is a heap entry (key, left index); key[left] holds the present key of the pair that starts
 * there, so an entry whose key differs is out of date and is dropped when it comes up.  Every join
 * adds at most two entries, so n symbols cost O(n log n) whatever they are. */
#include "tok/impl.h"

enum { SMALL = 24 }; /* symbols below which a scan per join beats a heap */

bool rv_merge_reserve(rv_merge *m, size_t n) {
    if (n <= m->cap) return true;
    size_t cap[4] = {m->cap, m->cap, m->cap, m->cap};
    if (!rv_grow((void **)&m->val, &cap[0], n, sizeof *m->val) ||
        !rv_grow((void **)&m->next, &cap[1], n, sizeof *m->next) ||
        !rv_grow((void **)&m->prev, &cap[2], n, sizeof *m->prev) ||
        !rv_grow((void **)&m->key, &cap[3], n, sizeof *m->key))
        return false;
    m->cap = cap[0]; /* rv_grow gives all four the same */
    return true;
}

void rv_merge_free(rv_merge *m) {
    rv_free(m->val);
    rv_free(m->next);
    rv_free(m->prev);
    rv_free(m->key);
    rv_heap_free(&m->heap);
    *m = (rv_merge){0};
}

static inline void set_key(rv_merge *m, uint32_t left, const rv_merge_ops *ops, const void *ctx) {
    uint32_t right = m->next[left];
    m->key[left] = right == RV_TOK_NONE ? RV_TOK_NONE : ops->key(ctx, m, left, right);
}

static void join(rv_merge *m, uint32_t left, const rv_merge_ops *ops, const void *ctx) {
    uint32_t right = m->next[left], after = m->next[right];
    ops->join(ctx, m, left, right, m->key[left]);
    m->key[right] = RV_TOK_NONE;
    m->next[left] = after;
    if (after != RV_TOK_NONE) m->prev[after] = left;
    set_key(m, left, ops, ctx);
    if (m->prev[left] != RV_TOK_NONE) set_key(m, m->prev[left], ops, ctx);
}

static void run_small(rv_merge *m, const rv_merge_ops *ops, const void *ctx) {
    for (;;) {
        uint32_t best = 0;
        for (uint32_t i = m->next[0]; i != RV_TOK_NONE; i = m->next[i])
            if (m->key[i] < m->key[best]) best = i;
        if (m->key[best] == RV_TOK_NONE) return;
        join(m, best, ops, ctx);
    }
}

static bool push(rv_merge *m, uint32_t left) {
    if (left == RV_TOK_NONE || m->key[left] == RV_TOK_NONE) return true;
    return rv_heap_push(&m->heap, (uint64_t)m->key[left] << 32 | left);
}

bool rv_merge_run(rv_merge *m, size_t n, const rv_merge_ops *ops, const void *ctx) {
    for (size_t i = 0; i < n; i++) {
        m->prev[i] = i ? (uint32_t)i - 1 : RV_TOK_NONE;
        m->next[i] = i + 1 < n ? (uint32_t)i + 1 : RV_TOK_NONE;
    }
    for (size_t i = 0; i < n; i++) set_key(m, (uint32_t)i, ops, ctx);
    if (n <= SMALL) {
        run_small(m, ops, ctx);
        return true;
    }
    m->heap.n = 0;
    for (size_t i = 0; i < n; i++)
        if (!push(m, (uint32_t)i)) return false;
    while (m->heap.n) {
        uint64_t top = rv_heap_pop(&m->heap);
        uint32_t left = (uint32_t)top;
        if (m->key[left] != top >> 32) continue;
        join(m, left, ops, ctx);
        if (!push(m, left) || !push(m, m->prev[left])) return false;
    }
    return true;
}
