/* engine: what a request gives is what a session gives alone, whoever else runs; masks, ends,
 * errors of one request, sequences on disk, and every allocation failing once. */
#include "test.h"

#include <math.h>
#include <pthread.h>
#include <unistd.h>

#define LFM2 RV_TEST_DATA "/golden/models/lfm2-d64-f32.gguf" /* has recurrent state */
#define LLAMA RV_TEST_DATA "/golden/models/llama-d64-f32.gguf"

enum { N = 6, MOST = 24 };

static rv_model *open_model(const char *path, int n_threads, uint64_t kv_budget) {
    rv_err err = {0};
    rv_model *m;
    const rv_model_opts o = {.n_threads = n_threads, .n_batch = 7, .kv_budget = kv_budget};
    CHECK(rv_model_open(&m, path, &o, &err) == RV_OK);
    return m;
}

/* Request i: a prompt of its own length behind a beginning that all share, greedy or seeded. */
typedef struct ask {
    int32_t tok[64];
    size_t n;
    rv_sample_params p;
} ask;

static ask ask_of(int i) {
    ask a = {.n = (size_t)(20 + 3 * i)};
    for (size_t t = 0; t < a.n; t++)
        a.tok[t] = (int32_t)(t < 18 ? 5 * t % 61 : (t + 7 * (size_t)i) % 59);
    rv_sample_defaults(&a.p);
    a.p.seed = (uint64_t)i;
    a.p.temperature = i % 2 ? 1.2f : 0.0f;
    a.p.repeat_penalty = i % 3 ? 1.0f : 1.3f;
    return a;
}

static void alone(rv_model *m, const ask *a, int32_t *out, size_t n) {
    rv_session *s;
    rv_sampler *p;
    rv_sampled r;
    CHECK(rv_session_new(&s, m, 100, NULL) == RV_OK);
    CHECK(rv_sampler_new(&p, &a->p, rv_model_get_info(m)->n_vocab, NULL) == RV_OK);
    CHECK(rv_sampler_accept(p, a->tok, a->n, NULL) == RV_OK);
    CHECK(rv_session_eval(s, a->tok, a->n, NULL, NULL, NULL) == RV_OK);
    for (size_t i = 0; i < n; i++) {
        CHECK(rv_sampler_sample(p, rv_session_logits(s), i, NULL, &r, NULL) == RV_OK);
        out[i] = r.id;
        CHECK(rv_session_eval(s, &r.id, 1, NULL, NULL, NULL) == RV_OK);
    }
    rv_session_free(&s);
    rv_sampler_free(&p);
}

typedef struct got {
    int32_t tok[MOST];
    size_t n, n_cached, n_restored;
    rv_finish finish;
    rv_status lost;
} got;

static rv_engine_request request_of(const ask *a) {
    return (rv_engine_request){.tok = a->tok,
                               .n = a->n,
                               .max_tokens = MOST,
                               .params = &a->p,
                               .ignore_eog = true,
                               .priority = RV_PRIORITY_NORMAL};
}

/* Steps until nothing is left; ids count from the first one on.  Failed steps are tried again. */
static void drain(rv_engine *e, uint64_t first, got *out) {
    for (bool idle = false; !idle;) {
        const rv_engine_event *ev;
        size_t n;
        rv_err err = {0};
        rv_status st = rv_engine_step(e, &ev, &n, &idle, &err);
        CHECK(st == RV_OK || (st == RV_ENOMEM && err.code == st));
        for (size_t i = 0; i < n; i++) {
            got *g = &out[ev[i].request - first];
            CHECK(g->finish == RV_FINISH_NONE && g->n <= MOST);
            if (ev[i].token >= 0) {
                CHECK(g->n < MOST && ev[i].logprob <= 0);
                g->tok[g->n++] = ev[i].token;
            } else {
                CHECK(isnan(ev[i].logprob));
            }
            g->finish = ev[i].finish;
            g->n_cached = ev[i].n_cached;
            g->n_restored = ev[i].n_restored;
            g->lost = ev[i].lost ? ev[i].lost->code : RV_OK;
            CHECK((ev[i].finish == RV_FINISH_ERROR) == (ev[i].err != NULL));
        }
    }
}

