/* mul of F32, F16 and BF16 weights with AVX2.
 *
 * The idea: one accumulator of 8 floats per element, fed with 8 products at a time.  The last
 * k % 8 values are copied in front of zeros, so nothing beyond them is read. */
#include <immintrin.h>
#include <string.h>

#include "dot/dot.h"

typedef __m256 load_fn(const uint8_t *p);

RVK_INLINE __m256 load_f32(const uint8_t *p) {
    return _mm256_loadu_ps((const float *)(const void *)p);
}

RVK_INLINE __m256 load_f16(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

RVK_INLINE __m256 load_bf16(const uint8_t *p) {
    const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

/* The first n < 8 values of bytes each at p, then zeros. */
RVK_INLINE __m256 load_part(load_fn load, const uint8_t *p, size_t n, size_t bytes) {
    uint8_t z[32] = {0};
    memcpy(z, p, n * bytes);
    return load(z);
}

RVK_INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

RVK_INLINE void tile(load_fn load, const size_t bytes, const int R, const int C, float *y,
                     size_t ldy, const uint8_t *w, size_t w_stride, const uint8_t *x,
                     size_t x_stride, size_t k) {
    __m256 acc[RVK_TILE_R][RVK_TILE_C];
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = _mm256_setzero_ps();
    }
    for (size_t i = 0; i + 8 <= k; i += 8) {
        rvk_prefetch_rows(w, w_stride, (size_t)R, i * bytes, 8 * bytes);
        __m256 xv[RVK_TILE_C];
        RVK_UNROLL
        for (int c = 0; c < C; c++) xv[c] = load_f32(x + (size_t)c * x_stride + i * sizeof(float));
        RVK_UNROLL
        for (int r = 0; r < R; r++) {
            const __m256 wv = load(w + (size_t)r * w_stride + i * bytes);
            RVK_UNROLL
            for (int c = 0; c < C; c++) acc[r][c] = _mm256_fmadd_ps(wv, xv[c], acc[r][c]);
        }
    }
    const size_t i = k / 8 * 8, left = k % 8;
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            if (left) {
                const uint8_t *xc = x + (size_t)c * x_stride + i * sizeof(float);
                acc[r][c] = _mm256_fmadd_ps(
                    load_part(load, w + (size_t)r * w_stride + i * bytes, left, bytes),
                    load_part(load_f32, xc, left, sizeof(float)), acc[r][c]);
            }
            y[(size_t)c * ldy + (size_t)r] = sum8(acc[r][c]);
        }
    }
}

#define MUL(name, bytes)                                                                           \
    RVK_INLINE void tile_##name(const int R, const int C, float *y, size_t ldy, const uint8_t *w,  \
                                size_t w_stride, const uint8_t *x, size_t x_stride, size_t k) {    \
        tile(load_##name, bytes, R, C, y, ldy, w, w_stride, x, x_stride, k);                       \
    }                                                                                              \
    void rvk_mul_##name##_avx2(RVK_MUL_ARGS) {                                                     \
        RVK_WALK(tile_##name, 4, 2);                                                               \
    }

MUL(f32, 4)
MUL(f16, 2)
MUL(bf16, 2)
