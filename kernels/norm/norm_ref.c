/* Normalisation, the oracle: double sums, one rounding at the end. */
#include <math.h>

#include "norm/norm.h"

void rvk_rms_norm_ref(float *y, const float *x, const float *g, size_t n, float eps) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    const float scale = (float)(1.0 / sqrt(sum / (double)n + eps));
    for (size_t i = 0; i < n; i++) y[i] = x[i] * scale * g[i];
}

void rvk_layer_norm_ref(float *y, const float *x, const float *g, const float *b, size_t n,
                        float eps) {
    double sum = 0.0, sq = 0.0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    const double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) sq += (x[i] - mean) * (x[i] - mean);
    const float scale = (float)(1.0 / sqrt(sq / (double)n + eps)), m = (float)mean;
    for (size_t i = 0; i < n; i++) y[i] = (x[i] - m) * scale * g[i] + (b ? b[i] : 0.0f);
}

void rvk_init_norm(rvk_table *t, unsigned cpu) {
    (void)cpu;
    t->rms_norm = rvk_rms_norm_ref;
    t->layer_norm = rvk_layer_norm_ref;
    t->isa_norm = "ref";
#ifdef RVK_HAVE_avx2
    if (!(cpu & RVK_AVX2)) return;
    t->rms_norm = rvk_rms_norm_avx2;
    t->layer_norm = rvk_layer_norm_avx2;
    t->isa_norm = "avx2";
#endif
}