static void requests_give_what_they_give_alone(void) {
    static const rv_engine_opts ways[] = {
        {.max_rows = 1},
        {.max_running = 2},
        {.max_rows = 6, .max_chunk = 1},
        {.max_rows = 9, .max_chunk = 5, .policy = RV_POLICY_SJF},
        {.policy = RV_POLICY_FAIR},
    };
    const char *const paths[] = {LFM2, LLAMA};
    for (size_t i_path = 0; i_path < RV_COUNT(paths); i_path++) {
        for (int n_threads = 1; n_threads <= 2; n_threads++) {
            rv_model *m = open_model(paths[i_path], n_threads, 0);
            int32_t want[N][MOST];
            ask asks[N];
            for (int i = 0; i < N; i++) {
                asks[i] = ask_of(i);
                alone(m, &asks[i], want[i], MOST);
            }
            for (size_t w = 0; w < RV_COUNT(ways); w++) {
                rv_engine *e;
                uint64_t id, first = 0;
                got all[N] = {0};
                CHECK(rv_engine_new(&e, m, &ways[w], NULL) == RV_OK);
                for (int i = 0; i < N; i++) {
                    const rv_engine_request q = request_of(&asks[i]);
                    CHECK(rv_engine_submit(e, &q, &id, NULL) == RV_OK);
                    if (i == 0) first = id;
                    CHECK(id == first + (uint64_t)i);
                }
                drain(e, first, all);
                for (int i = 0; i < N; i++) {
                    CHECK(all[i].n == MOST && all[i].finish == RV_FINISH_LENGTH);
                    CHECK(memcmp(all[i].tok, want[i], sizeof want[i]) == 0);
                }
                rv_engine_stats s;
                rv_engine_get_stats(e, &s);
                CHECK(s.n_finished == N && s.n_tokens == N * MOST &&
                      s.n_running + s.n_waiting == 0);
                rv_engine_free(&e);
            }
            rv_model_free(&m);
        }
    }
}

static void engine_survives_failed_allocations(void) {
    rv_model *m = open_model(LFM2, 1, 0);
    int32_t want[2][MOST];
    const ask asks[] = {ask_of(0), ask_of(1)};
    for (int i = 0; i < 2; i++) alone(m, &asks[i], want[i], MOST);
    size_t n_failed = 0;
    for (long k = 0; k < 300; k++) {
        const size_t live = rv_live_bytes();
        rv_engine *e;
        rv_err err = {0};
        uint64_t id[2];
        got all[2] = {0};
        rv_test_fail_alloc_at(k);
        if (rv_engine_new(&e, m, &(rv_engine_opts){.max_queue = 5}, &err) != RV_OK) {
            rv_test_fail_alloc_at(-1);
            CHECK(err.code == RV_ENOMEM && !e && rv_live_bytes() == live);
            n_failed++;
            continue;
        }
        for (int i = 0; i < 2; i++) {
            rv_engine_request q = request_of(&asks[i]);
            const uint32_t every[] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u,
                                      ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
            CHECK((size_t)rv_model_get_info(m)->n_vocab <= sizeof every * 8);
            q.allow = every;
            q.scope.salt = (rv_str){"s", 1};
            while (rv_engine_submit(e, &q, &id[i], &err) != RV_OK) {
                CHECK(err.code == RV_ENOMEM);
                n_failed++;
            }
        }
        drain(e, id[0], all);
        rv_test_fail_alloc_at(-1);
        for (int i = 0; i < 2; i++)
            CHECK(all[i].n == MOST && memcmp(all[i].tok, want[i], sizeof want[i]) == 0);
        rv_engine_free(&e);
    }
    CHECK(n_failed > 15);
    rv_model_free(&m);
}

/* The tokens of request id of one step, and its end. */
static got one_step(rv_engine *e, uint64_t id) {
    const rv_engine_event *ev;
    size_t n;
    bool idle;
    got g = {0};
    CHECK(rv_engine_step(e, &ev, &n, &idle, NULL) == RV_OK);
    for (size_t i = 0; i < n; i++) {
        if (ev[i].request != id) continue;
        if (ev[i].token >= 0) g.tok[g.n++] = ev[i].token;
        g.finish = ev[i].finish;
        CHECK(!ev[i].err || ev[i].err->code == RV_ESTATE);
    }
    return g;
}

