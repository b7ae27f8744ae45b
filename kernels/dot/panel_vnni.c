/* Many columns with AVX-512 VNNI: sixteen rows unpacked once, then multiplied with every column.
 *
 * The idea: lanes are rows, so one load of weights serves eight columns, a column's four values
 * are one broadcast, and a block of 32 ends in one conversion and two multiplications for sixteen
 * elements.  The order of the sums is that of vnni.h: chain after chain, whose sums wait in acc
 * while k goes by in pieces.  Nothing here knows a format. */
#include "dot/panel_vnni.h"

#include <immintrin.h>
#include <string.h>

enum { COLS = 8, MAX_COLS = 128, BLOCKS = RVK_PANEL_K / RVK_QK };

typedef float chains[4][RVK_PANEL_ROWS];

/* What a group of columns needs per block beside its values. */
typedef struct group {
    _Alignas(64) float d[COLS][BLOCKS];
    int32_t start[COLS][2][BLOCKS]; /* -minus * sum, by half; the whole block in the first */
    float sum[COLS][2][BLOCKS];     /* d * sum */
} group;

RVK_INLINE void fill_sum(const rvk_panel_type *t, group *g, size_t c, int h, size_t b, __m512i sum,
                         __m512 d) {
    _mm512_store_si512(g->start[c][h] + b, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-t->minus)));
    if (t->has_min) _mm512_store_ps(g->sum[c][h] + b, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), d));
}

/* Planes d and bsum end on multiples of 64 bytes, so whole registers may be read. */
static void fill_group(const rvk_panel_type *t, group *g, const uint8_t *xd, const uint8_t *xb,
                       size_t x_stride, size_t n_cols, size_t n_blocks) {
    for (size_t c = 0; c < n_cols; c++) {
        for (size_t b = 0; b < n_blocks; b += 16) {
            const __m512 d = _mm512_loadu_ps(xd + c * x_stride + 4 * b);
            const __m512i s = _mm512_loadu_si512(xb + c * x_stride + 4 * b);
            _mm512_store_ps(g->d[c] + b, d);
            if (t->halves) {
                fill_sum(t, g, c, 0, b, _mm512_srai_epi32(_mm512_slli_epi32(s, 16), 16), d);
                fill_sum(t, g, c, 1, b, _mm512_srai_epi32(s, 16), d);
            } else {
                fill_sum(t, g, c, 0, b, _mm512_madd_epi16(s, _mm512_set1_epi16(1)), d);
            }
        }
    }
}

RVK_INLINE __m512i four_of(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* float(isum) of C columns over n times four values of sixteen rows, from half h on. */
RVK_INLINE void isums(const int C, const int n, const int h, __m512 *out, const uint8_t (*q)[64],
                      const group *g, const uint8_t *const *x, size_t b) {
    __m512i sum[COLS];
    RVK_UNROLL
    for (int c = 0; c < C; c++) sum[c] = _mm512_set1_epi32(g->start[c][h][b]);
    RVK_UNROLL
    for (int i = 4 * h; i < 4 * h + n; i++) {
        const __m512i w = _mm512_load_si512(q[i]);
        RVK_UNROLL
        for (int c = 0; c < C; c++)
            sum[c] = _mm512_dpbusd_epi32(sum[c], w, four_of(x[c] + b * RVK_QK + 4 * i));
    }
    RVK_UNROLL
    for (int c = 0; c < C; c++) out[c] = _mm512_cvtepi32_ps(sum[c]);
}

/* C columns at x under the panel; acc [C]. */
RVK_INLINE void micro(const int C, const bool halves, const bool has_min, int delta, chains *acc,
                      const rvk_panel *p, const group *g, const uint8_t *x0, size_t x_stride,
                      size_t n_blocks) {
    const uint8_t *x[COLS];
    RVK_UNROLL
    for (int c = 0; c < C; c++) x[c] = x0 + (size_t)c * x_stride;
    for (size_t j = 0; j < 4; j++) {
        __m512 a[COLS];
        RVK_UNROLL
        for (int c = 0; c < C; c++) a[c] = _mm512_load_ps(acc[c][j]);
        size_t b = (size_t)rvk_panel_base(delta, (int)j), other = (size_t)delta;
        for (size_t s = 0; s < (n_blocks + 3 - j) / 4; s++) {
            __m512 f[COLS];
            const __m512 s0 = _mm512_load_ps(p->s[j][s][0]);
            isums(C, halves ? 4 : 8, 0, f, p->q[j][s], g, x, b);
            RVK_UNROLL
            for (int c = 0; c < C; c++) f[c] = _mm512_mul_ps(f[c], s0);
            if (halves) {
                __m512 f1[COLS];
                const __m512 s1 = _mm512_load_ps(p->s[j][s][1]);
                isums(C, 4, 1, f1, p->q[j][s], g, x, b);
                RVK_UNROLL
                for (int c = 0; c < C; c++) f[c] = _mm512_fmadd_ps(f1[c], s1, f[c]);
            }
            RVK_UNROLL
            for (int c = 0; c < C; c++)
                a[c] = _mm512_fmadd_ps(f[c], _mm512_set1_ps(g->d[c][b]), a[c]);
            const int n_mins = !has_min ? 0 : halves ? 2 : 1;
            for (int h = 0; h < n_mins; h++) {
                const __m512 m = _mm512_load_ps(p->m[j][s][h]);
                RVK_UNROLL
                for (int c = 0; c < C; c++)
                    a[c] = _mm512_fnmadd_ps(m, _mm512_set1_ps(g->sum[c][h][b]), a[c]);
            }
            b += other;
            other = 8 - other;
        }
        RVK_UNROLL
        for (int c = 0; c < C; c++) _mm512_store_ps(acc[c][j], a[c]);
    }
}

typedef void micro_fn(int delta, chains *acc, const rvk_panel *p, const group *g, const uint8_t *x,
                      size_t x_stride, size_t n_blocks);

#define MICRO(C, halves, has_min)                                                                  \
    static void micro_##C##halves##has_min(int delta, chains *acc, const rvk_panel *p,             \
                                           const group *g, const uint8_t *x, size_t x_stride,      \
                                           size_t n_blocks) {                                      \
        micro(C, halves, has_min, delta, acc, p, g, x, x_stride, n_blocks);                        \
    }
