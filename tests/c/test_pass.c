/* Forward passes over new tokens of several sequences: a row has the same bits alone and among
 * others, in any chunks, with one tier or two, and behind a snapshot of the recurrent state.  And
 * sessions on top of that: what a failed eval leaves, what the options of the cache may be. */
#include "model/net.h"
#include "test.h"

#define MODELS RV_TEST_DATA "/golden/models/"

enum { MAX_SEQS = 4, MAX_ROWS = 256 };

typedef struct engine {
    rv_gguf *g;
    rv_net *net;
    rv_pool *pool;
    rv_run *r;
    rv_kv_cache *cache;
} engine;

static void open_engine(engine *e, const char *path, int n_threads, rv_kv_type store, bool share) {
    int32_t heads[64];
    CHECK(rv_gguf_open(&e->g, path, NULL) == RV_OK);
    CHECK(rv_net_new(&e->net, e->g, NULL) == RV_OK);
    const rv_net *net = e->net;
    for (int32_t i = 0; i < net->n_layer; i++)
        if (net->layers[i].n_head_kv) heads[net->layers[i].i_kv] = net->layers[i].n_head_kv;
    const size_t taps = net->conv_l ? (size_t)net->conv_l - 1 : 0;
    const rv_kv_format f = {.n_layers = (size_t)net->n_kv_layers,
                            .heads = heads,
                            .head_dim = (size_t)net->head_dim,
                            .type = RV_KV_F16,
                            .store = store,
                            .rotate = store != RV_KV_AUTO,
                            .tail = store == RV_KV_AUTO ? 0 : 64,
                            .batch = store == RV_KV_AUTO ? 0 : 64,
                            .state_bytes = (size_t)net->n_conv_layers * taps * (size_t)net->n_embd *
                                           sizeof(float)};
    const rv_kv_cache_opts o = {.budget = 32 << 20, .share = share};
    CHECK(rv_pool_new(&e->pool, n_threads, NULL) == RV_OK);
    CHECK(rv_run_new(&e->r, net, e->pool, NULL) == RV_OK);
    CHECK(rv_run_reserve(e->r, MAX_ROWS, NULL) == RV_OK);
    CHECK(rv_kv_cache_new(&e->cache, &f, &o, NULL) == RV_OK);
}

static void close_engine(engine *e) {
    rv_kv_cache_free(&e->cache);
    rv_run_free(&e->r);
    rv_pool_free(&e->pool);
    rv_net_free(&e->net);
    rv_gguf_free(&e->g);
}

/* Tokens of a sequence, and its hidden states [n][n_embd]. */
typedef struct seq {
    size_t n;
    int32_t tok[256];
    float *x;
    rv_kv *kv;
} seq;

static void open_seq(const engine *e, seq *s, size_t n, uint64_t seed) {
    *s = (seq){.n = n};
    for (size_t i = 0; i < n; i++) s->tok[i] = (int32_t)(rv_test_rand(&seed) % 200);
    s->x = rv_calloc(n * (size_t)e->net->n_embd, sizeof *s->x);
    CHECK(s->x && rv_kv_new(&s->kv, e->cache, NULL, NULL) == RV_OK);
}

static void close_seq(seq *s) {
    rv_kv_free(&s->kv);
    rv_free(s->x);
}

/* A pass over up to rows[i] tokens of each sequence; how many there were. */
static size_t step(engine *e, seq *s, size_t n, const size_t *rows) {
    const size_t width = (size_t)e->net->n_embd;
    rv_span spans[MAX_SEQS];
    size_t m = 0, row = 0, of[MAX_SEQS];
    for (size_t i = 0; i < n; i++) {
        const size_t p = rv_kv_len(s[i].kv), c = RV_MIN(rows[i], s[i].n - p);
        if (c == 0) continue;
        CHECK(rv_kv_reserve(s[i].kv, c, e->pool, NULL) == RV_OK);
        spans[m] = (rv_span){s[i].kv, s[i].tok + p, c};
        of[m++] = i;
    }
    if (m == 0) return 0;
    CHECK(rv_decoder_forward(e->r, spans, m, NULL, NULL) == RV_OK);
    for (size_t j = 0; j < m; j++) {
        seq *q = &s[of[j]];
        memcpy(q->x + rv_kv_len(q->kv) * width, e->r->x + row * width, spans[j].n * width * 4);
        rv_kv_commit(q->kv, spans[j].tok, spans[j].n);
        row += spans[j].n;
    }
    return row;
}

