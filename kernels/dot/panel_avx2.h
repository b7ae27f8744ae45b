/* What the AVX2 files of the quantised mul share: a piece of a panel with its scales worked out,
 * and the step over one block of 32 values of sixteen rows.
 *
 * The idea: lanes are rows, two registers of eight.  Four codes of a row meet the same four values
 * of x in vpmaddubsw, whose pairs stay in int16 as long as they fit there:
 *   codes  |code * x| * 2   may be added (kind.fit)
 *   <= 15  3810             8 times, 30480: a whole block
 *   <= 31  7874             4 times, 31496
 *   <= 63  16002            2 times, 32004
 *   signed 128 * 127 * 2 = 32512, not once more; as |w| times x with the sign of w (-128 is 128
 *          as an unsigned byte, and x, within +-127, has a negative of every value)
 * and vpmaddwd with ones takes them to int32.  The integers are exact and the order of the floats
 * is that of panel.h, so the bits are those of the other instruction sets. */
#ifndef RVK_DOT_PANEL_AVX2_H
#define RVK_DOT_PANEL_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "dot/panel.h"

enum {
    PIECE_K = 1024, /* values of a row in a piece: 16 KiB of codes stay in the first cache */
    BLOCKS = PIECE_K / RVK_QK,
    COLS = 4, /* that share loaded codes: eight sums of eight rows */
    WORD = 4 * RVK_PANEL_ROWS
};

/* Sixteen rows of a piece of k, by blocks of 32. */
typedef struct piece {
    _Alignas(64) uint8_t q[BLOCKS][8][WORD]; /* codes: [values / 4][row][4] */
    float s[BLOCKS][2][RVK_PANEL_ROWS];      /* [half][row]; whole blocks in the first */
    float m[BLOCKS][2][RVK_PANEL_ROWS];
} piece;

/* What up to COLS columns need per block beside their values. */
typedef struct group {
    _Alignas(32) float d[COLS][BLOCKS];
    int32_t start[COLS][2][BLOCKS]; /* -minus * sum, by half */
    float sum[COLS][2][BLOCKS];     /* d * sum */
} group;

typedef float chains[4][RVK_PANEL_ROWS]; /* of a column */

typedef struct kind {
    rvk_panel_type type;
    int fit; /* products that int16 holds the sum of; 1: codes are signed and minus is not used */
} kind;

/* One format: its panels taken apart, and its loops over blocks. */
typedef struct format {
    int type;
    rvk_panel_type panel;
    /* Scales and minimums, then codes: of n blocks of the type from the unit at w on. */
    void (*take)(piece *p, const uint8_t *w, size_t n);
    /* 2 or 1 columns straight from the words of n blocks of the type; scales pass through p. */
    void (*few[2])(chains *acc, piece *p, const group *g, const uint8_t *w, const uint8_t *x,
                   size_t x_stride, size_t n);
    /* 4, 2 or 1 columns from the piece: n blocks of 32. */
    void (*micro[3])(chains *acc, const piece *p, const group *g, const uint8_t *x, size_t x_stride,
                     size_t n);
} format;

void rvk_panel_mul_avx2(const format *f, RVK_MUL_ARGS);
void rvk_panel_mul_panels_avx2(const format *f, RVK_PANELS_ARGS);

/* Eight rows: codes 4g .. 4g + 3 of block j of the words at w (of the first or last eight rows). */
typedef __m256i codes_fn(const uint8_t *w, int j, int g);

/* The words of block i of the type, and its scales where they are apart; w: the first unit. */
RVK_INLINE const uint8_t *words_of(const rvk_panel_type t, const uint8_t *w, size_t i) {
    const size_t per = t.n_words > 8 ? 1 : 4;
    return w + i / per * rvk_unit_bytes(t) + rvk_panel_d_bytes(t) +
           i % per * (size_t)(t.n_words * WORD);
}
RVK_INLINE const uint8_t *apart_of(const rvk_panel_type t, const uint8_t *w, size_t i) {
    const size_t per = t.n_words > 8 ? 1 : 4;
    return w + i / per * rvk_unit_bytes(t) + i % per * 2 * RVK_PANEL_ROWS;
}

