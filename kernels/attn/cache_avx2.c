/* Attention against a block of the cache with AVX2: as cache_avx512.h with eight positions to a
 * register and two queries at a time. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "attn/attn.h"
#include "exp_avx2.h"

enum { MAX_Q = 2, HALVES = 4 }; /* registers of scores per query that are summed up together */

RVK_INLINE __m128i load128(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
RVK_INLINE __m256i load256(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

/* Half h of two runs: eight positions' keys at element `at` (bytes) of their run. */
RVK_INLINE const uint8_t *half_of(const uint8_t *const *runs, int h, size_t at, size_t half) {
    return runs[h / 2] + at + (size_t)(h % 2) * half;
}

/* Position p of the block: its row of bytes in the rows that start `at` bytes into a run. */
RVK_INLINE const uint8_t *row_of(const uint8_t *const *runs, size_t p, size_t at, size_t bytes) {
    return runs[p / RVK_ATTN_RUN] + at + p % RVK_ATTN_RUN * bytes;
}

/* ---- scores: s[h][..] of NQ queries against N halves ---- */

RVK_INLINE void score_float(const int type, const int NQ, const int N, __m256 s[MAX_Q][HALVES],
                            const uint8_t *const *q, const uint8_t *const *runs, size_t d,
                            rvk_attn_ahead *ahead) {
    const size_t half = type == RVK_F32 ? 32 : 16;
    for (size_t i = 0; i < d; i++) {
        __m256 key[HALVES];
        rvk_attn_fetch(ahead, type == RVK_F32 ? 2 : 1);
        RVK_UNROLL
        for (int r = 0; r < N; r++) {
            const uint8_t *k = half_of(runs, r, 2 * half * i, half);
            key[r] = type == RVK_F32 ? _mm256_loadu_ps((const float *)(const void *)k)
                                     : _mm256_cvtph_ps(load128(k));
        }
        RVK_UNROLL
        for (int h = 0; h < NQ; h++) {
            const __m256 x = _mm256_broadcast_ss((const float *)(const void *)q[h] + i);
            RVK_UNROLL
            for (int r = 0; r < N; r++) s[h][r] = _mm256_fmadd_ps(x, key[r], s[h][r]);
        }
    }
}

RVK_INLINE __m256i four(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}

/* The exact sums of 32 dimensions in eight positions.  Codes of Q8_0 lose their 128 and lend their
 * sign to the query, as |code * q| <= 127^2 twice fits 16 bits; eight products of nibbles fit
 * together and their 8 is taken off by the sum of the query. */
RVK_INLINE __m256i sum32(const int type, const uint8_t *q, const uint8_t *k, int q_sum) {
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    const size_t n = type == RVK_Q8_0 ? 8 : 4;
    __m256i a = _mm256_setzero_si256();
    RVK_UNROLL
    for (size_t g = 0; g < n; g++) {
        const __m256i key = load256(k + 64 * g), x = four(q + 4 * g);
        if (type == RVK_Q8_0) {
            const __m256i code = _mm256_xor_si256(key, _mm256_set1_epi8((char)-128));
            const __m256i pairs =
                _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(code, x));
            a = _mm256_add_epi32(a, _mm256_madd_epi16(pairs, ones));
        } else {
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(key, 4), low);
            a = _mm256_add_epi16(a, _mm256_maddubs_epi16(_mm256_and_si256(key, low), x));
            a = _mm256_add_epi16(a, _mm256_maddubs_epi16(high, four(q + 16 + 4 * g)));
        }
    }
    if (type == RVK_Q8_0) return a;
    return _mm256_sub_epi32(_mm256_madd_epi16(a, ones), _mm256_set1_epi32(8 * q_sum));
}

