/* rv_engine: continuous batching.  The scheduler (sched.h) says which rows of which requests go
 * into a step; here they are computed: one forward pass over all rows, one product with the output
 * matrix over the last rows of the sequences that are complete, one draw per such row.
 *
 *   submit ──► live requests ──► rv_sched                        user of the scheduler: the request
 *   step ───► rv_sched_step ───► compute: forward, head, draw
 *                          └───► events, which point into their requests
 *
 * E1  A request is live from its submission until the step that reports its end; it is freed when
 *     the next step begins, because that step's events point into it.
 * E2  A step reports one event per request at most, and there is room for one of every request.
 * E3  lock guards the live requests and their masks.  Order: lock, then the scheduler's own;
 * compute is called without the latter. E4  A pass that failed leaves recurrent states as they were
 * (keys and values are behind the committed length, where nobody reads).
 *
 * What is drawn in parallel is drawn by samplers of their own in work areas of the threads, so the
 * number of threads does not show. */
#include <math.h>
#include <unistd.h>

#include "engine/batch_opts.h"
#include "sample/sampler.h"

/* Rows whose logits are held at once; more of them take several products. */
enum { HEAD_ROWS = 256 };
enum { IDENTITY_SALT = 1 }; /* tag of a part of a cache identity */

typedef struct request {
    uint64_t id;
    struct request *next; /* among those that ended */
    rv_sampler *sampler;
    int32_t *stop_ids;
    size_t n_stop;
    bool ignore_eog;
    uint32_t *mask;   /* of the next choice, or NULL */
    uint32_t *spare;  /* memory for one, or NULL */
    rv_sampled drawn; /* by the last draw; its tops are the sampler's */
    rv_err err;
    rv_kv_scope scope; /* owns its identity */
    char *restore;     /* file with its beginning, until it is admitted */
    size_t n_restored;
    rv_err lost; /* why what was on disk was of no use */
} request;

struct rv_engine {
    rv_model *m;
    rv_sched *sched;
    long pid; /* of the process that made it: a fork has its locks, but not who holds them */
    atomic_bool stepping;
    pthread_mutex_t lock;
    request **live; /* by rising id */
    size_t n_live, cap_live;
    request *ended; /* those the last step's events point into */
    rv_sched_event *reports;
    rv_engine_event *events; /* [cap_events] both */
    size_t cap_events;
    /* of a step */
    rv_span *spans;         /* [max_running] */
    rv_sched_rows **chosen; /* [max_running] */
    uint8_t *saved;         /* [cap_saved] recurrent states */
    size_t cap_saved;
    rv_spill *spill; /* NULL: no folder */
    bool swap;
    float *logits; /* [cap_logits][n_vocab] */
    size_t cap_logits;
    rv_sample_area *areas; /* one per thread of the pool */
};

/* ---- requests ---- */

static size_t mask_bytes(const rv_engine *e) {
    return ((size_t)e->m->info.n_vocab + 31) / 32 * 4;
}

static void free_scope(rv_kv_scope *s) {
    rv_free((void *)(uintptr_t)s->identity);
    *s = (rv_kv_scope){0};
}

static void request_free(request *r) {
    if (!r) return;
    rv_sampler_free(&r->sampler);
    rv_free(r->stop_ids);
    rv_free(r->mask);
    rv_free(r->spare);
    free_scope(&r->scope);
    rv_free(r->restore);
    rv_free(r);
}

/* Have a mask in r, or none. */
static bool set_mask(const rv_engine *e, request *r, const uint32_t *allow) {
    uint32_t *to = r->mask ? r->mask : r->spare;
    if (allow && !to && !(to = rv_malloc(mask_bytes(e)))) return false;
    r->mask = allow ? to : NULL;
    r->spare = allow ? NULL : to;
    if (allow) memcpy(to, allow, mask_bytes(e));
    return true;
}