RVK_INLINE __m256i word8(const uint8_t *w, int i) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(w + WORD * i));
}

RVK_INLINE __m256i four_of(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

/* Compilers like to add in trees, for which there are not registers enough: sixteen sums of eight
 * would go through memory.  v is what it was. */
#define IN_ORDER(v) __asm__("" : "+x"(v))

/* Sums of codes * x over n times four values from g0 on: C columns, two times eight rows. */
RVK_INLINE void isums(const kind t, codes_fn codes, const int C, const int g0, const int n,
                      __m256i sum[COLS][2], const uint8_t *w, const int j,
                      const uint8_t *const *x) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i part[COLS][2];
    RVK_UNROLL
    for (int i = 0; i < n; i++) {
        __m256i q[2], size[2];
        RVK_UNROLL
        for (int h = 0; h < 2; h++) {
            q[h] = codes(w + 32 * h, j, g0 + i);
            if (t.fit == 1) size[h] = _mm256_abs_epi8(q[h]);
        }
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            const __m256i xv = four_of(x[c] + 4 * (g0 + i));
            RVK_UNROLL
            for (int h = 0; h < 2; h++) {
                const __m256i p = t.fit == 1
                                      ? _mm256_maddubs_epi16(size[h], _mm256_sign_epi8(xv, q[h]))
                                      : _mm256_maddubs_epi16(q[h], xv);
                part[c][h] = i % t.fit ? _mm256_add_epi16(part[c][h], p) : p;
                IN_ORDER(part[c][h]);
                if ((i + 1) % t.fit && i + 1 < n) continue;
                const __m256i s = _mm256_madd_epi16(part[c][h], ones);
                sum[c][h] = i < t.fit ? s : _mm256_add_epi32(sum[c][h], s);
                IN_ORDER(sum[c][h]);
            }
        }
    }
}

/* Block b of the piece, on its chain, for C columns whose values of the block are at x. */
RVK_INLINE void block_step(const kind t, codes_fn codes, const int C, chains *acc, const piece *p,
                           const group *g, const uint8_t *w, const int j, const uint8_t *const *x,
                           size_t b, size_t chain) {
    const int n_halves = t.type.halves ? 2 : 1, n_mins = t.type.has_min ? n_halves : 0;
    __m256 f[COLS][2];
    RVK_UNROLL
    for (int half = 0; half < n_halves; half++) {
        __m256i sum[COLS][2];
        isums(t, codes, C, 4 * half, 8 / n_halves, sum, w, j, x);
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            RVK_UNROLL
            for (int h = 0; h < 2; h++) {
                __m256i v = sum[c][h];
                const __m256 s = _mm256_load_ps(p->s[b][half] + 8 * h);
                if (t.type.minus && t.fit > 1)
                    v = _mm256_add_epi32(v, _mm256_set1_epi32(g->start[c][half][b]));
                f[c][h] = half ? _mm256_fmadd_ps(_mm256_cvtepi32_ps(v), s, f[c][h])
                               : _mm256_mul_ps(_mm256_cvtepi32_ps(v), s);
            }
        }
    }
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        RVK_UNROLL
        for (int h = 0; h < 2; h++) {
            float *a = acc[c][chain] + 8 * h;
            __m256 v = _mm256_fmadd_ps(f[c][h], _mm256_set1_ps(g->d[c][b]), _mm256_load_ps(a));
            RVK_UNROLL
            for (int half = 0; half < n_mins; half++)
                v = _mm256_fnmadd_ps(_mm256_load_ps(p->m[b][half] + 8 * h),
                                     _mm256_set1_ps(g->sum[c][half][b]), v);
            _mm256_store_ps(a, v);
        }
    }
}

/* The chain of block b, see rvk_chain_base. */
RVK_INLINE size_t chain_of(const int delta, size_t b) {
    return delta == RVK_CHAIN_EVEN   ? b % 8 / 2
           : delta == RVK_CHAIN_PAIR ? b % 2 + b / 4 % 2 * 2
                                     : b % 4;
}

#endif
