/* The cancel flag: set by one thread, looked at by another. */
#include "base/base.h"

struct rv_cancel {
    atomic_bool on;
};

rv_status rv_cancel_new(rv_cancel **out, rv_err *err) {
    rv_err_clear(err);
    *out = rv_calloc(1, sizeof **out);
    return *out ? RV_OK : rv_fail(err, RV_ENOMEM, "cancel flag: out of memory");
}

void rv_cancel_free(rv_cancel **c) {
    rv_free(*c);
    *c = NULL;
}

void rv_cancel_set(rv_cancel *c, bool on) {
    atomic_store_explicit(&c->on, on, memory_order_relaxed);
}

bool rv_cancel_get(const rv_cancel *c) {
    return atomic_load_explicit(&c->on, memory_order_relaxed);
}
