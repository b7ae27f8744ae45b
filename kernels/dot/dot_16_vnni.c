/* mul with AVX-512 VNNI for the three types whose scale covers 16 values, Q2_K, Q3_K and Q6_K: how
 * the words of a panel become codes and scales.  The rest stands in panel_vnni.h.
 *
 * All three keep two halves of 128 values; block b is the (b % 4)th of half b / 4. */
#include "dot/panel_vnni.h"

/* w shifted right by n bits, left where n is negative; what crosses a byte is for a mask to cut. */
RVK_INLINE __m512i moved(__m512i w, const int n) {
    if (n > 0) w = _mm512_srli_epi16(w, (unsigned)n);
    if (n < 0) w = _mm512_slli_epi16(w, (unsigned)-n);
    return w;
}

/* ---- Q6_K: ql, qh, sixteen signed scales, and d apart ---- */

RVK_INLINE void head_q6_k(rvk_head *h, const uint8_t *p) {
    RVK_UNROLL
    for (int i = 0; i < 4; i++) h->s[i] = rvk_word_of(RVK_Q6_K, p + 64, 48 + i);
    h->d = rvk_halves(p);
}

RVK_INLINE void block_q6_k(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    const __m512i low = _mm512_set1_epi8(15), six = _mm512_set1_epi8(63);
    const int half = b / 4, j = b % 4;
    RVK_UNROLL
    for (int g = 0; g < 8; g++) {
        const __m512i ql =
            moved(rvk_word_of(RVK_Q6_K, p + 64, 16 * half + j % 2 * 8 + g), j < 2 ? 0 : 4);
        const __m512i qh = moved(rvk_word_of(RVK_Q6_K, p + 64, 32 + 8 * half + g), 2 * j - 4);
        /* 0xca: where low has a bit the second operand's, elsewhere the third's */
        c->q[g] = _mm512_and_si512(_mm512_ternarylogic_epi64(low, ql, qh, 0xca), six);
    }
    RVK_UNROLL
    for (int i = 0; i < 2; i++)
        c->s[i] = _mm512_mul_ps(rvk_signed_byte(h->s[b / 2], 2 * (b % 2) + i), h->d);
}

/* ---- two bits: the blocks of a half in the same words ---- */

RVK_INLINE void two_bits(rvk_codes *c, const int type, const uint8_t *p, const int first,
                         const int b) {
    RVK_UNROLL
    for (int g = 0; g < 8; g++)
        c->q[g] = _mm512_and_si512(
            moved(rvk_word_of(type, p, first + 8 * (b / 4) + g), 2 * (b % 4)), _mm512_set1_epi8(3));
}

/* Q2_K: sixteen bytes of a scale and a minimum of 4 bits, the values, d and dmin. */
RVK_INLINE void head_q2_k(rvk_head *h, const uint8_t *p) {
    RVK_UNROLL
    for (int i = 0; i < 4; i++) h->s[i] = rvk_word_of(RVK_Q2_K, p, i);
    const __m512i w = rvk_word_of(RVK_Q2_K, p, 20);
    h->d = rvk_low_half(w);
    h->dmin = rvk_high_half(w);
}

RVK_INLINE void block_q2_k(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    const __m512i low = _mm512_set1_epi32(15);
    two_bits(c, RVK_Q2_K, p, 4, b);
    RVK_UNROLL
    for (int i = 0; i < 2; i++) {
        const __m512i w = _mm512_srli_epi32(h->s[b / 2], (unsigned)(16 * (b % 2) + 8 * i));
        const __m512i s = _mm512_and_si512(w, low);
        const __m512i m = _mm512_and_si512(_mm512_srli_epi32(w, 4), low);
        c->s[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(s), h->d);
        c->m[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(m), h->dmin);
    }
}

/* Q3_K: a third bit per value, the values, sixteen scales of 6 bits in three words, d apart.
 * Scale i of the head's bytes: 4 bits from one of the first two words, 2 from the third. */
RVK_INLINE void head_q3_k(rvk_head *h, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15), top = _mm512_set1_epi8(48);
    const __m512i w2 = rvk_word_of(RVK_Q3_K, p + 64, 26);
    RVK_UNROLL
    for (int i = 0; i < 4; i++) {
        const __m512i a = moved(rvk_word_of(RVK_Q3_K, p + 64, 24 + i % 2), i < 2 ? 0 : 4),
                      b = moved(w2, 2 * i - 4);
        h->s[i] = _mm512_or_si512(_mm512_and_si512(a, low), _mm512_and_si512(b, top));
    }
    h->d = rvk_halves(p);
}

RVK_INLINE void block_q3_k(rvk_codes *c, const rvk_head *h, const uint8_t *p, const int b) {
    two_bits(c, RVK_Q3_K, p + 64, 8, b);
    RVK_UNROLL
    for (int g = 0; g < 8; g++)
        c->q[g] = _mm512_ternarylogic_epi64(c->q[g], moved(rvk_word_of(RVK_Q3_K, p + 64, g), b - 2),
                                            _mm512_set1_epi8(4), 0xf8);
    RVK_UNROLL
    for (int i = 0; i < 2; i++) {
        const __m512 s = rvk_byte(h->s[b / 2], 2 * (b % 2) + i);
        c->s[i] = _mm512_mul_ps(_mm512_sub_ps(s, _mm512_set1_ps(32.0f)), h->d);
    }
}

/* ---- the three ---- */

RVK_VNNI_TYPE(q2_k, Q2_K, NONE)
RVK_VNNI_TYPE(q3_k, Q3_K, NONE)
RVK_VNNI_TYPE(q6_k, Q6_K, PAGES)
