/* The world of sim.h: requests and their checks, the random driver. */
#include "sim.h"

uint64_t sim_below(sim *s, uint64_t n) {
    return rv_test_rand(&s->rand) % n;
}

bool sim_chance(sim *s, int of_1000) {
    return !s->calm && sim_below(s, 1000) < (uint64_t)of_1000;
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
    sim r = {.rand = sim_mix(seed + 1)};
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
    o.raw = o.store == RV_KV_AUTO && sim_below(&r, 8) > 0;
    o.budget = sim_below(&r, 3) ? 0 : 10;
    o.guest = sim_below(&r, 3) ? 0 : 200;
    return o;
}

/* Most tokens of a request with that tail. */
static size_t limit_of(const sim *s, size_t tail) {
    return RV_MIN(s->o.sched.n_ctx, rv_kv_cache_capacity(s->cache, tail));
}

static size_t *least_of(sim *s, size_t tail) {
    return &s->least_limit[tail / RV_KV_BLOCK];
}

static void note_limits(sim *s) {
    for (size_t tail = 0; tail <= SIM_MAX_TAIL; tail += RV_KV_BLOCK)
        *least_of(s, tail) = RV_MIN(*least_of(s, tail), limit_of(s, tail));
}

void sim_open(sim *s, const sim_opts *o, uint64_t seed) {
    *s = (sim){.o = *o, .seed = seed, .rand = sim_mix(seed ^ 0xa4093822299f31d0u)};
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
    const rv_sched_backend b = sim_backend(s);
    rv_err err = {0};
    rv_status st = rv_kv_cache_new(&s->cache, &f, &c, &err);
    if (st == RV_OK) st = rv_sched_new(&s->sched, s->cache, &b, &o->sched, &err);
    if (st != RV_OK) fprintf(stderr, "%s\n", err.msg);
    SIM_CHECK(s, st == RV_OK);
    s->budget = c.budget;
    memset(s->least_limit, 0xff, sizeof s->least_limit);
    note_limits(s);
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
    size_t i = (size_t)sim_mix(hash) & (s->cap_seen - 1);
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
    if (q->n == 0) q->hash[0] = sim_start(&q->scope);
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
    SIM_CHECK(s, q->n >= limit_of(s, q->scope.tail) || t.n_waiting >= s->o.sched.max_queue ||
                     strstr(err->msg, "tokens wait"));
}

static sim_req *say(const int32_t *tok, size_t n, const rv_sched_request *how) {
    sim_req *q = calloc(1, sizeof *q);
    CHECK(q);
    q->scope = (rv_kv_scope){q->identity, how->scope.n, how->scope.tail};
    if (q->scope.n) memcpy(q->identity, how->scope.identity, q->scope.n);
    for (size_t i = 0; i < n; i++) sim_append(q, tok[i]);
    return q;
}

sim_req *sim_submit(sim *s, const int32_t *tok, size_t n, size_t max_tokens,
                    const rv_sched_request *how, rv_status *st) {
    rv_sched_request r = how ? *how : (rv_sched_request){.priority = RV_PRIORITY_NORMAL};
    sim_req *q = say(tok, n, &r);
    q->n_prompt = n;
    q->max_tokens = max_tokens;
    q->deadline_ms = r.deadline_ms;
    q->submitted = s->i_step;
    r.tok = tok;
    r.n = n;
    r.max_tokens = max_tokens;
    r.user = q;
    rv_err err = {0};
    if (sim_chance(s, s->o.fail_alloc)) rv_test_fail_alloc_at((long)sim_below(s, 4));
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
    const bool ended = q->n > q->n_prompt && sim_is_end(q->tok[q->n - 1]);
    SIM_CHECK(s, (e->finish == RV_FINISH_ERROR) == (e->status != RV_OK));
    switch (e->finish) {
    case RV_FINISH_STOP: SIM_CHECK(s, ended || q->asked == RV_FINISH_STOP); break;
    case RV_FINISH_LENGTH:
        SIM_CHECK(s, q->n == q->n_prompt + q->max_tokens || q->n == limit_of(s, q->scope.tail) ||
                         (s->o.budget && q->n >= *least_of(s, q->scope.tail)));
        break;
    case RV_FINISH_CANCELLED: SIM_CHECK(s, q->asked == RV_FINISH_CANCELLED); break;
    case RV_FINISH_DEADLINE: SIM_CHECK(s, q->deadline_ms && q->deadline_ms <= s->clock_ms); break;
    default:
        SIM_CHECK(s,
                  (q->failed && e->status == RV_EINTERNAL) ||
                      (s->o.budget && q->n > *least_of(s, q->scope.tail) && e->status == RV_EFULL));
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
    /* Pages of one kind only are never short of what was promised, if nobody else takes them. */
    const bool over = e->n_preempted > (uint32_t)s->o.sched.max_preempt;
    s->n_over_preempted += over;
    SIM_CHECK(s, !over || s->o.store != RV_KV_AUTO || s->o.state || s->o.budget || s->o.guest);
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
    if (sim_chance(s, s->o.fail_alloc)) rv_test_fail_alloc_at((long)sim_below(s, 20));
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
    uint64_t r = sim_mix(number);
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
        how->scope = p->scope;
    } else {
        if (kind < 3) n = system_prompt(s, tok);
        if (document) n = text(document, 200, tok);
        static const char *const identities[] = {"", "a", "ab"};
        how->scope.identity = identities[sim_below(s, 20) ? 0 : sim_below(s, 3)];
        how->scope.n = strlen(how->scope.identity);
        if (s->o.store != RV_KV_AUTO && sim_below(s, 4) == 0)
            how->scope.tail = (1 + sim_below(s, SIM_MAX_TAIL / RV_KV_BLOCK)) * RV_KV_BLOCK;
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
        .deadline_ms = sim_chance(s, s->o.late) ? s->clock_ms + 1 + sim_below(s, 300) : 0,
    };
    const size_t n = draw_prompt(s, tok, &how, document);
    rv_status st;
    if (s->o.swap && sim_chance(s, 300)) how.n_saved = sim_below(s, 2 * n);
    sim_submit(s, tok, n, 1 + sim_below(s, s->o.max_tokens), &how, &st);
}

