/* The budget (ruvllm.h, "memory") as members inside of the core see it. */
#ifndef RV_BUDGET_H
#define RV_BUDGET_H

#include "base/base.h"

/* rv_budget_take without asking anyone to free; takes no lock. */
bool rv_budget_try(rv_budget_member *m, uint64_t bytes);
/* Ask everyone but m, which must hold none of its locks, to free about that many bytes; whether
 * anything was freed, by whomever.  Nobody is asked where all that others hold is less. */
bool rv_budget_ask(rv_budget_member *m, uint64_t want);
/* The whole budget, and the part of it that the others do not hold. */
uint64_t rv_budget_bytes(const rv_budget_member *m);
uint64_t rv_budget_left(const rv_budget_member *m);
/* Tell the watches; for those who have used rv_budget_try, afterwards and without locks. */
void rv_budget_tell(const rv_budget_member *m);

#endif
