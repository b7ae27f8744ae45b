/* Attention against one block with AVX-512.
 *
 * The block's keys (then its values) are widened once into a float32 tile that all query heads of
 * the group read; sixteen scores are reduced together by a transposing tree, so the softmax of the
 * block is one vector.  A row of the tile is padded with zeros to a multiple of 16. */
#include <immintrin.h>
#include <math.h>

#include "attn/attn.h"
#include "exp_avx512.h"

static inline __mmask16 lanes(size_t left) {
    return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

static void widen(float *tile, const void *rows, size_t stride, size_t n, size_t d, bool half) {
    const size_t dp = (d + 15) / 16 * 16;
    for (size_t p = 0; p < n; p++) {
        const char *row = (const char *)rows + p * stride;
        for (size_t i = 0; i < d; i += 16) {
            const __mmask16 m = lanes(d - i);
            const __m512 x = half ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, row + 2 * i))
                                  : _mm512_maskz_loadu_ps(m, row + 4 * i);
            _mm512_store_ps(tile + p * dp + i, x);
        }
    }
}

/* Lane p of the result is the sum of the lanes of s[p]. */
static inline __m512 sums16(const __m512 s[16]) {
    __m512 q[4];
    for (int i = 0; i < 4; i++) {
        const __m512 *a = s + 4 * i;
        const __m512 x =
            _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
        const __m512 y =
            _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
        const __m512d xd = _mm512_castps_pd(x), yd = _mm512_castps_pd(y);
        q[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(xd, yd)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(xd, yd)));
    }
    const __m512 w0 = _mm512_add_ps(_mm512_shuffle_f32x4(q[0], q[1], 0x88),
                                    _mm512_shuffle_f32x4(q[0], q[1], 0xdd));
    const __m512 w1 = _mm512_add_ps(_mm512_shuffle_f32x4(q[2], q[3], 0x88),
                                    _mm512_shuffle_f32x4(q[2], q[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(w0, w1, 0x88), _mm512_shuffle_f32x4(w0, w1, 0xdd));
}

static inline __m512 scores(const float *q, const float *tile, size_t n, size_t d) {
    const size_t dp = (d + 15) / 16 * 16;
    __m512 s[16];
    for (size_t p = 0; p < 16; p++) s[p] = _mm512_setzero_ps();
    for (size_t i = 0; i < d; i += 16) {
        const __m512 x = _mm512_maskz_loadu_ps(lanes(d - i), q + i);
        for (size_t p = 0; p < n; p++)
            s[p] = _mm512_fmadd_ps(x, _mm512_load_ps(tile + p * dp + i), s[p]);
    }
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), lanes(n), sums16(s));
}

static void weigh(float *acc, const float *w, float keep, const float *tile, size_t n, size_t d) {
    const size_t dp = (d + 15) / 16 * 16;
    const __m512 kept = _mm512_set1_ps(keep);
    for (size_t i = 0; i < d; i += 16) {
        const __mmask16 m = lanes(d - i);
        __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, acc + i), kept);
        for (size_t p = 0; p < n; p++)
            a = _mm512_fmadd_ps(_mm512_set1_ps(w[p]), _mm512_load_ps(tile + p * dp + i), a);
        _mm512_mask_storeu_ps(acc + i, m, a);
    }
}

enum { MAX_Q = 64 }; /* query heads whose weights wait on the stack for the values */

static void attn_heads(RVK_ATTN_ARGS, float *tile, bool half) {
    _Alignas(64) float w[MAX_Q * 16];
    float keep[MAX_Q];
    widen(tile, k, stride, n, d, half);
    for (size_t h = 0; h < n_q; h++) {
        const __m512 s = scores(q + h * d, tile, n, d);
        const float old = st_max[h], top = fmaxf(old, _mm512_reduce_max_ps(s));
        const __m512 e =
            _mm512_maskz_mov_ps(lanes(n), rvk_exp16(_mm512_sub_ps(s, _mm512_set1_ps(top))));
        _mm512_store_ps(w + 16 * h, e);
        keep[h] = old == top ? 1.0f : old == -INFINITY ? 0.0f : expf(old - top);
        st_sum[h] = st_sum[h] * keep[h] + _mm512_reduce_add_ps(e);
        st_max[h] = top;
    }
    widen(tile, v, stride, n, d, half);
    for (size_t h = 0; h < n_q; h++) weigh(acc + h * d, w + 16 * h, keep[h], tile, n, d);
}

static void attn_block(RVK_ATTN_ARGS, bool half) {
    _Alignas(64) float tile[RVK_ATTN_BLOCK * RVK_ATTN_MAX_D];
    for (size_t h = 0; h < n_q; h += MAX_Q) {
        const size_t m = n_q - h < MAX_Q ? n_q - h : MAX_Q;
        attn_heads(q + h * d, m, d, k, v, stride, n, st_max + h, st_sum + h, acc + h * d, tile,
                   half);
    }
}

void rvk_attn_f32_avx512(RVK_ATTN_ARGS) {
    if (d > RVK_ATTN_MAX_D)
        rvk_attn_f32_ref(q, n_q, d, k, v, stride, n, st_max, st_sum, acc);
    else
        attn_block(q, n_q, d, k, v, stride, n, st_max, st_sum, acc, false);
}

void rvk_attn_f16_avx512(RVK_ATTN_ARGS) {
    if (d > RVK_ATTN_MAX_D)
        rvk_attn_f16_ref(q, n_q, d, k, v, stride, n, st_max, st_sum, acc);
    else
        attn_block(q, n_q, d, k, v, stride, n, st_max, st_sum, acc, true);
}
