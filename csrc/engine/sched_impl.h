/* Inside of the scheduler: what sched.c (the calls), sched_queue.c (who is next) and sched_step.c
 * (one step) share.
 *
 *   lock         the two tables, the heaps, the asked, the counters; a request's ask
 *   step thread  the running, the events, everything else of a request that was submitted
 *
 * The lock is never held while the backend or the cache works, so submit and cancel do not wait for
 * either.  A request is freed when its last event is handed out; until it ends it is in the table.
 * Requests, tenants and events are chained through themselves: once a request is submitted, only
 * the cache, the backend and the growth of its tokens ask for memory. */
#ifndef RV_SCHED_IMPL_H
#define RV_SCHED_IMPL_H

#include <pthread.h>

#include "engine/sched.h"

/* ---- a heap of structs that hold a link (pairing heap: Fredman et al. 1986) ---- */

typedef struct rv_link {
    struct rv_link *child, *next, *prev; /* prev: the sibling before, or the parent */
} rv_link;
typedef bool (*rv_before)(rv_link *a, rv_link *b); /* a strict order */

#define RV_OUTER(p, type, member) ((type *)(void *)((char *)(p) - offsetof(type, member)))

void rv_pheap_push(rv_link **root, rv_link *x, rv_before before);   /* O(1) */
void rv_pheap_remove(rv_link **root, rv_link *x, rv_before before); /* O(log n), amortised */

/* ---- structs by a number ---- */

typedef struct rv_entry {
    uint64_t key;
    struct rv_entry *next;
} rv_entry;
typedef struct rv_table {
    rv_entry **slot; /* [mask + 1] */
    size_t mask, n;
} rv_table;

bool rv_table_init(rv_table *t); /* false: out of memory */
rv_entry *rv_table_get(const rv_table *t, uint64_t key);
void rv_table_put(rv_table *t, rv_entry *e); /* without memory its chains get longer */
void rv_table_take(rv_table *t, rv_entry *e);

/* ---- requests ---- */

typedef enum rv_req_state { RV_REQ_WAITING, RV_REQ_RUNNING, RV_REQ_ENDED } rv_req_state;

/* Everyone who shares a place in the queue: a tenant under RV_POLICY_FAIR, else all. */
typedef struct rv_tenant {
    rv_entry entry;
    rv_link by_share; /* in active, while it has requests */
    rv_link by_rank;  /* in ready, while some of them wait */
    rv_link *waiting; /* its requests */
    uint64_t share;   /* tokens it has had: of prompts once, generated ones twice */
    size_t n_live;
} rv_tenant;

typedef struct rv_req {
    rv_entry entry; /* key: its id, which is the order of arrival */
    rv_tenant *tenant;
    rv_link by_rank, by_deadline;
    rv_req_state state;
    rv_finish ask; /* other than RV_FINISH_NONE: end it */
    struct rv_req *next_asked;
    rv_priority priority;
    uint64_t deadline_ms; /* 0: none */
    uint64_t waited;      /* steps in the queue, before it last came into it */
    uint64_t since;       /* while it waits: the step of its coming, less those it has waited */
    int64_t rank;         /* while it waits: smaller is better */
    uint64_t cost;        /* next in rank; what of the policy is a matter of the request alone */

    void *user;
    rv_kv_scope scope; /* owns its identity */
    int32_t *tok;      /* [n_tok] prompt and what was generated */
    size_t n_tok, cap_tok, n_prompt, max_tokens;
    rv_kv *kv;        /* while it runs */
    size_t n_rows;    /* in the step that is planned */
    size_t n_charged; /* prompt tokens that its tenant was charged for, or need not be */
    size_t n_cached;
    uint32_t n_preempted;
    size_t n_saved;     /* positions that the backend keeps for it */
    bool admitted;      /* it has run before */
    bool found_nothing; /* in the cache, when there was no room for it */

    bool posted; /* in the list of events */
    rv_sched_event event;
    struct rv_req *next_event;
} rv_req;

struct rv_sched {
    rv_kv_cache *cache;
    rv_sched_backend b;
    rv_sched_opts o;

    pthread_mutex_t lock;
    rv_table requests, tenants;
    rv_link *ready, *active, *deadlines;
    rv_req *asked;
    size_t n_live, n_waiting, n_kept; /* kept: tenants after the last sweep */
    uint64_t next_id, tick, n_queued; /* tick: calls of step; queued: prompt tokens */
    rv_sched_stats stats;

    rv_req **run; /* [max_running] by rank; some have ended or been preempted in this step */
    rv_req **tmp; /* [max_running] */
    size_t n_run;
    rv_sched_rows *rows; /* [max_running] */
    rv_req **row_of;     /* [max_running] */
    size_t n_groups;
    size_t limit;          /* rv_sched_limit of the format's tail */
    size_t n_left;         /* rows that the step may still have */
    size_t n_stay;         /* of run: still running */
    size_t i_worst;        /* nobody at run[i_worst] or behind is a victim */
    bool preempted, stuck; /* in this step; stuck: nothing runs and the first one finds no room */
    bool brought;          /* in this step a sequence was brought back */
    uint64_t now_ms;
    rv_req *first_event, *last_event;
};

static inline bool rv_req_protected(const rv_sched *s, const rv_req *r) {
    return r->n_preempted >= (uint32_t)s->o.max_preempt;
}
/* Tokens of a request that are to be computed. */
static inline size_t rv_req_left(const rv_req *r) {
    return r->n_tok - rv_kv_len(r->kv);
}

/* ---- sched_queue.c: under the lock ---- */

rv_tenant *rv_sched_tenant(rv_sched *s, uint64_t id); /* found or made; NULL: out of memory */
void rv_sched_drop_tenants(rv_sched *s);              /* all; none has requests */
/* A request of the tenant begins to be, and has ended. */
void rv_sched_join(rv_sched *s, rv_req *r);
void rv_sched_leave(rv_sched *s, rv_req *r);
/* Into the queue, out of it, and who is first in it (NULL: nobody). */
void rv_sched_enqueue(rv_sched *s, rv_req *r);
void rv_sched_dequeue(rv_sched *s, rv_req *r);
rv_req *rv_sched_first(const rv_sched *s);
void rv_sched_charge(rv_sched *s, rv_tenant *t, uint64_t n);
void rv_sched_watch_deadline(rv_sched *s, rv_req *r);
void rv_sched_forget_deadline(rv_sched *s, rv_req *r);
rv_req *rv_sched_next_deadline(const rv_sched *s);
/* Order of the running ones, which the step thread asks for without the lock. */
void rv_sched_rank_running(rv_sched *s);

/* ---- sched_step.c: the step thread ---- */

void rv_sched_begin(rv_sched *s, uint64_t now_ms); /* cancelled and late ones end */
rv_status rv_sched_plan(rv_sched *s, rv_err *err);
rv_status rv_sched_compute(rv_sched *s, uint64_t *backend_ns, rv_err *err);
void rv_sched_compact(rv_sched *s); /* run: those that run */
/* Most tokens of a request with that tail: n_ctx, or what an empty cache holds. */
size_t rv_sched_limit(const rv_sched *s, size_t tail);
void rv_req_free(rv_req *r);

#endif
