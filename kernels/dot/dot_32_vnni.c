/* mul with AVX-512 VNNI for the nine types whose scale covers 32 values: how their bytes become
 * frames, and the scales of four rows.  What is done with them stands in vnni.h. */
#include "dot/vnni.h"
#include "quant/unpack.h"

/* The second argument counts the frames of a unit; see kind and rvk_panel_type. */
#define KIND(name, bytes, n_frames, ...)                                                           \
    static const kind kind_##name = {bytes, n_frames, {__VA_ARGS__}};
KIND(q4_0, 4 * sizeof(rvk_q4_0), 1, RVK_PANEL_SEQ, 8, false, false)
KIND(q4_1, 4 * sizeof(rvk_q4_1), 1, RVK_PANEL_SEQ, 0, true, false)
KIND(q5_0, 4 * sizeof(rvk_q5_0), 1, RVK_PANEL_SEQ, 16, false, false)
KIND(q5_1, 4 * sizeof(rvk_q5_1), 1, RVK_PANEL_SEQ, 0, true, false)
KIND(q8_0, 4 * sizeof(rvk_q8_0), 1, RVK_PANEL_SEQ, 128, false, false)
KIND(iq4_nl, 4 * sizeof(rvk_iq4_nl), 1, RVK_PANEL_SEQ, 128, false, false)
KIND(q4_k, sizeof(rvk_q4_k), 2, RVK_PANEL_EVEN, 0, true, false)
KIND(q5_k, sizeof(rvk_q5_k), 2, RVK_PANEL_EVEN, 0, true, false)
KIND(iq4_xs, sizeof(rvk_iq4_xs), 2, RVK_PANEL_SEQ, 128, false, false)

/* ---- loading blocks of 32: 16-bit words picked out of the unit's first and last 64 bytes ---- */

/* Word i of a unit of blocks of n words, as vpermt2w counts: the second load ends the unit. */
#define AT(n, i) ((i) < 32 ? (i) : 64 - 4 * (n) + (i))
#define LANE(n, first, b)                                                                          \
    AT(n, (b) * (n) + (first)), AT(n, (b) * (n) + (first) + 1), AT(n, (b) * (n) + (first) + 2),    \
        AT(n, (b) * (n) + (first) + 3), AT(n, (b) * (n) + (first) + 4),                            \
        AT(n, (b) * (n) + (first) + 5), AT(n, (b) * (n) + (first) + 6),                            \
        AT(n, (b) * (n) + (first) + 7)
/* 8 words from word first on of each of the four blocks. */
#define LANES(n, first) {LANE(n, first, 0), LANE(n, first, 1), LANE(n, first, 2), LANE(n, first, 3)}
#define FOUR(n, i, b)                                                                              \
    AT(n, (b) * (n) + (i)), AT(n, (b) * (n) + (i)), AT(n, (b) * (n) + (i)), AT(n, (b) * (n) + (i))
/* Word 0 of each block four times, then word m of each. */
#define HEADS(n, m)                                                                                \
    {FOUR(n, 0, 0), FOUR(n, 0, 1), FOUR(n, 0, 2), FOUR(n, 0, 3),                                   \
     FOUR(n, m, 0), FOUR(n, m, 1), FOUR(n, m, 2), FOUR(n, m, 3)}

typedef struct words {
    _Alignas(64) uint16_t at[32];
} words;
static const words QS_Q4_0 = {LANES(9, 1)}, HEAD_Q4_0 = {HEADS(9, 0)};
static const words QS_Q4_1 = {LANES(10, 2)}, HEAD_Q4_1 = {HEADS(10, 1)};
static const words QS_Q5_0 = {LANES(11, 3)}, HEAD_Q5_0 = {HEADS(11, 0)};
static const words QS_Q5_1 = {LANES(12, 4)}, HEAD_Q5_1 = {HEADS(12, 1)};
/* Words 0 and 17 of two pairs of blocks. */
static const words HEAD_Q8_0 = {{0, 0, 0, 0, 17, 17, 17, 17, 32, 32, 32, 32, 49, 49, 49, 49}};

