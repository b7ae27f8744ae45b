/* The shared half of mul with AVX-512 VNNI for the quantised types: the order of an element's sum,
 * tiles of four rows for few columns, and unpacking sixteen rows for the panels of panel_vnni.c.
 *
 * The idea is the frame: four blocks of 32 values, one in each 128-bit lane of a register, the
 * first 16 values of all four in lo and the last 16 in hi.  A row of weights is a run of frames, so
 * an element is four sums, one per lane (chains), each over its blocks in order:
 *   t = isum * s (+ the second half's isum * s, where a scale covers 16 values, by fma)
 *   chain = fma(t, dx, chain), then fma(-m, dx * xsum, chain) for each minimum
 * and y = (chain 0 + chain 2) + (chain 1 + chain 3).  isum is the exact integer sum over the block
 * (or half), so the shape that computes it does not show: a tile adds up four rows with a
 * transposing tree, whose lanes are then [chain][row]; a panel has sixteen rows in the lanes and
 * walks the chains one after the other.  Both take values and scales from the same loaders.
 *
 * Weights are the unsigned side of vpdpbusd; what was added to make them so (minus) is taken off
 * in the integers by the sums of x. */
#ifndef RVK_DOT_VNNI_H
#define RVK_DOT_VNNI_H

#include <immintrin.h>
#include <string.h>

#include "dot/dot.h"
#include "dot/panel_vnni.h"

/* What a type's bytes become.  The loops see these as constants. */
typedef struct kind {
    size_t bytes; /* of a unit: 4 blocks of 32, or a block of 256 */
    int n_frames; /* in a unit: 1 or 2 */
    rvk_panel_type type;
} kind;

typedef struct values { /* of one row in a unit, by frame */
    __m512i lo[2], hi[2];
} values;

typedef struct scales { /* of four rows in a unit, by frame and half, lanes [chain][row] */
    __m512 s[2][2], m[2][2];
} scales;

typedef struct x_unit { /* of one column, by frame and half */
    __m512i lo[2], hi[2], start[2][2];
    __m512 d[2], sum[2][2]; /* sum: d * sum of the block or half */
} x_unit;

typedef void load_fn(values *v, const uint8_t *p);
typedef void heads_fn(scales *s, const uint8_t *const *p);

enum { UNIT32 = 4 * RVK_QK };

/* Lanes 0 and 2, or 1 and 3, of a and then of b. */
RVK_INLINE __m512i even(__m512i a, __m512i b) {
    return _mm512_shuffle_i64x2(a, b, 0x88);
}
RVK_INLINE __m512i odd(__m512i a, __m512i b) {
    return _mm512_shuffle_i64x2(a, b, 0xdd);
}

/* ---- for the heads of four rows ---- */

/* Sixteen bytes of four rows, one in each lane. */
RVK_INLINE __m512i rows128(const uint8_t *const *p) {
    const __m256i a = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p[0])),
        _mm_loadu_si128((const __m128i *)(const void *)p[1]), 1);
    const __m256i b = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p[2])),
        _mm_loadu_si128((const __m128i *)(const void *)p[3]), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

/* Halves i of the lanes of h as floats, over the rows of every chain. */
RVK_INLINE __m512 row_halves(__m512i h, const int i) {
    const long long at = 0x0018001000080000 + 0x0001000100010001LL * i;
    return _mm512_cvtph_ps(
        _mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_set1_epi64(at), h)));
}

RVK_INLINE __m512 u8_floats(__m128i v) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v));
}

RVK_INLINE __m512 i8_floats(__m128i v) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v));
}

/* ---- activations ---- */

