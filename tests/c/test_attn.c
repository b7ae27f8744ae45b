/* Attention: every ISA level the machine has against float64 over what is stored, awkward sizes,
 * and the same bits whatever the other queries of a call are.  Then whole sequences through the
 * cache: windows, segments, chunks and threads. */
#include <math.h>

#include "model/net.h"
#include "rvk.h"
#include "test.h"

static const unsigned LEVELS[] = {0, RVK_AVX2, RVK_AVX2 | RVK_AVX512, RVK_ALL};
static const int TYPES[] = {RVK_F32, RVK_F16, RVK_Q8_0, RVK_Q4_0};
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

typedef struct cache {
    int type;
    size_t d, n, block_bytes, row; /* row: bytes of a query */
    char *blocks;
    float *k, *v; /* [n][d] as stored */
} cache;

static cache fill(int type, size_t d, size_t n) {
    cache c = {.type = type, .d = d, .n = n};
    c.block_bytes = RVK_ATTN_BLOCK / RVK_ATTN_RUN * rvk_attn_run_bytes(type, d);
    const size_t blocks = (n + RVK_ATTN_BLOCK - 1) / RVK_ATTN_BLOCK;
    c.blocks = rv_alloc_aligned(blocks * c.block_bytes);
    c.k = noise(n * d, d + 1, 1), c.v = noise(n * d, d + 2, 1);
    memset(c.blocks, 0xff, blocks * c.block_bytes); /* NaN where nothing is */
    for (size_t p = 0; p < n; p++) {
        char *at = c.blocks + p / RVK_ATTN_BLOCK * c.block_bytes;
        rvk_attn_put(type, at, p % RVK_ATTN_BLOCK, c.k + p * d, c.v + p * d, d);
        rvk_attn_get(type, at, p % RVK_ATTN_BLOCK, c.k + p * d, c.v + p * d, d);
    }
    c.row = type == RVK_Q8_0 || type == RVK_Q4_0 ? rvk_act_bytes(d) : d * sizeof(float);
    return c;
}

static void drop(cache *c) {
    rv_free(c->blocks), rv_free(c->k), rv_free(c->v);
}

/* Queries as the kernel wants them; q becomes what they stand for. */
static char *pack(const cache *c, float *q, size_t n_q) {
    char *out = rv_alloc_aligned(n_q * c->row);
    for (size_t h = 0; h < n_q; h++, q += c->d) {
        char *to = out + h * c->row;
        memcpy(to, q, c->row == c->d * sizeof *q ? c->row : 0);
        if (c->row == c->d * sizeof *q) continue;
        rvk.act_pack(to, q, c->d);
        const float *scale = (const float *)(const void *)(to + rvk_act_off_d(c->d));
        for (size_t i = 0; i < c->d; i++) q[i] = scale[i / 32] * (float)((int8_t *)to)[i];
    }
    return out;
}

static void attend(const cache *c, const char *q, size_t n_q, size_t lo, float *acc, float *top,
                   float *sum) {
    memset(acc, 0, n_q * c->d * sizeof *acc);
    for (size_t h = 0; h < n_q; h++) top[h] = -INFINITY, sum[h] = 0;
    for (size_t p = lo / RVK_ATTN_BLOCK * RVK_ATTN_BLOCK; p < c->n; p += RVK_ATTN_BLOCK)
        rvk.attn[c->type](q, n_q, c->d, c->blocks + p / RVK_ATTN_BLOCK * c->block_bytes, NULL,
                          lo > p ? lo - p : 0, RV_MIN(c->n - p, (size_t)RVK_ATTN_BLOCK), top, sum,
                          acc);
}

static void check_cache(int type, size_t d, size_t lo, size_t n, size_t n_q) {
    cache c = fill(type, d, n);
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
    rv_free(q), rv_free(acc), rv_free(top), rv_free(sum), rv_free(one), rv_free(want);
    rv_free(packed);
    drop(&c);
}

