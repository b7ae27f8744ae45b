/* Compute kernels: the table through which the core reaches them, and their contracts.
 *
 * A kernel is a function of its arguments: it cannot fail, allocate, log, lock, start a thread or
 * read past the end.  The oracle of each is <family>_ref.c; the table is filled by rvk_init, which
 * starts at the oracle and overwrites while the CPU keeps up.
 *
 * Bits: an output element depends on its own inputs only.  In rvk_table.mul, y of row r and column
 * c has the same bits whatever n_rows, n_cols and the pointers' alignment are. */
#ifndef RVK_H
#define RVK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- block formats: ggml's layouts, byte for byte ---- */

enum { RVK_QK = 32, RVK_QKK = 256 };

typedef struct rvk_q4_0 {
    uint16_t d;
    uint8_t qs[16];
} rvk_q4_0;
typedef struct rvk_q4_1 {
    uint16_t d, m;
    uint8_t qs[16];
} rvk_q4_1;
typedef struct rvk_q5_0 {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
} rvk_q5_0;
typedef struct rvk_q5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
} rvk_q5_1;
typedef struct rvk_q8_0 {
    uint16_t d;
    int8_t qs[32];
} rvk_q8_0;
typedef struct rvk_q2_k {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d, dmin;
} rvk_q2_k;
typedef struct rvk_q3_k {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
} rvk_q3_k;
typedef struct rvk_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
} rvk_q4_k;
typedef struct rvk_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
} rvk_q5_k;
typedef struct rvk_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
} rvk_q6_k;
typedef struct rvk_iq4_nl {
    uint16_t d;
    uint8_t qs[16];
} rvk_iq4_nl;
typedef struct rvk_iq4_xs {
    uint16_t d, scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
} rvk_iq4_xs;

/* Tensor types by ggml's numbers (the same as rv_dtype of ruvllm.h, which this file may not see).
 */
enum {
    RVK_F32 = 0,
    RVK_F16 = 1,
    RVK_Q4_0 = 2,
    RVK_Q4_1 = 3,
    RVK_Q5_0 = 6,
    RVK_Q5_1 = 7,
    RVK_Q8_0 = 8,
    RVK_Q2_K = 10,
    RVK_Q3_K = 11,
    RVK_Q4_K = 12,
    RVK_Q5_K = 13,
    RVK_Q6_K = 14,
    RVK_IQ4_NL = 20,
    RVK_IQ4_XS = 23,
    RVK_BF16 = 30,
    RVK_N_TYPES = 31
};
/* Of a cache besides: keys in Q8_0, values in Q4_0. */
enum { RVK_K8V4 = RVK_N_TYPES, RVK_N_CACHE_TYPES };

typedef struct rvk_dtype_info {
    const char *name;      /* "q4_0"; NULL: no such type here */
    uint32_t block_values; /* 1, 32 or 256 */
    uint32_t block_bytes;
    bool act_q8; /* mul wants its x packed by act_pack; false: plain float32 */
} rvk_dtype_info;

extern const rvk_dtype_info rvk_dtypes[RVK_N_TYPES];
/* Bytes of a row of k values; 0 when type is unknown or k is not a multiple of its block. */
size_t rvk_row_bytes(int type, size_t k);

/* ---- activations rounded to 8 bits ----
 * A row of k values (k a multiple of 32) packed for mul of the quantised types, planar:
 *   int8_t  q[k]        x[i] ~= d[i / 32] * q[i],  |q| <= 127
 *   float   d[k / 32]
 *   int16_t bsum[k/16]  sums of 16 q
 * each plane starting on a multiple of 64 bytes from the start, which is 64-byte aligned. */
size_t rvk_act_bytes(size_t k); /* a multiple of 64 */
size_t rvk_act_off_d(size_t k);
size_t rvk_act_off_bsum(size_t k);

/* ---- panels: sixteen rows of a quantised matrix side by side ----
 * The same bytes in another order, so that a register holds a word of sixteen rows.  A block is cut
 * into 32-bit words; where its size is not a multiple of four, the 16-bit scale d (first or last in
 * the block) is left out of them.  A panel is a run of units, each four blocks of 32 values (fewer
 * at the end of a row) or one of 256:
 *   uint16_t d[blocks][16]               only where it is left out; 128 or 64 bytes, not all used
 *   uint32_t words[blocks][n_words][16]  in the order in which they are read: rvk_panel_at
 * The panels of a matrix follow one another, the last one filled up by repeating its last row.
 * They start on a multiple of 64 bytes. */