/* The same when all of them lie in the unit's first 64 bytes. */
RVK_INLINE __m512i pick1(const uint8_t *p, const words *at) {
    return _mm512_permutexvar_epi16(_mm512_load_si512(at->at), _mm512_loadu_si512(p));
}

RVK_INLINE __m512i pick(const uint8_t *p, size_t bytes, const words *at) {
    return _mm512_permutex2var_epi16(_mm512_loadu_si512(p), _mm512_load_si512(at->at),
                                     _mm512_loadu_si512(p + bytes - 64));
}

/* The heads of four blocks in four rows: scales, and minimums (w = s * q + m, so -m). */
RVK_INLINE void heads(scales *s, const uint8_t *const *p, size_t second, const words *at,
                      bool has_min) {
    __m512i h = _mm512_setzero_si512();
    RVK_UNROLL
    for (int r = 0; r < 4; r++)
        h = _mm512_mask_blend_epi16(0x11111111u << r, h,
                                    second ? pick(p[r], second, at) : pick1(p[r], at));
    s->s[0][0] = _mm512_cvtph_ps(_mm512_castsi512_si256(h));
    if (has_min)
        s->m[0][0] =
            _mm512_sub_ps(_mm512_setzero_ps(), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1)));
}

RVK_INLINE void load_nibbles(values *u, __m512i qs) {
    const __m512i low = _mm512_set1_epi8(15);
    u->lo[0] = _mm512_and_si512(qs, low);
    u->hi[0] = _mm512_and_si512(_mm512_srli_epi16(qs, 4), low);
}

RVK_INLINE uint32_t le32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The fifth bits, 32 at p, p + block, ..: bit i of a block goes on top of its value i. */
RVK_INLINE void load_fifth(values *u, const uint8_t *p, size_t block) {
    const uint64_t b0 = le32(p), b1 = le32(p + block);
    const uint64_t b2 = le32(p + 2 * block), b3 = le32(p + 3 * block);
    const uint64_t lo = (b0 & 0xffff) | (b1 & 0xffff) << 16 | (b2 & 0xffff) << 32 | b3 << 48;
    const uint64_t hi = b0 >> 16 | (b1 >> 16) << 16 | (b2 >> 16) << 32 | (b3 >> 16) << 48;
    const __m512i bit = _mm512_set1_epi8(16);
    u->lo[0] = _mm512_mask_add_epi8(u->lo[0], lo, u->lo[0], bit);
    u->hi[0] = _mm512_mask_add_epi8(u->hi[0], hi, u->hi[0], bit);
}

RVK_INLINE void load_q4_0(values *u, const uint8_t *p) {
    load_nibbles(u, pick(p, 72, &QS_Q4_0));
}
RVK_INLINE void heads_q4_0(scales *s, const uint8_t *const *p) {
    heads(s, p, 0, &HEAD_Q4_0, false);
}

RVK_INLINE void load_q4_1(values *u, const uint8_t *p) {
    load_nibbles(u, pick(p, 80, &QS_Q4_1));
}
RVK_INLINE void heads_q4_1(scales *s, const uint8_t *const *p) {
    heads(s, p, 0, &HEAD_Q4_1, true);
}

RVK_INLINE void load_q5_0(values *u, const uint8_t *p) {
    load_nibbles(u, pick(p, 88, &QS_Q5_0));
    load_fifth(u, p + 2, sizeof(rvk_q5_0));
}
RVK_INLINE void heads_q5_0(scales *s, const uint8_t *const *p) {
    heads(s, p, 88, &HEAD_Q5_0, false);
}

RVK_INLINE void load_q5_1(values *u, const uint8_t *p) {
    load_nibbles(u, pick(p, 96, &QS_Q5_1));
    load_fifth(u, p + 4, sizeof(rvk_q5_1));
}
RVK_INLINE void heads_q5_1(scales *s, const uint8_t *const *p) {
    heads(s, p, 96, &HEAD_Q5_1, true);
}

