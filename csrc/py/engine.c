/* Engine: continuous batching over a model.  Requests in, events out; the loop and the text are
 * ruvllm/'s. */
#include "py/py.h"

#include "base/base.h"

typedef struct {
    PyObject_HEAD
    rv_engine *h; /* NULL when closed */
    size_t n_vocab;
    Py_ssize_t n_inside; /* calls under way without the GIL; written with it */
} Engine;

static rv_engine *enter(PyObject *o) {
    Engine *e = (Engine *)o;
    if (!e->h) {
        PyErr_SetString(rv_py_state_of(Py_TYPE(o))->errors[-RV_ESTATE], "engine: is closed");
        return NULL;
    }
    e->n_inside++;
    return e->h;
}

static void leave(PyObject *o) {
    ((Engine *)o)->n_inside--;
}

/* A path as bytes, or None: *out is NULL. */
static int get_path(PyObject *o, const char **out) {
    char *p = NULL;
    *out = NULL;
    if (o == Py_None) return 0;
    if (PyBytes_AsStringAndSize(o, &p, NULL) < 0) return -1; /* no NUL within */
    *out = p;
    return 0;
}

/* engine_new(model, policy, n_ctx, max_rows, max_chunk, max_running, max_queue, max_queue_tokens,
 *            age_steps, max_preempt[, spill_dir, digest, swap]) */
static PyObject *engine_new(PyObject *m, PyObject *args) {
    rv_py_state *st = rv_py_state_of_module(m);
    PyObject *model, *dir = Py_None;
    rv_engine_opts o = {0};
    int policy, swap = 0;
    long long queue_tokens;
    Py_ssize_t n_digest = 0;
    if (!PyArg_ParseTuple(args, "O!iiiiiiLii|Os#p:engine_new", st->model, &model, &policy, &o.n_ctx,
                          &o.max_rows, &o.max_chunk, &o.max_running, &o.max_queue, &queue_tokens,
                          &o.age_steps, &o.max_preempt, &dir, &o.spill_digest.p, &n_digest, &swap))
        return NULL;
    if (get_path(dir, &o.spill_dir) < 0) return NULL;
    o.spill_digest.n = (size_t)n_digest;
    o.swap = swap;
    o.policy = (rv_policy)policy;
    o.max_queue_tokens = queue_tokens;
    rv_model *mh = ((rv_py_model *)model)->h;
    rv_err err = {0};
    rv_engine *h;
    if (rv_engine_new(&h, mh, &o, &err) != RV_OK) return rv_py_raise(st, &err);
    Engine *e = (Engine *)((allocfunc)PyType_GetSlot(st->engine, Py_tp_alloc))(st->engine, 0);
    if (!e) {
        rv_engine_free(&h);
        return NULL;
    }
    e->h = h;
    e->n_vocab = (size_t)rv_model_get_info(mh)->n_vocab;
    return (PyObject *)e;
}

static void engine_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_engine *h = ((Engine *)o)->h;
    Py_BEGIN_ALLOW_THREADS /* may be the last to hold the model */
    rv_engine_free(&h);
    Py_END_ALLOW_THREADS((freefunc)PyType_GetSlot(t, Py_tp_free))
    (o);
    Py_DECREF(t);
}

/* ---- submit ---- */

typedef struct submission {
    rv_engine_request r;
    rv_py_i32 tok, stop;
    rv_py_params params;
    Py_buffer allow;
} submission;

static void release(submission *s) {
    rv_py_release_i32(&s->tok);
    rv_py_release_i32(&s->stop);
    rv_py_release_params(&s->params);
    if (s->allow.obj) PyBuffer_Release(&s->allow);
}

