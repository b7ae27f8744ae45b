/* act_pack and rounding to BF16 with AVX-512; the same bits as the oracle. */
#include <immintrin.h>

#include "quant/quant.h"

void rvk_act_pack_avx512(void *dst, const float *x, size_t k) {
    int8_t *q = dst;
    float *d = (float *)((char *)dst + rvk_act_off_d(k));
    int16_t *bsum = (int16_t *)((char *)dst + rvk_act_off_bsum(k));
    const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
    for (size_t b = 0; b < k / RVK_QK; b++, x += RVK_QK, q += RVK_QK) {
        const __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
        const __m512i a = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(x0), no_sign),
                                           _mm512_and_si512(_mm512_castps_si512(x1), no_sign));
        /* bit patterns of magnitudes order as integers do, with NaN and infinity on top */
        const float max =
            _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(a))));
        __m256i v = _mm256_setzero_si256();
        if (!(max <= __FLT_MAX__)) {
            d[b] = __builtin_nanf("");
        } else if (max < RVK_ACT_TINY) {
            d[b] = 0.0f;
        } else {
            d[b] = max / 127.0f;
            const __m512 id = _mm512_set1_ps(127.0f / max);
            const __m128i lo = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x0, id)));
            const __m128i hi = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x1, id)));
            v = _mm256_inserti128_si256(_mm256_castsi128_si256(lo), hi, 1);
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

void rvk_quant_bf16_avx512(void *dst, const float *src, size_t k) {
    const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
    for (size_t i = 0; i < k; i += 16) {
        const __mmask16 m = (__mmask16)(k - i < 16 ? (1u << (k - i)) - 1 : 0xffffu);
        const __m512 f = _mm512_maskz_loadu_ps(m, src + i);
        const __m512i u = _mm512_castps_si512(f);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
        const __m512i near = _mm512_add_epi32(_mm512_add_epi32(u, half), odd);
        const __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
        const __m512i v = _mm512_mask_or_epi32(near, nan, u, _mm512_set1_epi32(64 << 16));
        _mm256_mask_storeu_epi16((uint8_t *)dst + sizeof(uint16_t) * i, m,
                                 _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
    }
}
