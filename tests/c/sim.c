/* The world of sim.h: model and backend, requests and their checks, the random driver. */
#include "sim.h"

#include "rvk.h"

/* ---- the model ---- */

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t sim_start(const void *identity, size_t n) {
    uint64_t h = 0x243f6a8885a308d3u + n;
    for (size_t i = 0; i < n; i++) h = mix(h ^ ((const uint8_t *)identity)[i]);
    return h;
}

uint64_t sim_more(uint64_t hash, int32_t tok) {
    return mix(hash + 0x9e3779b97f4a7c15u * (uint64_t)(tok + 1));
}

int32_t sim_token(uint64_t hash) {
    return (int32_t)(mix(hash ^ 0x13198a2e03707344u) % SIM_VOCAB);
}

bool sim_is_end(int32_t tok) {
    return tok < 4;
}

/* ---- what is stored of a position: head 0 the hash, head 1 token and number ---- */

typedef struct cell {
    uint32_t word[4];
} cell;

static cell cell_of(int32_t tok, size_t pos, uint64_t hash) {
    return (cell){{(uint32_t)hash, (uint32_t)(hash >> 32), (uint32_t)tok, (uint32_t)pos}};
}

static void write_cell(rv_kv *kv, size_t pos, cell c) {
    float x[4][SIM_DIM];
    for (int w = 0; w < 4; w++)
        for (int i = 0; i < SIM_DIM; i++) x[w][i] = c.word[w] >> i & 1 ? 1.0f : -1.0f;
    rv_kv_write(kv, 0, 0, pos, 1, x[0], x[1], SIM_DIM);
    rv_kv_write(kv, 0, 1, pos, 1, x[2], x[3], SIM_DIM);
}

static uint32_t word_of(const float *x) {
    uint32_t w = 0;
    for (int i = 0; i < SIM_DIM; i++) w |= (uint32_t)(x[i] > 0) << i;
    return w;
}

/* As a query at position at sees it. */
static cell read_cell(const rv_kv *kv, size_t pos, size_t at) {
    const bool old = pos < rv_kv_boundary(kv, at + 1);
    cell c;
    for (size_t head = 0; head < 2; head++) {
        const void *runs[RV_KV_BLOCK / RV_PAGE_TOKENS];
        float k[SIM_DIM], v[SIM_DIM];
        rv_kv_runs(kv, old, 0, head, pos / RV_KV_BLOCK, runs);
        rvk_attn_get(rv_kv_type_of(kv, old), runs[pos % RV_KV_BLOCK / RV_PAGE_TOKENS],
                     pos % RV_PAGE_TOKENS, k, v, SIM_DIM);
        if (old && rv_kv_rotated(kv)) rvk_hadamard(k, 1, SIM_DIM, SIM_DIM);
        c.word[2 * head] = word_of(k);
        c.word[2 * head + 1] = word_of(v);
    }
    return c;
}

static void check_cell(sim *s, const sim_req *q, const rv_kv *kv, size_t pos, size_t at) {
    const cell want = cell_of(q->tok[pos], pos, q->hash[pos + 1]), got = read_cell(kv, pos, at);
    SIM_CHECK(s, memcmp(&want, &got, sizeof want) == 0);
}

/* ---- the backend ---- */

uint64_t sim_below(sim *s, uint64_t n) {
    return rv_test_rand(&s->rand) % n;
}

static bool chance(sim *s, int of_1000) {
    return !s->calm && sim_below(s, 1000) < (uint64_t)of_1000;
}

static void check_rows(sim *s, const rv_sched_rows *g) {
    const sim_req *q = g->user;
    const size_t len = rv_kv_len(g->kv);
    SIM_CHECK(s, g->n > 0 && len + g->n <= q->n && g->status == RV_OK);
    SIM_CHECK(s, g->n <= s->o.sched.max_chunk);
    SIM_CHECK(s, memcmp(g->tok, q->tok + len, g->n * sizeof *g->tok) == 0);
    SIM_CHECK(s, g->choose == (len + g->n == q->n) && g->i_token == q->n - q->n_prompt);
    if (len == 0) return;
    /* The last one, from which the model goes on, and a few others. */
    check_cell(s, q, g->kv, len - 1, len);
    for (int i = 0; i < 2; i++) check_cell(s, q, g->kv, sim_below(s, len), len);
}

