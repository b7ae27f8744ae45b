/* kernels: quant and dot.  Every pointer, every instruction set this machine has, awkward sizes
 * and values, against double; and what the contracts promise about bits and about reading. */
#include <math.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dot/panel.h"
#include "quant/unpack.h"
#include "test.h"

static const unsigned MASKS[] = {0,
                                 RVK_AVX2,
                                 RVK_AVX2 | RVK_AVX512,
                                 RVK_AVX2 | RVK_AVX512 | RVK_VNNI,
                                 RVK_AVX2 | RVK_AVX512 | RVK_BF16_DOT,
                                 RVK_ALL};

/* Fill the table for masks the machine has all of; the last one is the full table. */
static bool use_mask(size_t i) {
    if (MASKS[i] != RVK_ALL && (MASKS[i] & ~rvk_cpu())) return false;
    rvk_init(MASKS[i]);
    return true;
}

/* ---- memory that ends where a page does, with nothing behind it ---- */

typedef struct guarded {
    uint8_t *base, *end; /* end: the first byte that may not be touched */
    size_t n_map;
} guarded;

static guarded guard_new(size_t n_bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    guarded g = {.n_map = (n_bytes + page - 1) / page * page + page};
    g.base = mmap(NULL, g.n_map, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(g.base != MAP_FAILED);
    g.end = g.base + g.n_map - page;
    CHECK(mprotect(g.end, page, PROT_NONE) == 0);
    return g;
}

static void guard_free(guarded *g) {
    munmap(g->base, g->n_map);
}

/* ---- weights ---- */

/* Where a block keeps its half-precision numbers; -1 ends. */
static const int *halves(int type) {
    static const int q4_k[] = {offsetof(rvk_q4_k, d), offsetof(rvk_q4_k, dmin), -1};
    static const int q4_1[] = {offsetof(rvk_q4_1, d), offsetof(rvk_q4_1, m), -1};
    static const int q2_k[] = {offsetof(rvk_q2_k, d), offsetof(rvk_q2_k, dmin), -1};
    static const int q3_k[] = {offsetof(rvk_q3_k, d), -1}, q6_k[] = {offsetof(rvk_q6_k, d), -1};
    static const int first[] = {0, -1};
    switch (type) {
    case RVK_Q4_K:
    case RVK_Q5_K: return q4_k;
    case RVK_Q4_1:
    case RVK_Q5_1: return q4_1;
    case RVK_Q2_K: return q2_k;
    case RVK_Q3_K: return q3_k;
    case RVK_Q6_K: return q6_k;
    default: return first;
    }
}

enum { RANDOM, ONES, ZEROS, TINY_SCALE, NEGATIVE_ZERO, LOW_BYTES, N_FILLS };

/* Fill rows of k values with legal blocks: any bits but in the half-precision numbers. */
static void fill_weights(uint8_t *w, int type, size_t n_bytes, int how, uint64_t *rng) {
    const rvk_dtype_info *t = &rvk_dtypes[type];
    for (size_t i = 0; i < n_bytes; i++)
        w[i] = how == RANDOM || how == TINY_SCALE ? (uint8_t)rv_test_rand(rng)
               : how == ONES                      ? 0xff
               : how == LOW_BYTES                 ? 0x80
                                                  : 0;
    for (size_t b = 0; b + t->block_bytes <= n_bytes; b += t->block_bytes) {
        if (type == RVK_F32) {
            const float f = how == ZEROS           ? 0.0f
                            : how == TINY_SCALE    ? 1e-40f
                            : how == NEGATIVE_ZERO ? -0.0f
                                                   : rv_test_uniform(rng);
            memcpy(w + b, &f, sizeof f);
            continue;
        }
        for (const int *o = halves(type); *o >= 0; o++) {
            uint16_t h = rvk_f32_to_f16(rv_test_uniform(rng));
            if (type == RVK_BF16) h = rvk_f32_to_bf16(rv_test_uniform(rng));
            if (how == ZEROS) h = 0;
            if (how == TINY_SCALE) h = (uint16_t)(1 + rv_test_rand(rng) % 64);
            if (how == NEGATIVE_ZERO) h = 0x8000;
            if (how == ONES) h = type == RVK_BF16 ? 0x3f80 : 0x7bff; /* 1, 65504 */
            memcpy(w + b + *o, &h, sizeof h);
        }
    }
}

/* One row as doubles, and the magnitudes the error bound of mul counts. */
static void row_values(double *v, double *mag, int type, const uint8_t *row, size_t k) {
    const rvk_dtype_info *t = &rvk_dtypes[type];
    for (size_t i = 0; i < k; i += t->block_values, row += t->block_bytes) {
        if (t->block_values == 1) {
            float f;
            rvk.dequant[type](&f, row, 1);
            v[i] = f, mag[i] = fabs(v[i]);
            continue;
        }
        rvk_block b;
        rvk_unpack(&b, type, row);
        for (size_t j = 0; j < t->block_values; j++) {
            v[i + j] = (double)b.s[j / 16] * b.q[j] - b.m[j / 16];
            mag[i + j] = fabs((double)b.s[j / 16] * b.q[j]) + fabs((double)b.m[j / 16]);
        }
    }
}

/* ---- activations ---- */

static void fill_x(float *x, size_t k, size_t c, uint64_t *rng) {
    for (size_t i = 0; i < k; i++) {
        x[i] = rv_test_uniform(rng);
        if (c == 1) x[i] = 3.0f;           /* every q is 127 */
        if (c == 2) x[i] = i % 2 ? -2 : 2; /* and -127 */
        if (c == 3) x[i] = i % 64 < 32 ? 0.0f : -5.0f;
        if (c == 4) x[i] *= 1e-30f;
    }
}

/* rounded: they are of the type of the weights. */
static void x_values(double *v, int type, bool rounded, const uint8_t *x, size_t k) {
    for (size_t i = 0; i < k; i++) {
        if (rounded) {
            float f;
            rvk.dequant[type](&f, x + i * rvk_row_bytes(type, 1), 1);
            v[i] = f;
        } else if (rvk_dtypes[type].act_q8) {
            float d;
            memcpy(&d, x + rvk_act_off_d(k) + i / 32 * sizeof d, sizeof d);
            v[i] = (double)d * ((const int8_t *)x)[i];
        } else {
            float f;
            memcpy(&f, x + i * sizeof f, sizeof f);
            v[i] = f;
        }
    }
}

/* ---- mul ---- */

enum { ROWS = 22, COLS = 9, LDY = ROWS + 3, MAX_K = 4096 };

typedef void mul_fn(float *, size_t, const void *, size_t, size_t, const void *, size_t, size_t,
                    size_t);

typedef struct mul_case {
    int type;
    bool rounded;
    size_t k, w_bytes, x_bytes;
    guarded w, x, y;
    uint8_t *wp, *xp;
    float *yp;
    double want[COLS][ROWS], bound[COLS][ROWS];
} mul_case;

static mul_fn *mul_of(const mul_case *m) {
    return m->rounded ? rvk.mul_rounded[m->type] : rvk.mul[m->type];
}

static void drop_subnormals(double *v, size_t k) {
    for (size_t i = 0; i < k; i++)
        if (fabs(v[i]) < 0x1p-126) v[i] = 0;
}

static void mul_expect(mul_case *m) {
    static double wv[MAX_K], mag[MAX_K], xv[MAX_K];
    for (size_t r = 0; r < ROWS; r++) {
        row_values(wv, mag, m->type, m->wp + r * m->w_bytes, m->k);
        if (m->rounded) drop_subnormals(wv, m->k), drop_subnormals(mag, m->k);
        for (size_t c = 0; c < COLS; c++) {
            x_values(xv, m->type, m->rounded, m->xp + c * m->x_bytes, m->k);
            if (m->rounded) drop_subnormals(xv, m->k);
            double sum = 0, scale = 0;
            for (size_t i = 0; i < m->k; i++) sum += wv[i] * xv[i], scale += mag[i] * fabs(xv[i]);
            m->want[c][r] = sum;
            m->bound[c][r] = ((double)m->k / 16 + 16) * 0x1p-23 * scale;
            if (m->rounded) m->bound[c][r] += (double)m->k * 0x1p-126;
        }
    }
}

/* All rows and columns at once, against double; then every shape and place, against those bits. */
static void mul_check(const mul_case *m) {
    mul_fn *const mul = mul_of(m);
    static float all[COLS][LDY];
    for (size_t i = 0; i < COLS * LDY; i++) all[i / LDY][i % LDY] = 77.0f;
    mul(all[0], LDY, m->wp, m->w_bytes, ROWS, m->xp, m->x_bytes, COLS, m->k);
    for (size_t c = 0; c < COLS; c++) {
        for (size_t r = 0; r < ROWS; r++) {
            const double d = fabs(all[c][r] - m->want[c][r]);
            if (!(d <= m->bound[c][r] + 1e-45))
                fprintf(stderr, "%s cpu %u k %zu row %zu col %zu: %g, want %g +- %g\n",
                        rvk_dtypes[m->type].name, rvk.cpu, m->k, r, c, (double)all[c][r],
                        m->want[c][r], m->bound[c][r]);
            CHECK(d <= m->bound[c][r] + 1e-45);
        }
        for (size_t r = ROWS; r < LDY; r++) CHECK(all[c][r] == 77.0f);
    }
    for (size_t n_cols = 1; n_cols <= COLS; n_cols++) {
        const size_t c0 = COLS - n_cols, n_rows = 1 + (n_cols + 3) % ROWS, r0 = ROWS - n_rows;
        float *y = m->yp - n_cols * n_rows;
        mul(y, n_rows, m->wp + r0 * m->w_bytes, m->w_bytes, n_rows, m->xp + c0 * m->x_bytes,
            m->x_bytes, n_cols, m->k);
        for (size_t c = 0; c < n_cols; c++)
            CHECK(memcmp(y + c * n_rows, &all[c0 + c][r0], n_rows * sizeof *y) == 0);
    }
    static uint8_t moved[ROWS * MAX_K * 4 + 128 * ROWS];
    for (size_t off = 1; off < 64; off += 9) { /* other alignments, another stride */
        const size_t stride = m->w_bytes + off;
        for (size_t r = 0; r < ROWS; r++)
            memcpy(moved + off + r * stride, m->wp + r * m->w_bytes, m->w_bytes);
        float y[ROWS];
        mul(y, ROWS, moved + off, stride, ROWS, m->xp + (off % COLS) * m->x_bytes, m->x_bytes, 1,
            m->k);
        CHECK(memcmp(y, all[off % COLS], sizeof y) == 0);
    }
}

/* Panels are the bytes the contract says, and give the bits that rows give. */
static void panels_check(const mul_case *m) {
    if (m->rounded || !rvk.mul_panels[m->type]) return;
    const size_t bytes = rvk_panel_bytes(m->type, m->k), n = (ROWS + 15) / 16;
    CHECK(bytes % 64 == 0 && bytes >= 16 * m->w_bytes);
    guarded g = guard_new(2 * n * bytes);
    uint8_t *want = g.end - 2 * n * bytes, *p = g.end - n * bytes;
    for (size_t r = 0; r < ROWS; r += 16) {
        const size_t left = RV_MIN(ROWS - r, (size_t)16);
        rvk_panel_pack_ref(want + r / 16 * bytes, m->type, m->wp + r * m->w_bytes, m->w_bytes, left,
                           m->k);
        rvk.panel_pack(p + r / 16 * bytes, m->type, m->wp + r * m->w_bytes, m->w_bytes, left, m->k);
    }
    CHECK(memcmp(p, want, n * bytes) == 0);
    float all[COLS][ROWS];
    rvk.mul[m->type](all[0], ROWS, m->wp, m->w_bytes, ROWS, m->xp, m->x_bytes, COLS, m->k);
    for (size_t n_cols = 1; n_cols <= COLS; n_cols++) {
        const size_t c0 = COLS - n_cols, n_rows = ROWS - n_cols % ROWS;
        float *y = m->yp - n_cols * n_rows;
        rvk.mul_panels[m->type](y, n_rows, p, n_rows, m->xp + c0 * m->x_bytes, m->x_bytes, n_cols,
                                m->k);
        for (size_t c = 0; c < n_cols; c++)
            CHECK(memcmp(y + c * n_rows, all[c0 + c], n_rows * sizeof *y) == 0);
    }
    guard_free(&g);
}

static void mul_one(int type, bool rounded, size_t k, int how, uint64_t *rng) {
    mul_case m = {.type = type, .rounded = rounded, .k = k, .w_bytes = rvk_row_bytes(type, k)};
    CHECK(m.w_bytes > 0);
    m.x_bytes = rounded                   ? m.w_bytes
                : rvk_dtypes[type].act_q8 ? rvk_act_bytes(k)
                                          : k * sizeof(float);
    m.w = guard_new(ROWS * m.w_bytes);
    m.x = guard_new(COLS * m.x_bytes);
    m.y = guard_new(ROWS * COLS * sizeof(float));
    m.wp = m.w.end - ROWS * m.w_bytes;
    m.xp = m.x.end - COLS * m.x_bytes;
    m.yp = (float *)(void *)m.y.end;
    fill_weights(m.wp, type, ROWS * m.w_bytes, how, rng);
    static float x[MAX_K];
    rvk_init(0);
    for (size_t c = 0; c < COLS; c++) {
        fill_x(x, k, c, rng);
        if (rounded)
            rvk.quant[type](m.xp + c * m.x_bytes, x, k);
        else if (rvk_dtypes[type].act_q8)
            rvk.act_pack(m.xp + c * m.x_bytes, x, k);
        else
            memcpy(m.xp + c * m.x_bytes, x, m.x_bytes);
    }
    mul_expect(&m);
    for (size_t i = 0; i < RV_COUNT(MASKS); i++)
        if (use_mask(i) && mul_of(&m)) mul_check(&m), panels_check(&m);
    guard_free(&m.w), guard_free(&m.x), guard_free(&m.y);
}

static void mul_all_types(void) {
    static const size_t by_1[] = {1, 3, 7, 8, 9, 15, 16, 17, 33, 100, 255, 1000, 4096};
    static const size_t by_32[] = {32, 64, 96, 128, 160, 224, 352, 1056, 2304, 4064};
    static const size_t by_256[] = {256, 512, 768, 1280, 4096};
    uint64_t rng = 1;
    for (int type = 0; type < RVK_N_TYPES; type++) {
        const rvk_dtype_info *t = &rvk_dtypes[type];
        CHECK(!t->name == !rvk.mul[type] && !t->name == !rvk.isa_mul[type]);
        if (!t->name) continue;
        const size_t *ks = t->block_values == 1 ? by_1 : t->block_values == 32 ? by_32 : by_256;
        const size_t n = t->block_values == 1    ? RV_COUNT(by_1)
                         : t->block_values == 32 ? RV_COUNT(by_32)
                                                 : RV_COUNT(by_256);
        for (size_t i = 0; i < n; i++) mul_one(type, false, ks[i], RANDOM, &rng);
        for (int how = ONES; how < N_FILLS; how++)
            mul_one(type, false, ks[(n / 2 + (size_t)how) % n], how, &rng);
    }
    rvk_init(RVK_ALL);
}

/* BF16 where the machine multiplies pairs of it, and nothing else; no level below has it. */
static void mul_rounded(void) {
    static const size_t ks[] = {1, 2, 15, 31, 32, 33, 63, 64, 65, 100, 1000, 2304, 4096};
    uint64_t rng = 7;
    for (size_t i = 0; i < RV_COUNT(MASKS); i++) {
        if (!use_mask(i)) continue;
        for (int type = 0; type < RVK_N_TYPES; type++) {
            const bool has = type == RVK_BF16 && (rvk.cpu & RVK_BF16_DOT);
            CHECK(!rvk.mul_rounded[type] == !has && !rvk.isa_mul_rounded[type] == !has);
            if (!has) continue;
            float y[2] = {5, 5};
            uint8_t x[64] = {0}, w[64] = {0};
            rvk.mul_rounded[type](y, 1, w, 0, 0, x, 64, 1, 32);
            rvk.mul_rounded[type](y, 1, w, 0, 1, x, 64, 0, 32);
            CHECK(y[0] == 5 && y[1] == 5);
            rvk.mul_rounded[type](y, 1, w, 0, 1, x, 64, 1, 0);
            CHECK(y[0] == 0 && y[1] == 5);
        }
    }
    for (size_t i = 0; i < RV_COUNT(ks); i++) mul_one(RVK_BF16, true, ks[i], RANDOM, &rng);
    for (int how = ONES; how < N_FILLS; how++) mul_one(RVK_BF16, true, 97, how, &rng);
    rvk_init(RVK_ALL);
}

static void mul_of_nothing(void) {
    for (size_t i = 0; i < RV_COUNT(MASKS); i++) {
        if (!use_mask(i)) continue;
        for (int type = 0; type < RVK_N_TYPES; type++) {
            if (!rvk_dtypes[type].name) continue;
            float y[2] = {5, 5};
            _Alignas(64) uint8_t x[256] = {0}, w[256] = {0};
            rvk.mul[type](y, 1, w, 0, 0, x, 64, 1, 0);
            rvk.mul[type](y, 1, w, 0, 1, x, 64, 0, 0);
            CHECK(y[0] == 5 && y[1] == 5);
            rvk.mul[type](y, 1, w, 0, 1, x, 64, 1, 0);
            CHECK(y[0] == 0 && y[1] == 5);
        }
    }
    rvk_init(RVK_ALL);
}

/* ---- act_pack ---- */

static void act_pack_levels(const float *x, size_t k) {
    const size_t n = rvk_act_bytes(k);
    uint8_t *want = rv_alloc_aligned(n), *got = rv_alloc_aligned(n);
    guarded g = guard_new(k * sizeof *x);
    float *xp = (float *)(void *)g.end - k;
    memcpy(xp, x, k * sizeof *x);
    memset(want, 0, n);
    rvk_init(0);
    rvk.act_pack(want, xp, k);
    for (size_t i = 0; i < RV_COUNT(MASKS); i++) {
        if (!use_mask(i)) continue;
        memset(got, 0, n);
        rvk.act_pack(got, xp, k);
        CHECK(memcmp(want, got, n) == 0);
    }
    for (size_t b = 0; b < k / 32; b++) {
        float d, max = 0;
        int16_t sums[2];
        bool finite = true;
        memcpy(&d, want + rvk_act_off_d(k) + b * 4, sizeof d);
        memcpy(sums, want + rvk_act_off_bsum(k) + b * 4, sizeof sums);
        for (size_t i = 0; i < 32; i++) {
            finite &= isfinite(x[32 * b + i]) != 0;
            max = fmaxf(max, fabsf(x[32 * b + i]));
        }
        CHECK(isnan(d) == !finite);
        int sum[2] = {0, 0};
        for (size_t i = 0; i < 32; i++) {
            const int q = ((int8_t *)want)[32 * b + i];
            sum[i / 16] += q;
            CHECK(q >= -127 && q <= 127);
            if (finite && max >= 0x1p-100f)
                CHECK(fabs((double)d * q - x[32 * b + i]) <= (0.5 + 1e-4) * max / 127);
        }
        CHECK(sum[0] == sums[0] && sum[1] == sums[1]);
    }
    guard_free(&g), rv_free(want), rv_free(got);
}

static void act_pack_same_bits_everywhere(void) {
    static float x[2048];
    uint64_t rng = 3;
    for (size_t k = 32; k <= 2048; k += 32) {
        for (size_t i = 0; i < k; i++)
            x[i] = rv_test_uniform(&rng) * ldexpf(1, (int)(rv_test_rand(&rng) % 8));
        act_pack_levels(x, k);
    }
    const float odd[] = {0.0f,           -0.0f,    1e-45f,    0x1p-100f, 0x1p-101f, 3.4028235e38f,
                         -3.4028235e38f, INFINITY, -INFINITY, NAN,       -NAN,      127.0f,
                         0.5f,           1.5f,     -2.5f,     1e-30f};
    for (size_t a = 0; a < RV_COUNT(odd); a++) {
        for (size_t i = 0; i < 64; i++) x[i] = i == 37 ? 127.0f : (float)i - 31.5f; /* ties */
        x[a * 4 % 64] = odd[a];
        act_pack_levels(x, 64);
        for (size_t i = 0; i < 64; i++) x[i] = odd[a];
        act_pack_levels(x, 64);
    }
    rvk_init(RVK_ALL);
}

/* ---- half precision ---- */

/* Rows of any length, with every kind of value, rounded to BF16. */
static void bf16_rows_same_bits_everywhere(void) {
    enum { MAX = 70 };
    static const uint32_t odd[] = {0,          0x80000000, 1,          0x8000,
                                   0x18000,    0x7f7fffff, 0x7f7f7fff, 0x7f7f8000,
                                   0x7f800000, 0xff800000, 0x7f800001, 0xffc12345};
    guarded gx = guard_new(MAX * sizeof(float)), gy = guard_new(MAX * sizeof(uint16_t));
    uint64_t rng = 11;
    for (int round = 0; round < 200; round++) {
        const size_t n = (size_t)round % (MAX + 1);
        uint8_t *x = gx.end - n * sizeof(float), *y = gy.end - n * sizeof(uint16_t);
        for (size_t i = 0; i < n; i++) {
            const uint32_t r = (uint32_t)rv_test_rand(&rng),
                           u = r % 3 ? r : odd[r / 3 % RV_COUNT(odd)];
            memcpy(x + i * sizeof u, &u, sizeof u);
        }
        for (size_t m = 0; m < RV_COUNT(MASKS); m++) {
            if (!use_mask(m)) continue;
            memset(y, 0, n * sizeof(uint16_t));
            rvk.quant[RVK_BF16](y, (const float *)(const void *)x, n);
            for (size_t i = 0; i < n; i++) {
                float f;
                uint16_t h;
                memcpy(&f, x + i * sizeof f, sizeof f);
                memcpy(&h, y + i * sizeof h, sizeof h);
                CHECK(h == rvk_f32_to_bf16(f));
            }
        }
    }
    guard_free(&gx), guard_free(&gy);
    rvk_init(RVK_ALL);
}

static void halves_round_to_nearest_even(void) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        const float f = rvk_f16_to_f32((uint16_t)h);
        const bool nan = (h & 0x7fff) > 0x7c00;
        CHECK((isnan(f) != 0) == nan);
        CHECK(nan ? isnan(rvk_f16_to_f32(rvk_f32_to_f16(f))) != 0 : rvk_f32_to_f16(f) == h);
        const float b = rvk_bf16_to_f32((uint16_t)h);
        if (!isnan(b))
            CHECK(rvk_f32_to_bf16(b) == h);
        else
            CHECK(isnan(rvk_bf16_to_f32(rvk_f32_to_bf16(b))));
        if ((h & 0x7fff) >= 0x7bff) continue;
        /* the middle of two neighbours goes to the even one, anything off it to the nearer */
        const float next = rvk_f16_to_f32((uint16_t)(h + 1)), mid = (f + next) / 2;
        CHECK(rvk_f32_to_f16(mid) == (h & 1 ? h + 1 : h));
        CHECK(rvk_f32_to_f16(nextafterf(mid, f)) == h);
        CHECK(rvk_f32_to_f16(nextafterf(mid, next)) == h + 1);
    }
    CHECK(rvk_f32_to_f16(65519.996f) == 0x7bff && rvk_f32_to_f16(65520.0f) == 0x7c00);
    CHECK(rvk_f32_to_f16(-1e30f) == 0xfc00 && rvk_f32_to_f16(1e-30f) == 0);
    CHECK(rvk_f32_to_f16(-1e-30f) == 0x8000 && rvk_f32_to_f16(INFINITY) == 0x7c00);
    CHECK(rvk_f32_to_bf16(0x1.01p0f) == 0x3f80 && rvk_f32_to_bf16(0x1.03p0f) == 0x3f82);
    CHECK(rvk_f32_to_bf16(-INFINITY) == 0xff80);
    CHECK(isnan(rvk_bf16_to_f32(rvk_f32_to_bf16(NAN))));
}

