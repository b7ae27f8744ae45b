/* engine: every allocation of opening, evaluating and embedding fails once; cancel and reuse. */
#include "test.h"

#include "kv/kv.h"
#include "rvk.h"

#define QUANTISED RV_TEST_DATA "/golden/models/lfm2-d256-q4_k_m.gguf"
#define MODEL RV_TEST_DATA "/golden/models/lfm2-d64-f32.gguf"

static rv_model *open_model(int n_threads) {
    rv_err err = {0};
    rv_model *m;
    const rv_model_opts o = {.n_threads = n_threads, .n_batch = 5};
    CHECK(rv_model_open(&m, MODEL, &o, &err) == RV_OK);
    return m;
}

static void model_open_survives_failed_allocations(void) {
    const size_t live = rv_live_bytes();
    const rv_model_opts o = {.n_threads = 2, .prefault = true};
    for (long k = 0;; k++) {
        rv_err err = {0};
        rv_model *m = NULL;
        rv_test_fail_alloc_at(k);
        rv_status st = rv_model_open(&m, MODEL, &o, &err);
        rv_test_fail_alloc_at(-1);
        if (st == RV_OK) {
            CHECK(k > 20);
            rv_model_free(&m);
            return;
        }
        CHECK(st == RV_ENOMEM && err.code == RV_ENOMEM && !m && rv_live_bytes() == live);
    }
}

static void session_survives_failed_allocations(void) {
    rv_model *m = open_model(1);
    const int32_t tok[] = {1, 2, 3, 4, 5, 6, 7};
    for (long k = 0;; k++) {
        const size_t live = rv_live_bytes();
        rv_session *s = NULL;
        rv_test_fail_alloc_at(k);
        rv_status st = rv_session_new(&s, m, 100, NULL);
        if (st == RV_OK) {
            CHECK(rv_session_eval(s, tok, 3, NULL, NULL, NULL) == RV_OK || k < 40);
            rv_test_fail_alloc_at(-1);
            const size_t past = rv_session_n_past(s);
            CHECK(past == 0 || past == 3);
            CHECK(rv_session_eval(s, tok + past, 7 - past, NULL, NULL, NULL) == RV_OK);
            CHECK(rv_session_n_past(s) == 7);
            rv_session_free(&s);
            if (k > 60) break;
        } else {
            rv_test_fail_alloc_at(-1);
            CHECK(st == RV_ENOMEM && !s && rv_live_bytes() == live);
        }
    }
    for (long k = 0;; k++) {
        float out[2][64];
        const size_t len[] = {3, 4};
        rv_test_fail_alloc_at(k);
        rv_status st = rv_model_embed(m, tok, len, 2, NULL, &out[0][0], NULL);
        rv_test_fail_alloc_at(-1);
        if (st == RV_OK && k > 20) break;
        CHECK(st == RV_OK || st == RV_ENOMEM);
    }
    rv_model_free(&m);
}

