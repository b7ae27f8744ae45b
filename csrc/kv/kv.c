/* One sequence: its pages in order, and what becomes of them as it grows, forks and forgets. */
#include "kv/kv.h"

#include "kv/impl.h"
#include "rvk.h"

enum { HOT = RV_KEEP_HOT, COLD = RV_KEEP_COLD, STATE = RV_KEEP_STATE };

/* Most positions of a sequence: far beyond any context, and no sum of them wraps. */
#define MAX_LEN (SIZE_MAX / 4)

/* ---- making and freeing ---- */

/* A sequence without a place in the tree. */
static rv_kv *make(rv_kv_cache *c) {
    rv_kv *kv = rv_calloc(1, sizeof *kv);
    if (!kv) return NULL;
    if (c->f.state_bytes) {
        kv->state = rv_alloc_aligned(c->f.state_bytes);
        if (!kv->state) {
            rv_free(kv);
            return NULL;
        }
        memset(kv->state, 0, c->f.state_bytes);
    }
    kv->c = rv_kv_cache_ref(c);
    return kv;
}

static void unmake(rv_kv *kv) {
    rv_kv_cache_free(&kv->c);
    rv_free(kv->state);
    rv_free(kv->e);
    rv_free(kv);
}

static rv_status new_kv(rv_kv **out, rv_kv_cache *c, bool share, const rv_kv_scope *scope,
                        rv_err *err) {
    const rv_kv_scope none = {0}, *s = scope ? scope : &none;
    *out = NULL;
    if (s->tail % RV_KV_BLOCK || s->tail > MAX_LEN)
        return rv_fail(err, RV_EARG, "kv: tail %zu, want a multiple of %d", s->tail, RV_KV_BLOCK);
    rv_kv *kv = make(c);
    if (!kv) return rv_fail(err, RV_ENOMEM, "kv: out of memory");
    kv->tail = rv_kv_tail_of(c, s->tail);
    pthread_mutex_lock(&c->lock);
    if (share) kv->root = kv->node = rv_prefix_root(c->tree, kv->tail, s->identity, s->n);
    const bool ok = !share || kv->root;
    if (ok) c->n_sequences++;
    pthread_mutex_unlock(&c->lock);
    if (!ok) {
        unmake(kv);
        return rv_fail(err, RV_ENOMEM, "kv: out of memory");
    }
    *out = kv;
    return RV_OK;
}

rv_status rv_kv_new(rv_kv **out, rv_kv_cache *c, const rv_kv_scope *scope, rv_err *err) {
    return new_kv(out, c, c->share, scope, err);
}

rv_status rv_kv_new_apart(rv_kv **out, rv_kv_cache *c, rv_err *err) {
    return new_kv(out, c, false, NULL, err);
}

/* Let go of everything of entries behind n positions, the end first: what can be evicted goes in
 * that order, and a beginning is of use without an end. */
static void drop_from(rv_kv *kv, size_t n) {
    rv_kv_cache *c = kv->c;
    const size_t full = n / RV_PAGE_TOKENS, pages = rv_kv_pages_of(n);
    for (size_t i = kv->n; i-- > full;) {
        rv_kv_entry *e = &kv->e[i];
        if (i < kv->n_nodes) rv_prefix_idle(c->tree, e->node, STATE); /* of use until now */
        for (int k = RV_KEEP_N; k-- > (i < pages ? COLD : HOT);) {
            rv_kv_let_go(c, e->page[k]);
            e->page[k] = 0;
        }
    }
    kv->n = RV_MIN(kv->n, pages);
    kv->hot_lo = RV_MIN(kv->hot_lo, full);
    kv->n_cold = RV_MIN(kv->n_cold, full);
    if (full < kv->n_nodes) {
        const rv_node node = full ? kv->e[full - 1].node : kv->root;
        rv_prefix_lock(c->tree, node);
        rv_prefix_unlock(c->tree, kv->node);
        kv->node = node;
        kv->n_nodes = full;
    }
    for (int k = HOT; k <= COLD; k++) kv->n_shared[k] = RV_MIN(kv->n_shared[k], full);
    if (kv->rolling > n) kv->rolling = 0;
    kv->snap_at = 0;
}

void rv_kv_free(rv_kv **pkv) {
    rv_kv *kv = *pkv;
    *pkv = NULL;
    if (!kv) return;
    rv_kv_cache *c = kv->c;
    pthread_mutex_lock(&c->lock);
    rv_kv_publish_state(kv, kv->rolling);
    drop_from(kv, 0);
    rv_kv_let_go(c, kv->buf);
    if (kv->node) rv_prefix_unlock(c->tree, kv->node);
    c->n_sequences--;
    pthread_mutex_unlock(&c->lock);
    unmake(kv);
}

