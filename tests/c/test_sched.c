/* sched: random worlds, and one rule at a time: order, fairness, bounds, ends, failures, threads.
 */
#include <pthread.h>

#include "sim.h"

static void random_worlds_keep_every_promise(void) {
    for (uint64_t seed = 1; seed <= 24; seed++) {
        const sim_opts o = sim_random(seed);
        sim s;
        sim_open(&s, &o, seed);
        sim_run(&s, 400);
        sim_close(&s);
    }
}

/* The same seed, the same run: nothing depends on addresses or on the clock. */
static void a_run_can_be_replayed(void) {
    const sim_opts o = sim_random(20);
    rv_sched_stats t[2];
    uint64_t rand[2];
    for (int i = 0; i < 2; i++) {
        void *shift = malloc(1 + 100000 * (size_t)i);
        sim s;
        sim_open(&s, &o, 20);
        sim_run(&s, 500);
        rv_sched_get_stats(s.sched, &t[i]);
        t[i].step_ms = 0;
        rand[i] = s.rand;
        sim_close(&s);
        free(shift);
    }
    CHECK(memcmp(&t[0], &t[1], sizeof t[0]) == 0 && rand[0] == rand[1]);
    CHECK(t[0].n_preempted > 0);
}

/* ---- what is refused ---- */

static void options_are_checked(void) {
    sim s;
    const sim_opts good = sim_defaults();
    sim_open(&s, &good, 1);
    rv_sched_opts bad[9];
    for (size_t i = 0; i < RV_COUNT(bad); i++) bad[i] = good.sched;
    bad[0].policy = (rv_policy)3;
    bad[1].max_running = 0;
    bad[2].max_rows = good.sched.max_running - 1;
    bad[3].max_chunk = 0;
    bad[4].max_queue = 0;
    bad[5].max_queue_tokens = 0;
    bad[6].n_ctx = 1;
    bad[7].max_preempt = -1;
    const rv_sched_backend none = {0};
    rv_sched *made;
    rv_err err = {0};
    for (size_t i = 0; i < RV_COUNT(bad); i++)
        CHECK(rv_sched_new(&made, s.cache, &none, &bad[i], &err) == RV_EARG && !made && err.msg[0]);
    sim_close(&s);
}

static void requests_are_checked(void) {
    sim_opts o = sim_defaults();
    o.sched.max_queue = 2;
    o.sched.max_queue_tokens = 300;
    o.n_pages = 16;
    sim s;
    sim_open(&s, &o, 1);
    const int32_t tok[600] = {1};
    uint64_t id = 0;
    rv_err err = {0};
    const rv_sched_request bad[] = {
        {.tok = NULL, .n = 1, .max_tokens = 1},
        {.tok = tok, .n = 0, .max_tokens = 1},
        {.tok = tok, .n = 1, .max_tokens = 0},
        {.tok = tok, .n = 1, .max_tokens = 1, .priority = (rv_priority)4},
        {.tok = tok, .n = 1, .max_tokens = 1, .scope.n = 2},
        {.tok = tok, .n = 1, .max_tokens = 1, .scope.tail = 65},
    };
    for (size_t i = 0; i < RV_COUNT(bad); i++)
        CHECK(rv_sched_submit(s.sched, &bad[i], &id, &err) == RV_EARG && err.code == RV_EARG);
    rv_sched_request r = {.tok = tok, .n = 512, .max_tokens = 1};
    CHECK(rv_sched_submit(s.sched, &r, &id, &err) == RV_EFULL && strstr(err.msg, "512"));
    r.n = rv_kv_cache_capacity(s.cache, 0);
    CHECK(r.n == 256);
    CHECK(rv_sched_submit(s.sched, &r, &id, &err) == RV_EFULL && strstr(err.msg, "holds 256"));
    CHECK(id == 0);
    CHECK(sim_submit_random(&s, 200, 9, NULL) && !sim_submit_random(&s, 101, 9, NULL));
    CHECK(sim_submit_random(&s, 100, 9, NULL) && !sim_submit_random(&s, 1, 9, NULL));
    CHECK(rv_sched_cancel(s.sched, 77, RV_FINISH_CANCELLED, &err) == RV_ENOTFOUND);
    CHECK(rv_sched_cancel(s.sched, 1, RV_FINISH_LENGTH, &err) == RV_EARG);
    rv_sched_event e;
    size_t n;
    bool idle;
    CHECK(rv_sched_step(s.sched, 0, &e, 0, &n, &idle, &err) == RV_EARG);
    sim_drain(&s);
    rv_sched_stats t;
    rv_sched_get_stats(s.sched, &t);
    CHECK(t.n_refused == 4 && t.n_submitted == 2 && t.n_finished == 2);
    CHECK(sim_submit_random(&s, 200, 9, NULL) && sim_submit_random(&s, 100, 9, NULL));
    sim_close(&s);
}

