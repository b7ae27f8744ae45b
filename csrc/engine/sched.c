/* The scheduler's calls: making it, submitting, cancelling, stepping, counting. */
#include "engine/sched_impl.h"

enum { AVERAGE_STEPS = 100 };

/* ---- making and freeing ---- */

static rv_status check(const rv_sched_backend *b, const rv_sched_opts *o, rv_err *err) {
    const bool all = b->swap_out && b->swap_in && b->swap_drop;
    if (!b->step) return rv_fail(err, RV_EARG, "scheduler: the backend has no step");
    if (!all && (b->swap_out || b->swap_in || b->swap_drop))
        return rv_fail(err, RV_EARG,
                       "scheduler: the backend swaps by three functions or not at all");
    if ((unsigned)o->policy > RV_POLICY_FAIR)
        return rv_fail(err, RV_EARG, "scheduler: policy %d, want 0 .. 2", (int)o->policy);
    if (o->max_running < 1) return rv_fail(err, RV_EARG, "scheduler: max_running is 0");
    if (o->max_rows < o->max_running)
        return rv_fail(err, RV_EARG, "scheduler: max_rows %zu, want at least max_running, %zu",
                       o->max_rows, o->max_running);
    if (o->max_chunk < 1) return rv_fail(err, RV_EARG, "scheduler: max_chunk is 0");
    if (o->max_queue < 1) return rv_fail(err, RV_EARG, "scheduler: max_queue is 0");
    if (o->max_queue_tokens < 1) return rv_fail(err, RV_EARG, "scheduler: max_queue_tokens is 0");
    if (o->n_ctx < 2) return rv_fail(err, RV_EARG, "scheduler: n_ctx %zu, want 2", o->n_ctx);
    if (o->max_preempt < 0)
        return rv_fail(err, RV_EARG, "scheduler: max_preempt %d, want 0 or more", o->max_preempt);
    return RV_OK;
}

rv_status rv_sched_new(rv_sched **out, rv_kv_cache *cache, const rv_sched_backend *b,
                       const rv_sched_opts *o, rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    const rv_status st = check(b, o, err);
    if (st != RV_OK) return st;
    rv_sched *s = rv_calloc(1, sizeof *s);
    if (!s) return rv_fail(err, RV_ENOMEM, "scheduler: out of memory");
    pthread_mutex_init(&s->lock, NULL);
    s->cache = cache;
    s->b = *b;
    s->o = *o;
    s->run = rv_calloc(o->max_running, sizeof(rv_req *));
    s->tmp = rv_calloc(o->max_running, sizeof(rv_req *));
    s->rows = rv_calloc(o->max_running, sizeof *s->rows);
    s->row_of = rv_calloc(o->max_running, sizeof(rv_req *));
    const bool tables = rv_table_init(&s->requests) && rv_table_init(&s->tenants);
    if (!s->run || !s->tmp || !s->rows || !s->row_of || !tables) {
        rv_sched_free(&s);
        return rv_fail(err, RV_ENOMEM, "scheduler: out of memory");
    }
    *out = s;
    return RV_OK;
}

void rv_sched_free(rv_sched **ps) {
    rv_sched *s = *ps;
    *ps = NULL;
    if (!s) return;
    for (rv_req *r = s->first_event, *next; r; r = next) {
        next = r->next_event;
        if (r->state == RV_REQ_ENDED) rv_req_free(r); /* the others are in the table */
    }
    for (size_t i = 0; s->requests.slot && i <= s->requests.mask; i++) {
        for (rv_entry *e = s->requests.slot[i], *next; e; e = next) {
            next = e->next;
            rv_req *r = RV_OUTER(e, rv_req, entry);
            if (r->n_saved) s->b.swap_drop(s->b.ctx, e->key);
            r->tenant->n_live = 0;
            rv_req_free(r);
        }
    }
    rv_sched_drop_tenants(s);
    rv_free(s->requests.slot);
    rv_free(s->tenants.slot);
    rv_free(s->run);
    rv_free(s->tmp);
    rv_free(s->rows);
    rv_free(s->row_of);
    pthread_mutex_destroy(&s->lock);
    rv_free(s);
}