rv_status rv_kv_fork(rv_kv **out, const rv_kv *kv, rv_err *err) {
    *out = NULL;
    rv_kv_cache *c = kv->c;
    rv_kv *to = make(c);
    const size_t n = rv_kv_pages_of(kv->len);
    void *e = NULL;
    if (!to || !rv_grow(&e, &to->cap, n, sizeof *to->e)) {
        if (to) unmake(to);
        return rv_fail(err, RV_ENOMEM, "kv: out of memory");
    }
    to->e = e;
    if (n) memcpy(to->e, kv->e, n * sizeof *to->e);
    if (to->state) memcpy(to->state, kv->state, c->f.state_bytes);
    to->tail = kv->tail;
    to->len = kv->len;
    to->n = n;
    to->hot_lo = kv->hot_lo;
    to->n_cold = kv->n_cold;
    to->n_nodes = kv->n_nodes;
    memcpy(to->n_shared, kv->n_shared, sizeof to->n_shared);
    to->root = kv->root;
    to->node = kv->node;
    to->rolling = kv->rolling;
    to->want = kv->want;
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < RV_KEEP_N; k++)
            if (to->e[i].page[k]) rv_pages_ref(c->pages, to->e[i].page[k]);
    if (to->node) rv_prefix_lock(c->tree, to->node);
    c->n_sequences++;
    pthread_mutex_unlock(&c->lock);
    *out = to;
    return RV_OK;
}

/* ---- growing ---- */

/* What a reservation takes: HOT pages of entries n .. end - 1 and COLD ones of n_cold ..
 * cold_end - 1, where the tree has none. */
typedef struct plan {
    size_t end, cold_end;
    bool copy;           /* the last page is shared */
    rv_page copied, buf; /* instead of it; for a snapshot */
    char *copied_at;
    size_t need[RV_PAGE_CLASSES];
} plan;

/* References to COLD pages that the tree has, and how many pages are missing. */
static void make_plan(rv_kv *kv, plan *p, size_t n) {
    rv_kv_cache *c = kv->c;
    const size_t end = kv->len + n, i_last = kv->len / RV_PAGE_TOKENS;
    p->end = RV_MAX(kv->n, rv_kv_pages_of(end));
    p->cold_end = RV_MAX(kv->n_cold, rv_kv_bound(c, kv->tail, end) / RV_PAGE_TOKENS);
    p->copy = n && kv->len % RV_PAGE_TOKENS && c->page_bytes[HOT] &&
              rv_pages_n_refs(c->pages, kv->e[i_last].page[HOT]) > 1;
    if (c->page_bytes[HOT]) p->need[HOT] = p->end - kv->n + p->copy;
    for (size_t i = kv->n_cold; i < p->cold_end; i++) {
        rv_kv_entry *e = &kv->e[i];
        if (i < kv->n_nodes) e->page[COLD] = rv_prefix_get(c->tree, e->node, COLD);
        if (e->page[COLD])
            rv_pages_ref(c->pages, e->page[COLD]);
        else
            p->need[COLD]++;
    }
    p->need[STATE] = kv->state && !kv->buf && end / RV_PAGE_TOKENS > i_last;
    if (!rv_pages_fits(c->pages, p->need)) p->need[STATE] = 0; /* one can do without */
}

/* Let go of the pages of a plan; of those from the tree too, if adopted. */
static void drop_plan(rv_kv *kv, plan *p, bool adopted, size_t n_set) {
    rv_kv_cache *c = kv->c;
    for (size_t i = kv->n; i < n_set; i++) {
        rv_kv_let_go(c, kv->e[i].page[HOT]);
        kv->e[i].page[HOT] = 0;
    }
    for (size_t i = kv->n_cold; i < p->cold_end; i++) {
        rv_kv_entry *e = &kv->e[i];
        if (!e->fresh && !adopted) continue;
        rv_kv_let_go(c, e->page[COLD]);
        e->page[COLD] = 0;
        e->fresh = false;
    }
    rv_kv_let_go(c, p->copied);
    rv_kv_let_go(c, p->buf);
    p->copied = p->buf = 0;
}

