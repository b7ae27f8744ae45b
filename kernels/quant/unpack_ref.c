/* Taking blocks apart, in plain C: one function per format, each the format's definition. */
#include "quant/unpack.h"

const int8_t rvk_iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

/* s and m of the whole block of 32. */
static void scale32(rvk_block *o, uint16_t s, float m) {
    o->s[0] = o->s[1] = rvk_f16_to_f32(s);
    o->m[0] = o->m[1] = m;
}

/* 16 bytes: the low nibbles are values 0..15, the high ones 16..31. */
static void nibbles32(int8_t *q, const uint8_t *qs, int minus) {
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)((qs[i] & 15) - minus);
        q[i + 16] = (int8_t)((qs[i] >> 4) - minus);
    }
}

/* The fifth bit: bit i of qh belongs to value i. */
static void fifth32(int8_t *q, const uint8_t *qh) {
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(q[i] + ((qh[i / 8] >> (i % 8) & 1) << 4));
}

static void unpack_q4_0(rvk_block *o, const void *p) {
    rvk_q4_0 b;
    memcpy(&b, p, sizeof b);
    scale32(o, b.d, 0);
    nibbles32(o->q, b.qs, 8);
}

static void unpack_q4_1(rvk_block *o, const void *p) {
    rvk_q4_1 b;
    memcpy(&b, p, sizeof b);
    scale32(o, b.d, -rvk_f16_to_f32(b.m));
    nibbles32(o->q, b.qs, 0);
}

static void unpack_q5_0(rvk_block *o, const void *p) {
    rvk_q5_0 b;
    memcpy(&b, p, sizeof b);
    scale32(o, b.d, 0);
    nibbles32(o->q, b.qs, 16);
    fifth32(o->q, b.qh);
}

static void unpack_q5_1(rvk_block *o, const void *p) {
    rvk_q5_1 b;
    memcpy(&b, p, sizeof b);
    scale32(o, b.d, -rvk_f16_to_f32(b.m));
    nibbles32(o->q, b.qs, 0);
    fifth32(o->q, b.qh);
}

static void unpack_q8_0(rvk_block *o, const void *p) {
    rvk_q8_0 b;
    memcpy(&b, p, sizeof b);
    scale32(o, b.d, 0);
    memcpy(o->q, b.qs, sizeof b.qs);
}

