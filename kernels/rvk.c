/* The kernel table, the table of types, and the layout of packed activations. */
#include "rvk.h"

rvk_table rvk;

const rvk_dtype_info rvk_dtypes[RVK_N_TYPES] = {
    [RVK_F32] = {"f32", 1, sizeof(float), false},
    [RVK_F16] = {"f16", 1, sizeof(uint16_t), false},
    [RVK_BF16] = {"bf16", 1, sizeof(uint16_t), false},
    [RVK_Q4_0] = {"q4_0", RVK_QK, sizeof(rvk_q4_0), true},
    [RVK_Q4_1] = {"q4_1", RVK_QK, sizeof(rvk_q4_1), true},
    [RVK_Q5_0] = {"q5_0", RVK_QK, sizeof(rvk_q5_0), true},
    [RVK_Q5_1] = {"q5_1", RVK_QK, sizeof(rvk_q5_1), true},
    [RVK_Q8_0] = {"q8_0", RVK_QK, sizeof(rvk_q8_0), true},
    [RVK_Q2_K] = {"q2_k", RVK_QKK, sizeof(rvk_q2_k), true},
    [RVK_Q3_K] = {"q3_k", RVK_QKK, sizeof(rvk_q3_k), true},
    [RVK_Q4_K] = {"q4_k", RVK_QKK, sizeof(rvk_q4_k), true},
    [RVK_Q5_K] = {"q5_k", RVK_QKK, sizeof(rvk_q5_k), true},
    [RVK_Q6_K] = {"q6_k", RVK_QKK, sizeof(rvk_q6_k), true},
    [RVK_IQ4_NL] = {"iq4_nl", RVK_QK, sizeof(rvk_iq4_nl), true},
    [RVK_IQ4_XS] = {"iq4_xs", RVK_QKK, sizeof(rvk_iq4_xs), true},
};

size_t rvk_row_bytes(int type, size_t k) {
    if (type < 0 || type >= RVK_N_TYPES || !rvk_dtypes[type].name) return 0;
    const rvk_dtype_info *t = &rvk_dtypes[type];
    return k % t->block_values ? 0 : k / t->block_values * t->block_bytes;
}

static size_t up64(size_t n) {
    return (n + 63) & ~(size_t)63;
}

size_t rvk_act_off_d(size_t k) {
    return up64(k);
}

size_t rvk_act_off_bsum(size_t k) {
    return up64(k) + up64(k / 32 * sizeof(float));
}

size_t rvk_act_bytes(size_t k) {
    return rvk_act_off_bsum(k) + up64(k / 16 * sizeof(int16_t));
}

/* Every ladder returns at the first level that is missing, so nothing above it is in use. */
static unsigned without_gaps(unsigned cpu) {
    if (!(cpu & RVK_AVX2)) return 0;
    return cpu & RVK_AVX512 ? cpu : RVK_AVX2;
}

void rvk_init(unsigned cpu) {
    rvk_table t = {.cpu = without_gaps(cpu & rvk_cpu())};
    rvk_init_quant(&t, t.cpu);
    rvk_init_dot(&t, t.cpu);
    rvk_init_norm(&t, t.cpu);
    rvk_init_rope(&t, t.cpu);
    rvk_init_act(&t, t.cpu);
    rvk_init_attn(&t, t.cpu);
    rvk = t;
}
