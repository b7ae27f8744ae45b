/* Sums, SwiGLU and GELU with AVX2.  Tails go through a padded vector, so a value's bits do not
 * depend on where in the row it stands. */
#include <string.h>

#include "act/act.h"
#include "exp_avx2.h"

static inline __m256 silu_mul(__m256 g, __m256 u) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 e = rvk_exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
    return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), u);
}

void rvk_swiglu_avx2(float *y, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, silu_mul(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == n) return;
    float g[8] = {0}, u[8] = {0};
    memcpy(g, gate + i, (n - i) * 4), memcpy(u, up + i, (n - i) * 4);
    _mm256_storeu_ps(g, silu_mul(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
    memcpy(y + i, g, (n - i) * 4);
}

void rvk_add_avx2(float *y, const float *a, const float *b, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
    for (; i < n; i++) y[i] = a[i] + b[i];
}

/* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)) */
static inline __m256 gelu8(__m256 x) {
    const __m256 x2 = _mm256_mul_ps(x, x), one = _mm256_set1_ps(1.0f);
    const __m256 inner = _mm256_fmadd_ps(x2, _mm256_set1_ps(0.044715f), one);
    const __m256 u2 = _mm256_mul_ps(_mm256_mul_ps(x, _mm256_set1_ps(-1.5957691216f)), inner);
    return _mm256_div_ps(x, _mm256_add_ps(one, rvk_exp8(u2)));
}

void rvk_gelu_avx2(float *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, gelu8(_mm256_loadu_ps(x + i)));
    if (i == n) return;
    float v[8] = {0};
    memcpy(v, x + i, (n - i) * 4);
    _mm256_storeu_ps(v, gelu8(_mm256_loadu_ps(v)));
    memcpy(y + i, v, (n - i) * 4);
}