/* Two bits per value: byte l of 32 holds values l, l + 32, l + 64 and l + 96 of its 128. */
static int two_bits(const uint8_t *qs, int i) {
    return qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

static void unpack_q2_k(rvk_block *o, const void *p) {
    rvk_q2_k b;
    memcpy(&b, p, sizeof b);
    const float d = rvk_f16_to_f32(b.d), dmin = rvk_f16_to_f32(b.dmin);
    for (int j = 0; j < 16; j++) {
        o->s[j] = d * (float)(b.scales[j] & 15);
        o->m[j] = dmin * (float)(b.scales[j] >> 4);
    }
    for (int i = 0; i < RVK_QKK; i++) o->q[i] = (int8_t)two_bits(b.qs, i);
}

static void unpack_q3_k(rvk_block *o, const void *p) {
    rvk_q3_k b;
    memcpy(&b, p, sizeof b);
    const float d = rvk_f16_to_f32(b.d);
    for (int j = 0; j < 16; j++) {
        const int lo = j < 8 ? b.scales[j] & 15 : b.scales[j - 8] >> 4;
        const int hi = b.scales[8 + j % 4] >> (j / 4 * 2) & 3;
        o->s[j] = d * (float)((lo | hi << 4) - 32);
        o->m[j] = 0;
    }
    for (int i = 0; i < RVK_QKK; i++)
        o->q[i] = (int8_t)(two_bits(b.qs, i) - (b.hmask[i % 32] >> (i / 32) & 1 ? 0 : 4));
}

/* The 12 bytes of Q4_K and Q5_K: eight scales and eight minimums of 6 bits. */
static void scales6(rvk_block *o, const uint8_t *sc, uint16_t d16, uint16_t dmin16) {
    const float d = rvk_f16_to_f32(d16), dmin = rvk_f16_to_f32(dmin16);
    for (int j = 0; j < 8; j++) {
        int s, m;
        if (j < 4) {
            s = sc[j] & 63;
            m = sc[j + 4] & 63;
        } else {
            s = (sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4;
            m = (sc[j + 4] >> 4) | (sc[j] >> 6) << 4;
        }
        o->s[2 * j] = o->s[2 * j + 1] = d * (float)s;
        o->m[2 * j] = o->m[2 * j + 1] = dmin * (float)m;
    }
}

/* Byte l of 32 holds value l of one run of 32 (low) and of the next (high). */
static int nibble64(const uint8_t *qs, int i) {
    return qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
}

static void unpack_q4_k(rvk_block *o, const void *p) {
    rvk_q4_k b;
    memcpy(&b, p, sizeof b);
    scales6(o, b.scales, b.d, b.dmin);
    for (int i = 0; i < RVK_QKK; i++) o->q[i] = (int8_t)nibble64(b.qs, i);
}

static void unpack_q5_k(rvk_block *o, const void *p) {
    rvk_q5_k b;
    memcpy(&b, p, sizeof b);
    scales6(o, b.scales, b.d, b.dmin);
    for (int i = 0; i < RVK_QKK; i++)
        o->q[i] = (int8_t)(nibble64(b.qs, i) | (b.qh[i % 32] >> (i / 32) & 1) << 4);
}

static void unpack_q6_k(rvk_block *o, const void *p) {
    rvk_q6_k b;
    memcpy(&b, p, sizeof b);
    const float d = rvk_f16_to_f32(b.d);
    for (int j = 0; j < 16; j++) {
        o->s[j] = d * (float)b.scales[j];
        o->m[j] = 0;
    }
    for (int i = 0; i < RVK_QKK; i++) {
        const int lo = b.ql[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        const int hi = b.qh[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        o->q[i] = (int8_t)((lo | hi << 4) - 32);
    }
}

static void levels32(int8_t *q, const uint8_t *qs) {
    for (int i = 0; i < 16; i++) {
        q[i] = rvk_iq4_levels[qs[i] & 15];
        q[i + 16] = rvk_iq4_levels[qs[i] >> 4];
    }
}

static void unpack_iq4_nl(rvk_block *o, const void *p) {
    rvk_iq4_nl b;
    memcpy(&b, p, sizeof b);
    scale32(o, b.d, 0);
    levels32(o->q, b.qs);
}

static void unpack_iq4_xs(rvk_block *o, const void *p) {
    rvk_iq4_xs b;
    memcpy(&b, p, sizeof b);
    const float d = rvk_f16_to_f32(b.d);
    for (int j = 0; j < 8; j++) {
        const int s = (b.scales_l[j / 2] >> (j % 2 * 4) & 15) | (b.scales_h >> (2 * j) & 3) << 4;
        o->s[2 * j] = o->s[2 * j + 1] = d * (float)(s - 32);
        o->m[2 * j] = o->m[2 * j + 1] = 0;
        levels32(o->q + 32 * j, b.qs + 16 * j);
    }
}

void rvk_unpack(rvk_block *out, int type, const void *p) {
    switch (type) {
    case RVK_Q4_0: unpack_q4_0(out, p); break;
    case RVK_Q4_1: unpack_q4_1(out, p); break;
    case RVK_Q5_0: unpack_q5_0(out, p); break;
    case RVK_Q5_1: unpack_q5_1(out, p); break;
    case RVK_Q8_0: unpack_q8_0(out, p); break;
    case RVK_Q2_K: unpack_q2_k(out, p); break;
    case RVK_Q3_K: unpack_q3_k(out, p); break;
    case RVK_Q4_K: unpack_q4_k(out, p); break;
    case RVK_Q5_K: unpack_q5_k(out, p); break;
    case RVK_Q6_K: unpack_q6_k(out, p); break;
    case RVK_IQ4_NL: unpack_iq4_nl(out, p); break;
    case RVK_IQ4_XS: unpack_iq4_xs(out, p); break;
    default: break;
    }
}
