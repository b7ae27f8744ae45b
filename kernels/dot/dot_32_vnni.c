/* mul with AVX-512 VNNI for the nine types whose scale covers 32 values.
 *
 * The idea is the frame: four blocks of 32 side by side, one in each 128-bit lane of a register,
 * the first 16 values of all four in lo and the last 16 in hi.  Two vpdpbusd then leave four
 * partial sums per block in its lane, and one conversion, one scale and one fma finish 128
 * products.  Weights are the unsigned side; what was added to make them so (minus) is taken off
 * in the integers, as the start value of the sums, which all rows of a tile share. */
#include <immintrin.h>
#include <string.h>

#include "dot/dot.h"
#include "quant/unpack.h"

/* What a type's bytes become.  The loops see these as constants. */
typedef struct kind {
    size_t bytes;  /* of a unit: 4 blocks of 32, or a block of 256 */
    int n_frames;  /* in a unit: 1 or 2 */
    bool odd_even; /* frame 0 holds runs 0 2 4 6 of the block of 256, frame 1 the others */
    int minus;     /* stored - minus is the value */
    bool has_min;
} kind;

typedef struct frame {
    __m512i lo, hi;
    __m512 s; /* scale of the block, in the four floats of its lane */
} frame;

typedef struct unit {
    frame f[2];
    __m512 m; /* minimums; the order is that of x_unit.sum */
} unit;

typedef struct x_unit {
    frame f[2];
    __m512i start[2]; /* -minus * sums of four values */
    __m512 sum;       /* d * sums, of four values (one frame) or of runs of 16 (two) */
} x_unit;

typedef void load_fn(unit *u, const uint8_t *p);

enum { UNIT32 = 4 * RVK_QK };

/* ---- activations ---- */

/* Floats 0..3 of d, each over one lane. */
RVK_INLINE __m512 spread4(const float *d) {
    return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(d)),
                                _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0));
}

/* Floats a, a + step, .. of v, each over one lane. */
RVK_INLINE __m512 spread8(__m256 v, int a, int step) {
    const __m512i lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m512i at = step == 2 ? _mm512_slli_epi32(lane, 1) : lane;
    return _mm512_permutexvar_ps(_mm512_add_epi32(at, _mm512_set1_epi32(a)),
                                 _mm512_castps256_ps512(v));
}

/* Floats 0..7 of v, each twice. */
RVK_INLINE __m512 twice8(__m256 v) {
    const __m512i at = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_permutexvar_ps(at, _mm512_castps256_ps512(v));
}

/* Lanes 0 and 2, or 1 and 3, of a and then of b. */
RVK_INLINE __m512i even(__m512i a, __m512i b) {
    return _mm512_shuffle_i64x2(a, b, 0x88);
}
RVK_INLINE __m512i odd(__m512i a, __m512i b) {
    return _mm512_shuffle_i64x2(a, b, 0xdd);
}

RVK_INLINE void x_start(const kind t, x_unit *x, int i) {
    const __m512i c = _mm512_set1_epi8((char)t.minus), z = _mm512_setzero_si512();
    if (t.minus)
        x->start[i] = _mm512_sub_epi32(
            z, _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(z, c, x->f[i].lo), c, x->f[i].hi));
    else
        x->start[i] = z;
}