/* 32-bit index mul * block + add over lane j, for the block that frame i has there. */
RVK_INLINE __m512i blocks(const kind t, const int i, const int mul, const int add) {
    const int o = i * t.type.delta * mul + add;
    const int b0 = rvk_panel_base(t.type.delta, 0) * mul + o;
    const int b1 = rvk_panel_base(t.type.delta, 1) * mul + o;
    const int b2 = rvk_panel_base(t.type.delta, 2) * mul + o;
    const int b3 = rvk_panel_base(t.type.delta, 3) * mul + o;
    return _mm512_setr_epi32(b0, b0, b0, b0, b1, b1, b1, b1, b2, b2, b2, b2, b3, b3, b3, b3);
}

/* Corrections for minus and sums for the minimums, from the sums of 16 at bsum. */
RVK_INLINE void load_sums(const kind t, x_unit *x, const uint8_t *bsum, __m512 d) {
    __m512i b;
    __m512 d_run = d;
    if (t.type.halves) {
        const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        b = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)bsum));
        d_run = _mm512_permutexvar_ps(twice, d);
    } else if (t.n_frames == 2) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)bsum);
        b = _mm512_castsi256_si512(_mm256_madd_epi16(v, _mm256_set1_epi16(1)));
    } else {
        const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)bsum);
        b = _mm512_castsi128_si512(_mm_madd_epi16(v, _mm_set1_epi16(1)));
    }
    const __m512i off = _mm512_mullo_epi32(b, _mm512_set1_epi32(-t.type.minus));
    const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(b), d_run);
    const int n_halves = t.type.halves ? 2 : 1;
    RVK_UNROLL
    for (int i = 0; i < t.n_frames; i++) {
        RVK_UNROLL
        for (int h = 0; h < n_halves; h++) {
            const __m512i at = blocks(t, i, n_halves, h);
            if (t.type.minus) x->start[i][h] = _mm512_permutexvar_epi32(at, off);
            if (t.type.has_min) x->sum[i][h] = _mm512_permutexvar_ps(at, sum);
        }
    }
}

RVK_INLINE void load_x(const kind t, x_unit *x, const uint8_t *q, const uint8_t *d,
                       const uint8_t *bsum) {
    const __m512i q0 = _mm512_loadu_si512(q), q1 = _mm512_loadu_si512(q + 64);
    __m512 dv;
    if (t.n_frames == 1) {
        x->lo[0] = even(q0, q1), x->hi[0] = odd(q0, q1);
        dv = _mm512_castps128_ps512(_mm_loadu_ps((const float *)(const void *)d));
    } else {
        const __m512i q2 = _mm512_loadu_si512(q + 128), q3 = _mm512_loadu_si512(q + 192);
        if (t.type.delta == RVK_PANEL_EVEN) {
            const __m512i lo0 = even(q0, q1), hi0 = odd(q0, q1);
            const __m512i lo1 = even(q2, q3), hi1 = odd(q2, q3);
            x->lo[0] = even(lo0, lo1), x->hi[0] = even(hi0, hi1);
            x->lo[1] = odd(lo0, lo1), x->hi[1] = odd(hi0, hi1);
        } else if (t.type.delta == RVK_PANEL_PAIR) {
            x->lo[0] = even(q0, q2), x->hi[0] = odd(q0, q2);
            x->lo[1] = even(q1, q3), x->hi[1] = odd(q1, q3);
        } else {
            x->lo[0] = even(q0, q1), x->hi[0] = odd(q0, q1);
            x->lo[1] = even(q2, q3), x->hi[1] = odd(q2, q3);
        }
        dv = _mm512_castps256_ps512(_mm256_loadu_ps((const float *)(const void *)d));
    }
    RVK_UNROLL
    for (int i = 0; i < t.n_frames; i++) x->d[i] = _mm512_permutexvar_ps(blocks(t, i, 1, 0), dv);
    load_sums(t, x, bsum, dv);
}

/* ---- the tile of four rows ---- */

