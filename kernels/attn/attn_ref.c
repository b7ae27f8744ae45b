/* Attention of query heads against one block of positions, the oracle.
 * Online softmax: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax". */
#include <math.h>

#include "attn/attn.h"

static float at_f32(const void *row, size_t i) {
    return ((const float *)row)[i];
}

static float at_f16(const void *row, size_t i) {
    return rvk_f16_to_f32(((const uint16_t *)row)[i]);
}

static void attn_block(RVK_ATTN_ARGS, float (*at)(const void *, size_t)) {
    for (size_t h = 0; h < n_q; h++) {
        double s[RVK_ATTN_BLOCK], top = st_max[h];
        for (size_t p = 0; p < n; p++) {
            const void *row = (const char *)k + p * stride;
            s[p] = 0.0;
            for (size_t i = 0; i < d; i++) s[p] += (double)q[h * d + i] * at(row, i);
            if (s[p] > top) top = s[p];
        }
        const double keep = st_max[h] == -INFINITY ? 0.0 : exp(st_max[h] - top);
        double sum = st_sum[h] * keep;
        for (size_t p = 0; p < n; p++) sum += s[p] = exp(s[p] - top);
        for (size_t i = 0; i < d; i++) {
            double a = acc[h * d + i] * keep;
            for (size_t p = 0; p < n; p++) a += s[p] * at((const char *)v + p * stride, i);
            acc[h * d + i] = (float)a;
        }
        st_max[h] = (float)top;
        st_sum[h] = (float)sum;
    }
}

void rvk_attn_f32_ref(RVK_ATTN_ARGS) {
    attn_block(q, n_q, d, k, v, stride, n, st_max, st_sum, acc, at_f32);
}

void rvk_attn_f16_ref(RVK_ATTN_ARGS) {
    attn_block(q, n_q, d, k, v, stride, n, st_max, st_sum, acc, at_f16);
}

void rvk_init_attn(rvk_table *t, unsigned cpu) {
    (void)cpu;
    t->attn_f32 = rvk_attn_f32_ref;
    t->attn_f16 = rvk_attn_f16_ref;
    t->isa_attn = "ref";
#ifdef RVK_HAVE_avx2
    if (!(cpu & RVK_AVX2)) return;
    t->attn_f32 = rvk_attn_f32_avx2;
    t->attn_f16 = rvk_attn_f16_avx2;
    t->isa_attn = "avx2";
#endif
#ifdef RVK_HAVE_avx512
    if (!(cpu & RVK_AVX512)) return;
    t->attn_f32 = rvk_attn_f32_avx512;
    t->attn_f16 = rvk_attn_f16_avx512;
    t->isa_attn = "avx512";
#endif
}
