/* The budget: see ruvllm.h and budget.h.
 *
 * What is used is one number, changed by compare-and-swap.  The lock guards the lists of members
 * and watches; a member whose function runs is marked busy and the lock is let go (U2).  One thread
 * at a time is in a member's functions: who finds it busy waits, because what comes of that counts
 * for him too, unless he is in some member's function himself, where waiting for each other would
 * have no end. */
#include "base/budget.h"

#include <pthread.h>
#include <stdio.h>

struct rv_budget_member {
    rv_budget *b;
    rv_budget_member *next;
    char *name;
    int priority;
    rv_budget_shrink shrink;
    void (*tell)(void *ctx); /* of a watch */
    void *ctx;
    _Atomic uint64_t held;
    double fraction; /* of a watch; above: it has been told of this rise */
    bool above;
    bool busy;     /* a thread is in shrink or tell */
    bool leaving;  /* nobody calls it any more */
    bool orphan;   /* whoever is in its function frees it */
    uint64_t last; /* clock when it was asked last */
};

struct rv_budget {
    atomic_int refs;
    _Atomic uint64_t budget, used, peak, n_refused, n_shrinks;
    atomic_int n_watches;
    pthread_mutex_t lock;
    pthread_cond_t quiet;    /* a function of a member has returned */
    rv_budget_member *first; /* by priority; of equals the least recently used first */
    rv_budget_member *watch; /* the first watch */
    uint64_t clock, n_freed; /* calls of shrink begun, and those that freed something */
};

/* The functions of members that this thread is in, the innermost first. */
typedef struct visit {
    const rv_budget_member *m;
    struct visit *outer;
} visit;
static _Thread_local visit *t_visit;

static bool inside(const rv_budget_member *m) {
    for (const visit *v = t_visit; v; v = v->outer)
        if (v->m == m) return true;
    return false;
}

