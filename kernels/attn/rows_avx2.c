/* Attention against float32 rows with AVX2: rows padded to a multiple of 8, scores reduced one by
 * one. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "attn/attn.h"
#include "exp_avx2.h"

/* Rows padded with zeros to whole registers. */
static void widen(float *tile, const float *rows, size_t stride, size_t n, size_t d) {
    const size_t dp = (d + 7) / 8 * 8;
    for (size_t p = 0; p < n; p++) {
        memcpy(tile + p * dp, (const char *)rows + p * stride, d * 4);
        for (size_t i = d; i < dp; i++) tile[p * dp + i] = 0.0f;
    }
}

static inline float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* s[16] and the largest of its first n; the others are -inf. */
static float scores(float *s, const float *q, const float *tile, size_t n, size_t d) {
    const size_t dp = (d + 7) / 8 * 8;
    float top = -INFINITY;
    for (size_t p = 0; p < RVK_ATTN_ROWS; p++) {
        s[p] = -INFINITY;
        if (p >= n) continue;
        __m256 a = _mm256_setzero_ps();
        for (size_t i = 0; i < d; i += 8)
            a = _mm256_fmadd_ps(_mm256_loadu_ps(q + i), _mm256_load_ps(tile + p * dp + i), a);
        s[p] = sum8(a);
        if (s[p] > top) top = s[p];
    }
    return top;
}

static void weigh(float *acc, const float *w, float keep, const float *tile, size_t n, size_t d) {
    const size_t dp = (d + 7) / 8 * 8;
    const __m256 kept = _mm256_set1_ps(keep);
    size_t i = 0;
    for (; i + 8 <= d; i += 8) {
        __m256 a = _mm256_mul_ps(_mm256_loadu_ps(acc + i), kept);
        for (size_t p = 0; p < n; p++)
            a = _mm256_fmadd_ps(_mm256_set1_ps(w[p]), _mm256_load_ps(tile + p * dp + i), a);
        _mm256_storeu_ps(acc + i, a);
    }
    for (; i < d; i++) {
        float a = acc[i] * keep;
        for (size_t p = 0; p < n; p++) a = fmaf(w[p], tile[p * dp + i], a);
        acc[i] = a;
    }
}

enum { MAX_Q = 64 };

static void attn_heads(RVK_ATTN_ROWS_ARGS, float *tile) {
    _Alignas(32) float w[MAX_Q * 16], padded[RVK_ATTN_MAX_D];
    float keep[MAX_Q];
    const size_t dp = (d + 7) / 8 * 8;
    memset(padded, 0, dp * 4);
    widen(tile, k, stride, n, d);
    for (size_t h = 0; h < n_q; h++) {
        float *e = w + 16 * h;
        memcpy(padded, q + h * d, d * 4);
        const float old = st_max[h], top = fmaxf(old, scores(e, padded, tile, n, d));
        const __m256 t = _mm256_set1_ps(top);
        const __m256 lo = rvk_exp8(_mm256_sub_ps(_mm256_load_ps(e), t));
        const __m256 hi = rvk_exp8(_mm256_sub_ps(_mm256_load_ps(e + 8), t));
        _mm256_store_ps(e, lo);
        _mm256_store_ps(e + 8, hi);
        keep[h] = old == top ? 1.0f : old == -INFINITY ? 0.0f : expf(old - top);
        st_sum[h] = st_sum[h] * keep[h] + sum8(_mm256_add_ps(lo, hi));
        st_max[h] = top;
    }
    widen(tile, v, stride, n, d);
    for (size_t h = 0; h < n_q; h++) weigh(acc + h * d, w + 16 * h, keep[h], tile, n, d);
}

void rvk_attn_rows_avx2(RVK_ATTN_ROWS_ARGS) {
    if (d > RVK_ATTN_MAX_D) {
        rvk_attn_rows_ref(q, n_q, d, k, v, stride, n, st_max, st_sum, acc);
        return;
    }
    _Alignas(64) float tile[RVK_ATTN_ROWS * RVK_ATTN_MAX_D];
    for (size_t h = 0; h < n_q; h += MAX_Q) {
        const size_t m = n_q - h < MAX_Q ? n_q - h : MAX_Q;
        attn_heads(q + h * d, m, d, k, v, stride, n, st_max + h, st_sum + h, acc + h * d, tile);
    }
}
