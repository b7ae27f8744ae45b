/* How much memory the system could still give without swapping. */
#include <stdio.h>

#include "base/base.h"

uint64_t rv_memory_available(void) {
#if defined(__linux__)
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kib = 0;
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f))
        found = sscanf(line, "MemAvailable: %llu kB", &kib) == 1;
    if (f) fclose(f);
    if (found) return kib * 1024;
#endif
    return UINT64_MAX;
}