static bool fill_plan(rv_kv *kv, plan *p) {
    rv_kv_cache *c = kv->c;
    size_t left[RV_PAGE_CLASSES];
    memcpy(left, p->need, sizeof left);
    for (size_t i = kv->n; i < p->end && c->page_bytes[HOT]; i++)
        if (!(kv->e[i].page[HOT] = rv_kv_take(c, HOT, left))) return false;
    if (p->copy && !(p->copied = rv_kv_take(c, HOT, left))) return false;
    for (size_t i = kv->n_cold; i < p->cold_end; i++) {
        rv_kv_entry *e = &kv->e[i];
        if (e->page[COLD]) continue;
        if (!(e->page[COLD] = rv_kv_take(c, COLD, left))) return false;
        e->fresh = true;
    }
    return !p->need[STATE] || (p->buf = rv_kv_take(c, STATE, left)) != 0;
}

static rv_status no_room(rv_kv *kv, const plan *p, size_t n, rv_err *err) {
    rv_pages_stats s;
    rv_pages_get_stats(kv->c->pages, &s);
    uint64_t bytes = 0, spare = 0;
    for (int k = 0; k < RV_KEEP_N; k++) {
        bytes += (uint64_t)p->need[k] * kv->c->page_bytes[k];
        spare += s.n_spare[k] * kv->c->page_bytes[k];
    }
    return rv_fail(err, RV_EFULL,
                   "kv: no room for %zu positions behind %zu: they want %llu bytes, the budget is "
                   "%llu, %llu are held and %llu of those can be given up, others hold %llu",
                   n, kv->len, (unsigned long long)bytes, (unsigned long long)s.budget_bytes,
                   (unsigned long long)s.held_bytes, (unsigned long long)spare,
                   (unsigned long long)(s.budget_bytes - rv_budget_left(kv->c->member)));
}

/* All pages of a plan or none.  When taking them one by one fails, everything that can be evicted
 * is gone, and what is in the way is how they were spread over slabs: the second time they fit. */
static rv_status take_plan(rv_kv *kv, plan *p, size_t n, rv_err *err) {
    rv_kv_cache *c = kv->c;
    void *e = kv->e;
    size_t n_set = kv->n;
    rv_status st = RV_OK;
    if (!rv_pages_fits(c->pages, p->need)) st = no_room(kv, p, n, err);
    if (st == RV_OK && !rv_grow(&e, &kv->cap, p->end, sizeof *kv->e))
        st = rv_fail(err, RV_ENOMEM, "kv: no memory for %zu positions", kv->len + n);
    kv->e = e;
    if (st == RV_OK) {
        n_set = p->end;
        memset(kv->e + kv->n, 0, (n_set - kv->n) * sizeof *kv->e);
    }
    for (int i = 0; st == RV_OK && !fill_plan(kv, p); i++) {
        const bool starved = rv_pages_starved(c->pages);
        drop_plan(kv, p, false, n_set);
        if (starved)
            st = rv_fail(err, RV_ENOMEM, "kv: no memory for %zu positions", kv->len + n);
        else if (i)
            st = no_room(kv, p, n, err);
    }
    if (st != RV_OK) {
        drop_plan(kv, p, true, n_set);
        return st;
    }
    for (size_t i = kv->n; i < p->end && c->page_bytes[HOT]; i++)
        kv->e[i].at[HOT] = rv_pages_at(c->pages, kv->e[i].page[HOT]);
    for (size_t i = kv->n_cold; i < p->cold_end; i++)
        kv->e[i].at[COLD] = rv_pages_at(c->pages, kv->e[i].page[COLD]);
    kv->n = p->end;
    if (p->buf) kv->buf_at = rv_pages_at(c->pages, kv->buf = p->buf);
    if (p->copied) p->copied_at = rv_pages_at(c->pages, p->copied);
    return RV_OK;
}

/* Make a plan and take its pages.  What the cache lacks, others of the budget are asked for without
 * its lock; where they took what was there between counting and taking, it is tried again. */
static rv_status plan_and_take(rv_kv *kv, plan *p, size_t n, rv_err *err) {
    enum { RACES = 8 };
    rv_kv_cache *c = kv->c;
    rv_err e;
    rv_status st;
    bool again;
    int n_races = 0;
    do {
        *p = (plan){0};
        rv_err_clear(&e);
        pthread_mutex_lock(&c->lock);
        make_plan(kv, p, n);
        st = take_plan(kv, p, n, &e);
        const uint64_t lack = st == RV_EFULL ? rv_pages_lack(c->pages, p->need) : 0;
        pthread_mutex_unlock(&c->lock);
        again = lack ? rv_budget_ask(c->member, lack) : st == RV_EFULL && ++n_races < RACES;
    } while (again);
    if (st != RV_OK) return rv_fail(err, st, "%s", e.msg);
    rv_budget_tell(c->member);
    return RV_OK;
}

