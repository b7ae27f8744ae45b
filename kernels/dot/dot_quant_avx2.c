/* mul of the twelve quantised types with AVX2.
 *
 * The idea: every type is taken apart into runs of 32 bytes in their natural order (a block of 256
 * is eight runs), and one loop multiplies runs: vpmaddubsw of unsigned weights and signed
 * activations, pairs in int16, then vpmaddwd with ones or with the scales of 16.
 * The int16 pairs cannot saturate, since activations stay within +-127: 2 * 63 * 127 for the
 * widest unsigned type, 2 * 128 * 127 = 32512 for |w| * sign(w)x of the signed ones (w = -128
 * is 128 as an unsigned byte). */
#include <immintrin.h>
#include <string.h>

#include "dot/dot.h"
#include "quant/unpack.h"

typedef struct kind {
    size_t bytes;   /* of a unit: a block of 32 or of 256 values */
    int n_runs;     /* 1 or 8 */
    int minus;      /* stored - minus is the value */
    bool is_signed; /* stored is int8 */
    bool by_16;     /* unit.mult has the scales of 16, unit.s what is common */
    int n_mins;     /* 0, 1, 8 or 16 */
} kind;

typedef struct unit {
    __m256i q[8], mult[8];
    float s[8];
    __m256 m[2];
} unit;

typedef void load_fn(unit *u, const uint8_t *p);

RVK_INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

RVK_INLINE __m256i load256(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

/* What the minimums multiply: d times the sums of the activations, in the order of unit.m. */
RVK_INLINE void x_sums(const kind t, __m256 sum[2], const uint8_t *d, const uint8_t *bsum) {
    if (t.n_mins == 1) {
        float d1;
        int16_t b[2];
        memcpy(&d1, d, sizeof d1);
        memcpy(b, bsum, sizeof b);
        sum[0] = _mm256_set1_ps(d1 * (float)(b[0] + b[1]));
    } else if (t.n_mins == 8) {
        const __m256i b = _mm256_madd_epi16(load256(bsum), _mm256_set1_epi16(1));
        sum[0] =
            _mm256_mul_ps(_mm256_cvtepi32_ps(b), _mm256_loadu_ps((const float *)(const void *)d));
    } else if (t.n_mins == 16) {
        const __m256i b = load256(bsum);
        const __m256 d8 = _mm256_loadu_ps((const float *)(const void *)d);
        const __m256 d0 = _mm256_permutevar8x32_ps(d8, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
        const __m256 d1 = _mm256_permutevar8x32_ps(d8, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
        const __m256i b0 = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(b));
        const __m256i b1 = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(b, 1));
        sum[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(b0), d0);
        sum[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(b1), d1);
    }
}

RVK_INLINE void run(const kind t, const int R, const int C, __m256 acc[RVK_TILE_R][RVK_TILE_C],
                    const unit *u, int j, const uint8_t *const *xq, const uint8_t *const *xd) {
    RVK_UNROLL
    for (int c = 0; c < C; c++) {
        const __m256i x = load256(xq[c] + 32 * j);
        const __m256i start = _mm256_maddubs_epi16(_mm256_set1_epi8((char)t.minus), x);
        float d;
        memcpy(&d, xd[c] + sizeof d * (size_t)j, sizeof d);
        RVK_UNROLL
        for (int r = 0; r < R; r++) {
            const __m256i q = u[r].q[j];
            __m256i p;
            if (t.is_signed)
                p = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
            else
                p = _mm256_maddubs_epi16(q, x);
            if (t.minus) p = _mm256_sub_epi16(p, start);
            p = _mm256_madd_epi16(p, t.by_16 ? u[r].mult[j] : _mm256_set1_epi16(1));
            acc[r][c] =
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(p), _mm256_set1_ps(u[r].s[j] * d), acc[r][c]);
        }
    }
}

