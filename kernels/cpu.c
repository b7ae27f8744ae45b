/* What this CPU can run, and what the operating system lets it keep. */
#include <stdio.h>

#include "rvk.h"

#if defined(__x86_64__)
#include <cpuid.h>

unsigned rvk_cpu(void) {
    unsigned a, b, c, d, lo, hi, cpu = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    const bool fma_f16c = (c & bit_FMA) && (c & bit_F16C);
    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if ((lo & 0x06) == 0x06 && (b & bit_AVX2) && fma_f16c) cpu |= RVK_AVX2;
    const unsigned f512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    if ((cpu & RVK_AVX2) && (lo & 0xe6) == 0xe6 && (b & f512) == f512) {
        cpu |= RVK_AVX512;
        if ((c & bit_AVX512VNNI) && (c & bit_AVX512VBMI)) cpu |= RVK_VNNI;
        unsigned a1, b1, c1, d1;
        if (__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 & (1u << 5))) cpu |= RVK_BF16_DOT;
    }
    return cpu;
}
#else
unsigned rvk_cpu(void) {
    return 0;
}
#endif

const char *rvk_cpu_names(unsigned cpu) {
    static char names[RVK_ALL + 1][40]; /* each cell is only ever written with the same bytes */
    char *s = names[cpu & RVK_ALL];
    snprintf(s, sizeof names[0], "%s%s%s%s", cpu & RVK_AVX2 ? "avx2" : "portable",
             cpu & RVK_AVX512 ? " avx512" : "", cpu & RVK_VNNI ? " vnni" : "",
             cpu & RVK_BF16_DOT ? " bf16" : "");
    return s;
}