/* ---- quant ---- */

/* Worst error of one value as a part of the block's largest magnitude (or of its range). */
static double quant_error(int type) {
    switch (type) {
    case RVK_F32: return 0;
    case RVK_F16: return 0x1p-11;
    case RVK_BF16: return 0x1p-8;
    case RVK_Q8_0: return 0.5 / 127 + 0x1p-10;
    case RVK_Q4_0: return 1.0 / 8 + 0x1p-10; /* the level at the other end is missing */
    case RVK_Q5_0: return 1.0 / 16 + 0x1p-10;
    case RVK_Q4_1: return 1.0 / 15 + 0x1p-9; /* half a step of a range twice as wide */
    case RVK_Q2_K: return 0.7;               /* a search clips some values to serve the others */
    case RVK_Q3_K: return 0.45;
    case RVK_Q4_K:
    case RVK_IQ4_NL:
    case RVK_IQ4_XS: return 0.25;
    case RVK_Q5_K:
    case RVK_Q6_K: return 0.1;
    default: return 1.0 / 31 + 0x1p-9;
    }
}

static void quant_then_dequant(void) {
    enum { K = 512 };
    static float x[K], back[K];
    uint64_t rng = 9;
    for (int type = 0; type < RVK_N_TYPES; type++) {
        CHECK(!rvk.dequant[type] == !rvk_dtypes[type].name);
        if (!rvk.quant[type]) continue;
        guarded g = guard_new(rvk_row_bytes(type, K));
        uint8_t *p = g.end - rvk_row_bytes(type, K);
        for (int round = 0; round < 64; round++) {
            for (size_t i = 0; i < K; i++) x[i] = rv_test_uniform(&rng);
            if (round == 0) memset(x, 0, sizeof x);
            if (round == 1)
                for (size_t i = 0; i < K; i++) x[i] = 0.25f;
            rvk.quant[type](p, x, K);
            rvk.dequant[type](back, p, K);
            for (size_t b = 0; b < K; b += 32) {
                double max = 0;
                for (size_t i = b; i < b + 32; i++) max = fmax(max, fabs(x[i]));
                for (size_t i = b; i < b + 32; i++)
                    CHECK(fabs(back[i] - x[i]) <= quant_error(type) * max);
            }
        }
        guard_free(&g);
    }
    CHECK(rvk.quant[RVK_Q4_0] && rvk.quant[RVK_Q8_0] && rvk.quant[RVK_F16] && rvk.quant[RVK_Q4_K]);
}

