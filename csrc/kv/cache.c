/* The cache: its format, its pages and its tree, which all sequences share under one lock. */
#include "kv/impl.h"
#include "rvk.h"

_Static_assert(RV_KV_BLOCK == (int)RVK_ATTN_BLOCK, "attention reads whole blocks");
_Static_assert(RV_PAGE_TOKENS == (int)RVK_ATTN_RUN, "a page holds whole runs");

enum { HOT = RV_KEEP_HOT, COLD = RV_KEEP_COLD, STATE = RV_KEEP_STATE };
enum { PAGES = RV_KV_BLOCK / RV_PAGE_TOKENS }; /* of a block */

int rv_kv_kernel_type(rv_kv_type type) {
    switch (type) {
    case RV_KV_F16: return RVK_F16;
    case RV_KV_F32: return RVK_F32;
    case RV_KV_Q8_0: return RVK_Q8_0;
    case RV_KV_Q4_0: return RVK_Q4_0;
    case RV_KV_K8V4: return RVK_K8V4;
    default: return -1;
    }
}

size_t rv_kv_head_bytes(rv_kv_type type, size_t head_dim) {
    return rvk_attn_run_bytes(rv_kv_kernel_type(type), head_dim) / RVK_ATTN_RUN;
}

/* ---- making ---- */

static rv_status check_store(const rv_kv_format *f, rv_err *err) {
    if (f->store != RV_KV_Q8_0 && f->store != RV_KV_Q4_0 && f->store != RV_KV_K8V4)
        return rv_fail(err, RV_EARG, "kv: store type is %d, want Q8_0, Q4_0 or K8V4",
                       (int)f->store);
    if (f->type != RV_KV_F16 && f->type != RV_KV_F32)
        return rv_fail(err, RV_EARG, "kv: type %d with a store, want F16 or F32", (int)f->type);
    if (!f->tail || f->tail % RV_KV_BLOCK || !f->batch || f->batch % RV_KV_BLOCK)
        return rv_fail(err, RV_EARG, "kv: tail %zu, batch %zu: want multiples of %d", f->tail,
                       f->batch, RV_KV_BLOCK);
    if (f->head_dim > RV_KV_MAX_STORE_DIM)
        return rv_fail(err, RV_EUNSUPPORTED, "kv: heads of %zu with a store, want at most %d",
                       f->head_dim, RV_KV_MAX_STORE_DIM);
    return RV_OK;
}

static rv_status check_format(const rv_kv_format *f, rv_err *err) {
    if (rv_kv_kernel_type(f->type) < 0)
        return rv_fail(err, RV_EARG, "kv: there is no type %d", (int)f->type);
    const rv_status st = f->store == RV_KV_AUTO ? RV_OK : check_store(f, err);
    if (st != RV_OK) return st;
    if (f->n_layers && !f->head_dim) return rv_fail(err, RV_EARG, "kv: heads of 0 values");
    for (size_t l = 0; l < f->n_layers; l++)
        if (f->heads[l] < 1)
            return rv_fail(err, RV_EARG, "kv: layer %zu has %d heads", l, (int)f->heads[l]);
    return RV_OK;
}

/* Sizes of pages; false: they are beyond all numbers. */
static bool lay_out(rv_kv_cache *c) {
    const bool store = c->f.store != RV_KV_AUTO && c->f.n_layers;
    c->type[HOT] = rv_kv_kernel_type(c->f.type);
    c->type[COLD] = store ? rv_kv_kernel_type(c->f.store) : -1;
    for (size_t l = 0; l < c->f.n_layers; l++) {
        c->heads[l] = c->f.heads[l];
        c->first[l] = c->n_heads;
        c->n_heads += (size_t)c->heads[l];
    }
    c->f.heads = c->heads;
    for (int k = 0; k <= (store ? COLD : HOT); k++) {
        c->run_bytes[k] = c->n_heads ? rvk_attn_run_bytes(c->type[k], c->f.head_dim) : 0;
        if (__builtin_mul_overflow(c->run_bytes[k], c->n_heads, &c->page_bytes[k])) return false;
    }
    if (c->f.state_bytes > PTRDIFF_MAX) return false;
    c->page_bytes[STATE] = (c->f.state_bytes + 63) / 64 * 64;
    return true;
}

/* Of others who want memory: what no sequence needs goes page by page, and its memory with the last
 * page of a slab. */
static bool shrink(void *ctx, uint64_t want) {
    rv_kv_cache *c = ctx;
    rv_pages_stats s = {0};
    pthread_mutex_lock(&c->lock);
    if (c->tree) rv_pages_get_stats(c->pages, &s);
    const uint64_t before = s.held_bytes;
    while (before - s.held_bytes < want && s.clear_bytes && rv_prefix_evict(c->tree) >= 0)
        rv_pages_get_stats(c->pages, &s);
    pthread_mutex_unlock(&c->lock);
    return s.held_bytes < before;
}

/* Idle pages are the first thing that is given up. */
enum { PRIORITY = 0 };

static rv_status join(rv_kv_cache *c, const rv_kv_cache_opts *o, rv_err *err) {
    rv_status st = RV_OK;
    if (o->memory)
        c->budget = rv_budget_ref(o->memory);
    else
        st = rv_budget_new(&c->budget, o->budget, err);
    if (st != RV_OK) return st;
    const char *name = o->name ? o->name : "keys and values";
    return rv_budget_join(&c->member, c->budget, name, PRIORITY, shrink, c, err);
}

