/* Philox4x32-10: a random number that is a pure function of a key and a counter. */
#ifndef RV_PHILOX_H
#define RV_PHILOX_H

#include <stdint.h>

/* The 128-bit block out[4] of counter ctr[4] under key key[2]. */
void rv_philox4x32(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4]);
/* The number of (seed, pos): uniform on the multiples of 2^-53 in [0, 1). */
double rv_philox_uniform(uint64_t seed, uint64_t pos);

#endif
