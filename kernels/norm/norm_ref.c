#include "rvk.h"

void rvk_init_norm(rvk_table *t, unsigned cpu) {
    (void)t, (void)cpu;
}
