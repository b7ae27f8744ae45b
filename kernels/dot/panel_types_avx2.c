/* The twelve quantised formats with AVX2: how a panel's words become codes and scales, and the
 * loops over blocks made from them.
 *
 * The idea: a format is two functions of eight rows, codes_<name> (four codes of each row) and
 * heads_<name> (its scales, once per piece); everything else comes from panel_avx2.h. */
#include "dot/panel_avx2.h"
#include "quant/unpack.h"

/* The loops see kinds as constants. */
#define KIND(name, fit) static const kind kind_##name = {RVK_PANEL_##name, fit};
KIND(q4_0, 8)
KIND(q4_1, 8)
KIND(q5_0, 4)
KIND(q5_1, 4)
KIND(q8_0, 1)
KIND(q2_k, 8)
KIND(q3_k, 8)
KIND(q4_k, 8)
KIND(q5_k, 4)
KIND(q6_k, 2)
KIND(iq4_nl, 1)
KIND(iq4_xs, 1)

/* ---- codes ---- */

/* Bits of v shifted right by n, or left by -n, that mask has in each byte. */
RVK_INLINE __m256i bits(__m256i v, const int n, const int mask) {
    const __m256i moved = n < 0 ? _mm256_slli_epi16(v, -n) : n ? _mm256_srli_epi16(v, n) : v;
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)mask));
}

/* Four words of nibbles from word i on: the low ones are values 0..15, the high ones 16..31. */
RVK_INLINE __m256i nibbles(const uint8_t *w, const int i, const int g) {
    return bits(word8(w, i + g % 4), g / 4 * 4, 15);
}

RVK_INLINE __m256i codes_q4_0(const uint8_t *w, int j, int g) {
    (void)j;
    return nibbles(w, 0, g);
}

RVK_INLINE __m256i codes_q4_1(const uint8_t *w, int j, int g) {
    (void)j;
    return nibbles(w, 1, g);
}

/* Bits 4g .. 4g + 3 of each word of v as 16 or 0 in its bytes. */
RVK_INLINE __m256i fifth(__m256i v, const int g) {
    const int at = g / 2;
    const __m256i from = _mm256_add_epi8(_mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0,
                                                           0x04040404, 0x08080808, 0x0c0c0c0c),
                                         _mm256_set1_epi8((char)at));
    if (g % 2 == 0) v = _mm256_slli_epi32(v, 4);
    const __m256i one =
        _mm256_and_si256(_mm256_shuffle_epi8(v, from), _mm256_set1_epi32((int)0x80402010));
    return _mm256_min_epu8(one, _mm256_set1_epi8(16));
}

RVK_INLINE __m256i codes_q5_0(const uint8_t *w, int j, int g) {
    (void)j;
    return _mm256_or_si256(nibbles(w, 1, g), fifth(word8(w, 0), g));
}

RVK_INLINE __m256i codes_q5_1(const uint8_t *w, int j, int g) {
    (void)j;
    return _mm256_or_si256(nibbles(w, 2, g), fifth(word8(w, 1), g));
}

RVK_INLINE __m256i codes_q8_0(const uint8_t *w, int j, int g) {
    (void)j;
    return word8(w, g);
}

RVK_INLINE __m256i levels(__m256i nibbles) {
    const __m128i t = _mm_loadu_si128((const __m128i *)(const void *)rvk_iq4_levels);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), nibbles);
}

RVK_INLINE __m256i codes_iq4_nl(const uint8_t *w, int j, int g) {
    (void)j;
    return levels(nibbles(w, 0, g));
}

RVK_INLINE __m256i codes_iq4_xs(const uint8_t *w, int j, int g) {
    return levels(nibbles(w, 2 + 4 * j, g));
}

RVK_INLINE __m256i codes_q4_k(const uint8_t *w, int j, int g) {
    return bits(word8(w, 4 + j / 2 * 8 + g), j % 2 * 4, 15);
}

/* Word i of a block of a type that keeps them in another order. */
#define AT(type, i) (int)rvk_panel_at(type, (size_t)(i))

RVK_INLINE __m256i codes_q5_k(const uint8_t *w, int j, int g) {
    return _mm256_or_si256(bits(word8(w, AT(RVK_Q5_K, 12 + j / 2 * 8 + g)), j % 2 * 4, 15),
                           bits(word8(w, AT(RVK_Q5_K, 4 + g)), j - 4, 16));
}

