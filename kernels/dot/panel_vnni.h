/* The frame of the AVX-512 VNNI versions: what a type brings (a file per kind of scale), and the
 * loops made from it.
 *
 * A type says how a block of its panel becomes codes (a register holds four values of sixteen rows,
 * the unsigned side of vpdpbusd) and scales (a lane per row).  From that follow two shapes.  Few
 * columns: a block is expanded in registers and used for one, two or four columns at once, so that
 * one column is bound by memory.  Many: a piece of the panel is expanded once and panel_vnni.c
 * multiplies it with all columns.  Rows that are not packed are packed a piece at a time first. */
#ifndef RVK_DOT_PANEL_VNNI_H
#define RVK_DOT_PANEL_VNNI_H

#include <immintrin.h>
#include <string.h>

#include "dot/panel.h"

enum {
    RVK_PIECE_K = 1024, /* values of a row that are worked on at a time: 16 KiB of codes */
    RVK_PIECE_BLOCKS = RVK_PIECE_K / RVK_QK,
    RVK_PIECE_BYTES = RVK_PIECE_BLOCKS / 4 * (128 + 4 * 8 * 64), /* of Q8_0, the largest */
    RVK_FEW_COLS = 4, /* up to here, expanding again costs less than writing it down */
    RVK_GROUP_COLS = 8
};

/* What is fetched by hand under few columns.  Hardware follows one stream well, but not across a
 * page of 4 KiB: types that lose by that have the first lines of the next page fetched (Zen 4, one
 * thread, one column, GB/s: Q6_K 23.6 without, 28.0 so, 21.7 with everything 16 KiB ahead; Q4_K
 * 30.3, 27.7, 25.7).  Columns slow the reads down until everything 16 KiB ahead is best (Q6_K,
 * four: 15.6, 18.7, 22.6). */
typedef enum rvk_fetch { RVK_FETCH_NONE, RVK_FETCH_PAGES, RVK_FETCH_ALL } rvk_fetch;

typedef float rvk_chains[4][RVK_PANEL_ROWS]; /* of one column */

/* What a group of columns needs per block of a piece beside its values. */
typedef struct rvk_group {
    _Alignas(64) float d[RVK_GROUP_COLS][RVK_PIECE_BLOCKS];
    int32_t start[RVK_GROUP_COLS][2][RVK_PIECE_BLOCKS]; /* -minus * sum, by half or in the first */
    float sum[RVK_GROUP_COLS][2][RVK_PIECE_BLOCKS];     /* d * sum, likewise */
    const uint8_t *next;                                /* weights to fetch meanwhile, */
    size_t ahead;                                       /* so many bytes per block */
} rvk_group;

typedef struct rvk_expanded { /* a piece of a panel, [chain][step] */
    _Alignas(64) uint8_t q[4][RVK_PIECE_BLOCKS / 4][8][4 * RVK_PANEL_ROWS];
    float s[4][RVK_PIECE_BLOCKS / 4][2][RVK_PANEL_ROWS]; /* [half][row] */
    float m[4][RVK_PIECE_BLOCKS / 4][2][RVK_PANEL_ROWS];
} rvk_expanded;

/* n_blocks blocks of 32 of a piece of a panel at w; x: values of the columns. */
typedef void rvk_few_fn(rvk_chains *acc, const uint8_t *w, const rvk_group *g, const uint8_t *x,
                        size_t x_stride, size_t n_blocks);
typedef void rvk_expand_fn(rvk_expanded *e, const uint8_t *w, size_t n_blocks);

typedef struct rvk_vnni_type {
    int type; /* RVK_Q4_0 .. */
    rvk_panel_type panel;
    rvk_few_fn *few[3]; /* 4, 2 and 1 columns */
    rvk_expand_fn *expand;
} rvk_vnni_type;

/* The functions of the table for one type. */
void rvk_vnni_mul(const rvk_vnni_type *t, RVK_MUL_ARGS);
void rvk_vnni_mul_panels(const rvk_vnni_type *t, RVK_PANELS_ARGS);

/* ---- a block in registers ---- */

typedef struct rvk_codes {
    __m512i q[8];      /* values 4g .. 4g + 3 of every row */
    __m512 s[2], m[2]; /* by half; the whole block in the first */
} rvk_codes;

/* What the blocks of a unit share: four blocks of 32, or one of 256. */
typedef struct rvk_head {
    __m512 d, dmin;
    __m512i s[4], m[2];
} rvk_head;

