/* The frame of attention against a block of the cache with AVX-512, for every type.
 *
 * The idea: nothing is unpacked into memory.  A load of keys feeds the sums of sixteen positions
 * for up to four queries, the softmax of the block is four registers per query, and a load of
 * values feeds four queries again.  A query's scores are one chain of sums per position, its result
 * one chain per dimension in the order of the positions, whatever the number of queries and the
 * number of runs that are in registers together. */
#ifndef RVK_ATTN_CACHE_AVX512_H
#define RVK_ATTN_CACHE_AVX512_H

#include <immintrin.h>
#include <math.h>

#include "attn/attn.h"
#include "exp_avx512.h"

enum { RVK_ATTN_RUNS = RVK_ATTN_BLOCK / RVK_ATTN_RUN, RVK_ATTN_Q = 4 };

/* Scores of NQ queries against R runs. */
typedef void rvk_score_fn(int type, int NQ, int R, __m512 s[RVK_ATTN_Q][RVK_ATTN_RUNS],
                          const uint8_t *const *q, const uint8_t *const *runs, size_t d,
                          rvk_attn_ahead *ahead);

/* The lo .. hi - 1 of 64 that fall into run r. */
RVK_INLINE __mmask16 rvk_attn_seen(size_t lo, size_t hi, size_t r) {
    const uint64_t m = (~(uint64_t)0 << lo) & (~(uint64_t)0 >> (RVK_ATTN_BLOCK - hi));
    return (__mmask16)(m >> (16 * r));
}

/* The softmax of one query's scores into w, which is 0 where nothing is seen; returns the factor
 * for what was there before. */
RVK_INLINE float rvk_attn_soften(const __m512 s[RVK_ATTN_RUNS], size_t lo, size_t hi, float *w,
                                 float *st_max, float *st_sum) {
    __m512 x[RVK_ATTN_RUNS];
    RVK_UNROLL
    for (size_t r = 0; r < RVK_ATTN_RUNS; r++)
        x[r] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), rvk_attn_seen(lo, hi, r), s[r]);
    const float old = *st_max, most = _mm512_reduce_max_ps(_mm512_max_ps(
                                   _mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3])));
    const float top = most > old ? most : old;
    RVK_UNROLL
    for (size_t r = 0; r < RVK_ATTN_RUNS; r++) {
        x[r] = rvk_exp16(_mm512_sub_ps(s[r], _mm512_set1_ps(top)));
        x[r] = _mm512_maskz_mov_ps(rvk_attn_seen(lo, hi, r), x[r]);
        _mm512_store_ps(w + 16 * r, x[r]);
    }
    const float keep = old == top ? 1.0f : old == -INFINITY ? 0.0f : expf(old - top);
    *st_sum = *st_sum * keep + _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(x[0], x[1]),
                                                                  _mm512_add_ps(x[2], x[3])));
    *st_max = top;
    return keep;
}

/* NV registers of values from dimension i on of one position; the last one's lanes are those of
 * tail. */
RVK_INLINE void rvk_attn_values(const int type, const int NV, __m512 *v, const uint8_t *row,
                                size_t i, __mmask16 tail) {
    if (type == RVK_Q4_0) {
        const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        RVK_UNROLL
        for (int j = 0; j < NV; j += 2) {
            const __m512i b = _mm512_cvtepu8_epi32(
                _mm_loadu_si128((const __m128i *)(const void *)(row + i / 2 + 8 * (size_t)j)));
            v[j] = _mm512_permutexvar_ps(b, table);
            if (j + 1 < NV) v[j + 1] = _mm512_permutexvar_ps(_mm512_srli_epi32(b, 4), table);
        }
        return;
    }
    RVK_UNROLL
    for (int j = 0; j < NV; j++) {
        const size_t at = i + 16 * (size_t)j;
        const __mmask16 m = j == NV - 1 ? tail : 0xffff;
        if (type == RVK_F32)
            v[j] = _mm512_maskz_loadu_ps(m, row + 4 * at);
        else if (type == RVK_F16)
            v[j] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, row + 2 * at));
        else
            v[j] = _mm512_cvtepi32_ps(
                _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(row + at))));
    }
}