/* Within each lane, the sums of the four integers of a, b, c and d. */
RVK_INLINE __m512i sums4(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* float(isum) of frame i in four rows; half 2 is both halves. */
RVK_INLINE __m512 isum4(const kind t, const values *v, const x_unit *x, int i, int half) {
    __m512i dot[4];
    RVK_UNROLL
    for (int r = 0; r < 4; r++) {
        const __m512i z = _mm512_setzero_si512();
        dot[r] = half == 1 ? z : _mm512_dpbusd_epi32(z, v[r].lo[i], x->lo[i]);
        if (half) dot[r] = _mm512_dpbusd_epi32(dot[r], v[r].hi[i], x->hi[i]);
    }
    __m512i sum = sums4(dot[0], dot[1], dot[2], dot[3]);
    if (t.type.minus) sum = _mm512_add_epi32(sum, x->start[i][half == 1]);
    return _mm512_cvtepi32_ps(sum);
}

RVK_INLINE void step(const kind t, load_fn load, heads_fn heads, const int C,
                     __m512 acc[RVK_TILE_C], const uint8_t *const *w, const uint8_t *const *xq,
                     const uint8_t *const *xd, const uint8_t *const *xb) {
    values v[4];
    scales sc;
    RVK_UNROLL
    for (int r = 0; r < 4; r++) load(&v[r], w[r]);
    heads(&sc, w);
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        x_unit x;
        load_x(t, &x, xq[c], xd[c], xb[c]);
        RVK_UNROLL
        for (int i = 0; i < t.n_frames; i++) {
            __m512 f;
            if (t.type.halves) {
                f = _mm512_mul_ps(isum4(t, v, &x, i, 0), sc.s[i][0]);
                f = _mm512_fmadd_ps(isum4(t, v, &x, i, 1), sc.s[i][1], f);
            } else {
                f = _mm512_mul_ps(isum4(t, v, &x, i, 2), sc.s[i][0]);
            }
            acc[c] = _mm512_fmadd_ps(f, x.d[i], acc[c]);
            if (t.type.has_min) acc[c] = _mm512_fnmadd_ps(sc.m[i][0], x.sum[i][0], acc[c]);
            if (t.type.has_min && t.type.halves)
                acc[c] = _mm512_fnmadd_ps(sc.m[i][1], x.sum[i][1], acc[c]);
        }
    }
}

/* The last 1..3 blocks of a row of 32-value blocks, with zeros behind them. */
typedef struct tail {
    uint8_t q[RVK_TILE_C][UNIT32];
    uint8_t d[RVK_TILE_C][16], bsum[RVK_TILE_C][16];
} tail;
typedef struct tail_rows {
    uint8_t at[4][UNIT32 + 16];
} tail_rows;

RVK_INLINE void copy_rows(const kind t, tail_rows *z, const uint8_t **wu, size_t left) {
    memset(z, 0, sizeof *z);
    for (int r = 0; r < 4; r++) {
        memcpy(z->at[r], wu[r], left * (t.bytes / 4));
        wu[r] = z->at[r];
    }
}