/* A cancelled or refused eval consumes nothing, recurrent state included. */
static void failed_eval_consumes_nothing(void) {
    rv_model *m = open_model(2);
    const size_t v = (size_t)rv_model_get_info(m)->n_vocab;
    const int32_t tok[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, bad[] = {1, 1 << 30};
    rv_session *a, *b;
    rv_cancel *c;
    rv_err err = {0};
    CHECK(rv_session_new(&a, m, 32, NULL) == RV_OK && rv_session_new(&b, m, 32, NULL) == RV_OK);
    CHECK(rv_cancel_new(&c, NULL) == RV_OK);
    CHECK(rv_session_logits(a) == NULL);
    CHECK(rv_session_eval(a, tok, 12, NULL, NULL, NULL) == RV_OK);
    CHECK(rv_session_eval(b, tok, 6, NULL, NULL, NULL) == RV_OK);
    rv_cancel_set(c, true);
    CHECK(rv_session_eval(b, tok + 6, 6, NULL, c, &err) == RV_ECANCEL);
    CHECK(rv_session_eval(b, bad, 2, NULL, NULL, &err) == RV_EARG && strstr(err.msg, "tokens[1]"));
    CHECK(rv_session_eval(b, tok, 27, NULL, NULL, &err) == RV_EFULL);
    CHECK(rv_session_n_past(b) == 6);
    CHECK(rv_session_eval(b, tok + 6, 6, NULL, NULL, NULL) == RV_OK);
    CHECK(memcmp(rv_session_logits(a), rv_session_logits(b), v * 4) == 0);
    CHECK(rv_session_truncate(b, 3, &err) == RV_EUNSUPPORTED);
    CHECK(rv_session_truncate(b, 0, NULL) == RV_OK);
    CHECK(rv_session_eval(b, tok, 12, NULL, NULL, NULL) == RV_OK);
    CHECK(memcmp(rv_session_logits(a), rv_session_logits(b), v * 4) == 0);
    rv_model_free(&m); /* before its sessions: they keep it */
    CHECK(rv_session_eval(a, tok, 1, NULL, NULL, NULL) == RV_OK);
    rv_cancel_free(&c);
    rv_session_free(&a);
    rv_session_free(&b);
}

/* After warm-up a decode step allocates nothing but a slab of pages, or of nodes for them, now and
 * then. */
static void decode_allocates_nothing(void) {
    rv_model *m = open_model(1);
    rv_session *s;
    int32_t tok = 3;
    CHECK(rv_session_new(&s, m, 300, NULL) == RV_OK);
    for (int i = 0; i < RV_PAGE_TOKENS; i++)
        CHECK(rv_session_eval(s, &tok, 1, NULL, NULL, NULL) == RV_OK);
    const size_t live = rv_live_bytes();
    for (int i = RV_PAGE_TOKENS; i < 200; i++) {
        rv_test_fail_alloc_at(0); /* the next allocation fails */
        CHECK(rv_session_eval(s, &tok, 1, NULL, NULL, NULL) == RV_OK);
    }
    rv_test_fail_alloc_at(-1);
    CHECK(rv_live_bytes() == live);
    rv_session_free(&s);
    rv_model_free(&m);
}

/* Logits of 40 tokens, one by one or in steps of many, and the bytes of repacked weights. */
static size_t logits_of(rv_repack repack, int n_threads, size_t step, bool starve, float *out) {
    const rv_model_opts o = {.n_threads = n_threads, .repack = repack};
    rv_model *m;
    rv_session *s;
    CHECK(rv_model_open(&m, QUANTISED, &o, NULL) == RV_OK);
    CHECK(rv_session_new(&s, m, 64, NULL) == RV_OK);
    int32_t tok[40];
    for (int i = 0; i < 40; i++) tok[i] = 7 * i % 200;
    CHECK(rv_session_eval(s, tok, 1, NULL, NULL, NULL) == RV_OK);
    if (step < 32) CHECK(rv_model_repacked_bytes(m) == 0); /* the first pass reads the file */
    if (starve) rv_test_fail_alloc_at(0);
    for (size_t i = 1; i < 40; i += step)
        CHECK(rv_session_eval(s, tok + i, RV_MIN(step, 40 - i), NULL, NULL, NULL) == RV_OK);
    rv_test_fail_alloc_at(-1);
    memcpy(out, rv_session_logits(s), (size_t)rv_model_get_info(m)->n_vocab * 4);
    const size_t bytes = rv_model_repacked_bytes(m);
    rv_session_free(&s);
    rv_model_free(&m);
    return bytes;
}

static void repacking_changes_no_bit(void) {
    static float want[1 << 16], got[1 << 16];
    const size_t live = rv_live_bytes();
    CHECK(logits_of(RV_REPACK_NEVER, 1, 1, false, want) == 0);
    const bool can = rvk.mul_panels[RVK_Q4_K] != NULL;
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        for (size_t step = 1; step <= 39; step += 19) {
            CHECK((logits_of(RV_REPACK_ALWAYS, n_threads, step, false, got) > 0) == can);
            CHECK(memcmp(want, got, sizeof want) == 0);
        }
    }
    /* Where there is no memory for it, nothing but speed is lost. */
    CHECK(logits_of(RV_REPACK_ALWAYS, 2, 1, true, got) == 0);
    CHECK(memcmp(want, got, sizeof want) == 0);
    CHECK(rv_live_bytes() == live);
    rv_model *m;
    rv_err err = {0};
    CHECK(rv_model_open(&m, QUANTISED, &(rv_model_opts){.repack = 3}, &err) == RV_EARG);
    CHECK(strstr(err.msg, "repack: is 3"));
}

static void bandwidth_is_a_number(void) {
    double rate = 0;
    CHECK(rv_read_bandwidth(2, 8 << 20, &rate, NULL) == RV_OK && rate > 0);
    CHECK(rv_read_bandwidth(1, 100, &rate, NULL) == RV_EARG);
    CHECK(rv_read_bandwidth(0, 8 << 20, &rate, NULL) == RV_EARG);
}

const rv_test tests_engine[] = {
    {"model_open_survives_failed_allocations", model_open_survives_failed_allocations},
    {"session_survives_failed_allocations", session_survives_failed_allocations},
    {"failed_eval_consumes_nothing", failed_eval_consumes_nothing},
    {"decode_allocates_nothing", decode_allocates_nothing},
    {"repacking_changes_no_bit", repacking_changes_no_bit},
    {"bandwidth_is_a_number", bandwidth_is_a_number},
    {NULL, NULL},
};