enum { RVK_PANEL_ROWS = 16 };
size_t rvk_panel_bytes(int type, size_t k); /* a multiple of 64 */

/* ---- CPU features ---- */
enum {
    RVK_AVX2 = 1,
    RVK_AVX512 = 2 /* F BW VL DQ */,
    RVK_VNNI = 4 /* AVX512_VNNI and VBMI */,
    RVK_BF16_DOT = 8,
    RVK_ALL = 15
};
unsigned rvk_cpu(void);                  /* what this machine has */
const char *rvk_cpu_names(unsigned cpu); /* "avx2 avx512 vnni", or "portable"; static storage */

typedef struct rvk_table {
    unsigned cpu; /* the features the table was filled for */
    /* What serves each kernel, for people to read: "ref", "avx2", "avx512", "vnni", "bf16". Written
     * by the family's rvk_init function; static storage. */
    const char *isa_mul[RVK_N_TYPES];         /* NULL where there is no such type */
    const char *isa_mul_rounded[RVK_N_TYPES]; /* NULL where there is none */
    const char *isa_quant, *isa_norm, *isa_rope, *isa_act, *isa_attn;

    /* ---- quant: whole rows of k values, k a multiple of the type's block ---- */
    /* dst[i] is the value the format defines, computed in float32 as ggml does. */
    void (*dequant[RVK_N_TYPES])(float *dst, const void *src, size_t k);
    /* Nearest blocks for float32 values; NULL where this build cannot write the type.
     * F32 F16 BF16 round to nearest even, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 as ggml's reference code; the
     * others search the scales of least squared error.  Scales are never infinite: a value beyond
     * what they reach is clipped.  NaN and infinities are the caller's to refuse. */
    void (*quant[RVK_N_TYPES])(void *dst, const float *src, size_t k);
    /* The same with a search for the least sum of weights[i] * error[i]^2; weights [k] >= 0 and
     * finite, or NULL: all equal.  NULL where weights make no difference (F32 F16 BF16 Q8_0). */
    void (*quant_w[RVK_N_TYPES])(void *dst, const float *src, const float *weights, size_t k);
    /* Pack one row for mul; k a multiple of 32.  Per 32 values d = max|x| / 127 and
     * q = x * (127 / max|x|) rounded to nearest even; below 2^-100 they count as zeros, and a
     * NaN or infinity among them makes d NaN, so that it reaches every product. */
    void (*act_pack)(void *dst, const float *x, size_t k);

    /* ---- dot: y[c * ldy + r] = w_r . x_c  for r < n_rows, c < n_cols ----
     * w_r = w + r * w_stride bytes: a row of k values in blocks of the type.
     * x_c = x + c * x_stride bytes: k float32, or k packed by act_pack (rvk_dtypes[].act_q8).
     * Integer products inside a block are exact; the float32 error of an element is at most
     * (k / 16 + 16) * 2^-23 * sum |w_i * x_i| with x as packed, where |w_i| of a type with a
     * minimum (w = s * q - m) is |s * q| + |m|.
     * The order of an element's sum belongs to the ISA version and to nothing else: few columns and
     * many, rows and panels, give the same bits.  AVX-512 VNNI and AVX2 (quantised): four chains,
     * see dot/panel.h, the same bits in both.  Floats: sixteen lanes along k, added up at the end,
     * the same bits with AVX-512 and AVX2. */
    void (*mul[RVK_N_TYPES])(float *y, size_t ldy, const void *w, size_t w_stride, size_t n_rows,
                             const void *x, size_t x_stride, size_t n_cols, size_t k);

    /* The same with x rounded to the type of the weights: x_c is a row of it, as quant gives it.
     * The error is at most that of mul with x as rounded, and k * 2^-126; subnormal values of w and
     * x count as zeros.  Bits as in mul: an element has its own order.  NULL where this build has
     * none, which is wherever it would not be quicker. */
    void (*mul_rounded[RVK_N_TYPES])(float *y, size_t ldy, const void *w, size_t w_stride,
                                     size_t n_rows, const void *x, size_t x_stride, size_t n_cols,
                                     size_t k);

    /* mul, bit for bit, with w as panels.  NULL where this build has none: floats, and ISAs
     * without it. */
    void (*mul_panels[RVK_N_TYPES])(float *y, size_t ldy, const void *w, size_t n_rows,
                                    const void *x, size_t x_stride, size_t n_cols, size_t k);
    /* One panel of n_rows <= 16 rows of k values (n_rows >= 1), any quantised type. */
    void (*panel_pack)(void *dst, int type, const void *w, size_t w_stride, size_t n_rows,
                       size_t k);

    /* ---- norm ---- */
    /* y = x / sqrt(mean(x^2) + eps) * g.  y may be x.  n >= 1. */
    void (*rms_norm)(float *y, const float *x, const float *g, size_t n, float eps);
    /* y = (x - mean) / sqrt(var + eps) * g + b; b may be NULL.  y may be x. */
    void (*layer_norm)(float *y, const float *x, const float *g, const float *b, size_t n,
                       float eps);

    /* ---- rope: rotate n_heads vectors of head_dim values, the first n_rot of each ----
     * cs [n_rot]: the cosines of the n_rot / 2 pairs, then their sines.  neox pairs i with
     * i + n_rot / 2, else 2i with 2i + 1.  n_rot is even. */
    void (*rope)(float *x, size_t n_heads, size_t head_dim, size_t n_rot, const float *cs,
                 bool neox);

    /* ---- act ---- */
    void (*swiglu)(float *y, const float *gate, const float *up, size_t n); /* silu(gate) * up */
    void (*gelu)(float *y, const float *x, size_t n);                       /* tanh form */
    void (*add)(float *y, const float *a, const float *b, size_t n);        /* y may be a */
    /* Gated short convolution of one token over n channels (LFM2):
     *   y[i] = c[i] * sum_j taps[i * l + j] * z_j[i],  z_0..z_{l-2} = state rows (oldest first),
     *   z_{l-1} = b * u.  state [(l - 1)][n] then moves up by one row. */
    void (*shortconv)(float *y, const float *b, const float *c, const float *u, const float *taps,
                      float *state, size_t n, size_t l);

    /* ---- attn: queries against keys and values, online softmax over blocks of positions ----
     * The caller walks the blocks in order, so the bits of a query depend on where blocks start and
     * on what it sees of them, and not on the other queries of the call.
     *   n_q            queries, all for the same key head
     *   st_max, st_sum [n_q] running max (start: -INFINITY) and sum (start: 0)
     *   acc            [n_q][d] running weighted values (start: 0); the result is acc / st_sum
     *
     * attn[type]: a block of a cache, see below, as the addresses of its runs; positions lo .. hi -
     * 1 of it, lo < hi <= RVK_ATTN_BLOCK; the others may hold anything, but all runs are readable.
     * NULL where there is no cache of the type.
     *   q      F32, F16: [n_q][d] already scaled.  Codes: act_pack of each of those rows, made as
     *          wide as the keys are (rvk_attn_width: w), rvk_act_bytes(w) apart; the products of
     *          codes are exact
     *   next   the runs of the block that will be asked for next, brought nearer meanwhile, or NULL
     * attn_rows: float32 rows as they come, n <= RVK_ATTN_ROWS of them, row p at + p * stride
     * bytes.
     *
     * With s = sum |q_i * k_i| as stored, the error of a result is at most
     * ((d + 64) * s + 64) * 2^-23 of the largest |v|. */
    void (*attn[RVK_N_CACHE_TYPES])(const void *q, size_t n_q, size_t d, const void *const *runs,
                                    const void *const *next, size_t lo, size_t hi, float *st_max,
                                    float *st_sum, float *acc);
    void (*attn_rows)(const float *q, size_t n_q, size_t d, const float *k, const float *v,
                      size_t stride, size_t n, float *st_max, float *st_sum, float *acc);
} rvk_table;

