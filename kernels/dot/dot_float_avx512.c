/* mul of F32, F16 and BF16 weights with AVX-512.
 *
 * The idea: one accumulator of 16 floats per element, fed with 16 products at a time; four rows
 * keep enough of them in flight to read weights as fast as memory gives them, and with six columns
 * 24 accumulators make the multiplier the limit.  The last k % 16 values come through masks, which
 * read nothing beyond them. */
#include <immintrin.h>

#include "dot/dot.h"

/* X_BYTES of columns stay in the second cache while a band of rows goes by. */
enum { MAX_C = 6, BAND = 64, X_BYTES = 384 << 10 };

/* Rows of F16 that the hardware's prefetcher alone reads best under one column, in bytes: on two
 * threads of a Zen 4 at 36 GB/s of 33 (58 of 53 when the machine has more), on one the same.
 * Shorter and longer ones, and all of F32 and BF16, lose up to a third without our hints. */
enum { ALONE_MIN = 2048, ALONE_MAX = 6144 };

/* Sixteen weights at p as floats; those that m names, zeros elsewhere. */
typedef __m512 load_fn(const uint8_t *p);
typedef __m512 part_fn(const uint8_t *p, __mmask16 m);

RVK_INLINE __m512 load_f32(const uint8_t *p) {
    return _mm512_loadu_ps(p);
}
RVK_INLINE __m512 part_f32(const uint8_t *p, __mmask16 m) {
    return _mm512_maskz_loadu_ps(m, p);
}

RVK_INLINE __m512 load_f16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
RVK_INLINE __m512 part_f16(const uint8_t *p, __mmask16 m) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p));
}

RVK_INLINE __m512 widen(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
RVK_INLINE __m512 load_bf16(const uint8_t *p) {
    return widen(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
RVK_INLINE __m512 part_bf16(const uint8_t *p, __mmask16 m) {
    return widen(_mm256_maskz_loadu_epi16(m, p));
}

/* The sums of a, b, c and d, each of whose lanes i are added to i + 8, then 4, 2 and 1 on. */
RVK_INLINE __m128 sums4(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab =
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd =
        _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 s =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), s));
}

RVK_INLINE void tile(load_fn load, part_fn part, const size_t bytes, const bool ahead, const int R,
                     const int C, float *y, size_t ldy, const uint8_t *w, size_t w_stride,
                     const uint8_t *x, size_t x_stride, size_t k) {
    __m512 acc[4][MAX_C], wv[4];
    RVK_UNROLL
    for (int r = 0; r < 4; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = _mm512_setzero_ps();
    }
    size_t i = 0;
    for (; i + 16 <= k; i += 16) {
        if (ahead) rvk_prefetch_rows(w, w_stride, (size_t)R, i * bytes, 16 * bytes);
        RVK_UNROLL
        for (int r = 0; r < R; r++) wv[r] = load(w + (size_t)r * w_stride + i * bytes);
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            const __m512 xv = _mm512_loadu_ps(x + (size_t)c * x_stride + i * sizeof(float));
            RVK_UNROLL
            for (int r = 0; r < R; r++) acc[r][c] = _mm512_fmadd_ps(wv[r], xv, acc[r][c]);
        }
    }
    if (i < k) {
        const __mmask16 m = (__mmask16)((1u << (k - i)) - 1);
        RVK_UNROLL
        for (int r = 0; r < R; r++) wv[r] = part(w + (size_t)r * w_stride + i * bytes, m);
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            const __m512 xv =
                _mm512_maskz_loadu_ps(m, x + (size_t)c * x_stride + i * sizeof(float));
            RVK_UNROLL
            for (int r = 0; r < R; r++) acc[r][c] = _mm512_fmadd_ps(wv[r], xv, acc[r][c]);
        }
    }
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        const __m128 s = sums4(acc[0][c], acc[1][c], acc[2][c], acc[3][c]);
        if (R == 4)
            _mm_storeu_ps(y + (size_t)c * ldy, s);
        else
            y[(size_t)c * ldy] = _mm_cvtss_f32(s);
    }
}

/* R rows, 1 or 4, under all columns. */
RVK_INLINE void rows(load_fn load, part_fn part, const size_t bytes, const bool ahead, const int R,
                     float *y, size_t ldy, const uint8_t *w, size_t w_stride, const uint8_t *x,
                     size_t x_stride, size_t n_cols, size_t k) {
    size_t c = 0;
#define COLUMNS(C)                                                                                 \
    for (; c + (C) <= n_cols; c += (C))                                                            \
    tile(load, part, bytes, ahead && (C) < MAX_C, R, C, y + c * ldy, ldy, w, w_stride,             \
         x + c * x_stride, x_stride, k)
    COLUMNS(MAX_C);
    COLUMNS(4);
    COLUMNS(2);
    COLUMNS(1);
#undef COLUMNS
}

RVK_INLINE void mul(load_fn load, part_fn part, const size_t bytes, const bool ahead,
                    RVK_MUL_ARGS) {
    const size_t fit = X_BYTES / (k * sizeof(float) + 1) / MAX_C * MAX_C;
    const size_t n_c = fit ? fit : MAX_C;
    for (size_t r0 = 0; r0 < n_rows; r0 += BAND) {
        const size_t end = n_rows - r0 < BAND ? n_rows : r0 + BAND;
        for (size_t c0 = 0; c0 < n_cols; c0 += n_c) {
            const size_t n = n_cols - c0 < n_c ? n_cols - c0 : n_c;
            const uint8_t *xc = (const uint8_t *)x + c0 * x_stride;
            float *yc = y + c0 * ldy;
            size_t r = r0;
            /* One column only streams the weights, and row after row is the order the hardware's
             * own prefetcher follows; four rows side by side cost a quarter of the bandwidth. */
            for (; n_cols > 1 && r + 4 <= end; r += 4)
                rows(load, part, bytes, ahead, 4, yc + r, ldy, (const uint8_t *)w + r * w_stride,
                     w_stride, xc, x_stride, n, k);
            for (; r < end; r++)
                rows(load, part, bytes, ahead, 1, yc + r, ldy, (const uint8_t *)w + r * w_stride,
                     w_stride, xc, x_stride, n, k);
        }
    }
}

#define MUL(name, bytes)                                                                           \
    void rvk_mul_##name##_avx512(RVK_MUL_ARGS) {                                                   \
        mul(load_##name, part_##name, bytes, true, y, ldy, w, w_stride, n_rows, x, x_stride,       \
            n_cols, k);                                                                            \
    }

MUL(f32, 4)
MUL(bf16, 2)

void rvk_mul_f16_avx512(RVK_MUL_ARGS) {
    const size_t row = k * 2;
    if (n_cols == 1 && row >= ALONE_MIN && row <= ALONE_MAX)
        mul(load_f16, part_f16, 2, false, y, ldy, w, w_stride, n_rows, x, x_stride, 1, k);
    else
        mul(load_f16, part_f16, 2, true, y, ldy, w, w_stride, n_rows, x, x_stride, n_cols, k);
}
