#ifndef RVK_ACT_H
#define RVK_ACT_H

#include "rvk.h"

void rvk_swiglu_ref(float *y, const float *gate, const float *up, size_t n);
void rvk_gelu_ref(float *y, const float *x, size_t n);
void rvk_swiglu_avx2(float *y, const float *gate, const float *up, size_t n);
void rvk_add_avx2(float *y, const float *a, const float *b, size_t n);
void rvk_gelu_avx2(float *y, const float *x, size_t n);
void rvk_swiglu_avx512(float *y, const float *gate, const float *up, size_t n);
void rvk_gelu_avx512(float *y, const float *x, size_t n);

#endif
