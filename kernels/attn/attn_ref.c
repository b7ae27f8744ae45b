/* The ladder of the attention family, and the oracle for rows as they come.
 * Online softmax: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax". */
#include <math.h>

#include "attn/attn.h"

void rvk_attn_rows_ref(RVK_ATTN_ROWS_ARGS) {
    for (size_t h = 0; h < n_q; h++) {
        double s[RVK_ATTN_ROWS], top = st_max[h];
        for (size_t p = 0; p < n; p++) {
            const float *row = (const float *)(const void *)((const char *)k + p * stride);
            s[p] = 0.0;
            for (size_t i = 0; i < d; i++) s[p] += (double)q[h * d + i] * row[i];
            if (s[p] > top) top = s[p];
        }
        const double keep = st_max[h] == -INFINITY ? 0.0 : exp(st_max[h] - top);
        double sum = st_sum[h] * keep;
        for (size_t p = 0; p < n; p++) sum += s[p] = exp(s[p] - top);
        for (size_t i = 0; i < d; i++) {
            double a = acc[h * d + i] * keep;
            for (size_t p = 0; p < n; p++)
                a += s[p] * ((const float *)(const void *)((const char *)v + p * stride))[i];
            acc[h * d + i] = (float)a;
        }
        st_max[h] = (float)top;
        st_sum[h] = (float)sum;
    }
}

void rvk_init_attn(rvk_table *t, unsigned cpu) {
    (void)cpu;
    t->attn[RVK_F32] = rvk_attn_f32_ref;
    t->attn[RVK_F16] = rvk_attn_f16_ref;
    t->attn[RVK_Q8_0] = rvk_attn_q8_0_ref;
    t->attn[RVK_Q4_0] = rvk_attn_q4_0_ref;
    t->attn[RVK_K8V4] = rvk_attn_k8v4_ref;
    t->attn_rows = rvk_attn_rows_ref;
    t->isa_attn = "ref";
#ifdef RVK_HAVE_avx2
    if (!(cpu & RVK_AVX2)) return;
    t->attn[RVK_F32] = rvk_attn_f32_avx2;
    t->attn[RVK_F16] = rvk_attn_f16_avx2;
    t->attn[RVK_Q8_0] = rvk_attn_q8_0_avx2;
    t->attn[RVK_Q4_0] = rvk_attn_q4_0_avx2;
    t->attn[RVK_K8V4] = rvk_attn_k8v4_avx2;
    t->attn_rows = rvk_attn_rows_avx2;
    t->isa_attn = "avx2";
#endif
#ifdef RVK_HAVE_avx512
    if (!(cpu & RVK_AVX512)) return;
    t->attn[RVK_F32] = rvk_attn_f32_avx512;
    t->attn[RVK_F16] = rvk_attn_f16_avx512;
    t->attn_rows = rvk_attn_rows_avx512;
    t->isa_attn = "avx512";
#endif
#ifdef RVK_HAVE_vnni
    if (!(cpu & RVK_VNNI)) return;
    t->attn[RVK_Q8_0] = rvk_attn_q8_0_vnni;
    t->attn[RVK_Q4_0] = rvk_attn_q4_0_vnni;
    t->attn[RVK_K8V4] = rvk_attn_k8v4_vnni;
    t->isa_attn = "vnni";
#endif
}