static void cancel_one(sim *s) {
    sim_req *q = s->live[sim_below(s, s->n_live)];
    const rv_finish why = sim_below(s, 2) ? RV_FINISH_STOP : RV_FINISH_CANCELLED;
    if (rv_sched_cancel(s->sched, q->id, why, NULL) == RV_OK && q->asked == RV_FINISH_NONE)
        q->asked = why;
}

/* ---- what happens beside the scheduler ---- */

static void other_budget(sim *s) {
    const uint64_t half = s->budget / 2;
    rv_budget_resize(rv_kv_cache_budget(s->cache),
                     sim_below(s, 4) ? half + sim_below(s, half) : s->budget);
    note_limits(s);
    s->n_budgets++;
}

static void guest_leaves(sim *s) {
    if (!s->guest) return;
    sim_check_kv(s, s->guest_text, s->guest);
    rv_kv_free(&s->guest);
    free_req(s->guest_text);
    s->guest_text = NULL;
}

static void guest_comes(sim *s) {
    int32_t tok[MAX_TRACE];
    rv_sched_request how = {0};
    const size_t n = draw_prompt(s, tok, &how, 0);
    const rv_status st = rv_kv_new(&s->guest, s->cache, &how.scope, NULL);
    SIM_CHECK(s, st == RV_OK || (st == RV_ENOMEM && s->o.fail_alloc));
    if (st != RV_OK) return;
    s->guest_text = say(tok, n, &how);
    rv_kv_match(s->guest, tok, n);
    sim_check_kv(s, s->guest_text, s->guest);
    s->n_guests++;
}

static void guest_grows(sim *s) {
    const sim_req *q = s->guest_text;
    const size_t len = rv_kv_len(s->guest);
    const size_t most = 1 + sim_below(s, RV_KV_BLOCK), n = RV_MIN(q->n - len, most);
    const rv_status st = rv_kv_reserve(s->guest, n, NULL, NULL);
    SIM_CHECK(s, st == RV_OK || st == RV_EFULL || (st == RV_ENOMEM && s->o.fail_alloc));
    if (st != RV_OK) return;
    sim_write_kv(s, q, s->guest, n);
    rv_kv_commit(s->guest, q->tok + len, n);
}

/* As sessions do: it comes, goes on, goes back, is forked, leaves. */
static void guest_acts(sim *s) {
    const uint64_t what = sim_below(s, 10);
    rv_kv *other;
    if (sim_chance(s, s->o.fail_alloc)) rv_test_fail_alloc_at((long)sim_below(s, 6));
    if (!s->guest) {
        guest_comes(s);
    } else if (what == 0 || rv_kv_len(s->guest) == s->guest_text->n) {
        guest_leaves(s);
    } else if (what == 1) {
        rv_kv_truncate(s->guest, sim_below(s, rv_kv_len(s->guest) + 1), NULL);
        sim_check_kv(s, s->guest_text, s->guest);
    } else if (what == 2 && rv_kv_fork(&other, s->guest, NULL) == RV_OK) {
        rv_kv_free(&s->guest);
        s->guest = other;
        sim_check_kv(s, s->guest_text, s->guest);
    } else {
        guest_grows(s);
    }
    rv_test_fail_alloc_at(-1);
}

/* No failures, nobody else, all memory: then everything ends. */
static void calm_down(sim *s) {
    s->calm = true;
    guest_leaves(s);
    rv_budget_resize(rv_kv_cache_budget(s->cache), s->budget);
    sim_drain(s);
}

void sim_run(sim *s, uint64_t n_steps) {
    const uint64_t last = s->i_step + n_steps;
    while (s->i_step < last) {
        if (s->n_past && sim_below(s, 500) == 0) {
            calm_down(s);
            s->calm = false;
        }
        if (sim_chance(s, s->o.arrive)) {
            const uint64_t document = sim_chance(s, s->o.fresh) ? rv_test_rand(&s->rand) : 0;
            for (uint64_t i = 1 + sim_below(s, s->o.max_burst); i > 0; i--) arrive(s, document);
        }
        if (s->n_live && sim_chance(s, s->o.cancel)) cancel_one(s);
        if (s->o.budget && sim_chance(s, s->o.budget)) other_budget(s);
        if (s->o.guest && sim_chance(s, s->o.guest)) guest_acts(s);
        const rv_status st = sim_step(s, sim_below(s, 4) ? 128 : 1 + sim_below(s, 8), NULL);
        SIM_CHECK(s, st == RV_OK || (st == RV_EIO && s->o.fail_step) ||
                         (st == RV_ENOMEM && s->o.fail_alloc) || (st == RV_EFULL && s->guest));
    }
    calm_down(s);
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
