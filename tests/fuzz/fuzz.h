/* What a fuzz target offers and what drives it: libFuzzer's names, so that the same target runs
 * under libFuzzer (clang) and under replay_main.c (any compiler). */
#ifndef RV_FUZZ_H
#define RV_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* A target defines the first; the second is optional.  The driver defines the third. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* A property that must hold for every input: stop where a debugger and a sanitizer see it. */
#define FUZZ_CHECK(cond)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: property failed: %s\n", __FILE__, __LINE__, #cond);            \
            __builtin_trap();                                                                      \
        }                                                                                          \
    } while (0)

#endif