/* ---- order ---- */

static sim_req *ask(sim *s, size_t n, size_t max_tokens, rv_priority priority, uint64_t tenant) {
    const rv_sched_request how = {.priority = priority, .tenant = tenant};
    sim_req *q = sim_submit_random(s, n, max_tokens, &how);
    CHECK(q);
    return q;
}

static sim_opts one_at_a_time(rv_policy policy) {
    sim_opts o = sim_defaults();
    o.sched.policy = policy;
    o.sched.max_running = 1;
    return o;
}

static void priority_goes_before_policy_before_arrival(void) {
    for (int policy = RV_POLICY_FCFS; policy <= RV_POLICY_FAIR; policy++) {
        const sim_opts o = one_at_a_time((rv_policy)policy);
        sim s;
        sim_open(&s, &o, 1);
        const sim_req *low = ask(&s, 3, 2, RV_PRIORITY_LOW, 0);
        const sim_req *large = ask(&s, 60, 2, RV_PRIORITY_NORMAL, 0);
        const sim_req *small = ask(&s, 30, 2, RV_PRIORITY_NORMAL, 0);
        const sim_req *top = ask(&s, 90, 2, RV_PRIORITY_CRITICAL, 0);
        sim_drain(&s);
        CHECK(top->ended < large->ended && top->ended < small->ended);
        CHECK((small->ended < large->ended) == (policy == RV_POLICY_SJF));
        CHECK(low->ended > large->ended && low->ended > small->ended);
        sim_close(&s);
    }
}

/* Of two tenants with much to do each gets half, whoever came first; a third one that comes later
 * has not saved up. */
static void tenants_share_alike(void) {
    sim_opts o = one_at_a_time(RV_POLICY_FAIR);
    o.sched.age_steps = 0;
    o.share = false;
    sim s;
    sim_open(&s, &o, 3);
    for (int i = 0; i < 20; i++) ask(&s, 40, 20, RV_PRIORITY_NORMAL, 1);
    for (int i = 0; i < 20; i++) ask(&s, 10, 20, RV_PRIORITY_NORMAL, 2);
    uint64_t had[4] = {0};
    for (int i = 0; i < 400; i++) {
        if (i == 200)
            for (int k = 0; k < 20; k++) ask(&s, 20, 20, RV_PRIORITY_NORMAL, 3);
        size_t before[64];
        const size_t n = s.n_live;
        sim_req *live[64];
        CHECK(n <= RV_COUNT(before));
        for (size_t k = 0; k < n; k++) {
            live[k] = s.live[k];
            before[k] = live[k]->n;
        }
        CHECK(sim_step(&s, 128, NULL) == RV_OK);
        for (size_t k = 0; k < n; k++) {
            const size_t grown = live[k]->n - before[k];
            const uint64_t t = live[k]->id <= 20 ? 1 : live[k]->id <= 40 ? 2 : 3;
            const bool first = grown && live[k]->n == live[k]->n_prompt + 1;
            if (i < 200 || t == 3) had[t] += 2 * grown + (first ? live[k]->n_prompt : 0);
        }
    }
    CHECK(had[1] > 0 && had[2] > 0 && had[3] > 0);
    const uint64_t most = 40 + 2 * 20; /* of one request */
    CHECK(had[1] <= had[2] + most && had[2] <= had[1] + most);
    CHECK(had[3] <= (had[1] + had[2]) / 2);
    sim_close(&s);
}

/* Requests of high priority without end: one of low priority comes to its turn by age alone. */
static uint64_t wait_of_low(uint64_t age_steps, rv_policy policy) {
    sim_opts o = one_at_a_time(policy);
    o.sched.age_steps = age_steps;
    sim s;
    sim_open(&s, &o, 5);
    const sim_req *low = ask(&s, 100, 1, RV_PRIORITY_LOW, 0);
    ask(&s, 5, 5, RV_PRIORITY_CRITICAL, 0);
    for (int i = 0; i < 600 && low->finish == RV_FINISH_NONE; i++) {
        while (s.n_live < 4) ask(&s, 5, 5, RV_PRIORITY_CRITICAL, 0);
        CHECK(sim_step(&s, 128, NULL) == RV_OK);
    }
    const uint64_t wait = low->finish == RV_FINISH_NONE ? UINT64_MAX : low->ended;
    sim_drain(&s);
    sim_close(&s);
    return wait;
}

