/* The shapes of the types' panels, and packing one in plain C. */
#include "dot/panel.h"

#include <string.h>

#define TYPE(isa, name, NUMBER) [RVK_##NUMBER] = RVK_PANEL_##name,
const rvk_panel_type rvk_panel_types[RVK_N_TYPES] = {RVK_MUL_QUANTS(TYPE, ref)};

void rvk_panel_pack_ref(RVK_PACK_ARGS) {
    const rvk_panel_type *t = &rvk_panel_types[type];
    const size_t n_words = (size_t)t->n_words, bytes = rvk_dtypes[type].block_bytes;
    const size_t n_blocks = k / rvk_dtypes[type].block_values;
    uint8_t *words = dst, *d = words + n_blocks * n_words * 4 * RVK_PANEL_ROWS;
    for (size_t b = 0; b < n_blocks; b++) {
        for (size_t r = 0; r < RVK_PANEL_ROWS; r++) {
            const uint8_t *p =
                (const uint8_t *)w + (r < n_rows ? r : n_rows - 1) * w_stride + b * bytes;
            for (size_t i = 0; i < n_words; i++)
                memcpy(words + ((b * n_words + i) * RVK_PANEL_ROWS + r) * 4,
                       p + 4 * i + (t->d_at == 0 ? 2 : 0), 4);
            if (t->d_at >= 0) memcpy(d + (b * RVK_PANEL_ROWS + r) * 2, p + t->d_at, 2);
        }
    }
}
