#include "rvk.h"

void rvk_init_dot(rvk_table *t, unsigned cpu) {
    (void)t, (void)cpu;
}