static void nobody_starves(void) {
    for (int policy = RV_POLICY_FCFS; policy <= RV_POLICY_SJF; policy++) {
        CHECK(wait_of_low(0, (rv_policy)policy) == UINT64_MAX);
        const uint64_t wait = wait_of_low(20, (rv_policy)policy);
        CHECK(wait > 20 && wait < 4 * 20 + 60);
    }
}

static void generating_goes_before_prompts(void) {
    sim_opts o = sim_defaults();
    o.sched.max_rows = 8;
    sim s;
    sim_open(&s, &o, 5);
    sim_req *q[4];
    for (int i = 0; i < 4; i++) q[i] = ask(&s, 1, 40, RV_PRIORITY_LOW, 0);
    CHECK(sim_step(&s, 128, NULL) == RV_OK);
    ask(&s, 200, 5, RV_PRIORITY_CRITICAL, 0);
    for (size_t k = 2; k < 12; k++) {
        CHECK(sim_step(&s, 128, NULL) == RV_OK);
        for (int i = 0; i < 4; i++) CHECK(q[i]->finish == RV_FINISH_STOP || q[i]->n == 1 + k);
    }
    sim_close(&s);
}

/* ---- memory ---- */

static void preemption_is_bounded_and_changes_nothing(void) {
    for (int swap = 0; swap < 2; swap++) {
        for (int max = 0; max < 3; max++) {
            sim_opts o = sim_defaults();
            o.n_pages = 20;
            o.swap = swap;
            o.sched.max_preempt = max;
            sim s;
            sim_open(&s, &o, 7);
            s.calm = true;
            for (int i = 0; i < 30; i++) ask(&s, 20 + sim_below(&s, 60), 60, RV_PRIORITY_NORMAL, 0);
            for (int i = 0; swap && i < 1000; i++) CHECK(sim_step(&s, 1 + i / 500, NULL) == RV_OK);
            sim_drain(&s); /* checks tokens and n_preempted */
            rv_sched_stats t;
            rv_sched_get_stats(s.sched, &t);
            CHECK((t.n_preempted > 0) == (max > 0) && s.n_over_preempted == 0);
            CHECK(!swap || max == 0 || s.n_swapped_in > 0);
            sim_close(&s);
        }
    }
}

/* What the backend has of requests that come: one of them is brought back in a step. */
static void what_is_saved_comes_back(void) {
    enum { N = 5 };
    sim_opts o = sim_defaults();
    o.swap = true;
    o.share = false;
    sim s;
    sim_open(&s, &o, 11);
    sim_req *q[N];
    const rv_sched_request how = {.priority = RV_PRIORITY_NORMAL, .n_saved = 100};
    for (int i = 0; i < N; i++) q[i] = sim_submit_random(&s, 120, 300, &how);
    for (uint64_t i = 0; i < N; i++) {
        CHECK(sim_step(&s, 128, NULL) == RV_OK);
        CHECK(s.n_swapped_in == i + 1);
    }
    sim_req *last = sim_submit_random(&s, 50, 5, &how); /* more than it has */
    CHECK(last->n_saved == 49);
    sim_drain(&s);
    for (int i = 0; i < N; i++) CHECK(q[i]->last.n_cached == 100);
    CHECK(last->last.n_cached == 49 && s.n_swapped_in == N + 1);
    sim_close(&s);
    o.swap = false;
    sim_open(&s, &o, 11);
    rv_sched_request r = {.tok = (const int32_t[]){1, 2}, .n = 2, .max_tokens = 1, .n_saved = 1};
    uint64_t id;
    CHECK(rv_sched_submit(s.sched, &r, &id, NULL) == RV_EARG);
    sim_close(&s);
}

