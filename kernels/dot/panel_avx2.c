/* The walk of the quantised mul with AVX2: panels, pieces of k, groups of columns.
 *
 * The idea: rows in the order of the file are packed to panels piece by piece, so both entries are
 * one path.  A few columns take the codes straight from the panel's words, two at a time; for
 * more of them a piece is taken apart once and four columns at a time go by.  The four sums of an
 * element (panel.h) wait in acc from piece to piece.  Nothing here knows a format. */
#include "dot/panel_avx2.h"

/* Up to FEW_COLS the codes are taken anew from the first cache for each two of them (Zen 4, one
 * thread, GB/s of Q4_0 from memory under 2, 4, 6, 8 columns: 22, 9.9, 5.7, 3.9; from a piece that
 * was taken apart 4.9, 6.2, 5.0, 4.4). */
enum { MAX_COLS = 128, FEW_COLS = 6, MAX_BLOCK32 = sizeof(rvk_q8_0) };

RVK_INLINE __m256i load256(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

RVK_INLINE void fill_sum(const rvk_panel_type *t, group *g, size_t c, int half, size_t b,
                         __m256i sum, __m256 d) {
    if (t->minus)
        _mm256_store_si256((__m256i *)(void *)(g->start[c][half] + b),
                           _mm256_mullo_epi32(sum, _mm256_set1_epi32(-t->minus)));
    if (t->has_min) _mm256_store_ps(g->sum[c][half] + b, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), d));
}

/* Planes d and bsum end on multiples of 64 bytes, so whole registers may be read. */
static void fill_group(const rvk_panel_type *t, group *g, const uint8_t *xd, const uint8_t *xb,
                       size_t x_stride, size_t n_cols, size_t n_blocks) {
    for (size_t c = 0; c < n_cols; c++) {
        for (size_t b = 0; b < n_blocks; b += 8) {
            const __m256 d =
                _mm256_loadu_ps((const float *)(const void *)(xd + c * x_stride + 4 * b));
            const __m256i s = load256(xb + c * x_stride + 4 * b);
            _mm256_store_ps(g->d[c] + b, d);
            if (t->halves) {
                fill_sum(t, g, c, 0, b, _mm256_srai_epi32(_mm256_slli_epi32(s, 16), 16), d);
                fill_sum(t, g, c, 1, b, _mm256_srai_epi32(s, 16), d);
            } else {
                fill_sum(t, g, c, 0, b, _mm256_madd_epi16(s, _mm256_set1_epi16(1)), d);
            }
        }
    }
}

/* One piece for all columns: n blocks of the type, whose packed x start at xq, xd and xb. */
static void mul_piece(const format *f, chains *acc, piece *p, const uint8_t *w, const uint8_t *xq,
                      const uint8_t *xd, const uint8_t *xb, size_t x_stride, size_t n_cols,
                      size_t n) {
    const size_t n_blocks = n * rvk_dtypes[f->type].block_values / RVK_QK;
    group g;
    if (n_cols <= FEW_COLS) {
        for (size_t c = 0, step; c < n_cols; c += step) {
            const size_t o = c * x_stride;
            step = n_cols - c > 1 ? 2 : 1;
            fill_group(&f->panel, &g, xd + o, xb + o, x_stride, step, n_blocks);
            f->few[2 - step](acc + c, p, &g, w, xq + o, x_stride, n);
        }
        return;
    }
    f->take(p, w, n);
    size_t c = 0;
    for (size_t i = 0; i < 3; i++) {
        for (const size_t step = COLS >> i; c + step <= n_cols; c += step) {
            const size_t o = c * x_stride;
            fill_group(&f->panel, &g, xd + o, xb + o, x_stride, step, n_blocks);
            f->micro[i](acc + c, p, &g, xq + o, x_stride, n_blocks);
        }
    }
}

/* The first n_rows of the sums of a column. */
static void finish(float *y, const chains *acc, size_t n_rows) {
    _Alignas(32) float out[RVK_PANEL_ROWS];
    for (size_t h = 0; h < RVK_PANEL_ROWS; h += 8) {
        const __m256 a =
            _mm256_add_ps(_mm256_load_ps((*acc)[0] + h), _mm256_load_ps((*acc)[2] + h));
        const __m256 b =
            _mm256_add_ps(_mm256_load_ps((*acc)[1] + h), _mm256_load_ps((*acc)[3] + h));
        _mm256_store_ps(out + h, _mm256_add_ps(a, b));
    }
    memcpy(y, out, n_rows * sizeof *y);
}

/* At most sixteen rows under at most MAX_COLS columns; w is their panel, or rows. */
static void panel(const format *f, bool packed_w, float *y, size_t ldy, const uint8_t *w,
                  size_t w_stride, size_t n_rows, const uint8_t *x, size_t x_stride, size_t n_cols,
                  size_t k) {
    const rvk_dtype_info *type = &rvk_dtypes[f->type];
    _Alignas(64) uint8_t packed[BLOCKS * MAX_BLOCK32 * RVK_PANEL_ROWS];
    _Alignas(64) chains acc[MAX_COLS];
    piece p;
    memset(acc, 0, n_cols * sizeof *acc);
    for (size_t k0 = 0; k0 < k; k0 += PIECE_K) {
        const size_t k1 = k - k0 < PIECE_K ? k - k0 : PIECE_K;
        const uint8_t *units = packed;
        if (packed_w)
            units = w + rvk_panel_bytes(f->type, k0);
        else
            rvk_panel_pack_avx2(packed, f->type, w + k0 / type->block_values * type->block_bytes,
                                w_stride, n_rows, k1);
        mul_piece(f, acc, &p, units, x + k0, x + rvk_act_off_d(k) + k0 / 8,
                  x + rvk_act_off_bsum(k) + k0 / 8, x_stride, n_cols, k1 / type->block_values);
    }
    for (size_t c = 0; c < n_cols; c++) finish(y + c * ldy, acc + c, n_rows);
}

/* w_stride: of a row, or of a panel of sixteen. */
static void mul(const format *f, bool packed_w, RVK_MUL_ARGS) {
    const size_t step = packed_w ? w_stride : RVK_PANEL_ROWS * w_stride;
    for (size_t c = 0; c < n_cols; c += MAX_COLS) {
        const size_t n = n_cols - c < MAX_COLS ? n_cols - c : MAX_COLS;
        for (size_t r = 0; r < n_rows; r += RVK_PANEL_ROWS)
            panel(f, packed_w, y + c * ldy + r, ldy, (const uint8_t *)w + r / RVK_PANEL_ROWS * step,
                  w_stride, n_rows - r < RVK_PANEL_ROWS ? n_rows - r : RVK_PANEL_ROWS,
                  (const uint8_t *)x + c * x_stride, x_stride, n, k);
    }
}

void rvk_panel_mul_avx2(const format *f, RVK_MUL_ARGS) {
    mul(f, false, y, ldy, w, w_stride, n_rows, x, x_stride, n_cols, k);
}

void rvk_panel_mul_panels_avx2(const format *f, RVK_PANELS_ARGS) {
    mul(f, true, y, ldy, w, rvk_panel_bytes(f->type, k), n_rows, x, x_stride, n_cols, k);
}