rv_status rv_budget_new(rv_budget **out, uint64_t bytes, rv_err *err) {
    rv_err_clear(err);
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

/* ---- members: linking with the lock ---- */

static rv_budget_member **list_of(const rv_budget_member *m) {
    return m->tell ? &m->b->watch : &m->b->first;
}

static void link_member(rv_budget_member *m) {
    rv_budget_member **at = list_of(m);
    while (*at && (*at)->priority <= m->priority) at = &(*at)->next;
    m->next = *at;
    *at = m;
}

static void unlink_member(rv_budget_member *m) {
    rv_budget_member **at = list_of(m);
    while (*at != m) at = &(*at)->next;
    *at = m->next;
}

static void free_member(rv_budget_member *m) {
    rv_budget *b = m->b;
    rv_free(m->name);
    rv_free(m);
    rv_budget_free(&b);
}

static rv_budget_member *new_member(rv_budget *b, const char *name, void *ctx, rv_err *err) {
    rv_budget_member *m = rv_calloc(1, sizeof *m);
    if (m) m->name = rv_strndup(name, strlen(name));
    if (!m || !m->name) {
        rv_free(m);
        rv_fail(err, RV_ENOMEM, "memory budget: out of memory");
        return NULL;
    }
    m->b = rv_budget_ref(b);
    m->ctx = ctx;
    return m;
}

rv_status rv_budget_join(rv_budget_member **out, rv_budget *b, const char *name, int priority,
                         rv_budget_shrink shrink, void *ctx, rv_err *err) {
    rv_err_clear(err);
    rv_budget_member *m = *out = new_member(b, name, ctx, err);
    if (!m) return RV_ENOMEM;
    m->priority = priority;
    m->shrink = shrink;
    pthread_mutex_lock(&b->lock);
    link_member(m);
    pthread_mutex_unlock(&b->lock);
    return RV_OK;
}

void rv_budget_leave(rv_budget_member **pm) {
    rv_budget_member *m = *pm;
    if (!m) return;
    rv_budget *b = m->b;
    const bool own = inside(m);
    pthread_mutex_lock(&b->lock);
    m->leaving = true;
    while (m->busy && !own) pthread_cond_wait(&b->quiet, &b->lock);
    *pm = NULL; /* not before: its function may have read it there */
    pthread_mutex_unlock(&b->lock);
    rv_budget_give(m, atomic_load(&m->held));
    if (m->tell) atomic_fetch_sub(&b->n_watches, 1);
    if (own) {
        m->orphan = true; /* nobody else looks at it */
        return;
    }
    pthread_mutex_lock(&b->lock);
    unlink_member(m);
    pthread_mutex_unlock(&b->lock);
    free_member(m);
}

void rv_budget_use(rv_budget_member *m) {
    pthread_mutex_lock(&m->b->lock);
    if (!m->busy) { /* it is where somebody goes on from */
        unlink_member(m);
        link_member(m);
    }
    pthread_mutex_unlock(&m->b->lock);
}

/* Call a function of a member, with the lock held but for that time; the member behind it. */
static rv_budget_member *call(rv_budget_member *m, uint64_t want) {
    rv_budget *b = m->b;
    visit v = {m, t_visit};
    m->busy = true;
    pthread_mutex_unlock(&b->lock);
    t_visit = &v;
    bool freed = false;
    if (m->tell)
        m->tell(m->ctx);
    else
        freed = m->shrink(m->ctx, want);
    t_visit = v.outer;
    pthread_mutex_lock(&b->lock);
    m->busy = false;
    b->n_freed += freed;
    pthread_cond_broadcast(&b->quiet);
    rv_budget_member *next = m->next;
    if (m->orphan) {
        unlink_member(m);
        free_member(m); /* not the last reference: the caller has one */
    }
    return next;
}

/* ---- watches ---- */

static bool is_over(const rv_budget_member *w) {
    const uint64_t used = atomic_load(&w->b->used);
    return used && (double)used >= w->fraction * (double)atomic_load(&w->b->budget);
}

/* Those that use has fallen below are to be told again. */
static void rearm(rv_budget *b) {
    pthread_mutex_lock(&b->lock);
    for (rv_budget_member *w = b->watch; w; w = w->next) w->above = w->above && is_over(w);
    pthread_mutex_unlock(&b->lock);
}

static void tell(rv_budget *b) {
    if (!atomic_load(&b->n_watches)) return;
    pthread_mutex_lock(&b->lock);
    for (rv_budget_member *w = b->watch; w;) {
        if (w->above || w->busy || w->leaving || !is_over(w)) {
            w = w->next;
            continue;
        }
        w->above = true;
        w = call(w, 0);
    }
    pthread_mutex_unlock(&b->lock);
}

void rv_budget_tell(const rv_budget_member *m) {
    tell(m->b);
}

rv_status rv_budget_watch(rv_budget_member **out, rv_budget *b, double fraction,
                          void (*tell_fn)(void *ctx), void *ctx, rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    if (!(fraction > 0.0 && fraction <= 1.0))
        return rv_fail(err, RV_EARG, "fraction: is %g, want more than 0 and at most 1", fraction);
    rv_budget_member *w = *out = new_member(b, "watch", ctx, err);
    if (!w) return RV_ENOMEM;
    w->tell = tell_fn;
    w->fraction = fraction;
    pthread_mutex_lock(&b->lock);
    w->above = is_over(w);
    link_member(w);
    pthread_mutex_unlock(&b->lock);
    atomic_fetch_add(&b->n_watches, 1);
    return RV_OK;
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
    rv_budget *b = m->b;
    atomic_fetch_sub(&b->used, bytes); /* first, so that what is used can always be asked for */
    atomic_fetch_sub(&m->held, bytes);
    if (atomic_load(&b->n_watches)) rearm(b);
}

/* Ask all but one, in order, until at most so much is used; whether anything was freed since.  Each
 * is asked once; one that is being asked by another thread is waited for and then looked at anew,
 * as is the whole list, because anybody may have left it meanwhile. */
static bool ask(rv_budget *b, const rv_budget_member *but, uint64_t most) {
    pthread_mutex_lock(&b->lock);
    const uint64_t began = b->clock, n_freed = b->n_freed;
    for (rv_budget_member *m = b->first; m;) {
        const uint64_t used = atomic_load(&b->used);
        if (used <= most) break;
        const bool skip = m == but || !m->shrink || m->leaving || atomic_load(&m->held) == 0;
        if (skip || (m->busy ? t_visit != NULL : m->last > began)) {
            m = m->next;
        } else if (m->busy) {
            pthread_cond_wait(&b->quiet, &b->lock);
            m = b->first;
        } else {
            m->last = ++b->clock;
            atomic_fetch_add(&b->n_shrinks, 1);
            m = call(m, used - most);
        }
    }
    const bool any = b->n_freed != n_freed;
    pthread_mutex_unlock(&b->lock);
    return any;
}

/* Bytes of those who can be asked, but for one. */
static uint64_t askable(rv_budget *b, const rv_budget_member *but) {
    uint64_t sum = 0;
    pthread_mutex_lock(&b->lock);
    for (const rv_budget_member *m = b->first; m; m = m->next)
        if (m != but && m->shrink && !m->leaving) sum += atomic_load(&m->held);
    pthread_mutex_unlock(&b->lock);
    return sum;
}

bool rv_budget_ask(rv_budget_member *m, uint64_t want) {
    rv_budget *b = m->b;
    const uint64_t used = atomic_load(&b->used), held = atomic_load(&m->held);
    if (used <= held || want > used - held || want > askable(b, m)) return false;
    return ask(b, m, used - want);
}

/* Who holds how much, as far as it fits into a line. */
static void say_holders(rv_budget *b, char *p, size_t n) {
    size_t at = 0;
    p[0] = 0;
    pthread_mutex_lock(&b->lock);
    for (const rv_budget_member *m = b->first; m; m = m->next) {
        const uint64_t held = atomic_load(&m->held);
        if (!held) continue;
        const int k = snprintf(p + at, n - at, "%s%s %llu", at ? ", " : ": ", m->name,
                               (unsigned long long)held);
        if (k < 0 || (size_t)k >= n - at) {
            snprintf(p + at, n - at, ",...");
            break;
        }
        at += (size_t)k;
    }
    pthread_mutex_unlock(&b->lock);
}

rv_status rv_budget_take(rv_budget_member *m, uint64_t bytes, rv_err *err) {
    rv_budget *b = m->b;
    rv_err_clear(err);
    bool taken, again;
    do {
        taken = rv_budget_try(m, bytes);
        const uint64_t used = atomic_load(&b->used), budget = atomic_load(&b->budget);
        const uint64_t most = bytes <= budget ? budget - bytes : 0;
        again = !taken && bytes <= budget && used <= most; /* somebody has given */
        if (!taken && !again && bytes <= budget && used - most <= askable(b, NULL))
            again = ask(b, NULL, most);
    } while (again);
    taken = taken || rv_budget_try(m, bytes);
    if (taken) {
        tell(b);
        return RV_OK;
    }
    atomic_fetch_add(&b->n_refused, 1);
    char who[300];
    say_holders(b, who, sizeof who);
    return rv_fail(err, RV_EFULL, "memory: %s wants %llu bytes, %llu of %llu are in use%s", m->name,
                   (unsigned long long)bytes, (unsigned long long)atomic_load(&b->used),
                   (unsigned long long)atomic_load(&b->budget), who);
}

/* ---- the whole ---- */

/* What is used beyond the budget, once that has become smaller. */
static uint64_t over(const rv_budget *b) {
    const uint64_t used = atomic_load(&b->used), budget = atomic_load(&b->budget);
    return used > budget ? used - budget : 0;
}

uint64_t rv_budget_resize(rv_budget *b, uint64_t bytes) {
    atomic_store(&b->budget, bytes);
    while (over(b) && ask(b, NULL, bytes)) {}
    if (atomic_load(&b->n_watches)) rearm(b);
    tell(b);
    return over(b);
}

void rv_budget_get_stats(const rv_budget *b, rv_budget_stats *out) {
    *out = (rv_budget_stats){.budget = atomic_load(&b->budget),
                             .used = atomic_load(&b->used),
                             .peak = atomic_load(&b->peak),
                             .n_refused = atomic_load(&b->n_refused),
                             .n_shrinks = atomic_load(&b->n_shrinks)};
}

size_t rv_budget_list(rv_budget *b, rv_budget_holding *out, size_t cap) {
    size_t n = 0;
    pthread_mutex_lock(&b->lock);
    for (const rv_budget_member *m = b->first; m; m = m->next) {
        const uint64_t held = atomic_load(&m->held);
        if (!held) continue;
        if (n < cap) {
            out[n] = (rv_budget_holding){.priority = m->priority, .bytes = held};
            memcpy(out[n].name, m->name, RV_MIN(strlen(m->name), sizeof out[n].name - 1));
        }
        n++;
    }
    pthread_mutex_unlock(&b->lock);
    return n;
}

uint64_t rv_budget_held(const rv_budget_member *m) {
    return atomic_load(&m->held);
}

uint64_t rv_budget_bytes(const rv_budget_member *m) {
    return atomic_load(&m->b->budget);
}

uint64_t rv_budget_left(const rv_budget_member *m) {
    const uint64_t used = atomic_load(&m->b->used), held = atomic_load(&m->held);
    const uint64_t budget = atomic_load(&m->b->budget), others = used > held ? used - held : 0;
    return budget > others ? budget - others : 0;
}