RVK_INLINE __m256i codes_q2_k(const uint8_t *w, int j, int g) {
    return bits(word8(w, AT(RVK_Q2_K, 4 + j / 4 * 8 + g)), j % 4 * 2, 3);
}

RVK_INLINE __m256i codes_q3_k(const uint8_t *w, int j, int g) {
    return _mm256_or_si256(bits(word8(w, AT(RVK_Q3_K, 8 + j / 4 * 8 + g)), j % 4 * 2, 3),
                           bits(word8(w, AT(RVK_Q3_K, g)), j - 2, 4));
}

RVK_INLINE __m256i codes_q6_k(const uint8_t *w, int j, int g) {
    return _mm256_or_si256(
        bits(word8(w, AT(RVK_Q6_K, j / 4 * 16 + j % 2 * 8 + g)), j % 4 / 2 * 4, 15),
        bits(word8(w, AT(RVK_Q6_K, 32 + j / 4 * 8 + g)), j % 4 * 2 - 4, 0x30));
}

/* ---- heads: eight rows, those of the first or last eight lanes ---- */

/* The lower halves of eight words, then the upper ones. */
RVK_INLINE __m256i halves8(__m256i v) {
    const __m256i lo = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, _mm256_srli_epi32(v, 16)), 0xd8);
}

RVK_INLINE __m256 lower(__m256i v) {
    return _mm256_cvtph_ps(_mm256_castsi256_si128(halves8(v)));
}

RVK_INLINE __m256 upper(__m256i v) {
    return _mm256_cvtph_ps(_mm256_extracti128_si256(halves8(v), 1));
}

RVK_INLINE __m256 apart8(const uint8_t *d) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)d));
}

/* Byte i of every word times d. */
RVK_INLINE __m256 byte_times(__m256i v, const int i, __m256 d) {
    const __m256i b = i == 3
                          ? _mm256_srli_epi32(v, 24)
                          : _mm256_and_si256(_mm256_srli_epi32(v, 8 * i), _mm256_set1_epi32(255));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(b), d);
}

RVK_INLINE __m256 signed_byte_times(__m256i v, const int i, __m256 d) {
    const __m256i b = _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * i), 24);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(b), d);
}

/* Blocks of 32: a scale kept apart, or scale and minimum (w = s * q + m, so -m) in one word. */
RVK_INLINE void heads_apart(piece *p, size_t b, int h, const uint8_t *w, const uint8_t *d) {
    (void)w;
    _mm256_store_ps(p->s[b][0] + h, apart8(d));
}

RVK_INLINE void heads_both(piece *p, size_t b, int h, const uint8_t *w, const uint8_t *d) {
    (void)d;
    const __m256i v = word8(w, 0);
    _mm256_store_ps(p->s[b][0] + h, lower(v));
    _mm256_store_ps(p->m[b][0] + h, _mm256_sub_ps(_mm256_setzero_ps(), upper(v)));
}

#define heads_q4_0 heads_apart
#define heads_q4_1 heads_both
#define heads_q5_0 heads_apart
#define heads_q5_1 heads_both
#define heads_q8_0 heads_apart
#define heads_iq4_nl heads_apart

/* d, dmin, then eight scales and eight minimums of 6 bits in three words. */
RVK_INLINE void heads_q4_k(piece *p, size_t b, int h, const uint8_t *w, const uint8_t *apart) {
    (void)apart;
    const __m256i x = word8(w, 1), y = word8(w, 2), z = word8(w, 3);
    const __m256 d = lower(word8(w, 0)), dmin = upper(word8(w, 0));
    const __m256i s0 = bits(x, 0, 63), m0 = bits(y, 0, 63);
    const __m256i s1 = _mm256_or_si256(bits(z, 0, 15), bits(x, 2, 0x30));
    const __m256i m1 = _mm256_or_si256(bits(z, 4, 15), bits(y, 2, 0x30));
    RVK_UNROLL
    for (int i = 0; i < 4; i++) {
        _mm256_store_ps(p->s[b + (size_t)i][0] + h, byte_times(s0, i, d));
        _mm256_store_ps(p->m[b + (size_t)i][0] + h, byte_times(m0, i, dmin));
        _mm256_store_ps(p->s[b + 4 + (size_t)i][0] + h, byte_times(s1, i, d));
        _mm256_store_ps(p->m[b + 4 + (size_t)i][0] + h, byte_times(m1, i, dmin));
    }
}
#define heads_q5_k heads_q4_k

