/* What sequences share through the tree: publishing pages, and finding where to resume. */
#include "kv/impl.h"

enum { HOT = RV_KEEP_HOT, COLD = RV_KEEP_COLD, STATE = RV_KEEP_STATE };

/* ---- publishing ---- */

/* Pages of equal tokens have equal bits, so one of them is enough. */
static void share_page(rv_kv *kv, size_t i, int keep) {
    rv_kv_cache *c = kv->c;
    rv_kv_entry *e = &kv->e[i];
    const rv_page own = e->page[keep], kept = rv_prefix_get(c->tree, e->node, keep);
    if (!own || kept == own) return;
    if (!kept) {
        rv_prefix_put(c->tree, e->node, keep, own);
        return;
    }
    rv_pages_ref(c->pages, kept);
    e->page[keep] = kept;
    e->at[keep] = rv_pages_at(c->pages, kept);
    rv_kv_let_go(c, own);
}

void rv_kv_publish(rv_kv *kv) {
    rv_kv_cache *c = kv->c;
    if (!kv->root) return;
    for (; kv->n_nodes < kv->len / RV_PAGE_TOKENS; kv->n_nodes++) {
        rv_kv_entry *e = &kv->e[kv->n_nodes];
        e->node = rv_prefix_add(c->tree, kv->node, e->tok);
        if (!e->node) break;
        rv_prefix_lock(c->tree, e->node);
        rv_prefix_unlock(c->tree, kv->node);
        kv->node = e->node;
    }
    const size_t n[2] = {kv->n_nodes, RV_MIN(kv->n_nodes, kv->n_cold)};
    for (int k = HOT; k <= COLD; k++)
        for (; kv->n_shared[k] < n[k]; kv->n_shared[k]++) share_page(kv, kv->n_shared[k], k);
}

bool rv_kv_publish_state(rv_kv *kv, size_t pos) {
    const size_t i = pos / RV_PAGE_TOKENS;
    if (!pos || i > kv->n_nodes || !kv->e[i - 1].page[STATE]) return false;
    rv_prefix_put(kv->c->tree, kv->e[i - 1].node, STATE, kv->e[i - 1].page[STATE]);
    return true;
}

/* ---- finding ---- */

typedef struct place {
    rv_node node;   /* the last whole page */
    size_t n_pages; /* whole pages up to there */
    rv_node child;  /* a page of which the first tokens count too, or 0 */
    size_t n_child; /* how many */
    size_t n_known; /* pages of which the tree knows the tokens */
} place;

static size_t length(const place *at) {
    return at->n_pages * RV_PAGE_TOKENS + at->n_child;
}

/* The longest prefix of tok that can be resumed, at most n - 1 tokens; n >= 1. */
static place find(const rv_kv_cache *c, size_t tail, rv_node root, const int32_t *tok, size_t n) {
    place at = {.node = root};
    rv_node node = root;
    size_t n_cold = 0, hot_from = 0; /* all COLD below n_cold, all HOT from hot_from on */
    const bool state = c->page_bytes[STATE] > 0;
    for (size_t i = 0; (i + 1) * RV_PAGE_TOKENS <= n; i++) {
        const size_t len = (i + 1) * RV_PAGE_TOKENS;
        const size_t m = rv_kv_bound(c, tail, len + 1) / RV_PAGE_TOKENS;
        node = rv_prefix_child(c->tree, node, tok + i * RV_PAGE_TOKENS);
        if (!node) break;
        at.n_known = i + 1;
        if (n_cold == i && rv_prefix_get(c->tree, node, COLD)) n_cold++;
        if (c->page_bytes[HOT] && !rv_prefix_get(c->tree, node, HOT)) hot_from = i + 1;
        if (len >= n || n_cold < m || hot_from > m) continue;
        if (state && !rv_prefix_get(c->tree, node, STATE)) continue;
        at.node = node;
        at.n_pages = i + 1;
    }
    if (state || !c->page_bytes[HOT]) return at;
    const size_t len = length(&at), most = RV_MIN(n - 1 - len, (size_t)RV_PAGE_TOKENS - 1);
    at.child = rv_prefix_partial(c->tree, at.node, tok + len, most, &at.n_child);
    if (n_cold < rv_kv_bound(c, tail, length(&at) + 1) / RV_PAGE_TOKENS) at.child = 0;
    if (!at.child) at.n_child = 0;
    return at;
}

/* A reference to what is kept of an entry's node. */
static void take(rv_kv *kv, size_t i, rv_node node, int keep) {
    rv_kv_cache *c = kv->c;
    const rv_page page = rv_prefix_get(c->tree, node, keep);
    if (!page) return;
    rv_pages_ref(c->pages, page);
    kv->e[i].page[keep] = page;
    kv->e[i].at[keep] = rv_pages_at(c->pages, page);
}

