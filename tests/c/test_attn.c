/* Attention kernels: every ISA level the machine has against float64 over what is stored, awkward
 * sizes, runs anywhere in memory, and the same bits whatever the other queries of a call are. */
#include <math.h>

#include "rvk.h"
#include "test.h"

static const unsigned LEVELS[] = {0, RVK_AVX2, RVK_AVX2 | RVK_AVX512, RVK_ALL};
static const int TYPES[] = {RVK_F32, RVK_F16, RVK_Q8_0, RVK_Q4_0, RVK_K8V4};
static const size_t DIMS[] = {1, 4, 7, 28, 32, 48, 64, 80, 96, 128, 160, 256, 513};

static float *noise(size_t n, uint64_t seed, float scale) {
    float *x = rv_malloc((n + 1) * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < n; i++) x[i] = rv_test_uniform(&seed) * scale;
    return x;
}

/* Softmax over positions lo .. n - 1 in float64, and a 16th of the contract's bound for it:
 * rounding errors of noise mostly cancel, and the whole bound would let a forgotten position pass.
 */
static double attend64(const float *q, const float *k, const float *v, size_t lo, size_t n,
                       size_t d, size_t row, double *out) {
    double top = -INFINITY, sum = 0, size = 0, most = 0;
    double *s = rv_malloc(n * sizeof *s);
    for (size_t p = lo; p < n; p++) {
        double a = 0;
        s[p] = 0;
        for (size_t i = 0; i < d; i++) {
            s[p] += (double)q[i] * k[p * row + i];
            a += fabs((double)q[i] * k[p * row + i]);
            most = fmax(most, fabs(v[p * row + i]));
        }
        top = fmax(top, s[p]);
        size = fmax(size, a);
    }
    for (size_t p = lo; p < n; p++) sum += s[p] = exp(s[p] - top);
    for (size_t i = 0; i < d; i++) {
        out[i] = 0;
        for (size_t p = lo; p < n; p++) out[i] += s[p] / sum * v[p * row + i];
    }
    rv_free(s);
    return (((double)d + 64) * size + 64) * 0x1p-27 * most;
}

enum { RUNS = RVK_ATTN_BLOCK / RVK_ATTN_RUN };

typedef struct cache {
    int type;
    size_t d, n, n_runs, row; /* row: bytes of a query */
    char *at;
    void **runs;  /* [n_runs], whole blocks */
    float *k, *v; /* [n][d] as stored */
} cache;

/* Where the runs lie: one after another, or from the last to the first with gaps between them. */
static void place_runs(cache *c, bool apart) {
    const size_t bytes = rvk_attn_run_bytes(c->type, c->d), step = bytes + (apart ? 64 : 0);
    c->n_runs = (c->n + RVK_ATTN_BLOCK - 1) / RVK_ATTN_BLOCK * RUNS;
    c->at = rv_alloc_aligned(c->n_runs * step);
    c->runs = rv_calloc(c->n_runs, sizeof *c->runs);
    CHECK(c->at && c->runs);
    memset(c->at, 0xff, c->n_runs * step); /* NaN where nothing is */
    for (size_t r = 0; r < c->n_runs; r++)
        c->runs[r] = c->at + (apart ? c->n_runs - 1 - r : r) * step;
}

/* Of a query. */
static size_t row_bytes(int type, size_t d) {
    const size_t w = rvk_attn_width(type, d);
    return rvk_attn_is_coded(type) ? rvk_act_bytes(w) : w * sizeof(float);
}

static cache fill(int type, size_t d, size_t n, bool apart) {
    cache c = {.type = type, .d = d, .n = n};
    place_runs(&c, apart);
    c.k = noise(n * d, d + 1, 1), c.v = noise(n * d, d + 2, 1);
    for (size_t p = 0; p < n; p++) {
        void *run = c.runs[p / RVK_ATTN_RUN];
        rvk_attn_put(type, run, p % RVK_ATTN_RUN, c.k + p * d, c.v + p * d, d);
        rvk_attn_get(type, run, p % RVK_ATTN_RUN, c.k + p * d, c.v + p * d, d);
    }
    c.row = row_bytes(type, d);
    return c;
}

