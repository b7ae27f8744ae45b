/* The quant family: half precision, dequantise, quantise and the packing of activations, in plain
 * C, and the family's ladder.
 *
 * The idea to hold: a block is decoded in one place (unpack.h) and the simple formats are encoded
 * here, both exactly as ggml's reference code does, so that files written by either are equal byte
 * for byte; what needs a search is in encode.h.  Rounding is written out; nothing here depends on
 * the rounding mode or on a fused multiply-add. */
#include "quant/quant.h"

#include <math.h>

#include "quant/unpack.h"

/* ---- half precision ---- */

static uint32_t f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float rvk_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t e = (h >> 10) & 31, m = h & 0x3ff;
    union {
        uint32_t u;
        float f;
    } v;
    if (e == 31) {
        v.u = sign | 0x7f800000u | m << 13;
    } else if (e) {
        v.u = sign | (e + 112) << 23 | m << 13;
    } else {
        v.f = (float)m * 0x1p-24f; /* zero and subnormals, exact */
        v.u |= sign;
    }
    return v.f;
}

uint16_t rvk_f32_to_f16(float f) {
    const uint32_t u = f32_bits(f), a = u & 0x7fffffff;
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x1ff)); /* a quiet NaN */
    if (a >= 0x477ff000) return sign | 0x7c00; /* 65520 and more round to infinity */
    if (a < 0x38800000) {                      /* below 2^-14: units of 2^-24 */
        const float magic = 0x1p-1f; /* its last place is 2^-24, so adding it rounds there */
        return (uint16_t)(sign | (f32_bits(fabsf(f) + magic) - f32_bits(magic)));
    }
    return (uint16_t)(sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
}

uint16_t rvk_f32_to_bf16(float f) {
    const uint32_t u = f32_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 64); /* a quiet NaN */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* ---- dequantise ---- */

static void dequant_f32(float *dst, const void *src, size_t k) {
    memcpy(dst, src, k * sizeof *dst);
}

static void dequant_f16(float *dst, const void *src, size_t k) {
    const uint8_t *p = src;
    for (size_t i = 0; i < k; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        dst[i] = rvk_f16_to_f32(h);
    }
}

static void dequant_bf16(float *dst, const void *src, size_t k) {
    const uint8_t *p = src;
    for (size_t i = 0; i < k; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        dst[i] = rvk_bf16_to_f32(h);
    }
}

static void dequant_blocks(float *dst, const uint8_t *src, size_t k, int type) {
    const size_t n = rvk_dtypes[type].block_values;
    for (; k >= n; k -= n, dst += n, src += rvk_dtypes[type].block_bytes) {
        rvk_block b;
        rvk_unpack(&b, type, src);
        for (size_t i = 0; i < n; i++) dst[i] = b.s[i / 16] * (float)b.q[i] - b.m[i / 16];
    }
}

#define DEQUANT(name, type)                                                                        \
    static void dequant_##name(float *dst, const void *src, size_t k) {                            \
        dequant_blocks(dst, src, k, type);                                                         \
    }
DEQUANT(q4_0, RVK_Q4_0)
DEQUANT(q4_1, RVK_Q4_1)
DEQUANT(q5_0, RVK_Q5_0)
DEQUANT(q5_1, RVK_Q5_1)
DEQUANT(q8_0, RVK_Q8_0)
DEQUANT(q2_k, RVK_Q2_K)
DEQUANT(q3_k, RVK_Q3_K)
DEQUANT(q4_k, RVK_Q4_K)
DEQUANT(q5_k, RVK_Q5_K)
DEQUANT(q6_k, RVK_Q6_K)
DEQUANT(iq4_nl, RVK_IQ4_NL)
DEQUANT(iq4_xs, RVK_IQ4_XS)

/* ---- quantise ---- */

static void quant_f32(void *dst, const float *src, size_t k) {
    memcpy(dst, src, k * sizeof *src);
}

static void quant_f16(void *dst, const float *src, size_t k) {
    uint8_t *p = dst;
    for (size_t i = 0; i < k; i++) {
        const uint16_t h = rvk_f32_to_f16(src[i]);
        memcpy(p + 2 * i, &h, sizeof h);
    }
}

