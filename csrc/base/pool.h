/* A pool of threads for data-parallel loops.
 *
 * A loop is cut into chunks that threads claim one by one, so a thread that loses its core holds
 * up one chunk and not the loop.  Which thread runs a chunk never changes a result: a chunk writes
 * only its own outputs.  Idle threads spin for a short while and then sleep. */
#ifndef RV_POOL_H
#define RV_POOL_H

#include "base/base.h"

typedef struct rv_pool rv_pool;

/* fn(arg, i_chunk, i_thread): 0 <= i_thread < n_threads, the calling thread being 0. */
typedef void (*rv_pool_fn)(void *arg, size_t i_chunk, int i_thread);

/* n_threads 1 .. 256, the caller included (1: no thread is started). */
rv_status rv_pool_new(rv_pool **out, int n_threads, rv_err *err);
void rv_pool_free(rv_pool **p);
int rv_pool_n_threads(const rv_pool *p);
/* Run fn over chunks 0 .. n_chunks - 1 and return when all are done.
 * Callers of one pool are served one loop at a time; a loop that a chunk starts is run by that
 * chunk's thread alone. */
void rv_pool_run(rv_pool *p, size_t n_chunks, rv_pool_fn fn, void *arg);

#endif