static void write_rows(const rv_sched_rows *g) {
    const sim_req *q = g->user;
    const size_t len = rv_kv_len(g->kv);
    for (size_t i = len; i < len + g->n; i++)
        write_cell(g->kv, i, cell_of(q->tok[i], i, q->hash[i + 1]));
}

static void advance_state(sim *s, const rv_sched_rows *g) {
    const sim_req *q = g->user;
    const size_t len = rv_kv_len(g->kv);
    float *state = rv_kv_state(g->kv), *to = NULL;
    if (!s->o.state) {
        SIM_CHECK(s, state == NULL);
        return;
    }
    const uint64_t want = len ? q->hash[len] : 0;
    SIM_CHECK(s, memcmp(state, &want, sizeof want) == 0);
    const size_t at = rv_kv_snapshot(g->kv, g->n, &to);
    SIM_CHECK(s, at <= g->n);
    if (at) memcpy(to, &q->hash[len + at], sizeof want);
    memcpy(state, &q->hash[len + g->n], sizeof want);
}

rv_status sim_backend_step(void *ctx, rv_sched_rows *rows, size_t n, rv_err *err) {
    sim *s = ctx;
    size_t n_rows = 0;
    SIM_CHECK(s, n <= s->o.sched.max_running);
    for (size_t i = 0; i < n; i++) {
        n_rows += rows[i].n;
        check_rows(s, &rows[i]);
        write_rows(&rows[i]);
    }
    SIM_CHECK(s, n_rows > 0 && n_rows <= s->o.sched.max_rows);
    if (chance(s, s->o.fail_step)) return rv_fail(err, RV_EIO, "sim: no luck");
    for (size_t i = 0; i < n; i++) {
        sim_req *q = rows[i].user;
        const size_t len = rv_kv_len(rows[i].kv);
        advance_state(s, &rows[i]);
        if (chance(s, s->o.fail_row)) {
            q->failed = true;
            rows[i].status = RV_EINTERNAL;
        }
        /* From what is stored, not from what is known. */
        const cell c = read_cell(rows[i].kv, len + rows[i].n - 1, len + rows[i].n - 1);
        rows[i].token = sim_token(c.word[0] | (uint64_t)c.word[1] << 32);
        rows[i].end = sim_is_end(rows[i].token);
    }
    return RV_OK;
}

static sim_req *find(sim *s, uint64_t id) {
    for (size_t i = 0; i < s->n_live; i++)
        if (s->live[i]->id == id) return s->live[i];
    return NULL;
}

static rv_status swap_out(void *ctx, uint64_t request, rv_kv *kv, const int32_t *tok, rv_err *err) {
    sim *s = ctx;
    sim_req *q = find(s, request);
    const size_t len = rv_kv_len(kv);
    SIM_CHECK(s, q && !q->n_saved && len > 0);
    SIM_CHECK(s, memcmp(tok, q->tok, len * sizeof *tok) == 0);
    if (chance(s, s->o.fail_swap)) return rv_fail(err, RV_EIO, "sim: no room to swap");
    q->n_saved = len;
    return RV_OK;
}

static size_t swap_in(void *ctx, uint64_t request, rv_kv *kv, const int32_t *tok, size_t n) {
    sim *s = ctx;
    sim_req *q = find(s, request);
    SIM_CHECK(s, q && q->n_saved == n && n < q->n && rv_kv_len(kv) == 0);
    if (chance(s, s->o.fail_swap)) return 0;
    const size_t most = s->o.store == RV_KV_AUTO ? n : rv_kv_cache_format(s->cache)->tail;
    for (size_t len = 0, m; len < n; len += m) {
        m = RV_MIN(most, n - len);
        if (rv_kv_reserve(kv, m, NULL, NULL) != RV_OK) return len; /* what came is right */
        rv_sched_rows g = {.kv = kv, .n = m, .user = q};
        write_rows(&g);
        advance_state(s, &g);
        rv_kv_commit(kv, tok + len, m);
    }
    s->n_swapped_in++;
    return n;
}

static void swap_drop(void *ctx, uint64_t request) {
    sim *s = ctx;
    sim_req *q = find(s, request);
    SIM_CHECK(s, q && q->n_saved);
    q->n_saved = 0;
}

