/* One-time set-up of the core. */
#include <pthread.h>

#include "base/base.h"
#include "rvk.h"

static void fill(void) {
    rvk_init(RVK_ALL);
}

void rv_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill);
}