static rv_status check_budget(const rv_kv_cache *c, rv_err *err) {
    const uint64_t budget = rv_budget_bytes(c->member);
    uint64_t one = c->page_bytes[STATE], bytes;
    for (int k = HOT; k <= COLD; k++)
        if (!rv_mul_u64(PAGES, c->page_bytes[k], &bytes) || !rv_add_u64(one, bytes, &one))
            one = UINT64_MAX;
    if (one <= budget) return RV_OK;
    return rv_fail(err, RV_EFULL, "kv: the budget of %llu bytes does not hold %d positions, %llu",
                   (unsigned long long)budget, RV_KV_BLOCK, (unsigned long long)one);
}

rv_status rv_kv_cache_new(rv_kv_cache **out, const rv_kv_format *f, const rv_kv_cache_opts *o,
                          rv_err *err) {
    *out = NULL;
    rv_status st = check_format(f, err);
    if (st != RV_OK) return st;
    rv_kv_cache *c = rv_calloc(1, sizeof *c);
    if (!c) return rv_fail(err, RV_ENOMEM, "kv: out of memory");
    pthread_mutex_init(&c->lock, NULL);
    atomic_store(&c->n_refs, 1);
    c->f = *f;
    c->share = o->share;
    c->heads = rv_calloc(f->n_layers + 1, sizeof *c->heads);
    c->first = rv_calloc(f->n_layers + 1, sizeof *c->first);
    if (!c->heads || !c->first) st = rv_fail(err, RV_ENOMEM, "kv: out of memory");
    if (st == RV_OK && !lay_out(c)) st = rv_fail(err, RV_EFULL, "kv: pages beyond any memory");
    if (st == RV_OK) st = join(c, o, err);
    if (st == RV_OK) st = check_budget(c, err);
    if (st == RV_OK) st = rv_pages_new(&c->pages, c->page_bytes, RV_KEEP_N, c->member, o->fit, err);
    if (st == RV_OK) st = rv_prefix_new(&c->tree, c->pages, o->hash_bits ? o->hash_bits : 64, err);
    if (st != RV_OK) {
        rv_kv_cache_free(&c);
        return st;
    }
    *out = c;
    return RV_OK;
}

rv_kv_cache *rv_kv_cache_ref(rv_kv_cache *c) {
    atomic_fetch_add_explicit(&c->n_refs, 1, memory_order_relaxed);
    return c;
}

void rv_kv_cache_free(rv_kv_cache **pc) {
    rv_kv_cache *c = *pc;
    *pc = NULL;
    if (!c || atomic_fetch_sub_explicit(&c->n_refs, 1, memory_order_acq_rel) > 1) return;
    pthread_mutex_lock(&c->lock); /* others may ask for memory until it has left */
    rv_prefix_free(&c->tree);
    rv_pages_free(&c->pages);
    pthread_mutex_unlock(&c->lock);
    rv_budget_leave(&c->member);
    rv_budget_free(&c->budget);
    pthread_mutex_destroy(&c->lock);
    rv_free(c->heads);
    rv_free(c->first);
    rv_free(c);
}

/* ---- pages ---- */

rv_page rv_kv_take(rv_kv_cache *c, int class, size_t left[RV_PAGE_CLASSES]) {
    for (;;) {
        const rv_page page = rv_pages_alloc_beside(c->pages, class, left);
        if (page) left[class]--;
        if (page || rv_pages_starved(c->pages) || rv_prefix_evict(c->tree) < 0) return page;
    }
}

void rv_kv_let_go(rv_kv_cache *c, rv_page page) {
    if (!page || rv_pages_unref(c->pages, page) != 1) return;
    const rv_node node = rv_pages_owner(c->pages, page);
    if (node) rv_prefix_idle(c->tree, node, rv_pages_class(c->pages, page));
}

const void *rv_kv_page_pin(rv_kv_cache *c, rv_page page) {
    pthread_mutex_lock(&c->lock);
    rv_pages_ref(c->pages, page);
    const void *at = rv_pages_at(c->pages, page);
    pthread_mutex_unlock(&c->lock);
    return at;
}

void rv_kv_page_unpin(rv_kv_cache *c, rv_page page) {
    pthread_mutex_lock(&c->lock);
    rv_kv_let_go(c, page);
    pthread_mutex_unlock(&c->lock);
}

/* ---- what it is ---- */

void rv_kv_cache_get_stats(rv_kv_cache *c, rv_kv_cache_stats *out) {
    pthread_mutex_lock(&c->lock);
    rv_pages_get_stats(c->pages, &out->pages);
    rv_prefix_get_stats(c->tree, &out->prefix);
    out->n_sequences = c->n_sequences;
    out->n_looked_up = c->n_looked_up;
    out->n_hit = c->n_hit;
    out->n_migrated = c->n_moved / PAGES;
    out->n_copied = c->n_copied;
    pthread_mutex_unlock(&c->lock);
}

rv_budget *rv_kv_cache_budget(rv_kv_cache *c) {
    return c->budget;
}

const rv_kv_format *rv_kv_cache_format(const rv_kv_cache *c) {
    return &c->f;
}

size_t rv_kv_cache_page_bytes(const rv_kv_cache *c, int keep) {
    return c->page_bytes[keep];
}

size_t rv_kv_run_bytes(const rv_kv_cache *c, bool old) {
    return c->run_bytes[old];
}

size_t rv_kv_page_offset(const rv_kv_cache *c, bool old, size_t i_layer, size_t i_head) {
    return (c->first[i_layer] + i_head) * c->run_bytes[old];
}

size_t rv_kv_bytes_per_token(const rv_kv_cache *c, bool old) {
    return c->page_bytes[old] / RV_PAGE_TOKENS;
}
