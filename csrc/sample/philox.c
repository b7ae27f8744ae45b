/* The random numbers of sampling.  There is no state: the number of token i is the i-th block of
 * the stream that the seed names, so it does not depend on what was drawn before, on the batch,
 * or on how often a step was repeated.
 *
 * Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, table 2 and
 * section 3.3 (multipliers, Weyl constants, ten rounds). */
#include "sample/philox.h"

static const uint32_t MUL0 = 0xD2511F53u, MUL1 = 0xCD9E8D57u;   /* round multipliers */
static const uint32_t WEYL0 = 0x9E3779B9u, WEYL1 = 0xBB67AE85u; /* added to the key per round */

void rv_philox4x32(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)MUL0 * c0, p1 = (uint64_t)MUL1 * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += WEYL0;
        k1 += WEYL1;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

double rv_philox_uniform(uint64_t seed, uint64_t pos) {
    const uint32_t ctr[4] = {(uint32_t)pos, (uint32_t)(pos >> 32), 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t b[4];
    rv_philox4x32(ctr, key, b);
    uint64_t bits = ((uint64_t)b[0] << 32 | b[1]) >> 11;
    return (double)bits * 0x1p-53;
}