RVK_INLINE void load_x(const kind t, x_unit *x, const int8_t *q, const float *d,
                       const int16_t *bsum) {
    const __m512i q0 = _mm512_loadu_si512(q), q1 = _mm512_loadu_si512(q + 64);
    if (t.n_frames == 1) {
        x->f[0] = (frame){even(q0, q1), odd(q0, q1), spread4(d)};
        x_start(t, x, 0);
        if (t.has_min) {
            const __m512i one = _mm512_set1_epi8(1), z = _mm512_setzero_si512();
            const __m512i s =
                _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(z, one, x->f[0].lo), one, x->f[0].hi);
            x->sum = _mm512_mul_ps(_mm512_cvtepi32_ps(s), x->f[0].s);
        }
        return;
    }
    const __m512i q2 = _mm512_loadu_si512(q + 128), q3 = _mm512_loadu_si512(q + 192);
    const __m512i lo0 = even(q0, q1), hi0 = odd(q0, q1), lo1 = even(q2, q3), hi1 = odd(q2, q3);
    const __m256 d8 = _mm256_loadu_ps(d);
    if (t.odd_even) {
        x->f[0] = (frame){even(lo0, lo1), even(hi0, hi1), spread8(d8, 0, 2)};
        x->f[1] = (frame){odd(lo0, lo1), odd(hi0, hi1), spread8(d8, 1, 2)};
    } else {
        x->f[0] = (frame){lo0, hi0, spread8(d8, 0, 1)};
        x->f[1] = (frame){lo1, hi1, spread8(d8, 4, 1)};
    }
    x_start(t, x, 0);
    x_start(t, x, 1);
    if (t.has_min) {
        const __m512i b =
            _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)bsum));
        x->sum = _mm512_mul_ps(_mm512_cvtepi32_ps(b), twice8(d8));
    }
}

/* ---- the tile ---- */

RVK_INLINE void step(const kind t, load_fn load, const int R, const int C,
                     __m512 acc[RVK_TILE_R][RVK_TILE_C], const uint8_t *const *wu,
                     const uint8_t *const *xq, const uint8_t *const *xd, const uint8_t *const *xb) {
    x_unit x[RVK_TILE_C];
    RVK_UNROLL
    for (int c = 0; c < C; c++)
        load_x(t, &x[c], (const int8_t *)xq[c], (const float *)(const void *)xd[c],
               (const int16_t *)(const void *)xb[c]);
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        unit u;
        load(&u, wu[r]);
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            RVK_UNROLL
            for (int i = 0; i < t.n_frames; i++) {
                __m512i dot = _mm512_dpbusd_epi32(x[c].start[i], u.f[i].lo, x[c].f[i].lo);
                dot = _mm512_dpbusd_epi32(dot, u.f[i].hi, x[c].f[i].hi);
                acc[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                            _mm512_mul_ps(u.f[i].s, x[c].f[i].s), acc[r][c]);
            }
            if (t.has_min) acc[r][c] = _mm512_fnmadd_ps(u.m, x[c].sum, acc[r][c]);
        }
    }
}

/* The last 1..3 blocks of a row of 32-value blocks, with zeros behind them. */
typedef struct tail {
    uint8_t w[RVK_TILE_R][UNIT32 + 16];
    uint8_t q[RVK_TILE_C][UNIT32];
    uint8_t d[RVK_TILE_C][16];
} tail;

RVK_INLINE void tile(const kind t, load_fn load, const int R, const int C, float *y, size_t ldy,
                     const uint8_t *w, size_t w_stride, const uint8_t *x, size_t x_stride,
                     size_t k) {
    __m512 acc[RVK_TILE_R][RVK_TILE_C];
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = _mm512_setzero_ps();
    }
    const uint8_t *wu[RVK_TILE_R], *xq[RVK_TILE_C], *xd[RVK_TILE_C], *xb[RVK_TILE_C];
    const size_t n = k / (size_t)(UNIT32 * t.n_frames), off_d = rvk_act_off_d(k);
    const size_t off_b = rvk_act_off_bsum(k);
    for (size_t i = 0; i < n; i++) {
        RVK_UNROLL
        for (int r = 0; r < R; r++) { wu[r] = w + (size_t)r * w_stride + i * t.bytes; }
        rvk_prefetch_rows(w, w_stride, (size_t)R, i * t.bytes, t.bytes);
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            const uint8_t *xc = x + (size_t)c * x_stride;
            xq[c] = xc + i * (size_t)(UNIT32 * t.n_frames);
            xd[c] = xc + off_d + i * (size_t)(16 * t.n_frames);
            xb[c] = xc + off_b + i * (size_t)(16 * t.n_frames);
        }
        step(t, load, R, C, acc, wu, xq, xd, xb);
    }
    const size_t left = t.n_frames == 1 ? k % UNIT32 / RVK_QK : 0;
    if (left) {
        tail z;
        memset(&z, 0, sizeof z);
        for (int r = 0; r < R; r++) {
            memcpy(z.w[r], w + (size_t)r * w_stride + n * t.bytes, left * (t.bytes / 4));
            wu[r] = z.w[r];
        }
        for (int c = 0; c < C; c++) {
            const uint8_t *xc = x + (size_t)c * x_stride;
            memcpy(z.q[c], xc + n * UNIT32, left * RVK_QK);
            memcpy(z.d[c], xc + off_d + n * 16, left * sizeof(float));
            xq[c] = z.q[c], xd[c] = z.d[c], xb[c] = NULL;
        }
        step(t, load, R, C, acc, wu, xq, xd, xb);
    }
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++)
            y[(size_t)c * ldy + (size_t)r] = _mm512_reduce_add_ps(acc[r][c]);
    }
}

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