static rv_status request_new(const rv_engine *e, const rv_engine_request *q, request **out,
                             rv_err *err) {
    rv_sample_params greedy;
    rv_sample_defaults(&greedy);
    request *r = *out = rv_calloc(1, sizeof *r);
    if (!r) return rv_fail(err, RV_ENOMEM, "request: out of memory");
    r->ignore_eog = q->ignore_eog;
    r->n_stop = q->n_stop;
    if (q->n_stop) {
        r->stop_ids = rv_calloc(q->n_stop, sizeof *r->stop_ids);
        if (!r->stop_ids) return rv_fail(err, RV_ENOMEM, "request: out of memory");
        memcpy(r->stop_ids, q->stop_ids, q->n_stop * sizeof *r->stop_ids);
    }
    if (!set_mask(e, r, q->allow)) return rv_fail(err, RV_ENOMEM, "request: out of memory");
    rv_status st =
        rv_sampler_new_bare(&r->sampler, q->params ? q->params : &greedy, e->m->info.n_vocab, err);
    return st == RV_OK ? rv_sampler_accept(r->sampler, q->tok, q->n, err) : st;
}

/* Where a request of this id stands among the live ones, or would. */
static size_t find(const rv_engine *e, uint64_t id) {
    size_t lo = 0, hi = e->n_live;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (e->live[mid]->id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void retire(rv_engine *e, request *r) {
    pthread_mutex_lock(&e->lock);
    const size_t i = find(e, r->id);
    memmove(e->live + i, e->live + i + 1, (e->n_live - i - 1) * sizeof *e->live);
    e->n_live--;
    pthread_mutex_unlock(&e->lock);
    r->next = e->ended;
    e->ended = r;
}

static void free_ended(rv_engine *e) {
    while (e->ended) {
        request *r = e->ended;
        e->ended = r->next;
        request_free(r);
    }
}

/* ---- a step ---- */

static bool ends(const rv_engine *e, const request *r, int32_t id) {
    if (!r->ignore_eog && e->m->tok && rv_tok_is_eog(e->m->tok, id)) return true;
    for (size_t i = 0; i < r->n_stop; i++)
        if (r->stop_ids[i] == id) return true;
    return false;
}

typedef struct draws {
    rv_engine *e;
    rv_sched_rows **rows; /* of e->logits */
} draws;

static void draw(void *arg, size_t i, int i_thread) {
    const draws *d = arg;
    rv_engine *e = d->e;
    rv_sched_rows *row = d->rows[i];
    request *r = row->user;
    pthread_mutex_lock(&e->lock);
    uint32_t *mask = r->mask;
    r->mask = NULL;
    pthread_mutex_unlock(&e->lock);
    row->status = rv_sampler_sample_in(r->sampler, &e->areas[i_thread],
                                       e->logits + i * (size_t)e->m->info.n_vocab, row->i_token,
                                       mask, &r->drawn, &r->err);
    if (row->status == RV_OK) {
        row->token = r->drawn.id;
        row->end = ends(e, r, row->token);
    }
    if (!mask) return;
    pthread_mutex_lock(&e->lock);
    if (!r->spare) {
        r->spare = mask;
        mask = NULL;
    }
    pthread_mutex_unlock(&e->lock);
    rv_free(mask);
}

/* The hidden rows that are asked for move to the front of the work area, then to logits and
 * tokens. */
static void choose(rv_engine *e, rv_run *run, rv_sched_rows *rows, size_t n) {
    const size_t width = (size_t)e->m->info.n_embd;
    size_t row = 0, k = 0;
    for (size_t i = 0; i < n; i++) {
        row += rows[i].n;
        if (!rows[i].choose) continue;
        memmove(run->x + k * width, run->x + (row - 1) * width, width * sizeof *run->x);
        e->chosen[k++] = &rows[i];
    }
    for (size_t i = 0; i < k; i += HEAD_ROWS) {
        const size_t m = RV_MIN(k - i, (size_t)HEAD_ROWS);
        draws d = {e, e->chosen + i};
        rv_net_head(run, run->x + i * width, m, e->logits);
        rv_run_tokens(run, m, draw, &d);
    }
}

/* Memory for the states of n sequences and the logits of n_choose rows. */
static rv_status make_room(rv_engine *e, size_t n, size_t n_choose, rv_err *err) {
    const size_t states = n * rv_kv_cache_format(e->m->kv)->state_bytes;
    const size_t rows = RV_MIN((n_choose + 7) / 8 * 8, (size_t)HEAD_ROWS);
    if (rows > e->cap_logits) {
        rv_free(e->logits);
        e->logits = rv_alloc_aligned(rows * (size_t)e->m->info.n_vocab * sizeof *e->logits);
        e->cap_logits = e->logits ? rows : 0;
        if (!e->logits) return rv_fail(err, RV_ENOMEM, "engine: no memory for %zu rows", rows);
    }
    if (!rv_grow((void **)&e->saved, &e->cap_saved, states, 1))
        return rv_fail(err, RV_ENOMEM, "engine: no memory for the states of %zu sequences", n);
    return RV_OK;
}

/* To and from where states are kept during a pass. */
static void copy_states(rv_engine *e, rv_sched_rows *rows, size_t n, bool back) {
    const size_t bytes = rv_kv_cache_format(e->m->kv)->state_bytes;
    for (size_t i = 0; bytes && i < n; i++) {
        float *state = rv_kv_state(rows[i].kv);
        uint8_t *kept = e->saved + i * bytes;
        memcpy(back ? (void *)state : kept, back ? kept : (void *)state, bytes);
    }
}

static rv_status compute(void *ctx, rv_sched_rows *rows, size_t n, rv_err *err) {
    rv_engine *e = ctx;
    size_t n_rows = 0, n_choose = 0;
    for (size_t i = 0; i < n; i++) {
        e->spans[i] = (rv_span){rows[i].kv, rows[i].tok, rows[i].n};
        n_rows += rows[i].n;
        n_choose += rows[i].choose;
    }
    rv_run *run = NULL;
    rv_status st = make_room(e, n, n_choose, err);
    if (st == RV_OK) st = rv_model_take_run(e->m, n_rows, &run, err);
    if (st != RV_OK) return st;
    copy_states(e, rows, n, false);
    st = rv_decoder_forward(run, e->spans, n, NULL, err);
    if (st == RV_OK)
        choose(e, run, rows, n);
    else
        copy_states(e, rows, n, true);
    rv_model_give_run(e->m, run);
    return st;
}

/* ---- sequences on disk ---- */

static request *live(rv_engine *e, uint64_t id) {
    pthread_mutex_lock(&e->lock);
    request *r = e->live[find(e, id)];
    pthread_mutex_unlock(&e->lock);
    return r;
}

static rv_str identity_in(const request *r) {
    return (rv_str){r->scope.identity, r->scope.n};
}

static rv_status swap_out(void *ctx, uint64_t id, rv_kv *kv, const int32_t *tok, rv_err *err) {
    (void)tok;
    rv_engine *e = ctx;
    if (!e->swap) return rv_fail(err, RV_EUNSUPPORTED, "preempted requests are computed again");
    return rv_spill_out(e->spill, id, kv, identity_in(live(e, id)), err);
}

static size_t swap_in(void *ctx, uint64_t id, rv_kv *kv, const int32_t *tok, size_t n) {
    rv_engine *e = ctx;
    request *r = live(e, id);
    rv_spill_in(e->spill, r->restore, id, identity_in(r), kv, tok, n, &r->lost);
    if (r->restore) r->n_restored = rv_kv_len(kv);
    return rv_kv_len(kv);
}

static void swap_drop(void *ctx, uint64_t id) {
    rv_engine *e = ctx;
    request *r = live(e, id);
    if (!r->restore) {
        rv_spill_drop(e->spill, id);
        return;
    }
    rv_free(r->restore); /* the file is the caller's */
    r->restore = NULL;
}

static void report(rv_engine *e, const rv_sched_event *in, rv_engine_event *out) {
    request *r = in->user;
    *out = (rv_engine_event){.request = in->request,
                             .token = in->token,
                             .logprob = NAN,
                             .finish = in->finish,
                             .n_cached = in->n_cached,
                             .n_restored = r->n_restored,
                             .lost = r->lost.code == RV_OK ? NULL : &r->lost,
                             .n_preempted = in->n_preempted};
    if (in->token >= 0) {
        out->logprob = r->drawn.logprob;
        out->top_ids = r->drawn.top_ids;
        out->top_logprobs = r->drawn.top_logprobs;
        out->n_top = r->drawn.n_top;
    }
    if (in->finish == RV_FINISH_ERROR) {
        if (r->err.code == RV_OK) /* not of the sampler's making */
            rv_fail(&r->err, in->status, "request %llu: does not fit the cache any more",
                    (unsigned long long)in->request);
        out->err = &r->err;
    }
    if (in->finish != RV_FINISH_NONE) retire(e, r);
}

/* ---- the interface ---- */

static bool alloc_areas(rv_engine *e) {
    const size_t n = (size_t)rv_pool_n_threads(e->m->pool);
    bool ok = (e->areas = rv_calloc(n, sizeof *e->areas)) != NULL;
    for (size_t i = 0; ok && i < n; i++)
        ok = rv_sample_area_init(&e->areas[i], (size_t)e->m->info.n_vocab, true);
    return ok;
}

rv_status rv_engine_new(rv_engine **out, rv_model *m, const rv_engine_opts *o, rv_err *err) {
    static const rv_engine_opts defaults = {0};
    rv_sched_opts opts;
    rv_err_clear(err);
    *out = NULL;
    if (!m->info.causal)
        return rv_fail(err, RV_EUNSUPPORTED, "%.*s is an encoder: it embeds, it does not generate",
                       (int)m->info.arch.n, m->info.arch.p);
    rv_status st = rv_engine_read_opts(m, o ? o : &defaults, &opts, err);
    if (st != RV_OK) return st;
    rv_engine *e = rv_calloc(1, sizeof *e);
    if (!e) return rv_fail(err, RV_ENOMEM, "engine: out of memory");
    e->m = rv_model_ref(m);
    e->pid = (long)getpid();
    pthread_mutex_init(&e->lock, NULL);
    e->cap_events = opts.max_running + opts.max_queue;
    e->reports = rv_calloc(e->cap_events, sizeof *e->reports);
    e->events = rv_calloc(e->cap_events, sizeof *e->events);
    e->spans = rv_calloc(opts.max_running, sizeof *e->spans);
    e->chosen = rv_calloc(opts.max_running, sizeof *e->chosen);
    if (!e->reports || !e->events || !e->spans || !e->chosen || !alloc_areas(e))
        st = rv_fail(err, RV_ENOMEM, "engine: out of memory");
    rv_sched_backend backend = {.ctx = e, .step = compute, .pool = m->pool};
    if (st == RV_OK && o && o->spill_dir) {
        st = rv_spill_new(&e->spill, m, o->spill_dir, o->spill_digest, err);
        e->swap = o->swap;
        backend.swap_out = swap_out;
        backend.swap_in = swap_in;
        backend.swap_drop = swap_drop;
    }
    if (st == RV_OK) st = rv_sched_new(&e->sched, m->kv, &backend, &opts, err);
    if (st != RV_OK) {
        rv_engine_free(&e);
        return st;
    }
    *out = e;
    return RV_OK;
}

void rv_engine_free(rv_engine **pe) {
    rv_engine *e = *pe;
    *pe = NULL;
    if (!e || e->pid != (long)getpid()) return; /* in a fork its memory stays */
    rv_sched_free(&e->sched);
    rv_spill_free(&e->spill);
    free_ended(e);
    while (e->n_live) request_free(e->live[--e->n_live]);
    for (int i = 0; e->areas && i < rv_pool_n_threads(e->m->pool); i++)
        rv_sample_area_deinit(&e->areas[i]);
    void *const own[] = {e->live,   e->reports, e->events, e->spans,
                         e->chosen, e->saved,   e->logits, e->areas};
    for (size_t i = 0; i < RV_COUNT(own); i++) rv_free(own[i]);
    pthread_mutex_destroy(&e->lock);
    rv_model_free(&e->m);
    rv_free(e);
}

static rv_status check_process(const rv_engine *e, rv_err *err) {
    if (e->pid == (long)getpid()) return RV_OK;
    return rv_fail(err, RV_ESTATE,
                   "engine: made by process %ld, used in its fork %ld: make another", e->pid,
                   (long)getpid());
}

static rv_status check_request(const rv_engine *e, const rv_engine_request *q, rv_err *err) {
    if (q->n == 0) return rv_fail(err, RV_EARG, "tokens: there are none, want at least 1");
    if (q->max_tokens < 1)
        return rv_fail(err, RV_EARG, "max_tokens: is %d, want at least 1", q->max_tokens);
    if ((int)q->priority < RV_PRIORITY_LOW || (int)q->priority > RV_PRIORITY_CRITICAL)
        return rv_fail(err, RV_EARG,
                       "priority: is %d, want 0 (low), 1 (normal), 2 (high) or 3 (critical)",
                       (int)q->priority);
    for (size_t i = 0; i < q->n_stop; i++)
        if (q->stop_ids[i] < 0 || q->stop_ids[i] >= e->m->info.n_vocab)
            return rv_fail(err, RV_EARG, "stop_ids[%zu]: is %d, want 0 .. %d", i, q->stop_ids[i],
                           e->m->info.n_vocab - 1);
    if (q->restore && !e->spill)
        return rv_fail(err, RV_EUNSUPPORTED, "restore: the engine was made without a spill_dir");
    return rv_model_check_ids(e->m, q->tok, q->n, err);
}

/* The cache's scope.  Its identity is made of parts: tag, length in 8 bytes, content. */
static rv_status scope_of(const rv_engine *e, const rv_scope *s, rv_kv_scope *out, rv_err *err) {
    const rv_kv_format *f = rv_kv_cache_format(e->m->kv);
    const rv_str salt = s->salt;
    *out = (rv_kv_scope){0};
    if (s->kv_tail < 0 || s->kv_tail % RV_KV_BLOCK)
        return rv_fail(err, RV_EARG, "kv_tail: is %d, want a multiple of %d", s->kv_tail,
                       RV_KV_BLOCK);
    if (f->store != RV_KV_AUTO && (size_t)s->kv_tail != f->tail) out->tail = (size_t)s->kv_tail;
    if (salt.n == 0) return RV_OK;
    uint8_t *p = rv_malloc(9 + salt.n);
    if (!p) return rv_fail(err, RV_ENOMEM, "request: out of memory");
    p[0] = IDENTITY_SALT;
    for (int i = 0; i < 8; i++) p[1 + i] = (uint8_t)((uint64_t)salt.n >> (8 * i));
    memcpy(p + 9, salt.p, salt.n);
    out->identity = p;
    out->n = 9 + salt.n;
    return RV_OK;
}

static uint64_t now_ms(void) {
    return rv_now_ns() / 1000000u;
}

/* Under the lock, so that an id is live before anything happens to it. */
static rv_status enqueue(rv_engine *e, const rv_sched_request *s, request *r, rv_err *err) {
    rv_status st = RV_OK;
    pthread_mutex_lock(&e->lock);
    if (!rv_grow((void **)&e->live, &e->cap_live, e->n_live + 1, sizeof(request *)))
        st = rv_fail(err, RV_ENOMEM, "request: out of memory");
    if (st == RV_OK) st = rv_sched_submit(e->sched, s, &r->id, err);
    if (st == RV_OK) e->live[e->n_live++] = r;
    pthread_mutex_unlock(&e->lock);
    return st;
}

rv_status rv_engine_submit(rv_engine *e, const rv_engine_request *q, uint64_t *id, rv_err *err) {
    request *r = NULL;
    rv_err_clear(err);
    rv_sched_request s = {.tok = q->tok,
                          .n = q->n,
                          .max_tokens = (size_t)q->max_tokens,
                          .priority = q->priority,
                          .tenant = q->tenant};
    rv_status st = check_process(e, err);
    if (st == RV_OK) st = check_request(e, q, err);
    if (st == RV_OK) st = request_new(e, q, &r, err);
    if (st == RV_OK) st = scope_of(e, &q->scope, &r->scope, err);
    if (st == RV_OK && q->restore && !(r->restore = rv_strndup(q->restore, strlen(q->restore))))
        st = rv_fail(err, RV_ENOMEM, "request: out of memory");
    if (st == RV_OK) {
        const uint64_t now = now_ms(), most = UINT64_MAX - now;
        s.scope = r->scope;
        s.n_saved = q->restore ? q->n_restore : 0;
        s.user = r;
        if (q->deadline_ms) s.deadline_ms = now + RV_MIN(q->deadline_ms, most);
        st = enqueue(e, &s, r, err);
    }
    if (st != RV_OK) {
        request_free(r);
        return st;
    }
    *id = r->id;
    return RV_OK;
}

rv_status rv_engine_cancel(rv_engine *e, uint64_t id, rv_finish reason, rv_err *err) {
    rv_err_clear(err);
    rv_status st = check_process(e, err);
    if (st != RV_OK) return st;
    if (reason != RV_FINISH_CANCELLED && reason != RV_FINISH_STOP)
        return rv_fail(err, RV_EARG, "reason: is %d, want %d (stop) or %d (cancelled)", (int)reason,
                       RV_FINISH_STOP, RV_FINISH_CANCELLED);
    return rv_sched_cancel(e->sched, id, reason, err);
}

rv_status rv_engine_allow(rv_engine *e, uint64_t id, const uint32_t *allow, rv_err *err) {
    rv_err_clear(err);
    rv_status st = check_process(e, err);
    if (st != RV_OK) return st;
    pthread_mutex_lock(&e->lock);
    const size_t i = find(e, id);
    if (i == e->n_live || e->live[i]->id != id)
        st = rv_fail(err, RV_ENOTFOUND, "request %llu: is unknown or has ended",
                     (unsigned long long)id);
    else if (!set_mask(e, e->live[i], allow))
        st = rv_fail(err, RV_ENOMEM, "request: out of memory");
    pthread_mutex_unlock(&e->lock);
    return st;
}

/* In the thread that steps, for as long as e->stepping. */
static rv_status enter(rv_engine *e, rv_err *err) {
    const rv_status st = check_process(e, err);
    if (st != RV_OK) return st;
    if (atomic_exchange(&e->stepping, true))
        return rv_fail(err, RV_ESTATE, "engine: is stepping in another thread");
    return RV_OK;
}

rv_status rv_engine_step(rv_engine *e, const rv_engine_event **events, size_t *n, bool *idle,
                         rv_err *err) {
    rv_err_clear(err);
    *events = e->events;
    *n = 0;
    *idle = false;
    rv_status st = enter(e, err);
    if (st != RV_OK) return st;
    free_ended(e);
    size_t m = 0;
    st = rv_sched_step(e->sched, now_ms(), e->reports, e->cap_events, &m, idle, err);
    for (size_t i = 0; i < m; i++) report(e, &e->reports[i], &e->events[i]);
    *n = m;
    atomic_store(&e->stepping, false);
    return st;
}

void rv_engine_get_stats(rv_engine *e, rv_engine_stats *out) {
    rv_sched_stats s;
    rv_sched_get_stats(e->sched, &s);
    *out = (rv_engine_stats){
        .n_waiting = s.n_waiting,
        .n_running = s.n_running,
        .n_steps = s.n_steps,
        .n_rows = s.n_rows,
        .n_tokens = s.n_tokens,
        .n_submitted = s.n_submitted,
        .n_refused = s.n_refused,
        .n_finished = s.n_finished,
        .n_cancelled = s.n_cancelled,
        .n_preempted = s.n_preempted,
        .n_prompt = s.n_prompt,
        .n_cached = s.n_cached,
        .step_ms = s.step_ms,
        .rows_per_step = s.rows_per_step,
    };
}

/* ---- conversations between their requests ---- */

rv_status rv_engine_park(rv_engine *e, const char *path, const rv_scope *scope, const int32_t *tok,
                         size_t n, size_t *n_kept, uint64_t *n_bytes, rv_err *err) {
    rv_err_clear(err);
    *n_kept = 0;
    *n_bytes = 0;
    rv_kv_scope kv = {0};
    if (!e->spill)
        return rv_fail(err, RV_EUNSUPPORTED, "park: the engine was made without a spill_dir");
    rv_status st = enter(e, err);
    if (st != RV_OK) return st;
    st = scope_of(e, scope, &kv, err);
    if (st == RV_OK) st = rv_spill_park(e->spill, path, &kv, tok, n, n_kept, n_bytes, err);
    atomic_store(&e->stepping, false);
    free_scope(&kv);
    return st;
}

rv_status rv_engine_park_more(rv_engine *e, uint64_t n_bytes, bool *done, rv_err *err) {
    rv_err_clear(err);
    *done = true;
    if (!e->spill) return RV_OK;
    rv_status st = enter(e, err);
    if (st != RV_OK) return st;
    st = rv_spill_park_more(e->spill, n_bytes, done, err);
    atomic_store(&e->stepping, false);
    return st;
}

rv_status rv_engine_peek(rv_engine *e, const rv_scope *scope, const int32_t *tok, size_t n,
                         size_t *out, rv_err *err) {
    rv_err_clear(err);
    *out = 0;
    rv_kv_scope kv = {0};
    rv_status st = check_process(e, err);
    if (st == RV_OK) st = scope_of(e, scope, &kv, err);
    if (st == RV_OK) *out = rv_kv_peek(e->m->kv, &kv, tok, n);
    free_scope(&kv);
    return st;
}

rv_status rv_engine_forget(rv_engine *e, const rv_scope *scope, const int32_t *tok, size_t n,
                           rv_err *err) {
    rv_err_clear(err);
    rv_kv_scope kv = {0};
    rv_status st = check_process(e, err);
    if (st == RV_OK) st = scope_of(e, scope, &kv, err);
    if (st == RV_OK) rv_kv_forget(e->m->kv, &kv, tok, n);
    free_scope(&kv);
    return st;
}
