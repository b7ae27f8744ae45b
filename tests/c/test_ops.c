/* norm, rope, act: every ISA level the machine has, against float64, awkward sizes, and the
 * same bits wherever a value stands. */
#include <math.h>

#include "rvk.h"
#include "test.h"

static const unsigned LEVELS[] = {0, RVK_AVX2, RVK_AVX2 | RVK_AVX512, RVK_ALL};
static const size_t SIZES[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 64, 96, 255, 1000};

static float *noise(size_t n, uint64_t seed, float scale) {
    float *x = rv_malloc((n + 1) * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < n; i++) x[i] = rv_test_uniform(&seed) * scale;
    return x;
}

static void near(double found, double want, double tolerance) {
    CHECK(isfinite(found) && fabs(found - want) <= tolerance);
}

static void norms_match_float64(void) {
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        for (size_t s = 0; s < RV_COUNT(SIZES); s++) {
            const size_t n = SIZES[s];
            float *x = noise(n, n, 3), *g = noise(n, n + 1, 1), *b = noise(n, n + 2, 1);
            float *y = noise(n, 0, 0);
            double sq = 0, mean = 0, var = 0;
            for (size_t i = 0; i < n; i++) sq += (double)x[i] * x[i], mean += x[i];
            mean /= (double)n;
            for (size_t i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean);
            const double rms = sqrt(sq / (double)n + 1e-5), dev = sqrt(var / (double)n + 1e-5);
            rvk.rms_norm(y, x, g, n, 1e-5f);
            for (size_t i = 0; i < n; i++) near(y[i], x[i] / rms * g[i], 4e-7 * fabs(y[i]) + 1e-30);
            rvk.layer_norm(y, x, g, b, n, 1e-5f);
            for (size_t i = 0; i < n; i++)
                near(y[i], (x[i] - mean) / dev * g[i] + b[i], 2e-6 * (fabs(x[i] / dev) + 1));
            rvk.rms_norm(x, x, g, n, 1e-5f); /* in place */
            rvk.layer_norm(y, y, g, NULL, n, 1e-5f);
            rv_free(x), rv_free(g), rv_free(b), rv_free(y);
        }
    }
    rvk_init(RVK_ALL);
}

static void rope_rotates_both_pairings(void) {
    enum { HEADS = 3, D = 12, ROT = 8 };
    float cs[ROT];
    for (int i = 0; i < ROT / 2; i++)
        cs[i] = (float)cos(0.3 * (i + 1)), cs[ROT / 2 + i] = (float)sin(0.3 * (i + 1));
    for (int neox = 0; neox < 2; neox++) {
        float *x = noise(HEADS * D, 5, 1), *y = noise(HEADS * D, 5, 1);
        rvk.rope(y, HEADS, D, ROT, cs, neox);
        for (int h = 0; h < HEADS; h++) {
            for (int i = 0; i < ROT / 2; i++) {
                const int a = h * D + (neox ? i : 2 * i),
                          b = h * D + (neox ? i + ROT / 2 : 2 * i + 1);
                near(y[a], (double)x[a] * cs[i] - (double)x[b] * cs[ROT / 2 + i], 3e-7);
                near(y[b], (double)x[a] * cs[ROT / 2 + i] + (double)x[b] * cs[i], 3e-7);
            }
            for (int i = ROT; i < D; i++) CHECK(y[h * D + i] == x[h * D + i]);
        }
        rv_free(x), rv_free(y);
    }
}

static double silu64(double x) {
    return x / (1 + exp(-x));
}

static double gelu64(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x)));
}

static void activations_match_float64(void) {
    static const float EDGE[] = {0.0f, -0.0f, 1e-40f, 30,   -30,   88,
                                 -88,  104,   -104,   1e4f, -1e4f, 1e30f};
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        for (size_t s = 0; s < RV_COUNT(SIZES); s++) {
            const size_t n = SIZES[s];
            float *x = noise(n, n, 6), *u = noise(n, n + 1, 2), *y = noise(n, 0, 0);
            for (size_t i = 0; i < n && i < RV_COUNT(EDGE); i++) x[i] = EDGE[i];
            rvk.swiglu(y, x, u, n);
            for (size_t i = 0; i < n; i++)
                near(y[i], silu64(x[i]) * u[i], 1e-6 * fabs(silu64(x[i]) * u[i]) + 1e-36);
            rvk.gelu(y, x, n);
            for (size_t i = 0; i < n; i++)
                near(y[i], gelu64(x[i]), 1e-6 * fabs((double)x[i]) + 1e-36);
            float last;
            rvk.gelu(&last, x + n - 1, 1); /* the same bits alone as at the end of a row */
            CHECK(memcmp(&last, y + n - 1, 4) == 0);
            rvk.add(y, x, u, n);
            for (size_t i = 0; i < n; i++) CHECK(y[i] == x[i] + u[i]);
            rv_free(x), rv_free(u), rv_free(y);
        }
        const float nan = NAN, one = 1;
        float y;
        rvk.swiglu(&y, &nan, &one, 1);
        CHECK(isnan(y));
    }
    rvk_init(RVK_ALL);
}

static void shortconv_is_a_causal_filter(void) {
    enum { N = 5, L = 3, T = 7 };
    float *b = noise(T * N, 1, 1), *c = noise(T * N, 2, 1), *u = noise(T * N, 3, 1);
    float *taps = noise(N * L, 4, 1), state[(L - 1) * N] = {0}, y[N];
    for (int t = 0; t < T; t++) {
        rvk.shortconv(y, b + t * N, c + t * N, u + t * N, taps, state, N, L);
        for (int i = 0; i < N; i++) {
            double want = 0;
            for (int j = 0; j < L; j++) {
                const int past = t - (L - 1 - j);
                if (past >= 0)
                    want += (double)(b[past * N + i] * u[past * N + i]) * taps[i * L + j];
            }
            near(y[i], c[t * N + i] * want, 1e-6);
        }
    }
    rv_free(b), rv_free(c), rv_free(u), rv_free(taps);
}

const rv_test tests_ops[] = {
    {"norms_match_float64", norms_match_float64},
    {"rope_rotates_both_pairings", rope_rotates_both_pairings},
    {"activations_match_float64", activations_match_float64},
    {"shortconv_is_a_causal_filter", shortconv_is_a_causal_filter},
    {NULL, NULL},
};
