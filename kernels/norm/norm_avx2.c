/* Normalisation with AVX2.  Sums run in double: a row is read once from L1, so the width is free,
 * and the result does not depend on how a row's values spread. */
#include <immintrin.h>
#include <math.h>

#include "norm/norm.h"

static inline double sum4(__m256d v) {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

void rvk_rms_norm_avx2(float *y, const float *x, const float *g, size_t n, float eps) {
    __m256d a = _mm256_setzero_pd(), b = a;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256d lo = _mm256_cvtps_pd(_mm_loadu_ps(x + i));
        const __m256d hi = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        a = _mm256_fmadd_pd(lo, lo, a);
        b = _mm256_fmadd_pd(hi, hi, b);
    }
    double sum = sum4(_mm256_add_pd(a, b));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    const float scale = (float)(1.0 / sqrt(sum / (double)n + eps));
    const __m256 s = _mm256_set1_ps(scale);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(
            y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), s), _mm256_loadu_ps(g + i)));
    for (; i < n; i++) y[i] = x[i] * scale * g[i];
}

void rvk_layer_norm_avx2(float *y, const float *x, const float *g, const float *b, size_t n,
                         float eps) {
    __m256d a = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + 4 <= n; i += 4) a = _mm256_add_pd(a, _mm256_cvtps_pd(_mm_loadu_ps(x + i)));
    double sum = sum4(a);
    for (; i < n; i++) sum += x[i];
    const double mean = sum / (double)n;
    const __m256d m4 = _mm256_set1_pd(mean);
    a = _mm256_setzero_pd();
    for (i = 0; i + 4 <= n; i += 4) {
        const __m256d d = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + i)), m4);
        a = _mm256_fmadd_pd(d, d, a);
    }
    double sq = sum4(a);
    for (; i < n; i++) sq += (x[i] - mean) * (x[i] - mean);
    const float scale = (float)(1.0 / sqrt(sq / (double)n + eps)), m = (float)mean;
    const __m256 s = _mm256_set1_ps(scale), mv = _mm256_set1_ps(m);
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mv), s);
        v = _mm256_mul_ps(v, _mm256_loadu_ps(g + i));
        if (b) v = _mm256_add_ps(v, _mm256_loadu_ps(b + i));
        _mm256_storeu_ps(y + i, v);
    }
    for (; i < n; i++) y[i] = (x[i] - m) * scale * g[i] + (b ? b[i] : 0.0f);
}