/* Ends where an empty cache ends, however full it was. */
static void a_request_may_fill_the_cache(void) {
    sim_opts o = sim_defaults();
    o.n_pages = 8;
    sim s;
    sim_open(&s, &o, 2);
    const size_t cap = rv_kv_cache_capacity(s.cache, 0);
    CHECK(cap == 128);
    for (int i = 0; i < 20; i++) ask(&s, 20, 400, RV_PRIORITY_NORMAL, 0);
    sim_req *full = ask(&s, cap - 1, 400, RV_PRIORITY_NORMAL, 0);
    sim_drain(&s);
    CHECK(full->n == cap);
    CHECK(s.n_by_finish[RV_FINISH_LENGTH] + s.n_by_finish[RV_FINISH_STOP] == 21);
    sim_close(&s);
}

/* What sim_step does with an event, where other ends than it knows are right. */
static void note(const rv_sched_event *e) {
    sim_req *q = e->user;
    if (e->token >= 0) {
        CHECK(e->token == sim_token(q->hash[q->n]));
        sim_append(q, e->token);
    }
    q->finish = e->finish;
    q->last = *e;
}

static void a_smaller_budget_ends_what_cannot_fit(void) {
    sim_opts o = sim_defaults();
    o.n_pages = 64;
    sim s;
    sim_open(&s, &o, 2);
    rv_kv_cache_stats c;
    rv_kv_cache_get_stats(s.cache, &c);
    sim_req *large = ask(&s, 400, 50, RV_PRIORITY_NORMAL, 0);
    sim_req *small = ask(&s, 50, 5, RV_PRIORITY_NORMAL, 0);
    CHECK(sim_step(&s, 128, NULL) == RV_OK);
    rv_budget_resize(rv_kv_cache_budget(s.cache), c.pages.budget_bytes / 4);
    bool idle = false;
    for (int i = 0; !idle && i < 200; i++) {
        rv_sched_event e[8];
        size_t n;
        CHECK(rv_sched_step(s.sched, 1, e, 8, &n, &idle, NULL) == RV_OK);
        for (size_t k = 0; k < n; k++) note(&e[k]);
    }
    CHECK(idle && large->finish == RV_FINISH_ERROR && large->last.status == RV_EFULL);
    CHECK(small->finish == RV_FINISH_LENGTH || small->finish == RV_FINISH_STOP);
    sim_close(&s);
}

/* Sequences that are not the scheduler's: it waits for their memory, and says so. */
static void outsiders_are_waited_for(void) {
    sim_opts o = sim_defaults();
    o.n_pages = 16;
    sim s;
    sim_open(&s, &o, 2);
    const size_t cap = rv_kv_cache_capacity(s.cache, 0);
    rv_kv *other;
    rv_err err = {0};
    CHECK(rv_kv_new(&other, s.cache, NULL, NULL) == RV_OK);
    CHECK(rv_kv_reserve(other, cap - 32, NULL, NULL) == RV_OK);
    sim_req *q = ask(&s, 100, 20, RV_PRIORITY_NORMAL, 0);
    rv_sched_event e[8];
    size_t n;
    bool idle;
    for (int i = 0; i < 5; i++) {
        CHECK(rv_sched_step(s.sched, 1, e, 8, &n, &idle, &err) == RV_EFULL && err.msg[0]);
        CHECK(n == 0 && !idle);
    }
    rv_kv_free(&other);
    sim_drain(&s);
    CHECK(q->finish == RV_FINISH_LENGTH || q->finish == RV_FINISH_STOP);
    sim_close(&s);
}

/* All room that there is, in a sequence that is not the scheduler's. */
static rv_kv *take_all(sim *s) {
    rv_kv *kv;
    CHECK(rv_kv_new(&kv, s->cache, NULL, NULL) == RV_OK);
    for (size_t n = 16; rv_kv_reserve(kv, n, NULL, NULL) == RV_OK;) n += 16;
    return kv;
}

/* While a request runs: it loses its pages to nobody, they are not there any more. */
static void outsiders_may_take_what_was_promised(void) {
    sim_opts o = sim_defaults();
    o.n_pages = 16;
    sim s;
    sim_open(&s, &o, 2);
    ask(&s, 16, 200, RV_PRIORITY_NORMAL, 0);
    ask(&s, 16, 200, RV_PRIORITY_NORMAL, 0);
    CHECK(sim_step(&s, 128, NULL) == RV_OK);
    rv_kv *other = take_all(&s);
    for (int i = 0; i < 100 && s.n_live; i++) {
        const rv_status st = sim_step(&s, 128, NULL);
        CHECK(st == RV_OK || st == RV_EFULL);
    }
    rv_kv_free(&other);
    sim_drain(&s);
    CHECK(s.n_ended == 2);
    sim_close(&s);
}