/* Weighted: nothing beyond the ends is read or written, and the portable code's bits everywhere. */
static void quant_weighted(void) {
    enum { K = 512 };
    uint64_t rng = 11;
    int n_types = 0;
    for (int type = 0; type < RVK_N_TYPES; type++) {
        if (!rvk.quant_w[type]) continue;
        n_types++;
        const size_t bytes = rvk_row_bytes(type, K);
        guarded g = guard_new(bytes), gx = guard_new(K * sizeof(float)),
                gw = guard_new(K * sizeof(float));
        float *x = (float *)(void *)(gx.end - K * sizeof(float));
        float *w = (float *)(void *)(gw.end - K * sizeof(float));
        uint8_t *p = g.end - bytes, first[K * sizeof(float)];
        for (size_t i = 0; i < K; i++) x[i] = rv_test_uniform(&rng);
        for (size_t i = 0; i < K; i++) w[i] = fabsf(rv_test_uniform(&rng));
        const unsigned masks[] = {0, RVK_AVX2, RVK_AVX2 | RVK_AVX512, RVK_ALL};
        for (size_t m = 0; m < 4; m++) {
            rvk_init(masks[m]);
            rvk.quant_w[type](p, x, w, K);
            if (m == 0) memcpy(first, p, bytes);
            CHECK(memcmp(first, p, bytes) == 0);
        }
        guard_free(&g);
        guard_free(&gx);
        guard_free(&gw);
    }
    CHECK(n_types == 11 && !rvk.quant_w[RVK_Q8_0] && !rvk.quant_w[RVK_F16]);
}

