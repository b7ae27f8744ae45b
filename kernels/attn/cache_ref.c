/* The layout of cached keys and values, value by value, and attention against it, the oracle. */
#include <math.h>
#include <string.h>

#include "attn/attn.h"

size_t rvk_attn_run_bytes(int type, size_t d) {
    const bool known = rvk_attn_is_coded(type) || type == RVK_F32 || type == RVK_F16;
    return known ? rvk_attn_off_end(type, d) : 0;
}

/* ---- writing position p of a run ---- */

static void put_f32(uint8_t *run, size_t p, const float *k, size_t d) {
    for (size_t i = 0; i < d; i++) memcpy(run + 4 * (16 * i + p), k + i, 4);
}

static void put_f16(uint8_t *run, size_t p, const float *k, size_t d) {
    uint16_t half[RVK_QK];
    for (size_t i = 0; i < d; i += RVK_QK) {
        const size_t n = d - i < RVK_QK ? d - i : RVK_QK;
        rvk.quant[RVK_F16](half, k + i, n);
        for (size_t j = 0; j < n; j++) memcpy(run + 2 * (16 * (i + j) + p), half + j, 2);
    }
}

/* Quantised 32 values, of which n are there and the others 0; with a NaN or infinity among them a
 * scale of NaN, so that it is not lost. */
static void round32(int type, void *q, uint16_t *scale, const float *x, size_t n) {
    static const float zeros[RVK_QK];
    float part[RVK_QK], sum = 0.0f;
    if (n < RVK_QK) {
        memcpy(part, zeros, sizeof part);
        x = memcpy(part, x, n * sizeof *x);
    }
    for (int i = 0; i < RVK_QK; i++) sum += x[i] * 0.0f;
    rvk.quant[type](q, sum == 0.0f ? x : zeros, RVK_QK);
    if (sum != 0.0f) *scale = 0x7e00;
}

/* Values at their row if that is given, else keys; scales [d / 32][16]. */
static void put_q8_0(uint8_t *run, uint8_t *row, uint8_t *scales, size_t p, const float *x,
                     size_t d) {
    for (size_t b = 0; RVK_QK * b < d; b++) {
        rvk_q8_0 q;
        round32(RVK_Q8_0, &q, &q.d, x + RVK_QK * b, d - RVK_QK * b);
        memcpy(scales + 2 * (16 * b + p), &q.d, 2);
        if (row) {
            memcpy(row + RVK_QK * b, q.qs, RVK_QK);
            continue;
        }
        uint8_t codes[RVK_QK];
        for (int i = 0; i < RVK_QK; i++) codes[i] = (uint8_t)(q.qs[i] + 128);
        for (size_t g = 0; g < 8; g++) memcpy(run + 64 * (8 * b + g) + 4 * p, codes + 4 * g, 4);
    }
}

static void put_q4_0(uint8_t *run, uint8_t *row, uint8_t *scales, size_t p, const float *x,
                     size_t d) {
    for (size_t b = 0; RVK_QK * b < d; b++) {
        rvk_q4_0 q;
        round32(RVK_Q4_0, &q, &q.d, x + RVK_QK * b, d - RVK_QK * b);
        memcpy(scales + 2 * (16 * b + p), &q.d, 2);
        if (row) {
            memcpy(row + 16 * b, q.qs, 16);
            continue;
        }
        for (size_t g = 0; g < 4; g++) memcpy(run + 64 * (4 * b + g) + 4 * p, q.qs + 4 * g, 4);
    }
}

void rvk_attn_put(int type, void *run, size_t pos, const float *k, const float *v, size_t d) {
    uint8_t *keys = run;
    uint8_t *row = keys + rvk_attn_off_values(type, d) + pos * rvk_attn_row_bytes(type, d);
    uint8_t *key_scales = keys + rvk_attn_off_key_scales(type, d);
    uint8_t *value_scales = keys + rvk_attn_off_value_scales(type, d);
    switch (rvk_attn_key_type(type)) {
    case RVK_F32: put_f32(keys, pos, k, d); break;
    case RVK_F16: put_f16(keys, pos, k, d); break;
    case RVK_Q8_0: put_q8_0(keys, NULL, key_scales, pos, k, d); break;
    default: put_q4_0(keys, NULL, key_scales, pos, k, d);
    }
    switch (rvk_attn_value_type(type)) {
    case RVK_F32: memcpy(row, v, 4 * d); break;
    case RVK_F16: rvk.quant[RVK_F16](row, v, d); break;
    case RVK_Q8_0: put_q8_0(NULL, row, value_scales, pos, v, d); break;
    default: put_q4_0(NULL, row, value_scales, pos, v, d);
    }
}

/* ---- reading ---- */