static void drop(cache *c) {
    rv_free(c->at), rv_free(c->runs), rv_free(c->k), rv_free(c->v);
}

/* Queries as the kernel wants them; q becomes what they stand for. */
static char *pack(const cache *c, float *q, size_t n_q) {
    const size_t w = rvk_attn_width(c->type, c->d);
    char *out = rv_alloc_aligned(n_q * c->row);
    float *wide = rv_calloc(w, sizeof *wide);
    for (size_t h = 0; h < n_q; h++, q += c->d) {
        char *to = out + h * c->row;
        memcpy(wide, q, c->d * sizeof *q);
        if (!rvk_attn_is_coded(c->type)) {
            memcpy(to, wide, c->row);
            continue;
        }
        rvk.act_pack(to, wide, w);
        const float *scale = (const float *)(const void *)(to + rvk_act_off_d(w));
        for (size_t i = 0; i < c->d; i++) q[i] = scale[i / 32] * (float)((int8_t *)to)[i];
    }
    rv_free(wide);
    return out;
}

static void attend(const cache *c, const char *q, size_t n_q, size_t lo, float *acc, float *top,
                   float *sum) {
    memset(acc, 0, n_q * c->d * sizeof *acc);
    for (size_t h = 0; h < n_q; h++) top[h] = -INFINITY, sum[h] = 0;
    for (size_t p = lo / RVK_ATTN_BLOCK * RVK_ATTN_BLOCK; p < c->n; p += RVK_ATTN_BLOCK) {
        const void *runs[RUNS], *next[RUNS];
        const bool more = p + RVK_ATTN_BLOCK < c->n;
        for (size_t r = 0; r < RUNS; r++) {
            runs[r] = c->runs[p / RVK_ATTN_RUN + r];
            next[r] = c->runs[(p / RVK_ATTN_RUN + RUNS + r) % c->n_runs];
        }
        rvk.attn[c->type](q, n_q, c->d, runs, more ? next : NULL, lo > p ? lo - p : 0,
                          RV_MIN(c->n - p, (size_t)RVK_ATTN_BLOCK), top, sum, acc);
    }
}

static void check_cache(int type, size_t d, size_t lo, size_t n, size_t n_q) {
    cache c = fill(type, d, n, false), apart = fill(type, d, n, true);
    float *q = noise(n_q * d, d, 2), *acc = noise(n_q * d, 0, 0), *top = noise(n_q, 0, 0);
    float *sum = noise(n_q, 0, 0), *one = noise(d, 0, 0), t1, s1;
    double *want = rv_malloc(d * sizeof *want);
    char *packed = pack(&c, q, n_q);
    attend(&c, packed, n_q, lo, acc, top, sum);
    for (size_t h = 0; h < n_q; h++) {
        const double bound = attend64(q + h * d, c.k, c.v, lo, n, d, d, want);
        for (size_t i = 0; i < d; i++) CHECK(fabs(acc[h * d + i] / sum[h] - want[i]) <= bound);
        attend(&c, packed + h * c.row, 1, lo, one, &t1, &s1);
        CHECK(memcmp(one, acc + h * d, d * sizeof *one) == 0 && s1 == sum[h] && t1 == top[h]);
    }
    attend(&apart, packed, 1, lo, one, &t1, &s1);
    CHECK(memcmp(one, acc, d * sizeof *one) == 0 && s1 == sum[0] && t1 == top[0]);
    rv_free(q), rv_free(acc), rv_free(top), rv_free(sum), rv_free(one), rv_free(want);
    rv_free(packed);
    drop(&c), drop(&apart);
}

static void cached_attention_matches_float64(void) {
    static const size_t SPANS[][2] = {{0, 1},  {0, 2},   {0, 15},   {0, 16},    {0, 17},  {0, 47},
                                      {0, 48}, {0, 49},  {0, 64},   {0, 65},    {0, 200}, {3, 5},
                                      {5, 64}, {17, 20}, {31, 128}, {130, 131}, {63, 190}};
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        for (size_t t = 0; t < RV_COUNT(TYPES); t++)
            for (size_t d = 0; d < RV_COUNT(DIMS); d++)
                for (size_t n = 0; n < RV_COUNT(SPANS); n++)
                    check_cache(TYPES[t], DIMS[d], SPANS[n][0], SPANS[n][1], 1 + (n + d) % 7);
    }
    rvk_init(RVK_ALL);
}

