/* sample: the random stream, ranking, exponentials, the sampler's contract. */
#include <math.h>

#include "sample/philox.h"
#include "sample/rank.h"
#include "sample/sampler.h"
#include "test.h"

/* From the Random123 distribution's kat_vectors, "philox4x32 10". */
static void philox_known_answers(void) {
    static const struct {
        uint32_t ctr[4], key[2], out[4];
    } kat[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
         {UINT32_MAX, UINT32_MAX},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < RV_COUNT(kat); i++) {
        uint32_t out[4];
        rv_philox4x32(kat[i].ctr, kat[i].key, out);
        CHECK(memcmp(out, kat[i].out, sizeof out) == 0);
    }
    /* The first 53 bits of the block of seed 0, pos 0. */
    CHECK(rv_philox_uniform(0, 0) == (double)(0x6627e8d5e169c58du >> 11) * 0x1p-53);
    for (uint64_t pos = 0; pos < 1000; pos++) {
        double u = rv_philox_uniform(UINT64_MAX, pos << 32);
        CHECK(u >= 0 && u < 1 && u != rv_philox_uniform(UINT64_MAX - 1, pos << 32));
    }
}

static void rank_keys_order_as_values(void) {
    const float v[] = {INFINITY, 3e38f,   1.0f,  1e-45f, 0.0f,
                       -0.0f,    -1e-45f, -1.0f, -3e38f, -INFINITY};
    for (size_t i = 0; i < RV_COUNT(v); i++) {
        uint64_t a = rv_rank_key(v[i], 7);
        CHECK(rv_rank_value(a) == v[i] && rv_rank_id(a) == 7);
        CHECK(rv_rank_key(v[i], 6) < a && a < rv_rank_key(v[i], INT32_MAX));
        for (size_t j = 0; j < RV_COUNT(v); j++) CHECK((a < rv_rank_key(v[j], 7)) == (v[i] > v[j]));
    }
}

