/* Attention against float32 rows with AVX-512.
 *
 * The block's keys are turned once so that lanes are positions: a score vector of sixteen positions
 * is then a chain of fused multiply-adds with one value of the query, and the softmax of the block
 * is one vector.  Its values are widened once.  Both serve all queries of the call, four at a time.
 * Per query the order is fixed: four partial sums over the dimensions i, by i mod 4, so neither the
 * number of queries nor their grouping shows in the bits. */
#include <immintrin.h>
#include <math.h>

#include "attn/attn.h"
#include "exp_avx512.h"

static inline __mmask16 lanes(size_t left) {
    return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

/* 16 values from i on of row p, as float32; lanes beyond d are 0. */
static inline __m512 load16(const void *rows, size_t stride, size_t p, size_t i, size_t d) {
    return _mm512_maskz_loadu_ps(lanes(d - i), (const char *)rows + p * stride + 4 * i);
}

static void widen(float *tile, const void *rows, size_t stride, size_t n, size_t d) {
    const size_t dp = (d + 15) / 16 * 16;
    for (size_t p = 0; p < n; p++)
        for (size_t i = 0; i < d; i += 16)
            _mm512_store_ps(tile + p * dp + i, load16(rows, stride, p, i, d));
}

/* out[j] lane p = in[p] lane j. */
static inline void turn16(const __m512 in[16], float *out) {
    __m512 t[16], u[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(in[i], in[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(in[i], in[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        for (int k = 0; k < 2; k++) {
            const __m512d x = _mm512_castps_pd(t[i + k]), y = _mm512_castps_pd(t[i + k + 2]);
            u[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            u[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    }
    for (int j = 0; j < 4; j++) { /* u[4 r + j]: dims j, j + 4, .. of positions 4 r .. 4 r + 3 */
        const __m512 a = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88);
        const __m512 b = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
        const __m512 c = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
        const __m512 d = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
        _mm512_store_ps(out + 16 * j, _mm512_shuffle_f32x4(a, b, 0x88));
        _mm512_store_ps(out + 16 * (j + 8), _mm512_shuffle_f32x4(a, b, 0xdd));
        _mm512_store_ps(out + 16 * (j + 4), _mm512_shuffle_f32x4(c, d, 0x88));
        _mm512_store_ps(out + 16 * (j + 12), _mm512_shuffle_f32x4(c, d, 0xdd));
    }
}

/* keys[i] lane p = dimension i of position p; positions from n on are 0. */
static void turn(float *keys, const void *rows, size_t stride, size_t n, size_t d) {
    for (size_t i = 0; i < d; i += 16) {
        __m512 in[16];
        for (size_t p = 0; p < 16; p++)
            in[p] = p < n ? load16(rows, stride, p, i, d) : _mm512_setzero_ps();
        turn16(in, keys + 16 * i);
    }
}

/* Scores of m <= 4 queries; s[k] lane p is that of position p. */
static inline __attribute__((always_inline)) void scores(__m512 *s, const float *q, size_t m,
                                                         const float *keys, size_t d) {
    __m512 a[4][4];
    for (size_t k = 0; k < m; k++)
        for (int r = 0; r < 4; r++) a[k][r] = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 4 <= d; i += 4) {
        for (size_t r = 0; r < 4; r++) {
            const __m512 key = _mm512_load_ps(keys + 16 * (i + r));
            for (size_t k = 0; k < m; k++)
                a[k][r] = _mm512_fmadd_ps(_mm512_set1_ps(q[k * d + i + r]), key, a[k][r]);
        }
    }
    for (; i < d; i++) {
        const __m512 key = _mm512_load_ps(keys + 16 * i);
        for (size_t k = 0; k < m; k++)
            a[k][i % 4] = _mm512_fmadd_ps(_mm512_set1_ps(q[k * d + i]), key, a[k][i % 4]);
    }
    for (size_t k = 0; k < m; k++)
        s[k] = _mm512_add_ps(_mm512_add_ps(a[k][0], a[k][1]), _mm512_add_ps(a[k][2], a[k][3]));
}

/* acc = acc * keep + w . values, for m <= 4 queries. */
static inline __attribute__((always_inline)) void weigh(float *acc, const float *w,
                                                        const float *keep, size_t m,
                                                        const float *tile, size_t n, size_t d) {
    const size_t dp = (d + 15) / 16 * 16;
    for (size_t i = 0; i < d; i += 16) {
        const __mmask16 mask = lanes(d - i);
        __m512 a[4];
        for (size_t k = 0; k < m; k++)
            a[k] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, acc + k * d + i),
                                 _mm512_set1_ps(keep[k]));
        for (size_t p = 0; p < n; p++) {
            const __m512 value = _mm512_load_ps(tile + p * dp + i);
            for (size_t k = 0; k < m; k++)
                a[k] = _mm512_fmadd_ps(_mm512_set1_ps(w[16 * k + p]), value, a[k]);
        }
        for (size_t k = 0; k < m; k++) _mm512_mask_storeu_ps(acc + k * d + i, mask, a[k]);
    }
}

/* The softmax of one query's scores into w; returns the factor for what was there before. */
static inline float soften(__m512 s, size_t n, float *w, float *st_max, float *st_sum) {
    s = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), lanes(n), s);
    const float old = *st_max, most = _mm512_reduce_max_ps(s), top = most > old ? most : old;
    const __m512 e = rvk_exp16(_mm512_sub_ps(s, _mm512_set1_ps(top)));
    const __m512 seen = _mm512_maskz_mov_ps(lanes(n), e);
    const float keep = old == top ? 1.0f : old == -INFINITY ? 0.0f : expf(old - top);
    _mm512_store_ps(w, seen);
    *st_sum = *st_sum * keep + _mm512_reduce_add_ps(seen);
    *st_max = top;
    return keep;
}

enum { MAX_Q = 64 }; /* query heads whose weights wait on the stack for the values */

static void attn_heads(RVK_ATTN_ROWS_ARGS, float *tile) {
    _Alignas(64) float w[MAX_Q * 16];
    float keep[MAX_Q];
    __m512 s[4];
    turn(tile, k, stride, n, d);
    for (size_t h = 0; h < n_q; h += 4) {
        const size_t m = n_q - h < 4 ? n_q - h : 4;
        if (m == 4)
            scores(s, q + h * d, 4, tile, d);
        else
            for (size_t i = 0; i < m; i++) scores(s + i, q + (h + i) * d, 1, tile, d);
        for (size_t i = 0; i < m; i++)
            keep[h + i] = soften(s[i], n, w + 16 * (h + i), st_max + h + i, st_sum + h + i);
    }
    widen(tile, v, stride, n, d);
    size_t h = 0;
    for (; h + 4 <= n_q; h += 4) weigh(acc + h * d, w + 16 * h, keep + h, 4, tile, n, d);
    for (; h < n_q; h++) weigh(acc + h * d, w + 16 * h, keep + h, 1, tile, n, d);
}

void rvk_attn_rows_avx512(RVK_ATTN_ROWS_ARGS) {
    if (d > RVK_ATTN_MAX_D) {
        rvk_attn_rows_ref(q, n_q, d, k, v, stride, n, st_max, st_sum, acc);
        return;
    }
    _Alignas(64) float tile[RVK_ATTN_ROWS * RVK_ATTN_MAX_D];
    for (size_t h = 0; h < n_q; h += MAX_Q) {
        const size_t m = n_q - h < MAX_Q ? n_q - h : MAX_Q;
        attn_heads(q + h * d, m, d, k, v, stride, n, st_max + h, st_sum + h, acc + h * d, tile);
    }
}