/* Codes are ggml's for each row; what has been stored before stays. */
static void cache_holds_what_the_types_round_to(void) {
    for (size_t t = 0; t < RV_COUNT(TYPES); t++) {
        enum { D = 96, N = RVK_ATTN_BLOCK };
        const int type = TYPES[t];
        const int keys = type == RVK_K8V4 ? RVK_Q8_0 : type;
        const int values = type == RVK_K8V4 ? RVK_Q4_0 : type;
        float *k = noise(N * D, 7, 3), *v = noise(N * D, 8, 3), gk[D], gv[D], want[D];
        const size_t bytes = rvk_attn_run_bytes(type, D);
        char *block = rv_alloc_aligned(N / RVK_ATTN_RUN * bytes);
        uint8_t raw[D * 4];
        CHECK(bytes == RVK_ATTN_RUN * (rvk_row_bytes(keys, D) + rvk_row_bytes(values, D)));
        for (size_t i = 0; i < N; i++) {
            const size_t p = i * 37 % N;
            rvk_attn_put(type, block + p / RVK_ATTN_RUN * bytes, p % RVK_ATTN_RUN, k + p * D,
                         v + p * D, D);
        }
        for (size_t p = 0; p < N; p++) {
            rvk_attn_get(type, block + p / RVK_ATTN_RUN * bytes, p % RVK_ATTN_RUN, gk, gv, D);
            rvk.quant[keys](raw, k + p * D, D);
            rvk.dequant[keys](want, raw, D);
            CHECK(memcmp(want, gk, sizeof gk) == 0);
            rvk.quant[values](raw, v + p * D, D);
            rvk.dequant[values](want, raw, D);
            CHECK(memcmp(want, gv, sizeof gv) == 0);
        }
        rv_free(k), rv_free(v), rv_free(block);
    }
    CHECK(rvk_attn_run_bytes(RVK_Q4_K, 256) == 0 && rvk_attn_run_bytes(-1, 32) == 0);
}

/* A head that does not fill its blocks takes the bytes of one that does and has zeros at its end,
 * whichever of the two sizes it is stored and read with. */
static void codes_fill_whole_blocks(void) {
    for (size_t t = 2; t < RV_COUNT(TYPES); t++) {
        for (size_t d = 1; d <= 160; d++) {
            enum { W = 160 };
            const int type = TYPES[t];
            const size_t w = rvk_attn_width(type, d), bytes = rvk_attn_run_bytes(type, d);
            float *k = noise(W, d, 2), *v = noise(W, d + 1, 2), gk[W], gv[W], ak[W], av[W];
            char *run = rv_calloc(2, bytes);
            CHECK(w % 32 == 0 && w - d < 32 && bytes == rvk_attn_run_bytes(type, w));
            rvk_attn_put(type, run, 7, k, v, d);
            for (size_t i = d; i < w; i++) k[i] = v[i] = 0;
            rvk_attn_put(type, run + bytes, 7, k, v, w);
            CHECK(memcmp(run, run + bytes, bytes) == 0);
            rvk_attn_get(type, run, 7, gk, gv, w);
            rvk_attn_get(type, run, 7, ak, av, d);
            CHECK(memcmp(gk, ak, d * 4) == 0 && memcmp(gv, av, d * 4) == 0);
            for (size_t i = d; i < w; i++) CHECK(gk[i] == 0 && gv[i] == 0);
            rv_free(k), rv_free(v), rv_free(run);
        }
    }
}