static void cached_attention_matches_float64(void) {
    static const size_t SPANS[][2] = {{0, 1},  {0, 2},   {0, 15},   {0, 16},    {0, 17},  {0, 47},
                                      {0, 48}, {0, 49},  {0, 64},   {0, 65},    {0, 200}, {3, 5},
                                      {5, 64}, {17, 20}, {31, 128}, {130, 131}, {63, 190}};
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        for (size_t t = 0; t < RV_COUNT(TYPES); t++)
            for (size_t d = 0; d < RV_COUNT(DIMS); d++)
                for (size_t n = 0; n < RV_COUNT(SPANS) && rvk_attn_run_bytes(TYPES[t], DIMS[d]);
                     n++)
                    check_cache(TYPES[t], DIMS[d], SPANS[n][0], SPANS[n][1], 1 + (n + d) % 7);
    }
    rvk_init(RVK_ALL);
}

/* Codes are ggml's for each row; what has been stored before stays. */
static void cache_holds_what_the_types_round_to(void) {
    for (size_t t = 0; t < RV_COUNT(TYPES); t++) {
        enum { D = 96, N = RVK_ATTN_BLOCK };
        const int type = TYPES[t];
        float *k = noise(N * D, 7, 3), *v = noise(N * D, 8, 3), gk[D], gv[D], want[D];
        char *block = rv_alloc_aligned(N / RVK_ATTN_RUN * rvk_attn_run_bytes(type, D));
        uint8_t raw[D * 4];
        CHECK(rvk_attn_run_bytes(type, D) == 2 * RVK_ATTN_RUN * rvk_row_bytes(type, D));
        for (size_t p = 0; p < N; p++)
            rvk_attn_put(type, block, p * 37 % N, k + p * 37 % N * D, v + p * 37 % N * D, D);
        for (size_t p = 0; p < N; p++) {
            rvk_attn_get(type, block, p, gk, gv, D);
            rvk.quant[type](raw, k + p * D, D);
            rvk.dequant[type](want, raw, D);
            CHECK(memcmp(want, gk, sizeof gk) == 0);
            rvk.quant[type](raw, v + p * D, D);
            rvk.dequant[type](want, raw, D);
            CHECK(memcmp(want, gv, sizeof gv) == 0);
        }
        rv_free(k), rv_free(v), rv_free(block);
    }
    CHECK(rvk_attn_run_bytes(RVK_Q8_0, 48) == 0 && rvk_attn_run_bytes(RVK_Q4_K, 256) == 0);
    CHECK(rvk_attn_run_bytes(-1, 32) == 0);
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
                cache c = {.type = TYPES[t], .d = D, .row = rvk_act_bytes(D)};
                char *block = rv_calloc(4, rvk_attn_run_bytes(c.type, D));
                rvk_attn_put(c.type, block, 0, k, v, D);
                rvk_attn_get(c.type, block, 0, k, v, D);
                char *packed = pack(&c, q, 1);
                rvk.attn[c.type](packed, 1, D, block, block, 0, 1, &top, &sum, acc);
                double want = 0;
                for (int i = 0; i < D; i++) want += (double)q[i] * k[i];
                CHECK(fabs(top - want) <= 64 * 0x1p-23 * D && sum == 1.0f);
                for (int i = 0; i < D; i++) CHECK(acc[i] == v[i]);
                rv_free(block), rv_free(packed);
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
            cache c = fill(TYPES[t], D, N);
            float *q = noise(2 * D, 3, 1), acc[2 * D], top[2], sum[2];
            q[D + 5] = NAN;
            char *packed = pack(&c, q, 2);
            attend(&c, packed, 2, 0, acc, top, sum);
            CHECK(isfinite(acc[0] / sum[0]) && isnan(acc[D] / sum[1]));
            for (int value = 0; value < 2; value++) {
                float k[D] = {0}, v[D] = {0};
                (value ? v : k)[31] = value ? -INFINITY : NAN;
                rvk_attn_put(c.type, c.blocks, 17, k, v, D);
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

/* ---- sequences ---- */

typedef struct seq {
    rv_kv_type type;
    int32_t n_head, n_head_kv, d, n_swa;
    size_t n;
} seq;

/* Results [n][n_head][d] of a sequence in chunks; kv stays for the caller. */
static float *run_seq(const seq *s, size_t chunk, int n_threads, bool no_memory, rv_kv **kv) {
    const size_t d = (size_t)s->d, q = (size_t)s->n_head * d, k = (size_t)s->n_head_kv * d;
    rv_layer layer = {.n_head_kv = s->n_head_kv};
    const rv_net net = {.n_embd = 1,
                        .n_layer = 1,
                        .n_head = s->n_head,
                        .head_dim = s->d,
                        .n_ff = 1,
                        .max_head_kv = s->n_head_kv,
                        .attn_scale = 0.5f,
                        .layers = &layer};
    float *xq = noise(s->n * q, 1, 1), *xk = noise(s->n * k, 2, 1), *xv = noise(s->n * k, 3, 1);
    float *out = noise(s->n * q, 0, 0);
    rv_pool *pool;
    rv_run *r;
    CHECK(rv_pool_new(&pool, n_threads, NULL) == RV_OK);
    CHECK(rv_run_new(&r, &net, pool, NULL) == RV_OK);
    CHECK(rv_run_reserve(r, chunk, NULL) == RV_OK);
    CHECK(rv_kv_new(kv, 1, &s->n_head_kv, d, s->type, NULL) == RV_OK);
    CHECK(rv_kv_reserve(*kv, s->n, NULL) == RV_OK);
    for (size_t p = 0; p < s->n; p += chunk) {
        const size_t m = RV_MIN(chunk, s->n - p);
        memcpy(r->q, xq + p * q, m * q * 4);
        memcpy(r->k, xk + p * k, m * k * 4);
        memcpy(r->v, xv + p * k, m * k * 4);
        rv_run_store_kv(r, *kv, 0, (size_t)s->n_head_kv, p, m);
        const rv_attn_task t = {.n_head = (size_t)s->n_head,
                                .n_head_kv = (size_t)s->n_head_kv,
                                .head_dim = d,
                                .n = m,
                                .pos = p,
                                .n_swa = (size_t)s->n_swa,
                                .kv = *kv};
        if (no_memory) rv_test_fail_alloc_at(0);
        rv_run_attention(r, &t);
        rv_test_fail_alloc_at(-1);
        memcpy(out + p * q, r->att, m * q * 4);
    }
    rv_run_free(&r);
    rv_pool_free(&pool);
    rv_free(xq), rv_free(xk), rv_free(xv);
    return out;
}

/* What one key head holds, [n][d] each. */
static void read_back(const seq *s, const rv_kv *kv, size_t g, float *k, float *v) {
    const size_t d = (size_t)s->d;
    for (size_t p = 0; p < s->n; p++)
        rvk_attn_get(rv_kv_type_of(kv), rv_kv_block(kv, 0, g, p / RV_KV_BLOCK), p % RV_KV_BLOCK,
                     k + p * d, v + p * d, d);
}

static void check_seq(const seq *s) {
    static const size_t CHUNKS[] = {7, 1, 5, 64, 100, 128};
    static const int THREADS[] = {1, 3, 8, 2, 1, 4};
    const size_t d = (size_t)s->d, heads = (size_t)s->n_head, group = heads / (size_t)s->n_head_kv;
    rv_kv *kv, *other;
    float *out = run_seq(s, 16, 1, false, &kv), *xq = noise(s->n * heads * d, 1, 1);
    float *k = noise(s->n * d, 0, 0), *v = noise(s->n * d, 0, 0), *q = noise(d, 0, 0);
    double *want = rv_malloc(d * sizeof *want);
    cache c = {.type = rv_kv_type_of(kv), .d = d};
    c.row = s->type == RV_KV_Q8_0 || s->type == RV_KV_Q4_0 ? rvk_act_bytes(d) : d * sizeof *q;
    for (size_t h = 0; h < heads; h++) {
        read_back(s, kv, h / group, k, v);
        for (size_t p = 0; p < s->n; p += 1 + p / 40) {
            for (size_t i = 0; i < d; i++) q[i] = xq[(p * heads + h) * d + i] * 0.5f;
            rv_free(pack(&c, q, 1));
            const size_t swa = (size_t)s->n_swa, lo = swa && p + 1 > swa ? p + 1 - swa : 0;
            const double bound = attend64(q, k, v, lo, p + 1, d, d, want);
            for (size_t i = 0; i < d; i++)
                CHECK(fabs(out[(p * heads + h) * d + i] - want[i]) <= bound);
        }
    }
    for (size_t i = 0; i < RV_COUNT(CHUNKS); i++) {
        float *again = run_seq(s, CHUNKS[i], THREADS[i], false, &other);
        CHECK(memcmp(out, again, s->n * heads * d * sizeof *out) == 0);
        rv_free(again);
        rv_kv_free(&other);
    }
    rv_kv_free(&kv);
    rv_free(out), rv_free(xq), rv_free(k), rv_free(v), rv_free(q), rv_free(want);
}

static void sequences_match_float64_in_any_chunks(void) {
    static const seq SEQS[] = {
        {RV_KV_F32, 3, 1, 16, 0, 1100},     {RV_KV_F16, 4, 2, 48, 0, 700},
        {RV_KV_F16, 2, 1, 32, 37, 700},     {RV_KV_F16, 5, 1, 64, 600, 1300},
        {RV_KV_Q8_0, 4, 2, 32, 0, 600},     {RV_KV_Q8_0, 7, 1, 64, 90, 300},
        {RV_KV_Q4_0, 2, 1, 96, 0, 1030},    {RV_KV_Q4_0, 2, 2, 32, 1, 130},
        {RV_KV_Q8_0, 1, 1, 128, 513, 1100},
    };
    for (size_t i = 0; i < RV_COUNT(SEQS); i++) check_seq(&SEQS[i]);
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        const seq s = {l % 2 ? RV_KV_Q8_0 : RV_KV_Q4_0, 4, 2, 32, 0, 150};
        check_seq(&s);
    }
    rvk_init(RVK_ALL);
}

/* Without memory for the sums of segments they are not shared out, and nothing else changes. */
static void segments_need_no_memory(void) {
    const seq s = {RV_KV_F16, 2, 1, 32, 0, 1500};
    rv_kv *kv;
    float *want = run_seq(&s, 1, 8, false, &kv);
    rv_kv_free(&kv);
    float *got = run_seq(&s, 1, 8, true, &kv);
    CHECK(memcmp(want, got, s.n * 64 * sizeof *got) == 0);
    rv_kv_free(&kv);
    rv_free(got), rv_free(want);
}

static void bytes_are_counted_exactly(void) {
    static const struct {
        rv_kv_type type;
        size_t bytes; /* of one position: two layers of 3 and 1 heads of 64 */
    } CASES[] = {{RV_KV_F32, 2 * 4 * 64 * 4},
                 {RV_KV_F16, 2 * 4 * 64 * 2},
                 {RV_KV_Q8_0, 2 * 4 * 2 * 34},
                 {RV_KV_Q4_0, 2 * 4 * 2 * 18}};
    const int32_t heads[] = {3, 1};
    for (size_t i = 0; i < RV_COUNT(CASES); i++) {
        rv_kv *kv;
        CHECK(rv_kv_new(&kv, 2, heads, 64, CASES[i].type, NULL) == RV_OK);
        CHECK(rv_kv_bytes_per_token(kv) == CASES[i].bytes && rv_kv_bytes(kv) == 0);
        CHECK(4 * rv_kv_head_bytes(CASES[i].type, 64) == CASES[i].bytes);
        CHECK(rv_kv_reserve(kv, RV_KV_BLOCK + 1, NULL) == RV_OK);
        CHECK(rv_kv_bytes(kv) == 2 * RV_KV_BLOCK * CASES[i].bytes);
        rv_kv_free(&kv);
    }
    CHECK(rv_kv_head_bytes(RV_KV_Q8_0, 48) == 0 && rv_kv_kernel_type((rv_kv_type)9) < 0);
}

const rv_test tests_attn[] = {
    {"cached_attention_matches_float64", cached_attention_matches_float64},
    {"cache_holds_what_the_types_round_to", cache_holds_what_the_types_round_to},
    {"extreme_codes_are_summed_exactly", extreme_codes_are_summed_exactly},
    {"nan_is_not_lost", nan_is_not_lost},
    {"attention_to_rows_matches_float64", attention_to_rows_matches_float64},
    {"sequences_match_float64_in_any_chunks", sequences_match_float64_in_any_chunks},
    {"segments_need_no_memory", segments_need_no_memory},
    {"bytes_are_counted_exactly", bytes_are_counted_exactly},
    {NULL, NULL},
};
