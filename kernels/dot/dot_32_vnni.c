/* mul with AVX-512 VNNI for the nine types whose scale covers 32 values: how the words of a panel
 * become codes and scales.  The rest stands in panel_vnni.h. */
#include "dot/panel_vnni.h"
#include "quant/unpack.h"

RVK_INLINE __m512i low_nibbles(__m512i w) {
    return _mm512_and_si512(w, _mm512_set1_epi8(15));
}
RVK_INLINE __m512i high_nibbles(__m512i w) {
    return low_nibbles(_mm512_srli_epi16(w, 4));
}

/* a | (b & bit 4 of every byte). */
RVK_INLINE __m512i or_bit4(__m512i a, __m512i b) {
    return _mm512_ternarylogic_epi64(a, b, _mm512_set1_epi8(16), 0xf8);
}

/* ---- blocks of 32: the unit is four of them ---- */

RVK_INLINE void no_head(rvk_head *h, const uint8_t *p) {
    (void)h, (void)p;
}

/* Sixteen bytes: values 0..15 in the low nibbles, 16..31 in the high ones. */
RVK_INLINE void nibbles(rvk_codes *c, const uint8_t *p) {
    RVK_UNROLL
    for (int g = 0; g < 4; g++) {
        const __m512i w = rvk_word(p, g);
        c->q[g] = low_nibbles(w);
        c->q[4 + g] = high_nibbles(w);
    }
}

/* Bit v of a row's word qh is bit 4 of its value v. */
RVK_INLINE void fifth_bits(rvk_codes *c, __m512i qh) {
    const __m512i at = _mm512_set1_epi64(0x1f1e1d1c3f3e3d3c); /* bits 28.. and -4.. of two rows */
    RVK_UNROLL
    for (int g = 0; g < 8; g++) {
        const __m512i bits =
            _mm512_multishift_epi64_epi8(_mm512_add_epi8(at, _mm512_set1_epi8((char)(4 * g))), qh);
        c->q[g] = or_bit4(c->q[g], bits);
    }
}

#define head_q4_0 no_head
RVK_INLINE void block_q4_0(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    (void)h;
    nibbles(c, p + 128 + 256 * b);
    c->s[0] = rvk_halves(p + 32 * b);
}

/* w = s * q + m, so the minimum is -m. */
RVK_INLINE void scale_and_min(rvk_codes *c, __m512i w) {
    c->s[0] = rvk_low_half(w);
    c->m[0] = _mm512_xor_ps(rvk_high_half(w), _mm512_set1_ps(-0.0f));
}

#define head_q4_1 no_head
RVK_INLINE void block_q4_1(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    (void)h;
    nibbles(c, p + 320 * b + 64);
    scale_and_min(c, rvk_word(p + 320 * b, 0));
}

#define head_q5_0 no_head
RVK_INLINE void block_q5_0(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    (void)h;
    nibbles(c, p + 128 + 320 * b + 64);
    fifth_bits(c, rvk_word(p + 128 + 320 * b, 0));
    c->s[0] = rvk_halves(p + 32 * b);
}

#define head_q5_1 no_head
RVK_INLINE void block_q5_1(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    (void)h;
    nibbles(c, p + 384 * b + 128);
    fifth_bits(c, rvk_word(p + 384 * b, 1));
    scale_and_min(c, rvk_word(p + 384 * b, 0));
}

#define head_q8_0 no_head
RVK_INLINE void block_q8_0(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    (void)h;
    RVK_UNROLL
    for (int g = 0; g < 8; g++) /* adds 128 to a signed byte */
        c->q[g] = _mm512_xor_si512(rvk_word(p + 128 + 512 * b, g), _mm512_set1_epi8(-128));
    c->s[0] = rvk_halves(p + 32 * b);
}

RVK_INLINE void levels(rvk_codes *c) {
    const __m128i t = _mm_loadu_si128((const __m128i *)(const void *)rvk_iq4_levels);
    const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(t, _mm_set1_epi8(-128)));
    RVK_UNROLL
    for (int g = 0; g < 8; g++) c->q[g] = _mm512_shuffle_epi8(table, c->q[g]);
}

#define head_iq4_nl no_head
RVK_INLINE void block_iq4_nl(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    block_q4_0(c, h, p, b);
    levels(c);
}

/* ---- blocks of 256 ---- */