/* acc = acc * keep + w . values, for dimensions i .. i + 16 NV - 1.  w: per query and pair of
 * registers, one weight per position. */
RVK_INLINE void rvk_attn_weigh(const int type, const int NQ, const int NV, float *acc,
                               const float w[RVK_ATTN_Q][2][RVK_ATTN_BLOCK], const float *keep,
                               const uint8_t *const *runs, size_t lo, size_t hi, size_t d, size_t i,
                               rvk_attn_ahead *ahead) {
    const int values = rvk_attn_value_type(type);
    const size_t row = rvk_attn_row_bytes(type, d), at_values = rvk_attn_off_values(type, d);
    const size_t left = d - i - 16 * (size_t)(NV - 1);
    const __mmask16 tail = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    const bool scaled = rvk_attn_is_coded(type);
    __m512 a[RVK_ATTN_Q][4];
    RVK_UNROLL
    for (int h = 0; h < NQ; h++) {
        RVK_UNROLL
        for (int j = 0; j < NV; j++) {
            const float *at = acc + (size_t)h * d + i + 16 * (size_t)j;
            a[h][j] = _mm512_mul_ps(_mm512_maskz_loadu_ps(j == NV - 1 ? tail : 0xffff, at),
                                    _mm512_set1_ps(keep[h]));
        }
    }
    for (size_t p = lo; p < hi; p++) {
        __m512 v[4];
        rvk_attn_fetch(ahead, values == RVK_F32 ? 4 : values == RVK_Q4_0 ? 1 : 2);
        rvk_attn_values(values, NV, v, runs[p / RVK_ATTN_RUN] + at_values + p % RVK_ATTN_RUN * row,
                        i, tail);
        RVK_UNROLL
        for (int h = 0; h < NQ; h++) {
            RVK_UNROLL
            for (int j = 0; j < NV; j++)
                a[h][j] =
                    _mm512_fmadd_ps(v[j], _mm512_set1_ps(w[h][scaled ? j / 2 : 0][p]), a[h][j]);
        }
    }
    RVK_UNROLL
    for (int h = 0; h < NQ; h++) {
        RVK_UNROLL
        for (int j = 0; j < NV; j++)
            _mm512_mask_storeu_ps(acc + (size_t)h * d + i + 16 * (size_t)j,
                                  j == NV - 1 ? tail : 0xffff, a[h][j]);
    }
}

/* out = w * the scales of 32 dimensions, `at` bytes into the runs, per position.  Where a position
 * is not seen, w is 0 and its scale may be anything: what comes out is not read. */
RVK_INLINE void rvk_attn_scale(float *out, const float *w, const uint8_t *const *runs, size_t at) {
    RVK_UNROLL
    for (size_t r = 0; r < RVK_ATTN_RUNS; r++) {
        const __m256i raw = _mm256_loadu_si256((const __m256i *)(const void *)(runs[r] + at));
        _mm512_store_ps(out + 16 * r,
                        _mm512_mul_ps(_mm512_cvtph_ps(raw), _mm512_load_ps(w + 16 * r)));
    }
}