/* One that is preempted before its token was fetched gets no rows before that either. */
static void a_token_survives_preemption(void) {
    sim_opts o = sim_defaults();
    o.n_pages = 16;
    o.sched.max_rows = 96;
    sim s;
    sim_open(&s, &o, 5);
    sim_req *a[2];
    for (int i = 0; i < 2; i++) a[i] = ask(&s, 32, 50, RV_PRIORITY_CRITICAL, 0);
    const sim_req *low = ask(&s, 32, 50, RV_PRIORITY_LOW, 0);
    CHECK(sim_step(&s, 1, NULL) == RV_OK && s.n_events == 1);
    rv_kv *other = take_all(&s);
    CHECK(sim_step(&s, 1, NULL) == RV_OK);
    rv_sched_stats t;
    rv_sched_get_stats(s.sched, &t);
    CHECK(t.n_preempted == 1 && low->n == 32);
    for (int i = 0; i < 2; i++) {
        CHECK(rv_sched_cancel(s.sched, a[i]->id, RV_FINISH_CANCELLED, NULL) == RV_OK);
        a[i]->asked = RV_FINISH_CANCELLED;
    }
    CHECK(sim_step(&s, 1, NULL) == RV_OK && low->n == 33);
    rv_kv_free(&other);
    sim_drain(&s);
    CHECK(low->last.n_preempted == 1 && low->n > 33);
    sim_close(&s);
}

/* Who has waited long has its rank for good, also against those that come later and run. */
static void age_protects_what_runs(void) {
    sim_opts o = sim_defaults();
    o.n_pages = 8;
    o.sched.age_steps = 2;
    sim s;
    sim_open(&s, &o, 5);
    const sim_req *large = ask(&s, 110, 10, RV_PRIORITY_CRITICAL, 0);
    const sim_req *low = ask(&s, 31, 30, RV_PRIORITY_LOW, 0);
    while (large->finish == RV_FINISH_NONE) CHECK(sim_step(&s, 128, NULL) == RV_OK);
    CHECK(low->n == 31 && s.i_step > 6);
    const sim_req *late = ask(&s, 31, 30, RV_PRIORITY_NORMAL, 0);
    CHECK(sim_step(&s, 128, NULL) == RV_OK && low->n == 32 && late->n == 32);
    rv_kv *other = take_all(&s);
    for (int i = 0; i < 4; i++) CHECK(sim_step(&s, 128, NULL) == RV_OK);
    rv_kv_free(&other);
    sim_drain(&s);
    CHECK(low->last.n_preempted == 0 && late->last.n_preempted > 0);
    sim_close(&s);
}

static void prefixes_are_found(void) {
    uint64_t n, cached, best;
    double part[2]; /* of what could be found */
    for (int await = 0; await < 2; await++) {
        sim_hit_rate(1, 20000, await, &n, &cached, &best);
        CHECK(best > n / 4 && cached <= best);
        part[await] = (double)cached / (double)best;
    }
    CHECK(part[1] > 0.95 && part[1] > part[0]);
}

/* ---- ends ---- */

/* Whenever it comes, a cancel leaves the cache as if the request had never been. */
static void cancel_at_every_step(void) {
    for (uint64_t k = 0;; k++) {
        const sim_opts o = sim_defaults();
        sim s;
        sim_open(&s, &o, 11);
        sim_req *q = ask(&s, 100, 12, RV_PRIORITY_NORMAL, 0);
        ask(&s, 50, 12, RV_PRIORITY_NORMAL, 0);
        for (uint64_t i = 0; i < k && q->finish == RV_FINISH_NONE; i++)
            CHECK(sim_step(&s, 128, NULL) == RV_OK);
        const bool over = q->finish != RV_FINISH_NONE;
        const rv_status st = rv_sched_cancel(s.sched, q->id, RV_FINISH_CANCELLED, NULL);
        CHECK(st == (over ? RV_ENOTFOUND : RV_OK));
        q->asked = RV_FINISH_CANCELLED;
        const size_t had = q->n;
        if (!over) {
            CHECK(rv_sched_cancel(s.sched, q->id, RV_FINISH_STOP, NULL) == RV_OK); /* too late */
            CHECK(sim_step(&s, 128, NULL) == RV_OK);
            CHECK(q->finish == RV_FINISH_CANCELLED && q->n == had);
            CHECK(rv_sched_cancel(s.sched, q->id, RV_FINISH_STOP, NULL) == RV_ENOTFOUND);
        }
        sim_drain(&s);
        rv_kv_cache_stats c;
        rv_kv_cache_get_stats(s.cache, &c);
        CHECK(rv_budget_resize(rv_kv_cache_budget(s.cache), 0) == 0);
        rv_budget_resize(rv_kv_cache_budget(s.cache), c.pages.budget_bytes);
        sim_close(&s);
        if (over) break;
    }
}

