/* The oracle of the dot family, and its ladder: exact integers inside a run of 16 values, double
 * outside, no sharing, no blocking. */
#include <string.h>

#include "dot/panel.h"
#include "quant/unpack.h"

/* Sum over one block of w at p against values i0 .. of the packed column xc. */
static double dot_block(int type, const uint8_t *p, const uint8_t *xc, size_t k, size_t i0) {
    rvk_block b;
    rvk_unpack(&b, type, p);
    double sum = 0.0;
    for (size_t h = 0; h < rvk_dtypes[type].block_values / 16; h++) {
        const int8_t *xq = (const int8_t *)xc + i0 + 16 * h;
        float d;
        memcpy(&d, xc + rvk_act_off_d(k) + (i0 + 16 * h) / RVK_QK * sizeof d, sizeof d);
        int32_t wx = 0, sx = 0;
        for (int i = 0; i < 16; i++) {
            wx += (int32_t)b.q[16 * h + (size_t)i] * xq[i];
            sx += xq[i];
        }
        sum += (double)d * ((double)b.s[h] * wx - (double)b.m[h] * sx);
    }
    return sum;
}

static void mul_blocks(int type, RVK_MUL_ARGS) {
    const size_t n = rvk_dtypes[type].block_values, bytes = rvk_dtypes[type].block_bytes;
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t c = 0; c < n_cols; c++) {
            const uint8_t *p = (const uint8_t *)w + r * w_stride;
            const uint8_t *xc = (const uint8_t *)x + c * x_stride;
            double sum = 0.0;
            for (size_t i = 0; i < k; i += n, p += bytes) sum += dot_block(type, p, xc, k, i);
            y[c * ldy + r] = (float)sum;
        }
    }
}

static float weight(int type, const uint8_t *p, size_t i) {
    float f;
    uint16_t h;
    if (type == RVK_F32) {
        memcpy(&f, p + 4 * i, sizeof f);
        return f;
    }
    memcpy(&h, p + 2 * i, sizeof h);
    return type == RVK_F16 ? rvk_f16_to_f32(h) : rvk_bf16_to_f32(h);
}

static void mul_floats(int type, RVK_MUL_ARGS) {
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t c = 0; c < n_cols; c++) {
            const uint8_t *p = (const uint8_t *)w + r * w_stride;
            const uint8_t *xc = (const uint8_t *)x + c * x_stride;
            double sum = 0.0;
            for (size_t i = 0; i < k; i++)
                sum += (double)weight(type, p, i) * weight(RVK_F32, xc, i);
            y[c * ldy + r] = (float)sum;
        }
    }
}

#define MUL_FLOATS(isa, name, NUMBER)                                                              \
    void rvk_mul_##name##_##isa(RVK_MUL_ARGS) {                                                    \
        mul_floats(RVK_##NUMBER, y, ldy, w, w_stride, n_rows, x, x_stride, n_cols, k);             \
    }
#define MUL_BLOCKS(isa, name, NUMBER)                                                              \
    void rvk_mul_##name##_##isa(RVK_MUL_ARGS) {                                                    \
        mul_blocks(RVK_##NUMBER, y, ldy, w, w_stride, n_rows, x, x_stride, n_cols, k);             \
    }
RVK_MUL_FLOATS(MUL_FLOATS, ref)
RVK_MUL_QUANTS(MUL_BLOCKS, ref)

#define FILL(isa, name, NUMBER)                                                                    \
    t->mul[RVK_##NUMBER] = rvk_mul_##name##_##isa, t->isa_mul[RVK_##NUMBER] = #isa;
#define FILL_PANELS(isa, name, NUMBER) t->mul_panels[RVK_##NUMBER] = rvk_mul_panels_##name##_##isa;

void rvk_init_dot(rvk_table *t, unsigned cpu) {
    (void)cpu;
    RVK_MUL_FLOATS(FILL, ref)
    RVK_MUL_QUANTS(FILL, ref)
    t->panel_pack = rvk_panel_pack_ref;
#ifdef RVK_HAVE_avx2
    if (!(cpu & RVK_AVX2)) return;
    RVK_MUL_FLOATS(FILL, avx2)
    RVK_MUL_QUANTS(FILL, avx2)
    RVK_MUL_QUANTS(FILL_PANELS, avx2)
    t->panel_pack = rvk_panel_pack_avx2;
#endif
#ifdef RVK_HAVE_avx512
    if (!(cpu & RVK_AVX512)) return;
    RVK_MUL_FLOATS(FILL, avx512)
#endif
#ifdef RVK_HAVE_bf16
    if (cpu & RVK_BF16_DOT) {
        t->mul_rounded[RVK_BF16] = rvk_mul_rounded_bf16_bf16;
        t->isa_mul_rounded[RVK_BF16] = "bf16";
    }
#endif
#ifdef RVK_HAVE_vnni
    if (!(cpu & RVK_VNNI)) return;
    RVK_MUL_QUANTS(FILL, vnni)
    RVK_MUL_QUANTS(FILL_PANELS, vnni)
    t->panel_pack = rvk_panel_pack_vnni;
#endif
}
