#include "rvk.h"

void rvk_init_quant(rvk_table *t, unsigned cpu) {
    (void)t, (void)cpu;
}

float rvk_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t e = (h >> 10) & 31, m = h & 0x3ff;
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
