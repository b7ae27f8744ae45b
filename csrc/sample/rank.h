/* Ranking a vocabulary without sorting it, and the exponentials of a softmax. */
#ifndef RV_RANK_H
#define RV_RANK_H

#include <stddef.h>
#include <stdint.h>

/* A candidate is one number: rank of its value (greater values first), then its id.  Ascending
 * keys are falling values with ties by id, and no two keys are equal, so every order is total. */
uint64_t rv_rank_key(float value, int32_t id); /* value: not NaN; -0 ranks as 0 */
float rv_rank_value(uint64_t key);
static inline int32_t rv_rank_id(uint64_t key) {
    return (int32_t)(uint32_t)key;
}

/* Write the keys of the k greatest of x[0 .. n), ids 0 .. n - 1, in order; values of -inf are left
 * out.  Returns how many there are, at most k.  No NaN.  O(n + k log n log k) for x in any usual
 * order, O(n log k) for rising x. */
size_t rv_rank_best(uint64_t *keys, size_t k, const float *x, size_t n);

/* Read keys in order as far as needed: O(n) to begin, O(log n) per key.
 * Each key taken moves to the end of what is left: after m takes, keys[n - 1 - i] is the i-th. */
void rv_rank_begin(uint64_t *keys, size_t n);
uint64_t rv_rank_take(uint64_t *keys, size_t n_left); /* n_left >= 1, before the take */

/* exp(x) for x <= 0, within 2 ulp; 0 below -708.  The same bits on every machine. */
double rv_exp_neg(double x);
/* Sums in a fixed order: eight partial sums, index mod 8.  Every value <= max, max finite. */
double rv_exp_sum(const float *x, size_t n, float max); /* of exp(x[i] - max) */
double rv_rank_exp_sum(const uint64_t *keys, size_t n, float max, double t); /* (value - max) / t */

#endif
