/* Quantising by search: the K and IQ4 formats, and the older ones where values have weights.
 * What a block looks like is said here once; how its scales are found is in fit.h.
 *
 * A block of 256 goes: the best scale of each run of 16 or 32 values on its own; one half for
 * the block and a small code per run from those; then, with the half as stored, for each run the
 * best of the neighbouring codes by the error itself; then the best half for those codes and
 * levels; and once more.  The attempt with the least error is written.
 *
 * Included by encode_<isa>.c, once each; defines encode_fill, which puts everything into a table.
 */
#ifndef RVK_QUANT_ENCODE_H
#define RVK_QUANT_ENCODE_H

#include <string.h>

#include "quant/fit.h"

/* ---- the values of a block ---- */

typedef struct enc_values {
    float x[RVK_QKK]; /* times 2^-e, so that the largest is in [0.5, 1) */
    float w[RVK_QKK]; /* up to 1; a column of weight 0 counts a little, to be rounded sensibly */
    int e;
} enc_values;

/* false: nothing but zeros, or what half precision would make of them. */
static bool enc_load(enc_values *v, const float *x, const float *weights, int n) {
    const float top = fabsf(fit_extreme(x, n));
    if (top < 0x1p-60f) return false;
    frexpf(top, &v->e);
    for (int i = 0; i < n; i++) v->x[i] = ldexpf(x[i], -v->e);
    float most = 0.0f;
    for (int i = 0; weights && i < n; i++) most = weights[i] > most ? weights[i] : most;
    if (most > 0.0f) {
        for (int i = 0; i < n; i++) v->w[i] = weights[i] / most + 0x1p-20f;
    } else {
        for (int i = 0; i < n; i++) v->w[i] = 1.0f;
    }
    return true;
}

/* ---- 256 values, a scale per run: Q3_K, Q6_K, IQ4_XS ---- */

typedef struct enc_scaled {
    uint16_t d;
    float code[16]; /* of run j: its scale is d * code */
    float error;
} enc_scaled;

/* Codes for d as stored, each the best of itself and its neighbours, and the error of it all.
 * num, den: what the best d for the same codes and levels is the quotient of. */
FIT_INLINE void enc_scaled_codes(enc_scaled *a, const enc_values *v, const fit_scale *fit, int run,
                                 fit_levels lv, fit_levels codes, float *num, float *den) {
    const float d = fit_from_half(a->d, v->e);
    a->error = *num = *den = 0.0f;
    for (int j = 0; j < RVK_QKK / run; j++) {
        const float *x = v->x + j * run, *w = v->w + j * run;
        const float first = fit_round(fit[j].s / d, codes.lo, codes.hi);
        float best = -1.0f;
        for (int t = -1; t <= 1; t++) {
            const float c = first + (float)t;
            if (c < codes.lo || c > codes.hi) continue;
            const float e = fit_scale_error(x, w, run, d * c, lv);
            if (best >= 0.0f && e >= best) continue;
            best = e;
            a->code[j] = c;
        }
        a->error += best;
        const float s = d * a->code[j];
        if (s == 0.0f) continue;
        const fit_sums k = fit_scale_sums(x, w, run, 1.0f / s, lv);
        *num += a->code[j] * k.qx;
        *den += a->code[j] * a->code[j] * k.qq;
    }
}

FIT_INLINE enc_scaled enc_scaled_fit(const enc_values *v, int run, fit_levels lv,
                                     fit_levels codes) {
    fit_scale fit[16];
    float s[16], bend[16], num, den;
    const int n = RVK_QKK / run;
    for (int j = 0; j < n; j++) {
        fit[j] = fit_best_scale(v->x + j * run, v->w + j * run, run, lv);
        s[j] = fit[j].s;
        bend[j] = fit[j].bend;
    }
    enc_scaled best, next;
    best.d = fit_half(fit_best_scale(s, bend, n, codes).s, v->e);
    if (!best.d) {
        memset(&best, 0, sizeof best);
        return best;
    }
    enc_scaled_codes(&best, v, fit, run, lv, codes, &num, &den);
    for (int again = 0; again < 2 && den > 0.0f; again++) {
        next.d = fit_half(num / den, v->e);
        if (!next.d || next.d == best.d) break;
        enc_scaled_codes(&next, v, fit, run, lv, codes, &num, &den);
        if (!(next.error < best.error)) break;
        best = next;
    }
    return best;
}