static bool same_rows(const engine *e, const seq *a, const seq *b, size_t from) {
    const size_t width = (size_t)e->net->n_embd;
    return memcmp(a->x + from * width, b->x + from * width, (a->n - from) * width * 4) == 0;
}

static void check_together(const char *path, rv_kv_type store) {
    static const size_t LENGTHS[MAX_SEQS] = {200, 90, 1, 33}, CHUNKS[] = {1, 7, 64, 31};
    engine e;
    seq want[MAX_SEQS], s[MAX_SEQS];
    size_t rows[MAX_SEQS] = {16};
    open_engine(&e, path, 1, store, false);
    for (size_t i = 0; i < MAX_SEQS; i++) {
        open_seq(&e, &want[i], LENGTHS[i], i);
        while (step(&e, &want[i], 1, rows)) {}
    }
    for (int threads = 1; threads <= 3; threads++) {
        engine b;
        open_engine(&b, path, threads, store, false);
        for (size_t i = 0; i < MAX_SEQS; i++) open_seq(&b, &s[i], LENGTHS[i], i);
        for (size_t pass = (size_t)threads;; pass++) {
            for (size_t i = 0; i < MAX_SEQS; i++) rows[i] = CHUNKS[(pass + i) % RV_COUNT(CHUNKS)];
            if (step(&b, s, MAX_SEQS, rows) == 0) break;
        }
        for (size_t i = 0; i < MAX_SEQS; i++) {
            CHECK(same_rows(&e, &want[i], &s[i], 0));
            close_seq(&s[i]);
        }
        close_engine(&b);
    }
    for (size_t i = 0; i < MAX_SEQS; i++) close_seq(&want[i]);
    close_engine(&e);
}

static void a_row_has_the_same_bits_among_others(void) {
    static const char *const PATHS[] = {MODELS "llama-d256-q4_k_m.gguf",
                                        MODELS "lfm2-d256-q4_k_m.gguf",
                                        MODELS "qwen3-d256-q8_0.gguf"};
    for (size_t i = 0; i < RV_COUNT(PATHS); i++) {
        check_together(PATHS[i], RV_KV_AUTO);
        check_together(PATHS[i], RV_KV_Q8_0);
    }
}

/* A sequence that starts where another one has been goes on with the same bits: with the pages of
 * that one, and a copy of the recurrent state that was made in the middle of a pass. */
static void a_resumed_sequence_has_the_same_bits(void) {
    engine e;
    seq first, again;
    const size_t chunk = 37;
    size_t resumed = 0;
    open_engine(&e, MODELS "lfm2-d256-q4_k_m.gguf", 2, RV_KV_AUTO, true);
    open_seq(&e, &first, 150, 1);
    while (step(&e, &first, 1, &chunk)) {}
    for (size_t shorter = 0; shorter < 3; shorter++) {
        open_seq(&e, &again, 150, 1);
        again.n = 150 - 20 * shorter;
        resumed = rv_kv_match(again.kv, again.tok, again.n);
        CHECK(resumed < again.n && resumed == rv_kv_len(again.kv));
        while (step(&e, &again, 1, &chunk)) {}
        CHECK(memcmp(again.x + resumed * (size_t)e.net->n_embd,
                     first.x + resumed * (size_t)e.net->n_embd,
                     (again.n - resumed) * (size_t)e.net->n_embd * 4) == 0);
        close_seq(&again);
    }
    close_seq(&first);
    open_seq(&e, &again, 150, 1);
    resumed = rv_kv_match(again.kv, again.tok, again.n);
    CHECK(resumed > 0);
    close_seq(&again);
    close_engine(&e);
}

/* ---- sessions ---- */

static rv_model *open_model(const char *path, rv_model_opts o) {
    rv_model *m;
    CHECK(rv_model_open(&m, path, &o, NULL) == RV_OK);
    return m;
}

static void fill(int32_t *tok, size_t n) {
    for (size_t i = 0; i < n; i++) tok[i] = (int32_t)(7 * i % 200);
}