typedef struct place {
    const uint8_t *run;
    int type;
    size_t p, d;
} place;

static place place_in_block(int type, const void *const *runs, size_t pos, size_t d) {
    return (place){runs[pos / RVK_ATTN_RUN], type, pos % RVK_ATTN_RUN, d};
}

static float half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return rvk_f16_to_f32(h);
}

static int nibble(uint8_t byte, size_t i) {
    return (i % RVK_QK < 16 ? byte & 15 : byte >> 4) - 8;
}

/* The code (or value) of dimension i, and what it is multiplied by. */
static double key_code(const place *a, size_t i) {
    const uint8_t *r = a->run;
    const size_t p = a->p;
    float f;
    switch (rvk_attn_key_type(a->type)) {
    case RVK_F32: memcpy(&f, r + 4 * (16 * i + p), 4); return (double)f;
    case RVK_F16: return (double)half_at(r + 2 * (16 * i + p));
    case RVK_Q8_0: return r[64 * (i / 4) + 4 * p + i % 4] - 128;
    default: return nibble(r[64 * (i / RVK_QK * 4 + i % 16 / 4) + 4 * p + i % 4], i);
    }
}

static double value_code(const place *a, size_t i) {
    const uint8_t *row =
        a->run + rvk_attn_off_values(a->type, a->d) + a->p * rvk_attn_row_bytes(a->type, a->d);
    float f;
    switch (rvk_attn_value_type(a->type)) {
    case RVK_F32: memcpy(&f, row + 4 * i, 4); return (double)f;
    case RVK_F16: return (double)half_at(row + 2 * i);
    case RVK_Q8_0: return (int8_t)row[i];
    default: return nibble(row[i / RVK_QK * 16 + i % 16], i);
    }
}

static double scale_at(const place *a, size_t i, bool value) {
    if (!rvk_attn_is_coded(a->type)) return 1.0;
    const size_t off =
        value ? rvk_attn_off_value_scales(a->type, a->d) : rvk_attn_off_key_scales(a->type, a->d);
    return (double)half_at(a->run + off + 2 * (i / RVK_QK * 16 + a->p));
}

void rvk_attn_get(int type, const void *run, size_t pos, float *k, float *v, size_t d) {
    const place a = {run, type, pos, d};
    for (size_t i = 0; i < d; i++) {
        k[i] = (float)(key_code(&a, i) * scale_at(&a, i, false));
        v[i] = (float)(value_code(&a, i) * scale_at(&a, i, true));
    }
}

/* ---- attention ---- */

/* Dimension i of query h, whose row has w of them. */
static double query(int type, const void *q, size_t h, size_t i, size_t w) {
    if (!rvk_attn_is_coded(type)) return (double)((const float *)q)[h * w + i];
    const char *row = (const char *)q + h * rvk_act_bytes(w);
    float scale;
    memcpy(&scale, row + rvk_act_off_d(w) + i / RVK_QK * sizeof scale, sizeof scale);
    return (double)scale * (int8_t)row[i];
}

static void attn_block(RVK_ATTN_ARGS, int type) {
    (void)next;
    const size_t w = rvk_attn_width(type, d);
    for (size_t h = 0; h < n_q; h++) {
        double s[RVK_ATTN_BLOCK], top = (double)st_max[h];
        for (size_t p = lo; p < hi; p++) {
            const place a = place_in_block(type, runs, p, d);
            s[p] = 0.0;
            for (size_t i = 0; i < w; i++)
                s[p] += query(type, q, h, i, w) * key_code(&a, i) * scale_at(&a, i, false);
            if (s[p] > top) top = s[p];
        }
        const double keep = st_max[h] == -INFINITY ? 0.0 : exp((double)st_max[h] - top);
        double sum = (double)st_sum[h] * keep;
        for (size_t p = lo; p < hi; p++) sum += s[p] = exp(s[p] - top);
        for (size_t i = 0; i < d; i++) {
            double x = (double)acc[h * d + i] * keep;
            for (size_t p = lo; p < hi; p++) {
                const place a = place_in_block(type, runs, p, d);
                x += s[p] * value_code(&a, i) * scale_at(&a, i, true);
            }
            acc[h * d + i] = (float)x;
        }
        st_max[h] = (float)top;
        st_sum[h] = (float)sum;
    }
}

#define ATTN(name, type)                                                                           \
    void rvk_attn_##name##_ref(RVK_ATTN_ARGS) {                                                    \
        attn_block(q, n_q, d, runs, next, lo, hi, st_max, st_sum, acc, type);                      \
    }
ATTN(f32, RVK_F32)
ATTN(f16, RVK_F16)
ATTN(q8_0, RVK_Q8_0)
ATTN(q4_0, RVK_Q4_0)
ATTN(k8v4, RVK_K8V4)
