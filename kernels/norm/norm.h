#ifndef RVK_NORM_H
#define RVK_NORM_H

#include "rvk.h"

void rvk_rms_norm_ref(float *y, const float *x, const float *g, size_t n, float eps);
void rvk_layer_norm_ref(float *y, const float *x, const float *g, const float *b, size_t n,
                        float eps);
void rvk_rms_norm_avx2(float *y, const float *x, const float *g, size_t n, float eps);
void rvk_layer_norm_avx2(float *y, const float *x, const float *g, const float *b, size_t n,
                         float eps);

#endif
