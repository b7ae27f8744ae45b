/* mul of F32, F16 and BF16 weights with AVX2.
 *
 * The idea: an element has sixteen lanes along k, two registers, as it has one with AVX-512: the
 * same sums in the same order, and enough of them to read a row as fast as memory gives it.  With
 * many columns three rows by four take twelve registers for one half of the lanes; the other half
 * follows piece by piece of k, while the piece is in the first cache.  The last k % 16 values are
 * copied in front of zeros, so nothing beyond them is read. */
#include <immintrin.h>
#include <string.h>

#include "dot/dot.h"

enum {
    MAX_R = 3,
    MAX_C = 4,
    PIECE = 1024,       /* values of k: four columns of them are 16 KiB */
    BAND = 126,         /* rows at most */
    W_BYTES = 512 << 10 /* of rows stay in the second cache while the columns go by */
};

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

/* Lanes 0 .. 7 of a sum of sixteen added to 8 .. 15, then 0 .. 3 to 4 .. 7. */
RVK_INLINE __m128 four_lanes(const float *lo, const float *hi) {
    const __m256 v = _mm256_add_ps(_mm256_load_ps(lo), _mm256_load_ps(hi));
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

/* Lanes 0 and 1 of s added to 2 and 3, then 0 to 1. */
RVK_INLINE float sum4(__m128 s) {
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* The same for four of them. */
RVK_INLINE __m128 sums4(__m128 a, __m128 b, __m128 c, __m128 d) {
    const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

typedef struct operands {
    const uint8_t *w, *x;
    size_t w_stride, x_stride;
} operands;

typedef __m256 lanes[MAX_R][MAX_C][2];

/* Values i .. end, a multiple of 16 of them, into halves h0 .. h0 + H - 1 of R rows, C columns. */
RVK_INLINE void steps(load_fn load, const size_t bytes, const int R, const int C, const int h0,
                      const int H, lanes acc, const operands *o, size_t i, size_t end) {
    for (; i < end; i += 16) {
        if (C < MAX_C) rvk_prefetch_rows(o->w, o->w_stride, (size_t)R, i * bytes, 16 * bytes);
        RVK_UNROLL
        for (int h = h0; h < h0 + H; h++) {
            const size_t at = i + 8 * (size_t)h;
            __m256 w[MAX_R];
            RVK_UNROLL
            for (int r = 0; r < R; r++) w[r] = load(o->w + (size_t)r * o->w_stride + at * bytes);
            RVK_UNROLL
            for (int c = 0; c < C; c++) {
                const __m256 x = load_f32(o->x + (size_t)c * o->x_stride + at * sizeof(float));
                RVK_UNROLL
                for (int r = 0; r < R; r++) acc[r][c][h] = _mm256_fmadd_ps(w[r], x, acc[r][c][h]);
            }
        }
    }
}

/* The last n < 16 values, from i on. */
RVK_INLINE void tail(load_fn load, const size_t bytes, const int R, const int C, const int h0,
                     const int H, lanes acc, const operands *o, size_t i, size_t n) {
    uint8_t w[MAX_R][16 * sizeof(float)] = {{0}}, x[MAX_C][16 * sizeof(float)] = {{0}};
    for (int r = 0; r < R; r++) memcpy(w[r], o->w + (size_t)r * o->w_stride + i * bytes, n * bytes);
    for (int c = 0; c < C; c++)
        memcpy(x[c], o->x + (size_t)c * o->x_stride + i * sizeof(float), n * sizeof(float));
    const operands z = {w[0], x[0], sizeof w[0], sizeof x[0]};
    steps(load, bytes, R, C, h0, H, acc, &z, 0, 16);
}

/* Sums of a tile that wait: for the other half of the lanes, and for the next piece of k. */
typedef float waiting[2][MAX_R][MAX_C][8];

/* Values i .. end of R rows and C columns, halves h0 .. h0 + H - 1; i > 0: the sums are in wait. */
RVK_INLINE void some_lanes(load_fn load, const size_t bytes, const int R, const int C, const int h0,
                           const int H, const operands *o, size_t i, size_t end, waiting wait) {
    const size_t whole = end / 16 * 16;
    lanes acc;
    RVK_UNROLL
    for (int j = 0; j < R * C * H; j++) {
        const int r = j / H / C, c = j / H % C, h = h0 + j % H;
        acc[r][c][h] = i ? _mm256_load_ps(wait[h][r][c]) : _mm256_setzero_ps();
    }
    steps(load, bytes, R, C, h0, H, acc, o, i, whole);
    if (whole < end) tail(load, bytes, R, C, h0, H, acc, o, whole, end - whole);
    RVK_UNROLL
    for (int j = 0; j < R * C * H; j++) {
        const int r = j / H / C, c = j / H % C, h = h0 + j % H;
        _mm256_store_ps(wait[h][r][c], acc[r][c][h]);
    }
}

RVK_INLINE void tile(load_fn load, const size_t bytes, const int R, const int C, const operands *o,
                     size_t i, size_t end, waiting wait) {
    if (C < MAX_C) {
        some_lanes(load, bytes, R, C, 0, 2, o, i, end, wait);
    } else {
        some_lanes(load, bytes, R, C, 0, 1, o, i, end, wait);
        some_lanes(load, bytes, R, C, 1, 1, o, i, end, wait);
    }
}

RVK_INLINE void finish(const int R, const int C, float *y, size_t ldy, waiting wait) {
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        __m128 v[MAX_C];
        RVK_UNROLL
        for (int c = 0; c < C; c++) v[c] = four_lanes(wait[0][r][c], wait[1][r][c]);
        if (C == MAX_C) {
            float four[MAX_C];
            _mm_storeu_ps(four, sums4(v[0], v[1], v[2], v[3]));
            for (size_t c = 0; c < MAX_C; c++) y[c * ldy + (size_t)r] = four[c];
        } else {
            RVK_UNROLL
            for (int c = 0; c < C; c++) y[(size_t)c * ldy + (size_t)r] = sum4(v[c]);
        }
    }
}

/* n_rows <= BAND rows under C columns, piece by piece. */
RVK_INLINE void rows(load_fn load, const size_t bytes, const int C, float *y, size_t ldy,
                     const operands *band, size_t n_rows, size_t k) {
    _Alignas(32) waiting wait[BAND / MAX_R + MAX_R];
    const size_t piece = C < MAX_C ? k : PIECE;
    operands o = *band;
    size_t i = 0, end;
    do {
        size_t r = 0, j = 0;
        end = k - i < piece ? k : i + piece;
        for (; r + MAX_R <= n_rows; r += MAX_R, j++) {
            o.w = band->w + r * o.w_stride;
            tile(load, bytes, MAX_R, C, &o, i, end, wait[j]);
            if (end == k) finish(MAX_R, C, y + r, ldy, wait[j]);
        }
        for (; r < n_rows; r++, j++) {
            o.w = band->w + r * o.w_stride;
            tile(load, bytes, 1, C, &o, i, end, wait[j]);
            if (end == k) finish(1, C, y + r, ldy, wait[j]);
        }
    } while ((i = end) < k);
}

RVK_INLINE void mul(load_fn load, const size_t bytes, RVK_MUL_ARGS) {
    operands o = {w, x, w_stride, x_stride};
    if (n_cols == 1) { /* row after row: the order that the hardware's prefetcher follows */
        for (size_t r = 0; r < n_rows; r++, o.w += w_stride)
            rows(load, bytes, 1, y + r, ldy, &o, 1, k);
        return;
    }
    const size_t fit = W_BYTES / (k * bytes + 1) / MAX_R * MAX_R;
    const size_t band = fit < MAX_R ? MAX_R : fit < BAND ? fit : BAND;
    for (size_t r = 0; r < n_rows; r += band) {
        const size_t n = n_rows - r < band ? n_rows - r : band;
        float *yr = y + r;
        size_t c = 0;
        o.w = (const uint8_t *)w + r * w_stride;
#define COLUMNS(C)                                                                                 \
    for (; c + (C) <= n_cols; c += (C)) {                                                          \
        o.x = (const uint8_t *)x + c * x_stride;                                                   \
        rows(load, bytes, C, yr + c * ldy, ldy, &o, n, k);                                         \
    }
        COLUMNS(MAX_C)
        COLUMNS(2)
        COLUMNS(1)
#undef COLUMNS
    }
}

#define MUL(name, bytes)                                                                           \
    void rvk_mul_##name##_avx2(RVK_MUL_ARGS) {                                                     \
        mul(load_##name, bytes, y, ldy, w, w_stride, n_rows, x, x_stride, n_cols, k);              \
    }

MUL(f32, 4)
MUL(f16, 2)
MUL(bf16, 2)