RVK_INLINE void score_codes(const int type, const int NQ, const int N, __m256 s[MAX_Q][HALVES],
                            const uint8_t *const *q, const uint8_t *const *runs, size_t d) {
    const int keys = rvk_attn_key_type(type);
    const size_t w = rvk_attn_width(type, d), step = keys == RVK_Q8_0 ? 512 : 256;
    const size_t at = rvk_attn_off_key_scales(type, d);
    for (size_t b = 0; b < w / RVK_QK; b++) {
        RVK_UNROLL
        for (int r = 0; r < N; r++) {
            const uint8_t *scales = half_of(runs, r, at + RVK_QK * b, 16);
            const __m256 scale = _mm256_cvtph_ps(load128(scales));
            RVK_UNROLL
            for (int h = 0; h < NQ; h++) {
                int16_t sum[2];
                float dq;
                memcpy(sum, q[h] + rvk_act_off_bsum(w) + sizeof sum * b, sizeof sum);
                memcpy(&dq, q[h] + rvk_act_off_d(w) + sizeof dq * b, sizeof dq);
                const __m256i isum =
                    sum32(keys, q[h] + RVK_QK * b, half_of(runs, r, step * b, 32), sum[0] + sum[1]);
                s[h][r] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(isum), scale),
                                          _mm256_set1_ps(dq), s[h][r]);
            }
        }
    }
}

/* Runs r .. r + N / 2 - 1 of the block. */
RVK_INLINE void score(const int type, const int NQ, const int N, float w[MAX_Q][RVK_ATTN_BLOCK],
                      size_t r, const uint8_t *const *q, const uint8_t *const *runs, size_t d,
                      rvk_attn_ahead *ahead) {
    __m256 s[MAX_Q][HALVES];
    RVK_UNROLL
    for (int h = 0; h < NQ; h++) {
        RVK_UNROLL
        for (int i = 0; i < N; i++) s[h][i] = _mm256_setzero_ps();
    }
    if (type == RVK_F32 || type == RVK_F16)
        score_float(type, NQ, N, s, q, runs + r, d, ahead);
    else
        score_codes(type, NQ, N, s, q, runs + r, d);
    RVK_UNROLL
    for (int h = 0; h < NQ; h++) {
        RVK_UNROLL
        for (int i = 0; i < N; i++) _mm256_store_ps(w[h] + 16 * r + 8 * (size_t)i, s[h][i]);
    }
}

/* ---- softmax ---- */

static float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* w: scores at lo .. hi - 1, then their weights, 0 elsewhere; the factor for what was before. */
static float soften(float *w, size_t lo, size_t hi, float *st_max, float *st_sum) {
    const float old = *st_max;
    float top = old;
    for (size_t p = 0; p < RVK_ATTN_BLOCK; p++) {
        if (p < lo || p >= hi) w[p] = -INFINITY;
        if (w[p] > top) top = w[p];
    }
    __m256 sum = _mm256_setzero_ps();
    for (size_t p = 0; p < RVK_ATTN_BLOCK; p += 8) {
        const __m256 e = rvk_exp8(_mm256_sub_ps(_mm256_load_ps(w + p), _mm256_set1_ps(top)));
        _mm256_store_ps(w + p, e);
        sum = _mm256_add_ps(sum, e);
    }
    const float keep = old == top ? 1.0f : old == -INFINITY ? 0.0f : expf(old - top);
    *st_sum = *st_sum * keep + sum8(sum);
    *st_max = top;
    return keep;
}

/* ---- values ---- */

RVK_INLINE __m256 i8_floats(__m128i v) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
}

/* NV registers from dimension i on. */
RVK_INLINE void load_values(const int type, const int NV, __m256 *v, const uint8_t *row, size_t i) {
    if (type == RVK_Q4_0) {
        const __m128i b = load128(row + i / 2), low = _mm_set1_epi8(15), mid = _mm_set1_epi8(8);
        const __m128i x = _mm_sub_epi8(_mm_and_si128(b, low), mid);
        const __m128i y = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(b, 4), low), mid);
        v[0] = i8_floats(x), v[1] = i8_floats(_mm_srli_si128(x, 8));
        v[2] = i8_floats(y), v[3] = i8_floats(_mm_srli_si128(y, 8));
        return;
    }
    RVK_UNROLL
    for (int j = 0; j < NV; j++) {
        const size_t at = i + 8 * (size_t)j;
        if (type == RVK_F32)
            v[j] = _mm256_loadu_ps((const float *)(const void *)(row + 4 * at));
        else if (type == RVK_F16)
            v[j] = _mm256_cvtph_ps(load128(row + 2 * at));
        else
            v[j] = i8_floats(_mm_loadl_epi64((const __m128i *)(const void *)(row + at)));
    }
}