/* The heads of four blocks: scales, and minimums (w = s * q + m, so -m) where there are any. */
RVK_INLINE void load_heads(unit *u, const uint8_t *p, size_t bytes, const words *at, bool has_min) {
    const __m512i h = bytes <= 80 ? pick1(p, at) : pick(p, bytes, at);
    u->f[0].s = _mm512_cvtph_ps(_mm512_castsi512_si256(h));
    if (has_min)
        u->m = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1)));
}

RVK_INLINE void load_nibbles(unit *u, __m512i qs) {
    const __m512i low = _mm512_set1_epi8(15);
    u->f[0].lo = _mm512_and_si512(qs, low);
    u->f[0].hi = _mm512_and_si512(_mm512_srli_epi16(qs, 4), low);
}

RVK_INLINE uint32_t le32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The fifth bits, 32 at p, p + block, ..: bit i of a block goes on top of its value i. */
RVK_INLINE void load_fifth(unit *u, const uint8_t *p, size_t block) {
    const uint64_t b0 = le32(p), b1 = le32(p + block);
    const uint64_t b2 = le32(p + 2 * block), b3 = le32(p + 3 * block);
    const uint64_t lo = (b0 & 0xffff) | (b1 & 0xffff) << 16 | (b2 & 0xffff) << 32 | b3 << 48;
    const uint64_t hi = b0 >> 16 | (b1 >> 16) << 16 | (b2 >> 16) << 32 | (b3 >> 16) << 48;
    const __m512i bit = _mm512_set1_epi8(16);
    u->f[0].lo = _mm512_mask_add_epi8(u->f[0].lo, lo, u->f[0].lo, bit);
    u->f[0].hi = _mm512_mask_add_epi8(u->f[0].hi, hi, u->f[0].hi, bit);
}

RVK_INLINE void load_q4_0(unit *u, const uint8_t *p) {
    load_nibbles(u, pick(p, 72, &QS_Q4_0));
    load_heads(u, p, 72, &HEAD_Q4_0, false);
}

RVK_INLINE void load_q4_1(unit *u, const uint8_t *p) {
    load_nibbles(u, pick(p, 80, &QS_Q4_1));
    load_heads(u, p, 80, &HEAD_Q4_1, true);
}

RVK_INLINE void load_q5_0(unit *u, const uint8_t *p) {
    load_nibbles(u, pick(p, 88, &QS_Q5_0));
    load_heads(u, p, 88, &HEAD_Q5_0, false);
    load_fifth(u, p + 2, sizeof(rvk_q5_0));
}

RVK_INLINE void load_q5_1(unit *u, const uint8_t *p) {
    load_nibbles(u, pick(p, 96, &QS_Q5_1));
    load_heads(u, p, 96, &HEAD_Q5_1, true);
    load_fifth(u, p + 4, sizeof(rvk_q5_1));
}

