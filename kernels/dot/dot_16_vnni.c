/* mul with AVX-512 VNNI for the three types whose scale covers 16 values: Q2_K, Q3_K, Q6_K.
 *
 * The idea: 64 values in their natural order fill a register, so each 128-bit lane holds one run
 * of 16 and one vpdpbusd leaves its four partial sums there.  A block of 256 is four such
 * registers.  Weights are the unsigned side; minus is taken off as in dot_32_vnni.c. */
#include <immintrin.h>
#include <string.h>

#include "dot/dot.h"

typedef struct kind {
    size_t bytes;
    int minus; /* stored - minus is the value */
    bool has_min;
} kind;

typedef struct unit {
    __m512i q[4];
    __m512 s, m; /* of runs 0..15 */
} unit;

typedef struct x_unit {
    __m512i q[4], start[4];
    __m512 d[4];
    __m512 sum; /* d * sum of the run, of runs 0..15 */
} x_unit;

typedef void load_fn(unit *u, const uint8_t *p);

/* Floats 4i .. 4i + 3 of v, each over one lane. */
RVK_INLINE __m512 spread16(__m512 v, int i) {
    const __m512i lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(_mm512_add_epi32(lane, _mm512_set1_epi32(4 * i)), v);
}

/* Floats 0..7 of v, each twice. */
RVK_INLINE __m512 twice8(__m256 v) {
    const __m512i at = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_permutexvar_ps(at, _mm512_castps256_ps512(v));
}

RVK_INLINE void load_x(const kind t, x_unit *x, const uint8_t *q, const uint8_t *d,
                       const uint8_t *bsum) {
    const __m512 d16 = twice8(_mm256_loadu_ps((const float *)(const void *)d));
    const __m512i z = _mm512_setzero_si512();
    RVK_UNROLL
    for (int i = 0; i < 4; i++) {
        x->q[i] = _mm512_loadu_si512(q + 64 * i);
        x->d[i] = spread16(d16, i);
        x->start[i] = z;
        if (t.minus)
            x->start[i] = _mm512_sub_epi32(
                z, _mm512_dpbusd_epi32(z, _mm512_set1_epi8((char)t.minus), x->q[i]));
    }
    if (t.has_min) {
        const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)bsum);
        x->sum = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(b)), d16);
    }
}

RVK_INLINE void tile(const kind t, load_fn load, const int R, const int C, float *y, size_t ldy,
                     const uint8_t *w, size_t w_stride, const uint8_t *x, size_t x_stride,
                     size_t k) {
    __m512 acc[RVK_TILE_R][RVK_TILE_C];
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++) acc[r][c] = _mm512_setzero_ps();
    }
    const size_t off_d = rvk_act_off_d(k), off_b = rvk_act_off_bsum(k);
    for (size_t i = 0; i < k / RVK_QKK; i++) {
        rvk_prefetch_rows(w, w_stride, (size_t)R, i * t.bytes, t.bytes);
        x_unit xu[RVK_TILE_C];
        RVK_UNROLL
        for (int c = 0; c < C; c++) {
            const uint8_t *xc = x + (size_t)c * x_stride;
            load_x(t, &xu[c], xc + i * RVK_QKK, xc + off_d + i * 32, xc + off_b + i * 32);
        }
        RVK_UNROLL
        for (int r = 0; r < R; r++) {
            unit u;
            load(&u, w + (size_t)r * w_stride + i * t.bytes);
            RVK_UNROLL
            for (int j = 0; j < 4; j++) {
                const __m512 s = spread16(u.s, j);
                RVK_UNROLL
                for (int c = 0; c < C; c++) {
                    const __m512i dot = _mm512_dpbusd_epi32(xu[c].start[j], u.q[j], xu[c].q[j]);
                    acc[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                                _mm512_mul_ps(s, xu[c].d[j]), acc[r][c]);
                }
            }
            if (t.has_min) {
                RVK_UNROLL
                for (int c = 0; c < C; c++) acc[r][c] = _mm512_fnmadd_ps(u.m, xu[c].sum, acc[r][c]);
            }
        }
    }
    RVK_UNROLL
    for (int r = 0; r < R; r++) {
        RVK_UNROLL
        for (int c = 0; c < C; c++)
            y[(size_t)c * ldy + (size_t)r] = _mm512_reduce_add_ps(acc[r][c]);
    }
}