/* acc = acc * keep + w . values, for dimensions i .. i + 8 NV - 1; acc: of the first query's
 * dimension i, those of the others ld floats apart. */
RVK_INLINE void weigh(const int type, const int NQ, const int NV, float *acc, size_t ld,
                      float w[MAX_Q][RVK_ATTN_BLOCK], const float *keep, const uint8_t *const *runs,
                      size_t lo, size_t hi, size_t d, size_t i, rvk_attn_ahead *ahead) {
    const int values = rvk_attn_value_type(type);
    const size_t row = rvk_attn_row_bytes(type, d), at = rvk_attn_off_values(type, d);
    __m256 a[MAX_Q][4];
    RVK_UNROLL
    for (int h = 0; h < NQ; h++) {
        RVK_UNROLL
        for (int j = 0; j < NV; j++)
            a[h][j] = _mm256_mul_ps(_mm256_loadu_ps(acc + (size_t)h * ld + 8 * (size_t)j),
                                    _mm256_set1_ps(keep[h]));
    }
    for (size_t p = lo; p < hi; p++) {
        __m256 v[4];
        rvk_attn_fetch(ahead, values == RVK_F32 || values == RVK_Q8_0 ? 2 : 1);
        load_values(values, NV, v, row_of(runs, p, at, row), i);
        RVK_UNROLL
        for (int h = 0; h < NQ; h++) {
            RVK_UNROLL
            for (int j = 0; j < NV; j++)
                a[h][j] = _mm256_fmadd_ps(v[j], _mm256_broadcast_ss(w[h] + p), a[h][j]);
        }
    }
    RVK_UNROLL
    for (int h = 0; h < NQ; h++) {
        RVK_UNROLL
        for (int j = 0; j < NV; j++)
            _mm256_storeu_ps(acc + (size_t)h * ld + 8 * (size_t)j, a[h][j]);
    }
}

/* The last dimensions of a row of floats that does not end with a register. */
static void weigh_tail(int type, float *acc, const float *w, float keep, const uint8_t *const *runs,
                       size_t lo, size_t hi, size_t d, size_t i) {
    const size_t row = rvk_attn_row_bytes(type, d), off = rvk_attn_off_values(type, d);
    for (; i < d; i++) {
        float a = acc[i] * keep;
        for (size_t p = lo; p < hi; p++) {
            const uint8_t *at = row_of(runs, p, off, row);
            if (type == RVK_F32) {
                float x;
                memcpy(&x, at + 4 * i, 4);
                a = fmaf(w[p], x, a);
            } else {
                uint16_t half;
                memcpy(&half, at + 2 * i, 2);
                a = fmaf(w[p], _cvtsh_ss(half), a);
            }
        }
        acc[i] = a;
    }
}

/* out = w * scales of 32 dimensions, `at` bytes into the runs, per position. */
static void scale_weights(float *out, const float *w, const uint8_t *const *runs, size_t at) {
    for (size_t p = 0; p < RVK_ATTN_BLOCK; p += 8) {
        const __m256 s = _mm256_cvtph_ps(load128(row_of(runs, p, at, 2)));
        _mm256_store_ps(out + p, _mm256_mul_ps(s, _mm256_load_ps(w + p)));
    }
}

/* The dimensions of a row of codes behind its last full block, which has zeros there. */
RVK_INLINE void weigh_part(const int type, const int NQ, float *acc, float w[MAX_Q][RVK_ATTN_BLOCK],
                           const float *keep, const uint8_t *const *runs, size_t lo, size_t hi,
                           size_t d, size_t i, rvk_attn_ahead *ahead) {
    _Alignas(32) float part[MAX_Q][RVK_QK] = {{0}};
    const size_t bytes = (d - i) * sizeof *acc;
    for (int h = 0; h < NQ; h++) memcpy(part[h], acc + (size_t)h * d + i, bytes);
    weigh(type, NQ, 4, part[0], RVK_QK, w, keep, runs, lo, hi, d, i, ahead);
    for (int h = 0; h < NQ; h++) memcpy(acc + (size_t)h * d + i, part[h], bytes);
}