RVK_INLINE __m512i two256(const uint8_t *a, const uint8_t *b) {
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a)),
        _mm256_loadu_si256((const __m256i *)(const void *)b), 1);
}

RVK_INLINE void load_q8_0(unit *u, const uint8_t *p) {
    const __m512i top = _mm512_set1_epi8(-128); /* adds 128 to a signed byte */
    const __m512i a = _mm512_xor_si512(two256(p + 2, p + 36), top);
    const __m512i b = _mm512_xor_si512(two256(p + 70, p + 104), top);
    u->f[0].lo = even(a, b);
    u->f[0].hi = odd(a, b);
    const __m512i h = _mm512_permutex2var_epi16(
        _mm512_loadu_si512(p), _mm512_load_si512(HEAD_Q8_0.at), _mm512_loadu_si512(p + 68));
    u->f[0].s = _mm512_cvtph_ps(_mm512_castsi512_si256(h));
}

RVK_INLINE __m512i levels(__m512i nibbles) {
    const __m128i t = _mm_loadu_si128((const __m128i *)(const void *)rvk_iq4_levels);
    const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(t, _mm_set1_epi8(-128)));
    return _mm512_shuffle_epi8(table, nibbles);
}

RVK_INLINE void load_iq4_nl(unit *u, const uint8_t *p) {
    load_q4_0(u, p);
    u->f[0].lo = levels(u->f[0].lo);
    u->f[0].hi = levels(u->f[0].hi);
}

/* ---- loading blocks of 256 ---- */

RVK_INLINE __m256 f16x8(const uint8_t *p) { /* one half, eight times */
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return _mm256_cvtph_ps(_mm_set1_epi16((short)h));
}

/* The head of Q4_K and Q5_K: d, dmin, eight scales and eight minimums of 6 bits. */
RVK_INLINE void load_scales6(unit *u, const uint8_t *p) {
    const uint32_t a = le32(p + 4), b = le32(p + 8), c = le32(p + 12);
    const uint32_t s1 = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
    const uint32_t m1 = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
    const __m128i s = _mm_cvtsi64_si128((long long)((a & 0x3f3f3f3f) | (uint64_t)s1 << 32));
    const __m128i m = _mm_cvtsi64_si128((long long)((b & 0x3f3f3f3f) | (uint64_t)m1 << 32));
    const __m256 s8 = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(s)), f16x8(p));
    const __m256 m8 = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(m)), f16x8(p + 2));
    u->f[0].s = spread8(s8, 0, 2);
    u->f[1].s = spread8(s8, 1, 2);
    u->m = twice8(m8);
}

RVK_INLINE void load_q4_k(unit *u, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i a = _mm512_loadu_si512(p + 16), b = _mm512_loadu_si512(p + 80);
    const __m512i lo = even(a, b), hi = odd(a, b);
    u->f[0].lo = _mm512_and_si512(lo, low);
    u->f[0].hi = _mm512_and_si512(hi, low);
    u->f[1].lo = _mm512_and_si512(_mm512_srli_epi16(lo, 4), low);
    u->f[1].hi = _mm512_and_si512(_mm512_srli_epi16(hi, 4), low);
    load_scales6(u, p);
}

/* Bit i of 16 bytes at p, moved to bit 4: lane n of the result has bits 2n (plus = 0) or 2n + 1. */
RVK_INLINE __m512i fifth_k(const uint8_t *p, int plus) {
    const __m512i left = _mm512_set_epi64(62, 62, 0, 0, 2, 2, 4, 4);
    const __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p));
    const __m512i moved = _mm512_rolv_epi64(v, _mm512_sub_epi64(left, _mm512_set1_epi64(plus)));
    return _mm512_and_si512(moved, _mm512_set1_epi8(16));
}