/* Rows w[0..3] and C columns; the first n_rows of the four results are written. */
RVK_INLINE void tile(const kind t, load_fn load, heads_fn heads, const int C, float *y, size_t ldy,
                     const uint8_t *w, size_t w_stride, size_t n_rows, const uint8_t *x,
                     size_t x_stride, size_t k) {
    const uint8_t *wr[4], *wu[4], *xq[RVK_TILE_C], *xd[RVK_TILE_C], *xb[RVK_TILE_C];
    __m512 acc[RVK_TILE_C];
    for (size_t r = 0; r < 4; r++) wr[r] = w + (r < n_rows ? r : 0) * w_stride;
    RVK_UNROLL
    for (int c = 0; c < C; c++) acc[c] = _mm512_setzero_ps();
    const size_t n = k / (size_t)(UNIT32 * t.n_frames), off_d = rvk_act_off_d(k);
    const size_t off_b = rvk_act_off_bsum(k), left = k % UNIT32 / RVK_QK;
    for (size_t i = 0; i <= n; i++) {
        if (i == n && !left) break;
        RVK_UNROLL
        for (int r = 0; r < 4; r++) wu[r] = wr[r] + i * t.bytes;
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            const uint8_t *xc = x + (size_t)c * x_stride;
            xq[c] = xc + i * (size_t)(UNIT32 * t.n_frames);
            xd[c] = xc + off_d + i * (size_t)(16 * t.n_frames);
            xb[c] = xc + off_b + i * (size_t)(16 * t.n_frames);
        }
        if (i == n) break;
        rvk_prefetch_rows(w, w_stride, 4, i * t.bytes, t.bytes);
        step(t, load, heads, C, acc, wu, xq, xd, xb);
    }
    if (t.n_frames == 1 && left) {
        tail z;
        tail_rows zw;
        copy_rows(t, &zw, wu, left);
        memset(&z, 0, sizeof z);
        for (int c = 0; c < C; c++) {
            memcpy(z.q[c], xq[c], left * RVK_QK);
            memcpy(z.d[c], xd[c], left * sizeof(float));
            memcpy(z.bsum[c], xb[c], left * 2 * sizeof(int16_t));
            xq[c] = z.q[c], xd[c] = z.d[c], xb[c] = z.bsum[c];
        }
        step(t, load, heads, C, acc, wu, xq, xd, xb);
    }
    const __mmask8 m = (__mmask8)(n_rows < 4 ? (1u << n_rows) - 1 : 15);
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        const __m256 h =
            _mm256_add_ps(_mm512_castps512_ps256(acc[c]), _mm512_extractf32x8_ps(acc[c], 1));
        _mm_mask_storeu_ps(y + (size_t)c * ldy, m,
                           _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
    }
}

/* ---- unpacking sixteen rows ---- */

