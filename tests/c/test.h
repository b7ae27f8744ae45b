/* The C tests: one table of functions, CHECK, and helpers.  rv_tests --list, rv_tests NAME. */
#ifndef RV_TEST_H
#define RV_TEST_H

#include <stdio.h>
#include <stdlib.h>

#include "base/base.h"

typedef struct rv_test {
    const char *name;
    void (*fn)(void);
} rv_test;

/* Each file of tests defines one such list, ended by {NULL, NULL}; main.c names them all. */
#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #cond);               \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* A small repeatable generator: splitmix64. */
static inline uint64_t rv_test_rand(uint64_t *s) {
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline float rv_test_uniform(uint64_t *s) { /* -1 .. 1 */
    return (float)((double)(rv_test_rand(s) >> 11) * 0x1p-52 - 1.0);
}

#endif
