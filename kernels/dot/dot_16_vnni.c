/* mul with AVX-512 VNNI for the three types whose scale covers 16 values, Q2_K, Q3_K and Q6_K: how
 * their bytes become frames, and the scales of four rows.  The rest stands in vnni.h.
 *
 * All three keep two halves of 128 values, whose first and second 16 bytes are gathered in the
 * lanes (0 0 2 2 and 1 1 3 3 of 64 bytes) before bits are taken: frame i then has in its lanes
 * blocks 2i and 2i + 1 of each half. */
#include "dot/vnni.h"

/* The second argument counts the frames of a unit; see kind and rvk_panel_type. */
#define KIND(name, bytes, n_frames, ...)                                                           \
    static const kind kind_##name = {bytes, n_frames, {__VA_ARGS__}};
KIND(q2_k, sizeof(rvk_q2_k), 2, RVK_PANEL_PAIR, 0, true, true)
KIND(q3_k, sizeof(rvk_q3_k), 2, RVK_PANEL_PAIR, 4, false, true)
KIND(q6_k, sizeof(rvk_q6_k), 2, RVK_PANEL_PAIR, 32, false, true)

/* Rotate lanes 0 and 2 left by a bits and lanes 1 and 3 by b; within 64 bits, which the masks that
 * follow make a shift within bytes. */
RVK_INLINE __m512i rotate(__m512i v, int a, int b) {
    const long long x = a & 63, y = b & 63;
    return _mm512_rolv_epi64(v, _mm512_set_epi64(y, y, x, x, y, y, x, x));
}

/* Lanes 0 0 2 2 (half 0) or 1 1 3 3 of v. */
RVK_INLINE __m512i lanes_of_half(__m512i v, const int half) {
    return half ? _mm512_shuffle_i64x2(v, v, 0xf5) : _mm512_shuffle_i64x2(v, v, 0xa0);
}

RVK_INLINE void load_q6_k(values *v, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15), six = _mm512_set1_epi8(63);
    const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64);
    const __m512i qh = _mm512_loadu_si512(p + 128);
    RVK_UNROLL
    for (int h = 0; h < 2; h++) {
        const __m512i ql = h ? odd(a, b) : even(a, b), top = lanes_of_half(qh, h);
        /* 0xca: where low has a bit the second operand's, elsewhere the third's */
        const __m512i q0 = _mm512_ternarylogic_epi64(low, ql, rotate(top, 4, 2), 0xca);
        const __m512i q1 =
            _mm512_ternarylogic_epi64(low, _mm512_srli_epi16(ql, 4), rotate(top, 0, -2), 0xca);
        (h ? v->hi : v->lo)[0] = _mm512_and_si512(q0, six);
        (h ? v->hi : v->lo)[1] = _mm512_and_si512(q1, six);
    }
}

/* The two-bit values of 64 bytes at p. */
RVK_INLINE void load_two_bits(values *v, const uint8_t *p) {
    const __m512i three = _mm512_set1_epi8(3), q = _mm512_loadu_si512(p);
    const __m512i lo = lanes_of_half(q, 0), hi = lanes_of_half(q, 1);
    v->lo[0] = _mm512_and_si512(rotate(lo, 0, -2), three);
    v->hi[0] = _mm512_and_si512(rotate(hi, 0, -2), three);
    v->lo[1] = _mm512_and_si512(rotate(lo, -4, -6), three);
    v->hi[1] = _mm512_and_si512(rotate(hi, -4, -6), three);
}

RVK_INLINE void load_q2_k(values *v, const uint8_t *p) {
    load_two_bits(v, p + 16);
}

/* Bit block of each byte, of the block that frame i has in a lane, as bit 2. */
RVK_INLINE __m512i third_bit(__m512i v, int i) {
    const long long a = (2 - 2 * i) & 63, b = (1 - 2 * i) & 63, c = (-2 - 2 * i) & 63;
    const long long d = (-3 - 2 * i) & 63;
    const __m512i moved = _mm512_rolv_epi64(v, _mm512_set_epi64(d, d, c, c, b, b, a, a));
    return _mm512_and_si512(moved, _mm512_set1_epi8(4));
}

