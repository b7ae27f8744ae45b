/* Elementwise operations, the oracle. */
#include <math.h>

#include "act/act.h"

void rvk_swiglu_ref(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = (float)(gate[i] / (1.0 + exp(-(double)gate[i])) * up[i]);
}

void rvk_gelu_ref(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const double v = x[i], u = 0.7978845608028654 * v * (1.0 + 0.044715 * v * v);
        y[i] = (float)(0.5 * v * (1.0 + tanh(u)));
    }
}

static void add_ref(float *y, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

static void shortconv_ref(float *y, const float *b, const float *c, const float *u,
                          const float *taps, float *state, size_t n, size_t l) {
    for (size_t i = 0; i < n; i++) {
        const float now = b[i] * u[i];
        float sum = now * taps[i * l + l - 1];
        for (size_t j = 0; j + 1 < l; j++) sum += state[j * n + i] * taps[i * l + j];
        for (size_t j = 0; j + 2 < l; j++) state[j * n + i] = state[(j + 1) * n + i];
        if (l > 1) state[(l - 2) * n + i] = now;
        y[i] = c[i] * sum;
    }
}

void rvk_init_act(rvk_table *t, unsigned cpu) {
    (void)cpu;
    t->swiglu = rvk_swiglu_ref;
    t->gelu = rvk_gelu_ref;
    t->add = add_ref;
    t->shortconv = shortconv_ref;
    t->isa_act = "ref";
#ifdef RVK_HAVE_avx2
    if (!(cpu & RVK_AVX2)) return;
    t->swiglu = rvk_swiglu_avx2;
    t->gelu = rvk_gelu_avx2;
    t->add = rvk_add_avx2;
    t->isa_act = "avx2";
#endif
#ifdef RVK_HAVE_avx512
    if (!(cpu & RVK_AVX512)) return;
    t->swiglu = rvk_swiglu_avx512;
    t->gelu = rvk_gelu_avx512;
    t->isa_act = "avx512";
#endif
}