static void dtype_sizes(void) {
    CHECK(rvk_row_bytes(RVK_Q4_0, 64) == 36 && rvk_row_bytes(RVK_Q6_K, 512) == 420);
    CHECK(rvk_row_bytes(RVK_Q4_0, 33) == 0 && rvk_row_bytes(RVK_Q4_K, 128) == 0);
    CHECK(rvk_row_bytes(-1, 32) == 0 && rvk_row_bytes(4, 32) == 0 && rvk_row_bytes(99, 32) == 0);
    for (size_t k = 32; k < 3000; k += 32) {
        CHECK(rvk_act_off_d(k) >= k && rvk_act_off_d(k) % 64 == 0);
        CHECK(rvk_act_off_bsum(k) >= rvk_act_off_d(k) + k / 8 && rvk_act_off_bsum(k) % 64 == 0);
        CHECK(rvk_act_bytes(k) >= rvk_act_off_bsum(k) + k / 8 && rvk_act_bytes(k) % 64 == 0);
    }
}

/* More than there is, and a level without the one below it. */
static void any_mask(void) {
    const unsigned has = rvk_cpu();
    rvk_init(~0u);
    CHECK(rvk.cpu == has);
    for (unsigned mask = 0; mask <= RVK_ALL; mask++) {
        rvk_init(mask | 0x100);
        unsigned want = mask & has;
        if (!(want & RVK_AVX2)) want = 0;
        if (!(want & RVK_AVX512)) want &= RVK_AVX2;
        CHECK(rvk.cpu == want);
        CHECK(want || strcmp(rvk.isa_mul[RVK_Q4_0], "ref") == 0);
    }
    rvk_init(RVK_ALL);
}

const rv_test tests_kernels[] = {
    {"kernels_any_mask", any_mask},
    {"kernels_dtype_sizes", dtype_sizes},
    {"kernels_halves_round_to_nearest_even", halves_round_to_nearest_even},
    {"kernels_bf16_rows_same_bits_everywhere", bf16_rows_same_bits_everywhere},
    {"kernels_quant_then_dequant", quant_then_dequant},
    {"kernels_quant_weighted", quant_weighted},
    {"kernels_act_pack_same_bits_everywhere", act_pack_same_bits_everywhere},
    {"kernels_mul_all_types", mul_all_types},
    {"kernels_mul_rounded", mul_rounded},
    {"kernels_mul_of_nothing", mul_of_nothing},
    {NULL, NULL},
};