/* ---- opening ---- */

sim_opts sim_defaults(void) {
    return (sim_opts){
        .sched = {.max_rows = 64,
                  .max_chunk = 32,
                  .max_running = 8,
                  .max_queue = 100,
                  .max_queue_tokens = 1 << 20,
                  .n_ctx = 512,
                  .age_steps = 50,
                  .max_preempt = 3,
                  .await_prefix = true},
        .type = RV_KV_F32,
        .share = true,
        .n_pages = 512,
        .n_tenants = 1,
        .arrive = 200,
        .max_burst = 4,
        .max_prompt = 120,
        .max_tokens = 40,
    };
}

sim_opts sim_random(uint64_t seed) {
    sim r = {.rand = mix(seed + 1)};
    sim_opts o = sim_defaults();
    static const rv_kv_type types[] = {RV_KV_F32, RV_KV_F16, RV_KV_Q8_0, RV_KV_Q4_0};
    o.type = types[sim_below(&r, 4)];
    if (o.type <= RV_KV_F32 && sim_below(&r, 3) == 0) {
        o.store = sim_below(&r, 2) ? RV_KV_Q8_0 : RV_KV_Q4_0;
        o.rotate = o.store == RV_KV_Q8_0; /* 4 bits of a rotated key do not always keep its signs */
    }
    o.state = sim_below(&r, 4) == 0;
    o.share = sim_below(&r, 5) != 0;
    o.swap = sim_below(&r, 2);
    o.hash_bits = sim_below(&r, 4) == 0 ? 5 : 0;
    o.fit = (rv_fit)sim_below(&r, 3);
    o.n_pages = (o.store == RV_KV_AUTO ? 8 : 48) + sim_below(&r, 60);
    o.n_tenants = 1 + (int)sim_below(&r, 6);
    o.sched.policy = (rv_policy)sim_below(&r, 3);
    o.sched.max_running = 1 + sim_below(&r, 24);
    o.sched.max_rows = o.sched.max_running + sim_below(&r, 100);
    o.sched.max_chunk = 1 + sim_below(&r, 80);
    o.sched.max_queue = 1 + sim_below(&r, 60);
    o.sched.max_queue_tokens = 300 + sim_below(&r, 20000);
    o.sched.n_ctx = 100 + sim_below(&r, 700);
    o.sched.age_steps = sim_below(&r, 4) ? 1 + sim_below(&r, 60) : 0;
    o.sched.max_preempt = (int)sim_below(&r, 7);
    o.sched.await_prefix = sim_below(&r, 2);
    o.fail_step = sim_below(&r, 2) ? 30 : 0;
    o.fail_row = sim_below(&r, 2) ? 2 : 0;
    o.fail_alloc = sim_below(&r, 2) ? 100 : 0;
    o.fail_swap = sim_below(&r, 2) ? 200 : 0;
    o.cancel = sim_below(&r, 2) ? 40 : 0;
    o.late = sim_below(&r, 2) ? 100 : 0;
    o.arrive = 20 + (int)sim_below(&r, 300);
    o.max_burst = 1 + sim_below(&r, 12);
    o.max_prompt = 1 + sim_below(&r, sim_below(&r, 2) ? 300 : 40);
    o.max_tokens = 1 + sim_below(&r, 200);
    o.fresh = (int)sim_below(&r, 300);
    if (sim_below(&r, 3) == 0) { /* many that start small and outgrow the cache together */
        o.plain = true;
        o.sched.max_running = 12 + sim_below(&r, 12);
        o.sched.max_rows = 64;
        o.max_prompt = 1 + sim_below(&r, 20);
        o.max_tokens = 100 + sim_below(&r, 100);
        o.arrive = 300;
    }
    return o;
}