/* The pages of a place, and HOT ones before them as far as one may want to go back. */
static void settle(rv_kv *kv, const place *at, const int32_t *tok) {
    rv_kv_cache *c = kv->c;
    const size_t len = length(at), m = rv_kv_bound(c, kv->tail, len + 1) / RV_PAGE_TOKENS;
    const size_t keep = rv_kv_keep_from(c, kv->tail, len) / RV_PAGE_TOKENS;
    rv_node node = at->node;
    kv->len = len;
    kv->n = rv_kv_pages_of(len);
    memset(kv->e, 0, kv->n * sizeof *kv->e);
    memcpy(kv->e[kv->n - 1].tok, tok + (kv->n - 1) * RV_PAGE_TOKENS,
           (len - (kv->n - 1) * RV_PAGE_TOKENS) * sizeof *tok);
    if (at->child) take(kv, at->n_pages, at->child, HOT);
    kv->hot_lo = at->n_pages;
    for (size_t i = at->n_pages; i-- > 0; node = rv_prefix_parent(c->tree, node)) {
        rv_kv_entry *e = &kv->e[i];
        e->node = node;
        memcpy(e->tok, tok + i * RV_PAGE_TOKENS, sizeof e->tok);
        if (i < m) take(kv, i, node, COLD);
        if (i >= m || (i >= keep && kv->hot_lo == i + 1)) take(kv, i, node, HOT);
        if (i >= m || e->page[HOT]) kv->hot_lo = i;
    }
    kv->n_cold = m;
    kv->n_nodes = kv->n_shared[HOT] = at->n_pages;
    kv->n_shared[COLD] = m;
    rv_prefix_lock(c->tree, at->node);
    rv_prefix_unlock(c->tree, kv->node);
    kv->node = at->node;
}

size_t rv_kv_match(rv_kv *kv, const int32_t *tok, size_t n) {
    rv_kv_cache *c = kv->c;
    if (!kv->root || !n || kv->len) return 0;
    rv_kv_truncate(kv, 0, NULL); /* of what was reserved */
    void *e = kv->e;
    const bool ok = rv_grow(&e, &kv->cap, rv_kv_pages_of(n), sizeof *kv->e);
    kv->e = e;
    if (!ok) return 0;
    pthread_mutex_lock(&c->lock);
    const place at = find(c, kv->tail, kv->node, tok, n);
    const size_t len = length(&at);
    if (len) settle(kv, &at, tok);
    if (len && kv->state) {
        const rv_page state = rv_prefix_get(c->tree, at.node, STATE);
        memcpy(kv->state, rv_pages_at(c->pages, state), c->f.state_bytes);
        rv_prefix_idle(c->tree, at.node, STATE); /* it was used just now */
    }
    if (at.n_known > at.n_pages) kv->want = at.n_known * RV_PAGE_TOKENS;
    c->n_looked_up += n;
    c->n_hit += len;
    pthread_mutex_unlock(&c->lock);
    return len;
}

/* With the lock. */
static rv_node root_of(rv_kv_cache *c, const rv_kv_scope *s, size_t tail) {
    return rv_prefix_root(c->tree, tail, s ? s->identity : NULL, s ? s->n : 0);
}

size_t rv_kv_peek(rv_kv_cache *c, const rv_kv_scope *scope, const int32_t *tok, size_t n) {
    if (!c->share || !n) return 0;
    const size_t tail = rv_kv_tail_of(c, scope ? scope->tail : 0);
    size_t len = 0;
    pthread_mutex_lock(&c->lock);
    const rv_node root = root_of(c, scope, tail);
    if (root) {
        const place at = find(c, tail, root, tok, n);
        len = length(&at);
        rv_prefix_unlock(c->tree, root);
    }
    pthread_mutex_unlock(&c->lock);
    return len;
}

void rv_kv_forget(rv_kv_cache *c, const rv_kv_scope *scope, const int32_t *tok, size_t n) {
    pthread_mutex_lock(&c->lock);
    const rv_node root = root_of(c, scope, rv_kv_tail_of(c, scope ? scope->tail : 0));
    rv_node node = root, child;
    for (; root && n >= RV_PAGE_TOKENS; n -= RV_PAGE_TOKENS, tok += RV_PAGE_TOKENS, node = child)
        if (!(child = rv_prefix_child(c->tree, node, tok))) break;
    if (root) {
        rv_prefix_forget(c->tree, node);
        rv_prefix_unlock(c->tree, root);
    }
    pthread_mutex_unlock(&c->lock);
}

/* ---- snapshots of the recurrent state ---- */

size_t rv_kv_snapshot(rv_kv *kv, size_t n, float **to) {
    const size_t end = kv->len + n;
    size_t at = end / RV_PAGE_TOKENS * RV_PAGE_TOKENS;
    if (!kv->buf || at <= kv->len) return 0;
    if (kv->want > kv->len && kv->want <= end) at = kv->want;
    kv->snap_at = at;
    *to = kv->buf_at;
    return at - kv->len;
}