enum { RVK_ATTN_RUN = 16, RVK_ATTN_BLOCK = 64, RVK_ATTN_ROWS = 16 };

/* ---- a block of cached keys and values ----
 * RVK_ATTN_BLOCK positions of one key head: runs of RVK_ATTN_RUN positions, each 64-byte aligned
 * where its size allows.  Keys have their positions side by side, so that a load feeds a sum per
 * position; values are rows.
 *   F32, F16   K [d][16]           V [16][d]
 *   Q8_0       K [w / 4][16][4]    V [16][w], then the f16 scales of K and of V [w / 32][16] each
 *   Q4_0       the same with two codes in a byte: of 32 values, 0 .. 15 are low halves
 *   K8V4       K as Q8_0, V as Q4_0, the scales as both
 * w is d rounded up to whole blocks of 32, with zeros behind d.  Codes of K in Q8_0 are stored +
 * 128, those of Q4_0 (both) + 8.  Values and scales are those that quant gives for each row; a NaN
 * or infinity makes the scale of its 32 values NaN. */
/* Whether a cache of that type holds codes: its queries are packed. */
static inline bool rvk_attn_is_coded(int type) {
    return type == RVK_Q8_0 || type == RVK_Q4_0 || type == RVK_K8V4;
}
/* Values of a head as a cache of the type holds them: d, or w. */
static inline size_t rvk_attn_width(int type, size_t d) {
    return rvk_attn_is_coded(type) ? (d + RVK_QK - 1) / RVK_QK * RVK_QK : d;
}
/* Bytes of one run; 0: no cache of that type. */
size_t rvk_attn_run_bytes(int type, size_t d);
/* Store position pos < RVK_ATTN_RUN of a run: k, v [d].  The layout is the same for d and w, so
 * keys that fill w once they are rotated are stored with d = w. */