RVK_INLINE void tile(const kind t, load_fn load, const int R, const int C, float *y, size_t ldy,
                     const uint8_t *w, size_t w_stride, const uint8_t *x, size_t x_stride,
                     size_t k) {
    __m256 acc[RVK_TILE_R][RVK_TILE_C];
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = _mm256_setzero_ps();
    }
    const size_t off_d = rvk_act_off_d(k), off_b = rvk_act_off_bsum(k);
    for (size_t i = 0; i < k / ((size_t)t.n_runs * RVK_QK); i++) {
        const size_t i_run = i * (size_t)t.n_runs;
        rvk_prefetch_rows(w, w_stride, (size_t)R, i * t.bytes, t.bytes);
        const uint8_t *xq[RVK_TILE_C], *xd[RVK_TILE_C];
        unit u[RVK_TILE_R];
        RVK_UNROLL
        for (int r = 0; r < R; r++) load(&u[r], w + (size_t)r * w_stride + i * t.bytes);
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            const uint8_t *xc = x + (size_t)c * x_stride;
            xq[c] = xc + i_run * RVK_QK;
            xd[c] = xc + off_d + i_run * sizeof(float);
            if (t.n_mins) {
                __m256 sum[2];
                x_sums(t, sum, xd[c], xc + off_b + i_run * 2 * sizeof(int16_t));
                RVK_UNROLL
                for (int r = 0; r < R; r++) {
                    acc[r][c] = _mm256_fnmadd_ps(u[r].m[0], sum[0], acc[r][c]);
                    if (t.n_mins == 16) acc[r][c] = _mm256_fnmadd_ps(u[r].m[1], sum[1], acc[r][c]);
                }
            }
        }
        for (int j = 0; j < t.n_runs; j++) run(t, R, C, acc, u, j, xq, xd);
    }
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) y[(size_t)c * ldy + (size_t)r] = sum8(acc[r][c]);
    }
}

/* ---- loading blocks of 32 ---- */

RVK_INLINE float half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return _cvtsh_ss(h);
}

RVK_INLINE __m128i load128(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

/* 16 bytes: 16 low nibbles, then 16 high ones. */
RVK_INLINE __m256i nibbles(const uint8_t *p) {
    const __m128i v = load128(p);
    return _mm256_and_si256(_mm256_setr_m128i(v, _mm_srli_epi16(v, 4)), _mm256_set1_epi8(15));
}

/* 32 bits at p, each as 16 or 0. */
RVK_INLINE __m256i fifth(const uint8_t *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    const __m256i at =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i one = _mm256_set1_epi64x((long long)0x8040201008040201);
    const __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), at), one);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, one), _mm256_set1_epi8(16));
}

/* One minimum (w = s * q + m) in the first of eight places. */
RVK_INLINE __m256 one_min(const uint8_t *p) {
    return _mm256_zextps128_ps256(_mm_set_ss(-half(p)));
}

RVK_INLINE void load_q4_0(unit *u, const uint8_t *p) {
    u->q[0] = nibbles(p + 2);
    u->s[0] = half(p);
}

RVK_INLINE void load_q4_1(unit *u, const uint8_t *p) {
    u->q[0] = nibbles(p + 4);
    u->s[0] = half(p);
    u->m[0] = one_min(p + 2);
}

RVK_INLINE void load_q5_0(unit *u, const uint8_t *p) {
    u->q[0] = _mm256_or_si256(nibbles(p + 6), fifth(p + 2));
    u->s[0] = half(p);
}

RVK_INLINE void load_q5_1(unit *u, const uint8_t *p) {
    u->q[0] = _mm256_or_si256(nibbles(p + 8), fifth(p + 4));
    u->s[0] = half(p);
    u->m[0] = one_min(p + 2);
}

RVK_INLINE void load_q8_0(unit *u, const uint8_t *p) {
    u->q[0] = load256(p + 2);
    u->s[0] = half(p);
}

RVK_INLINE __m256i levels(__m256i nib) {
    const __m128i t = _mm_loadu_si128((const __m128i *)(const void *)rvk_iq4_levels);
    return _mm256_shuffle_epi8(_mm256_setr_m128i(t, t), nib);
}

RVK_INLINE void load_iq4_nl(unit *u, const uint8_t *p) {
    u->q[0] = levels(nibbles(p + 2));
    u->s[0] = half(p);
}

/* ---- loading blocks of 256 ---- */

