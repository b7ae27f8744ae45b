/* Keys and values of one sequence.
 *
 * The interface is the one paging needs: positions are written one by one, read as spans, and a
 * span never crosses a block.  Storage today: private blocks of RV_KV_BLOCK positions, each with
 * all layers, allocated as the sequence grows. */
#ifndef RV_KV_H
#define RV_KV_H

#include "base/base.h"

enum { RV_KV_BLOCK = 64 };

typedef struct rv_kv rv_kv;

typedef struct rv_kv_span {
    const void *k, *v; /* row of the first position */
    size_t stride;     /* bytes between positions */
    size_t n;          /* positions */
} rv_kv_span;

/* n_layers that keep keys (0 is allowed); heads [n_layers] key heads of each; row widths in values.
 * type: RV_KV_F16 or RV_KV_F32. */
rv_status rv_kv_new(rv_kv **out, size_t n_layers, const int32_t *heads, size_t head_dim,
                    rv_kv_type type, rv_err *err);
void rv_kv_free(rv_kv **kv);
/* Have room for positions 0 .. n - 1; what is stored stays. */
rv_status rv_kv_reserve(rv_kv *kv, size_t n, rv_err *err);
/* Store position pos < the reserved n of one layer: k, v [heads][head_dim] float32. */
void rv_kv_write(rv_kv *kv, size_t i_layer, size_t pos, const float *k, const float *v);
/* The positions from pos on that lie together, at most to the end of pos's block. */
rv_kv_span rv_kv_at(const rv_kv *kv, size_t i_layer, size_t i_head, size_t pos);
/* Free the blocks that hold no position below n. */
void rv_kv_truncate(rv_kv *kv, size_t n);
bool rv_kv_is_f16(const rv_kv *kv);
size_t rv_kv_bytes(const rv_kv *kv);
size_t rv_kv_bytes_per_token(const rv_kv *kv);

#endif
