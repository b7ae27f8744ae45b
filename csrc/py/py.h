/* What the files of the extension share: the module's state, the objects other files need to see,
 * status to exception, buffers in and out.  No algorithms live in this folder.
 *
 * A method does five things in order: parse and take buffers, enter the handle, call the core
 * without the GIL, leave, give back and translate.  Keywords and defaults live in ruvllm/. */
#ifndef RV_PY_H
#define RV_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "include/ruvllm.h"

enum { RV_PY_N_STATUS = 11 };

typedef struct rv_py_state {
    PyObject *errors[RV_PY_N_STATUS]; /* exception class of status -i; [0] is RuvllmError */
    PyTypeObject *array, *page, *gguf, *gguf_view, *tok, *budget, *holder, *model, *session,
        *cancel, *sampler, *engine, *store;
} rv_py_state;

extern struct PyModuleDef rv_py_module;
/* The state of the module that defined type (heap types made by rv_py_add_type). */
rv_py_state *rv_py_state_of(PyTypeObject *type);
rv_py_state *rv_py_state_of_module(PyObject *module);

/* Make a heap type from spec, add it to the module under its name, and store it in *slot. */
int rv_py_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **slot);

/* The exception of err, a new object. */
PyObject *rv_py_error(rv_py_state *st, const rv_err *err);
/* Raise it; always returns NULL. */
PyObject *rv_py_raise(rv_py_state *st, const rv_err *err);

/* A dict of counters. */
typedef struct rv_py_count {
    const char *name;
    uint64_t value;
} rv_py_count;
PyObject *rv_py_counts(const rv_py_count *all, size_t n);

/* A C-contiguous buffer of int32 (format "i" or "l" of 4 bytes), or any sequence of Python ints,
 * which is copied.  v->buf, v->len / 4.  Release with rv_py_release_i32. -1 with an exception set.
 */
typedef struct rv_py_i32 {
    Py_buffer view;
    int32_t *copy;
    const int32_t *p;
    size_t n;
} rv_py_i32;
int rv_py_get_i32(rv_py_state *st, PyObject *o, rv_py_i32 *out, const char *what);
void rv_py_release_i32(rv_py_i32 *v);

/* An object that owns float32 / int32 memory of the core (from rv_alloc_aligned / rv_malloc) and
 * shows it read-only through the buffer protocol: numpy.asarray(x) sees the same bytes.
 * Takes data over, on failure too.  n_dims 1 or 2; format 'f' or 'i'. */
PyObject *rv_py_array_new(rv_py_state *st, void *take_data, char format, int n_dims, size_t d0,
                          size_t d1);

/* A Page over a view, which it frees. */
PyObject *rv_py_page_new(rv_py_state *st, rv_page_view *take);

/* Objects that other files look into. */
typedef struct {
    PyObject_HEAD
    const rv_gguf *h;   /* NULL when closed */
    rv_gguf *owned;     /* the same handle when this object frees it, else NULL */
    PyObject *owner;    /* keeps the bytes or the handle alive; NULL for a file opened by path */
    Py_ssize_t n_views; /* tensor views that are alive; close() refuses while there are any */
} rv_py_gguf;
/* A GGUF object over a handle of someone else, whom it keeps alive: a model shows its own file. */
PyObject *rv_py_gguf_wrap(rv_py_state *st, const rv_gguf *borrowed, PyObject *owner);

typedef struct {
    PyObject_HEAD
    rv_tok *h;
} rv_py_tok;

typedef struct {
    PyObject_HEAD
    rv_model *h;
} rv_py_model;

/* The budget inside a Budget, or NULL for None.  -1 with an exception set for anything else. */
int rv_py_get_budget(rv_py_state *st, PyObject *o, rv_budget **out);
/* A Budget that owns one reference to the handle; takes it over, on failure too. */
PyObject *rv_py_budget_wrap(rv_py_state *st, rv_budget *take);
/* The flag inside a Cancel, or NULL for None. -1 with an exception set for anything else. */
int rv_py_get_cancel(rv_py_state *st, PyObject *o, rv_cancel **out);
/* A Tokenizer that owns one reference to the handle; takes it over, on failure too. */
PyObject *rv_py_tok_wrap(rv_py_state *st, rv_tok *take);
/* Draw from logits [n] with a Sampler: (id, logprob, top_ids, top_logprobs). */
PyObject *rv_py_sampler_draw(rv_py_state *st, PyObject *sampler, const float *logits, size_t n,
                             uint64_t pos, PyObject *allow);

/* Sampling parameters from the first RV_PY_N_PARAMS arguments of sampler_new, in its order; p
 * borrows from the rest.  Release with rv_py_release_params.  -1 with an exception set. */
enum { RV_PY_N_PARAMS = 13 };
typedef struct rv_py_params {
    rv_sample_params p;
    rv_py_i32 ids;
    float *bias;
} rv_py_params;
int rv_py_get_params(rv_py_state *st, PyObject *const *a, rv_py_params *out);
void rv_py_release_params(rv_py_params *p);
/* A mask over n_vocab tokens; of None v stays as it is, zeros.  Release v if it has an obj. */
int rv_py_get_mask(rv_py_state *st, PyObject *o, size_t n_vocab, Py_buffer *v);
/* Two tuples of n, new references.  -1 with an exception set. */
int rv_py_tops(const int32_t *ids, const float *logprobs, size_t n, PyObject **ids_out,
               PyObject **logprobs_out);

typedef struct {
    PyObject_HEAD
    rv_sampler *h;
    Py_ssize_t n_vocab;
    int busy; /* a thread is inside rv_sampler_* without the GIL */
} rv_py_sampler;

/* One function per file: adds its types and functions to the module. -1 with an exception set. */
int rv_py_add_array(PyObject *m, rv_py_state *st);
int rv_py_add_page(PyObject *m, rv_py_state *st);
int rv_py_add_kernels(PyObject *m, rv_py_state *st);
int rv_py_add_gguf(PyObject *m, rv_py_state *st);
int rv_py_add_tok(PyObject *m, rv_py_state *st);
int rv_py_add_memory(PyObject *m, rv_py_state *st);
int rv_py_add_model(PyObject *m, rv_py_state *st);
int rv_py_add_session(PyObject *m, rv_py_state *st);
int rv_py_add_sampler(PyObject *m, rv_py_state *st);
int rv_py_add_engine(PyObject *m, rv_py_state *st);
int rv_py_add_store(PyObject *m, rv_py_state *st);

#endif
