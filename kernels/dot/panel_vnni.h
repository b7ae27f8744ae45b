/* Products of sixteen unpacked rows with many columns: what vnni.h fills and panel_vnni.c walks. */
#ifndef RVK_DOT_PANEL_VNNI_H
#define RVK_DOT_PANEL_VNNI_H

#include "dot/dot.h"

enum {
    
    RVK_PANEL_K = 1024, /* values of a row in a panel: 16 KiB of it stay in the first cache */
    RVK_PANEL_STEPS = RVK_PANEL_K / (4 * RVK_QK),
    RVK_PANEL_MIN_COLS = 6 /* below it unpacking costs more than it saves */
};

/* Which block step s of chain j takes: base(j) + 8 * (s / 2) + delta * (s % 2). */
enum { RVK_PANEL_EVEN = 1, RVK_PANEL_PAIR = 2, RVK_PANEL_SEQ = 4 };
static inline __attribute__((always_inline)) int rvk_panel_base(int delta, int j) {
    return delta == RVK_PANEL_EVEN ? 2 * j : delta == RVK_PANEL_PAIR ? j % 2 + j / 2 * 4 : j;
}

typedef struct rvk_panel_type {
    int delta, minus; /* minus: stored - minus is the value */
    bool has_min;
    bool halves; /* scales and minimums cover 16 values, not 32 */
} rvk_panel_type;

typedef struct rvk_panel {                                             /* [chain][step] */
    _Alignas(64) uint8_t q[4][RVK_PANEL_STEPS][8][4 * RVK_PANEL_ROWS]; /* [values / 4][row][4] */
    float s[4][RVK_PANEL_STEPS][2][RVK_PANEL_ROWS];                    /* [half][row] */
    float m[4][RVK_PANEL_STEPS][2][RVK_PANEL_ROWS];
} rvk_panel;

/* Fill p with n_blocks blocks of 32 from value k0 of the sixteen rows at w. */
typedef void rvk_panel_fn(rvk_panel *p, const uint8_t *w, size_t w_stride, size_t k0,
                          size_t n_blocks);

/* mul for n_rows that are a multiple of RVK_PANEL_ROWS. */
void rvk_panel_mul(const rvk_panel_type *t, rvk_panel_fn *unpack, RVK_MUL_ARGS);

#endif