RVK_INLINE __m512i two256(const uint8_t *a, const uint8_t *b) {
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a)),
        _mm256_loadu_si256((const __m256i *)(const void *)b), 1);
}

RVK_INLINE void load_q8_0(values *u, const uint8_t *p) {
    const __m512i top = _mm512_set1_epi8(-128); /* adds 128 to a signed byte */
    const __m512i a = _mm512_xor_si512(two256(p + 2, p + 36), top);
    const __m512i b = _mm512_xor_si512(two256(p + 70, p + 104), top);
    u->lo[0] = even(a, b);
    u->hi[0] = odd(a, b);
}
RVK_INLINE void heads_q8_0(scales *s, const uint8_t *const *p) {
    heads(s, p, 132, &HEAD_Q8_0, false);
}

RVK_INLINE __m512i levels(__m512i nibbles) {
    const __m128i t = _mm_loadu_si128((const __m128i *)(const void *)rvk_iq4_levels);
    const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(t, _mm_set1_epi8(-128)));
    return _mm512_shuffle_epi8(table, nibbles);
}

RVK_INLINE void load_iq4_nl(values *u, const uint8_t *p) {
    load_q4_0(u, p);
    u->lo[0] = levels(u->lo[0]);
    u->hi[0] = levels(u->hi[0]);
}

RVK_INLINE void heads_iq4_nl(scales *s, const uint8_t *const *p) {
    heads_q4_0(s, p);
}

/* ---- loading blocks of 256 ---- */

/* The head of Q4_K and Q5_K: d, dmin, eight scales and eight minimums of 6 bits. */
RVK_INLINE void heads_q4_k(scales *s, const uint8_t *const *p) {
    const __m512i h = rows128(p);
    const __m512i shift = _mm512_set4_epi32(4, 0, 0, 0);
    const __m512i low = _mm512_set4_epi32(0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f);
    const __m512i top = _mm512_set4_epi32(0x30303030, 0, 0x30303030, 0);
    /* dwords 1 2 3 of the head hold s, m and the rest: bytes become s0..s7 m0..m7 */
    const __m512i x = _mm512_srlv_epi32(_mm512_shuffle_epi32(h, (_MM_PERM_ENUM)0xed), shift);
    const __m512i y = _mm512_srli_epi32(_mm512_shuffle_epi32(h, (_MM_PERM_ENUM)0xa5), 2);
    const __m512i b = _mm512_or_si512(_mm512_and_si512(x, low), _mm512_and_si512(y, top));
    /* [s0 s1 m0 m1 of frames][chain][row] */
    const __m512i row = _mm512_set1_epi32(0x30201000);
    const __m512i at = _mm512_add_epi8(
        row, _mm512_set_epi32(0x0f0f0f0f, 0x0d0d0d0d, 0x0b0b0b0b, 0x09090909, 0x0e0e0e0e,
                              0x0c0c0c0c, 0x0a0a0a0a, 0x08080808, 0x07070707, 0x05050505,
                              0x03030303, 0x01010101, 0x06060606, 0x04040404, 0x02020202, 0));
    const __m512i q = _mm512_permutexvar_epi8(at, b);
    const __m512 d = row_halves(h, 0), dm = row_halves(h, 1);
    s->s[0][0] = _mm512_mul_ps(u8_floats(_mm512_castsi512_si128(q)), d);
    s->s[1][0] = _mm512_mul_ps(u8_floats(_mm512_extracti32x4_epi32(q, 1)), d);
    s->m[0][0] = _mm512_mul_ps(u8_floats(_mm512_extracti32x4_epi32(q, 2)), dm);
    s->m[1][0] = _mm512_mul_ps(u8_floats(_mm512_extracti32x4_epi32(q, 3)), dm);
}

RVK_INLINE void heads_q5_k(scales *s, const uint8_t *const *p) {
    heads_q4_k(s, p);
}

