/* SwiGLU and GELU with AVX-512; tails are masked lanes of the same arithmetic. */
#include "act/act.h"
#include "exp_avx512.h"

static inline __mmask16 lanes(size_t left) {
    return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

void rvk_swiglu_avx512(float *y, const float *gate, const float *up, size_t n) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        const __m512 g = _mm512_maskz_loadu_ps(m, gate + i), u = _mm512_maskz_loadu_ps(m, up + i);
        const __m512 e = rvk_exp16(_mm512_sub_ps(_mm512_setzero_ps(), g));
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), u));
    }
}

void rvk_gelu_avx512(float *y, const float *x, size_t n) {
    const __m512 one = _mm512_set1_ps(1.0f), c = _mm512_set1_ps(0.044715f);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(v, v), c, one);
        const __m512 u2 = _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(-1.5957691216f)), inner);
        _mm512_mask_storeu_ps(y + i, m, _mm512_div_ps(v, _mm512_add_ps(one, rvk_exp16(u2))));
    }
}
