/* Rotary position embedding (Su et al. 2021, RoFormer, eq. 34), both pairings.  It is a sliver of
 * a layer's time and compilers vectorise the plain loops, so there is one version. */
#include "rvk.h"

static void rope_ref(float *x, size_t n_heads, size_t head_dim, size_t n_rot, const float *cs,
                     bool neox) {
    const size_t half = n_rot / 2;
    const float *c = cs, *s = cs + half;
    for (size_t h = 0; h < n_heads; h++, x += head_dim) {
        if (neox) {
            for (size_t i = 0; i < half; i++) {
                const float a = x[i], b = x[i + half];
                x[i] = a * c[i] - b * s[i];
                x[i + half] = a * s[i] + b * c[i];
            }
        } else {
            for (size_t i = 0; i < half; i++) {
                const float a = x[2 * i], b = x[2 * i + 1];
                x[2 * i] = a * c[i] - b * s[i];
                x[2 * i + 1] = a * s[i] + b * c[i];
            }
        }
    }
}

void rvk_init_rope(rvk_table *t, unsigned cpu) {
    (void)cpu;
    t->rope = rope_ref;
    t->isa_rope = "ref";
}
