/* Attention against a block of the cache with AVX-512, keys and values in F32 and F16. */
#include "attn/cache_avx512.h"

RVK_INLINE void score(const int type, const int NQ, const int R,
                      __m512 s[RVK_ATTN_Q][RVK_ATTN_RUNS], const uint8_t *const *q,
                      const uint8_t *const *runs, size_t d, rvk_attn_ahead *ahead) {
    const size_t step = type == RVK_F32 ? 64 : 32;
    RVK_UNROLL
    for (int h = 0; h < NQ; h++) {
        RVK_UNROLL
        for (int r = 0; r < R; r++) s[h][r] = _mm512_setzero_ps();
    }
    for (size_t i = 0; i < d; i++) {
        __m512 key[RVK_ATTN_RUNS];
        rvk_attn_fetch(ahead, type == RVK_F32 ? 4 : 2);
        RVK_UNROLL
        for (int r = 0; r < R; r++) {
            const uint8_t *k = runs[r] + i * step;
            key[r] = type == RVK_F32
                         ? _mm512_loadu_ps(k)
                         : _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)k));
        }
        RVK_UNROLL
        for (int h = 0; h < NQ; h++) {
            const __m512 x = _mm512_set1_ps(((const float *)(const void *)q[h])[i]);
            RVK_UNROLL
            for (int r = 0; r < R; r++) s[h][r] = _mm512_fmadd_ps(x, key[r], s[h][r]);
        }
    }
}

void rvk_attn_f32_avx512(RVK_ATTN_ARGS) {
    rvk_attn_block(score, RVK_F32, 4 * d, q, n_q, d, runs, next, lo, hi, st_max, st_sum, acc);
}

void rvk_attn_f16_avx512(RVK_ATTN_ARGS) {
    rvk_attn_block(score, RVK_F16, 4 * d, q, n_q, d, runs, next, lo, hi, st_max, st_sum, acc);
}