#define MICROS(C) MICRO(C, 0, 0) MICRO(C, 0, 1) MICRO(C, 1, 0) MICRO(C, 1, 1)
#define NAMES(C) {{micro_##C##00, micro_##C##01}, {micro_##C##10, micro_##C##11}}

MICROS(8)
MICROS(4)
MICROS(2)
MICROS(1)
static micro_fn *const MICRO[4][2][2] = {NAMES(8), NAMES(4), NAMES(2), NAMES(1)};

/* One piece of k for all columns. */
static void piece(const rvk_panel_type *t, chains *acc, const rvk_panel *p, const uint8_t *xq,
                  const uint8_t *xd, const uint8_t *xb, size_t x_stride, size_t n_cols,
                  size_t n_blocks) {
    group g;
    size_t c = 0;
    for (size_t i = 0; i < 4; i++) {
        for (const size_t n = COLS >> i; c + n <= n_cols; c += n) {
            const size_t o = c * x_stride;
            fill_group(t, &g, xd + o, xb + o, x_stride, n, n_blocks);
            MICRO[i][t->halves][t->has_min](t->delta, acc + c, p, &g, xq + o, x_stride, n_blocks);
        }
    }
}

/* Sixteen rows under at most MAX_COLS columns. */
static void panel(const rvk_panel_type *t, rvk_panel_fn *unpack, float *y, size_t ldy,
                  const uint8_t *w, size_t w_stride, const uint8_t *x, size_t x_stride,
                  size_t n_cols, size_t k) {
    rvk_panel p;
    _Alignas(64) chains acc[MAX_COLS];
    memset(acc, 0, n_cols * sizeof *acc);
    for (size_t k0 = 0; k0 < k; k0 += RVK_PANEL_K) {
        const size_t n = (k - k0 < RVK_PANEL_K ? k - k0 : RVK_PANEL_K) / RVK_QK;
        unpack(&p, w, w_stride, k0, n);
        piece(t, acc, &p, x + k0, x + rvk_act_off_d(k) + k0 / 8, x + rvk_act_off_bsum(k) + k0 / 8,
              x_stride, n_cols, n);
    }
    for (size_t c = 0; c < n_cols; c++) {
        const __m512 a = _mm512_add_ps(_mm512_load_ps(acc[c][0]), _mm512_load_ps(acc[c][2]));
        const __m512 b = _mm512_add_ps(_mm512_load_ps(acc[c][1]), _mm512_load_ps(acc[c][3]));
        _mm512_storeu_ps(y + c * ldy, _mm512_add_ps(a, b));
    }
}

void rvk_panel_mul(const rvk_panel_type *t, rvk_panel_fn *unpack, RVK_MUL_ARGS) {
    for (size_t c = 0; c < n_cols; c += MAX_COLS) {
        const size_t n = n_cols - c < MAX_COLS ? n_cols - c : MAX_COLS;
        for (size_t r = 0; r < n_rows; r += RVK_PANEL_ROWS)
            panel(t, unpack, y + c * ldy + r, ldy, (const uint8_t *)w + r * w_stride, w_stride,
                  (const uint8_t *)x + c * x_stride, x_stride, n, k);
    }
}