static void quant_bf16(void *dst, const float *src, size_t k) {
    uint8_t *p = dst;
    for (size_t i = 0; i < k; i++) {
        const uint16_t h = rvk_f32_to_bf16(src[i]);
        memcpy(p + 2 * i, &h, sizeof h);
    }
}

/* 1 / d, and 0 where that does not exist: the block is then all zeros. */
static float inverse(float d) {
    return d != 0.0f && isfinite(1.0f / d) ? 1.0f / d : 0.0f;
}

/* The value of largest magnitude, with its sign; the first of equals. */
static float extreme(const float *x) {
    float best = 0.0f;
    for (int i = 0; i < RVK_QK; i++)
        if (fabsf(x[i]) > fabsf(best)) best = x[i];
    return best;
}

static void range(const float *x, float *lo, float *hi) {
    *lo = *hi = x[0];
    for (int i = 1; i < RVK_QK; i++) {
        if (x[i] < *lo) *lo = x[i];
        if (x[i] > *hi) *hi = x[i];
    }
}

static void quant_q8_0(void *dst, const float *src, size_t k) {
    uint8_t *p = dst;
    for (; k >= RVK_QK; k -= RVK_QK, src += RVK_QK, p += sizeof(rvk_q8_0)) {
        rvk_q8_0 b;
        const float d = fabsf(extreme(src)) / 127.0f, id = inverse(d);
        b.d = rvk_f32_to_f16(d);
        for (int i = 0; i < RVK_QK; i++) b.qs[i] = (int8_t)roundf(src[i] * id);
        memcpy(p, &b, sizeof b);
    }
}

/* Levels 0 .. top of x * id + half, as ggml truncates them. */
static void levels(uint8_t *q, const float *x, float minus, float id, float half, int top) {
    for (int i = 0; i < RVK_QK; i++) {
        const int v = (int)((x[i] - minus) * id + half);
        q[i] = (uint8_t)(v > top ? top : v);
    }
}

