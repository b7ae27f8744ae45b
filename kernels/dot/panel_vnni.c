/* Panels with AVX-512 VNNI: packing sixteen rows, and the loops that know no format.
 *
 * Many columns: lanes are rows, so one load of codes serves eight columns, a column's four values
 * are one broadcast, and a block of 32 ends in one conversion and two multiplications for sixteen
 * elements.  Chain goes after chain, and their sums wait in acc while k goes by in pieces. */
#include "dot/panel_vnni.h"

enum { COLS = RVK_GROUP_COLS, MAX_COLS = 128 };

/* ---- packing ---- */

/* Four words of sixteen rows to where they belong: lane l of in[i] is row 4 l + i. */
RVK_INLINE void pack16(uint8_t *dst, const uint8_t *to, const uint8_t *const *row, size_t at) {
    __m512i in[4];
    RVK_UNROLL
    for (int i = 0; i < 4; i++) {
        in[i] = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(row[i] + at)));
        RVK_UNROLL
        for (int l = 1; l < 4; l++)
            in[i] =
                _mm512_mask_broadcast_i32x4(in[i], (__mmask16)(15 << 4 * l),
                                            _mm_loadu_si128((const void *)(row[4 * l + i] + at)));
    }
    const __m512i a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpackhi_epi32(in[0], in[1]);
    const __m512i c = _mm512_unpacklo_epi32(in[2], in[3]), d = _mm512_unpackhi_epi32(in[2], in[3]);
    _mm512_storeu_si512(dst + 64 * (size_t)to[0], _mm512_unpacklo_epi64(a, c));
    _mm512_storeu_si512(dst + 64 * (size_t)to[1], _mm512_unpackhi_epi64(a, c));
    _mm512_storeu_si512(dst + 64 * (size_t)to[2], _mm512_unpacklo_epi64(b, d));
    _mm512_storeu_si512(dst + 64 * (size_t)to[3], _mm512_unpackhi_epi64(b, d));
}

/* n blocks of the type from block b0 of the rows at w.  As much of the next sixteen rows is
 * asked for meanwhile, as no hardware follows so many streams.  No type has fewer than four words;
 * where they are not a multiple of four the last sixteen bytes overlap. */
static void pack(int type, uint8_t *dst, const uint8_t *w, size_t w_stride, size_t n_rows,
                 size_t b0, size_t n) {
    const rvk_panel_type *t = &rvk_panel_types[type];
    const size_t bytes = rvk_dtypes[type].block_bytes, n_words = (size_t)t->n_words;
    const uint8_t *row[RVK_PANEL_ROWS];
    uint8_t to[RVK_QKK / 4];
    for (size_t i = 0; i < n_words; i++) to[i] = (uint8_t)rvk_panel_at(type, i);
    for (size_t r = 0; r < RVK_PANEL_ROWS; r++)
        row[r] = w + (r < n_rows ? r : n_rows - 1) * w_stride + b0 * bytes;
    uintptr_t next = (uintptr_t)w + RVK_PANEL_ROWS * (w_stride + b0 * bytes);
    const size_t per = n_words > 8 ? 1 : 4;
    uint8_t *d = dst, *words = dst;
    for (size_t b = 0; b < n; b++, words += n_words * 64) {
        const size_t first = b * bytes + (t->d_at == 0 ? 2 : 0);
        if (b % per == 0) {
            d = words;
            words += rvk_panel_d_bytes(*t);
        }
        for (size_t r = 0; t->d_at >= 0 && r < RVK_PANEL_ROWS; r++)
            memcpy(d + (b % per * RVK_PANEL_ROWS + r) * 2, row[r] + b * bytes + (size_t)t->d_at, 2);
        for (const uintptr_t end = next + RVK_PANEL_ROWS * bytes; next < end; next += 64)
            __builtin_prefetch((const void *)next, 0, 2);
        for (size_t i = 0; i < n_words; i += 4) {
            const size_t at = i + 4 > n_words ? n_words - 4 : i;
            pack16(words, to + at, row, first + 4 * at);
        }
    }
}

