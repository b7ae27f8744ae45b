/* The budget: see budget.h.  The list of members is guarded by a lock; a member that is being asked
 * is marked busy, so that it cannot leave, and the lock is let go (U2). */
#include "base/budget.h"

#include <pthread.h>

struct rv_budget_member {
    rv_budget *b;
    rv_budget_member *next; /* by priority, then by age */
    char *name;
    int priority;
    rv_budget_shrink shrink;
    void *ctx;
    _Atomic uint64_t held;
    int n_busy; /* threads inside shrink */
};

struct rv_budget {
    atomic_int refs;
    _Atomic uint64_t budget, used, peak, n_refused, n_shrinks;
    pthread_mutex_t lock;
    pthread_cond_t quiet; /* a shrink has ended */
    rv_budget_member *first;
};

rv_status rv_budget_new(rv_budget **out, uint64_t bytes, rv_err *err) {
    *out = NULL;
    rv_budget *b = rv_calloc(1, sizeof *b);
    if (!b) return rv_fail(err, RV_ENOMEM, "memory budget: out of memory");
    atomic_store(&b->refs, 1);
    atomic_store(&b->budget, bytes);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->quiet, NULL);
    *out = b;
    return RV_OK;
}

rv_budget *rv_budget_ref(rv_budget *b) {
    atomic_fetch_add(&b->refs, 1);
    return b;
}

void rv_budget_free(rv_budget **pb) {
    rv_budget *b = *pb;
    *pb = NULL;
    if (!b || atomic_fetch_sub(&b->refs, 1) != 1) return;
    pthread_cond_destroy(&b->quiet);
    pthread_mutex_destroy(&b->lock);
    rv_free(b);
}

rv_status rv_budget_join(rv_budget_member **out, rv_budget *b, const char *name, int priority,
                         rv_budget_shrink shrink, void *ctx, rv_err *err) {
    *out = NULL;
    rv_budget_member *m = rv_calloc(1, sizeof *m);
    if (m) m->name = rv_strndup(name, strlen(name));
    if (!m || !m->name) {
        rv_free(m);
        return rv_fail(err, RV_ENOMEM, "memory budget: out of memory");
    }
    m->b = rv_budget_ref(b);
    m->priority = priority;
    m->shrink = shrink;
    m->ctx = ctx;
    pthread_mutex_lock(&b->lock);
    rv_budget_member **at = &b->first;
    while (*at && (*at)->priority <= priority) at = &(*at)->next;
    m->next = *at;
    *at = m;
    pthread_mutex_unlock(&b->lock);
    *out = m;
    return RV_OK;
}

void rv_budget_leave(rv_budget_member **pm) {
    rv_budget_member *m = *pm;
    *pm = NULL;
    if (!m) return;
    rv_budget *b = m->b;
    pthread_mutex_lock(&b->lock);
    while (m->n_busy) pthread_cond_wait(&b->quiet, &b->lock);
    rv_budget_member **at = &b->first;
    while (*at != m) at = &(*at)->next;
    *at = m->next;
    pthread_mutex_unlock(&b->lock);
    rv_budget_give(m, atomic_load(&m->held));
    rv_free(m->name);
    rv_free(m);
    rv_budget_free(&b);
}

/* ---- taking ---- */

bool rv_budget_try(rv_budget_member *m, uint64_t bytes) {
    rv_budget *b = m->b;
    uint64_t used = atomic_load(&b->used), sum;
    do {
        if (!rv_add_u64(used, bytes, &sum) || sum > atomic_load(&b->budget)) return false;
    } while (!atomic_compare_exchange_weak(&b->used, &used, sum));
    atomic_fetch_add(&m->held, bytes);
    uint64_t peak = atomic_load(&b->peak);
    while (peak < sum && !atomic_compare_exchange_weak(&b->peak, &peak, sum)) {}
    return true;
}

void rv_budget_give(rv_budget_member *m, uint64_t bytes) {
    atomic_fetch_sub(&m->held, bytes);
    atomic_fetch_sub(&m->b->used, bytes);
}

/* How much must go so that bytes fit. */
static uint64_t missing(const rv_budget *b, uint64_t bytes) {
    const uint64_t used = atomic_load(&b->used), budget = atomic_load(&b->budget);
    const uint64_t room = used < budget ? budget - used : 0;
    return bytes > room ? bytes - room : used > budget ? used - budget : 0;
}

/* Ask members in order until bytes fit; whether anyone freed anything. */
static bool ask(rv_budget *b, uint64_t bytes) {
    bool any = false;
    pthread_mutex_lock(&b->lock);
    for (rv_budget_member *m = b->first; m; m = m->next) {
        const uint64_t want = missing(b, bytes);
        if (want == 0) break;
        if (!m->shrink || atomic_load(&m->held) == 0) continue;
        m->n_busy++;
        pthread_mutex_unlock(&b->lock);
        atomic_fetch_add(&b->n_shrinks, 1);
        any |= m->shrink(m->ctx, want);
        pthread_mutex_lock(&b->lock);
        if (--m->n_busy == 0) pthread_cond_broadcast(&b->quiet);
    }
    pthread_mutex_unlock(&b->lock);
    return any;
}

rv_status rv_budget_take(rv_budget_member *m, uint64_t bytes, rv_err *err) {
    rv_budget *b = m->b;
    do {
        if (rv_budget_try(m, bytes)) return RV_OK;
    } while (bytes <= atomic_load(&b->budget) && ask(b, bytes));
    if (rv_budget_try(m, bytes)) return RV_OK;
    atomic_fetch_add(&b->n_refused, 1);
    return rv_fail(err, RV_EFULL, "memory: %s wants %llu bytes, %llu of %llu are in use", m->name,
                   (unsigned long long)bytes, (unsigned long long)atomic_load(&b->used),
                   (unsigned long long)atomic_load(&b->budget));
}

uint64_t rv_budget_resize(rv_budget *b, uint64_t bytes) {
    atomic_store(&b->budget, bytes);
    while (missing(b, 0) && ask(b, 0)) {}
    return missing(b, 0);
}

void rv_budget_get_stats(const rv_budget *b, rv_budget_stats *out) {
    *out = (rv_budget_stats){.budget = atomic_load(&b->budget),
                             .used = atomic_load(&b->used),
                             .peak = atomic_load(&b->peak),
                             .n_refused = atomic_load(&b->n_refused),
                             .n_shrinks = atomic_load(&b->n_shrinks)};
}

uint64_t rv_budget_held(const rv_budget_member *m) {
    return atomic_load(&m->held);
}