static void put_nibbles(uint8_t *qs, const uint8_t *q) {
    for (int i = 0; i < 16; i++) qs[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

static void put_fifth(uint8_t *qh, const uint8_t *q) {
    for (int i = 0; i < 4; i++) qh[i] = 0;
    for (int i = 0; i < RVK_QK; i++) qh[i / 8] = (uint8_t)(qh[i / 8] | (q[i] >> 4) << (i % 8));
}

static void quant_q4_0(void *dst, const float *src, size_t k) {
    uint8_t *p = dst, q[RVK_QK];
    for (; k >= RVK_QK; k -= RVK_QK, src += RVK_QK, p += sizeof(rvk_q4_0)) {
        rvk_q4_0 b;
        const float d = extreme(src) / -8.0f;
        b.d = rvk_f32_to_f16(d);
        levels(q, src, 0.0f, inverse(d), 8.5f, 15);
        put_nibbles(b.qs, q);
        memcpy(p, &b, sizeof b);
    }
}

static void quant_q4_1(void *dst, const float *src, size_t k) {
    uint8_t *p = dst, q[RVK_QK];
    for (; k >= RVK_QK; k -= RVK_QK, src += RVK_QK, p += sizeof(rvk_q4_1)) {
        rvk_q4_1 b;
        float lo, hi;
        range(src, &lo, &hi);
        const float d = (hi - lo) / 15.0f;
        b.d = rvk_f32_to_f16(d);
        b.m = rvk_f32_to_f16(lo);
        levels(q, src, lo, inverse(d), 0.5f, 15);
        put_nibbles(b.qs, q);
        memcpy(p, &b, sizeof b);
    }
}

static void quant_q5_0(void *dst, const float *src, size_t k) {
    uint8_t *p = dst, q[RVK_QK];
    for (; k >= RVK_QK; k -= RVK_QK, src += RVK_QK, p += sizeof(rvk_q5_0)) {
        rvk_q5_0 b;
        const float d = extreme(src) / -16.0f;
        b.d = rvk_f32_to_f16(d);
        levels(q, src, 0.0f, inverse(d), 16.5f, 31);
        put_nibbles(b.qs, q);
        put_fifth(b.qh, q);
        memcpy(p, &b, sizeof b);
    }
}

static void quant_q5_1(void *dst, const float *src, size_t k) {
    uint8_t *p = dst, q[RVK_QK];
    for (; k >= RVK_QK; k -= RVK_QK, src += RVK_QK, p += sizeof(rvk_q5_1)) {
        rvk_q5_1 b;
        float lo, hi;
        range(src, &lo, &hi);
        const float d = (hi - lo) / 31.0f;
        b.d = rvk_f32_to_f16(d);
        b.m = rvk_f32_to_f16(lo);
        levels(q, src, lo, inverse(d), 0.5f, 31);
        put_nibbles(b.qs, q);
        put_fifth(b.qh, q);
        memcpy(p, &b, sizeof b);
    }
}

/* ---- activations ---- */

void rvk_act_pack_ref(void *dst, const float *x, size_t k) {
    int8_t *q = dst;
    float *d = (float *)((char *)dst + rvk_act_off_d(k));
    int16_t *bsum = (int16_t *)((char *)dst + rvk_act_off_bsum(k));
    for (size_t b = 0; b < k / RVK_QK; b++, x += RVK_QK, q += RVK_QK) {
        uint32_t top = 0; /* of the bits: NaN and infinity are above every number */
        for (int i = 0; i < RVK_QK; i++) {
            const uint32_t a = f32_bits(x[i]) & 0x7fffffff;
            if (a > top) top = a;
        }
        float max, id = 0.0f;
        memcpy(&max, &top, sizeof max);
        if (top >= 0x7f800000) {
            d[b] = NAN;
        } else if (max < RVK_ACT_TINY) {
            d[b] = 0.0f;
        } else {
            d[b] = max / 127.0f;
            id = 127.0f / max;
        }
        for (int i = 0; i < RVK_QK; i++) {
            const float magic = 0x1.8p23f; /* its last place is 1, so adding it rounds to even */
            const float v = id == 0.0f ? 0.0f : x[i] * id;
            q[i] = (int8_t)((v + magic) - magic);
        }
        for (int h = 0; h < 2; h++) {
            int sum = 0;
            for (int i = 0; i < 16; i++) sum += q[16 * h + i];
            bsum[2 * b + (size_t)h] = (int16_t)sum;
        }
    }
}

void rvk_init_quant(rvk_table *t, unsigned cpu) {
    (void)cpu;
    t->dequant[RVK_F32] = dequant_f32;
    t->dequant[RVK_F16] = dequant_f16;
    t->dequant[RVK_BF16] = dequant_bf16;
    t->dequant[RVK_Q4_0] = dequant_q4_0;
    t->dequant[RVK_Q4_1] = dequant_q4_1;
    t->dequant[RVK_Q5_0] = dequant_q5_0;
    t->dequant[RVK_Q5_1] = dequant_q5_1;
    t->dequant[RVK_Q8_0] = dequant_q8_0;
    t->dequant[RVK_Q2_K] = dequant_q2_k;
    t->dequant[RVK_Q3_K] = dequant_q3_k;
    t->dequant[RVK_Q4_K] = dequant_q4_k;
    t->dequant[RVK_Q5_K] = dequant_q5_k;
    t->dequant[RVK_Q6_K] = dequant_q6_k;
    t->dequant[RVK_IQ4_NL] = dequant_iq4_nl;
    t->dequant[RVK_IQ4_XS] = dequant_iq4_xs;
    t->quant[RVK_F32] = quant_f32;
    t->quant[RVK_F16] = quant_f16;
    t->quant[RVK_BF16] = quant_bf16;
    t->quant[RVK_Q4_0] = quant_q4_0;
    t->quant[RVK_Q4_1] = quant_q4_1;
    t->quant[RVK_Q5_0] = quant_q5_0;
    t->quant[RVK_Q5_1] = quant_q5_1;
    t->quant[RVK_Q8_0] = quant_q8_0;
    rvk_encode_fill_ref(t);
    t->act_pack = rvk_act_pack_ref;
    t->isa_quant = "ref";
#ifdef RVK_HAVE_avx2
    if (!(cpu & RVK_AVX2)) return;
    rvk_encode_fill_avx2(t);
    t->act_pack = rvk_act_pack_avx2;
    t->isa_quant = "avx2";
#endif
#ifdef RVK_HAVE_avx512
    if (!(cpu & RVK_AVX512)) return;
    t->quant[RVK_BF16] = rvk_quant_bf16_avx512;
    t->act_pack = rvk_act_pack_avx512;
    t->isa_quant = "avx512";
#endif
}
