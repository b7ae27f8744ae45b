/* The scheduler: which rows of which requests go into the next step.
 *
 * A step is one forward pass over new tokens of many sequences: of each running request the tokens
 * it has and the cache does not (one while it generates, a chunk of its prompt before that).
 *
 *   submit ──► WAITING ──admit──► RUNNING ──► finished
 *                 ▲                  │
 *                 └──── preempt ─────┘        pages given up (or swapped out), tokens kept
 *
 * A step:  1. requests that are cancelled or past their deadline end, their pages are free
 *          2. running requests in order of rank get their rows: generating ones first, then chunks
 *             of prompts, under max_rows; where there is no room for a row's page, the running
 *             request of the worst rank gives up its pages
 *          3. if none had to, waiting requests are admitted in order of rank while there are slots,
 *             rows, and room for the whole of their tokens; one whose beginning a running request
 *             computes waits for it (await_prefix) and others may pass
 *          4. the backend computes the rows and chooses a token for each sequence that is complete
 *          5. tokens are appended, ended requests let go of their pages, events are reported
 *
 * S1  Rank is a strict order: priority with age, then policy, then arrival; nothing else (no
 *     addresses, no time that the caller has not given), so a run can be replayed.
 * S2  A request is preempted at most max_preempt times; then it is not a victim any more: it is
 *     admitted again only with room for all the tokens it may ever have, and others yield to it.
 *     Once more only where nothing could go on otherwise, because somebody else took that room.
 * S3  The tokens of a request do not depend on any of this (design rule 1), its length neither: it
 *     ends with RV_FINISH_LENGTH when it has max_tokens, when it fills n_ctx, or when it fills what
 *     an empty cache holds (rv_kv_cache_capacity), however full the cache is.
 * S4  When nothing runs or waits, every page is free or evictable.
 * S5  No request starves if age_steps is not 0: what comes more than age_steps times the
 *     difference in priority later stands behind it in the queue, whatever the policy; and one that
 *     runs gets its rows before anybody comes in.
 *
 * It knows no model: the backend does the arithmetic, kv.h the memory.  One thread steps; submit,
 * cancel and stats may be called from any. */
#ifndef RV_SCHED_H
#define RV_SCHED_H

#include "base/base.h"
#include "kv/kv.h"

typedef struct rv_sched rv_sched;

/* A row group of the step: tokens tok[0 .. n - 1] behind rv_kv_len(kv), reserved. */
typedef struct rv_sched_rows {
    rv_kv *kv;
    const int32_t *tok;
    size_t n;
    uint64_t request; /* id */
    void *user;       /* of the request */
    size_t i_token;   /* of the token that is to be chosen: how many the request has generated */
    bool choose;      /* the sequence is complete with these rows: choose its next token */
    int32_t token;    /* out, if choose */
    bool end;         /* out, if choose: it ends the generation (and belongs to it) */
    rv_status status; /* out: not RV_OK: this request fails, and no other */
} rv_sched_rows;

typedef struct rv_sched_backend {
    void *ctx;
    /* Compute the rows and fill in the tokens; the scheduler commits.  An error ends the step: all
     * rows of it stay uncomputed and may be tried again. */
    rv_status (*step)(void *ctx, rv_sched_rows *rows, size_t n, rv_err *err);
    /* Write away, and bring back, what the cache holds of a sequence; all three or none, NULL:
     * preempted requests are recomputed.
     *   swap_out   tok [rv_kv_len(kv)]; an error: this one is recomputed
     *   swap_in    into an empty sequence what was written, at most n positions; how many it has
     *              afterwards, 0: none, it is recomputed
     *   swap_drop  forget it; once after each swap_out that succeeded, brought back or not, and
     *              for each request that came with n_saved
     * One sequence at most is brought back in a step, so that those that run wait for no more. */
    rv_status (*swap_out)(void *ctx, uint64_t request, rv_kv *kv, const int32_t *tok, rv_err *err);
    size_t (*swap_in)(void *ctx, uint64_t request, rv_kv *kv, const int32_t *tok, size_t n);
    void (*swap_drop)(void *ctx, uint64_t request);
    rv_pool *pool; /* for rv_kv_reserve; may be NULL */
} rv_sched_backend;