/* The largest codes there are, of both signs, do not overflow any of the integer sums. */
static void extreme_codes_are_summed_exactly(void) {
    enum { D = 64 };
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        for (size_t t = 2; t < RV_COUNT(TYPES); t++) {
            for (int signs = 0; signs < 4; signs++) {
                float q[D], k[D], v[D], acc[D] = {0}, top = -INFINITY, sum = 0;
                for (int i = 0; i < D; i++) {
                    q[i] = signs & 1 ? -1.0f : 1.0f;
                    k[i] = signs & 2 ? -1.0f : 1.0f;
                    v[i] = (float)i;
                }
                cache c = {.type = TYPES[t], .d = D, .row = row_bytes(TYPES[t], D)};
                char *run = rv_calloc(1, rvk_attn_run_bytes(c.type, D));
                const void *runs[] = {run, run, run, run};
                rvk_attn_put(c.type, run, 0, k, v, D);
                rvk_attn_get(c.type, run, 0, k, v, D);
                char *packed = pack(&c, q, 1);
                rvk.attn[c.type](packed, 1, D, runs, runs, 0, 1, &top, &sum, acc);
                double want = 0;
                for (int i = 0; i < D; i++) want += (double)q[i] * k[i];
                CHECK(fabs(top - want) <= 64 * 0x1p-23 * D && sum == 1.0f);
                for (int i = 0; i < D; i++) CHECK(acc[i] == v[i]);
                rv_free(run), rv_free(packed);
            }
        }
    }
    rvk_init(RVK_ALL);
}

/* A NaN in a query or in a key it sees reaches the result. */
static void nan_is_not_lost(void) {
    enum { D = 32, N = 20 };
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        for (size_t t = 0; t < RV_COUNT(TYPES); t++) {
            cache c = fill(TYPES[t], D, N, true);
            float *q = noise(2 * D, 3, 1), acc[2 * D], top[2], sum[2];
            q[D + 5] = NAN;
            char *packed = pack(&c, q, 2);
            attend(&c, packed, 2, 0, acc, top, sum);
            CHECK(isfinite(acc[0] / sum[0]) && isnan(acc[D] / sum[1]));
            for (int value = 0; value < 2; value++) {
                float k[D] = {0}, v[D] = {0};
                (value ? v : k)[31] = value ? -INFINITY : NAN;
                rvk_attn_put(c.type, c.runs[1], 1, k, v, D);
                attend(&c, packed, 1, 0, acc, top, sum);
                CHECK(!isfinite(acc[31] / sum[0]));
                attend(&c, packed, 1, 18, acc, top, sum);
                CHECK(isfinite(acc[31] / sum[0]));
            }
            rv_free(q), rv_free(packed);
            drop(&c);
        }
    }
    rvk_init(RVK_ALL);
}

static void check_rows(size_t n_q, size_t d, size_t n) {
    const size_t row = d + 3;
    float *q = noise(n_q * d, d, 1), *k = noise(n * row, d + 1, 1), *v = noise(n * row, d + 2, 1);
    float *acc = noise(n_q * d, 0, 0), *top = noise(n_q, 0, 0), *sum = noise(n_q, 0, 0);
    float *one = noise(d, 0, 0), t1 = -INFINITY, s1 = 0;
    double *want = rv_malloc(d * sizeof *want);
    const size_t last = n_q - 1;
    for (size_t h = 0; h < n_q; h++) top[h] = -INFINITY;
    for (size_t p = 0; p < n; p += RVK_ATTN_ROWS) {
        const size_t m = RV_MIN(n - p, (size_t)RVK_ATTN_ROWS);
        rvk.attn_rows(q, n_q, d, k + p * row, v + p * row, row * 4, m, top, sum, acc);
        rvk.attn_rows(q + last * d, 1, d, k + p * row, v + p * row, row * 4, m, &t1, &s1, one);
    }
    for (size_t h = 0; h < n_q; h++) {
        const double bound = attend64(q + h * d, k, v, 0, n, d, row, want);
        for (size_t i = 0; i < d; i++) CHECK(fabs(acc[h * d + i] / sum[h] - want[i]) <= bound);
    }
    CHECK(memcmp(one, acc + last * d, d * 4) == 0 && s1 == sum[last] && t1 == top[last]);
    rv_free(q), rv_free(k), rv_free(v), rv_free(acc), rv_free(top), rv_free(sum), rv_free(one);
    rv_free(want);
}