static rv_status cancel_then_step(void *ctx, rv_sched_rows *rows, size_t n, rv_err *err) {
    sim *s = ctx;
    for (size_t i = 0; i < n; i++) {
        sim_req *q = rows[i].user;
        if (q->id % 2) continue;
        CHECK(rv_sched_cancel(s->sched, q->id, RV_FINISH_CANCELLED, NULL) == RV_OK);
        q->asked = RV_FINISH_CANCELLED;
    }
    return sim_backend_step(ctx, rows, n, err);
}

/* Who cancels in time gets that end, though the last token has come meanwhile. */
static void cancel_during_a_step(void) {
    const sim_opts o = sim_defaults();
    sim s;
    sim_open(&s, &o, 12);
    const rv_sched_backend b = {.ctx = &s, .step = cancel_then_step};
    rv_sched_free(&s.sched);
    CHECK(rv_sched_new(&s.sched, s.cache, &b, &o.sched, NULL) == RV_OK);
    for (int i = 0; i < 4; i++) ask(&s, 10, 1, RV_PRIORITY_NORMAL, 0);
    CHECK(sim_step(&s, 128, NULL) == RV_OK && s.n_ended == 2);
    CHECK(sim_step(&s, 128, NULL) == RV_OK && s.n_ended == 4);
    CHECK(s.n_by_finish[RV_FINISH_CANCELLED] == 2);
    for (int i = 0; i < 4; i++) CHECK(s.past[i]->n == 11);
    sim_close(&s);
}

static void deadlines_end_what_waits_and_what_runs(void) {
    sim_opts o = one_at_a_time(RV_POLICY_FCFS);
    sim s;
    sim_open(&s, &o, 4);
    const rv_sched_request in_10 = {.deadline_ms = 10}, in_20 = {.deadline_ms = 20},
                           in_500 = {.deadline_ms = 500};
    const sim_req *runs = sim_submit_random(&s, 64, 400, &in_20);
    const sim_req *waits = sim_submit_random(&s, 64, 400, &in_10);
    const sim_req *done = sim_submit_random(&s, 64, 2, &in_500);
    sim_drain(&s);
    CHECK(waits->finish == RV_FINISH_DEADLINE && waits->ended == 10 && waits->n == 64);
    CHECK(runs->finish == RV_FINISH_DEADLINE && runs->ended == 20 && runs->n > 64);
    CHECK(done->finish == RV_FINISH_LENGTH || done->finish == RV_FINISH_STOP);
    sim_close(&s);
}

/* A caller that takes one event at a time gets all of them, and no request runs ahead of it. */
static void events_are_not_lost(void) {
    const sim_opts o = sim_defaults();
    sim s;
    sim_open(&s, &o, 6);
    for (int i = 0; i < 20; i++) ask(&s, 10, 10, RV_PRIORITY_NORMAL, 0);
    size_t n_tokens = 0;
    while (s.n_live) CHECK(sim_step(&s, 1, NULL) == RV_OK);
    sim_drain(&s);
    for (int i = 0; i < 20; i++) n_tokens += s.past[i]->n - s.past[i]->n_prompt;
    CHECK(n_tokens == s.n_events && s.i_step >= n_tokens);
    sim_close(&s);
}

/* ---- failures ---- */

static void failed_steps_are_tried_again(void) {
    sim_opts o = sim_defaults();
    o.fail_step = 500;
    o.fail_row = 5;
    o.state = true;
    sim s;
    sim_open(&s, &o, 8);
    sim_run(&s, 1000);
    CHECK(s.n_step_failed > 100 && s.n_by_finish[RV_FINISH_ERROR] > 0);
    CHECK(s.n_by_finish[RV_FINISH_LENGTH] > 0);
    sim_close(&s);
}

