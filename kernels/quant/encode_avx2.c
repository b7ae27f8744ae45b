/* Quantising by search, compiled for AVX2: the code of encode.h and the same bits, in registers
 * of eight lanes. */
#include "quant/encode.h"
#include "quant/quant.h"

void rvk_encode_fill_avx2(rvk_table *t) {
    encode_fill(t);
}
