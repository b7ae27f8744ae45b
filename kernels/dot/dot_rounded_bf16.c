/* mul_rounded of BF16 weights with AVX512_BF16: 32 products per instruction, twice as many as a
 * multiply-add of floats has.
 *
 * The idea: one accumulator of 16 lanes per element, each lane fed with two neighbouring products;
 * four rows by six columns keep 24 of them in flight.  A band of rows stays in the second cache
 * while the columns go by.  The last k % 32 values come through masks, which read nothing beyond
 * them. */
#include <immintrin.h>

#include "dot/dot.h"

enum {
    MAX_R = 4,
    MAX_C = 6,
    STEP = 32 * sizeof(uint16_t), /* bytes */
    W_BYTES = 384 << 10           /* of a band */
};

typedef struct operands {
    const uint8_t *w, *x;
    size_t w_stride, x_stride;
} operands;

typedef __m512 sums[MAX_R][MAX_C];

RVK_INLINE __m512bh load(const uint8_t *p, const bool whole, __mmask32 m) {
    return (__m512bh)(whole ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(m, p));
}

/* The 32 values at byte at of R rows and C columns; those that m names where they are not whole. */
RVK_INLINE void step(const int R, const int C, sums acc, const operands *o, size_t at,
                     const bool whole, __mmask32 m) {
    __m512bh w[MAX_R];
    RVK_UNROLL
    for (int r = 0; r < R; r++) w[r] = load(o->w + (size_t)r * o->w_stride + at, whole, m);
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        const __m512bh x = load(o->x + (size_t)c * o->x_stride + at, whole, m);
        RVK_UNROLL
        for (int r = 0; r < R; r++) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], w[r], x);
    }
}

/* The lanes of a, b, c and d added up: four neighbours (0 to 2 and 1 to 3 first), then halves. */
RVK_INLINE __m128 sums4(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 s =
        _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

/* ahead: the weights come from memory, so those of the next tiles are asked for. */
RVK_INLINE void tile(const int R, const int C, float *y, size_t ldy, const operands *o, size_t k,
                     const bool ahead) {
    const size_t bytes = k * sizeof(uint16_t), whole = bytes / STEP * STEP;
    sums acc;
    RVK_UNROLL
    for (int r = 0; r < MAX_R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = _mm512_setzero_ps();
    }
    for (size_t at = 0; at < whole; at += STEP) {
        if (ahead) rvk_prefetch_rows(o->w, o->w_stride, (size_t)R, at, STEP);
        step(R, C, acc, o, at, true, 0);
    }
    if (whole < bytes) step(R, C, acc, o, whole, false, ((__mmask32)1 << k % 32) - 1);
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        const __m128 s = sums4(acc[0][c], acc[1][c], acc[2][c], acc[3][c]);
        if (R == MAX_R)
            _mm_storeu_ps(y + (size_t)c * ldy, s);
        else
            y[(size_t)c * ldy] = _mm_cvtss_f32(s);
    }
}

/* n rows under C columns, the first ones if first: by fours, or where there is one column row after
 * row, as hardware's own prefetcher likes it. */
RVK_INLINE void rows(const int C, float *y, size_t ldy, operands o, size_t n, size_t k, bool first,
                     bool fours) {
    size_t r = 0;
    for (; fours && first && r + MAX_R <= n; r += MAX_R, o.w += MAX_R * o.w_stride)
        tile(MAX_R, C, y + r, ldy, &o, k, true);
    for (; fours && r + MAX_R <= n; r += MAX_R, o.w += MAX_R * o.w_stride)
        tile(MAX_R, C, y + r, ldy, &o, k, false);
    for (; r < n; r++, o.w += o.w_stride) tile(1, C, y + r, ldy, &o, k, false);
}

void rvk_mul_rounded_bf16_bf16(RVK_MUL_ARGS) {
    const size_t fit = W_BYTES / (k * sizeof(uint16_t) + 1) / MAX_R * MAX_R;
    const size_t band = fit ? fit : MAX_R;
    const bool fours = n_cols > 1;
    for (size_t r = 0; r < n_rows; r += band) {
        const size_t n = n_rows - r < band ? n_rows - r : band;
        operands o = {(const uint8_t *)w + r * w_stride, x, w_stride, x_stride};
        size_t c = 0;
#define COLUMNS(C)                                                                                 \
    for (; c + (C) <= n_cols; c += (C), o.x += (C) * x_stride)                                     \
    rows(C, y + c * ldy + r, ldy, o, n, k, c == 0, fours)
        COLUMNS(MAX_C);
        COLUMNS(4);
        COLUMNS(2);
        COLUMNS(1);
#undef COLUMNS
    }
}