/* ---- loading ---- */

RVK_INLINE __m512 f16x16(const uint8_t *p) { /* one half, sixteen times */
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)h));
}

RVK_INLINE __m512i twice256(const uint8_t *p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* Rotate the first 32 bytes left by a bits and the last 32 by b; within 64 bits, which the masks
 * that follow make a shift within bytes. */
RVK_INLINE __m512i rotate(__m512i v, int a, int b) {
    const long long x = a & 63, y = b & 63;
    return _mm512_rolv_epi64(v, _mm512_set_epi64(y, y, y, y, x, x, x, x));
}

RVK_INLINE void load_q6_k(unit *u, const uint8_t *p) {
    const __m512i low = _mm512_set1_epi8(15), six = _mm512_set1_epi8(63);
    RVK_UNROLL
    for (int h = 0; h < 2; h++) {
        const __m512i ql = _mm512_loadu_si512(p + 64 * h), qh = twice256(p + 128 + 32 * h);
        /* 0xca: where low has a bit the second operand's, elsewhere the third's */
        const __m512i a = _mm512_ternarylogic_epi64(low, ql, rotate(qh, 4, 2), 0xca);
        const __m512i b =
            _mm512_ternarylogic_epi64(low, _mm512_srli_epi16(ql, 4), rotate(qh, 0, -2), 0xca);
        u->q[2 * h] = _mm512_and_si512(a, six);
        u->q[2 * h + 1] = _mm512_and_si512(b, six);
    }
    const __m128i sc = _mm_loadu_si128((const __m128i *)(const void *)(p + 192));
    u->s = _mm512_mul_ps(f16x16(p + 208), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sc)));
}

/* The two-bit values of 64 bytes at p. */
RVK_INLINE void load_two_bits(unit *u, const uint8_t *p) {
    const __m512i three = _mm512_set1_epi8(3);
    RVK_UNROLL
    for (int h = 0; h < 2; h++) {
        const __m512i q = twice256(p + 32 * h);
        u->q[2 * h] = _mm512_and_si512(rotate(q, 0, -2), three);
        u->q[2 * h + 1] = _mm512_and_si512(rotate(q, -4, -6), three);
    }
}

RVK_INLINE void load_q2_k(unit *u, const uint8_t *p) {
    const __m128i sc = _mm_loadu_si128((const __m128i *)(const void *)p);
    const __m128i low = _mm_set1_epi8(15);
    const __m128i s = _mm_and_si128(sc, low), m = _mm_and_si128(_mm_srli_epi16(sc, 4), low);
    load_two_bits(u, p + 16);
    u->s = _mm512_mul_ps(f16x16(p + 80), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(s)));
    u->m = _mm512_mul_ps(f16x16(p + 82), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(m)));
}

RVK_INLINE void load_q3_k(unit *u, const uint8_t *p) {
    const __m512i four = _mm512_set1_epi8(4), hm = twice256(p);
    load_two_bits(u, p + 32);
    RVK_UNROLL
    for (int j = 0; j < 4; j++) /* bits 2j and 2j + 1 become bit 2 */
        u->q[j] =
            _mm512_or_si512(u->q[j], _mm512_and_si512(rotate(hm, 2 - 2 * j, 1 - 2 * j), four));
    uint32_t a[3];
    memcpy(a, p + 96, sizeof a);
    const uint32_t nib = 0x0f0f0f0f, two = 0x03030303;
    const __m128i sc = _mm_setr_epi32((int)((a[0] & nib) | (a[2] & two) << 4),
                                      (int)((a[1] & nib) | (a[2] >> 2 & two) << 4),
                                      (int)((a[0] >> 4 & nib) | (a[2] >> 4 & two) << 4),
                                      (int)((a[1] >> 4 & nib) | (a[2] >> 6 & two) << 4));
    const __m512i s = _mm512_sub_epi32(_mm512_cvtepu8_epi32(sc), _mm512_set1_epi32(32));
    u->s = _mm512_mul_ps(f16x16(p + 108), _mm512_cvtepi32_ps(s));
}

/* ---- the three ---- */

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

MUL(q2_k, 4, 4, sizeof(rvk_q2_k), 0, true)
MUL(q3_k, 4, 4, sizeof(rvk_q3_k), 4, false)
MUL(q6_k, 4, 4, sizeof(rvk_q6_k), 32, false)