static void attention_to_rows_matches_float64(void) {
    static const size_t LENGTHS[] = {1, 2, 15, 16, 17, 33, 200};
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        for (size_t d = 0; d < RV_COUNT(DIMS); d++)
            for (size_t n = 0; n < RV_COUNT(LENGTHS); n++)
                check_rows(n == 4 ? 70 : 3, DIMS[d], LENGTHS[n]);
    }
    rvk_init(RVK_ALL);
}

/* Against the matrix, in float64: sign (-1)^popcount(i & j); twice is the identity; rows keep their
 * products; what lies between rows stays. */
static void hadamard_is_orthonormal(void) {
    for (size_t d = 1; d <= 1024; d *= 2) {
        const size_t ld = d + 3;
        float *x = noise(3 * ld, d, 2), *y = noise(3 * ld, d, 2), *one = noise(d, 0, 0);
        double dot = 0, after = 0, size = 0;
        rvk_hadamard(y, 3, ld, d);
        memcpy(one, x + ld, d * sizeof *one);
        rvk_hadamard(one, 1, d, d);
        CHECK(memcmp(one, y + ld, d * sizeof *one) == 0);
        CHECK(memcmp(x + d, y + d, 3 * sizeof *x) == 0);
        for (size_t r = 0; r < 3; r++) {
            for (size_t i = 0; i < d; i++) {
                double want = 0, terms = 0;
                for (size_t j = 0; j < d; j++) {
                    want += __builtin_parityll(i & j) ? -(double)x[r * ld + j] : x[r * ld + j];
                    terms += fabs(x[r * ld + j]);
                }
                CHECK(fabs(y[r * ld + i] - want / sqrt((double)d)) <=
                      12 * 0x1p-24 * terms / sqrt((double)d));
            }
        }
        for (size_t i = 0; i < d; i++) {
            dot += (double)x[i] * x[ld + i];
            after += (double)y[i] * y[ld + i];
            size += fabs((double)x[i] * x[ld + i]);
        }
        CHECK(fabs(dot - after) <= 1e-5 * size);
        rvk_hadamard(y, 3, ld, d);
        for (size_t i = 0; i < d; i++) CHECK(fabs(y[i] - (double)x[i]) <= 1e-5);
        rv_free(x), rv_free(y), rv_free(one);
    }
    float outlier[64] = {[17] = 8};
    rvk_hadamard(outlier, 1, 64, 64);
    for (int i = 0; i < 64; i++) CHECK(fabsf(outlier[i]) == 1.0f);
}

/* Rows of other sizes are transformed in parts of the largest power of two that divides them. */
static void hadamard_goes_by_parts(void) {
    static const size_t SIZES[][2] = {{3, 1}, {28, 4}, {80, 16}, {96, 32}, {160, 32}, {576, 64}};
    for (size_t s = 0; s < RV_COUNT(SIZES); s++) {
        const size_t d = SIZES[s][0], part = SIZES[s][1];
        float *whole = noise(d, s, 1), *parts = noise(d, s, 1);
        rvk_hadamard(whole, 1, d, d);
        rvk_hadamard(parts, d / part, part, part);
        CHECK(memcmp(whole, parts, d * sizeof *whole) == 0);
        rv_free(whole), rv_free(parts);
    }
}

const rv_test tests_attn[] = {
    {"cached_attention_matches_float64", cached_attention_matches_float64},
    {"cache_holds_what_the_types_round_to", cache_holds_what_the_types_round_to},
    {"codes_fill_whole_blocks", codes_fill_whole_blocks},
    {"extreme_codes_are_summed_exactly", extreme_codes_are_summed_exactly},
    {"nan_is_not_lost", nan_is_not_lost},
    {"attention_to_rows_matches_float64", attention_to_rows_matches_float64},
    {"hadamard_is_orthonormal", hadamard_is_orthonormal},
    {"hadamard_goes_by_parts", hadamard_goes_by_parts},
    {NULL, NULL},
};
