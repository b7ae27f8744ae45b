/* The ISA versions of the quant family; contracts at their pointers in rvk.h.  act_pack has the
 * same bits at every level: one integer maximum, one division, one product, one rounding. */
#ifndef RVK_QUANT_QUANT_H
#define RVK_QUANT_QUANT_H

#include "rvk.h"

/* Below this largest magnitude 127 / max could overflow: the 32 values count as zeros. */
#define RVK_ACT_TINY 0x1p-100f

void rvk_act_pack_ref(void *dst, const float *x, size_t k);
void rvk_act_pack_avx2(void *dst, const float *x, size_t k);
void rvk_act_pack_avx512(void *dst, const float *x, size_t k);
void rvk_quant_bf16_avx512(void *dst, const float *src, size_t k);

/* The quantisers by search of encode.h: quant_w of all types that have one, quant of the K and
 * IQ4 types.  The same bits at every level. */
void rvk_encode_fill_ref(rvk_table *t);
void rvk_encode_fill_avx2(rvk_table *t);

#endif