/* d, two upper bits of eight scales, then their four lower bits. */
RVK_INLINE void heads_iq4_xs(piece *p, size_t b, int h, const uint8_t *w, const uint8_t *apart) {
    (void)apart;
    const __m256i top = _mm256_srli_epi32(word8(w, 0), 16), low = word8(w, 1);
    const __m256 d = lower(word8(w, 0));
    RVK_UNROLL
    for (int i = 0; i < 8; i++) {
        const __m256i a = _mm256_and_si256(_mm256_srli_epi32(low, 4 * i), _mm256_set1_epi32(15));
        const __m256i t = _mm256_and_si256(_mm256_srli_epi32(top, 2 * i), _mm256_set1_epi32(3));
        const __m256i s =
            _mm256_sub_epi32(_mm256_or_si256(a, _mm256_slli_epi32(t, 4)), _mm256_set1_epi32(32));
        _mm256_store_ps(p->s[b + (size_t)i][0] + h, _mm256_mul_ps(_mm256_cvtepi32_ps(s), d));
    }
}

/* Sixteen scales, four in a word of v. */
RVK_INLINE void heads_16(float (*out)[2][RVK_PANEL_ROWS], int h, const __m256i v[4], __m256 d) {
    RVK_UNROLL
    for (int i = 0; i < 16; i++)
        _mm256_store_ps(out[i / 2][i % 2] + h, signed_byte_times(v[i / 4], i % 4, d));
}

RVK_INLINE void heads_q6_k(piece *p, size_t b, int h, const uint8_t *w, const uint8_t *d) {
    const __m256i v[4] = {word8(w, AT(RVK_Q6_K, 48)), word8(w, AT(RVK_Q6_K, 49)),
                          word8(w, AT(RVK_Q6_K, 50)), word8(w, AT(RVK_Q6_K, 51))};
    heads_16(p->s + b, h, v, apart8(d));
}

RVK_INLINE void heads_q2_k(piece *p, size_t b, int h, const uint8_t *w, const uint8_t *apart) {
    (void)apart;
    __m256i s[4], m[4];
    RVK_UNROLL
    for (int i = 0; i < 4; i++) {
        const __m256i v = word8(w, AT(RVK_Q2_K, i));
        s[i] = bits(v, 0, 15), m[i] = bits(v, 4, 15);
    }
    heads_16(p->s + b, h, s, lower(word8(w, AT(RVK_Q2_K, 20))));
    heads_16(p->m + b, h, m, upper(word8(w, AT(RVK_Q2_K, 20))));
}

/* Sixteen scales of 6 bits in three words: four lower bits, then the upper two; they count from
 * -32. */
RVK_INLINE void heads_q3_k(piece *p, size_t b, int h, const uint8_t *w, const uint8_t *d) {
    const __m256i x = word8(w, AT(RVK_Q3_K, 24)), y = word8(w, AT(RVK_Q3_K, 25));
    const __m256i z = word8(w, AT(RVK_Q3_K, 26));
    __m256i s[4] = {_mm256_or_si256(bits(x, 0, 15), bits(z, -4, 0x30)),
                    _mm256_or_si256(bits(y, 0, 15), bits(z, -2, 0x30)),
                    _mm256_or_si256(bits(x, 4, 15), bits(z, 0, 0x30)),
                    _mm256_or_si256(bits(y, 4, 15), bits(z, 2, 0x30))};
    RVK_UNROLL
    for (int i = 0; i < 4; i++) s[i] = _mm256_sub_epi8(s[i], _mm256_set1_epi8(32));
    heads_16(p->s + b, h, s, apart8(d));
}

/* ---- the loops ---- */

typedef void heads_fn(piece *p, size_t b, int h, const uint8_t *w, const uint8_t *d);

/* Block i of the type. */
RVK_INLINE void head(const kind t, heads_fn heads, int n_sub, piece *p, const uint8_t *w,
                     size_t i) {
    const uint8_t *words = words_of(t.type, w, i), *d = apart_of(t.type, w, i);
    heads(p, i * (size_t)n_sub, 0, words, d);
    heads(p, i * (size_t)n_sub, 8, words + 32, d + 16);
}

RVK_INLINE void take(const kind t, heads_fn heads, codes_fn codes, int n_sub, piece *p,
                     const uint8_t *w, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint8_t *words = words_of(t.type, w, i);
        head(t, heads, n_sub, p, w, i);
        RVK_UNROLL
        for (int j = 0; j < n_sub; j++) {
            RVK_UNROLL
            for (int g = 0; g < 8; g++) {
                __m256i *q = (__m256i *)(void *)p->q[i * (size_t)n_sub + (size_t)j][g];
                _mm256_store_si256(q, codes(words, j, g));
                _mm256_store_si256(q + 1, codes(words + 32, j, g));
            }
        }
    }
}