RVK_INLINE void load_q5_k(unit *u, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i a = _mm512_loadu_si512(p + 48), b = _mm512_loadu_si512(p + 112);
    const __m512i lo = even(a, b), hi = odd(a, b);
    const __m512i lo4 = _mm512_srli_epi16(lo, 4), hi4 = _mm512_srli_epi16(hi, 4);
    u->f[0].lo = _mm512_or_si512(_mm512_and_si512(lo, low), fifth_k(p + 16, 0));
    u->f[0].hi = _mm512_or_si512(_mm512_and_si512(hi, low), fifth_k(p + 32, 0));
    u->f[1].lo = _mm512_or_si512(_mm512_and_si512(lo4, low), fifth_k(p + 16, 1));
    u->f[1].hi = _mm512_or_si512(_mm512_and_si512(hi4, low), fifth_k(p + 32, 1));
    load_scales6(u, p);
}

RVK_INLINE void load_iq4_xs(unit *u, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i a = _mm512_loadu_si512(p + 8), b = _mm512_loadu_si512(p + 72);
    u->f[0].lo = levels(_mm512_and_si512(a, low));
    u->f[0].hi = levels(_mm512_and_si512(_mm512_srli_epi16(a, 4), low));
    u->f[1].lo = levels(_mm512_and_si512(b, low));
    u->f[1].hi = levels(_mm512_and_si512(_mm512_srli_epi16(b, 4), low));
    uint16_t h;
    memcpy(&h, p + 2, sizeof h);
    const uint32_t l = le32(p + 4);
    const __m128i l8 = _mm_unpacklo_epi8(_mm_cvtsi32_si128((int)(l & 0x0f0f0f0f)),
                                         _mm_cvtsi32_si128((int)(l >> 4 & 0x0f0f0f0f)));
    const __m256i h8 = _mm256_and_si256(
        _mm256_srlv_epi32(_mm256_set1_epi32(h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14)),
        _mm256_set1_epi32(3));
    const __m256i s = _mm256_sub_epi32(
        _mm256_or_si256(_mm256_cvtepu8_epi32(l8), _mm256_slli_epi32(h8, 4)), _mm256_set1_epi32(32));
    const __m256 s8 = _mm256_mul_ps(_mm256_cvtepi32_ps(s), f16x8(p));
    u->f[0].s = spread8(s8, 0, 1);
    u->f[1].s = spread8(s8, 4, 1);
}

/* ---- the nine ---- */

/* rows in a tile (few columns, four columns), then what the type is */
#define MUL(name, rows, wide, ...)                                                                 \
    RVK_INLINE void tile_##name(const int R, const int C, float *y, size_t ldy, const uint8_t *w,  \
                                size_t w_stride, const uint8_t *x, size_t x_stride, size_t k) {    \
        const kind t = {__VA_ARGS__};                                                              \
        tile(t, load_##name, R, C, y, ldy, w, w_stride, x, x_stride, k);                           \
    }                                                                                              \
    void rvk_mul_##name##_vnni(RVK_MUL_ARGS) {                                                     \
        RVK_WALK(tile_##name, rows, wide);                                                         \
    }

MUL(q4_0, 4, 4, 4 * sizeof(rvk_q4_0), 1, false, 8, false)
MUL(q4_1, 4, 4, 4 * sizeof(rvk_q4_1), 1, false, 0, true)
MUL(q5_0, 4, 4, 4 * sizeof(rvk_q5_0), 1, false, 16, false)
MUL(q5_1, 4, 4, 4 * sizeof(rvk_q5_1), 1, false, 0, true)
MUL(q8_0, 2, 4, 4 * sizeof(rvk_q8_0), 1, false, 128, false)
MUL(iq4_nl, 4, 4, 4 * sizeof(rvk_iq4_nl), 1, false, 128, false)
MUL(q4_k, 4, 4, sizeof(rvk_q4_k), 2, true, 0, true)
MUL(q5_k, 4, 4, sizeof(rvk_q5_k), 2, true, 0, true)
MUL(iq4_xs, 4, 4, sizeof(rvk_iq4_xs), 2, false, 128, false)