static void masks_stops_and_ends(void) {
    rv_model *m = open_model(LLAMA, 1, 0);
    const size_t n_words = ((size_t)rv_model_get_info(m)->n_vocab + 31) / 32;
    uint32_t *mask = calloc(n_words, 4);
    rv_engine *e;
    rv_err err = {0};
    uint64_t id;
    const ask a = ask_of(0);
    rv_engine_request q = request_of(&a);
    CHECK(rv_engine_new(&e, m, NULL, NULL) == RV_OK);
    /* The first choice, the next one, and none of them for the one after. */
    mask[1] = 1 << 3;
    q.allow = mask;
    CHECK(rv_engine_submit(e, &q, &id, NULL) == RV_OK);
    CHECK(one_step(e, id + 1).n == 0); /* the prompt is longer than a chunk */
    while (true) {
        const got g = one_step(e, id);
        if (g.n == 0) continue;
        CHECK(g.tok[0] == 35);
        break;
    }
    mask[1] = 1 << 4;
    CHECK(rv_engine_allow(e, id, NULL, NULL) == RV_OK);
    CHECK(rv_engine_allow(e, id, mask, NULL) == RV_OK);
    CHECK(one_step(e, id).tok[0] == 36);
    CHECK(one_step(e, id).n == 1);
    CHECK(rv_engine_allow(e, id + 1, mask, &err) == RV_ENOTFOUND);
    /* Nothing is allowed: the request fails, and no other. */
    q.allow = NULL;
    uint64_t other;
    CHECK(rv_engine_submit(e, &q, &other, NULL) == RV_OK);
    mask[1] = 0;
    CHECK(rv_engine_allow(e, id, mask, NULL) == RV_OK);
    CHECK(one_step(e, id).finish == RV_FINISH_ERROR);
    CHECK(rv_engine_allow(e, id, NULL, &err) == RV_ENOTFOUND);
    got all[1] = {0};
    drain(e, other, all);
    CHECK(all[0].n >= MOST - 1 && all[0].finish == RV_FINISH_LENGTH); /* one came with the error */
    CHECK(rv_engine_submit(e, &q, &other, NULL) == RV_OK);
    memset(all, 0, sizeof all);
    drain(e, other, all);
    CHECK(all[0].n == MOST);
    /* A stop id belongs to the reply and ends it. */
    const int32_t stop[] = {all[0].tok[3]};
    size_t at = 0;
    while (all[0].tok[at] != stop[0]) at++;
    q.stop_ids = stop;
    q.n_stop = 1;
    CHECK(rv_engine_submit(e, &q, &id, NULL) == RV_OK);
    got cut[1] = {0};
    drain(e, id, cut);
    CHECK(cut[0].n == at + 1 && cut[0].finish == RV_FINISH_STOP);
    /* Cancelled before it begins, and while it runs. */
    for (int n_steps = 0; n_steps < 8; n_steps += 7) {
        CHECK(rv_engine_submit(e, &q, &id, NULL) == RV_OK);
        for (int i = 0; i < n_steps; i++) one_step(e, id);
        const rv_status st = rv_engine_cancel(e, id, RV_FINISH_CANCELLED, NULL);
        CHECK(st == RV_OK || n_steps);
        if (st == RV_OK) CHECK(one_step(e, id).finish == RV_FINISH_CANCELLED);
        CHECK(rv_engine_cancel(e, id, RV_FINISH_CANCELLED, NULL) == RV_ENOTFOUND);
    }
    free(mask);
    CHECK(rv_engine_submit(e, &q, &id, NULL) == RV_OK); /* freed while it waits */
    rv_model_free(&m);
    rv_engine_free(&e);
}

