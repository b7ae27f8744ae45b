#ifndef RVK_ATTN_H
#define RVK_ATTN_H

#include "rvk.h"

/* The signature of rvk_table.attn_f32 and attn_f16. */
#define RVK_ATTN_ARGS                                                                              \
    const float *q, size_t n_q, size_t d, const void *k, const void *v, size_t stride, size_t n,   \
        float *st_max, float *st_sum, float *acc

void rvk_attn_f32_ref(RVK_ATTN_ARGS);
void rvk_attn_f16_ref(RVK_ATTN_ARGS);
void rvk_attn_f32_avx2(RVK_ATTN_ARGS);
void rvk_attn_f16_avx2(RVK_ATTN_ARGS);
void rvk_attn_f32_avx512(RVK_ATTN_ARGS);
void rvk_attn_f16_avx512(RVK_ATTN_ARGS);

/* Widest head the vector versions hold on the stack; wider ones go to the oracle. */
enum { RVK_ATTN_MAX_D = 512 };

#endif