RVK_INLINE uint32_t le32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The head of Q4_K and Q5_K: d, dmin, eight scales and eight minimums of 6 bits. */
RVK_INLINE void load_scales6(unit *u, const uint8_t *p) {
    const uint32_t a = le32(p + 4), b = le32(p + 8), c = le32(p + 12);
    const uint32_t s1 = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
    const uint32_t m1 = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
    const __m128i s = _mm_cvtsi64_si128((long long)((a & 0x3f3f3f3f) | (uint64_t)s1 << 32));
    const __m128i m = _mm_cvtsi64_si128((long long)((b & 0x3f3f3f3f) | (uint64_t)m1 << 32));
    const __m256 d = _mm256_set1_ps(half(p)), dmin = _mm256_set1_ps(half(p + 2));
    _mm256_storeu_ps(u->s, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(s)), d));
    u->m[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(m)), dmin);
}

RVK_INLINE void load_q4_k(unit *u, const uint8_t *p) {
    const __m256i low = _mm256_set1_epi8(15);
    RVK_UNROLL
    for (int i = 0; i < 4; i++) {
        const __m256i v = load256(p + 16 + 32 * i);
        u->q[2 * i] = _mm256_and_si256(v, low);
        u->q[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    }
    load_scales6(u, p);
}

RVK_INLINE void load_q5_k(unit *u, const uint8_t *p) {
    const __m256i low = _mm256_set1_epi8(15), bit = _mm256_set1_epi8(16), h = load256(p + 16);
    RVK_UNROLL
    for (int i = 0; i < 4; i++) {
        const __m256i v = load256(p + 48 + 32 * i);
        /* bits 2i and 2i + 1 of h become bit 4: shifted left by 4 and 3 after right by 2i */
        const __m256i h2 = _mm256_srli_epi16(h, 2 * i);
        u->q[2 * i] = _mm256_or_si256(_mm256_and_si256(v, low),
                                      _mm256_and_si256(_mm256_slli_epi16(h2, 4), bit));
        u->q[2 * i + 1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v, 4), low),
                                          _mm256_and_si256(_mm256_slli_epi16(h2, 3), bit));
    }
    load_scales6(u, p);
}

/* Scales of 16 as vpmaddwd wants them, and the common factor. */
RVK_INLINE void load_mult(unit *u, const int8_t *sc, float d) {
    RVK_UNROLL
    for (int j = 0; j < 8; j++) {
        u->mult[j] = _mm256_setr_m128i(_mm_set1_epi16(sc[2 * j]), _mm_set1_epi16(sc[2 * j + 1]));
        u->s[j] = d;
    }
}

RVK_INLINE void load_q6_k(unit *u, const uint8_t *p) {
    const __m256i low = _mm256_set1_epi8(15), top = _mm256_set1_epi8(0x30);
    RVK_UNROLL
    for (int h = 0; h < 2; h++) {
        const __m256i a = load256(p + 64 * h), b = load256(p + 64 * h + 32);
        const __m256i qh = load256(p + 128 + 32 * h);
        const __m256i t0 = _mm256_and_si256(_mm256_slli_epi16(qh, 4), top);
        const __m256i t1 = _mm256_and_si256(_mm256_slli_epi16(qh, 2), top);
        const __m256i t2 = _mm256_and_si256(qh, top);
        const __m256i t3 = _mm256_and_si256(_mm256_srli_epi16(qh, 2), top);
        const __m256i a4 = _mm256_srli_epi16(a, 4), b4 = _mm256_srli_epi16(b, 4);
        u->q[4 * h] = _mm256_or_si256(_mm256_and_si256(a, low), t0);
        u->q[4 * h + 1] = _mm256_or_si256(_mm256_and_si256(b, low), t1);
        u->q[4 * h + 2] = _mm256_or_si256(_mm256_and_si256(a4, low), t2);
        u->q[4 * h + 3] = _mm256_or_si256(_mm256_and_si256(b4, low), t3);
    }
    int8_t sc[16];
    memcpy(sc, p + 192, sizeof sc);
    load_mult(u, sc, half(p + 208));
}

RVK_INLINE void load_two_bits(unit *u, const uint8_t *p) {
    const __m256i three = _mm256_set1_epi8(3);
    RVK_UNROLL
    for (int j = 0; j < 8; j++)
        u->q[j] =
            _mm256_and_si256(_mm256_srli_epi16(load256(p + 32 * (j / 4)), 2 * (j % 4)), three);
}