/* out[j]: lane j of each of the four at in. */
RVK_INLINE void lanes4(__m512i out[4], const __m512i *in) {
    const __m512i a = _mm512_shuffle_i32x4(in[0], in[1], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(in[0], in[1], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(in[2], in[3], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(in[2], in[3], 0xee);
    out[0] = even(a, c), out[1] = odd(a, c), out[2] = even(b, d), out[3] = odd(b, d);
}

typedef struct quads { /* [..][quad of rows]: integers are values 4p..4p+3, lanes [chain][row] */
    __m512i q[2][8][4], s[2][2][4], m[2][2][4];
} quads;

/* Four rows into out.q[..][..][at] and the like. */
RVK_INLINE void unpack4(const kind t, load_fn load, heads_fn heads, quads *out, int at,
                        const uint8_t *const *w) {
    values v[4];
    scales sc;
    RVK_UNROLL
    for (int r = 0; r < 4; r++) load(&v[r], w[r]);
    heads(&sc, w);
    RVK_UNROLL
    for (int i = 0; i < t.n_frames; i++) {
        RVK_UNROLL
        for (int h = 0; h < 2; h++) {
            const __m512i a = h ? v[0].hi[i] : v[0].lo[i], b = h ? v[1].hi[i] : v[1].lo[i];
            const __m512i c = h ? v[2].hi[i] : v[2].lo[i], d = h ? v[3].hi[i] : v[3].lo[i];
            const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
            const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
            out->q[i][4 * h][at] = _mm512_unpacklo_epi64(ab0, cd0);
            out->q[i][4 * h + 1][at] = _mm512_unpackhi_epi64(ab0, cd0);
            out->q[i][4 * h + 2][at] = _mm512_unpacklo_epi64(ab1, cd1);
            out->q[i][4 * h + 3][at] = _mm512_unpackhi_epi64(ab1, cd1);
            if (h && !t.type.halves) continue;
            out->s[i][h][at] = _mm512_castps_si512(sc.s[i][h]);
            if (t.type.has_min) out->m[i][h][at] = _mm512_castps_si512(sc.m[i][h]);
        }
    }
}

/* Unit u of a panel: blocks n_blocks and on do not exist and are never read back. */
RVK_INLINE void unpack_unit(const kind t, load_fn load, heads_fn heads, rvk_panel *p,
                            const uint8_t *w, size_t w_stride, size_t u, size_t left) {
    quads z;
    RVK_UNROLL
    for (int at = 0; at < 4; at++) {
        const uint8_t *wu[4];
        tail_rows zw;
        for (size_t r = 0; r < 4; r++) {
            wu[r] = w + (4 * (size_t)at + r) * w_stride + u * t.bytes;
            for (size_t j = 0; j < t.bytes; j += 64) /* the next panel's */
                __builtin_prefetch((const void *)((uintptr_t)wu[r] + 16 * w_stride + j));
        }
        if (t.n_frames == 1 && left) copy_rows(t, &zw, wu, left);
        unpack4(t, load, heads, &z, at, wu);
    }
    for (int i = 0; i < t.n_frames; i++) {
        const size_t s = u * (size_t)t.n_frames + (size_t)i;
        __m512i out[4];
        for (int g = 0; g < 8; g++) {
            lanes4(out, z.q[i][g]);
            for (int j = 0; j < 4; j++) _mm512_store_si512(p->q[j][s][g], out[j]);
        }
        for (int h = 0; h < (t.type.halves ? 2 : 1); h++) {
            lanes4(out, z.s[i][h]);
            for (int j = 0; j < 4; j++) _mm512_store_si512(p->s[j][s][h], out[j]);
            if (!t.type.has_min) continue;
            lanes4(out, z.m[i][h]);
            for (int j = 0; j < 4; j++) _mm512_store_si512(p->m[j][s][h], out[j]);
        }
    }
}

RVK_INLINE void unpack(const kind t, load_fn load, heads_fn heads, rvk_panel *p, const uint8_t *w,
                       size_t w_stride, size_t k0, size_t n_blocks) {
    const size_t per = 4 * (size_t)t.n_frames, n = n_blocks / per;
    w += k0 / (per * RVK_QK) * t.bytes;
    for (size_t u = 0; u < n; u++) unpack_unit(t, load, heads, p, w, w_stride, u, 0);
    if (t.n_frames == 1 && n_blocks % 4)
        unpack_unit(t, load, heads, p, w, w_stride, n, n_blocks % 4);
}

/* ---- one type ---- */

#define RVK_TILE_ROWS(name, C)                                                                     \
    for (; c + (C) <= n_cols; c += (C))                                                            \
    tile(kind_##name, load_##name, heads_##name, C, y + c * ldy + r, ldy, wp + r * w_stride,       \
         w_stride, n_rows - r, xp + c * x_stride, x_stride, k)

/* After kind_<name>, load_<name> and heads_<name>: the function of the table. */
#define RVK_MUL_VNNI(name)                                                                         \
    static void unpack_##name(rvk_panel *p, const uint8_t *w, size_t w_stride, size_t k0,          \
                              size_t n_blocks) {                                                   \
        unpack(kind_##name, load_##name, heads_##name, p, w, w_stride, k0, n_blocks);              \
    }                                                                                              \
    void rvk_mul_##name##_vnni(RVK_MUL_ARGS) {                                                     \
        const uint8_t *wp = w, *xp = x;                                                            \
        size_t r = 0;                                                                              \
        if (n_cols >= RVK_PANEL_MIN_COLS) {                                                        \
            r = n_rows / RVK_PANEL_ROWS * RVK_PANEL_ROWS;                                          \
            rvk_panel_mul(&kind_##name.type, unpack_##name, y, ldy, w, w_stride, r, x, x_stride,   \
                          n_cols, k);                                                              \
        }                                                                                          \
        for (; r < n_rows; r += 4) {                                                               \
            size_t c = 0;                                                                          \
            RVK_TILE_ROWS(name, 4);                                                                \
            RVK_TILE_ROWS(name, 2);                                                                \
            RVK_TILE_ROWS(name, 1);                                                                \
        }                                                                                          \
    }

#endif