static void bad_requests_and_options(void) {
    rv_model *m = open_model(LLAMA, 1, 0);
    const int32_t n_ctx = rv_model_get_info(m)->n_ctx;
    rv_engine *e;
    rv_err err = {0};
    uint64_t id = 77;
    static const struct {
        rv_engine_opts o;
        const char *name;
    } bad[] = {
        {{.policy = (rv_policy)3}, "policy: is 3"},
        {{.n_ctx = 1 << 30}, "n_ctx"},
        {{.max_rows = 4097}, "max_rows"},
        {{.max_rows = 3, .max_running = 4}, "max_rows: is 3, want at least max_running"},
        {{.max_chunk = -1}, "max_chunk"},
        {{.max_running = 5000}, "max_running"},
        {{.max_queue = 1 << 20}, "max_queue"},
        {{.max_queue_tokens = -1}, "max_queue_tokens"},
        {{.age_steps = -2}, "age_steps"},
        {{.max_preempt = 2000}, "max_preempt"},
    };
    for (size_t i = 0; i < RV_COUNT(bad); i++) {
        CHECK(rv_engine_new(&e, m, &bad[i].o, &err) == RV_EARG && !e);
        CHECK(strstr(err.msg, bad[i].name));
    }
    CHECK(rv_engine_new(&e, m, &(rv_engine_opts){.max_queue = 1, .max_running = 1}, NULL) == RV_OK);
    const ask a = ask_of(0);
    const rv_engine_request good = request_of(&a);
    rv_engine_request q = good;
    q.n = 0;
    CHECK(rv_engine_submit(e, &q, &id, &err) == RV_EARG && strstr(err.msg, "tokens"));
    q = good;
    q.max_tokens = 0;
    CHECK(rv_engine_submit(e, &q, &id, &err) == RV_EARG && strstr(err.msg, "max_tokens: is 0"));
    q = good;
    q.priority = (rv_priority)4;
    CHECK(rv_engine_submit(e, &q, &id, &err) == RV_EARG && strstr(err.msg, "priority: is 4"));
    q = good;
    const int32_t stop[] = {1, -1};
    q.stop_ids = stop;
    q.n_stop = 2;
    CHECK(rv_engine_submit(e, &q, &id, &err) == RV_EARG && strstr(err.msg, "stop_ids[1]: is -1"));
    q = good;
    rv_sample_params p = a.p;
    p.top_p = NAN;
    q.params = &p;
    CHECK(rv_engine_submit(e, &q, &id, &err) == RV_EARG && strstr(err.msg, "top_p"));
    int32_t *many = calloc((size_t)n_ctx + 1, 4);
    q = good;
    q.tok = many;
    q.n = (size_t)n_ctx + 1;
    CHECK(rv_engine_submit(e, &q, &id, &err) == RV_EFULL);
    many[2] = -5;
    q.n = 3;
    CHECK(rv_engine_submit(e, &q, &id, &err) == RV_EARG && strstr(err.msg, "tokens[2]: is -5"));
    free(many);
    CHECK(id == 77 && rv_engine_cancel(e, 5, RV_FINISH_CANCELLED, &err) == RV_ENOTFOUND);
    CHECK(rv_engine_cancel(e, 5, RV_FINISH_LENGTH, &err) == RV_EARG);
    CHECK(rv_engine_submit(e, &good, &id, &err) == RV_OK);
    CHECK(rv_engine_submit(e, &good, &id, &err) == RV_EFULL && strstr(err.msg, "queue"));
    rv_engine_free(&e);
    rv_engine_free(&e);
    rv_model_free(&m);
}

/* ---- on disk ---- */

/* A folder of its own, which must be empty in the end. */
static char *make_folder(void) {
    static char dir[40];
    strcpy(dir, "/tmp/rv_spillXXXXXX");
    CHECK(mkdtemp(dir));
    return dir;
}

/* Requests that push each other out, to a folder: the same tokens, and no file is left. */
static void preempted_requests_wait_on_disk(void) {
    const char *const paths[] = {LFM2, LLAMA};
    for (size_t k = 0; k < RV_COUNT(paths); k++) {
        rv_model *m = open_model(paths[k], 1, 0);
        const uint64_t bytes = rv_model_get_info(m)->kv_bytes_per_token;
        int32_t want[N][MOST];
        ask asks[N];
        for (int i = 0; i < N; i++) {
            asks[i] = ask_of(i);
            alone(m, &asks[i], want[i], MOST);
        }
        rv_model_free(&m);
        const rv_model_opts o = {.n_threads = 1,
                                 .n_batch = 7,
                                 .no_sharing = true,
                                 .kv_budget = 100 * bytes + (k ? 0 : 6000)};
        CHECK(rv_model_open(&m, paths[k], &o, NULL) == RV_OK);
        char *dir = make_folder();
        for (int swap = 0; swap < 2; swap++) {
            rv_engine *e;
            rv_engine_stats s;
            uint64_t id, first = 0;
            got all[N] = {0};
            const rv_engine_opts opts = {.spill_dir = dir, .swap = swap == 1};
            CHECK(rv_engine_new(&e, m, &opts, NULL) == RV_OK);
            for (int i = 0; i < N; i++) {
                const rv_engine_request q = request_of(&asks[i]);
                CHECK(rv_engine_submit(e, &q, &id, NULL) == RV_OK);
                if (i == 0) first = id;
            }
            drain(e, first, all);
            for (int i = 0; i < N; i++) {
                CHECK(all[i].n == MOST && all[i].lost == RV_OK);
                CHECK(memcmp(all[i].tok, want[i], sizeof want[i]) == 0);
            }
            rv_engine_get_stats(e, &s);
            CHECK(s.n_preempted > 0);
            size_t n_computed = s.n_rows;
            for (int i = 0; i < N; i++) n_computed -= asks[i].n + MOST - 1;
            /* What is less than a page is computed again in any case. */
            CHECK(swap ? n_computed < 16 * s.n_preempted : n_computed > 0);
            rv_engine_free(&e);
        }
        CHECK(rmdir(dir) == 0);
        rv_model_free(&m);
    }
}