/* The levels of v under a, minus the least of them, so that they count from 0. */
FIT_INLINE void enc_scaled_levels(uint8_t *q, const enc_scaled *a, const enc_values *v, int run,
                                  fit_levels lv) {
    const float d = fit_from_half(a->d, v->e);
    for (int i = 0; i < RVK_QKK; i++) {
        const float s = d * a->code[i / run], inv = s != 0.0f ? 1.0f / s : 0.0f;
        q[i] = (uint8_t)(fit_level(v->x[i] * inv, lv) - lv.lo);
    }
}

/* ---- 256 values, a scale and a minimum per run: Q2_K, Q4_K, Q5_K ---- */

typedef struct enc_lined {
    uint16_t d, dmin;
    float s_code[16], m_code[16];
    float error;
} enc_lined;

typedef struct enc_line_format {
    int run;
    float top, most_code; /* levels 0 .. top, codes 0 .. most_code */
    float step;           /* of the scales tried for a run */
    int n_from, n_to;
} enc_line_format;

/* The sums of x ~= d * (s_code * q) - dmin * m_code over a block. */
typedef struct enc_lined_sums {
    float aa, ab, bb, ax, bx;
} enc_lined_sums;

FIT_INLINE void enc_lined_run(enc_lined *a, int j, const float *x, const float *w,
                              const fit_line *fit, enc_line_format f, float d, float dmin) {
    const float s0 = fit_round(fit->s / d, 0.0f, f.most_code);
    float best = -1.0f;
    for (int t = -1; t <= 1; t++) {
        const float sc = s0 + (float)t;
        if (sc < 0.0f || sc > f.most_code) continue;
        /* the minimum that goes with this scale while the levels stay */
        const float m = fit->w > 0.0f ? (d * sc * fit->wq - fit->wx) / fit->w : fit->m;
        const float m0 = dmin > 0.0f ? fit_round(m / dmin, 0.0f, f.most_code) : 0.0f;
        for (int u = -1; u <= 1; u++) {
            const float mc = m0 + (float)u;
            if (mc < 0.0f || mc > f.most_code) continue;
            const float e = fit_line_error(x, w, f.run, d * sc, dmin * mc, f.top);
            if (best >= 0.0f && e >= best) continue;
            best = e;
            a->s_code[j] = sc;
            a->m_code[j] = mc;
        }
    }
    a->error += best;
}

FIT_INLINE void enc_lined_codes(enc_lined *a, const enc_values *v, const fit_line *fit,
                                enc_line_format f, enc_lined_sums *k) {
    const float d = fit_from_half(a->d, v->e), dmin = fit_from_half(a->dmin, v->e);
    a->error = 0.0f;
    memset(k, 0, sizeof *k);
    for (int j = 0; j < RVK_QKK / f.run; j++) {
        const float *x = v->x + j * f.run, *w = v->w + j * f.run;
        enc_lined_run(a, j, x, w, &fit[j], f, d, dmin);
        const float sc = a->s_code[j], mc = a->m_code[j];
        fit_line l = fit[j];
        fit_line_sums(&l, x, w, f.run, sc > 0.0f ? 1.0f / (d * sc) : 0.0f, dmin * mc, f.top);
        k->aa += sc * sc * l.wqq;
        k->ab += sc * mc * l.wq;
        k->bb += mc * mc * l.w;
        k->ax += sc * l.wqx;
        k->bx += mc * l.wx;
    }
}

/* The halves that fit codes and levels best; false where the sums do not say. */
static bool enc_lined_halves(enc_lined *a, const enc_lined_sums *k, int e) {
    const float det = k->aa * k->bb - k->ab * k->ab;
    float d, dmin = 0.0f;
    if (k->bb > 0.0f && det > 0x1p-18f * k->aa * k->bb) {
        d = (k->ax * k->bb - k->bx * k->ab) / det;
        dmin = (k->ax * k->ab - k->bx * k->aa) / det;
    } else if (k->bb == 0.0f && k->aa > 0.0f) {
        d = k->ax / k->aa;
    } else {
        return false;
    }
    if (!(d > 0.0f) || !(dmin >= 0.0f)) return false;
    a->d = fit_half(d, e);
    a->dmin = fit_half(dmin, e);
    return true;
}

