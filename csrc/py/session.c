/* Session: a sequence with its KV cache. */
#include "py/py.h"

#include "base/base.h"

typedef struct {
    PyObject_HEAD
    rv_session *h; /* NULL when closed */
    int32_t n_vocab;
    bool running; /* an eval is under way in some thread; written with the GIL held */
} Session;

static rv_session *enter(PyObject *o) {
    Session *s = (Session *)o;
    PyObject *error = rv_py_state_of(Py_TYPE(o))->errors[-RV_ESTATE];
    if (!s->h) PyErr_SetString(error, "session: is closed");
    if (s->running) PyErr_SetString(error, "session: is busy in another thread");
    return s->running ? NULL : s->h;
}

static PyObject *wrap(rv_py_state *st, rv_session *take, int32_t n_vocab) {
    Session *s = (Session *)((allocfunc)PyType_GetSlot(st->session, Py_tp_alloc))(st->session, 0);
    if (!s) {
        rv_session_free(&take);
        return NULL;
    }
    s->h = take;
    s->n_vocab = n_vocab;
    return (PyObject *)s;
}

/* session_new(model, n_ctx) */
static PyObject *session_new(PyObject *m, PyObject *args) {
    rv_py_state *st = rv_py_state_of_module(m);
    PyObject *model;
    int n_ctx;
    if (!PyArg_ParseTuple(args, "O!i:session_new", st->model, &model, &n_ctx)) return NULL;
    rv_model *mh = ((rv_py_model *)model)->h;
    rv_err err = {0};
    rv_session *h;
    if (rv_session_new(&h, mh, n_ctx, &err) != RV_OK) return rv_py_raise(st, &err);
    return wrap(st, h, rv_model_get_info(mh)->n_vocab);
}

static void session_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_session_free(&((Session *)o)->h);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

/* eval(tokens, all, cancel) -> Array (n, n_vocab) when all, else None */
static PyObject *session_eval(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    PyObject *tok_o, *cancel_o;
    int want_all;
    rv_py_i32 tok = {0};
    rv_cancel *cancel;
    if (!PyArg_ParseTuple(args, "OpO:eval", &tok_o, &want_all, &cancel_o)) return NULL;
    if (rv_py_get_cancel(st, cancel_o, &cancel) < 0) return NULL;
    if (rv_py_get_i32(st, tok_o, &tok, "tokens") < 0) return NULL;
    rv_session *h = enter(o);
    if (!h) {
        rv_py_release_i32(&tok);
        return NULL;
    }
    const size_t n = tok.n, v = (size_t)((Session *)o)->n_vocab;
    float *all = NULL;
    rv_err err = {0};
    rv_status rc = RV_OK;
    if (want_all && n <= rv_session_room(h) && !(all = rv_alloc_aligned(n * v * 4)))
        rc = rv_fail(&err, RV_ENOMEM, "logits: no memory for %zu x %zu floats", n, v);
    if (rc == RV_OK) {
        ((Session *)o)->running = true;
        Py_BEGIN_ALLOW_THREADS
        rc = rv_session_eval(h, tok.p, n, all, cancel, &err);
        Py_END_ALLOW_THREADS((Session *)o)
        ->running = false;
    }
    rv_py_release_i32(&tok);
    if (rc != RV_OK) {
        rv_free(all);
        return rv_py_raise(st, &err);
    }
    if (want_all) return rv_py_array_new(st, all, 'f', 2, n, v);
    Py_RETURN_NONE;
}

/* sample(sampler, pos, allow) -> (id, logprob, top ids, top logprobs) */
static PyObject *session_sample(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    PyObject *sampler, *allow;
    unsigned long long pos;
    if (!PyArg_ParseTuple(args, "O!KO:sample", st->sampler, &sampler, &pos, &allow)) return NULL;
    rv_session *h = enter(o);
    if (!h) return NULL;
    const float *logits = rv_session_logits(h);
    if (!logits) {
        PyErr_SetString(st->errors[-RV_ESTATE], "session: has no logits before the first eval");
        return NULL;
    }
    return rv_py_sampler_draw(st, sampler, logits, (size_t)((Session *)o)->n_vocab, pos, allow);
}

