/* numerics: fast is said where it is, changes nothing where it is not, and is kept apart. */
#include <unistd.h>

#include "rvk.h"
#include "test.h"

#define BF16 RV_TEST_DATA "/golden/models/llama-d256-bf16.gguf"
#define QUANTISED RV_TEST_DATA "/golden/models/lfm2-d256-q4_k_m.gguf"

enum { N = 24, MAX_VOCAB = 4096 };

static rv_model *open_as(const char *path, rv_numerics numerics, int n_threads) {
    rv_model *m;
    rv_err err = {0};
    const rv_model_opts o = {.n_threads = n_threads, .numerics = numerics};
    CHECK(rv_model_open(&m, path, &o, &err) == RV_OK);
    CHECK(rv_model_get_info(m)->n_vocab <= MAX_VOCAB);
    return m;
}

static bool is_fast(const rv_model *m) {
    return rv_model_get_info(m)->numerics == RV_NUMERICS_FAST;
}

/* Logits after N tokens, step at a time; the rest of out is zeros. */
static void logits_of(rv_model *m, size_t step, float out[MAX_VOCAB]) {
    int32_t tok[N];
    rv_session *s;
    for (int i = 0; i < N; i++) tok[i] = 7 * i % 200;
    CHECK(rv_session_new(&s, m, N, NULL) == RV_OK);
    for (size_t i = 0; i < N; i += step)
        CHECK(rv_session_eval(s, tok + i, RV_MIN(step, N - i), NULL, NULL, NULL) == RV_OK);
    memset(out, 0, MAX_VOCAB * sizeof *out);
    memcpy(out, rv_session_logits(s), (size_t)rv_model_get_info(m)->n_vocab * sizeof *out);
    rv_session_free(&s);
}

static bool same_logits(rv_model *a, rv_model *b, size_t step) {
    static float x[MAX_VOCAB], y[MAX_VOCAB];
    logits_of(a, N, x), logits_of(b, step, y);
    return memcmp(x, y, sizeof x) == 0;
}

/* On every level: fast where the kernels have it and the weights are BF16, the bits of exact
 * elsewhere; and its own bits do not depend on steps and threads either. */
static void fast_where_it_can_be(void) {
    static const unsigned MASKS[] = {0, RVK_AVX2, RVK_AVX2 | RVK_AVX512,
                                     RVK_AVX2 | RVK_AVX512 | RVK_VNNI, RVK_ALL};
    for (size_t i = 0; i < RV_COUNT(MASKS); i++) {
        rvk_init(MASKS[i]);
        const bool has = (rvk.cpu & RVK_BF16_DOT) != 0;
        rv_model *exact = open_as(BF16, RV_NUMERICS_EXACT, 1);
        rv_model *fast = open_as(BF16, RV_NUMERICS_FAST, 1);
        rv_model *again = open_as(BF16, RV_NUMERICS_FAST, 2);
        CHECK(!is_fast(exact) && is_fast(fast) == has && is_fast(again) == has);
        CHECK(same_logits(exact, fast, N) == !has);
        for (size_t step = 1; step <= 13; step += 6) CHECK(same_logits(fast, again, step));
        rv_model_free(&exact), rv_model_free(&fast), rv_model_free(&again);
        exact = open_as(QUANTISED, RV_NUMERICS_EXACT, 1);
        fast = open_as(QUANTISED, RV_NUMERICS_FAST, 1);
        CHECK(!is_fast(fast) && same_logits(exact, fast, N));
        rv_model_free(&exact), rv_model_free(&fast);
    }
    rvk_init(RVK_ALL);
}

/* A model that was opened fast and finds the kernels gone goes on with those there are. */
static void kernels_may_go(void) {
    rv_model *fast = open_as(BF16, RV_NUMERICS_FAST, 1);
    rvk_init(RVK_ALL & ~(unsigned)RVK_BF16_DOT);
    rv_model *exact = open_as(BF16, RV_NUMERICS_EXACT, 1);
    CHECK(same_logits(exact, fast, N));
    rvk_init(RVK_ALL);
    rv_model_free(&fast), rv_model_free(&exact);
}

/* Keys and values of the one are not loaded by the other. */
static void files_are_kept_apart(void) {
    char dir[] = "/tmp/rv_numericsXXXXXX", path[64];
    CHECK(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/s.kv", dir);
    const int32_t tok[] = {1, 2, 3, 4, 5, 6, 7, 8};
    const rv_str digest = {"d", 1};
    rv_model *m[] = {open_as(BF16, RV_NUMERICS_EXACT, 1), open_as(BF16, RV_NUMERICS_FAST, 1)};
    for (int i = 0; i < 4; i++) {
        rv_session *from, *to;
        size_t n_past;
        rv_err err = {0};
        CHECK(rv_session_new(&from, m[i / 2], 16, NULL) == RV_OK);
        CHECK(rv_session_new(&to, m[i % 2], 16, NULL) == RV_OK);
        CHECK(rv_session_eval(from, tok, 8, NULL, NULL, NULL) == RV_OK);
        CHECK(rv_session_save(from, path, digest, &err) == RV_OK);
        const rv_status st = rv_session_load(to, path, digest, tok, 8, &n_past, &err);
        const bool alike = is_fast(m[i / 2]) == is_fast(m[i % 2]);
        CHECK(st == (alike ? RV_OK : RV_EUNSUPPORTED) && (n_past > 0) == alike);
        rv_session_free(&from), rv_session_free(&to);
    }
    rv_model_free(&m[0]), rv_model_free(&m[1]);
    CHECK(unlink(path) == 0 && rmdir(dir) == 0);
}

static void no_other_numerics(void) {
    rv_model *m;
    rv_err err = {0};
    const rv_model_opts o = {.numerics = (rv_numerics)2};
    CHECK(rv_model_open(&m, BF16, &o, &err) == RV_EARG && !m);
    CHECK(strstr(err.msg, "numerics: is 2, want 0 (exact) or 1 (fast)"));
}

static void fast_survives_failed_allocations(void) {
    const int32_t tok[] = {1, 2, 3, 4, 5};
    rv_status st = RV_ENOMEM;
    long k = 0;
    for (; st != RV_OK; k++) {
        const size_t live = rv_live_bytes();
        rv_model *m = NULL;
        rv_session *s = NULL;
        const rv_model_opts o = {.n_threads = 1, .numerics = RV_NUMERICS_FAST};
        rv_test_fail_alloc_at(k);
        st = rv_model_open(&m, BF16, &o, NULL);
        if (st == RV_OK) st = rv_session_new(&s, m, 16, NULL);
        if (st == RV_OK) st = rv_session_eval(s, tok, 5, NULL, NULL, NULL);
        rv_test_fail_alloc_at(-1);
        CHECK(st == RV_OK || st == RV_ENOMEM);
        rv_session_free(&s);
        rv_model_free(&m);
        CHECK(rv_live_bytes() == live);
    }
    CHECK(k > 20);
}

const rv_test tests_numerics[] = {
    {"numerics_fast_where_it_can_be", fast_where_it_can_be},
    {"numerics_kernels_may_go", kernels_may_go},
    {"numerics_files_are_kept_apart", files_are_kept_apart},
    {"numerics_no_other", no_other_numerics},
    {"numerics_survive_failed_allocations", fast_survives_failed_allocations},
    {NULL, NULL},
};