/* ---- submitting ---- */

static rv_status check_request(const rv_sched *s, const rv_sched_request *r, rv_err *err) {
    if (!r->tok || r->n < 1) return rv_fail(err, RV_EARG, "request: no tokens");
    if (r->max_tokens < 1) return rv_fail(err, RV_EARG, "request: max_tokens is 0");
    if ((unsigned)r->priority > RV_PRIORITY_CRITICAL)
        return rv_fail(err, RV_EARG, "request: priority %d, want 0 .. 3", (int)r->priority);
    if (!r->scope.identity && r->scope.n)
        return rv_fail(err, RV_EARG, "request: an identity of %zu bytes is NULL", r->scope.n);
    if (r->scope.tail % RV_KV_BLOCK)
        return rv_fail(err, RV_EARG, "request: a tail of %zu, want a multiple of %d", r->scope.tail,
                       RV_KV_BLOCK);
    if (r->n >= s->o.n_ctx)
        return rv_fail(err, RV_EFULL, "request: %zu tokens and one to come, the context has %zu",
                       r->n, s->o.n_ctx);
    if (r->n_saved && !s->b.swap_in)
        return rv_fail(err, RV_EARG, "request: %zu saved tokens, the backend brings none back",
                       r->n_saved);
    const size_t limit = rv_sched_limit(s, r->scope.tail);
    if (r->n >= limit)
        return rv_fail(err, RV_EFULL, "request: %zu tokens and one to come, the cache holds %zu",
                       r->n, limit);
    return RV_OK;
}

static rv_req *copy_request(const rv_sched *s, const rv_sched_request *from) {
    rv_req *r = rv_calloc(1, sizeof *r);
    if (!r) return NULL;
    void *tok = NULL;
    const bool ok = rv_grow(&tok, &r->cap_tok, from->n + 1, sizeof *r->tok);
    r->tok = tok;
    r->scope.tail = from->scope.tail;
    if (from->scope.n) r->scope.identity = rv_strndup(from->scope.identity, from->scope.n);
    if (!ok || (from->scope.n && !r->scope.identity)) {
        rv_req_free(r);
        return NULL;
    }
    memcpy(r->tok, from->tok, from->n * sizeof *r->tok);
    r->n_tok = r->n_prompt = from->n;
    r->max_tokens = RV_MIN(from->max_tokens, s->o.n_ctx - from->n);
    r->scope.n = from->scope.n;
    r->n_saved = RV_MIN(from->n_saved, from->n - 1);
    r->priority = from->priority;
    r->deadline_ms = from->deadline_ms;
    r->user = from->user;
    r->event.user = from->user;
    r->event.token = -1;
    return r;
}

/* Under the lock. */
static rv_status enter(rv_sched *s, rv_req *r, uint64_t tenant, rv_err *err) {
    if (s->n_waiting >= s->o.max_queue)
        return rv_fail(err, RV_EFULL, "queue: %zu requests wait, at most %zu may", s->n_waiting,
                       s->o.max_queue);
    if (r->n_prompt > s->o.max_queue_tokens || s->n_queued > s->o.max_queue_tokens - r->n_prompt)
        return rv_fail(err, RV_EFULL,
                       "queue: %llu tokens wait and %zu would come, at most %llu may",
                       (unsigned long long)s->n_queued, r->n_prompt,
                       (unsigned long long)s->o.max_queue_tokens);
    r->tenant = rv_sched_tenant(s, tenant);
    if (!r->tenant) return rv_fail(err, RV_ENOMEM, "request: out of memory for a tenant");
    r->entry.key = r->event.request = ++s->next_id;
    rv_table_put(&s->requests, &r->entry);
    rv_sched_join(s, r);
    rv_sched_watch_deadline(s, r);
    rv_sched_enqueue(s, r);
    return RV_OK;
}

