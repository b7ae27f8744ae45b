/* The dot family's shared parts: the argument list of rvk_table.mul, the names of the ISA versions,
 * and how loops are unrolled.
 *
 * What keeps the bits independent of n_rows and n_cols: an element has its own accumulator or
 * chains of them, and every shape of loop feeds it the same values in the same order.  A shape
 * decides only what is shared: loaded or expanded weights over columns, activations over rows. */
#ifndef RVK_DOT_DOT_H
#define RVK_DOT_DOT_H

#include "rvk.h"

#define RVK_MUL_ARGS                                                                               \
    float *y, size_t ldy, const void *w, size_t w_stride, size_t n_rows, const void *x,            \
        size_t x_stride, size_t n_cols, size_t k

#define RVK_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define RVK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RVK_UNROLL _Pragma("GCC unroll 16")
#endif

/* Ask for the weights a tile of R rows will need when it is i of n steps further and 10 KiB on: the
 * rows behind it, in the order of memory.  A tile reads R streams, and hardware that follows one
 * stream well loses four short ones.  The hint goes to the second cache, which has room for more
 * lines on their way than the first: Q6_K, rows of 840 bytes, Zen 4: 7 GB/s of 31 without it, 12
 * into the first cache, 17 one kilobyte ahead, 25 so.
 * Nothing is read; an address behind the end is only a hint that comes to nothing. */
RVK_INLINE void rvk_prefetch_rows(const uint8_t *w, size_t w_stride, size_t R, size_t offset,
                                  size_t step) {
    if (R * step < 64 && offset % 64) return; /* the line was asked for a step ago */
    const uintptr_t next = (uintptr_t)w + R * (w_stride + offset) + 10240;
    RVK_UNROLL
    for (size_t j = 0; j < R * step; j += 64) __builtin_prefetch((const void *)(next + j), 0, 2);
}

/* X(isa, name, NUMBER) for each type, so that a list of them is written once. */
#define RVK_MUL_FLOATS(X, isa) X(isa, f32, F32) X(isa, f16, F16) X(isa, bf16, BF16)
/* clang-format off */
#define RVK_MUL_QUANTS(X, isa)                                                                     \
    X(isa, q4_0, Q4_0)                                                                             \
    X(isa, q4_1, Q4_1)                                                                             \
    X(isa, q5_0, Q5_0)                                                                             \
    X(isa, q5_1, Q5_1)                                                                             \
    X(isa, q8_0, Q8_0) X(isa, q2_k, Q2_K) X(isa, q3_k, Q3_K) X(isa, q4_k, Q4_K) X(isa, q5_k, Q5_K) \
        X(isa, q6_k, Q6_K) X(isa, iq4_nl, IQ4_NL) X(isa, iq4_xs, IQ4_XS)
/* clang-format on */
#define RVK_MUL_DECL(isa, name, NUMBER) void rvk_mul_##name##_##isa(RVK_MUL_ARGS);

RVK_MUL_FLOATS(RVK_MUL_DECL, ref)
RVK_MUL_QUANTS(RVK_MUL_DECL, ref)
RVK_MUL_FLOATS(RVK_MUL_DECL, avx2)
RVK_MUL_QUANTS(RVK_MUL_DECL, avx2)
RVK_MUL_FLOATS(RVK_MUL_DECL, avx512)
RVK_MUL_QUANTS(RVK_MUL_DECL, vnni)

#endif
