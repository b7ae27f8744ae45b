/* One block of every type, taken apart in plain C: the single place where the portable code knows
 * what the bits of a format mean.  The oracles of quant (dequantise) and dot both stand on it; the
 * vector files do not, so that a test of one against the other compares two readings of the format.
 *
 * The idea: every format here is value[i] = s * q[i] - m, with s and m shared by 16 values. */
#ifndef RVK_QUANT_UNPACK_H
#define RVK_QUANT_UNPACK_H

#include <string.h>

#include "rvk.h"

typedef struct rvk_block {
    int8_t q[RVK_QKK];
    float s[RVK_QKK / 16], m[RVK_QKK / 16]; /* of values 16 * i .. 16 * i + 15 */
} rvk_block;

/* The 16 levels of IQ4_NL and IQ4_XS. */
extern const int8_t rvk_iq4_levels[16];

/* Take the block at p apart; rvk_dtypes[type].block_values values are set.
 * type: a quantised one.  p: any alignment. */
void rvk_unpack(rvk_block *out, int type, const void *p);

#endif
