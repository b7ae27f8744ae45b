/* One byte budget for several holders of memory: pages of keys and values, adapters, weights of
 * routers.
 *
 * A member says how much it wants before it allocates and gives it back after it has freed.  When
 * the budget is full, members are asked to free what they can do without, those of the lowest
 * priority first, and a member whose holdings must not be lost writes them away before it frees
 * them.
 *
 * U1  used <= budget at every instant, whatever the threads do: bytes are counted before they are
 *     allocated, and a claim is one compare-and-swap.
 * U2  No lock is held while a member frees; members may take and give meanwhile.
 * U3  A claim that cannot be met changes nothing and says why in numbers. */
#ifndef RV_BUDGET_H
#define RV_BUDGET_H

#include "base/base.h"

typedef struct rv_budget rv_budget;
typedef struct rv_budget_member rv_budget_member;

/* Free about that many bytes of what can be done without (rv_budget_give as they go), pinned
 * holdings never; whether anything was freed.  Called by the thread of whoever wants memory. */
typedef bool (*rv_budget_shrink)(void *ctx, uint64_t want);

rv_status rv_budget_new(rv_budget **out, uint64_t bytes, rv_err *err);
rv_budget *rv_budget_ref(rv_budget *b);
void rv_budget_free(rv_budget **b); /* drops one reference; members hold one each */
/* priority: who is asked first; of equals, who joined first.  shrink may be NULL: nothing can be
 * done without.  name is copied. */
rv_status rv_budget_join(rv_budget_member **out, rv_budget *b, const char *name, int priority,
                         rv_budget_shrink shrink, void *ctx, rv_err *err);
/* Waits until no shrink of it runs; what it still holds is given back. */
void rv_budget_leave(rv_budget_member **m);
/* RV_EFULL what was wanted, what others hold, the budget. */
rv_status rv_budget_take(rv_budget_member *m, uint64_t bytes, rv_err *err);
/* The same without asking anyone to free. */
bool rv_budget_try(rv_budget_member *m, uint64_t bytes);
void rv_budget_give(rv_budget_member *m, uint64_t bytes);
/* A new budget; with less than is held members are asked to free.  What is over it still. */
uint64_t rv_budget_resize(rv_budget *b, uint64_t bytes);

typedef struct rv_budget_stats {
    uint64_t budget, used, peak, n_refused, n_shrinks;
} rv_budget_stats;
void rv_budget_get_stats(const rv_budget *b, rv_budget_stats *out);
uint64_t rv_budget_held(const rv_budget_member *m);

#endif
