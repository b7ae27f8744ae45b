/* How many threads pay: one per physical core the process may use.  Two hardware threads of one
 * core share its vector units, so a second one slows the first down by as much as it adds. */
#define _GNU_SOURCE /* sched_getaffinity, cpu_set_t */
#include <stdio.h>
#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include "engine/engine.h"

#if defined(__linux__)
/* The lowest hardware thread of cpu's core, or cpu itself when the system does not say. */
static int first_sibling(int cpu) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "re");
    int first = cpu;
    if (!f) return cpu;
    if (fscanf(f, "%d", &first) != 1) first = cpu;
    fclose(f);
    return first;
}

int rv_n_cores(void) {
    cpu_set_t may, counted;
    if (sched_getaffinity(0, sizeof may, &may) != 0) return 1;
    CPU_ZERO(&counted);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &may)) continue;
        int first = first_sibling(cpu);
        CPU_SET(first >= 0 && first < CPU_SETSIZE ? first : cpu, &counted);
    }
    int n = CPU_COUNT(&counted);
    return n < 1 ? 1 : n > 256 ? 256 : n;
}
#else
int rv_n_cores(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 256 ? 256 : (int)n;
}
#endif