static const rv_scope SCOPE = {.salt = {"salt", 4}};

/* What a request gives that finds its beginning in a file. */
static got restored(rv_engine *e, const ask *a, const char *path, size_t n) {
    rv_engine_request q = request_of(a);
    uint64_t id;
    got g = {0};
    q.restore = path;
    q.n_restore = n;
    q.scope = SCOPE;
    CHECK(rv_engine_submit(e, &q, &id, NULL) == RV_OK);
    drain(e, id, &g);
    return g;
}

static void forget(rv_engine *e, const int32_t *tok, size_t n) {
    size_t found;
    CHECK(rv_engine_forget(e, &SCOPE, tok, n, NULL) == RV_OK);
    CHECK(rv_engine_peek(e, &SCOPE, tok, n, &found, NULL) == RV_OK && found == 0);
}

static void park(rv_engine *e, const char *path, const int32_t *tok, size_t n, size_t n_want) {
    size_t n_kept, n_pieces = 0;
    uint64_t n_bytes;
    bool done = false;
    CHECK(rv_engine_park(e, path, &SCOPE, tok, n, &n_kept, &n_bytes, NULL) == RV_OK);
    CHECK(n_kept == n_want && (n_bytes > 0) == (n_want > 0));
    if (n_want)
        CHECK(rv_engine_park(e, path, &SCOPE, tok, n, &n_kept, &n_bytes, NULL) == RV_ESTATE);
    for (; !done; n_pieces++) CHECK(rv_engine_park_more(e, 1, &done, NULL) == RV_OK);
    CHECK(n_want == 0 || n_pieces > 1);
    CHECK((access(path, F_OK) == 0) == (n_want > 0));
    forget(e, tok, n);
}

/* A conversation goes on from a file, from memory, and from a file that is foreign, damaged or
 * gone. */
static void conversations_wait_on_disk(void) {
    const char *const paths[] = {LFM2, LLAMA};
    for (size_t k = 0; k < RV_COUNT(paths); k++) {
        rv_model *m = open_model(paths[k], 1, 0);
        rv_engine *e, *other;
        char *dir = make_folder(), path[80];
        snprintf(path, sizeof path, "%s/talk.kv", dir);
        ask a = ask_of(2), b;
        int32_t want[MOST], text[64 + MOST];
        for (; a.n < 34; a.n++) a.tok[a.n] = (int32_t)a.n;
        alone(m, &a, want, MOST);
        b = a;
        memcpy(b.tok + a.n, want, sizeof want);
        b.n = a.n + MOST + 3;
        for (size_t i = a.n + MOST; i < b.n; i++) b.tok[i] = 9;
        const rv_engine_opts mine = {.spill_dir = dir, .spill_digest = {"digest", 6}};
        const rv_engine_opts foreign = {.spill_dir = dir, .spill_digest = {"tsegid", 6}};
        CHECK(rv_engine_new(&e, m, &mine, NULL) == RV_OK);
        CHECK(rv_engine_new(&other, m, &foreign, NULL) == RV_OK);
        park(e, path, b.tok, b.n - 3, 0); /* nothing is there yet */
        got g = restored(e, &a, NULL, 0);
        CHECK(memcmp(g.tok, want, sizeof want) == 0 && g.n_cached == 0);
        park(e, path, b.tok, b.n - 3, 48);
        alone(m, &b, want, MOST);
        memcpy(text, b.tok, b.n * sizeof *text);
        memcpy(text + b.n, want, sizeof want);
        for (int i = 0; i < 4; i++) {
            const rv_status lost[] = {RV_OK, RV_EUNSUPPORTED, RV_EFORMAT, RV_ENOTFOUND};
            if (i == 2) CHECK(truncate(path, 5000) == 0);
            if (i == 3) CHECK(unlink(path) == 0);
            g = restored(i == 1 ? other : e, &b, path, 48);
            CHECK(memcmp(g.tok, want, sizeof want) == 0 && g.lost == lost[i]);
            CHECK(g.n_restored == (i ? 0 : 48) && g.n_cached == g.n_restored);
            if (k == 1) { /* in memory with all its pages, the file is not looked at */
                g = restored(e, &b, path, 48);
                CHECK(g.lost == RV_OK && g.n_restored == 0 && g.n_cached >= 48);
            }
            forget(e, text, b.n + MOST);
        }
        CHECK(rmdir(dir) == 0);
        rv_model_free(&m);
        rv_engine_free(&e);
        rv_engine_free(&other);
    }
}