/* The k-th allocation fails while requests come, and end before they run. */
static bool submit_with_failure(long k) {
    sim_opts o = sim_defaults();
    o.n_pages = 24;
    o.sched.policy = RV_POLICY_FAIR;
    o.swap = k % 2;
    sim s;
    sim_open(&s, &o, 9);
    int32_t tok[90];
    for (int i = 0; i < 90; i++) tok[i] = i * 37 % SIM_VOCAB;
    bool failed = false;
    rv_test_fail_alloc_at(k);
    for (size_t i = 0; i < 6; i++) {
        const rv_sched_request r = {.tok = tok + i,
                                    .n = 80 - i,
                                    .max_tokens = 40,
                                    .tenant = i % 3,
                                    .scope = {"x", i % 2, 0}};
        uint64_t id;
        rv_err err = {0};
        const rv_status st = rv_sched_submit(s.sched, &r, &id, &err);
        CHECK(st == RV_OK || (st == RV_ENOMEM && err.code == RV_ENOMEM && !failed));
        if (st == RV_OK) CHECK(rv_sched_cancel(s.sched, id, RV_FINISH_CANCELLED, NULL) == RV_OK);
        failed |= st == RV_ENOMEM;
    }
    rv_sched_event e[32];
    size_t n;
    bool idle = false;
    while (!idle) {
        const rv_status st = rv_sched_step(s.sched, 0, e, 32, &n, &idle, NULL);
        CHECK(st == RV_OK);
    }
    rv_test_fail_alloc_at(-1);
    sim_close(&s);
    return failed;
}

/* It fails while they run: the step after that goes on. */
static bool run_with_failure(long k) {
    sim_opts o = sim_defaults();
    o.n_pages = 24;
    o.swap = k % 2;
    sim s;
    sim_open(&s, &o, 9);
    for (int i = 0; i < 6; i++) ask(&s, 80, 40, RV_PRIORITY_NORMAL, 0);
    bool idle = false, failed = false;
    rv_test_fail_alloc_at(k);
    for (int i = 0; !idle && i < 5000; i++) {
        rv_sched_event e[32];
        rv_err err = {0};
        size_t n;
        const rv_status st = rv_sched_step(s.sched, 0, e, 32, &n, &idle, &err);
        CHECK(st == RV_OK || (st == RV_ENOMEM && err.msg[0] && !failed));
        failed |= st == RV_ENOMEM;
        for (size_t j = 0; j < n; j++) {
            note(&e[j]);
            CHECK(e[j].finish <= RV_FINISH_LENGTH);
        }
    }
    rv_test_fail_alloc_at(-1);
    CHECK(idle);
    for (size_t i = 0; i < s.n_live; i++) CHECK(s.live[i]->finish != RV_FINISH_NONE);
    sim_close(&s);
    return failed;
}

static void failed_allocations_lose_nothing(void) {
    int n_failed = 0;
    for (long k = 0; k < 40; k++) n_failed += submit_with_failure(k);
    CHECK(n_failed >= 3);
    n_failed = 0;
    for (long k = 0; k < 250; k++) n_failed += run_with_failure(k);
    CHECK(n_failed >= 3);
    const sim_opts o = sim_defaults();
    sim s;
    sim_open(&s, &o, 1);
    const rv_sched_backend b = {.step = sim_backend_step, .ctx = &s};
    for (long k = 0;; k++) {
        rv_sched *made;
        rv_err err = {0};
        rv_test_fail_alloc_at(k);
        const rv_status st = rv_sched_new(&made, s.cache, &b, &o.sched, &err);
        rv_test_fail_alloc_at(-1);
        CHECK(st == RV_OK ? made != NULL : st == RV_ENOMEM && err.code == st && !made);
        rv_sched_free(&made);
        if (st == RV_OK) break;
    }
    sim_close(&s);
}

/* ---- threads ---- */

typedef struct client {
    pthread_t thread;
    rv_sched *sched;
    uint64_t seed, n_submitted;
    atomic_int *n_busy;
} client;

static void *submit_and_cancel(void *arg) {
    client *c = arg;
    uint64_t r = c->seed;
    for (int i = 0; i < 300; i++) {
        int32_t tok[64];
        const size_t n = 1 + rv_test_rand(&r) % 64;
        for (size_t k = 0; k < n; k++) tok[k] = (int32_t)(k * c->seed % 7);
        const rv_sched_request q = {.tok = tok,
                                    .n = n,
                                    .max_tokens = 1 + rv_test_rand(&r) % 8,
                                    .tenant = c->seed,
                                    .priority = (rv_priority)(i % 4)};
        uint64_t id;
        rv_sched_stats t;
        const rv_status st = rv_sched_submit(c->sched, &q, &id, NULL);
        CHECK(st == RV_OK || st == RV_EFULL);
        c->n_submitted += st == RV_OK;
        if (st == RV_OK && i % 3 == 0) rv_sched_cancel(c->sched, id, RV_FINISH_STOP, NULL);
        rv_sched_get_stats(c->sched, &t);
    }
    atomic_fetch_sub(c->n_busy, 1);
    return NULL;
}