static int get_param_tuple(rv_py_state *st, PyObject *tuple, rv_py_params *out) {
    PyObject *a[RV_PY_N_PARAMS];
    if (PyTuple_Size(tuple) != RV_PY_N_PARAMS) {
        PyErr_Format(PyExc_TypeError, "params: want a tuple of %d", RV_PY_N_PARAMS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < RV_PY_N_PARAMS; i++) a[i] = PyTuple_GetItem(tuple, i);
    return rv_py_get_params(st, a, out);
}

static int get_submission(rv_py_state *st, PyObject *args, size_t n_vocab, submission *s) {
    PyObject *tok, *params, *allow, *stop, *restore = Py_None;
    int ignore, priority;
    unsigned long long tenant, deadline;
    Py_ssize_t n_salt, n_restore = 0;
    rv_engine_request *r = &s->r;
    if (!PyArg_ParseTuple(args, "OiO!OOpiKKy#|Oni:submit", &tok, &r->max_tokens, &PyTuple_Type,
                          &params, &allow, &stop, &ignore, &priority, &tenant, &deadline,
                          &r->scope.salt.p, &n_salt, &restore, &n_restore, &r->scope.kv_tail))
        return -1;
    if (get_path(restore, &r->restore) < 0) return -1;
    r->n_restore = n_restore < 0 ? 0 : (size_t)n_restore;
    r->scope.salt.n = (size_t)n_salt;
    r->ignore_eog = ignore;
    r->priority = (rv_priority)priority;
    r->tenant = tenant;
    r->deadline_ms = deadline;
    if (rv_py_get_i32(st, tok, &s->tok, "tokens") < 0) return -1;
    if (rv_py_get_i32(st, stop, &s->stop, "stop_ids") < 0) return -1;
    if (get_param_tuple(st, params, &s->params) < 0) return -1;
    if (rv_py_get_mask(st, allow, n_vocab, &s->allow) < 0) return -1;
    r->tok = s->tok.p;
    r->n = s->tok.n;
    r->params = &s->params.p;
    r->stop_ids = s->stop.p;
    r->n_stop = s->stop.n;
    r->allow = s->allow.buf;
    return 0;
}

/* submit(tokens, max_tokens, params, allow, stop_ids, ignore_eog, priority, tenant, deadline_ms,
 *        salt[, restore, n_restore, kv_tail]) -> id */
static PyObject *engine_submit(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    submission s = {0};
    rv_err err = {0};
    rv_status rc = RV_OK;
    uint64_t id = 0;
    rv_engine *h = NULL;
    if (get_submission(st, args, ((Engine *)o)->n_vocab, &s) == 0) h = enter(o);
    if (h) {
        Py_BEGIN_ALLOW_THREADS
        rc = rv_engine_submit(h, &s.r, &id, &err);
        Py_END_ALLOW_THREADS
        leave(o);
    }
    release(&s);
    if (!h) return NULL;
    return rc == RV_OK ? PyLong_FromUnsignedLongLong(id) : rv_py_raise(st, &err);
}

/* ---- the rest ---- */

static PyObject *engine_cancel(PyObject *o, PyObject *args) {
    unsigned long long id;
    int reason;
    rv_err err = {0};
    rv_status rc;
    if (!PyArg_ParseTuple(args, "Ki:cancel", &id, &reason)) return NULL;
    rv_engine *h = enter(o);
    if (!h) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_engine_cancel(h, id, (rv_finish)reason, &err);
    Py_END_ALLOW_THREADS
    leave(o);
    if (rc != RV_OK) return rv_py_raise(rv_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}

static PyObject *engine_allow(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    unsigned long long id;
    PyObject *mask;
    Py_buffer v = {0};
    rv_err err = {0};
    rv_status rc = RV_OK;
    if (!PyArg_ParseTuple(args, "KO:allow", &id, &mask)) return NULL;
    if (rv_py_get_mask(st, mask, ((Engine *)o)->n_vocab, &v) < 0) return NULL;
    rv_engine *h = enter(o);
    if (h) {
        Py_BEGIN_ALLOW_THREADS
        rc = rv_engine_allow(h, id, v.buf, &err);
        Py_END_ALLOW_THREADS
        leave(o);
    }
    if (v.obj) PyBuffer_Release(&v);
    if (!h) return NULL;
    if (rc != RV_OK) return rv_py_raise(st, &err);
    Py_RETURN_NONE;
}

/* (id, token, logprob, top_ids, top_logprobs, finish, error, n_cached, n_preempted, n_restored,
 * lost) */
static PyObject *event_of(rv_py_state *st, const rv_engine_event *e) {
    PyObject *ids, *logprobs, *error = e->err ? rv_py_error(st, e->err) : Py_NewRef(Py_None);
    PyObject *lost = e->lost ? rv_py_error(st, e->lost) : Py_NewRef(Py_None);
    if (!error || !lost || rv_py_tops(e->top_ids, e->top_logprobs, e->n_top, &ids, &logprobs) < 0) {
        Py_XDECREF(error);
        Py_XDECREF(lost);
        return NULL;
    }
    return Py_BuildValue("(KidNNiNnInN)", (unsigned long long)e->request, (int)e->token,
                         (double)e->logprob, ids, logprobs, (int)e->finish, error,
                         (Py_ssize_t)e->n_cached, (unsigned)e->n_preempted,
                         (Py_ssize_t)e->n_restored, lost);
}

/* step() -> (events, idle, error) */
static PyObject *engine_step(PyObject *o, PyObject *none) {
    (void)none;
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    const rv_engine_event *events = NULL;
    size_t n = 0;
    bool idle = false;
    rv_err err = {0};
    rv_status rc;
    rv_engine *h = enter(o);
    if (!h) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_engine_step(h, &events, &n, &idle, &err);
    Py_END_ALLOW_THREADS
    PyObject *list = NULL, *error = NULL;
    if (rc == RV_ESTATE)
        rv_py_raise(st, &err);
    else
        list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *e = event_of(st, &events[i]);
        if (!e || PyList_SetItem(list, (Py_ssize_t)i, e) < 0) Py_CLEAR(list);
    }
    leave(o); /* the events were borrowed */
    if (list) error = rc == RV_OK ? Py_NewRef(Py_None) : rv_py_error(st, &err);
    if (error) return Py_BuildValue("(NNN)", list, PyBool_FromLong(idle), error);
    Py_XDECREF(list);
    return NULL;
}

static PyObject *engine_stats(PyObject *o, PyObject *none) {
    (void)none;
    rv_engine *h = enter(o);
    if (!h) return NULL;
    rv_engine_stats s;
    Py_BEGIN_ALLOW_THREADS
    rv_engine_get_stats(h, &s);
    Py_END_ALLOW_THREADS
    leave(o);
    const rv_py_count all[] = {
        {"n_waiting", s.n_waiting},     {"n_running", s.n_running},
        {"n_steps", s.n_steps},         {"n_rows", s.n_rows},
        {"n_tokens", s.n_tokens},       {"n_submitted", s.n_submitted},
        {"n_refused", s.n_refused},     {"n_finished", s.n_finished},
        {"n_cancelled", s.n_cancelled}, {"n_preempted", s.n_preempted},
        {"n_prompt", s.n_prompt},       {"n_cached", s.n_cached},
    };
    PyObject *d = rv_py_counts(all, RV_COUNT(all));
    const struct {
        const char *name;
        double value;
    } means[] = {{"step_ms", s.step_ms}, {"rows_per_step", s.rows_per_step}};
    for (size_t i = 0; d && i < RV_COUNT(means); i++) {
        PyObject *v = PyFloat_FromDouble(means[i].value);
        if (!v || PyDict_SetItemString(d, means[i].name, v) < 0) Py_CLEAR(d);
        Py_XDECREF(v);
    }
    return d;
}

/* ---- conversations between their requests ---- */

/* park(path, tokens, salt[, kv_tail]) -> (tokens, bytes) that the file will have */
static PyObject *engine_park(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    PyObject *path_o, *tok_o;
    const char *path;
    rv_scope scope = {0};
    Py_ssize_t n_salt;
    rv_py_i32 tok = {0};
    rv_err err = {0};
    rv_status rc = RV_OK;
    size_t n = 0;
    uint64_t bytes = 0;
    if (!PyArg_ParseTuple(args, "SOy#|i:park", &path_o, &tok_o, &scope.salt.p, &n_salt,
                          &scope.kv_tail))
        return NULL;
    if (get_path(path_o, &path) < 0) return NULL;
    if (rv_py_get_i32(st, tok_o, &tok, "tokens") < 0) return NULL;
    scope.salt.n = (size_t)n_salt;
    rv_engine *h = enter(o);
    if (h) {
        Py_BEGIN_ALLOW_THREADS
        rc = rv_engine_park(h, path, &scope, tok.p, tok.n, &n, &bytes, &err);
        Py_END_ALLOW_THREADS
        leave(o);
    }
    rv_py_release_i32(&tok);
    if (!h) return NULL;
    if (rc != RV_OK) return rv_py_raise(st, &err);
    return Py_BuildValue("(nK)", (Py_ssize_t)n, (unsigned long long)bytes);
}

/* park_more(n_bytes) -> done */
static PyObject *engine_park_more(PyObject *o, PyObject *arg) {
    const unsigned long long n = PyLong_AsUnsignedLongLong(arg);
    if (n == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    bool done = false;
    rv_err err = {0};
    rv_status rc;
    rv_engine *h = enter(o);
    if (!h) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_engine_park_more(h, n, &done, &err);
    Py_END_ALLOW_THREADS
    leave(o);
    return rc == RV_OK ? PyBool_FromLong(done) : rv_py_raise(rv_py_state_of(Py_TYPE(o)), &err);
}

/* peek(tokens, salt[, kv_tail]) -> tokens; forget(tokens, salt[, kv_tail]) -> 0 */
static PyObject *look(PyObject *o, PyObject *args, bool forget) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    PyObject *tok_o;
    rv_scope scope = {0};
    Py_ssize_t n_salt;
    rv_py_i32 tok = {0};
    rv_err err = {0};
    rv_status rc = RV_OK;
    size_t n = 0;
    if (!PyArg_ParseTuple(args, "Oy#|i", &tok_o, &scope.salt.p, &n_salt, &scope.kv_tail))
        return NULL;
    if (rv_py_get_i32(st, tok_o, &tok, "tokens") < 0) return NULL;
    scope.salt.n = (size_t)n_salt;
    rv_engine *h = enter(o);
    if (h) {
        Py_BEGIN_ALLOW_THREADS
        rc = forget ? rv_engine_forget(h, &scope, tok.p, tok.n, &err)
                    : rv_engine_peek(h, &scope, tok.p, tok.n, &n, &err);
        Py_END_ALLOW_THREADS
        leave(o);
    }
    rv_py_release_i32(&tok);
    if (!h) return NULL;
    return rc == RV_OK ? PyLong_FromSize_t(n) : rv_py_raise(st, &err);
}

static PyObject *engine_peek(PyObject *o, PyObject *args) {
    return look(o, args, false);
}

static PyObject *engine_forget(PyObject *o, PyObject *args) {
    return look(o, args, true);
}

static PyObject *engine_close(PyObject *o, PyObject *none) {
    (void)none;
    Engine *e = (Engine *)o;
    if (e->n_inside) {
        PyErr_SetString(rv_py_state_of(Py_TYPE(o))->errors[-RV_ESTATE],
                        "engine: is busy in another thread");
        return NULL;
    }
    rv_engine *h = e->h;
    e->h = NULL;
    Py_BEGIN_ALLOW_THREADS
    rv_engine_free(&h);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef engine_methods[] = {
    {"submit", engine_submit, METH_VARARGS,
     "submit(tokens, max_tokens, params, allow, stop_ids, ignore_eog, priority, tenant, "
     "deadline_ms, salt[, restore, n_restore, kv_tail]) -> id."},
    {"cancel", engine_cancel, METH_VARARGS, "cancel(id, reason): end a request."},
    {"allow", engine_allow, METH_VARARGS, "allow(id, mask): tokens of the next choice."},
    {"step", engine_step, METH_NOARGS, "step() -> (events, idle, error)."},
    {"stats", engine_stats, METH_NOARGS, "Counters and averages as a dict."},
    {"park", engine_park, METH_VARARGS,
     "park(path, tokens, salt[, kv_tail]) -> (tokens, bytes): begin to write what the cache has."},
    {"park_more", engine_park_more, METH_O, "park_more(n_bytes) -> whether the file is there."},
    {"peek", engine_peek, METH_VARARGS,
     "peek(tokens, salt[, kv_tail]) -> how many of them the cache has."},
    {"forget", engine_forget, METH_VARARGS,
     "forget(tokens, salt[, kv_tail]): free what the cache keeps of them alone."},
    {"close", engine_close, METH_NOARGS, "End what runs and free it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, "Continuous batching over a model."},
    {Py_tp_dealloc, (void *)engine_dealloc},
    {Py_tp_methods, engine_methods},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    .name = "ruvllm._core.Engine",
    .basicsize = sizeof(Engine),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = engine_slots,
};

static PyMethodDef functions[] = {
    {"engine_new", engine_new, METH_VARARGS,
     "engine_new(model, policy, n_ctx, max_rows, max_chunk, max_running, max_queue, "
     "max_queue_tokens, age_steps, max_preempt[, spill_dir, digest, swap]) -> Engine."},
    {NULL, NULL, 0, NULL},
};

int rv_py_add_engine(PyObject *m, rv_py_state *st) {
    if (rv_py_add_type(m, &engine_spec, &st->engine) < 0) return -1;
    return PyModule_AddFunctions(m, functions);
}
