/* Attention against a block of the cache with AVX-512 VNNI, keys and values in Q8_0, Q4_0 and both.
 *
 * Codes of keys are the unsigned side of vpdpbusd; what was added to make them so (minus) is taken
 * off in the integers by the sums of the query.  The scales of values go into the weights. */
#include <string.h>

#include "attn/cache_avx512.h"

RVK_INLINE __m512i load(const uint8_t *p) {
    return _mm512_loadu_si512(p);
}

/* Four codes of a query in every position. */
RVK_INLINE __m512i four(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}

/* The integer sums of 32 dimensions, whose keys are at bytes into the runs. */
RVK_INLINE void block32(const int type, const int NQ, const int R,
                        __m512i a[RVK_ATTN_Q][RVK_ATTN_RUNS], const uint8_t *const *q,
                        const uint8_t *const *runs, size_t at, rvk_attn_ahead *ahead) {
    const __m512i low = _mm512_set1_epi8(15);
    const size_t n = type == RVK_Q8_0 ? 8 : 4;
    RVK_UNROLL
    for (size_t g = 0; g < n; g++) {
        rvk_attn_fetch(ahead, 1);
        RVK_UNROLL
        for (int r = 0; r < R; r++) {
            const __m512i k = load(runs[r] + at + 64 * g);
            const __m512i first = type == RVK_Q8_0 ? k : _mm512_and_si512(k, low);
            const __m512i second = _mm512_and_si512(_mm512_srli_epi16(k, 4), low);
            RVK_UNROLL
            for (int h = 0; h < NQ; h++) {
                a[h][r] = _mm512_dpbusd_epi32(a[h][r], first, four(q[h] + 4 * g));
                if (type == RVK_Q4_0)
                    a[h][r] = _mm512_dpbusd_epi32(a[h][r], second, four(q[h] + 16 + 4 * g));
            }
        }
    }
}

/* As many runs at once as there are registers for. */
RVK_INLINE void score_runs(const int type, const int NQ, const int R, const int r0,
                           __m512 s[RVK_ATTN_Q][RVK_ATTN_RUNS], const uint8_t *const *q,
                           const uint8_t *const *runs, size_t d, rvk_attn_ahead *ahead) {
    const int keys = rvk_attn_key_type(type), minus = keys == RVK_Q8_0 ? 128 : 8;
    const size_t w = rvk_attn_width(type, d), step = keys == RVK_Q8_0 ? 512 : 256;
    const size_t scales = rvk_attn_off_key_scales(type, d);
    RVK_UNROLL
    for (int h = 0; h < NQ; h++) {
        RVK_UNROLL
        for (int r = 0; r < R; r++) s[h][r0 + r] = _mm512_setzero_ps();
    }
    runs += r0;
    for (size_t b = 0; b < w / RVK_QK; b++) {
        __m512i a[RVK_ATTN_Q][RVK_ATTN_RUNS];
        const uint8_t *at[RVK_ATTN_Q];
        RVK_UNROLL
        for (int h = 0; h < NQ; h++) {
            int16_t sum[2];
            memcpy(sum, q[h] + rvk_act_off_bsum(w) + sizeof sum * b, sizeof sum);
            at[h] = q[h] + RVK_QK * b;
            RVK_UNROLL
            for (int r = 0; r < R; r++) a[h][r] = _mm512_set1_epi32(-minus * (sum[0] + sum[1]));
        }
        block32(keys, NQ, R, a, at, runs, step * b, ahead);
        RVK_UNROLL
        for (int r = 0; r < R; r++) {
            const __m512 scale = _mm512_cvtph_ps(
                _mm256_loadu_si256((const __m256i *)(const void *)(runs[r] + scales + RVK_QK * b)));
            RVK_UNROLL
            for (int h = 0; h < NQ; h++) {
                float dq;
                memcpy(&dq, q[h] + rvk_act_off_d(w) + sizeof dq * b, sizeof dq);
                s[h][r0 + r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(a[h][r]), scale),
                                               _mm512_set1_ps(dq), s[h][r0 + r]);
            }
        }
    }
}

RVK_INLINE void score(const int type, const int NQ, const int R,
                      __m512 s[RVK_ATTN_Q][RVK_ATTN_RUNS], const uint8_t *const *q,
                      const uint8_t *const *runs, size_t d, rvk_attn_ahead *ahead) {
    const int at_once = NQ > 2 && R > 2 ? 2 : R;
    RVK_UNROLL
    for (int r = 0; r < R; r += at_once) score_runs(type, NQ, at_once, r, s, q, runs, d, ahead);
}

#define ATTN(name, type)                                                                           \
    void rvk_attn_##name##_vnni(RVK_ATTN_ARGS) {                                                   \
        rvk_attn_block(score, type, rvk_act_bytes(rvk_attn_width(type, d)), q, n_q, d, runs, next, \
                       lo, hi, st_max, st_sum, acc);                                               \
    }
ATTN(q8_0, RVK_Q8_0)
ATTN(q4_0, RVK_Q4_0)
ATTN(k8v4, RVK_K8V4)