void sim_open(sim *s, const sim_opts *o, uint64_t seed) {
    *s = (sim){.o = *o, .seed = seed, .rand = mix(seed ^ 0xa4093822299f31d0u)};
    static const int32_t heads[] = {2};
    const rv_kv_format f = {
        .n_layers = 1,
        .heads = heads,
        .head_dim = SIM_DIM,
        .type = o->type,
        .store = o->store,
        .rotate = o->rotate,
        .tail = o->store == RV_KV_AUTO ? 0 : RV_KV_BLOCK,
        .batch = o->store == RV_KV_AUTO ? 0 : RV_KV_BLOCK,
        .state_bytes = o->state ? sizeof(uint64_t) : 0,
    };
    const uint64_t page = (uint64_t)2 * RV_PAGE_TOKENS * rv_kv_head_bytes(o->type, SIM_DIM);
    const rv_kv_cache_opts c = {
        .budget = o->n_pages * page, .fit = o->fit, .share = o->share, .hash_bits = o->hash_bits};
    rv_sched_backend b = {.ctx = s, .step = sim_backend_step};
    if (o->swap) {
        b.swap_out = swap_out;
        b.swap_in = swap_in;
        b.swap_drop = swap_drop;
    }
    rv_err err = {0};
    rv_status st = rv_kv_cache_new(&s->cache, &f, &c, &err);
    if (st == RV_OK) st = rv_sched_new(&s->sched, s->cache, &b, &o->sched, &err);
    if (st != RV_OK) fprintf(stderr, "%s\n", err.msg);
    SIM_CHECK(s, st == RV_OK);
}

static void free_req(sim_req *q) {
    if (!q) return;
    free(q->tok);
    free(q->hash);
    free(q);
}

void sim_close(sim *s) {
    rv_sched_free(&s->sched);
    sim_check_quiet(s);
    rv_kv_cache_free(&s->cache);
    for (size_t i = 0; i < s->n_live; i++) free_req(s->live[i]);
    for (size_t i = 0; i < RV_COUNT(s->past); i++) free_req(s->past[i]);
    free(s->live);
    free(s->seen);
}

/* ---- what could have been found ---- */

static bool seen_before(sim *s, uint64_t hash, bool put) {
    if (2 * (s->n_seen + 1) > s->cap_seen) {
        uint64_t *old = s->seen;
        const size_t cap = s->cap_seen;
        s->cap_seen = cap ? 2 * cap : 1024;
        s->seen = calloc(s->cap_seen, sizeof *s->seen);
        CHECK(s->seen);
        s->n_seen = 0;
        for (size_t i = 0; i < cap; i++)
            if (old[i]) seen_before(s, old[i], true);
        free(old);
    }
    size_t i = (size_t)mix(hash) & (s->cap_seen - 1);
    while (s->seen[i] && s->seen[i] != hash) i = (i + 1) & (s->cap_seen - 1);
    const bool found = s->seen[i] != 0;
    if (put && !found) {
        s->seen[i] = hash;
        s->n_seen++;
    }
    return found;
}

static void see(sim *s, const sim_req *q, size_t from) {
    for (size_t i = from; s->o.oracle && i <= q->n; i++) seen_before(s, q->hash[i], true);
}

/* ---- requests ---- */

void sim_append(sim_req *q, int32_t tok) {
    if (q->n + 2 > q->cap) {
        q->cap = 2 * q->cap + 64;
        q->tok = realloc(q->tok, q->cap * sizeof *q->tok);
        q->hash = realloc(q->hash, q->cap * sizeof *q->hash);
        CHECK(q->tok && q->hash);
    }
    if (q->n == 0) q->hash[0] = sim_start(q->identity, q->n_identity);
    q->tok[q->n] = tok;
    q->hash[q->n + 1] = sim_more(q->hash[q->n], tok);
    q->n++;
}

static void count_best(sim *s, const sim_req *q) {
    size_t n = 0;
    while (s->o.oracle && n + 1 < q->n && seen_before(s, q->hash[n + 1], false)) n++;
    s->n_prompt += q->n;
    s->n_best += n;
    see(s, q, 1);
}

static void check_refusal(sim *s, const sim_req *q, rv_status st, const rv_err *err) {
    rv_sched_stats t;
    rv_sched_get_stats(s->sched, &t);
    SIM_CHECK(s, st == err->code && (st == RV_EFULL || st == RV_ENOMEM));
    if (st == RV_ENOMEM) {
        SIM_CHECK(s, s->o.fail_alloc && !s->calm);
        return;
    }
    s->n_refused++;
    const size_t limit = RV_MIN(s->o.sched.n_ctx, rv_kv_cache_capacity(s->cache));
    SIM_CHECK(s, q->n >= limit || t.n_waiting >= s->o.sched.max_queue ||
                     strstr(err->msg, "tokens wait"));
}

