/* mul of F32, F16 and BF16 weights with AVX-512.
 *
 * The idea: one accumulator of 16 floats per element, fed with 16 products at a time; four rows
 * keep four of them in flight, which is enough to read weights as fast as memory gives them.  The
 * last k % 16 values come through masks, which read nothing beyond them. */
#include <immintrin.h>

#include "dot/dot.h"

/* The weights at p that m names as floats, zeros elsewhere. */
typedef __m512 load_fn(const uint8_t *p, __mmask16 m);

RVK_INLINE __m512 load_f32(const uint8_t *p, __mmask16 m) {
    return _mm512_maskz_loadu_ps(m, p);
}

RVK_INLINE __m512 load_f16(const uint8_t *p, __mmask16 m) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p));
}

RVK_INLINE __m512 load_bf16(const uint8_t *p, __mmask16 m) {
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

RVK_INLINE void tile(load_fn load, const size_t bytes, const int R, const int C, float *y,
                     size_t ldy, const uint8_t *w, size_t w_stride, const uint8_t *x,
                     size_t x_stride, size_t k) {
    __m512 acc[RVK_TILE_R][RVK_TILE_C];
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = _mm512_setzero_ps();
    }
    for (size_t i = 0; i < k; i += 16) {
        const __mmask16 m = k - i < 16 ? (__mmask16)((1u << (k - i)) - 1) : (__mmask16)0xffff;
        rvk_prefetch_rows(w, w_stride, (size_t)R, i * bytes, 16 * bytes);
        __m512 xv[RVK_TILE_C];
        RVK_UNROLL
        for (int c = 0; c < C; c++)
            xv[c] = _mm512_maskz_loadu_ps(m, x + (size_t)c * x_stride + i * sizeof(float));
        RVK_UNROLL
        for (int r = 0; r < R; r++) {
            const __m512 wv = load(w + (size_t)r * w_stride + i * bytes, m);
            RVK_UNROLL
            for (int c = 0; c < C; c++) acc[r][c] = _mm512_fmadd_ps(wv, xv[c], acc[r][c]);
        }
    }
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++)
            y[(size_t)c * ldy + (size_t)r] = _mm512_reduce_add_ps(acc[r][c]);
    }
}

#define MUL(name, bytes)                                                                           \
    RVK_INLINE void tile_##name(const int R, const int C, float *y, size_t ldy, const uint8_t *w,  \
                                size_t w_stride, const uint8_t *x, size_t x_stride, size_t k) {    \
        tile(load_##name, bytes, R, C, y, ldy, w, w_stride, x, x_stride, k);                       \
    }                                                                                              \
    void rvk_mul_##name##_avx512(RVK_MUL_ARGS) {                                                   \
        RVK_WALK(tile_##name, 4, 4);                                                               \
    }

MUL(f32, 4)
MUL(f16, 2)
MUL(bf16, 2)