rv_status rv_sched_submit(rv_sched *s, const rv_sched_request *request, uint64_t *id, rv_err *err) {
    rv_err_clear(err);
    rv_status st = check_request(s, request, err);
    rv_req *r = st == RV_OK ? copy_request(s, request) : NULL;
    if (st == RV_OK && !r)
        st = rv_fail(err, RV_ENOMEM, "request: no memory for %zu tokens", request->n);
    pthread_mutex_lock(&s->lock);
    if (st == RV_OK) st = enter(s, r, request->tenant, err);
    if (st == RV_OK) *id = r->entry.key;
    s->stats.n_submitted += st == RV_OK;
    s->stats.n_refused += st == RV_EFULL;
    pthread_mutex_unlock(&s->lock);
    if (st != RV_OK && r) rv_req_free(r);
    return st;
}

rv_status rv_sched_cancel(rv_sched *s, uint64_t id, rv_finish finish, rv_err *err) {
    rv_err_clear(err);
    if (finish != RV_FINISH_CANCELLED && finish != RV_FINISH_STOP)
        return rv_fail(err, RV_EARG, "cancel: reason %d, want %d or %d", (int)finish,
                       (int)RV_FINISH_CANCELLED, (int)RV_FINISH_STOP);
    pthread_mutex_lock(&s->lock);
    rv_entry *e = rv_table_get(&s->requests, id);
    rv_req *r = e ? RV_OUTER(e, rv_req, entry) : NULL;
    if (r && r->ask == RV_FINISH_NONE) {
        r->ask = finish;
        r->next_asked = s->asked;
        s->asked = r;
    }
    pthread_mutex_unlock(&s->lock);
    if (!r)
        return rv_fail(err, RV_ENOTFOUND, "request %llu: unknown or ended", (unsigned long long)id);
    return RV_OK;
}

/* ---- stepping ---- */

static size_t hand_out(rv_sched *s, rv_sched_event *events, size_t cap) {
    size_t n = 0;
    while (n < cap && s->first_event) {
        rv_req *r = s->first_event;
        s->first_event = r->next_event;
        events[n++] = r->event;
        r->posted = false;
        r->event.token = -1;
        if (r->state == RV_REQ_ENDED) rv_req_free(r);
    }
    return n;
}

static void count_step(rv_sched *s, double ms) {
    rv_sched_stats *t = &s->stats;
    size_t n_rows = 0;
    for (size_t i = 0; i < s->n_groups; i++) n_rows += s->rows[i].n;
    pthread_mutex_lock(&s->lock);
    const uint64_t n = ++t->n_steps;
    const double part = 1.0 / (double)RV_MIN(n, (uint64_t)AVERAGE_STEPS);
    t->step_ms += (ms - t->step_ms) * part;
    t->rows_per_step += ((double)n_rows - t->rows_per_step) * part;
    pthread_mutex_unlock(&s->lock);
}

rv_status rv_sched_step(rv_sched *s, uint64_t now_ms, rv_sched_event *events, size_t cap, size_t *n,
                        bool *idle, rv_err *err) {
    rv_err_clear(err);
    *n = 0;
    *idle = false;
    if (cap < 1) return rv_fail(err, RV_EARG, "step: no room for events");
    const uint64_t from = rv_now_ns();
    uint64_t backend_ns = 0;
    rv_sched_begin(s, now_ms);
    rv_status st = rv_sched_plan(s, err);
    const bool computes = st == RV_OK && s->n_groups > 0;
    if (computes) st = rv_sched_compute(s, &backend_ns, err);
    rv_sched_compact(s);
    *n = hand_out(s, events, cap);
    if (computes && st == RV_OK) count_step(s, (double)(rv_now_ns() - from - backend_ns) / 1e6);
    pthread_mutex_lock(&s->lock);
    *idle = s->n_live == 0 && !s->first_event;
    pthread_mutex_unlock(&s->lock);
    return st;
}

void rv_sched_get_stats(rv_sched *s, rv_sched_stats *out) {
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    out->n_waiting = s->n_waiting;
    pthread_mutex_unlock(&s->lock);
}