sim_req *sim_submit(sim *s, const int32_t *tok, size_t n, size_t max_tokens,
                    const rv_sched_request *how, rv_status *st) {
    sim_req *q = calloc(1, sizeof *q);
    CHECK(q);
    rv_sched_request r = how ? *how : (rv_sched_request){.priority = RV_PRIORITY_NORMAL};
    q->n_identity = r.n_identity;
    if (r.n_identity) memcpy(q->identity, r.identity, r.n_identity);
    for (size_t i = 0; i < n; i++) sim_append(q, tok[i]);
    q->n_prompt = n;
    q->max_tokens = max_tokens;
    q->deadline_ms = r.deadline_ms;
    q->submitted = s->i_step;
    r.tok = tok;
    r.n = n;
    r.max_tokens = max_tokens;
    r.user = q;
    rv_err err = {0};
    if (chance(s, s->o.fail_alloc)) rv_test_fail_alloc_at((long)sim_below(s, 4));
    *st = rv_sched_submit(s->sched, &r, &q->id, &err);
    rv_test_fail_alloc_at(-1);
    if (*st != RV_OK) {
        check_refusal(s, q, *st, &err);
        free_req(q);
        return NULL;
    }
    if (s->n_live == s->cap_live) {
        s->cap_live = 2 * s->cap_live + 16;
        s->live = realloc(s->live, s->cap_live * sizeof(sim_req *));
        CHECK(s->live);
    }
    s->live[s->n_live++] = q;
    q->n_saved = RV_MIN(r.n_saved, n - 1);
    count_best(s, q);
    return q;
}

sim_req *sim_submit_random(sim *s, size_t n, size_t max_tokens, const rv_sched_request *how) {
    int32_t *tok = malloc(n * sizeof *tok);
    rv_status st;
    CHECK(tok);
    for (size_t i = 0; i < n; i++) tok[i] = (int32_t)sim_below(s, SIM_VOCAB);
    sim_req *q = sim_submit(s, tok, n, max_tokens, how, &st);
    free(tok);
    return q;
}

static void check_end(sim *s, const sim_req *q, const rv_sched_event *e) {
    const size_t limit = RV_MIN(s->o.sched.n_ctx, rv_kv_cache_capacity(s->cache));
    const bool ended = q->n > q->n_prompt && sim_is_end(q->tok[q->n - 1]);
    SIM_CHECK(s, (e->finish == RV_FINISH_ERROR) == (e->status != RV_OK));
    switch (e->finish) {
    case RV_FINISH_STOP: SIM_CHECK(s, ended || q->asked == RV_FINISH_STOP); break;
    case RV_FINISH_LENGTH:
        SIM_CHECK(s, q->n == q->n_prompt + q->max_tokens || q->n == limit);
        break;
    case RV_FINISH_CANCELLED: SIM_CHECK(s, q->asked == RV_FINISH_CANCELLED); break;
    case RV_FINISH_DEADLINE: SIM_CHECK(s, q->deadline_ms && q->deadline_ms <= s->clock_ms); break;
    default: SIM_CHECK(s, q->failed && e->status == RV_EINTERNAL); break;
    }
}

static void take_end(sim *s, sim_req *q, const rv_sched_event *e) {
    check_end(s, q, e);
    q->finish = e->finish;
    q->last = *e;
    q->ended = s->i_step;
    s->n_ended++;
    s->n_by_finish[e->finish]++;
    s->max_wait = RV_MAX(s->max_wait, s->i_step - q->submitted);
    /* Pages of one kind only are never short of what was promised. */
    const bool over = e->n_preempted > (uint32_t)s->o.sched.max_preempt;
    s->n_over_preempted += over;
    SIM_CHECK(s, !over || s->o.store != RV_KV_AUTO || s->o.state);
    size_t i = 0;
    while (s->live[i] != q) i++;
    s->live[i] = s->live[--s->n_live];
    see(s, q, q->n_prompt);
    sim_req **at = &s->past[s->n_past++ % RV_COUNT(s->past)];
    free_req(*at);
    *at = q;
}