static float *logits_of(rv_model *m, const int32_t *tok, size_t n) {
    const size_t bytes = (size_t)rv_model_get_info(m)->n_vocab * sizeof(float);
    float *out = rv_malloc(bytes);
    rv_session *s;
    CHECK(out && rv_session_new(&s, m, 256, NULL) == RV_OK);
    CHECK(rv_session_eval(s, tok, n, NULL, NULL, NULL) == RV_OK);
    memcpy(out, rv_session_logits(s), bytes);
    rv_session_free(&s);
    return out;
}

/* With a store, too, only the model and the tokens decide. */
static void a_store_keeps_its_bits_in_any_chunks(void) {
    static const struct {
        const char *path;
        rv_kv_type store;
    } CASES[] = {{MODELS "llama-d256-q8_0.gguf", RV_KV_Q8_0},
                 {MODELS "lfm2-d256-q8_0.gguf", RV_KV_K8V4},
                 {MODELS "llama-d64-f32.gguf", RV_KV_Q4_0}}; /* heads of 16 */
    int32_t tok[250];
    fill(tok, 250);
    for (size_t i = 0; i < RV_COUNT(CASES); i++) {
        rv_model *m = open_model(CASES[i].path, (rv_model_opts){.n_threads = 1});
        const size_t bytes = (size_t)rv_model_get_info(m)->n_vocab * sizeof(float);
        float *none = logits_of(m, tok, 250), *want = NULL;
        rv_model_free(&m);
        for (int threads = 1; threads <= 3; threads++) {
            m = open_model(CASES[i].path, (rv_model_opts){.n_threads = threads,
                                                          .n_batch = 100 - 31 * threads,
                                                          .kv_store = CASES[i].store,
                                                          .kv_tail = 64,
                                                          .no_sharing = threads == 3});
            float *got = logits_of(m, tok, 250);
            rv_kv_stats stats;
            rv_model_get_kv_stats(m, &stats);
            CHECK(stats.n_migrated > 0 && stats.held_bytes <= stats.budget_bytes);
            CHECK(memcmp(none, got, bytes) != 0);
            if (!want) want = got;
            CHECK(memcmp(want, got, bytes) == 0);
            if (want != got) rv_free(got);
            rv_model_free(&m);
        }
        rv_free(none), rv_free(want);
    }
}

/* Of several passes the last one finds no room, or no memory: nothing has happened. */
static void a_failed_eval_of_several_passes_consumes_nothing(void) {
    static const char *const PATHS[] = {MODELS "llama-d256-q8_0.gguf",
                                        MODELS "lfm2-d256-q8_0.gguf"};
    int32_t tok[256];
    rv_err err = {0};
    fill(tok, 256);
    for (size_t i = 0; i < 2 * RV_COUNT(PATHS); i++) {
        rv_model_opts o = {.n_threads = 2, .n_batch = 16, .kv_tail = 64};
        if (i % 2) o.kv_store = RV_KV_Q8_0;
        rv_model *m = open_model(PATHS[i / 2], o);
        const uint64_t per_token = rv_model_get_info(m)->kv_bytes_per_token;
        const size_t bytes = (size_t)rv_model_get_info(m)->n_vocab * sizeof(float);
        float *want = logits_of(m, tok, 40);
        rv_model_free(&m);
        o.kv_budget = per_token * 192 + (1 << 16);
        m = open_model(PATHS[i / 2], o);
        rv_session *s, *other;
        CHECK(rv_session_new(&s, m, 256, NULL) == RV_OK);
        CHECK(rv_session_new(&other, m, 256, NULL) == RV_OK);
        CHECK(rv_session_eval(other, tok + 50, 64, NULL, NULL, NULL) == RV_OK);
        CHECK(rv_session_eval(s, tok, 20, NULL, NULL, NULL) == RV_OK);
        CHECK(rv_session_eval(s, tok + 20, 236, NULL, NULL, &err) == RV_EFULL);
        CHECK(strstr(err.msg, "budget") && rv_session_n_past(s) == 20);
        for (long k = 0; k < 12; k++) {
            rv_test_fail_alloc_at(k);
            rv_status st = rv_session_eval(s, tok + 20, 40, NULL, NULL, NULL);
            rv_test_fail_alloc_at(-1);
            CHECK(st == RV_OK || (st == RV_ENOMEM && rv_session_n_past(s) == 20));
            if (st == RV_OK) break;
        }
        rv_session_free(&s);
        CHECK(rv_session_new(&s, m, 256, NULL) == RV_OK);
        CHECK(rv_session_eval(s, tok, 20, NULL, NULL, NULL) == RV_OK);
        CHECK(rv_session_eval(s, tok + 20, 236, NULL, NULL, NULL) == RV_EFULL);
        CHECK(rv_session_eval(s, tok + 20, 20, NULL, NULL, NULL) == RV_OK);
        CHECK(memcmp(want, rv_session_logits(s), bytes) == 0);
        CHECK(rv_session_truncate(s, 0, NULL) == RV_OK && rv_session_n_past(s) == 0);
        CHECK(rv_session_eval(s, tok, 40, NULL, NULL, NULL) == RV_OK);
        CHECK(memcmp(want, rv_session_logits(s), bytes) == 0);
        rv_session_free(&s);
        rv_session_free(&other);
        rv_model_free(&m);
        rv_free(want);
    }
}

