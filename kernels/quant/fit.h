/* Searching the scale of a block: the arithmetic under encode.h, which knows the formats.
 *
 * The idea to hold: everything minimises sum w * (x - decoded)^2.  For given levels q the best
 * scale is a quotient of sums, and for a given scale the best levels are the nearest ones; so a
 * search tries some scales around the one that just reaches the largest value, takes the levels
 * and then the best scale for those, and keeps what explains most of sum w * x^2.
 *
 * Included by one file per ISA, which compiles the same C for its registers.  Sums run in eight
 * lanes and nothing is contracted, so every ISA gives the same bits. */
#ifndef RVK_QUANT_FIT_H
#define RVK_QUANT_FIT_H

#include <math.h>

#include "rvk.h"

#define FIT_INLINE static inline __attribute__((always_inline))

enum { FIT_LANES = 8 };

/* Values are scaled so that the largest of a block is near 1; below this they count as 0. */
#define FIT_TINY 0x1p-40f

/* The levels a format has: integers lo .. hi, or the sixteen of IQ4. */
typedef struct fit_levels {
    float lo, hi, step; /* step: between two scales tried, in levels */
    int n_steps;        /* tried on either side */
    bool iq4;
} fit_levels;

FIT_INLINE float fit_sum(const float *a) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

/* The nearest integer, ties to even, within lo .. hi, which are integers. */
FIT_INLINE float fit_round(float v, float lo, float hi) {
    v = v < lo ? lo : v;
    v = v > hi ? hi : v;
    return (v + 0x1.8p23f) - 0x1.8p23f; /* one place of 2^23 is 1, so adding it rounds there */
}

/* The nearest of IQ4's levels: the first, and the steps up to v.  A midpoint goes down. */
FIT_INLINE float fit_round_iq4(float v) {
    static const float middle[15] = {-115.5f, -93.5f, -74,   -57,   -42, -28.5f, -16, -4.5f,
                                     7,       19,     31.5f, 45.5f, 61,  79,     101};
    static const float rise[15] = {23, 21, 18, 16, 14, 13, 12, 11, 12, 12, 13, 15, 16, 20, 24};
    float q = -127;
    for (int i = 0; i < 15; i++) q += v > middle[i] ? rise[i] : 0.0f;
    return q;
}

FIT_INLINE float fit_level(float v, fit_levels lv) {
    return lv.iq4 ? fit_round_iq4(v) : fit_round(v, lv.lo, lv.hi);
}

/* ---- one scale: x ~= s * q ---- */

typedef struct fit_sums {
    float qx, qq; /* sum w * q * x, sum w * q * q */
} fit_sums;

FIT_INLINE fit_sums fit_scale_sums(const float *x, const float *w, int n, float inv,
                                   fit_levels lv) {
    float qx[FIT_LANES] = {0}, qq[FIT_LANES] = {0};
    for (int i = 0; i < n; i += FIT_LANES) {
        for (int l = 0; l < FIT_LANES; l++) {
            const float q = fit_level(x[i + l] * inv, lv), wq = w[i + l] * q;
            qx[l] += wq * x[i + l];
            qq[l] += wq * q;
        }
    }
    return (fit_sums){fit_sum(qx), fit_sum(qq)};
}

FIT_INLINE float fit_scale_error(const float *x, const float *w, int n, float s, fit_levels lv) {
    const float inv = s != 0.0f ? 1.0f / s : 0.0f;
    float e[FIT_LANES] = {0};
    for (int i = 0; i < n; i += FIT_LANES) {
        for (int l = 0; l < FIT_LANES; l++) {
            const float r = s * fit_level(x[i + l] * inv, lv) - x[i + l];
            e[l] += w[i + l] * r * r;
        }
    }
    return fit_sum(e);
}

/* The value of largest magnitude, with its sign; the first of equals. */
FIT_INLINE float fit_extreme(const float *x, int n) {
    float best = 0.0f;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(best)) best = x[i];
    return best;
}

typedef struct fit_scale {
    float s;    /* of either sign; 0: nothing but zeros */
    float bend; /* the error grows by bend * (change of s)^2 while the levels stay */
} fit_scale;

FIT_INLINE void fit_try_scale(fit_scale *best, float *gain, const float *x, const float *w, int n,
                              float inv, fit_levels lv) {
    const fit_sums a = fit_scale_sums(x, w, n, inv, lv);
    if (!(a.qq > 0.0f) || !(a.qx * a.qx > *gain * a.qq)) return;
    best->s = a.qx / a.qq;
    best->bend = a.qq;
    *gain = best->s * a.qx;
}