static void take_event(sim *s, const rv_sched_event *e) {
    sim_req *q = e->user;
    SIM_CHECK(s, q && q->id == e->request && q->finish == RV_FINISH_NONE);
    SIM_CHECK(s, e->n_cached <= q->n_prompt);
    s->n_events++;
    if (e->token >= 0) {
        SIM_CHECK(s, e->token == sim_token(q->hash[q->n]));
        SIM_CHECK(s, q->n == q->n_prompt || !sim_is_end(q->tok[q->n - 1]) || q->asked);
        sim_append(q, e->token);
        SIM_CHECK(s, q->n <= q->n_prompt + q->max_tokens);
    }
    if (e->finish != RV_FINISH_NONE)
        take_end(s, q, e);
    else
        SIM_CHECK(s, e->token >= 0);
}

rv_status sim_step(sim *s, size_t cap, bool *idle) {
    rv_sched_event events[128];
    rv_err err = {0};
    size_t n;
    bool now_idle;
    s->i_step++;
    s->clock_ms++;
    cap = RV_MIN(cap, RV_COUNT(events));
    if (chance(s, s->o.fail_alloc)) rv_test_fail_alloc_at((long)sim_below(s, 20));
    rv_sched_stats before, after;
    rv_sched_get_stats(s->sched, &before);
    const rv_status st = rv_sched_step(s->sched, s->clock_ms, events, cap, &n, &now_idle, &err);
    rv_test_fail_alloc_at(-1);
    rv_sched_get_stats(s->sched, &after);
    SIM_CHECK(s, after.n_preempted == before.n_preempted || after.n_prompt == before.n_prompt);
    SIM_CHECK(s, st == err.code && n <= cap);
    if (st != RV_OK && s->calm) fprintf(stderr, "%s\n", err.msg);
    s->n_step_failed += st != RV_OK;
    for (size_t i = 0; i < n; i++) take_event(s, &events[i]);
    SIM_CHECK(s, now_idle == (s->n_live == 0));
    if (idle) *idle = now_idle;
    return st;
}

void sim_check_quiet(sim *s) {
    rv_kv_cache_stats c;
    uint64_t n_used = 0;
    rv_kv_cache_get_stats(s->cache, &c);
    for (int i = 0; i < RV_PAGE_CLASSES; i++) n_used += c.pages.n_used[i];
    SIM_CHECK(s, c.n_sequences == 0 && n_used == c.prefix.n_evictable);
    SIM_CHECK(s, c.pages.held_bytes <= c.pages.budget_bytes);
    SIM_CHECK(s, c.pages.peak_bytes <= c.pages.budget_bytes);
}

void sim_drain(sim *s) {
    bool idle = s->n_live == 0;
    size_t work = 1000;
    for (size_t i = 0; i < s->n_live; i++)
        work += 4 * (size_t)(s->o.sched.max_preempt + 2) * (s->live[i]->n + s->live[i]->max_tokens);
    for (size_t i = 0; !idle; i++) {
        SIM_CHECK(s, i < work);
        const rv_status st = sim_step(s, 128, &idle);
        SIM_CHECK(s, st == RV_OK || !s->calm);
    }
    rv_sched_stats t;
    rv_sched_get_stats(s->sched, &t);
    SIM_CHECK(s, t.n_running == 0 && t.n_waiting == 0 && t.n_finished == t.n_submitted);
    sim_check_quiet(s);
}

/* ---- the driver ---- */

enum { N_SYSTEM = 6, MAX_SYSTEM = 150, MAX_TRACE = 1200 };

/* 20 .. most - 1 tokens that are always the same. */
static size_t text(uint64_t number, size_t most, int32_t *tok) {
    uint64_t r = mix(number);
    const size_t n = 20 + (size_t)(r % (most - 20));
    for (size_t k = 0; k < n; k++) tok[k] = (int32_t)(rv_test_rand(&r) % SIM_VOCAB);
    return n;
}

/* A few system prompts, the first ones most often (Zipf). */
static size_t system_prompt(sim *s, int32_t *tok) {
    uint64_t x = sim_below(s, 147); /* 60 (1 + 1/2 + .. + 1/6) */
    uint64_t i = 0;
    while (x >= 60 / (i + 1)) x -= 60 / (++i);
    return text(i + 1, MAX_SYSTEM, tok);
}