typedef void rvk_head_fn(rvk_head *h, const uint8_t *p);
/* Block b of the unit at p. */
typedef void rvk_block_fn(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b);

RVK_INLINE __m512i rvk_word(const uint8_t *p, int i) {
    return _mm512_loadu_si512(p + 64 * i);
}

/* Word i of a block of the type. */
RVK_INLINE __m512i rvk_word_of(const int type, const uint8_t *p, const int i) {
    return rvk_word(p, (int)rvk_panel_at(type, (size_t)i));
}

/* The 16-bit scales before the words, and those in the low or high half of a word. */
RVK_INLINE __m512 rvk_halves(const uint8_t *d) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)d));
}
RVK_INLINE __m512 rvk_low_half(__m512i w) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(w));
}
RVK_INLINE __m512 rvk_high_half(__m512i w) {
    return rvk_low_half(_mm512_srli_epi32(w, 16));
}

/* Byte i of every word as a float. */
RVK_INLINE __m512 rvk_byte(__m512i w, const int i) {
    if (i < 3) w = _mm512_and_si512(_mm512_srli_epi32(w, 8 * i), _mm512_set1_epi32(255));
    return _mm512_cvtepi32_ps(i < 3 ? w : _mm512_srli_epi32(w, 24));
}
RVK_INLINE __m512 rvk_signed_byte(__m512i w, const int i) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(w, 24 - 8 * i), 24));
}

/* ---- the loops ---- */

/* Chain and step (in the unit) of block b of a unit. */
RVK_INLINE int rvk_chain(const int delta, const int b) {
    return delta == RVK_CHAIN_EVEN ? b / 2 : delta == RVK_CHAIN_PAIR ? b % 2 + b / 4 * 2 : b % 4;
}
RVK_INLINE int rvk_step(const int delta, const int b) {
    return delta == RVK_CHAIN_EVEN ? b % 2 : delta == RVK_CHAIN_PAIR ? b / 2 % 2 : b / 4;
}

RVK_INLINE __m512i rvk_four(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* float(isum) of one column over n times four values from half h on. */
RVK_INLINE __m512 rvk_isum(const rvk_codes *k, const int n, const int h, int32_t start,
                           const uint8_t *x) {
    __m512i sum = _mm512_set1_epi32(start);
    RVK_UNROLL
    for (int i = 4 * h; i < 4 * h + n; i++)
        sum = _mm512_dpbusd_epi32(sum, k->q[i], rvk_four(x + 4 * i));
    return _mm512_cvtepi32_ps(sum);
}

/* Column c of the group under the codes k of block b of the piece. */
RVK_INLINE __m512 rvk_add_block(const rvk_panel_type t, __m512 acc, const rvk_codes *k,
                                const rvk_group *g, const int c, size_t b, const uint8_t *x) {
    __m512 f = _mm512_mul_ps(rvk_isum(k, t.halves ? 4 : 8, 0, g->start[c][0][b], x), k->s[0]);
    if (t.halves) f = _mm512_fmadd_ps(rvk_isum(k, 4, 1, g->start[c][1][b], x), k->s[1], f);
    acc = _mm512_fmadd_ps(f, _mm512_set1_ps(g->d[c][b]), acc);
    if (t.has_min) acc = _mm512_fnmadd_ps(k->m[0], _mm512_set1_ps(g->sum[c][0][b]), acc);
    if (t.has_min && t.halves)
        acc = _mm512_fnmadd_ps(k->m[1], _mm512_set1_ps(g->sum[c][1][b]), acc);
    return acc;
}

RVK_INLINE void rvk_fetch_line(const rvk_fetch fetch, const uint8_t *w) {
    if (fetch == RVK_FETCH_ALL) __builtin_prefetch(w + 16384, 0, 2);
    if (fetch == RVK_FETCH_PAGES && (uintptr_t)w % 4096 < 256) __builtin_prefetch(w + 2048, 0, 2);
}

RVK_INLINE void rvk_few(const rvk_panel_type t, rvk_head_fn head, rvk_block_fn block,
                        const rvk_fetch fetch, const int C, rvk_chains *acc, const uint8_t *w,
                        const rvk_group *g, const uint8_t *x, size_t x_stride, size_t n_blocks) {
    const int per = rvk_unit_blocks(t);
    const size_t lines = rvk_unit_bytes(t) / 64;
    __m512 a[RVK_FEW_COLS][4];
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        RVK_UNROLL
        for (int j = 0; j < 4; j++) a[c][j] = _mm512_load_ps(acc[c][j]);
    }
    for (size_t b0 = 0; b0 < n_blocks; b0 += (size_t)per) {
        rvk_head h;
        head(&h, w);
        RVK_UNROLL
        for (int b = 0; b < per; b++) {
            rvk_codes k;
            if (per == 4 && b0 + (size_t)b == n_blocks) break;
            block(&k, &h, w, b);
            for (size_t i = lines * (size_t)b / (size_t)per;
                 i < lines * (size_t)(b + 1) / (size_t)per; i++)
                rvk_fetch_line(fetch, w + 64 * i);
            RVK_UNROLL
            for (int c = 0; c < C; c++) {
                const int j = rvk_chain(t.delta, b);
                a[c][j] = rvk_add_block(t, a[c][j], &k, g, c, b0 + (size_t)b,
                                        x + (size_t)c * x_stride + (b0 + (size_t)b) * RVK_QK);
            }
        }
        w += rvk_unit_bytes(t);
    }
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        RVK_UNROLL
        for (int j = 0; j < 4; j++) _mm512_store_ps(acc[c][j], a[c][j]);
    }
}