static int by_key(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void rank_agrees_with_a_sort(void) {
    enum { N = 257 };
    static float x[N];
    static uint64_t all[N], keys[N];
    uint64_t rng = 1;
    for (size_t n = 1; n <= N; n += 8) {
        for (size_t i = 0; i < n; i++) {
            x[i] = floorf(rv_test_uniform(&rng) * 20); /* with ties */
            all[i] = keys[i] = rv_rank_key(x[i], (int32_t)i);
        }
        qsort(all, n, sizeof *all, by_key);
        rv_rank_begin(keys, n);
        for (size_t m = 0; m < n; m++) {
            CHECK(rv_rank_take(keys, n - m) == all[m]);
            CHECK(keys[n - 1 - m] == all[m]);
        }
        for (size_t k = 0; k <= n; k++) {
            CHECK(rv_rank_best(keys, k, x, n) == k);
            CHECK(memcmp(keys, all, k * sizeof *keys) == 0);
        }
        x[n / 2] = -INFINITY; /* is left out */
        CHECK(rv_rank_best(keys, n, x, n) == n - 1);
    }
}

static void exponentials_are_exact_enough(void) {
    uint64_t rng = 5;
    CHECK(rv_exp_neg(0) == 1 && rv_exp_neg(-709) == 0 && rv_exp_neg(-INFINITY) == 0);
    for (int i = 0; i < 200000; i++) {
        double x = -707.9 * pow(fabs((double)rv_test_uniform(&rng)), i % 4 + 1);
        double want = exp(x), ulp = nextafter(want, 2) - want;
        CHECK(fabs(rv_exp_neg(x) - want) <= 2 * ulp);
    }
    static float v[1003];
    static uint64_t keys[1003];
    for (size_t n = 1; n <= 1003; n += 167) {
        double want = 0, hot = 0;
        for (size_t i = 0; i < n; i++) {
            v[i] = i == 3 ? -INFINITY : 20 * rv_test_uniform(&rng) - 20;
            want += exp(v[i]);
            hot += exp(v[i] / 0.7);
            keys[i] = rv_rank_key(v[i], (int32_t)i);
        }
        CHECK(fabs(rv_exp_sum(v, n, 0) - want) <= 1e-13 * want);
        CHECK(fabs(rv_rank_exp_sum(keys, n, 0, 0.7) - hot) <= 1e-13 * hot);
    }
}

/* ---- the sampler ---- */

enum { V = 40 };

static void fill(float *x, uint64_t seed) {
    for (int i = 0; i < V; i++) x[i] = 3 * rv_test_uniform(&seed);
}

static rv_sampler *make(const rv_sample_params *p) {
    rv_sampler *s;
    rv_err err = {0};
    CHECK(rv_sampler_new(&s, p, V, &err) == RV_OK && s && err.code == RV_OK);
    return s;
}

static void sampler_new_survives_failed_allocations(void) {
    const int32_t ids[] = {1, 2};
    const float bias[] = {1, -INFINITY};
    rv_sample_params p;
    rv_sample_defaults(&p);
    p.temperature = 1, p.repeat_penalty = 1.1f, p.n_logprobs = 5;
    p.bias_ids = ids, p.bias = bias, p.n_bias = 2;
    rv_sampler *s = NULL;
    size_t live = rv_live_bytes();
    for (long k = 0;; k++) {
        rv_err err = {0};
        rv_test_fail_alloc_at(k);
        rv_status st = rv_sampler_new(&s, &p, V, &err);
        rv_test_fail_alloc_at(-1);
        if (st == RV_OK) {
            CHECK(k == 11);
            break;
        }
        CHECK(st == RV_ENOMEM && err.code == RV_ENOMEM && !s && rv_live_bytes() == live);
    }
    /* Nothing is allocated afterwards. */
    float x[V];
    fill(x, 1);
    rv_test_fail_alloc_at(0);
    for (uint64_t pos = 0; pos < 200; pos++) {
        rv_sampled r;
        CHECK(rv_sampler_sample(s, x, pos, NULL, &r, NULL) == RV_OK && r.id != 2);
    }
    rv_test_fail_alloc_at(-1);
    rv_sampler_free(&s);
    CHECK(s == NULL);
    rv_sampler_free(&s);
    rv_sampler_free(NULL);
}

/* Bare samplers that take turns in one work area draw what each draws in its own. */
static void samplers_share_a_work_area(void) {
    rv_sample_area area;
    rv_sampler *own[3], *bare[3];
    float x[V];
    const uint32_t allow[] = {0xfff0ffff, 0xff};
    CHECK(rv_sample_area_init(&area, V, true));
    for (int i = 0; i < 3; i++) {
        rv_sample_params p;
        rv_sample_defaults(&p);
        p.seed = (uint64_t)i, p.temperature = (float)i, p.repeat_penalty = 1.2f;
        p.top_p = 0.9f, p.n_logprobs = i;
        own[i] = make(&p);
        CHECK(rv_sampler_new_bare(&bare[i], &p, V, NULL) == RV_OK);
    }
    for (uint64_t pos = 0; pos < 60; pos++) {
        const int i = (int)(pos % 3);
        const uint32_t *mask = pos % 2 ? allow : NULL;
        rv_sampled a, b;
        fill(x, pos);
        CHECK(rv_sampler_sample(own[i], x, pos, mask, &a, NULL) == RV_OK);
        CHECK(rv_sampler_sample_in(bare[i], &area, x, pos, mask, &b, NULL) == RV_OK);
        CHECK(a.id == b.id && a.logprob == b.logprob && a.n_top == b.n_top);
    }
    for (int i = 0; i < 3; i++) {
        rv_sampler_free(&own[i]);
        rv_sampler_free(&bare[i]);
    }
    rv_sample_area_deinit(&area);
    rv_sample_area_deinit(&area);
    for (long k = 0; k < 2; k++) {
        rv_test_fail_alloc_at(k);
        CHECK(!rv_sample_area_init(&area, V, true));
        rv_test_fail_alloc_at(-1);
        rv_sample_area_deinit(&area);
    }
}

static void check_refused(const rv_sample_params *p, const char *message) {
    rv_err err = {0};
    rv_sampler *s = (rv_sampler *)&err;
    CHECK(rv_sampler_new(&s, p, V, &err) == RV_EARG && s == NULL);
    if (strcmp(err.msg, message) != 0) fprintf(stderr, "found: %s\n", err.msg);
    CHECK(strcmp(err.msg, message) == 0);
    CHECK(rv_sampler_new(&s, p, V, NULL) == RV_EARG);
}

#define REFUSED(member, value, message)                                                            \
    do {                                                                                           \
        rv_sample_params q;                                                                        \
        rv_sample_defaults(&q);                                                                    \
        q.member = value;                                                                          \
        check_refused(&q, message);                                                                \
    } while (0)

static void sampler_new_checks_every_parameter(void) {
    REFUSED(temperature, NAN, "temperature: is nan, want >= 0 and finite");
    REFUSED(temperature, -NAN, "temperature: is nan, want >= 0 and finite");
    REFUSED(temperature, -0.5f, "temperature: is -0.5, want >= 0 and finite");
    REFUSED(temperature, INFINITY, "temperature: is inf, want >= 0 and finite");
    REFUSED(top_k, -1, "top_k: is -1, want 0 to 2147483647");
    REFUSED(top_p, 0, "top_p: is 0, want > 0 and <= 1");
    REFUSED(top_p, 1.5f, "top_p: is 1.5, want > 0 and <= 1");
    REFUSED(top_p, NAN, "top_p: is nan, want > 0 and <= 1");
    REFUSED(min_p, -0.25f, "min_p: is -0.25, want 0 to 1");
    REFUSED(min_p, NAN, "min_p: is nan, want 0 to 1");
    REFUSED(typical_p, 0, "typical_p: is 0, want > 0 and <= 1");
    REFUSED(typical_p, NAN, "typical_p: is nan, want > 0 and <= 1");
    REFUSED(repeat_penalty, 0, "repeat_penalty: is 0, want > 0 and finite");
    REFUSED(repeat_penalty, INFINITY, "repeat_penalty: is inf, want > 0 and finite");
    REFUSED(frequency_penalty, 101, "frequency_penalty: is 101, want -100 to 100");
    REFUSED(frequency_penalty, NAN, "frequency_penalty: is nan, want -100 to 100");
    REFUSED(presence_penalty, -INFINITY, "presence_penalty: is -inf, want -100 to 100");
    REFUSED(penalty_last_n, -2, "penalty_last_n: is -2, want -1 to 1048576");
    REFUSED(penalty_last_n, INT32_MAX, "penalty_last_n: is 2147483647, want -1 to 1048576");
    REFUSED(n_logprobs, 101, "n_logprobs: is 101, want -1 to 100");
    REFUSED(n_bias, V + 1, "bias: has 41 entries, want at most one per token (40)");
    static const struct {
        int32_t ids[2];
        float bias[2];
        const char *message;
    } bad[] = {
        {{3, V}, {0, 0}, "bias_ids[1]: is 40, want 0 to 39"},
        {{-1, 0}, {0, 0}, "bias_ids[0]: is -1, want 0 to 39"},
        {{3, 3}, {0, 0}, "bias_ids[1]: 3 is there twice, want distinct ids"},
        {{3, 4}, {0, NAN}, "bias[1]: is nan, want a finite number or -inf"},
        {{3, 4}, {INFINITY, 0}, "bias[0]: is inf, want a finite number or -inf"},
    };
    for (size_t i = 0; i < RV_COUNT(bad); i++) {
        rv_sample_params p;
        rv_sample_defaults(&p);
        p.bias_ids = bad[i].ids, p.bias = bad[i].bias, p.n_bias = 2;
        check_refused(&p, bad[i].message);
    }
    rv_sample_params p;
    rv_sample_defaults(&p);
    rv_sampler *s;
    rv_err err = {0};
    CHECK(rv_sampler_new(&s, &p, 0, &err) == RV_EARG && !s);
    CHECK(strcmp(err.msg, "n_vocab: is 0, want 1 to 2147483647") == 0);
}

static void sampler_refuses_bad_logits_and_ids(void) {
    rv_sample_params p;
    rv_sample_defaults(&p);
    p.repeat_penalty = 2, p.temperature = 1;
    rv_sampler *s = make(&p);
    rv_sampled r = {.id = 77};
    rv_err err = {0};
    float x[V];
    for (int i = 0; i < V; i++) {
        fill(x, 3);
        x[i] = NAN;
        CHECK(rv_sampler_sample(s, x, 0, NULL, &r, &err) == RV_EARG && r.id == 77);
        char want[80];
        snprintf(want, sizeof want, "logits[%d]: is nan, want a number", i);
        CHECK(strcmp(err.msg, want) == 0);
    }
    for (int i = 0; i < V; i++) x[i] = -INFINITY;
    CHECK(rv_sampler_sample(s, x, 0, NULL, &r, &err) == RV_ESTATE && r.id == 77);
    CHECK(strstr(err.msg, "all 40 tokens are masked"));
    fill(x, 3);
    const uint32_t none[2] = {0, 0xFFFFFF00u}; /* bits beyond the vocabulary do not count */
    CHECK(rv_sampler_sample(s, x, 0, none, &r, NULL) == RV_ESTATE && r.id == 77);
    /* A refused batch of ids leaves the history as it was. */
    const int32_t ids[] = {5, 5, V};
    CHECK(rv_sampler_accept(s, ids, 3, &err) == RV_EARG);
    CHECK(strcmp(err.msg, "ids[2]: is 40, want 0 to 39") == 0);
    for (int i = 0; i < V; i++) x[i] = i == 5 ? 1.0f : -30.0f;
    CHECK(rv_sampler_sample(s, x, 0, NULL, &r, NULL) == RV_OK && r.id == 5);
    rv_sampler_free(&s);
}

static void sampler_greedy_prefers_the_lower_id(void) {
    rv_sample_params p;
    rv_sample_defaults(&p);
    rv_sampler *s = make(&p);
    rv_sampled r;
    float x[V];
    for (int a = 0; a < V; a++) {
        for (int b = 0; b < V; b++) {
            for (int i = 0; i < V; i++) x[i] = -1;
            x[a] = 0.0f, x[b] = -0.0f; /* equal */
            CHECK(rv_sampler_sample(s, x, 0, NULL, &r, NULL) == RV_OK && r.id == RV_MIN(a, b));
        }
    }
    rv_sampler_free(&s);
}

/* The window holds exactly penalty_last_n tokens, and each id is penalised once. */
static void sampler_window_slides(void) {
    rv_sample_params p;
    rv_sample_defaults(&p);
    p.presence_penalty = 10, p.penalty_last_n = 3;
    rv_sampler *s = make(&p);
    float x[V];
    for (int i = 0; i < V; i++) x[i] = i < 5 ? 5.0f - (float)i : -50.0f;
    for (uint64_t pos = 0; pos < 20; pos++) {
        rv_sampled r; /* the best of those not among the last three: 0 1 2 3 0 1 2 3 ... */
        CHECK(rv_sampler_sample(s, x, pos, NULL, &r, NULL) == RV_OK && r.id == (int32_t)(pos % 4));
    }
    rv_sampler_free(&s);
}

static void sampler_takes_infinity_as_certain(void) {
    rv_sample_params p;
    rv_sample_defaults(&p);
    p.n_logprobs = 3;
    for (int i = 0; i < 6; i++) {
        p.temperature = i == 0 ? 0.0f : 0.8f;
        p.top_k = i == 2 ? 10 : 0;
        p.top_p = i == 3 ? 0.9f : 1;
        p.min_p = i == 4 ? 0.1f : 0;
        p.typical_p = i == 5 ? 0.9f : 1;
        rv_sampler *s = make(&p);
        float x[V];
        fill(x, 9);
        x[4] = x[30] = INFINITY, x[2] = 3e38f, x[7] = -INFINITY;
        bool seen[V] = {false};
        for (uint64_t pos = 0; pos < 200; pos++) {
            rv_sampled r;
            CHECK(rv_sampler_sample(s, x, pos, NULL, &r, NULL) == RV_OK);
            CHECK(fabs((double)r.logprob + log(2.0)) < 1e-6);
            CHECK(r.n_top == 3 && r.top_ids[0] == 4 && r.top_ids[1] == 30 && r.top_ids[2] == 2);
            CHECK(r.top_logprobs[0] == r.logprob && r.top_logprobs[2] == -INFINITY);
            seen[r.id] = true;
        }
        for (int k = 0; k < V; k++) CHECK(seen[k] == (k == 4 || (k == 30 && i > 0)));
        rv_sampler_free(&s);
    }
}

const rv_test tests_sample[] = {
    {"philox_known_answers", philox_known_answers},
    {"rank_keys_order_as_values", rank_keys_order_as_values},
    {"rank_agrees_with_a_sort", rank_agrees_with_a_sort},
    {"exponentials_are_exact_enough", exponentials_are_exact_enough},
    {"sampler_new_survives_failed_allocations", sampler_new_survives_failed_allocations},
    {"samplers_share_a_work_area", samplers_share_a_work_area},
    {"sampler_new_checks_every_parameter", sampler_new_checks_every_parameter},
    {"sampler_refuses_bad_logits_and_ids", sampler_refuses_bad_logits_and_ids},
    {"sampler_greedy_prefers_the_lower_id", sampler_greedy_prefers_the_lower_id},
    {"sampler_window_slides", sampler_window_slides},
    {"sampler_takes_infinity_as_certain", sampler_takes_infinity_as_certain},
    {NULL, NULL},
};
