/* act_pack with AVX2; the same bits as the oracle. */
#include <immintrin.h>

#include "quant/quant.h"

static float max8(__m256i v) { /* of bit patterns of magnitudes, which order as integers do */
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(m));
}

void rvk_act_pack_avx2(void *dst, const float *x, size_t k) {
    int8_t *q = dst;
    float *d = (float *)((char *)dst + rvk_act_off_d(k));
    int16_t *bsum = (int16_t *)((char *)dst + rvk_act_off_bsum(k));
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (size_t b = 0; b < k / RVK_QK; b++, x += RVK_QK, q += RVK_QK) {
        const __m256 x0 = _mm256_loadu_ps(x), x1 = _mm256_loadu_ps(x + 8);
        const __m256 x2 = _mm256_loadu_ps(x + 16), x3 = _mm256_loadu_ps(x + 24);
        const __m256i a0 = _mm256_and_si256(_mm256_castps_si256(x0), no_sign);
        const __m256i a1 = _mm256_and_si256(_mm256_castps_si256(x1), no_sign);
        const __m256i a2 = _mm256_and_si256(_mm256_castps_si256(x2), no_sign);
        const __m256i a3 = _mm256_and_si256(_mm256_castps_si256(x3), no_sign);
        const float max =
            max8(_mm256_max_epi32(_mm256_max_epi32(a0, a1), _mm256_max_epi32(a2, a3)));
        __m256i v = _mm256_setzero_si256();
        if (!(max <= __FLT_MAX__)) {
            d[b] = __builtin_nanf("");
        } else if (max < RVK_ACT_TINY) {
            d[b] = 0.0f;
        } else {
            d[b] = max / 127.0f;
            const __m256 id = _mm256_set1_ps(127.0f / max);
            const __m256i q0 = _mm256_cvtps_epi32(_mm256_mul_ps(x0, id));
            const __m256i q1 = _mm256_cvtps_epi32(_mm256_mul_ps(x1, id));
            const __m256i q2 = _mm256_cvtps_epi32(_mm256_mul_ps(x2, id));
            const __m256i q3 = _mm256_cvtps_epi32(_mm256_mul_ps(x3, id));
            v = _mm256_packs_epi16(_mm256_packs_epi32(q0, q1), _mm256_packs_epi32(q2, q3));
            v = _mm256_permutevar8x32_epi32(v, order);
        }
        _mm256_storeu_si256((__m256i *)q, v);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
        const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        __m128i s =
            _mm_hadd_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
        s = _mm_hadd_epi32(s, s);
        bsum[2 * b] = (int16_t)_mm_cvtsi128_si32(s);
        bsum[2 * b + 1] = (int16_t)_mm_extract_epi32(s, 1);
    }
}