RVK_INLINE void load_q3_k(values *v, const uint8_t *p) {
    const __m128i *h = (const __m128i *)(const void *)p;
    const __m512i lo = _mm512_broadcast_i32x4(_mm_loadu_si128(h));
    const __m512i hi = _mm512_broadcast_i32x4(_mm_loadu_si128(h + 1));
    load_two_bits(v, p + 32);
    RVK_UNROLL
    for (int i = 0; i < 2; i++) {
        v->lo[i] = _mm512_or_si512(v->lo[i], third_bit(lo, i));
        v->hi[i] = _mm512_or_si512(v->hi[i], third_bit(hi, i));
    }
}

/* ---- scales ---- */

/* Sixteen bytes of four rows, in the lanes of v, to [frame][half][chain][row]. */
RVK_INLINE __m512i by_frame(__m512i v) {
    const __m512i at = _mm512_add_epi8(
        _mm512_set1_epi32(0x30201000),
        _mm512_set_epi32(0x0f0f0f0f, 0x0d0d0d0d, 0x07070707, 0x05050505, 0x0e0e0e0e, 0x0c0c0c0c,
                         0x06060606, 0x04040404, 0x0b0b0b0b, 0x09090909, 0x03030303, 0x01010101,
                         0x0a0a0a0a, 0x08080808, 0x02020202, 0));
    return _mm512_permutexvar_epi8(at, v);
}

/* d * signed bytes; those of Q2_K are small enough to count as such. */
RVK_INLINE void scale16(__m512 s[2][2], __m512i bytes, __m512 d) {
    const __m512i q = by_frame(bytes);
    s[0][0] = _mm512_mul_ps(i8_floats(_mm512_castsi512_si128(q)), d);
    s[0][1] = _mm512_mul_ps(i8_floats(_mm512_extracti32x4_epi32(q, 1)), d);
    s[1][0] = _mm512_mul_ps(i8_floats(_mm512_extracti32x4_epi32(q, 2)), d);
    s[1][1] = _mm512_mul_ps(i8_floats(_mm512_extracti32x4_epi32(q, 3)), d);
}

RVK_INLINE __m512i rows128_at(const uint8_t *const *p, size_t at) {
    const uint8_t *const q[4] = {p[0] + at, p[1] + at, p[2] + at, p[3] + at};
    return rows128(q);
}

RVK_INLINE void heads_q6_k(scales *s, const uint8_t *const *p) {
    const __m512 d = row_halves(rows128_at(p, sizeof(rvk_q6_k) - 16), 7);
    scale16(s->s, rows128_at(p, 192), d);
}

RVK_INLINE void heads_q2_k(scales *s, const uint8_t *const *p) {
    const __m512i sc = rows128(p), low = _mm512_set1_epi8(15);
    const __m512i end = rows128_at(p, sizeof(rvk_q2_k) - 16);
    scale16(s->s, _mm512_and_si512(sc, low), row_halves(end, 6));
    scale16(s->m, _mm512_and_si512(_mm512_srli_epi16(sc, 4), low), row_halves(end, 7));
}

/* The last 16 bytes of Q3_K: two of values, twelve of 6-bit scales, d. */
RVK_INLINE void heads_q3_k(scales *s, const uint8_t *const *p) {
    const __m512i end = rows128_at(p, sizeof(rvk_q3_k) - 16);
    const __m512i low4 =
        _mm512_shuffle_epi8(end, _mm512_set4_epi32(0x09080706, 0x05040302, 0x09080706, 0x05040302));
    const __m512i top2 = _mm512_shuffle_epi8(end, _mm512_set1_epi32(0x0d0c0b0a));
    const __m512i a = _mm512_srlv_epi32(low4, _mm512_set4_epi32(4, 4, 0, 0));
    const __m512i b = _mm512_srlv_epi32(top2, _mm512_set4_epi32(6, 4, 2, 0));
    const __m512i bytes =
        _mm512_or_si512(_mm512_and_si512(a, _mm512_set1_epi8(15)),
                        _mm512_slli_epi16(_mm512_and_si512(b, _mm512_set1_epi8(3)), 4));
    scale16(s->s, _mm512_sub_epi8(bytes, _mm512_set1_epi8(32)), row_halves(end, 7));
}

/* ---- the three ---- */

RVK_MUL_VNNI(q2_k)
RVK_MUL_VNNI(q3_k)
RVK_MUL_VNNI(q6_k)