/* RV_POLICY_*, RV_PRIORITY_* and rv_finish are in ruvllm.h. */
typedef struct rv_sched_opts {
    rv_policy policy;
    size_t max_rows;    /* of a step; >= max_running */
    size_t max_chunk;   /* of one request in a step */
    size_t max_running; /* requests at once */
    size_t max_queue;   /* waiting requests; more are refused */
    uint64_t max_queue_tokens;
    size_t n_ctx;       /* most tokens a sequence may have */
    uint64_t age_steps; /* steps of waiting that lift a request by one priority; 0: never */
    int max_preempt;
    bool await_prefix; /* for a cache that shares: do not compute a prefix twice at the same time */
} rv_sched_opts;

typedef struct rv_sched_request {
    const int32_t *tok;   /* [n] prompt; copied */
    size_t n, max_tokens; /* n >= 1; max_tokens >= 1, more than n_ctx - n is that */
    rv_priority priority;
    uint64_t tenant;      /* for fair share */
    uint64_t deadline_ms; /* of the caller's clock; 0: none */
    rv_kv_scope scope;    /* copied */
    size_t n_saved; /* tokens at its beginning that the backend can bring back; all of it but the
                       last at most */
    void *user;
} rv_sched_request;

typedef struct rv_sched_event {
    uint64_t request;
    void *user;
    int32_t token;    /* -1: none (it ended without one) */
    rv_finish finish; /* RV_FINISH_NONE: it goes on, once this is fetched */
    rv_status status; /* RV_OK unless finish is RV_FINISH_ERROR */
    size_t n_cached;  /* prompt tokens that were not computed */
    uint32_t n_preempted;
} rv_sched_event;

typedef struct rv_sched_stats {
    size_t n_waiting, n_running;
    uint64_t n_steps, n_rows, n_tokens;           /* rows computed, tokens chosen */
    uint64_t n_submitted, n_refused, n_preempted; /* refused: RV_EFULL */
    uint64_t n_finished, n_cancelled; /* finished: for whatever reason; of them cancelled */
    uint64_t n_prompt,
        n_cached; /* prompt tokens of admitted requests, and those found in the cache */
    double step_ms,
        rows_per_step; /* moving averages over about 100 steps; step_ms without backend */
} rv_sched_stats;

/* The cache and the backend outlive the scheduler.  RV_EARG names the option. */
rv_status rv_sched_new(rv_sched **out, rv_kv_cache *cache, const rv_sched_backend *b,
                       const rv_sched_opts *o, rv_err *err);
void rv_sched_free(rv_sched **s); /* ends what runs; events that were not fetched are lost */
/* RV_EARG; RV_EFULL the prompt and one token do not fit into the context or an empty cache (the
 * numbers), or the queue is full; RV_ENOMEM. */
rv_status rv_sched_submit(rv_sched *s, const rv_sched_request *r, uint64_t *id, rv_err *err);
/* It ends before the next step computes anything, with that reason (RV_FINISH_CANCELLED,
 * RV_FINISH_STOP for a stop string).  RV_ENOTFOUND unknown or already ended. */
rv_status rv_sched_cancel(rv_sched *s, uint64_t id, rv_finish finish, rv_err *err);
/* One step at time now_ms (one smaller than before counts as that one).  events: [cap], cap >= 1,
 * *n of them are filled in, also when the step fails; what does not fit is reported by the next
 * call, and a request gets no rows while an event of it waits.  *idle: nothing runs or waits any
 * more and all events are fetched.
 *
 * An error leaves all rows uncomputed, and the step may be tried again: what the backend said;
 * RV_ENOMEM; RV_EFULL: nothing runs and nothing can begin, because sequences from outside, or other
 * members of the cache's budget, hold the memory.  A request for which an empty cache has become
 * too small (rv_budget_resize) ends with RV_FINISH_ERROR, RV_EFULL. */
rv_status rv_sched_step(rv_sched *s, uint64_t now_ms, rv_sched_event *events, size_t cap, size_t *n,
                        bool *idle, rv_err *err);
void rv_sched_get_stats(rv_sched *s, rv_sched_stats *out);

#endif
