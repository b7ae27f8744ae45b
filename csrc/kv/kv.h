/* Keys and values of one sequence.
 *
 * The interface is the one paging needs: positions are written one by one and read by blocks of
 * RV_KV_BLOCK, which do not change once full.  A block holds all layers, and in each the key heads
 * one after another in the layout that rvk_table.attn reads (rvk.h).  Storage today: private
 * blocks, allocated as the sequence grows. */
#ifndef RV_KV_H
#define RV_KV_H

#include "base/base.h"

enum { RV_KV_BLOCK = 64 };

typedef struct rv_kv rv_kv;

/* The kernels' number of a type other than RV_KV_AUTO; -1: no such type. */
int rv_kv_kernel_type(rv_kv_type type);
/* What keys and values of one head at one position take. */
size_t rv_kv_head_bytes(rv_kv_type type, size_t head_dim);

/* n_layers that keep keys (0 is allowed); heads [n_layers] key heads of each.
 * type: not RV_KV_AUTO; with Q8_0 and Q4_0 head_dim is a multiple of 32. */
rv_status rv_kv_new(rv_kv **out, size_t n_layers, const int32_t *heads, size_t head_dim,
                    rv_kv_type type, rv_err *err);
void rv_kv_free(rv_kv **kv);
/* Have room for positions 0 .. n - 1; what is stored stays. */
rv_status rv_kv_reserve(rv_kv *kv, size_t n, rv_err *err);
/* Store positions pos .. pos + n - 1, below the reserved ones, of one head of one layer: k, v
 * [head_dim] float32 each, ld floats apart.  Different heads may be written at the same time. */
void rv_kv_write(rv_kv *kv, size_t i_layer, size_t i_head, size_t pos, size_t n, const float *k,
                 const float *v, size_t ld);
/* The block with positions i_block * RV_KV_BLOCK and on; one that is reserved. */
const void *rv_kv_block(const rv_kv *kv, size_t i_layer, size_t i_head, size_t i_block);
/* Free the blocks that hold no position below n. */
void rv_kv_truncate(rv_kv *kv, size_t n);
int rv_kv_type_of(const rv_kv *kv); /* by the kernels' numbers */
size_t rv_kv_bytes(const rv_kv *kv);
size_t rv_kv_bytes_per_token(const rv_kv *kv);

#endif
