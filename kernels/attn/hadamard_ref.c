/* The orthonormal Hadamard transform (Sylvester's order), of parts of a row where its size is no
 * power of two.  One version for every ISA: sums and differences of two values have the same bits
 * however many a register holds. */
#include <math.h>

#include "rvk.h"

static void butterflies(float *restrict a, float *restrict b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const float x = a[i], y = b[i];
        a[i] = x + y;
        b[i] = x - y;
    }
}

void rvk_hadamard(float *x, size_t n, size_t ld, size_t d) {
    const size_t order = d & (~d + 1);
    const float by = (float)(1.0 / sqrt((double)order));
    for (size_t r = 0; r < n; r++) {
        float *row = x + r * ld;
        for (size_t half = 1; half < order; half *= 2)
            for (size_t i = 0; i < d; i += 2 * half) butterflies(row + i, row + i + half, half);
        for (size_t i = 0; i < d; i++) row[i] *= by;
    }
}