size_t rv_kv_most(const rv_kv *kv) {
    return kv->c->type[COLD] >= 0 ? kv->tail : SIZE_MAX;
}

rv_status rv_kv_reserve(rv_kv *kv, size_t n, rv_pool *pool, rv_err *err) {
    rv_kv_cache *c = kv->c;
    plan p;
    if (n > rv_kv_most(kv))
        return rv_fail(err, RV_EARG, "kv: %zu positions at once, want at most the tail, %zu", n,
                       kv->tail);
    if (n > MAX_LEN - kv->len)
        return rv_fail(err, RV_EFULL, "kv: no sequence holds %zu more positions", n);
    const rv_status st = plan_and_take(kv, &p, n, err);
    if (st != RV_OK) return st;
    rv_kv_entry *last = &kv->e[kv->len / RV_PAGE_TOKENS];
    if (p.copied) memcpy(p.copied_at, last->at[HOT], c->page_bytes[HOT]);
    const size_t n_moved = rv_kv_migrate(kv, kv->n_cold, p.cold_end, pool);
    kv->n_cold = p.cold_end;
    kv->snap_at = 0;
    if (!p.copied && !n_moved) return RV_OK;
    pthread_mutex_lock(&c->lock);
    c->n_moved += n_moved;
    if (p.copied) {
        rv_kv_let_go(c, last->page[HOT]);
        last->page[HOT] = p.copied;
        last->at[HOT] = p.copied_at;
        c->n_copied++;
    }
    pthread_mutex_unlock(&c->lock);
    return RV_OK;
}

void rv_kv_write(rv_kv *kv, size_t i_layer, size_t i_head, size_t pos, size_t n, const float *k,
                 const float *v, size_t ld) {
    const rv_kv_cache *c = kv->c;
    const size_t off = rv_kv_page_offset(c, false, i_layer, i_head);
    for (size_t i = 0; i < n; i++, pos++)
        rvk_attn_put(c->type[HOT], kv->e[pos / RV_PAGE_TOKENS].at[HOT] + off, pos % RV_PAGE_TOKENS,
                     k + i * ld, v + i * ld, c->f.head_dim);
}

/* The snapshot that was written during the last positions: it goes to the tree if others want it
 * there, else it is the sequence's own instead of the one before. */
static void keep_snapshot(rv_kv *kv, size_t before) {
    const size_t at = kv->snap_at;
    kv->snap_at = 0;
    if (at <= before || at > kv->len) return;
    rv_page *page = &kv->e[at / RV_PAGE_TOKENS - 1].page[STATE];
    *page = kv->buf;
    kv->buf = 0;
    if (at == kv->want) {
        kv->want = 0;
        if (rv_kv_publish_state(kv, at)) {
            rv_kv_let_go(kv->c, *page);
            *page = 0;
            return;
        }
    }
    if (kv->rolling) {
        page = &kv->e[kv->rolling / RV_PAGE_TOKENS - 1].page[STATE];
        rv_kv_let_go(kv->c, *page);
        *page = 0;
    }
    kv->rolling = at;
}

void rv_kv_commit(rv_kv *kv, const int32_t *tok, size_t n) {
    rv_kv_cache *c = kv->c;
    const size_t before = kv->len;
    for (size_t i = 0; i < n; i++) {
        const size_t pos = before + i;
        kv->e[pos / RV_PAGE_TOKENS].tok[pos % RV_PAGE_TOKENS] = tok[i];
    }
    kv->len += n;
    const size_t keep = rv_kv_keep_from(c, kv->tail, kv->len) / RV_PAGE_TOKENS;
    pthread_mutex_lock(&c->lock);
    rv_kv_publish(kv);
    keep_snapshot(kv, before);
    for (size_t i = keep; i-- > kv->hot_lo;) {
        rv_kv_let_go(c, kv->e[i].page[HOT]);
        kv->e[i].page[HOT] = 0;
    }
    kv->hot_lo = RV_MAX(kv->hot_lo, keep);
    pthread_mutex_unlock(&c->lock);
}

/* ---- forgetting ---- */