/* n: a multiple of 8. */
FIT_INLINE fit_scale fit_best_scale(const float *x, const float *w, int n, fit_levels lv) {
    fit_scale best = {0, 0};
    float gain = 0.0f;
    const float top = fit_extreme(x, n);
    if (fabsf(top) < FIT_TINY) return best;
    for (int c = -lv.n_steps; c <= lv.n_steps; c++) {
        fit_try_scale(&best, &gain, x, w, n, (lv.lo + lv.step * (float)c) / top, lv);
        fit_try_scale(&best, &gain, x, w, n, (lv.hi + lv.step * (float)c) / top, lv);
    }
    for (int again = 0; again < 2 && best.s != 0.0f; again++)
        fit_try_scale(&best, &gain, x, w, n, 1.0f / best.s, lv);
    return best;
}

/* ---- a scale and a minimum: x ~= s * q - m, q in 0 .. top ---- */

typedef struct fit_line {
    float s, m;
    float w, wx, wq, wqq, wqx; /* the sums of its levels */
} fit_line;

FIT_INLINE void fit_line_sums(fit_line *a, const float *x, const float *w, int n, float inv,
                              float m, float top) {
    float q1[FIT_LANES] = {0}, q2[FIT_LANES] = {0}, qx[FIT_LANES] = {0};
    for (int i = 0; i < n; i += FIT_LANES) {
        for (int l = 0; l < FIT_LANES; l++) {
            const float q = fit_round((x[i + l] + m) * inv, 0.0f, top), wq = w[i + l] * q;
            q1[l] += wq;
            q2[l] += wq * q;
            qx[l] += wq * x[i + l];
        }
    }
    a->wq = fit_sum(q1);
    a->wqq = fit_sum(q2);
    a->wqx = fit_sum(qx);
}

FIT_INLINE float fit_line_error(const float *x, const float *w, int n, float s, float m,
                                float top) {
    const float inv = s > 0.0f ? 1.0f / s : 0.0f;
    float e[FIT_LANES] = {0};
    for (int i = 0; i < n; i += FIT_LANES) {
        for (int l = 0; l < FIT_LANES; l++) {
            const float r = s * fit_round((x[i + l] + m) * inv, 0.0f, top) - m - x[i + l];
            e[l] += w[i + l] * r * r;
        }
    }
    return fit_sum(e);
}

/* Take the levels of (inv, m) and then the best s and m for them; better ones replace best. */
FIT_INLINE void fit_try_line(fit_line *best, float *gain, const float *x, const float *w, int n,
                             float inv, float m, float top, bool any_sign) {
    fit_line a = *best;
    fit_line_sums(&a, x, w, n, inv, m, top);
    const float det = a.w * a.wqq - a.wq * a.wq;
    if (!(a.wqq > 0.0f)) return;
    bool line = det > 0x1p-18f * a.w * a.wqq; /* else all levels are equal, but for rounding */
    if (line) {
        a.s = (a.w * a.wqx - a.wq * a.wx) / det;
        a.m = (a.wq * a.wqx - a.wqq * a.wx) / det;
        line = any_sign || a.m >= 0.0f;
    }
    if (!line) {
        a.s = a.wqx / a.wqq;
        a.m = 0.0f;
    }
    const float g = a.s * a.wqx - a.m * a.wx;
    if (!(a.s > 0.0f) || !(g > *gain)) return;
    *gain = g;
    *best = a;
}

/* n: a multiple of 8.  any_sign: m may be negative.  step, n_from, n_to: the scales tried. */
FIT_INLINE fit_line fit_best_line(const float *x, const float *w, int n, float top, float step,
                                  int n_from, int n_to, bool any_sign) {
    float lo = x[0], hi = x[0], sw[FIT_LANES] = {0}, swx[FIT_LANES] = {0};
    for (int i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
        sw[i % FIT_LANES] += w[i];
        swx[i % FIT_LANES] += w[i] * x[i];
    }
    if (!any_sign && lo > 0.0f) lo = 0.0f;
    fit_line best = {.s = 0, .m = -lo, .w = fit_sum(sw), .wx = fit_sum(swx)};
    if (hi - lo < FIT_TINY) return best;
    float gain = -1e30f;
    for (int c = n_from; c <= n_to; c++)
        fit_try_line(&best, &gain, x, w, n, (top + step * (float)c) / (hi - lo), -lo, top,
                     any_sign);
    for (int again = 0; again < 2 && best.s > 0.0f; again++)
        fit_try_line(&best, &gain, x, w, n, 1.0f / best.s, best.m, top, any_sign);
    return best;
}

/* ---- half precision ---- */

/* d * 2^e as the half that is stored: never infinite, and never 0 for a d that is not. */
static inline uint16_t fit_half(float d, int e) {
    const float most = 65504.0f, v = ldexpf(d, e);
    if (d == 0.0f) return 0;
    const uint16_t h = rvk_f32_to_f16(v > most ? most : v < -most ? -most : v);
    return h & 0x7fff ? h : (uint16_t)(h | 1);
}

/* The half h in units of 2^e. */
static inline float fit_from_half(uint16_t h, int e) {
    return ldexpf(rvk_f16_to_f32(h), -e);
}

#endif