/* A model that says what it is asked about, without a world around it. */
static rv_status count_up(void *ctx, rv_sched_rows *rows, size_t n, rv_err *err) {
    (void)ctx;
    (void)err;
    for (size_t i = 0; i < n; i++) rows[i].token = (int32_t)rows[i].i_token;
    return RV_OK;
}

static void threads_submit_and_cancel(void) {
    sim_opts o = sim_defaults();
    o.n_pages = 40;
    o.sched.policy = RV_POLICY_FAIR;
    sim s;
    sim_open(&s, &o, 1);
    rv_sched_free(&s.sched);
    const rv_sched_backend b = {.step = count_up};
    CHECK(rv_sched_new(&s.sched, s.cache, &b, &o.sched, NULL) == RV_OK);
    atomic_int n_busy = 3;
    client c[3];
    for (uint64_t i = 0; i < 3; i++) {
        c[i] = (client){.sched = s.sched, .seed = i + 1, .n_busy = &n_busy};
        CHECK(pthread_create(&c[i].thread, NULL, submit_and_cancel, &c[i]) == 0);
    }
    uint64_t n_ended = 0, n_submitted = 0;
    for (bool idle = false, busy = true; busy || !idle;) {
        rv_sched_event e[16];
        size_t n;
        busy = atomic_load(&n_busy) > 0;
        CHECK(rv_sched_step(s.sched, 0, e, 16, &n, &idle, NULL) == RV_OK);
        for (size_t i = 0; i < n; i++) n_ended += e[i].finish != RV_FINISH_NONE;
    }
    for (int i = 0; i < 3; i++) {
        CHECK(pthread_join(c[i].thread, NULL) == 0);
        n_submitted += c[i].n_submitted;
    }
    rv_sched_stats t;
    rv_sched_get_stats(s.sched, &t);
    CHECK(n_ended == n_submitted && t.n_submitted == n_submitted && t.n_finished == n_ended);
    sim_close(&s);
}

const rv_test tests_sched[] = {
    {"sched_random_worlds_keep_every_promise", random_worlds_keep_every_promise},
    {"sched_a_run_can_be_replayed", a_run_can_be_replayed},
    {"sched_options_are_checked", options_are_checked},
    {"sched_requests_are_checked", requests_are_checked},
    {"sched_priority_goes_before_policy_before_arrival",
     priority_goes_before_policy_before_arrival},
    {"sched_tenants_share_alike", tenants_share_alike},
    {"sched_nobody_starves", nobody_starves},
    {"sched_generating_goes_before_prompts", generating_goes_before_prompts},
    {"sched_preemption_is_bounded_and_changes_nothing", preemption_is_bounded_and_changes_nothing},
    {"sched_what_is_saved_comes_back", what_is_saved_comes_back},
    {"sched_a_request_may_fill_the_cache", a_request_may_fill_the_cache},
    {"sched_a_smaller_budget_ends_what_cannot_fit", a_smaller_budget_ends_what_cannot_fit},
    {"sched_outsiders_are_waited_for", outsiders_are_waited_for},
    {"sched_outsiders_may_take_what_was_promised", outsiders_may_take_what_was_promised},
    {"sched_a_token_survives_preemption", a_token_survives_preemption},
    {"sched_age_protects_what_runs", age_protects_what_runs},
    {"sched_prefixes_are_found", prefixes_are_found},
    {"sched_cancel_at_every_step", cancel_at_every_step},
    {"sched_cancel_during_a_step", cancel_during_a_step},
    {"sched_deadlines_end_what_waits_and_what_runs", deadlines_end_what_waits_and_what_runs},
    {"sched_events_are_not_lost", events_are_not_lost},
    {"sched_failed_steps_are_tried_again", failed_steps_are_tried_again},
    {"sched_failed_allocations_lose_nothing", failed_allocations_lose_nothing},
    {"sched_threads_submit_and_cancel", threads_submit_and_cancel},
    {NULL, NULL},
};