/* Go back to the state behind n positions, 0 .. len; false: it is not kept. */
static bool restore(rv_kv *kv, size_t n) {
    const rv_kv_cache *c = kv->c;
    if (!kv->state || n == kv->len) return true;
    if (n == 0) {
        memset(kv->state, 0, c->f.state_bytes);
        return true;
    }
    if (n % RV_PAGE_TOKENS) return false;
    const rv_kv_entry *e = &kv->e[n / RV_PAGE_TOKENS - 1];
    rv_page page = e->page[STATE];
    if (!page && n / RV_PAGE_TOKENS <= kv->n_nodes) page = rv_prefix_get(c->tree, e->node, STATE);
    if (page) memcpy(kv->state, rv_pages_at(c->pages, page), c->f.state_bytes);
    return page != 0;
}

rv_status rv_kv_truncate(rv_kv *kv, size_t n, rv_err *err) {
    rv_kv_cache *c = kv->c;
    if (n > kv->len)
        return rv_fail(err, RV_EARG, "kv: truncated to %zu positions, there are %zu", n, kv->len);
    if (n && rv_kv_bound(c, kv->tail, n + 1) < kv->hot_lo * RV_PAGE_TOKENS)
        return rv_fail(err, RV_EUNSUPPORTED,
                       "kv: cannot go back to %zu of %zu positions: the full precision of those "
                       "before %zu is gone",
                       n, kv->len, kv->hot_lo * RV_PAGE_TOKENS);
    pthread_mutex_lock(&c->lock);
    const bool kept = restore(kv, n);
    if (kept) drop_from(kv, n);
    pthread_mutex_unlock(&c->lock);
    if (!kept)
        return rv_fail(err, RV_EUNSUPPORTED,
                       "kv: cannot go back to %zu of %zu positions: the recurrent state there is "
                       "not kept",
                       n, kv->len);
    kv->len = n;
    return RV_OK;
}

/* ---- reading ---- */

size_t rv_kv_len(const rv_kv *kv) {
    return kv->len;
}

size_t rv_kv_same(const rv_kv *kv, const int32_t *tok, size_t n) {
    size_t i = 0;
    while (i < n && i < kv->len && tok[i] == kv->e[i / RV_PAGE_TOKENS].tok[i % RV_PAGE_TOKENS]) i++;
    return i;
}

size_t rv_kv_boundary(const rv_kv *kv, size_t n) {
    return rv_kv_bound(kv->c, kv->tail, n);
}

void rv_kv_runs(const rv_kv *kv, bool old, size_t i_layer, size_t i_head, size_t i_block,
                const void *runs[RV_KV_BLOCK / RV_PAGE_TOKENS]) {
    const size_t off = rv_kv_page_offset(kv->c, old, i_layer, i_head),
                 end = old ? kv->n_cold : kv->n;
    for (size_t r = 0; r < RV_KV_BLOCK / RV_PAGE_TOKENS; r++) {
        const size_t i = i_block * (RV_KV_BLOCK / RV_PAGE_TOKENS) + r;
        runs[r] = r == 0 || i < end ? kv->e[i].at[old] + off : runs[0];
    }
}

int rv_kv_type_of(const rv_kv *kv, bool old) {
    return kv->c->type[old];
}

bool rv_kv_rotated(const rv_kv *kv) {
    return kv->c->f.rotate;
}

float *rv_kv_state(rv_kv *kv) {
    return kv->state;
}

rv_page rv_kv_page(const rv_kv *kv, bool old, size_t i) {
    return i < kv->n ? kv->e[i].page[old] : 0;
}

/* ---- counting ---- */

/* Bytes of pages with at most so many references, the tree's not counted. */
static size_t count_bytes(const rv_kv *kv, uint32_t most) {
    const rv_kv_cache *c = kv->c;
    size_t bytes = sizeof *kv + kv->cap * sizeof *kv->e + c->f.state_bytes;
    pthread_mutex_lock(&kv->c->lock);
    for (size_t i = 0; i < kv->n; i++) {
        for (int k = 0; k < RV_KEEP_N; k++) {
            const rv_page page = kv->e[i].page[k];
            if (!page) continue;
            const uint32_t kept = rv_pages_owner(c->pages, page) != 0;
            if (rv_pages_n_refs(c->pages, page) - kept <= most) bytes += c->page_bytes[k];
        }
    }
    if (kv->buf) bytes += c->page_bytes[STATE];
    pthread_mutex_unlock(&kv->c->lock);
    return bytes;
}

size_t rv_kv_bytes(const rv_kv *kv) {
    return count_bytes(kv, UINT32_MAX);
}

size_t rv_kv_own_bytes(const rv_kv *kv) {
    return count_bytes(kv, 1);
}
