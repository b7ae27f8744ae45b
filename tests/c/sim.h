/* A world for the scheduler: a real cache of a tiny format, and a model that is a hash.
 *
 * The next token is a function of the identity and all tokens before.  What is stored of a position
 * is its token, its number and the hash up to it, one bit per value (+1, -1), so that a quantised
 * store keeps it exactly, or as it is where nothing quantises (raw).  What the model reads it
 * compares with what was said, so a page of somebody else, or of another position, shows at once.
 * sim_run drives it from a seed. */
#ifndef RV_SIM_H
#define RV_SIM_H

#include "engine/sched.h"
#include "test.h"

enum { SIM_DIM = 32, SIM_VOCAB = 512, SIM_MAX_IDENTITY = 8 };

/* The model. */
uint64_t sim_start(const rv_kv_scope *scope);
uint64_t sim_more(uint64_t hash, int32_t tok);
int32_t sim_token(uint64_t hash);
bool sim_is_end(int32_t tok);
uint64_t sim_mix(uint64_t x); /* bits of x, scattered */

enum { SIM_MAX_TAIL = 4 * RV_KV_BLOCK };

typedef struct sim_req { /* what was asked and what came */
    uint64_t id;
    int32_t *tok;   /* [n] prompt, then what was generated */
    uint64_t *hash; /* [n + 1] before each */
    size_t n, cap, n_prompt, max_tokens;
    size_t n_saved;                  /* by swap_out, or when it came */
    uint64_t deadline_ms, submitted; /* submitted: which step */
    rv_finish asked;                 /* by cancel */
    bool failed;                     /* the model failed for it alone */
    char identity[SIM_MAX_IDENTITY];
    rv_kv_scope scope;
    rv_finish finish; /* RV_FINISH_NONE: not yet */
    rv_sched_event last;
    uint64_t ended; /* which step */
} sim_req;

typedef struct sim_opts {
    rv_sched_opts sched;
    rv_kv_type type, store;
    bool rotate, state, share, swap, oracle;
    bool raw; /* pages hold plain bytes; without a store only */
    int hash_bits;
    rv_fit fit;
    size_t n_pages; /* the budget, in pages of type */
    int n_tenants;
    /* of 1000 chances */
    int fail_step, fail_row, fail_alloc, fail_swap, cancel, late, arrive;
    int budget, guest; /* another budget; something happens to a sequence from outside */
    int fresh;         /* bursts that are about a document of their own */
    bool plain;        /* otherwise prompts are fresh, not turns or behind a system prompt */
    size_t max_burst, max_prompt, max_tokens;
} sim_opts;

typedef struct sim {
    sim_opts o;
    uint64_t seed, rand;
    rv_kv_cache *cache;
    rv_sched *sched;
    sim_req **live;
    size_t n_live, cap_live;
    uint64_t i_step, clock_ms;
    bool calm; /* no failures now */
    /* conversations that may go on */
    sim_req *past[64];
    size_t n_past;
    /* a sequence that the scheduler does not know, and its text */
    rv_kv *guest;
    sim_req *guest_text;
    uint64_t budget; /* bytes, when nobody changes it */
    /* Of the tokens of a request, under all budgets so far: by tail, in blocks. */
    size_t least_limit[SIM_MAX_TAIL / RV_KV_BLOCK + 1];
    /* counts */
    uint64_t n_ended, n_by_finish[RV_FINISH_ERROR + 1], n_refused, n_events, n_step_failed;
    uint64_t n_swapped_in, max_wait, n_over_preempted, n_budgets, n_guests;
    /* the oracle: hashes of all prefixes that were ever said, and prompt tokens that they cover */
    uint64_t *seen;
    size_t n_seen, cap_seen;
    uint64_t n_prompt, n_best;
} sim;

#define SIM_CHECK(s, cond)                                                                         \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "seed %llu, step %llu: ", (unsigned long long)(s)->seed,               \
                    (unsigned long long)(s)->i_step);                                              \
            CHECK(cond);                                                                           \
        }                                                                                          \
    } while (0)

/* Quiet defaults: plenty of room, no failures. */
sim_opts sim_defaults(void);
/* Everything drawn from the seed, most of it hostile. */
sim_opts sim_random(uint64_t seed);
void sim_open(sim *s, const sim_opts *o, uint64_t seed);
void sim_close(sim *s); /* checks that nothing is left */
uint64_t sim_below(sim *s, uint64_t n);
bool sim_chance(sim *s, int of_1000); /* never while it is calm */

/* Ask for max_tokens after a prompt; NULL: refused with *st.  Owned by the sim until it is closed.
 */
sim_req *sim_submit(sim *s, const int32_t *tok, size_t n, size_t max_tokens,
                    const rv_sched_request *how, rv_status *st);
/* The same after n random tokens. */
sim_req *sim_submit_random(sim *s, size_t n, size_t max_tokens, const rv_sched_request *how);
void sim_append(sim_req *q, int32_t tok);
rv_status sim_backend_step(void *ctx, rv_sched_rows *rows, size_t n, rv_err *err);
rv_sched_backend sim_backend(sim *s);
/* Check all of what a sequence holds of a text, and put the next n positions, reserved, into it. */
void sim_check_kv(sim *s, const sim_req *q, rv_kv *kv);
void sim_write_kv(sim *s, const sim_req *q, rv_kv *kv, size_t n);
/* One step, all events of it are checked; the requests that ended are kept in past (the last ones)
 * or freed.  *idle may be NULL. */
rv_status sim_step(sim *s, size_t cap, bool *idle);
/* Steps until idle; then every page is free or evictable. */
void sim_drain(sim *s);
void sim_check_quiet(sim *s);
/* n_steps of random arrivals, cancels, failures, other budgets and sequences from outside, with
 * pauses in which all drains. */
void sim_run(sim *s, uint64_t n_steps);
/* Shared system prompts and conversations of several turns, in a cache of n_pages: prompt tokens,
 * how many were found, and how many had been computed before and could have been. */
void sim_hit_rate(uint64_t seed, size_t n_pages, bool await_prefix, uint64_t *n_prompt,
                  uint64_t *n_cached, uint64_t *n_best);

#endif