FIT_INLINE enc_lined enc_lined_fit(const enc_values *v, enc_line_format f) {
    const fit_levels codes = {.lo = -f.most_code, .hi = f.most_code, .step = 0.25f, .n_steps = 3};
    const int n = RVK_QKK / f.run;
    fit_line fit[16];
    float s[16], m[16], sw[16], mw[16];
    for (int j = 0; j < n; j++) {
        fit[j] = fit_best_line(v->x + j * f.run, v->w + j * f.run, f.run, f.top, f.step, f.n_from,
                               f.n_to, false);
        s[j] = fit[j].s;
        m[j] = fit[j].m;
        mw[j] = fit[j].w;
        sw[j] = fit[j].w > 0.0f ? fit[j].wqq - fit[j].wq * fit[j].wq / fit[j].w : 0.0f;
        if (sw[j] < 0x1p-18f * fit[j].wqq) sw[j] = fit[j].wqq;
    }
    enc_lined best, next;
    enc_lined_sums k;
    memset(&best, 0, sizeof best);
    best.d = fit_half(fabsf(fit_best_scale(s, sw, n, codes).s), v->e);
    best.dmin = fit_half(fabsf(fit_best_scale(m, mw, n, codes).s), v->e);
    if (!best.d) best.d = 1; /* runs of equal values have a minimum only */
    enc_lined_codes(&best, v, fit, f, &k);
    for (int again = 0; again < 2; again++) {
        next = best;
        if (!enc_lined_halves(&next, &k, v->e)) break;
        if (next.d == best.d && next.dmin == best.dmin) break;
        enc_lined_codes(&next, v, fit, f, &k);
        if (!(next.error < best.error)) break;
        best = next;
    }
    return best;
}

FIT_INLINE void enc_lined_levels(uint8_t *q, const enc_lined *a, const enc_values *v,
                                 enc_line_format f) {
    const float d = fit_from_half(a->d, v->e), dmin = fit_from_half(a->dmin, v->e);
    for (int i = 0; i < RVK_QKK; i++) {
        const float s = d * a->s_code[i / f.run], inv = s > 0.0f ? 1.0f / s : 0.0f;
        q[i] = (uint8_t)fit_round((v->x[i] + dmin * a->m_code[i / f.run]) * inv, 0.0f, f.top);
    }
}

/* ---- packing ---- */

/* Bits 0 and 1 of 256 levels: byte l of 32 holds values l, l + 32, l + 64, l + 96 of its 128. */
static void enc_two_bits(uint8_t *qs, const uint8_t *q, int shift) {
    for (int h = 0; h < 2; h++) {
        for (int l = 0; l < 32; l++) {
            const uint8_t *p = q + 128 * h + l;
            qs[32 * h + l] = (uint8_t)((p[0] >> shift & 3) | (p[32] >> shift & 3) << 2 |
                                       (p[64] >> shift & 3) << 4 | (p[96] >> shift & 3) << 6);
        }
    }
}

/* Low nibbles of 256 levels: byte l of 32 holds value l of one run of 32 and of the next. */
static void enc_nibbles64(uint8_t *qs, const uint8_t *q) {
    for (int h = 0; h < 4; h++)
        for (int l = 0; l < 32; l++)
            qs[32 * h + l] = (uint8_t)((q[64 * h + l] & 15) | (q[64 * h + 32 + l] & 15) << 4);
}

/* The last bit of 256 levels: bit j of byte l belongs to value 32 j + l. */
static void enc_high_bit(uint8_t *out, const uint8_t *q, int shift) {
    for (int i = 0; i < RVK_QKK; i++)
        out[i % 32] = (uint8_t)(out[i % 32] | (q[i] >> shift) << (i / 32));
}