RVK_INLINE void few_columns(const kind t, heads_fn heads, codes_fn codes, int n_sub, const int C,
                            chains *acc, piece *p, const group *g, const uint8_t *w,
                            const uint8_t *x, size_t x_stride, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint8_t *words = words_of(t.type, w, i);
        head(t, heads, n_sub, p, w, i);
        RVK_UNROLL
        for (int j = 0; j < n_sub; j++) {
            const size_t b = i * (size_t)n_sub + (size_t)j;
            const uint8_t *const xb[2] = {x + b * RVK_QK, x + x_stride + b * RVK_QK};
            block_step(t, codes, C, acc, p, g, words, j, xb, b, chain_of(t.type.delta, b));
            __asm__ volatile("" ::: "memory"); /* memory is read in the order of addresses */
        }
    }
}

RVK_INLINE __m256i codes_of_piece(const uint8_t *w, int j, int g) {
    (void)j;
    return word8(w, g);
}

RVK_INLINE void columns(const kind t, const int C, chains *acc, const piece *p, const group *g,
                        const uint8_t *x, size_t x_stride, size_t n) {
    const uint8_t *xb[COLS];
    RVK_UNROLL
    for (int c = 0; c < C; c++) xb[c] = x + (size_t)c * x_stride;
    for (size_t b = 0; b < n; b++) {
        block_step(t, codes_of_piece, C, acc, p, g, p->q[b][0], 0, xb, b,
                   chain_of(t.type.delta, b));
        RVK_UNROLL
        for (int c = 0; c < C; c++) xb[c] += RVK_QK;
    }
}

/* ---- the twelve ---- */

#define MICRO(name, C)                                                                             \
    static void micro##C##_##name(chains *acc, const piece *p, const group *g, const uint8_t *x,   \
                                  size_t x_stride, size_t n) {                                     \
        columns(kind_##name, C, acc, p, g, x, x_stride, n);                                        \
    }

#define FEW(name, n_sub, C)                                                                        \
    static void few##C##_##name(chains *acc, piece *p, const group *g, const uint8_t *w,           \
                                const uint8_t *x, size_t x_stride, size_t n) {                     \
        few_columns(kind_##name, heads_##name, codes_##name, n_sub, C, acc, p, g, w, x, x_stride,  \
                    n);                                                                            \
    }

#define FORMAT(name, NUMBER, n_sub)                                                                \
    static void take_##name(piece *p, const uint8_t *w, size_t n) {                                \
        take(kind_##name, heads_##name, codes_##name, n_sub, p, w, n);                             \
    }                                                                                              \
    FEW(name, n_sub, 2)                                                                            \
    FEW(name, n_sub, 1)                                                                            \
    MICRO(name, 4)                                                                                 \
    MICRO(name, 2)                                                                                 \
    MICRO(name, 1)                                                                                 \
    static const format format_##name = {RVK_##NUMBER,                                             \
                                         RVK_PANEL_##name,                                         \
                                         take_##name,                                              \
                                         {few2_##name, few1_##name},                               \
                                         {micro4_##name, micro2_##name, micro1_##name}};           \
    void rvk_mul_##name##_avx2(RVK_MUL_ARGS) {                                                     \
        rvk_panel_mul_avx2(&format_##name, y, ldy, w, w_stride, n_rows, x, x_stride, n_cols, k);   \
    }                                                                                              \
    void rvk_mul_panels_##name##_avx2(RVK_PANELS_ARGS) {                                           \
        rvk_panel_mul_panels_avx2(&format_##name, y, ldy, w, n_rows, x, x_stride, n_cols, k);      \
    }

FORMAT(q4_0, Q4_0, 1)
FORMAT(q4_1, Q4_1, 1)
FORMAT(q5_0, Q5_0, 1)
FORMAT(q5_1, Q5_1, 1)
FORMAT(q8_0, Q8_0, 1)
FORMAT(iq4_nl, IQ4_NL, 1)
FORMAT(q2_k, Q2_K, 8)
FORMAT(q3_k, Q3_K, 8)
FORMAT(q4_k, Q4_K, 8)
FORMAT(q5_k, Q5_K, 8)
FORMAT(q6_k, Q6_K, 8)
FORMAT(iq4_xs, IQ4_XS, 8)
