/* The shapes of the types' panels, and packing one in plain C. */
#include "dot/panel.h"

#include <string.h>

#define TYPE(isa, name, NUMBER) [RVK_##NUMBER] = RVK_PANEL_##name,
const rvk_panel_type rvk_panel_types[RVK_N_TYPES] = {RVK_MUL_QUANTS(TYPE, ref)};

size_t rvk_panel_bytes(int type, size_t k) {
    const rvk_panel_type t = rvk_panel_types[type];
    const size_t unit = (size_t)rvk_unit_blocks(t) * RVK_QK, n_units = (k + unit - 1) / unit;
    const size_t n_blocks = k / rvk_dtypes[type].block_values;
    return n_units * rvk_panel_d_bytes(t) + n_blocks * (size_t)t.n_words * 64;
}

void rvk_panel_pack_ref(RVK_PACK_ARGS) {
    const rvk_panel_type *t = &rvk_panel_types[type];
    const size_t n_words = (size_t)t->n_words, bytes = rvk_dtypes[type].block_bytes;
    const size_t per = n_words > 8 ? 1 : 4, n_blocks = k / rvk_dtypes[type].block_values;
    uint8_t *d = dst, *words = dst;
    for (size_t b = 0; b < n_blocks; b++, words += n_words * 64) {
        if (b % per == 0) {
            d = words;
            words += rvk_panel_d_bytes(*t);
        }
        for (size_t r = 0; r < RVK_PANEL_ROWS; r++) {
            const uint8_t *p =
                (const uint8_t *)w + (r < n_rows ? r : n_rows - 1) * w_stride + b * bytes;
            if (t->d_at >= 0) memcpy(d + (b % per * RVK_PANEL_ROWS + r) * 2, p + t->d_at, 2);
            for (size_t i = 0; i < n_words; i++)
                memcpy(words + (rvk_panel_at(type, i) * RVK_PANEL_ROWS + r) * 4,
                       p + (t->d_at == 0 ? 2 : 0) + 4 * i, 4);
        }
    }
}