/* NQ queries, q[h] each, against a block. */
RVK_INLINE void rvk_attn_queries(rvk_score_fn score, const int type, const int NQ,
                                 const uint8_t *const *q, size_t d, const uint8_t *const *runs,
                                 const void *const *next, size_t lo, size_t hi, float *st_max,
                                 float *st_sum, float *acc) {
    _Alignas(64) float w[RVK_ATTN_Q][RVK_ATTN_BLOCK], ws[RVK_ATTN_Q][2][RVK_ATTN_BLOCK];
    const bool scaled = rvk_attn_is_coded(type);
    const size_t scales = rvk_attn_off_value_scales(type, d);
    rvk_attn_ahead ahead = rvk_attn_ahead_of(next, rvk_attn_off_end(type, d));
    float keep[RVK_ATTN_Q];
    __m512 s[RVK_ATTN_Q][RVK_ATTN_RUNS];
    if (lo < RVK_ATTN_RUN && hi > RVK_ATTN_BLOCK - RVK_ATTN_RUN) {
        score(type, NQ, RVK_ATTN_RUNS, s, q, runs, d, &ahead);
    } else {
        for (int h = 0; h < NQ; h++)
            for (int r = 0; r < RVK_ATTN_RUNS; r++) s[h][r] = _mm512_setzero_ps();
        for (size_t r = lo / RVK_ATTN_RUN; r * RVK_ATTN_RUN < hi; r++) {
            __m512 one[RVK_ATTN_Q][RVK_ATTN_RUNS];
            score(type, NQ, 1, one, q, runs + r, d, &ahead);
            for (int h = 0; h < NQ; h++) s[h][r] = one[h][0];
        }
    }
    RVK_UNROLL
    for (int h = 0; h < NQ; h++)
        keep[h] = rvk_attn_soften(s[h], lo, hi, scaled ? w[h] : ws[h][0], st_max + h, st_sum + h);
    size_t i = 0;
    for (; i + 64 <= d; i += 64) {
        for (int h = 0; scaled && h < NQ; h++)
            for (size_t b = 0; b < 2; b++)
                rvk_attn_scale(ws[h][b], w[h], runs, scales + i + 32 * b);
        rvk_attn_weigh(type, NQ, 4, acc, ws, keep, runs, lo, hi, d, i, &ahead);
    }
    for (; i + 32 <= d; i += 32) {
        for (int h = 0; scaled && h < NQ; h++) rvk_attn_scale(ws[h][0], w[h], runs, scales + i);
        rvk_attn_weigh(type, NQ, 2, acc, ws, keep, runs, lo, hi, d, i, &ahead);
    }
    if (scaled && i < d) {
        for (int h = 0; h < NQ; h++) rvk_attn_scale(ws[h][0], w[h], runs, scales + i);
        if (d - i > 16)
            rvk_attn_weigh(type, NQ, 2, acc, ws, keep, runs, lo, hi, d, i, &ahead);
        else
            rvk_attn_weigh(type, NQ, 1, acc, ws, keep, runs, lo, hi, d, i, &ahead);
    }
    for (; !scaled && i < d; i += 16)
        rvk_attn_weigh(type, NQ, 1, acc, ws, keep, runs, lo, hi, d, i, &ahead);
}

/* The function of the table.  row: bytes of a query. */
RVK_INLINE void rvk_attn_block(rvk_score_fn score, const int type, size_t row, RVK_ATTN_ARGS) {
#define RVK_ATTN_CASE(NQ)                                                                          \
    rvk_attn_queries(score, type, NQ, at, d, run, h ? NULL : next, lo, hi, st_max + h, st_sum + h, \
                     acc + h * d)
    const uint8_t *run[RVK_ATTN_RUNS];
    for (size_t r = 0; r < RVK_ATTN_RUNS; r++) run[r] = runs[r];
    for (size_t h = 0; h < n_q; h += RVK_ATTN_Q) {
        const uint8_t *at[RVK_ATTN_Q];
        for (size_t i = 0; i < RVK_ATTN_Q; i++) at[i] = (const uint8_t *)q + (h + i) * row;
        switch (n_q - h) {
        case 1: RVK_ATTN_CASE(1); break;
        case 2: RVK_ATTN_CASE(2); break;
        case 3: RVK_ATTN_CASE(3); break;
        default: RVK_ATTN_CASE(4);
        }
    }
#undef RVK_ATTN_CASE
}

#endif
