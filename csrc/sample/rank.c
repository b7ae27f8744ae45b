/* Order and sums over a vocabulary.  The idea to hold: a candidate is a single 64-bit key whose
 * integer order is the wanted order, so selection is a heap of integers with no ties to think of.
 *
 * Heaps, because a vocabulary of 150 000 is looked at for a few dozen entries: a bounded heap for
 * "the best k", and a heap of everything read lazily where the number needed is not known before
 * (top-p, a draw).  Both have a worst case of O(n log n) for any input, which quickselect has not.
 *
 * The exponential is written out because the C library's differs between systems in the last bit,
 * and a drawn token must not; two at a time it is also faster. */
#include "sample/rank.h"

#include <math.h>
#include <string.h>

uint64_t rv_rank_key(float value, int32_t id) {
    uint32_t u;
    value += 0.0f; /* -0 + 0 is 0: equal values have equal ranks */
    memcpy(&u, &value, sizeof u);
    /* Positive floats order as their bits, negative ones in reverse; complement: great first. */
    u = u >> 31 ? u : ~u & 0x7FFFFFFFu;
    return (uint64_t)u << 32 | (uint32_t)id;
}

float rv_rank_value(uint64_t key) {
    uint32_t u = (uint32_t)(key >> 32);
    float value;
    u = u >> 31 ? u : ~u & 0x7FFFFFFFu;
    memcpy(&value, &u, sizeof value);
    return value;
}

/* Heaps with the greatest (sift_max) or smallest (sift_min) key at index 0. */
static void sift_max(uint64_t *h, size_t i, size_t n) {
    uint64_t key = h[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && h[child + 1] > h[child];
        if (h[child] <= key) break;
        h[i] = h[child];
    }
    h[i] = key;
}

static void sift_min(uint64_t *h, size_t i, size_t n) {
    uint64_t key = h[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && h[child + 1] < h[child];
        if (h[child] >= key) break;
        h[i] = h[child];
    }
    h[i] = key;
}

size_t rv_rank_best(uint64_t *keys, size_t k, const float *x, size_t n) {
    size_t m = 0, i = 0;
    for (; i < n && m < k; i++)
        if (x[i] > -INFINITY) keys[m++] = rv_rank_key(x[i], (int32_t)i);
    for (size_t j = m / 2; j-- > 0;) sift_max(keys, j, m);
    if (m == k && k > 0) {
        float worst = rv_rank_value(keys[0]);
        for (; i < n; i++) {
            if (!(x[i] > worst)) continue; /* an equal value later has the greater id: it loses */
            keys[0] = rv_rank_key(x[i], (int32_t)i);
            sift_max(keys, 0, k);
            worst = rv_rank_value(keys[0]);
        }
    }
    for (size_t left = m; left-- > 1;) {
        uint64_t last = keys[0];
        keys[0] = keys[left];
        keys[left] = last;
        sift_max(keys, 0, left);
    }
    return m;
}

void rv_rank_begin(uint64_t *keys, size_t n) {
    for (size_t i = n / 2; i-- > 0;) sift_min(keys, i, n);
}

uint64_t rv_rank_take(uint64_t *keys, size_t n_left) {
    uint64_t first = keys[0];
    keys[0] = keys[n_left - 1];
    keys[n_left - 1] = first;
    if (n_left > 2) sift_min(keys, 0, n_left - 1);
    return first;
}

/* Two lanes by the compilers' vector extension: the plain loop is left scalar by gcc, which may not
 * move a comparison that could trap.  Lanes do not mix, so a scalar is either lane. */
typedef double f64x2 __attribute__((vector_size(16)));
typedef int64_t i64x2 __attribute__((vector_size(16)));
typedef uint64_t u64x2 __attribute__((vector_size(16)));

static inline f64x2 both(double x) {
    return (f64x2){x, x};
}

/* exp(x) = 2^n * exp(r), n the integer nearest x / ln 2, |r| <= ln 2 / 2; ln 2 in two parts as in
 * fdlibm, so that n * LN2_HI is exact; the Taylor series to r^13 leaves 4e-18. */
static inline f64x2 exp_neg(f64x2 x) {
    static const double INV_FACTORIAL[] = {
        1.0 / 6227020800.0,
        1.0 / 479001600.0,
        1.0 / 39916800.0,
        1.0 / 3628800.0,
        1.0 / 362880.0,
        1.0 / 40320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
        1.0,
        1.0,
    };
    const double LOG2E = 0x1.71547652b82fep+0, MAGIC = 0x1.8p52;
    const double LN2_HI = 0x1.62e42fee00000p-1, LN2_LO = 0x1.a39ef35793c76p-33;
    /* Below -708, -inf too, take -708: 3e-308 is nothing beside the 1 of the greatest. */
    i64x2 normal = x > both(-708.0);
    x = (f64x2)(((i64x2)x & normal) | ((i64x2)both(-708.0) & ~normal));
    f64x2 shifted = x * LOG2E + MAGIC; /* the low bits of shifted are n */
    f64x2 n = shifted - MAGIC;
    f64x2 r = (x - n * LN2_HI) - n * LN2_LO;
    f64x2 p = both(INV_FACTORIAL[0]);
    for (size_t i = 1; i < sizeof INV_FACTORIAL / sizeof INV_FACTORIAL[0]; i++)
        p = p * r + INV_FACTORIAL[i];
    return (f64x2)((u64x2)p + ((u64x2)shifted << 52));
}

double rv_exp_neg(double x) {
    return x < -708.0 ? 0.0 : exp_neg(both(x))[0];
}

static double add_lanes(const f64x2 s[4]) {
    f64x2 t = (s[0] + s[2]) + (s[1] + s[3]);
    return t[0] + t[1];
}

double rv_exp_sum(const float *x, size_t n, float max) {
    f64x2 sum[4] = {both(0), both(0), both(0), both(0)};
    const double m = max;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 4; j++)
            sum[j] += exp_neg((f64x2){x[i + 2 * j], x[i + 2 * j + 1]} - m);
    for (size_t j = 0; i + j < n; j++) sum[j / 2][j % 2] += exp_neg(both(x[i + j] - m))[0];
    return add_lanes(sum);
}

double rv_rank_exp_sum(const uint64_t *keys, size_t n, float max, double t) {
    f64x2 sum[4] = {both(0), both(0), both(0), both(0)};
    const double m = max;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (size_t j = 0; j < 4; j++) {
            const uint64_t *k = keys + i + 2 * j;
            sum[j] += exp_neg(((f64x2){rv_rank_value(k[0]), rv_rank_value(k[1])} - m) / t);
        }
    }
    for (size_t j = 0; i + j < n; j++)
        sum[j / 2][j % 2] += exp_neg(both((rv_rank_value(keys[i + j]) - m) / t))[0];
    return add_lanes(sum);
}