RVK_INLINE void load_q2_k(unit *u, const uint8_t *p) {
    const __m128i low = _mm_set1_epi8(15), sc = load128(p);
    const __m128i m = _mm_and_si128(_mm_srli_epi16(sc, 4), low);
    const __m256 dmin = _mm256_set1_ps(half(p + 82));
    int8_t s[16];
    _mm_storeu_si128((__m128i *)(void *)s, _mm_and_si128(sc, low));
    load_two_bits(u, p + 16);
    load_mult(u, s, half(p + 80));
    const __m256i m0 = _mm256_cvtepu8_epi32(m), m1 = _mm256_cvtepu8_epi32(_mm_srli_si128(m, 8));
    u->m[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(m0), dmin);
    u->m[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(m1), dmin);
}

RVK_INLINE void load_q3_k(unit *u, const uint8_t *p) {
    const __m256i hm = load256(p), four = _mm256_set1_epi8(4), one = _mm256_set1_epi8(1);
    load_two_bits(u, p + 32);
    RVK_UNROLL
    for (int j = 0; j < 8; j++) {
        const __m256i bit = _mm256_and_si256(_mm256_srli_epi16(hm, j), one);
        u->q[j] = _mm256_or_si256(u->q[j], _mm256_and_si256(_mm256_slli_epi16(bit, 2), four));
    }
    const uint32_t a = le32(p + 96), b = le32(p + 100), c = le32(p + 104);
    const uint32_t nib = 0x0f0f0f0f, two = 0x03030303;
    const __m128i s = _mm_setr_epi32(
        (int)((a & nib) | (c & two) << 4), (int)((b & nib) | (c >> 2 & two) << 4),
        (int)((a >> 4 & nib) | (c >> 4 & two) << 4), (int)((b >> 4 & nib) | (c >> 6 & two) << 4));
    int8_t sc[16];
    _mm_storeu_si128((__m128i *)(void *)sc, _mm_sub_epi8(s, _mm_set1_epi8(32)));
    load_mult(u, sc, half(p + 108));
}

RVK_INLINE void load_iq4_xs(unit *u, const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p + 2, sizeof h);
    const uint32_t l = le32(p + 4);
    const float d = half(p);
    RVK_UNROLL
    for (int j = 0; j < 8; j++) {
        const int sc = (int)((l >> (4 * j) & 15) | (uint32_t)(h >> (2 * j) & 3) << 4) - 32;
        u->s[j] = d * (float)sc;
        u->q[j] = levels(nibbles(p + 8 + 16 * j));
    }
}

/* ---- the twelve ---- */

#define MUL(name, ...)                                                                             \
    RVK_INLINE void tile_##name(const int R, const int C, float *y, size_t ldy, const uint8_t *w,  \
                                size_t w_stride, const uint8_t *x, size_t x_stride, size_t k) {    \
        const kind t = {__VA_ARGS__};                                                              \
        tile(t, load_##name, R, C, y, ldy, w, w_stride, x, x_stride, k);                           \
    }                                                                                              \
    void rvk_mul_##name##_avx2(RVK_MUL_ARGS) {                                                     \
        RVK_WALK(tile_##name, 4, 2);                                                               \
    }

MUL(q4_0, sizeof(rvk_q4_0), 1, 8, false, false, 0)
MUL(q4_1, sizeof(rvk_q4_1), 1, 0, false, false, 1)
MUL(q5_0, sizeof(rvk_q5_0), 1, 16, false, false, 0)
MUL(q5_1, sizeof(rvk_q5_1), 1, 0, false, false, 1)
MUL(q8_0, sizeof(rvk_q8_0), 1, 0, true, false, 0)
MUL(iq4_nl, sizeof(rvk_iq4_nl), 1, 0, true, false, 0)
MUL(q2_k, sizeof(rvk_q2_k), 8, 0, false, true, 16)
MUL(q3_k, sizeof(rvk_q3_k), 8, 4, false, true, 0)
MUL(q4_k, sizeof(rvk_q4_k), 8, 0, false, false, 8)
MUL(q5_k, sizeof(rvk_q5_k), 8, 0, false, false, 8)
MUL(q6_k, sizeof(rvk_q6_k), 8, 32, false, true, 0)
MUL(iq4_xs, sizeof(rvk_iq4_xs), 8, 0, true, false, 0)