RVK_INLINE void load_q4_k(values *u, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i a = _mm512_loadu_si512(p + 16), b = _mm512_loadu_si512(p + 80);
    const __m512i lo = even(a, b), hi = odd(a, b);
    u->lo[0] = _mm512_and_si512(lo, low);
    u->hi[0] = _mm512_and_si512(hi, low);
    u->lo[1] = _mm512_and_si512(_mm512_srli_epi16(lo, 4), low);
    u->hi[1] = _mm512_and_si512(_mm512_srli_epi16(hi, 4), low);
}

/* Bit i of 16 bytes at p, moved to bit 4: lane n of the result has bits 2n (plus = 0) or 2n + 1. */
RVK_INLINE __m512i fifth_k(const uint8_t *p, int plus) {
    const __m512i left = _mm512_set_epi64(62, 62, 0, 0, 2, 2, 4, 4);
    const __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p));
    const __m512i moved = _mm512_rolv_epi64(v, _mm512_sub_epi64(left, _mm512_set1_epi64(plus)));
    return _mm512_and_si512(moved, _mm512_set1_epi8(16));
}

RVK_INLINE void load_q5_k(values *u, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i a = _mm512_loadu_si512(p + 48), b = _mm512_loadu_si512(p + 112);
    const __m512i lo = even(a, b), hi = odd(a, b);
    const __m512i lo4 = _mm512_srli_epi16(lo, 4), hi4 = _mm512_srli_epi16(hi, 4);
    u->lo[0] = _mm512_or_si512(_mm512_and_si512(lo, low), fifth_k(p + 16, 0));
    u->hi[0] = _mm512_or_si512(_mm512_and_si512(hi, low), fifth_k(p + 32, 0));
    u->lo[1] = _mm512_or_si512(_mm512_and_si512(lo4, low), fifth_k(p + 16, 1));
    u->hi[1] = _mm512_or_si512(_mm512_and_si512(hi4, low), fifth_k(p + 32, 1));
}

RVK_INLINE void load_iq4_xs(values *u, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i a = _mm512_loadu_si512(p + 8), b = _mm512_loadu_si512(p + 72);
    u->lo[0] = levels(_mm512_and_si512(a, low));
    u->hi[0] = levels(_mm512_and_si512(_mm512_srli_epi16(a, 4), low));
    u->lo[1] = levels(_mm512_and_si512(b, low));
    u->hi[1] = levels(_mm512_and_si512(_mm512_srli_epi16(b, 4), low));
}

/* The head of IQ4_XS: d, two high bits of eight scales, four low bits of them. */
RVK_INLINE void heads_iq4_xs(scales *s, const uint8_t *const *p) {
    const __m512i h = rows128(p);
    const __m512i lo = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x3c3834302c282420), h);
    const __m512i hi = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1e1c1a1816141210), h);
    const __m512i b = _mm512_sub_epi8(
        _mm512_or_si512(_mm512_and_si512(lo, _mm512_set1_epi8(15)),
                        _mm512_slli_epi16(_mm512_and_si512(hi, _mm512_set1_epi8(3)), 4)),
        _mm512_set1_epi8(32));
    /* [frame][chain][row] */
    const __m512i at =
        _mm512_add_epi8(_mm512_set1_epi32(0x30201000),
                        _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0x07070707, 0x06060606, 0x05050505,
                                         0x04040404, 0x03030303, 0x02020202, 0x01010101, 0));
    const __m512i q = _mm512_permutexvar_epi8(at, b);
    const __m512 d = row_halves(h, 0);
    s->s[0][0] = _mm512_mul_ps(i8_floats(_mm512_castsi512_si128(q)), d);
    s->s[1][0] = _mm512_mul_ps(i8_floats(_mm512_extracti32x4_epi32(q, 1)), d);
}

/* ---- the nine ---- */

RVK_MUL_VNNI(q4_0)
RVK_MUL_VNNI(q4_1)
RVK_MUL_VNNI(q5_0)
RVK_MUL_VNNI(q5_1)
RVK_MUL_VNNI(q8_0)
RVK_MUL_VNNI(iq4_nl)
RVK_MUL_VNNI(q4_k)
RVK_MUL_VNNI(q5_k)
RVK_MUL_VNNI(iq4_xs)
