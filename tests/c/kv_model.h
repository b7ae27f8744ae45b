/* A model of a sequence for the tests of kv: keys, values and state are numbers made of the tokens
 * so far, so what is read back says whose tokens it belongs to. */
#ifndef RV_KV_MODEL_H
#define RV_KV_MODEL_H

#include "kv/kv.h"
#include "test.h"

enum { RV_KM_LEN = 1024, RV_KM_STATE = 48 }; /* most tokens; floats of state */

/* A budget with one member. */
typedef struct rv_km_budget {
    rv_budget *b;
    rv_budget_member *m;
} rv_km_budget;
rv_km_budget rv_km_budget_open(uint64_t bytes);
void rv_km_budget_free(rv_km_budget *b); /* nothing is held of it */

typedef struct rv_km {
    rv_kv *kv;
    rv_kv_cache *c;
    int32_t tok[RV_KM_LEN];
    size_t n;
    uint64_t id; /* its identity */
    size_t tail; /* its own, or 0 */
} rv_km;

/* Layers of 2 and 1 heads of 32, tail and batch of a block; state: RV_KM_STATE floats of it. */
rv_kv_format rv_km_format(rv_kv_type type, rv_kv_type store, bool rotate, bool state);
/* A cache with the budget of so many HOT pages (64 bytes each where there are no layers), and a
 * hash of 8 bits. */
rv_kv_cache *rv_km_open(const rv_kv_format *f, uint64_t pages, bool share, rv_fit fit);
void rv_km_new(rv_km *s, rv_kv_cache *c, uint64_t id);
void rv_km_new_tail(rv_km *s, rv_kv_cache *c, uint64_t id, size_t tail);
rv_kv_scope rv_km_scope(const rv_km *s);
void rv_km_free(rv_km *s);
void rv_km_fork(rv_km *to, const rv_km *s);
/* Start with what the cache has of tok; as rv_kv_match, which rv_kv_peek must foretell. */
size_t rv_km_match(rv_km *s, const int32_t *tok, size_t n);
/* Reserve, write, commit. */
rv_status rv_km_grow(rv_km *s, const int32_t *tok, size_t n, rv_pool *pool, rv_err *err);
rv_status rv_km_truncate(rv_km *s, size_t n);
/* Everything the next query reads is what was written; every step-th position. */
void rv_km_check(const rv_km *s, size_t step);

#endif
