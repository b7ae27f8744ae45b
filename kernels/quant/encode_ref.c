/* Quantising by search for any CPU; all of it is in encode.h. */
#include "quant/encode.h"
#include "quant/quant.h"

void rvk_encode_fill_ref(rvk_table *t) {
    encode_fill(t);
}
