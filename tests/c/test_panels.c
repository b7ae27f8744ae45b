/* kernels: panels.  Packing against the plain version byte for byte; products of panels and of rows
 * against each other and across instruction sets, bit for bit, in every shape and with nothing
 * readable behind the operands; float products across instruction sets.  That the bits are right is
 * the business of test_kernels. */
#include <sys/mman.h>
#include <unistd.h>

#include "rvk.h"
#include "test.h"

enum { ROWS = 33, COLS = 20, MAX_K = 2816, LDY = ROWS + 2 };

static const unsigned MASKS[] = {RVK_AVX2, RVK_AVX2 | RVK_AVX512, RVK_ALL};

/* Memory of n bytes that ends where a page does, with nothing behind it. */
typedef struct guarded {
    uint8_t *p, *base;
    size_t n_map;
} guarded;

static guarded guard_new(size_t n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n + page - 1) / page * page;
    guarded g = {.n_map = body + page};
    g.base = mmap(NULL, g.n_map, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(g.base != MAP_FAILED);
    CHECK(mprotect(g.base + body, page, PROT_NONE) == 0);
    g.p = g.base + body - n;
    return g;
}

static void guard_free(guarded *g) {
    munmap(g->base, g->n_map);
}

/* Rows that the quantiser made: all codes appear, all numbers are finite. */
static void fill_rows(uint8_t *w, int type, size_t n_rows, size_t k, uint64_t *rng) {
    static float v[MAX_K];
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t i = 0; i < k; i++) v[i] = rv_test_uniform(rng);
        rvk.quant[type](w + r * rvk_row_bytes(type, k), v, k);
    }
}

/* Columns of all kinds: random, full swing (every |q| is 127), zeros. */
static void fill_columns(uint8_t *x, size_t n_cols, size_t k, uint64_t *rng) {
    static float v[MAX_K];
    for (size_t c = 0; c < n_cols; c++) {
        for (size_t i = 0; i < k; i++)
            v[i] = c == 1   ? 1.0f
                   : c == 2 ? i % 2 ? -1.0f : 1.0f
                   : c == 3 ? -1.0f
                   : c == 4 ? 0.0f
                            : rv_test_uniform(rng);
        rvk.act_pack(x + c * rvk_act_bytes(k), v, k);
    }
}

static size_t panels_bytes(int type, size_t n_rows, size_t k) {
    return (n_rows + RVK_PANEL_ROWS - 1) / RVK_PANEL_ROWS * rvk_panel_bytes(type, k);
}

static void pack_all(uint8_t *dst, int type, const uint8_t *w, size_t n_rows, size_t k) {
    const size_t row = rvk_row_bytes(type, k);
    for (size_t r = 0; r < n_rows; r += RVK_PANEL_ROWS)
        rvk.panel_pack(dst + r / RVK_PANEL_ROWS * rvk_panel_bytes(type, k), type, w + r * row, row,
                       n_rows - r < RVK_PANEL_ROWS ? n_rows - r : RVK_PANEL_ROWS, k);
}

/* Every number of rows of the last panel, against the plain version. */
static void pack_one(int type, size_t k, uint64_t *rng) {
    const size_t row = rvk_row_bytes(type, k), w_bytes = RVK_PANEL_ROWS * row;
    const size_t n = rvk_panel_bytes(type, k);
    guarded w = guard_new(w_bytes), want = guard_new(n), got = guard_new(n);
    fill_rows(w.p, type, RVK_PANEL_ROWS, k, rng);
    for (size_t n_rows = 1; n_rows <= RVK_PANEL_ROWS; n_rows++) {
        const uint8_t *at = w.p + w_bytes - n_rows * row;
        rvk_init(0);
        memset(want.p, 0xa5, n); /* not every byte is used */
        rvk.panel_pack(want.p, type, at, row, n_rows, k);
        for (size_t i = 0; i < RV_COUNT(MASKS); i++) {
            rvk_init(MASKS[i]);
            memset(got.p, 0xa5, n);
            rvk.panel_pack(got.p, type, at, row, n_rows, k);
            CHECK(memcmp(got.p, want.p, n) == 0);
        }
    }
    guard_free(&w), guard_free(&want), guard_free(&got);
}

/* One shape: rows and panels of every instruction set give the bits of all[c][r]. */
static void mul_shape(int type, size_t k, const uint8_t *w, const uint8_t *x, size_t n_rows,
                      size_t n_cols, const float (*all)[ROWS]) {
    const size_t row = rvk_row_bytes(type, k), n_p = panels_bytes(type, n_rows, k);
    const size_t r0 = ROWS - n_rows, c0 = COLS - n_cols; /* operands end at their guards */
    guarded p = guard_new(n_p), y = guard_new(((n_cols - 1) * LDY + n_rows) * sizeof(float));
    const uint8_t *wr = w + r0 * row, *xc = x + c0 * rvk_act_bytes(k);
    float *yp = (float *)(void *)y.p;
    pack_all(p.p, type, wr, n_rows, k);
    for (int panels = 0; panels < 2; panels++) {
        if (panels && !rvk.mul_panels[type]) break;
        const size_t ny = (n_cols - 1) * LDY + n_rows;
        for (size_t i = 0; i < ny; i++) yp[i] = 77.0f;
        if (panels)
            rvk.mul_panels[type](yp, LDY, p.p, n_rows, xc, rvk_act_bytes(k), n_cols, k);
        else
            rvk.mul[type](yp, LDY, wr, row, n_rows, xc, rvk_act_bytes(k), n_cols, k);
        for (size_t i = 0; i < ny; i++) {
            const size_t c = i / LDY, r = i % LDY;
            if (r >= n_rows)
                CHECK(yp[i] == 77.0f);
            else
                CHECK(memcmp(yp + i, &all[c0 + c][r0 + r], sizeof *yp) == 0);
        }
    }
    guard_free(&p), guard_free(&y);
}

