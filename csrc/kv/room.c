/* Room: how many pages of each kind sequences take to grow, and whether those could be had beside
 * what others of the budget hold. */
#include "kv/impl.h"

enum { HOT = RV_KEEP_HOT, COLD = RV_KEEP_COLD, STATE = RV_KEEP_STATE };

/* A sequence with recurrent state has its last snapshot and a page for the next one. */
enum { STATE_PAGES = 2 };

/* All pages of a sequence of n positions. */
static void whole(const rv_kv_cache *c, size_t tail, size_t n, size_t need[RV_PAGE_CLASSES]) {
    memset(need, 0, RV_PAGE_CLASSES * sizeof *need);
    if (c->page_bytes[HOT]) need[HOT] = rv_kv_pages_of(n);
    if (c->page_bytes[STATE]) need[STATE] = STATE_PAGES;
    if (c->type[COLD] < 0 || !c->page_bytes[COLD]) return;
    /* Before a reserve, what is kept before the tail; the tail; and what is reserved. */
    const size_t most = 2 * (tail + c->f.batch) + RV_KV_BLOCK;
    need[HOT] = RV_MIN(need[HOT], most / RV_PAGE_TOKENS);
    need[COLD] = rv_kv_bound(c, tail, n) / RV_PAGE_TOKENS;
}

void rv_kv_need_add(rv_kv_cache *c, const rv_kv *kv, size_t tail, size_t n, rv_kv_need *sum) {
    size_t need[RV_PAGE_CLASSES], has[RV_PAGE_CLASSES] = {0};
    whole(c, kv ? kv->tail : rv_kv_tail_of(c, tail), n, need);
    if (kv) {
        has[HOT] = kv->n - kv->hot_lo;
        has[COLD] = kv->n_cold;
        has[STATE] = (kv->buf != 0) + (kv->rolling != 0);
        if (kv->len % RV_PAGE_TOKENS && c->page_bytes[HOT]) {
            pthread_mutex_lock(&c->lock);
            /* A shared last page is copied when it is written. */
            has[HOT] -= rv_pages_n_refs(c->pages, kv->e[kv->len / RV_PAGE_TOKENS].page[HOT]) > 1;
            pthread_mutex_unlock(&c->lock);
        }
    }
    for (int k = 0; k < RV_PAGE_CLASSES; k++) sum->n[k] += need[k] > has[k] ? need[k] - has[k] : 0;
}

bool rv_kv_cache_fits(rv_kv_cache *c, const rv_kv_need *need) {
    uint64_t lack;
    do {
        pthread_mutex_lock(&c->lock);
        lack = rv_pages_lack(c->pages, need->n);
        pthread_mutex_unlock(&c->lock);
    } while (lack && rv_budget_ask(c->member, lack));
    return lack == 0;
}

bool rv_kv_cache_has_room(rv_kv_cache *c, size_t n) {
    rv_kv_need need = {0};
    rv_kv_need_add(c, NULL, 0, n, &need);
    return rv_kv_cache_fits(c, &need);
}

/* Whether a sequence of n positions and the parts of slabs that it does not fill take at most
 * budget bytes. */
static bool holds(const rv_kv_cache *c, size_t tail, size_t n, uint64_t budget, uint64_t unfilled) {
    size_t need[RV_PAGE_CLASSES];
    uint64_t sum = unfilled, bytes;
    whole(c, tail, n, need);
    for (int k = 0; k < RV_KEEP_N; k++)
        if (!rv_mul_u64(need[k], c->page_bytes[k], &bytes) || !rv_add_u64(sum, bytes, &sum))
            return false;
    return sum <= budget;
}

size_t rv_kv_cache_capacity(rv_kv_cache *c, size_t tail) {
    rv_pages_stats s;
    uint64_t unfilled = 0;
    int n_kinds = 0;
    tail = rv_kv_tail_of(c, tail);
    pthread_mutex_lock(&c->lock);
    rv_pages_get_stats(c->pages, &s);
    for (int k = 0; k < RV_KEEP_N; k++) {
        n_kinds += c->page_bytes[k] > 0;
        unfilled += 2 * rv_pages_slab_bytes(c->pages, k); /* the first and the last */
    }
    pthread_mutex_unlock(&c->lock);
    if (n_kinds < 2) unfilled = 0; /* one kind of pages fills all */
    const size_t least =
        c->type[COLD] >= 0 ? RV_MIN(c->page_bytes[HOT], c->page_bytes[COLD]) : c->page_bytes[HOT];
    size_t lo = 0, hi = SIZE_MAX / 4 / RV_PAGE_TOKENS; /* in pages: lo fit */
    if (least) hi = RV_MIN(hi, s.budget_bytes / least);
    while (lo < hi) {
        const size_t mid = lo + (hi - lo + 1) / 2;
        if (holds(c, tail, mid * RV_PAGE_TOKENS, s.budget_bytes, unfilled))
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo * RV_PAGE_TOKENS;
}