/* A prompt and its identity: fresh, behind a system prompt or a document that this burst is about,
 * or the next turn of a conversation. */
static size_t draw_prompt(sim *s, int32_t *tok, rv_sched_request *how, uint64_t document) {
    size_t n = 0;
    const uint64_t kind = document || s->o.plain ? 3 : sim_below(s, 4);
    const sim_req *p =
        s->n_past ? s->past[sim_below(s, RV_MIN(s->n_past, RV_COUNT(s->past)))] : NULL;
    if (kind == 0 && p && p->n < MAX_TRACE / 2) {
        n = p->n;
        memcpy(tok, p->tok, n * sizeof *tok);
        how->identity = p->n_identity ? p->identity : NULL;
        how->n_identity = p->n_identity;
    } else {
        if (kind < 3) n = system_prompt(s, tok);
        if (document) n = text(document, 200, tok);
        static const char *const identities[] = {"", "a", "ab"};
        how->identity = identities[sim_below(s, 20) ? 0 : sim_below(s, 3)];
        how->n_identity = strlen(how->identity);
    }
    const size_t more = 1 + sim_below(s, s->o.max_prompt);
    for (size_t i = 0; i < more; i++) tok[n + i] = (int32_t)sim_below(s, SIM_VOCAB);
    return n + more;
}

static void arrive(sim *s, uint64_t document) {
    int32_t tok[MAX_TRACE];
    rv_sched_request how = {
        .priority = (rv_priority)sim_below(s, 4),
        .tenant = sim_below(s, (uint64_t)s->o.n_tenants),
        .deadline_ms = chance(s, s->o.late) ? s->clock_ms + 1 + sim_below(s, 300) : 0,
    };
    const size_t n = draw_prompt(s, tok, &how, document);
    rv_status st;
    if (s->o.swap && chance(s, 300)) how.n_saved = sim_below(s, 2 * n);
    sim_submit(s, tok, n, 1 + sim_below(s, s->o.max_tokens), &how, &st);
}

static void cancel_one(sim *s) {
    sim_req *q = s->live[sim_below(s, s->n_live)];
    const rv_finish why = sim_below(s, 2) ? RV_FINISH_STOP : RV_FINISH_CANCELLED;
    if (rv_sched_cancel(s->sched, q->id, why, NULL) == RV_OK && q->asked == RV_FINISH_NONE)
        q->asked = why;
}

void sim_run(sim *s, uint64_t n_steps) {
    const uint64_t last = s->i_step + n_steps;
    while (s->i_step < last) {
        if (s->n_past && sim_below(s, 500) == 0) {
            s->calm = true;
            sim_drain(s);
            s->calm = false;
        }
        if (chance(s, s->o.arrive)) {
            const uint64_t document = chance(s, s->o.fresh) ? rv_test_rand(&s->rand) : 0;
            for (uint64_t i = 1 + sim_below(s, s->o.max_burst); i > 0; i--) arrive(s, document);
        }
        if (s->n_live && chance(s, s->o.cancel)) cancel_one(s);
        const rv_status st = sim_step(s, sim_below(s, 4) ? 128 : 1 + sim_below(s, 8), NULL);
        SIM_CHECK(s, st == RV_OK || (st == RV_EIO && s->o.fail_step) ||
                         (st == RV_ENOMEM && s->o.fail_alloc));
    }
    s->calm = true;
    sim_drain(s);
}

void sim_hit_rate(uint64_t seed, size_t n_pages, bool await_prefix, uint64_t *n_prompt,
                  uint64_t *n_cached, uint64_t *n_best) {
    sim_opts o = sim_defaults();
    o.n_pages = n_pages;
    o.sched.await_prefix = await_prefix;
    o.oracle = true;
    o.sched.n_ctx = MAX_TRACE;
    o.arrive = 60;
    o.max_burst = 6;
    o.max_prompt = 40;
    o.fresh = 200;
    sim s;
    sim_open(&s, &o, seed);
    sim_run(&s, 20000);
    rv_sched_stats t;
    rv_sched_get_stats(s.sched, &t);
    SIM_CHECK(&s, t.n_prompt == s.n_prompt);
    *n_prompt = t.n_prompt;
    *n_cached = t.n_cached;
    *n_best = s.n_best;
    sim_close(&s);
}