/* logits() -> Array (n_vocab,), a copy of the last token's */
static PyObject *session_logits(PyObject *o, PyObject *none) {
    (void)none;
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    rv_session *h = enter(o);
    if (!h) return NULL;
    const float *logits = rv_session_logits(h);
    if (!logits) {
        PyErr_SetString(st->errors[-RV_ESTATE], "session: has no logits before the first eval");
        return NULL;
    }
    const size_t v = (size_t)((Session *)o)->n_vocab;
    float *copy = rv_alloc_aligned(v * 4);
    if (!copy) return PyErr_NoMemory();
    memcpy(copy, logits, v * 4);
    return rv_py_array_new(st, copy, 'f', 1, v, 1);
}

static PyObject *session_truncate(PyObject *o, PyObject *arg) {
    size_t n = PyLong_AsSize_t(arg);
    if (n == (size_t)-1 && PyErr_Occurred()) return NULL;
    rv_session *h = enter(o);
    if (!h) return NULL;
    rv_err err = {0};
    if (rv_session_truncate(h, n, &err) != RV_OK)
        return rv_py_raise(rv_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}

static PyObject *session_n_past(PyObject *o, PyObject *none) {
    (void)none;
    rv_session *h = enter(o);
    return h ? PyLong_FromSize_t(rv_session_n_past(h)) : NULL;
}

static PyObject *session_room(PyObject *o, PyObject *none) {
    (void)none;
    rv_session *h = enter(o);
    return h ? PyLong_FromSize_t(rv_session_room(h)) : NULL;
}

static PyObject *session_kv_bytes(PyObject *o, PyObject *none) {
    (void)none;
    rv_session *h = enter(o);
    return h ? PyLong_FromSize_t(rv_session_kv_bytes(h)) : NULL;
}

static PyObject *session_close(PyObject *o, PyObject *none) {
    (void)none;
    if (((Session *)o)->h && !enter(o)) return NULL;
    rv_session_free(&((Session *)o)->h);
    Py_RETURN_NONE;
}

/* start(tokens) -> tokens that need not be computed */
static PyObject *session_start(PyObject *o, PyObject *arg) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    rv_py_i32 tok = {0};
    if (rv_py_get_i32(st, arg, &tok, "tokens") < 0) return NULL;
    rv_session *h = enter(o);
    rv_err err = {0};
    size_t n = 0;
    const rv_status rc = h ? rv_session_start(h, tok.p, tok.n, &n, &err) : RV_OK;
    rv_py_release_i32(&tok);
    if (!h) return NULL;
    return rc == RV_OK ? PyLong_FromSize_t(n) : rv_py_raise(st, &err);
}

static PyObject *session_fork(PyObject *o, PyObject *none) {
    (void)none;
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    rv_session *h = enter(o), *t;
    rv_err err = {0};
    if (!h) return NULL;
    if (rv_session_fork(&t, h, &err) != RV_OK) return rv_py_raise(st, &err);
    return wrap(st, t, ((Session *)o)->n_vocab);
}

/* save(path, digest) */
static PyObject *session_save(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    PyObject *path;
    const char *digest;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "O&s#:save", PyUnicode_FSConverter, &path, &digest, &n))
        return NULL;
    rv_session *h = enter(o);
    rv_err err = {0};
    rv_status rc = RV_OK;
    if (h) {
        const char *p = PyBytes_AsString(path);
        ((Session *)o)->running = true;
        Py_BEGIN_ALLOW_THREADS
        rc = rv_session_save(h, p, (rv_str){digest, (size_t)n}, &err);
        Py_END_ALLOW_THREADS((Session *)o)
        ->running = false;
    }
    Py_DECREF(path);
    if (!h) return NULL;
    if (rc != RV_OK) return rv_py_raise(st, &err);
    Py_RETURN_NONE;
}