static void enc_nibbles32(uint8_t *qs, const uint8_t *q) {
    for (int i = 0; i < 16; i++) qs[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

/* The eight scales and minimums of 6 bits of Q4_K and Q5_K, in 12 bytes. */
static void enc_codes6(uint8_t *out, const enc_lined *a) {
    for (int j = 0; j < 4; j++) {
        const int s = (int)a->s_code[j], m = (int)a->m_code[j];
        const int s4 = (int)a->s_code[j + 4], m4 = (int)a->m_code[j + 4];
        out[j] = (uint8_t)(s | (s4 >> 4) << 6);
        out[j + 4] = (uint8_t)(m | (m4 >> 4) << 6);
        out[j + 8] = (uint8_t)((s4 & 15) | (m4 & 15) << 4);
    }
}

/* The number of the IQ4 level -127 + v. */
static uint8_t enc_iq4_index(uint8_t v) {
    static const uint8_t level[15] = {0,   23,  44,  62,  78,  92,  105, 117,
                                      128, 140, 152, 165, 180, 196, 216};
    uint8_t n = 0; /* of smaller levels: counted without branches, which no one could predict */
    for (int i = 0; i < 15; i++) n = (uint8_t)(n + (level[i] < v));
    return n;
}

/* ---- blocks of 256 ---- */

static void enc_q2_k(void *dst, const float *x, const float *weights) {
    const enc_line_format f = {16, 3, 15, 0.15f, -8, 4};
    rvk_q2_k b = {0};
    enc_values v;
    if (enc_load(&v, x, weights, RVK_QKK)) {
        uint8_t q[RVK_QKK];
        const enc_lined a = enc_lined_fit(&v, f);
        enc_lined_levels(q, &a, &v, f);
        b.d = a.d;
        b.dmin = a.dmin;
        for (int j = 0; j < 16; j++)
            b.scales[j] = (uint8_t)((int)a.s_code[j] | (int)a.m_code[j] << 4);
        enc_two_bits(b.qs, q, 0);
    }
    memcpy(dst, &b, sizeof b);
}

static void enc_q4_k(void *dst, const float *x, const float *weights) {
    const enc_line_format f = {32, 15, 63, 0.2f, -8, 6};
    rvk_q4_k b = {0};
    enc_values v;
    if (enc_load(&v, x, weights, RVK_QKK)) {
        uint8_t q[RVK_QKK];
        const enc_lined a = enc_lined_fit(&v, f);
        enc_lined_levels(q, &a, &v, f);
        b.d = a.d;
        b.dmin = a.dmin;
        enc_codes6(b.scales, &a);
        enc_nibbles64(b.qs, q);
    }
    memcpy(dst, &b, sizeof b);
}

static void enc_q5_k(void *dst, const float *x, const float *weights) {
    const enc_line_format f = {32, 31, 63, 0.2f, -8, 6};
    rvk_q5_k b = {0};
    enc_values v;
    if (enc_load(&v, x, weights, RVK_QKK)) {
        uint8_t q[RVK_QKK];
        const enc_lined a = enc_lined_fit(&v, f);
        enc_lined_levels(q, &a, &v, f);
        b.d = a.d;
        b.dmin = a.dmin;
        enc_codes6(b.scales, &a);
        enc_nibbles64(b.qs, q);
        enc_high_bit(b.qh, q, 4);
    }
    memcpy(dst, &b, sizeof b);
}

static void enc_q3_k(void *dst, const float *x, const float *weights) {
    const fit_levels lv = {-4, 3, 0.2f, 4, false}, codes = {-32, 31, 0.25f, 3, false};
    rvk_q3_k b = {0};
    enc_values v;
    if (enc_load(&v, x, weights, RVK_QKK)) {
        uint8_t q[RVK_QKK];
        const enc_scaled a = enc_scaled_fit(&v, 16, lv, codes);
        enc_scaled_levels(q, &a, &v, 16, lv);
        b.d = a.d;
        for (int j = 0; j < 16; j++) {
            const int c = (int)a.code[j] + 32;
            b.scales[j % 8] = (uint8_t)(b.scales[j % 8] | (c & 15) << (j / 8 * 4));
            b.scales[8 + j % 4] = (uint8_t)(b.scales[8 + j % 4] | (c >> 4) << (j / 4 * 2));
        }
        enc_two_bits(b.qs, q, 0);
        enc_high_bit(b.hmask, q, 2);
    }
    memcpy(dst, &b, sizeof b);
}

static void enc_q6_k(void *dst, const float *x, const float *weights) {
    const fit_levels lv = {-32, 31, 0.3f, 3, false}, codes = {-128, 127, 0.25f, 1, false};
    rvk_q6_k b = {0};
    enc_values v;
    if (enc_load(&v, x, weights, RVK_QKK)) {
        uint8_t q[RVK_QKK];
        const enc_scaled a = enc_scaled_fit(&v, 16, lv, codes);
        enc_scaled_levels(q, &a, &v, 16, lv);
        b.d = a.d;
        for (int j = 0; j < 16; j++) b.scales[j] = (int8_t)a.code[j];
        for (int h = 0; h < 2; h++)
            for (int l = 0; l < 64; l++)
                b.ql[64 * h + l] =
                    (uint8_t)((q[128 * h + l] & 15) | (q[128 * h + 64 + l] & 15) << 4);
        enc_two_bits(b.qh, q, 4);
    }
    memcpy(dst, &b, sizeof b);
}

static void enc_iq4_xs(void *dst, const float *x, const float *weights) {
    const fit_levels lv = {-127, 113, 2.0f, 5, true}, codes = {-32, 31, 0.25f, 3, false};
    rvk_iq4_xs b = {0};
    enc_values v;
    if (enc_load(&v, x, weights, RVK_QKK)) {
        uint8_t q[RVK_QKK];
        const enc_scaled a = enc_scaled_fit(&v, 32, lv, codes);
        enc_scaled_levels(q, &a, &v, 32, lv);
        b.d = a.d;
        for (int i = 0; i < RVK_QKK; i++) q[i] = enc_iq4_index(q[i]);
        for (int j = 0; j < 8; j++) {
            const int c = (int)a.code[j] + 32;
            b.scales_l[j / 2] = (uint8_t)(b.scales_l[j / 2] | (c & 15) << (j % 2 * 4));
            b.scales_h = (uint16_t)(b.scales_h | (c >> 4) << (2 * j));
            enc_nibbles32(b.qs + 16 * j, q + 32 * j);
        }
    }
    memcpy(dst, &b, sizeof b);
}

/* ---- blocks of 32 ---- */

/* The stored scale of 32 values and their levels, counted from 0. */
FIT_INLINE uint16_t enc_scaled32(uint8_t *q, const float *x, const float *weights, fit_levels lv) {
    enc_values v;
    uint16_t h = 0;
    float inv = 0.0f;
    if (enc_load(&v, x, weights, RVK_QK)) {
        h = fit_half(fit_best_scale(v.x, v.w, RVK_QK, lv).s, v.e);
        inv = h ? 1.0f / fit_from_half(h, v.e) : 0.0f;
    } else {
        memset(v.x, 0, RVK_QK * sizeof *v.x);
    }
    for (int i = 0; i < RVK_QK; i++) q[i] = (uint8_t)(fit_level(v.x[i] * inv, lv) - lv.lo);
    return h;
}

/* The stored scale and offset of 32 values and their levels. */
FIT_INLINE void enc_lined32(uint16_t *d, uint16_t *m, uint8_t *q, const float *x,
                            const float *weights, float top) {
    enc_values v;
    *d = *m = 0;
    memset(q, 0, RVK_QK);
    if (!enc_load(&v, x, weights, RVK_QK)) return;
    const fit_line a = fit_best_line(v.x, v.w, RVK_QK, top, 0.2f, -8, 6, true);
    *d = fit_half(a.s, v.e);
    *m = fit_half(-a.m, v.e);
    const float s = fit_from_half(*d, v.e), lo = fit_from_half(*m, v.e);
    const float inv = s > 0.0f ? 1.0f / s : 0.0f;
    for (int i = 0; i < RVK_QK; i++) q[i] = (uint8_t)fit_round((v.x[i] - lo) * inv, 0.0f, top);
}

static void enc_fifth(uint8_t *qh, const uint8_t *q) {
    memset(qh, 0, 4);
    for (int i = 0; i < RVK_QK; i++) qh[i / 8] = (uint8_t)(qh[i / 8] | (q[i] >> 4) << (i % 8));
}

static void enc_q4_0(void *dst, const float *x, const float *weights) {
    const fit_levels lv = {-8, 7, 0.2f, 4, false};
    uint8_t q[RVK_QK];
    rvk_q4_0 b;
    b.d = enc_scaled32(q, x, weights, lv);
    enc_nibbles32(b.qs, q);
    memcpy(dst, &b, sizeof b);
}

static void enc_q5_0(void *dst, const float *x, const float *weights) {
    const fit_levels lv = {-16, 15, 0.2f, 4, false};
    uint8_t q[RVK_QK];
    rvk_q5_0 b;
    b.d = enc_scaled32(q, x, weights, lv);
    enc_nibbles32(b.qs, q);
    enc_fifth(b.qh, q);
    memcpy(dst, &b, sizeof b);
}

static void enc_q4_1(void *dst, const float *x, const float *weights) {
    uint8_t q[RVK_QK];
    rvk_q4_1 b;
    enc_lined32(&b.d, &b.m, q, x, weights, 15);
    enc_nibbles32(b.qs, q);
    memcpy(dst, &b, sizeof b);
}

static void enc_q5_1(void *dst, const float *x, const float *weights) {
    uint8_t q[RVK_QK];
    rvk_q5_1 b;
    enc_lined32(&b.d, &b.m, q, x, weights, 31);
    enc_nibbles32(b.qs, q);
    enc_fifth(b.qh, q);
    memcpy(dst, &b, sizeof b);
}

static void enc_iq4_nl(void *dst, const float *x, const float *weights) {
    const fit_levels lv = {-127, 113, 2.0f, 5, true};
    uint8_t q[RVK_QK];
    rvk_iq4_nl b;
    b.d = enc_scaled32(q, x, weights, lv);
    for (int i = 0; i < RVK_QK; i++) q[i] = enc_iq4_index(q[i]);
    enc_nibbles32(b.qs, q);
    memcpy(dst, &b, sizeof b);
}

/* ---- rows ---- */

FIT_INLINE void enc_rows(int type, void (*block)(void *, const float *, const float *), void *dst,
                         const float *src, const float *weights, size_t k) {
    const size_t n = rvk_dtypes[type].block_values, bytes = rvk_dtypes[type].block_bytes;
    for (size_t i = 0; i + n <= k; i += n)
        block((uint8_t *)dst + i / n * bytes, src + i, weights ? weights + i : NULL);
}

/* f(name, TYPE) for what is always searched, and for what is where values have weights. */
#define ENC_ALWAYS(f)                                                                              \
    f(q2_k, Q2_K) f(q3_k, Q3_K) f(q4_k, Q4_K) f(q5_k, Q5_K) f(q6_k, Q6_K) f(iq4_nl, IQ4_NL)        \
        f(iq4_xs, IQ4_XS)
#define ENC_WEIGHTED(f) f(q4_0, Q4_0) f(q4_1, Q4_1) f(q5_0, Q5_0) f(q5_1, Q5_1) ENC_ALWAYS(f)

#define ENC_ROWS(name, TYPE)                                                                       \
    static void enc_rows_##name(void *dst, const float *src, const float *weights, size_t k) {     \
        enc_rows(RVK_##TYPE, enc_##name, dst, src, weights, k);                                    \
    }
#define ENC_PLAIN(name, TYPE)                                                                      \
    static void enc_plain_##name(void *dst, const float *src, size_t k) {                          \
        enc_rows_##name(dst, src, NULL, k);                                                        \
    }
ENC_WEIGHTED(ENC_ROWS)
ENC_ALWAYS(ENC_PLAIN)

#define ENC_PUT_ROWS(name, TYPE) t->quant_w[RVK_##TYPE] = enc_rows_##name;
#define ENC_PUT_PLAIN(name, TYPE) t->quant[RVK_##TYPE] = enc_plain_##name;
static void encode_fill(rvk_table *t) {
    ENC_WEIGHTED(ENC_PUT_ROWS)
    ENC_ALWAYS(ENC_PUT_PLAIN)
}

#endif