void rvk_attn_put(int type, void *run, size_t pos, const float *k, const float *v, size_t d);
/* What position pos holds, as float32; the first d of w. */
void rvk_attn_get(int type, const void *run, size_t pos, float *k, float *v, size_t d);
/* Multiply n rows of d values, ld floats apart, in place, by the orthonormal Hadamard matrix whose
 * order is the largest power of two that divides d, once per so many values: rows keep their
 * products with each other, and an outlier is spread over its part before it is rounded.  Float32
 * butterflies from stride 1 up, then one multiplication by 1 / sqrt(order); the same bits on every
 * ISA.  The order is at most 1024. */
void rvk_hadamard(float *x, size_t n, size_t ld, size_t d);

extern rvk_table rvk; /* written by rvk_init, before any thread starts */
/* Fill the table for cpu & what the machine has.  Tests walk down with smaller masks.  A level
 * counts as missing when one it stands on is: AVX2 < AVX512 < VNNI, BF16_DOT. */
void rvk_init(unsigned cpu);

/* ---- the ladder: one function per family ---- */
void rvk_init_quant(rvk_table *t, unsigned cpu);
void rvk_init_dot(rvk_table *t, unsigned cpu);
void rvk_init_norm(rvk_table *t, unsigned cpu);
void rvk_init_rope(rvk_table *t, unsigned cpu);
void rvk_init_act(rvk_table *t, unsigned cpu);
void rvk_init_attn(rvk_table *t, unsigned cpu);

/* ---- half precision, portable ---- */
float rvk_f16_to_f32(uint16_t h);
uint16_t rvk_f32_to_f16(float f); /* round to nearest even, NaN stays NaN */
static inline float rvk_bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}
uint16_t rvk_f32_to_bf16(float f);

_Static_assert(sizeof(rvk_q4_0) == 18, "GGUF tensor type 2: 18 bytes per 32 values");
_Static_assert(sizeof(rvk_q4_1) == 20, "GGUF tensor type 3: 20 bytes per 32 values");
_Static_assert(sizeof(rvk_q5_0) == 22, "GGUF tensor type 6: 22 bytes per 32 values");
_Static_assert(sizeof(rvk_q5_1) == 24, "GGUF tensor type 7: 24 bytes per 32 values");
_Static_assert(sizeof(rvk_q8_0) == 34, "GGUF tensor type 8: 34 bytes per 32 values");
_Static_assert(sizeof(rvk_q2_k) == 84, "GGUF tensor type 10: 84 bytes per 256 values");
_Static_assert(sizeof(rvk_q3_k) == 110, "GGUF tensor type 11: 110 bytes per 256 values");
_Static_assert(sizeof(rvk_q4_k) == 144, "GGUF tensor type 12: 144 bytes per 256 values");
_Static_assert(sizeof(rvk_q5_k) == 176, "GGUF tensor type 13: 176 bytes per 256 values");
_Static_assert(sizeof(rvk_q6_k) == 210, "GGUF tensor type 14: 210 bytes per 256 values");
_Static_assert(sizeof(rvk_iq4_nl) == 18, "GGUF tensor type 20: 18 bytes per 32 values");
_Static_assert(sizeof(rvk_iq4_xs) == 136, "GGUF tensor type 23: 136 bytes per 256 values");

#endif