void rvk_panel_pack_vnni(RVK_PACK_ARGS) {
    pack(type, dst, w, w_stride, n_rows, 0, k / rvk_dtypes[type].block_values);
}

/* ---- columns ---- */

RVK_INLINE void fill_sum(const rvk_panel_type *t, rvk_group *g, size_t c, int h, size_t b,
                         __m512i sum, __m512 d) {
    _mm512_store_si512(g->start[c][h] + b, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-t->minus)));
    if (t->has_min) _mm512_store_ps(g->sum[c][h] + b, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), d));
}

/* Planes d and bsum end on multiples of 64 bytes, so whole registers may be read. */
static void fill_group(const rvk_panel_type *t, rvk_group *g, const uint8_t *xd, const uint8_t *xb,
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

/* float(isum) of C columns over n times four values of sixteen rows, from half h on. */
RVK_INLINE void isums(const int C, const int n, const int h, __m512 *out, const uint8_t (*q)[64],
                      const rvk_group *g, const uint8_t *const *x, size_t b) {
    __m512i sum[COLS];
    RVK_UNROLL
    for (int c = 0; c < C; c++) sum[c] = _mm512_set1_epi32(g->start[c][h][b]);
    RVK_UNROLL
    for (int i = 4 * h; i < 4 * h + n; i++) {
        const __m512i w = _mm512_load_si512(q[i]);
        RVK_UNROLL
        for (int c = 0; c < C; c++)
            sum[c] = _mm512_dpbusd_epi32(sum[c], w, rvk_four(x[c] + b * RVK_QK + 4 * i));
    }
    RVK_UNROLL
    for (int c = 0; c < C; c++) out[c] = _mm512_cvtepi32_ps(sum[c]);
}

/* C columns at x under the piece; acc [C]. */
RVK_INLINE void micro(const int C, const bool halves, const bool has_min, int delta,
                      rvk_chains *acc, const rvk_expanded *p, const rvk_group *g, const uint8_t *x0,
                      size_t x_stride, size_t n_blocks) {
    const uint8_t *x[COLS], *next = g->next;
    RVK_UNROLL
    for (int c = 0; c < C; c++) x[c] = x0 + (size_t)c * x_stride;
    for (size_t j = 0; j < 4; j++) {
        __m512 a[COLS];
        RVK_UNROLL
        for (int c = 0; c < C; c++) a[c] = _mm512_load_ps(acc[c][j]);
        size_t b = (size_t)rvk_chain_base(delta, (int)j), other = (size_t)delta;
        for (size_t s = 0; s < (n_blocks + 3 - j) / 4; s++) {
            __m512 f[COLS];
            const __m512 s0 = _mm512_load_ps(p->s[j][s][0]);
            for (const uint8_t *end = next + g->ahead; next < end; next += 64)
                __builtin_prefetch(next, 0, 2);
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

typedef void micro_fn(int delta, rvk_chains *acc, const rvk_expanded *p, const rvk_group *g,
                      const uint8_t *x, size_t x_stride, size_t n_blocks);

#define MICRO(C, halves, has_min)                                                                  \
    static void micro_##C##halves##has_min(int delta, rvk_chains *acc, const rvk_expanded *p,      \
                                           const rvk_group *g, const uint8_t *x, size_t x_stride,  \
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

/* ---- a panel ---- */

/* Where its weights are: packed (stride 0), or n_rows rows still to be packed. */
typedef struct source {
    const uint8_t *w;
    size_t stride, n_rows;
} source;

/* One piece of k for all columns.  next: the bytes behind it in memory, or NULL; the first two
 * groups of columns fetch them, as expanding waits for nothing else. */
static void piece(const rvk_vnni_type *t, rvk_chains *acc, const uint8_t *w, const uint8_t *next,
                  const uint8_t *xq, const uint8_t *xd, const uint8_t *xb, size_t x_stride,
                  size_t n_cols, size_t n_blocks) {
    const rvk_panel_type *p = &t->panel;
    rvk_group g; /* not cleared as a whole: that would cost */
    rvk_expanded e;
    g.next = next;
    g.ahead = next ? (size_t)(next - w) / n_blocks / (n_cols < 2 * COLS ? 1 : 2) : 0;
    const bool few = n_cols <= RVK_FEW_COLS;
    if (!few) t->expand(&e, w, n_blocks);
    size_t c = 0;
    for (size_t i = few ? 1 : 0; i < 4; i++) {
        for (const size_t n = COLS >> i; c + n <= n_cols; c += n) {
            const size_t o = c * x_stride;
            fill_group(p, &g, xd + o, xb + o, x_stride, n, n_blocks);
            if (few)
                t->few[i - 1](acc + c, w, &g, xq + o, x_stride, n_blocks);
            else
                MICRO[i][p->halves][p->has_min](p->delta, acc + c, &e, &g, xq + o, x_stride,
                                                n_blocks);
            g.next += g.ahead * n_blocks;
            if (c + n >= 2 * COLS) g.ahead = 0;
        }
    }
}

/* Sixteen rows, n_rows of them wanted, under at most MAX_COLS columns. */
static void panel(const rvk_vnni_type *t, float *y, size_t ldy, const source *s, const uint8_t *x,
                  size_t x_stride, size_t n_cols, size_t k) {
    _Alignas(64) uint8_t room[RVK_PIECE_BYTES];
    _Alignas(64) rvk_chains acc[MAX_COLS];
    const size_t values = rvk_dtypes[t->type].block_values;
    memset(acc, 0, n_cols * sizeof *acc);
    for (size_t k0 = 0; k0 < k; k0 += RVK_PIECE_K) {
        const size_t n = k - k0 < RVK_PIECE_K ? k - k0 : RVK_PIECE_K;
        const uint8_t *w = s->w + rvk_panel_bytes(t->type, k0), *next = NULL;
        if (s->stride) {
            pack(t->type, room, s->w, s->stride, s->n_rows, k0 / values, n / values);
            w = room;
        } else {
            next = w + rvk_panel_bytes(t->type, n);
        }
        piece(t, acc, w, next, x + k0, x + rvk_act_off_d(k) + k0 / 8,
              x + rvk_act_off_bsum(k) + k0 / 8, x_stride, n_cols, n / RVK_QK);
    }
    const __mmask16 m = (__mmask16)(s->n_rows < RVK_PANEL_ROWS ? (1u << s->n_rows) - 1 : 0xffffu);
    for (size_t c = 0; c < n_cols; c++) {
        const __m512 a = _mm512_add_ps(_mm512_load_ps(acc[c][0]), _mm512_load_ps(acc[c][2]));
        const __m512 b = _mm512_add_ps(_mm512_load_ps(acc[c][1]), _mm512_load_ps(acc[c][3]));
        _mm512_mask_storeu_ps(y + c * ldy, m, _mm512_add_ps(a, b));
    }
}

static void panels(const rvk_vnni_type *t, float *y, size_t ldy, const uint8_t *w, size_t w_stride,
                   size_t n_rows, const uint8_t *x, size_t x_stride, size_t n_cols, size_t k) {
    const size_t step = w_stride ? RVK_PANEL_ROWS * w_stride : rvk_panel_bytes(t->type, k);
    for (size_t c = 0; c < n_cols; c += MAX_COLS) {
        const size_t n = n_cols - c < MAX_COLS ? n_cols - c : MAX_COLS;
        source s = {w, w_stride, 0};
        for (size_t r = 0; r < n_rows; r += RVK_PANEL_ROWS, s.w += step) {
            s.n_rows = n_rows - r < RVK_PANEL_ROWS ? n_rows - r : RVK_PANEL_ROWS;
            panel(t, y + c * ldy + r, ldy, &s, x + c * x_stride, x_stride, n, k);
        }
    }
}

void rvk_vnni_mul(const rvk_vnni_type *t, RVK_MUL_ARGS) {
    panels(t, y, ldy, w, w_stride, n_rows, x, x_stride, n_cols, k);
}

void rvk_vnni_mul_panels(const rvk_vnni_type *t, RVK_PANELS_ARGS) {
    panels(t, y, ldy, w, 0, n_rows, x, x_stride, n_cols, k);
}