/* Q4_K and Q5_K: d and dmin, then eight scales and eight minimums of 6 bits in three words:
 * bytes of s[0], s[1]: scales 0..3 and 4..7; of m likewise. */
RVK_INLINE void head_q4_k(rvk_head *h, const uint8_t *p) {
    const __m512i six = _mm512_set1_epi8(63), low = _mm512_set1_epi8(15);
    const __m512i top = _mm512_set1_epi8(48);
    const __m512i w0 = rvk_word(p, 0), w1 = rvk_word(p, 1), w2 = rvk_word(p, 2);
    const __m512i w3 = rvk_word(p, 3);
    h->d = rvk_low_half(w0);
    h->dmin = rvk_high_half(w0);
    h->s[0] = _mm512_and_si512(w1, six);
    h->m[0] = _mm512_and_si512(w2, six);
    h->s[1] =
        _mm512_or_si512(_mm512_and_si512(w3, low), _mm512_and_si512(_mm512_srli_epi32(w1, 2), top));
    h->m[1] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(w3, 4), low),
                              _mm512_and_si512(_mm512_srli_epi32(w2, 2), top));
}

/* Blocks 2i and 2i + 1 are the low and high nibbles of 32 bytes, from word first on. */
RVK_INLINE void nibbles_of_pair(rvk_codes *c, const rvk_head *h, const int type, const uint8_t *p,
                                const int first, const int b) {
    RVK_UNROLL
    for (int g = 0; g < 8; g++) {
        const __m512i w = rvk_word_of(type, p, first + b / 2 * 8 + g);
        c->q[g] = b % 2 ? high_nibbles(w) : low_nibbles(w);
    }
    c->s[0] = _mm512_mul_ps(rvk_byte(h->s[b / 4], b % 4), h->d);
    c->m[0] = _mm512_mul_ps(rvk_byte(h->m[b / 4], b % 4), h->dmin);
}

RVK_INLINE void block_q4_k(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    nibbles_of_pair(c, h, RVK_Q4_K, p, 4, b);
}

#define head_q5_k head_q4_k
/* Bit b of byte v of qh is bit 4 of value v of block b. */
RVK_INLINE void block_q5_k(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    nibbles_of_pair(c, h, RVK_Q5_K, p, 12, b);
    RVK_UNROLL
    for (int g = 0; g < 8; g++) {
        __m512i bits = rvk_word_of(RVK_Q5_K, p, 4 + g);
        if (b < 4) bits = _mm512_slli_epi16(bits, (unsigned)(4 - b));
        if (b > 4) bits = _mm512_srli_epi16(bits, (unsigned)(b - 4));
        c->q[g] = or_bit4(c->q[g], bits);
    }
}

/* d and two high bits of eight scales, then four low bits of them. */
RVK_INLINE void head_iq4_xs(rvk_head *h, const uint8_t *p) {
    const __m512i w0 = rvk_word(p, 0);
    h->d = rvk_low_half(w0);
    h->s[0] = _mm512_srli_epi32(w0, 16);
    h->s[1] = rvk_word(p, 1);
}

RVK_INLINE void block_iq4_xs(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    nibbles(c, p + (2 + 4 * b) * 64);
    levels(c);
    const __m512i low = _mm512_and_si512(_mm512_srli_epi32(h->s[1], 4 * b), _mm512_set1_epi32(15));
    const __m512i top = _mm512_and_si512(_mm512_srli_epi32(h->s[0], 2 * b), _mm512_set1_epi32(3));
    const __m512i s = _mm512_or_si512(low, _mm512_slli_epi32(top, 4));
    c->s[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(s, _mm512_set1_epi32(32))), h->d);
}

/* ---- the nine ---- */

RVK_VNNI_TYPE(q4_0, Q4_0, NONE)
RVK_VNNI_TYPE(q4_1, Q4_1, PAGES)
RVK_VNNI_TYPE(q5_0, Q5_0, NONE)
RVK_VNNI_TYPE(q5_1, Q5_1, PAGES)
RVK_VNNI_TYPE(q8_0, Q8_0, PAGES)
RVK_VNNI_TYPE(iq4_nl, IQ4_NL, NONE)
RVK_VNNI_TYPE(q4_k, Q4_K, NONE)
RVK_VNNI_TYPE(q5_k, Q5_K, NONE)
RVK_VNNI_TYPE(iq4_xs, IQ4_XS, PAGES)