static void mul_one(int type, size_t k, uint64_t *rng) {
    const size_t row = rvk_row_bytes(type, k);
    static float all[COLS][ROWS];
    guarded w = guard_new(ROWS * row), x = guard_new(COLS * rvk_act_bytes(k));
    fill_rows(w.p, type, ROWS, k, rng);
    fill_columns(x.p, COLS, k, rng);
    rvk_init(RVK_ALL);
    rvk.mul[type](all[0], ROWS, w.p, row, ROWS, x.p, rvk_act_bytes(k), COLS, k);
    for (size_t i = 0; i < RV_COUNT(MASKS); i++) {
        rvk_init(MASKS[i]);
        for (size_t s = 0; s < ROWS; s++) /* every number of rows and of columns */
            mul_shape(type, k, w.p, x.p, s + 1, 1 + s % COLS, all);
        mul_shape(type, k, w.p, x.p, ROWS, 1, all);
        mul_shape(type, k, w.p, x.p, ROWS, COLS, all);
    }
    guard_free(&w), guard_free(&x);
    rvk_init(RVK_ALL);
}

static const size_t BY_32[] = {32, 64, 96, 160, 256, 1024, 1056, 2272};
static const size_t BY_256[] = {256, 512, 768, 1024, 1280, 2816};

static void each(void (*fn)(int type, size_t k, uint64_t *rng)) {
    uint64_t rng = 11;
    for (int type = 0; type < RVK_N_TYPES; type++) {
        if (!rvk_dtypes[type].name || !rvk_dtypes[type].act_q8) continue;
        const bool small = rvk_dtypes[type].block_values == 32;
        const size_t n = small ? RV_COUNT(BY_32) : RV_COUNT(BY_256);
        for (size_t i = 0; i < n; i++) fn(type, small ? BY_32[i] : BY_256[i], &rng);
    }
    rvk_init(RVK_ALL);
}

static void panels_pack(void) {
    each(pack_one);
}

/* The versions of AVX2 and AVX-512 VNNI promise the same bits. */
static void panels_mul(void) {
    if (rvk_cpu() & RVK_AVX2) each(mul_one);
}

/* More columns than a walk takes at once, and rows that are not packed tightly. */
static void panels_many_columns(void) {
    enum { N = 300, R = 18, K = 512 };
    uint64_t rng = 5;
    const size_t row = rvk_row_bytes(RVK_Q4_K, K), stride = row + 12, xs = rvk_act_bytes(K);
    uint8_t *w = rv_alloc_aligned(R * stride), *x = rv_alloc_aligned(N * xs);
    float *y = rv_malloc(N * R * sizeof *y), one[R];
    for (size_t r = 0; r < R; r++) fill_rows(w + r * stride, RVK_Q4_K, 1, K, &rng);
    for (size_t c = 0; c < N; c++) fill_columns(x + c * xs, 1, K, &rng);
    for (size_t i = 0; i < RV_COUNT(MASKS); i++) {
        rvk_init(MASKS[i]);
        rvk.mul[RVK_Q4_K](y, R, w, stride, R, x, xs, N, K);
        for (size_t c = 0; c < N; c++) {
            rvk.mul[RVK_Q4_K](one, R, w, stride, R, x + c * xs, xs, 1, K);
            CHECK(memcmp(one, y + c * R, sizeof one) == 0);
        }
    }
    rvk_init(RVK_ALL);
    rv_free(w), rv_free(x), rv_free(y);
}

/* Float weights: rows by columns of every shape, the same bits with AVX2 as with AVX-512. */
static void floats_same_bits(void) {
    enum { R = 7, C = 9, K = 2100 };
    static float v[R * K], x[C * K], want[C][R], got[C][R];
    static uint8_t w[R * K * sizeof(float)];
    static const int types[] = {RVK_F32, RVK_F16, RVK_BF16};
    static const size_t ks[] = {1, 15, 16, 31, 256, 1024, 1025, 1048, K};
    uint64_t rng = 7;
    if (!(rvk_cpu() & RVK_AVX512)) return;
    for (size_t i = 0; i < R * K; i++) v[i] = rv_test_uniform(&rng);
    for (size_t i = 0; i < C * K; i++) x[i] = rv_test_uniform(&rng);
    for (size_t i = 0; i < RV_COUNT(types) * RV_COUNT(ks); i++) {
        const int type = types[i % RV_COUNT(types)];
        const size_t k = ks[i / RV_COUNT(types)], row = rvk_row_bytes(type, k);
        for (size_t r = 0; r < R; r++) rvk.quant[type](w + r * row, v + r * k, k);
        rvk_init(RVK_ALL);
        rvk.mul[type](want[0], R, w, row, R, x, k * sizeof *x, C, k);
        rvk_init(RVK_AVX2);
        for (size_t n = 1; n <= C; n++) {
            const size_t n_rows = 1 + n % R;
            memset(got, 0, sizeof got);
            rvk.mul[type](got[0], R, w, row, n_rows, x, k * sizeof *x, n, k);
            for (size_t c = 0; c < n; c++)
                CHECK(memcmp(got[c], want[c], n_rows * sizeof *want[c]) == 0);
        }
        rvk_init(RVK_ALL);
    }
}

const rv_test tests_panels[] = {
    {"panels_pack", panels_pack},
    {"panels_mul", panels_mul},
    {"panels_many_columns", panels_many_columns},
    {"floats_same_bits", floats_same_bits},
    {NULL, NULL},
};