/* Every allocation fails once, in parking and in coming back: it is computed again at worst. */
static void disk_without_memory(void) {
    rv_model *m = open_model(LFM2, 1, 0);
    rv_engine *e;
    char *dir = make_folder(), path[80];
    snprintf(path, sizeof path, "%s/talk.kv", dir);
    const ask a = ask_of(2);
    ask b = a;
    int32_t want[MOST], text[64 + MOST];
    alone(m, &a, want, MOST);
    memcpy(b.tok + a.n, want, sizeof want);
    b.n = a.n + MOST;
    alone(m, &b, want, MOST);
    memcpy(text, b.tok, b.n * sizeof *text);
    memcpy(text + b.n, want, sizeof want);
    const rv_engine_opts opts = {.spill_dir = dir, .swap = true};
    CHECK(rv_engine_new(&e, m, &opts, NULL) == RV_OK);
    restored(e, &a, NULL, 0);
    size_t n_kept = 0, n_restored = 0;
    for (long k = 0; n_kept == 0; k++) {
        uint64_t n_bytes;
        bool done = false;
        const size_t live = rv_live_bytes();
        rv_test_fail_alloc_at(k);
        const rv_status st = rv_engine_park(e, path, &SCOPE, b.tok, b.n, &n_kept, &n_bytes, NULL);
        rv_test_fail_alloc_at(-1);
        CHECK(st == RV_OK || st == RV_ENOMEM);
        CHECK(n_kept ? n_kept == 48 && st == RV_OK : rv_live_bytes() == live);
        while (n_kept && !done) CHECK(rv_engine_park_more(e, 1 << 20, &done, NULL) == RV_OK);
    }
    forget(e, b.tok, b.n);
    for (long k = 0; k < 80; k++) {
        rv_engine_request q = request_of(&b);
        uint64_t id;
        got g = {0};
        q.restore = path;
        q.n_restore = 48;
        q.scope = SCOPE;
        rv_test_fail_alloc_at(k);
        while (rv_engine_submit(e, &q, &id, NULL) != RV_OK) continue;
        drain(e, id, &g);
        rv_test_fail_alloc_at(-1);
        CHECK(g.n == MOST && memcmp(g.tok, want, sizeof want) == 0);
        CHECK(g.lost == RV_OK || g.lost == RV_ENOMEM);
        n_restored += g.n_restored > 0;
        forget(e, text, b.n + MOST);
    }
    CHECK(n_restored > 40 && n_restored < 80);
    CHECK(unlink(path) == 0 && rmdir(dir) == 0);
    rv_engine_free(&e);
    rv_model_free(&m);
}

static void spill_options_are_checked(void) {
    rv_model *m = open_model(LLAMA, 1, 0);
    rv_engine *e;
    rv_err err = {0};
    size_t n;
    uint64_t id, n_bytes;
    bool done;
    const ask a = ask_of(0);
    rv_engine_request q = request_of(&a);
    CHECK(rv_engine_new(&e, m, &(rv_engine_opts){.swap = true}, &err) == RV_EARG);
    CHECK(strstr(err.msg, "spill_dir"));
    CHECK(rv_engine_new(&e, m, NULL, NULL) == RV_OK);
    q.restore = "x";
    q.n_restore = 5;
    CHECK(rv_engine_submit(e, &q, &id, &err) == RV_EUNSUPPORTED && strstr(err.msg, "spill_dir"));
    CHECK(rv_engine_park(e, "x", &SCOPE, a.tok, a.n, &n, &n_bytes, &err) == RV_EUNSUPPORTED);
    CHECK(rv_engine_park_more(e, 1, &done, &err) == RV_OK && done);
    rv_engine_free(&e);
    rv_model_free(&m);
}