/* Texts that are embedded leave nothing in the tree. */
static void embedding_shares_nothing(void) {
    rv_model *m = open_model(MODELS "lfm2-d256-q8_0.gguf", (rv_model_opts){.n_threads = 1});
    int32_t tok[100];
    const size_t len[] = {60, 40};
    float out[2 * 256];
    rv_kv_stats stats;
    fill(tok, 100);
    CHECK(rv_model_embed(m, tok, len, 2, NULL, out, NULL) == RV_OK);
    rv_model_get_kv_stats(m, &stats);
    CHECK(stats.n_nodes == 0 && stats.used_bytes == 0 && stats.n_sequences == 0);
    CHECK(stats.peak_bytes > 0);
    rv_free(logits_of(m, tok, 100));
    rv_model_get_kv_stats(m, &stats);
    CHECK(stats.n_nodes >= 6 && stats.used_bytes > 0 && stats.n_sequences == 0);
    rv_model_free(&m);
}

static void options_of_the_cache_are_checked(void) {
    static const struct {
        rv_model_opts o;
        rv_status st;
        const char *says;
    } CASES[] = {
        {{.kv_store = RV_KV_F16}, RV_EARG, "kv_store: is 1"},
        {{.kv_store = (rv_kv_type)9}, RV_EARG, "kv_store: is 9"},
        {{.kv_store = RV_KV_Q8_0, .kv_type = RV_KV_Q4_0}, RV_EARG, "kv_type: is 4"},
        {{.kv_type = RV_KV_K8V4}, RV_EARG, "kv_type: is 5"},
        {{.kv_tail = 100}, RV_EARG, "kv_tail: is 100, want a multiple of 64"},
        {{.kv_tail = -64}, RV_EARG, "kv_tail: is -64"},
        {{.kv_batch = 1}, RV_EARG, "kv_batch: is 1"},
        {{.kv_fit = (rv_fit)3}, RV_EARG, "kv_fit: is 3"},
        {{.kv_budget = 1000}, RV_EFULL, "budget of 1000"},
    };
    rv_model *m;
    rv_err err;
    for (size_t i = 0; i < RV_COUNT(CASES); i++) {
        CHECK(rv_model_open(&m, MODELS "llama-d256-q8_0.gguf", &CASES[i].o, &err) == CASES[i].st);
        CHECK(!m && strstr(err.msg, CASES[i].says));
    }
}

const rv_test tests_pass[] = {
    {"a_row_has_the_same_bits_among_others", a_row_has_the_same_bits_among_others},
    {"a_resumed_sequence_has_the_same_bits", a_resumed_sequence_has_the_same_bits},
    {"a_store_keeps_its_bits_in_any_chunks", a_store_keeps_its_bits_in_any_chunks},
    {"a_failed_eval_of_several_passes_consumes_nothing",
     a_failed_eval_of_several_passes_consumes_nothing},
    {"embedding_shares_nothing", embedding_shares_nothing},
    {"options_of_the_cache_are_checked", options_of_the_cache_are_checked},
    {NULL, NULL},
};
