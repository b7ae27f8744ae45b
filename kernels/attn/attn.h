/* The ISA versions of the attention family, and where things lie in a run of the cache; contracts
 * at their pointers in rvk.h. */
#ifndef RVK_ATTN_H
#define RVK_ATTN_H

#include "rvk.h"

/* The signature of rvk_table.attn. */
#define RVK_ATTN_ARGS                                                                              \
    const void *q, size_t n_q, size_t d, const void *const *runs, const void *const *next,         \
        size_t lo, size_t hi, float *st_max, float *st_sum, float *acc

/* The signature of rvk_table.attn_rows. */
#define RVK_ATTN_ROWS_ARGS                                                                         \
    const float *q, size_t n_q, size_t d, const float *k, const float *v, size_t stride, size_t n, \
        float *st_max, float *st_sum, float *acc

void rvk_attn_f32_ref(RVK_ATTN_ARGS);
void rvk_attn_f16_ref(RVK_ATTN_ARGS);
void rvk_attn_q8_0_ref(RVK_ATTN_ARGS);
void rvk_attn_q4_0_ref(RVK_ATTN_ARGS);
void rvk_attn_k8v4_ref(RVK_ATTN_ARGS);
void rvk_attn_f32_avx2(RVK_ATTN_ARGS);
void rvk_attn_f16_avx2(RVK_ATTN_ARGS);
void rvk_attn_q8_0_avx2(RVK_ATTN_ARGS);
void rvk_attn_q4_0_avx2(RVK_ATTN_ARGS);
void rvk_attn_k8v4_avx2(RVK_ATTN_ARGS);
void rvk_attn_f32_avx512(RVK_ATTN_ARGS);
void rvk_attn_f16_avx512(RVK_ATTN_ARGS);
void rvk_attn_q8_0_vnni(RVK_ATTN_ARGS);
void rvk_attn_q4_0_vnni(RVK_ATTN_ARGS);
void rvk_attn_k8v4_vnni(RVK_ATTN_ARGS);

void rvk_attn_rows_ref(RVK_ATTN_ROWS_ARGS);
void rvk_attn_rows_avx2(RVK_ATTN_ROWS_ARGS);
void rvk_attn_rows_avx512(RVK_ATTN_ROWS_ARGS);

/* Widest head the vector versions of attn_rows hold on the stack; wider ones go to the oracle. */
enum { RVK_ATTN_MAX_D = 512 };

/* What keys, and what values, of a cache are. */
static inline int rvk_attn_key_type(int type) {
    return type == RVK_K8V4 ? RVK_Q8_0 : type;
}
static inline int rvk_attn_value_type(int type) {
    return type == RVK_K8V4 ? RVK_Q4_0 : type;
}

/* Bytes of d values without their scales. */
static inline size_t rvk_attn_code_bytes(int type, size_t d) {
    switch (type) {
    case RVK_F32: return 4 * d;
    case RVK_F16: return 2 * d;
    case RVK_Q8_0: return rvk_attn_width(type, d);
    default: return rvk_attn_width(type, d) / 2;
    }
}

/* Of one row of values. */
static inline size_t rvk_attn_row_bytes(int type, size_t d) {
    return rvk_attn_code_bytes(rvk_attn_value_type(type), d);
}

/* Of the scales of all keys of a run, and of those of its values. */
static inline size_t rvk_attn_scale_bytes(int type, size_t d) {
    return rvk_attn_is_coded(type) ? RVK_ATTN_RUN * 2 * (rvk_attn_width(type, d) / RVK_QK) : 0;
}

/* From the start of a run to its values, its scales of keys, its scales of values, and its end. */
static inline size_t rvk_attn_off_values(int type, size_t d) {
    return RVK_ATTN_RUN * rvk_attn_code_bytes(rvk_attn_key_type(type), d);
}
static inline size_t rvk_attn_off_key_scales(int type, size_t d) {
    return rvk_attn_off_values(type, d) + RVK_ATTN_RUN * rvk_attn_row_bytes(type, d);
}
static inline size_t rvk_attn_off_value_scales(int type, size_t d) {
    return rvk_attn_off_key_scales(type, d) + rvk_attn_scale_bytes(type, d);
}
static inline size_t rvk_attn_off_end(int type, size_t d) {
    return rvk_attn_off_value_scales(type, d) + rvk_attn_scale_bytes(type, d);
}

#define RVK_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define RVK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RVK_UNROLL _Pragma("GCC unroll 16")
#endif

/* What is left of the next block to bring into the second cache, some lines at every step of the
 * work on this one: asked for all at once they would hold up its loads.  One run after another. */
typedef struct rvk_attn_ahead {
    const char *p, *end;     /* of the run under way */
    const void *const *runs; /* behind it */
    size_t n_runs, bytes;    /* bytes: of a run */
} rvk_attn_ahead;

RVK_INLINE rvk_attn_ahead rvk_attn_ahead_of(const void *const *next, size_t bytes) {
    const size_t n = next ? RVK_ATTN_BLOCK / RVK_ATTN_RUN : 0;
    return (rvk_attn_ahead){NULL, NULL, next, n, bytes};
}

RVK_INLINE void rvk_attn_fetch(rvk_attn_ahead *a, const int lines) {
    if (a->p >= a->end) {
        if (a->n_runs == 0) return;
        a->n_runs--;
        a->p = *a->runs++;
        a->end = a->p + a->bytes;
    }
    RVK_UNROLL
    for (int i = 0; i < lines; i++) __builtin_prefetch(a->p + 64 * i, 0, 2);
    a->p += 64 * lines;
}

#endif
