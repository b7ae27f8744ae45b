/* What the vector versions of the quantised mul share: the shape of a type's panel, and the order
 * of an element's sum.
 *
 * An element is four sums (chains) over blocks of 32 values, chain j taking its blocks in order:
 *   t = isum * s (+ the second half's isum * s, where a scale covers 16 values, by fma)
 *   chain = fma(t, dx, chain), then fma(-m, dx * xsum, chain) for each minimum
 * and y = (chain 0 + chain 2) + (chain 1 + chain 3).  isum is the exact integer sum over the block
 * (or half) converted to float32, s and m are the float32 products ggml defines, dx the scale of x,
 * xsum the integer sum of its values converted to float32 (dx * xsum is one float32 product).
 * Lanes are rows, so no shape of the loop around it shows in the bits. */
#ifndef RVK_DOT_PANEL_H
#define RVK_DOT_PANEL_H

#include "dot/dot.h"

/* Which block step s of chain j takes: base(j) + 8 * (s / 2) + delta * (s % 2). */
enum { RVK_CHAIN_EVEN = 1, RVK_CHAIN_PAIR = 2, RVK_CHAIN_SEQ = 4 };

typedef struct rvk_panel_type {
    int n_words; /* of 32 bits in a block */
    int d_at;    /* bytes before the scale that is left out of them; -1: none */
    int delta;   /* RVK_CHAIN_.. */
    int minus;   /* code - minus is the value, codes are unsigned */
    bool has_min;
    bool halves; /* scales and minimums cover 16 values, not 32 */
} rvk_panel_type;

/* The types, as initialisers, so that loops may see them as constants. */
#define RVK_PANEL_WORDS(block, d) (int)((sizeof(block) - ((d) < 0 ? 0 : 2)) / 4), (d)
#define RVK_PANEL_q4_0 {RVK_PANEL_WORDS(rvk_q4_0, 0), RVK_CHAIN_SEQ, 8, false, false}
#define RVK_PANEL_q4_1 {RVK_PANEL_WORDS(rvk_q4_1, -1), RVK_CHAIN_SEQ, 0, true, false}
#define RVK_PANEL_q5_0 {RVK_PANEL_WORDS(rvk_q5_0, 0), RVK_CHAIN_SEQ, 16, false, false}
#define RVK_PANEL_q5_1 {RVK_PANEL_WORDS(rvk_q5_1, -1), RVK_CHAIN_SEQ, 0, true, false}
#define RVK_PANEL_q8_0 {RVK_PANEL_WORDS(rvk_q8_0, 0), RVK_CHAIN_SEQ, 128, false, false}
#define RVK_PANEL_q2_k {RVK_PANEL_WORDS(rvk_q2_k, -1), RVK_CHAIN_PAIR, 0, true, true}
#define RVK_PANEL_q3_k {RVK_PANEL_WORDS(rvk_q3_k, 108), RVK_CHAIN_PAIR, 4, false, true}
#define RVK_PANEL_q4_k {RVK_PANEL_WORDS(rvk_q4_k, -1), RVK_CHAIN_EVEN, 0, true, false}
#define RVK_PANEL_q5_k {RVK_PANEL_WORDS(rvk_q5_k, -1), RVK_CHAIN_EVEN, 0, true, false}
#define RVK_PANEL_q6_k {RVK_PANEL_WORDS(rvk_q6_k, 208), RVK_CHAIN_PAIR, 32, false, true}
#define RVK_PANEL_iq4_nl {RVK_PANEL_WORDS(rvk_iq4_nl, 0), RVK_CHAIN_SEQ, 128, false, false}
#define RVK_PANEL_iq4_xs {RVK_PANEL_WORDS(rvk_iq4_xs, -1), RVK_CHAIN_SEQ, 128, false, false}

extern const rvk_panel_type rvk_panel_types[RVK_N_TYPES]; /* n_words 0: none */

RVK_INLINE int rvk_chain_base(int delta, int j) {
    return delta == RVK_CHAIN_EVEN ? 2 * j : delta == RVK_CHAIN_PAIR ? j % 2 + j / 2 * 4 : j;
}

/* Blocks of 32 in a unit.  No block of 32 has more than eight words, none of 256 fewer. */
RVK_INLINE int rvk_unit_blocks(const rvk_panel_type t) {
    return t.n_words > 8 ? 8 : 4;
}

/* Bytes of a unit before its words, and of a whole one. */
RVK_INLINE size_t rvk_panel_d_bytes(const rvk_panel_type t) {
    return t.d_at < 0 ? 0 : t.n_words > 8 ? 64 : 128;
}
RVK_INLINE size_t rvk_unit_bytes(const rvk_panel_type t) {
    return rvk_panel_d_bytes(t) + (size_t)t.n_words * 64 * (t.n_words > 8 ? 1 : 4);
}

/* Where word w of a block stands among its words.  One column is bound by memory, and hardware
 * follows only reads in the order of addresses: scales go first, and what a block of 32 values
 * reads from several places is interleaved.  Measured on Zen 4, one thread, Q6_K: 31 GB/s; 15 in
 * the order of the file; 22 when registers are not aligned; 13 with prefetching by hand. */
RVK_INLINE size_t rvk_panel_at(int type, size_t w) {
    switch (type) {
    case RVK_Q2_K: return w == 20 ? 0 : w + 1; /* d and dmin before the sixteen scales */
    case RVK_Q3_K:                             /* scales; third bits and the first half; the rest */
        return w >= 24 ? w - 24 : w < 8 ? 3 + 2 * w : w < 16 ? 2 * w - 12 : w + 3;
    case RVK_Q5_K: /* scales; fifth bits and the first two blocks; the rest */
        return w < 4 || w >= 20 ? w : w < 12 ? 2 * w - 4 : 2 * w - 19;
    case RVK_Q6_K: /* scales; per half low and high bits of blocks 0 and 2, low bits of 1 and 3 */
        return w >= 48          ? w - 48
               : w >= 32        ? 5 + (w - 32) / 8 * 24 + w % 8 * 2
               : w / 8 % 2 == 0 ? 4 + w / 16 * 24 + w % 8 * 2
                                : 20 + w / 16 * 24 + w % 8;
    default: return w;
    }
}

#define RVK_PANELS_ARGS                                                                            \
    float *y, size_t ldy, const void *w, size_t n_rows, const void *x, size_t x_stride,            \
        size_t n_cols, size_t k
#define RVK_PANELS_DECL(isa, name, NUMBER) void rvk_mul_panels_##name##_##isa(RVK_PANELS_ARGS);
#define RVK_PACK_ARGS void *dst, int type, const void *w, size_t w_stride, size_t n_rows, size_t k

void rvk_panel_pack_ref(RVK_PACK_ARGS);
void rvk_panel_pack_avx2(RVK_PACK_ARGS);
void rvk_panel_pack_vnni(RVK_PACK_ARGS);
RVK_MUL_QUANTS(RVK_PANELS_DECL, avx2)
RVK_MUL_QUANTS(RVK_PANELS_DECL, vnni)

#endif