/* ---- the block ---- */

RVK_INLINE void queries(const int type, const int NQ, const uint8_t *const *q, size_t d,
                        const uint8_t *const *runs, const void *const *next, size_t lo, size_t hi,
                        float *st_max, float *st_sum, float *acc) {
    _Alignas(32) float w[MAX_Q][RVK_ATTN_BLOCK], ws[MAX_Q][RVK_ATTN_BLOCK];
    const bool scaled = rvk_attn_is_coded(type);
    const size_t scales = rvk_attn_off_value_scales(type, d);
    rvk_attn_ahead ahead = rvk_attn_ahead_of(next, rvk_attn_off_end(type, d));
    float keep[MAX_Q];
    size_t r = lo / RVK_ATTN_RUN, i = 0;
    for (; (r + 1) * RVK_ATTN_RUN < hi; r += 2) score(type, NQ, 4, w, r, q, runs, d, &ahead);
    for (; r * RVK_ATTN_RUN < hi; r++) score(type, NQ, 2, w, r, q, runs, d, &ahead);
    for (int h = 0; h < NQ; h++) keep[h] = soften(w[h], lo, hi, st_max + h, st_sum + h);
    for (; i + 32 <= d; i += 32) {
        for (int h = 0; scaled && h < NQ; h++) scale_weights(ws[h], w[h], runs, scales + i);
        weigh(type, NQ, 4, acc + i, d, scaled ? ws : w, keep, runs, lo, hi, d, i, &ahead);
    }
    if (scaled) {
        if (i == d) return;
        for (int h = 0; h < NQ; h++) scale_weights(ws[h], w[h], runs, scales + i);
        weigh_part(type, NQ, acc, ws, keep, runs, lo, hi, d, i, &ahead);
        return;
    }
    for (; i + 8 <= d; i += 8) weigh(type, NQ, 1, acc + i, d, w, keep, runs, lo, hi, d, i, &ahead);
    for (int h = 0; h < NQ; h++)
        weigh_tail(type, acc + (size_t)h * d, w[h], keep[h], runs, lo, hi, d, i);
}

RVK_INLINE void attn(const int type, size_t row, RVK_ATTN_ARGS) {
    const uint8_t *run[RVK_ATTN_BLOCK / RVK_ATTN_RUN];
    size_t h = 0;
    for (size_t r = 0; r < RVK_ATTN_BLOCK / RVK_ATTN_RUN; r++) run[r] = runs[r];
    for (; h + 2 <= n_q; h += 2) {
        const uint8_t *at[] = {(const uint8_t *)q + h * row, (const uint8_t *)q + (h + 1) * row};
        queries(type, 2, at, d, run, h ? NULL : next, lo, hi, st_max + h, st_sum + h, acc + h * d);
    }
    if (h < n_q) {
        const uint8_t *at = (const uint8_t *)q + h * row;
        queries(type, 1, &at, d, run, h ? NULL : next, lo, hi, st_max + h, st_sum + h, acc + h * d);
    }
}

#define ATTN(name, type, row)                                                                      \
    void rvk_attn_##name##_avx2(RVK_ATTN_ARGS) {                                                   \
        attn(type, row, q, n_q, d, runs, next, lo, hi, st_max, st_sum, acc);                       \
    }
ATTN(f32, RVK_F32, 4 * d)
ATTN(f16, RVK_F16, 4 * d)
ATTN(q8_0, RVK_Q8_0, rvk_act_bytes(rvk_attn_width(RVK_Q8_0, d)))
ATTN(q4_0, RVK_Q4_0, rvk_act_bytes(rvk_attn_width(RVK_Q4_0, d)))
ATTN(k8v4, RVK_K8V4, rvk_act_bytes(rvk_attn_width(RVK_K8V4, d)))