RVK_INLINE void rvk_expand(const rvk_panel_type t, rvk_head_fn head, rvk_block_fn block,
                           rvk_expanded *e, const uint8_t *w, size_t n_blocks) {
    const int per = rvk_unit_blocks(t);
    for (size_t b0 = 0; b0 < n_blocks; b0 += (size_t)per) {
        rvk_head h;
        head(&h, w);
        RVK_UNROLL
        for (int b = 0; b < per; b++) {
            rvk_codes k;
            if (per == 4 && b0 + (size_t)b == n_blocks) break;
            const int j = rvk_chain(t.delta, b);
            const size_t s = b0 / 4 + (size_t)rvk_step(t.delta, b);
            block(&k, &h, w, b);
            RVK_UNROLL
            for (int i = 0; i < 8; i++) _mm512_store_si512(e->q[j][s][i], k.q[i]);
            RVK_UNROLL
            for (int i = 0; i < 2; i++) {
                if (i && !t.halves) continue;
                _mm512_store_ps(e->s[j][s][i], k.s[i]);
                if (t.has_min) _mm512_store_ps(e->m[j][s][i], k.m[i]);
            }
        }
        w += rvk_unit_bytes(t);
    }
}

#define RVK_VNNI_FEW(name, FETCH, C)                                                               \
    static void few_##name##_##C(rvk_chains *acc, const uint8_t *w, const rvk_group *g,            \
                                 const uint8_t *x, size_t x_stride, size_t n_blocks) {             \
        rvk_few((rvk_panel_type)RVK_PANEL_##name, head_##name, block_##name, FETCH, C, acc, w, g,  \
                x, x_stride, n_blocks);                                                            \
    }

/* After head_<name> and block_<name>: the functions of the table.  FETCH: under one column. */
#define RVK_VNNI_TYPE(name, NUMBER, FETCH)                                                         \
    RVK_VNNI_FEW(name, RVK_FETCH_##FETCH, 1)                                                       \
    RVK_VNNI_FEW(name, RVK_FETCH_ALL, 2)                                                           \
    RVK_VNNI_FEW(name, RVK_FETCH_ALL, 4)                                                           \
    static void expand_##name(rvk_expanded *e, const uint8_t *w, size_t n_blocks) {                \
        rvk_expand((rvk_panel_type)RVK_PANEL_##name, head_##name, block_##name, e, w, n_blocks);   \
    }                                                                                              \
    static const rvk_vnni_type type_##name = {RVK_##NUMBER,                                        \
                                              RVK_PANEL_##name,                                    \
                                              {few_##name##_4, few_##name##_2, few_##name##_1},    \
                                              expand_##name};                                      \
    void rvk_mul_##name##_vnni(RVK_MUL_ARGS) {                                                     \
        rvk_vnni_mul(&type_##name, y, ldy, w, w_stride, n_rows, x, x_stride, n_cols, k);           \
    }                                                                                              \
    void rvk_mul_panels_##name##_vnni(RVK_PANELS_ARGS) {                                           \
        rvk_vnni_mul_panels(&type_##name, y, ldy, w, n_rows, x, x_stride, n_cols, k);              \
    }

#endif