/* Submits, masks, cancels every third, and looks at the counters, while another thread steps. */
enum { N_BUSY = 60 };
typedef struct busy {
    rv_engine *e;
    const ask *asks;
    _Atomic uint64_t first;
} busy;

static void *submit_many(void *arg) {
    busy *b = arg;
    static const uint32_t every[32] = {~0u, ~0u, ~0u, ~0u};
    for (int i = 0; i < N_BUSY; i++) {
        uint64_t id;
        rv_engine_stats s;
        rv_engine_request q = request_of(&b->asks[i % N]);
        CHECK(rv_engine_submit(b->e, &q, &id, NULL) == RV_OK);
        if (i == 0) atomic_store(&b->first, id);
        rv_status st = rv_engine_allow(b->e, id, i % 2 ? NULL : every, NULL);
        if (i % 2 == 0 && st == RV_OK) st = rv_engine_allow(b->e, id, NULL, NULL);
        CHECK(st == RV_OK || st == RV_ENOTFOUND);
        if (i % 3 == 0) st = rv_engine_cancel(b->e, id, RV_FINISH_CANCELLED, NULL);
        CHECK(st == RV_OK || st == RV_ENOTFOUND);
        rv_engine_get_stats(b->e, &s);
        CHECK(s.n_submitted == (uint64_t)i + 1);
    }
    return NULL;
}

static void threads_submit_while_one_steps(void) {
    rv_model *m = open_model(LFM2, 2, 0);
    int32_t want[N][MOST];
    ask asks[N];
    for (int i = 0; i < N; i++) {
        asks[i] = ask_of(i);
        alone(m, &asks[i], want[i], MOST);
    }
    busy b = {.asks = asks};
    got all[N_BUSY] = {0};
    pthread_t t;
    size_t n_over = 0;
    CHECK(rv_engine_new(&b.e, m, &(rv_engine_opts){.max_running = 7}, NULL) == RV_OK);
    CHECK(pthread_create(&t, NULL, submit_many, &b) == 0);
    while (n_over < N_BUSY) {
        const rv_engine_event *ev;
        size_t n;
        bool idle;
        CHECK(rv_engine_step(b.e, &ev, &n, &idle, NULL) == RV_OK);
        for (size_t i = 0; i < n; i++) {
            while (!atomic_load(&b.first)) continue; /* it says so after the submission */
            got *g = &all[ev[i].request - atomic_load(&b.first)];
            if (ev[i].token >= 0) g->tok[g->n++] = ev[i].token;
            g->finish = ev[i].finish;
            n_over += ev[i].finish != RV_FINISH_NONE;
        }
    }
    pthread_join(t, NULL);
    for (int i = 0; i < N_BUSY; i++) {
        CHECK(all[i].finish == RV_FINISH_LENGTH || all[i].finish == RV_FINISH_CANCELLED);
        CHECK(all[i].finish == RV_FINISH_LENGTH ? all[i].n == MOST : i % 3 == 0);
        CHECK(memcmp(all[i].tok, want[i % N], all[i].n * sizeof(int32_t)) == 0);
    }
    rv_engine_free(&b.e);
    rv_model_free(&m);
}

const rv_test tests_batch[] = {
    {"threads_submit_while_one_steps", threads_submit_while_one_steps},
    {"requests_give_what_they_give_alone", requests_give_what_they_give_alone},
    {"preempted_requests_wait_on_disk", preempted_requests_wait_on_disk},
    {"conversations_wait_on_disk", conversations_wait_on_disk},
    {"disk_without_memory", disk_without_memory},
    {"spill_options_are_checked", spill_options_are_checked},
    {"engine_survives_failed_allocations", engine_survives_failed_allocations},
    {"masks_stops_and_ends", masks_stops_and_ends},
    {"bad_requests_and_options", bad_requests_and_options},
    {NULL, NULL},
};
