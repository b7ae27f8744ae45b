/* Inside of the public handles: what model.c, session.c and embed.c share. */
#ifndef RV_ENGINE_H
#define RV_ENGINE_H

#include <pthread.h>

#include "base/pool.h"
#include "model/net.h"

/* Work areas that wait for their next caller: at most this many are kept. */
enum { RV_IDLE_RUNS = 4 };

/* The thread that reads weights ahead (readahead.c); zeros: none. */
typedef struct rv_readahead {
    const rv_gguf *g;
    pthread_t thread;
    atomic_bool stop;
    bool runs;
    long pid;
} rv_readahead;

/* Start reading the tensors of g in file order.  Only a hint: no thread, no reading ahead. */
void rv_readahead_start(rv_readahead *r, const rv_gguf *g);
/* End it, finished or not; g may then be freed.  Waits for at most 2 MiB to be read. */
void rv_readahead_stop(rv_readahead *r);

struct rv_model {
    atomic_int refs;
    rv_readahead readahead;
    rv_gguf *g;
    rv_net *net;
    rv_tok *tok; /* NULL when the file has no vocabulary */
    rv_pool *pool;
    rv_kv_cache *kv; /* NULL for an encoder */
    bool shares;     /* sequences that begin alike share its pages */
    rv_model_info info;
    pthread_mutex_t lock; /* of idle */
    rv_run *idle[RV_IDLE_RUNS];
    size_t n_idle;
};

/* Borrow a work area with buffers for n tokens; give it back when done. */
rv_status rv_model_take_run(rv_model *m, size_t n, rv_run **out, rv_err *err);
void rv_model_give_run(rv_model *m, rv_run *run);

/* Most tokens of one sequence in a pass. */
size_t rv_model_max_rows(const rv_model *m);
rv_status rv_model_check_ids(const rv_model *m, const int32_t *tok, size_t n, rv_err *err);

/* ---- spill.c: an engine's sequences on disk; not thread-safe ---- */

/* What a kv file's contents depend on besides format and tokens: the model's digest, the kernels,
 * whose sums differ in order, how exact they are, and the identity of the cache.  *tag is from
 * rv_malloc. */
rv_status rv_spill_tag(const rv_model *m, rv_str digest, rv_str identity, char **tag, rv_str *out,
                       rv_err *err);

typedef struct rv_spill rv_spill;
/* dir: an existing folder.  The model outlives it. */
rv_status rv_spill_new(rv_spill **out, rv_model *m, const char *dir, rv_str digest, rv_err *err);
void rv_spill_free(rv_spill **s);
/* The sequence of a preempted request: written, brought back (at most n of tok [n + 1]; path: from
 * that file instead), gone. */
rv_status rv_spill_out(const rv_spill *s, uint64_t request, const rv_kv *kv, rv_str identity,
                       rv_err *err);
rv_status rv_spill_in(const rv_spill *s, const char *path, uint64_t request, rv_str identity,
                      rv_kv *kv, const int32_t *tok, size_t n, rv_err *err);
void rv_spill_drop(const rv_spill *s, uint64_t request);
/* As rv_engine_park and so on. */
rv_status rv_spill_park(rv_spill *s, const char *path, const rv_kv_scope *scope, const int32_t *tok,
                        size_t n, size_t *n_kept, uint64_t *n_bytes, rv_err *err);
rv_status rv_spill_park_more(rv_spill *s, uint64_t n_bytes, bool *done, rv_err *err);

/* Physical cores this process may run on, at least 1. */
int rv_n_cores(void);

#endif