/* load(path, digest, tokens) -> tokens that need not be computed */
static PyObject *session_load(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    PyObject *path, *tok_o;
    const char *digest;
    Py_ssize_t n;
    rv_py_i32 tok = {0};
    if (!PyArg_ParseTuple(args, "O&s#O:load", PyUnicode_FSConverter, &path, &digest, &n, &tok_o))
        return NULL;
    rv_session *h = rv_py_get_i32(st, tok_o, &tok, "tokens") < 0 ? NULL : enter(o);
    rv_err err = {0};
    rv_status rc = RV_OK;
    size_t n_past = 0;
    if (h) {
        const char *p = PyBytes_AsString(path);
        ((Session *)o)->running = true;
        Py_BEGIN_ALLOW_THREADS
        rc = rv_session_load(h, p, (rv_str){digest, (size_t)n}, tok.p, tok.n, &n_past, &err);
        Py_END_ALLOW_THREADS((Session *)o)
        ->running = false;
    }
    Py_DECREF(path);
    rv_py_release_i32(&tok);
    if (!h) return NULL;
    return rc == RV_OK ? PyLong_FromSize_t(n_past) : rv_py_raise(st, &err);
}

static PyObject *session_page(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    Py_ssize_t layer, page;
    rv_err err = {0};
    rv_page_view v;
    if (!PyArg_ParseTuple(args, "nn:page", &layer, &page)) return NULL;
    rv_session *h = enter(o);
    if (!h) return NULL;
    /* Negative numbers become large ones, which are out of range. */
    if (rv_session_page(h, (size_t)layer, (size_t)page, &v, &err) != RV_OK)
        return rv_py_raise(st, &err);
    return rv_py_page_new(st, &v);
}

static PyMethodDef session_methods[] = {
    {"start", session_start, METH_O,
     "start(tokens) -> how many of them need not be computed: held already, or in the cache."},
    {"fork", session_fork, METH_NOARGS, "Another session with the same contents."},
    {"save", session_save, METH_VARARGS, "save(path, digest): keys, values and state to a file."},
    {"load", session_load, METH_VARARGS,
     "load(path, digest, tokens) -> how many of them need not be computed."},
    {"page", session_page, METH_VARARGS, "page(layer, i) -> Page: 16 positions of a layer."},
    {"eval", session_eval, METH_VARARGS, "eval(tokens, all, cancel) -> Array (n, n_vocab) | None."},
    {"sample", session_sample, METH_VARARGS,
     "sample(sampler, pos, allow) -> (id, logprob, top_ids, top_logprobs)."},
    {"logits", session_logits, METH_NOARGS, "Logits of the last token, Array (n_vocab,)."},
    {"truncate", session_truncate, METH_O, "Forget everything from position n on."},
    {"n_past", session_n_past, METH_NOARGS, "Tokens held."},
    {"room", session_room, METH_NOARGS, "Tokens that still fit."},
    {"kv_bytes", session_kv_bytes, METH_NOARGS, "Bytes of keys and values held."},
    {"close", session_close, METH_NOARGS, "Free the sequence now."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot session_slots[] = {
    {Py_tp_doc, "A sequence with its KV cache."},
    {Py_tp_dealloc, (void *)session_dealloc},
    {Py_tp_methods, session_methods},
    {0, NULL},
};

static PyType_Spec session_spec = {
    .name = "ruvllm._core.Session",
    .basicsize = sizeof(Session),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = session_slots,
};

static PyMethodDef functions[] = {
    {"session_new", session_new, METH_VARARGS, "session_new(model, n_ctx) -> Session."},
    {NULL, NULL, 0, NULL},
};

int rv_py_add_session(PyObject *m, rv_py_state *st) {
    if (rv_py_add_type(m, &session_spec, &st->session) < 0) return -1;
    return PyModule_AddFunctions(m, functions);
}
