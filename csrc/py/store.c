/* Store: the core's record keeper seen from Python.  Dictionaries become rv_witness by the core's
 * own table of fields; rows become dictionaries.  The GIL is released around whatever may wait. */
#include "py/py.h"

typedef struct {
    PyObject_HEAD
    rv_store *h; /* closed by close(), freed with the object, so that a running call is safe */
} Store;

static rv_py_state *state_of(Store *s) {
    return rv_py_state_of(Py_TYPE((PyObject *)s));
}

static PyObject *arg_error(rv_py_state *st, const char *fmt, const char *name, PyObject *o) {
    PyErr_Format(st->errors[-RV_EARG], fmt, name, (PyObject *)Py_TYPE(o));
    return NULL;
}

static PyObject *store_new(PyTypeObject *type, PyObject *args, PyObject *kw) {
    rv_py_state *st = rv_py_state_of(type);
    PyObject *path = NULL;
    int depth = 0, batch = 0, wait = 0, busy = 0;
    long long bytes = 0;
    if (kw && PyDict_Size(kw) > 0) {
        PyErr_SetString(PyExc_TypeError, "Store() takes positional arguments only");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O&|iLiii:Store", PyUnicode_FSConverter, &path, &depth, &bytes,
                          &batch, &wait, &busy))
        return NULL;
    Store *s = (Store *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!s) {
        Py_DECREF(path);
        return NULL;
    }
    const rv_store_opts opts = {.queue_depth = depth,
                                .queue_bytes = bytes,
                                .max_batch = batch,
                                .max_wait_ms = wait,
                                .busy_timeout_ms = busy};
    const char *dir = PyBytes_AsString(path);
    rv_store *h;
    rv_err err = {0};
    rv_status rc;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_store_open(&h, dir, &opts, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    s->h = h;
    if (rc == RV_OK) return (PyObject *)s;
    Py_DECREF(s);
    return rv_py_raise(st, &err);
}

static void store_dealloc(PyObject *o) {
    Store *s = (Store *)o;
    PyTypeObject *t = Py_TYPE(o);
    if (s->h) {
        Py_BEGIN_ALLOW_THREADS
        rv_store_free(&s->h);
        Py_END_ALLOW_THREADS
    }
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

/* ---- Python to core ---- */

static int get_text(rv_py_state *st, PyObject *o, const char *name, rv_str *out) {
    if (!PyUnicode_Check(o)) return arg_error(st, "%s: is %R, want str or None", name, o), -1;
    Py_ssize_t n;
    out->p = PyUnicode_AsUTF8AndSize(o, &n);
    out->n = (size_t)n;
    return out->p ? 0 : -1;
}

static int get_blob(rv_py_state *st, PyObject *o, const char *name, rv_str *out) {
    char *p;
    Py_ssize_t n;
    if (!PyBytes_Check(o)) return arg_error(st, "%s: is %R, want bytes or None", name, o), -1;
    if (PyBytes_AsStringAndSize(o, &p, &n) < 0) return -1;
    *out = (rv_str){p, (size_t)n};
    return 0;
}

static int get_int(rv_py_state *st, PyObject *o, const char *name, int64_t *out) {
    int overflow = 0;
    if (!PyLong_Check(o)) return arg_error(st, "%s: is %R, want int or None", name, o), -1;
    *out = PyLong_AsLongLongAndOverflow(o, &overflow);
    if (overflow || (*out == INT64_MIN && !PyErr_Occurred())) {
        PyErr_Format(st->errors[-RV_EARG], "%s: %S, want -(2^63 - 1) .. 2^63 - 1", name, o);
        return -1;
    }
    return *out == -1 && PyErr_Occurred() ? -1 : 0;
}

static int get_real(PyObject *o, double *out) {
    *out = PyFloat_AsDouble(o);
    return *out == -1.0 && PyErr_Occurred() ? -1 : 0;
}

static int get_u64(rv_py_state *st, PyObject *o, const char *name, rv_opt_u64 *out) {
    if (!PyLong_Check(o)) return arg_error(st, "%s: is %R, want int or None", name, o), -1;
    *out = (rv_opt_u64){PyLong_AsUnsignedLongLong(o), true};
    if (out->v == UINT64_MAX && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(st->errors[-RV_EARG], "%s: %S, want 0 .. 2^64 - 1", name, o);
        return -1;
    }
    return 0;
}

static int get_field(rv_py_state *st, PyObject *o, const rv_witness_field *f, rv_witness *w) {
    void *at = (char *)w + f->offset;
    switch (f->type) {
    case RV_FIELD_TEXT:
    case RV_FIELD_JSON: return get_text(st, o, f->name, at);
    case RV_FIELD_BLOB: return get_blob(st, o, f->name, at);
    case RV_FIELD_INT: return get_int(st, o, f->name, at);
    case RV_FIELD_U64: return get_u64(st, o, f->name, at);
    case RV_FIELD_REAL: break;
    }
    return get_real(o, at);
}

static PyObject *unknown_key(rv_py_state *st, PyObject *dict) {
    size_t n_fields;
    const rv_witness_field *f = rv_witness_fields(&n_fields);
    PyObject *key, *value;
    for (Py_ssize_t pos = 0; PyDict_Next(dict, &pos, &key, &value);) {
        size_t i = 0;
        while (i < n_fields &&
               !(PyUnicode_Check(key) && PyUnicode_CompareWithASCIIString(key, f[i].name) == 0))
            i++;
        if (i < n_fields) continue;
        PyErr_Format(st->errors[-RV_EARG], "witness: no field %R", key);
        break;
    }
    return NULL;
}

static PyObject *store_witness_put(PyObject *self, PyObject *args) {
    Store *s = (Store *)self;
    rv_py_state *st = state_of(s);
    PyObject *dict;
    int critical = 0;
    if (!PyArg_ParseTuple(args, "O|p:witness_put", &dict, &critical)) return NULL;
    if (!PyDict_Check(dict)) return arg_error(st, "%s: is %R, want dict", "witness", dict);
    rv_witness w;
    rv_witness_init(&w);
    size_t n_fields;
    const rv_witness_field *f = rv_witness_fields(&n_fields);
    Py_ssize_t n_seen = 0;
    for (size_t i = 0; i < n_fields; i++) {
        PyObject *v = PyDict_GetItemString(dict, f[i].name); /* borrowed: dict holds it */
        if (!v) continue;
        n_seen++;
        if (v != Py_None && get_field(st, v, &f[i], &w) < 0) return NULL;
    }
    if (n_seen != PyDict_Size(dict)) return unknown_key(st, dict);
    char id[37];
    rv_err err = {0};
    rv_status rc;
    if (critical) { /* the texts live in dict, which the caller's frame keeps; hold it all the same
                     */
        PyObject *own = PyDict_Copy(dict);
        if (!own) return NULL;
        Py_BEGIN_ALLOW_THREADS
        rc = rv_store_witness_put(s->h, &w, true, id, &err);
        Py_END_ALLOW_THREADS
        Py_DECREF(own);
    } else {
        rc = rv_store_witness_put(s->h, &w, false, id, &err);
    }
    return rc == RV_OK ? PyUnicode_FromStringAndSize(id, 36) : rv_py_raise(st, &err);
}

enum { MAX_ARGS = 16 };

/* None, int and str to values, which borrow from the tuple. */
static int get_args(rv_py_state *st, PyObject *tuple, rv_value *v, size_t *n) {
    if (!PyTuple_Check(tuple)) return arg_error(st, "%s: is %R, want tuple", "args", tuple), -1;
    *n = (size_t)PyTuple_Size(tuple);
    if (*n > MAX_ARGS) {
        PyErr_Format(st->errors[-RV_EARG], "args: %zu, want at most %d", *n, MAX_ARGS);
        return -1;
    }
    for (size_t i = 0; i < *n; i++) {
        PyObject *o = PyTuple_GetItem(tuple, (Py_ssize_t)i);
        v[i] = (rv_value){0};
        if (o == Py_None) continue;
        if (PyLong_Check(o)) {
            v[i].type = RV_VAL_INT;
            if (get_int(st, o, "argument", &v[i].i) < 0) return -1;
        } else {
            v[i].type = RV_VAL_TEXT;
            if (get_text(st, o, "argument", &v[i].s) < 0) return -1;
        }
    }
    return 0;
}

static PyObject *store_write(PyObject *self, PyObject *args) {
    Store *s = (Store *)self;
    rv_py_state *st = state_of(s);
    const char *name;
    PyObject *tuple;
    rv_value v[MAX_ARGS];
    size_t n;
    if (!PyArg_ParseTuple(args, "sO:write", &name, &tuple)) return NULL;
    if (get_args(st, tuple, v, &n) < 0) return NULL;
    int which = rv_store_write_id(name);
    if (which < 0) return PyErr_Format(st->errors[-RV_EARG], "store: no write \"%s\"", name);
    rv_err err = {0};
    if (rv_store_write(s->h, (rv_write)which, v, n, false, &err) != RV_OK)
        return rv_py_raise(st, &err);
    Py_RETURN_NONE;
}

/* ---- core to Python ---- */

static PyObject *from_value(const rv_value *v) {
    switch (v->type) {
    case RV_VAL_INT: return PyLong_FromLongLong(v->i);
    case RV_VAL_REAL: return PyFloat_FromDouble(v->f);
    case RV_VAL_TEXT: return PyUnicode_DecodeUTF8(v->s.p, (Py_ssize_t)v->s.n, "replace");
    case RV_VAL_BLOB: return PyBytes_FromStringAndSize(v->s.p, (Py_ssize_t)v->s.n);
    case RV_VAL_NULL: break;
    }
    Py_RETURN_NONE;
}

static PyObject *from_row(const rv_rows *rows, size_t i_row) {
    PyObject *d = PyDict_New();
    for (size_t i = 0; d && i < rv_rows_n_cols(rows); i++) {
        PyObject *v = from_value(rv_rows_at(rows, i_row, i));
        if (!v || PyDict_SetItemString(d, rv_rows_name(rows, i), v) < 0) Py_CLEAR(d);
        Py_XDECREF(v);
    }
    return d;
}

static PyObject *from_rows(const rv_rows *rows) {
    PyObject *list = PyList_New((Py_ssize_t)rv_rows_n(rows));
    for (size_t i = 0; list && i < rv_rows_n(rows); i++) {
        PyObject *d = from_row(rows, i);
        if (!d || PyList_SetItem(list, (Py_ssize_t)i, d) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *store_query(PyObject *self, PyObject *args) {
    Store *s = (Store *)self;
    rv_py_state *st = state_of(s);
    const char *name;
    PyObject *tuple;
    rv_value v[MAX_ARGS];
    size_t n;
    if (!PyArg_ParseTuple(args, "sO:query", &name, &tuple)) return NULL;
    if (get_args(st, tuple, v, &n) < 0) return NULL;
    int which = rv_store_query_id(name);
    if (which < 0) return PyErr_Format(st->errors[-RV_EARG], "store: no query \"%s\"", name);
    rv_rows *rows;
    rv_err err = {0};
    rv_status rc;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_store_query(s->h, (rv_query)which, v, n, &rows, &err);
    Py_END_ALLOW_THREADS
    if (rc != RV_OK) return rv_py_raise(st, &err);
    PyObject *list = from_rows(rows);
    rv_rows_free(&rows);
    return list;
}

static PyObject *store_flush(PyObject *self, PyObject *args) {
    Store *s = (Store *)self;
    double timeout_s = -1;
    int durable = 1;
    if (!PyArg_ParseTuple(args, "|dp:flush", &timeout_s, &durable)) return NULL;
    int64_t ms = -1; /* not a number and too long are no limit */
    if (timeout_s >= 0 && timeout_s < 1e12) ms = (int64_t)(timeout_s * 1000 + 0.999);
    rv_err err = {0};
    rv_status rc;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_store_flush(s->h, ms, durable, &err);
    Py_END_ALLOW_THREADS
    if (rc != RV_OK) return rv_py_raise(state_of(s), &err);
    Py_RETURN_NONE;
}

static PyObject *store_close(PyObject *self, PyObject *none) {
    (void)none;
    Store *s = (Store *)self;
    rv_err err = {0};
    rv_status rc;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_store_close(s->h, &err);
    Py_END_ALLOW_THREADS
    if (rc != RV_OK) return rv_py_raise(state_of(s), &err);
    Py_RETURN_NONE;
}

static PyObject *store_new_id(PyObject *self, PyObject *none) {
    (void)none;
    char id[37];
    rv_err err = {0};
    if (rv_store_new_id(((Store *)self)->h, id, &err) != RV_OK)
        return rv_py_raise(state_of((Store *)self), &err);
    return PyUnicode_FromStringAndSize(id, 36);
}

static PyObject *store_stats(PyObject *self, PyObject *none) {
    (void)none;
    rv_store_stats t;
    rv_err err = {0};
    if (rv_store_get_stats(((Store *)self)->h, &t, &err) != RV_OK)
        return rv_py_raise(state_of((Store *)self), &err);
    typedef unsigned long long ull;
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsKsKsNsNss}", "queued", (ull)t.queued, "written",
                         (ull)t.written, "dropped", (ull)t.dropped, "failed", (ull)t.failed,
                         "batches", (ull)t.batches, "retries", (ull)t.retries, "queue_depth",
                         (ull)t.queue_depth, "queue_bytes", (ull)t.queue_bytes, "queued_seq",
                         (ull)t.queued_seq, "committed_seq", (ull)t.committed_seq, "durable_seq",
                         (ull)t.durable_seq, "failing", PyBool_FromLong(t.failing), "ofd_locks",
                         PyBool_FromLong(t.ofd_locks), "last_error", t.last_error.msg);
}

static PyObject *store_path(PyObject *self, void *closure) {
    (void)closure;
    const char *p = rv_store_path(((Store *)self)->h);
    return PyUnicode_DecodeFSDefault(p);
}

static PyMethodDef store_methods[] = {
    {"witness_put", store_witness_put, METH_VARARGS,
     "witness_put(entry: dict, critical=False) -> id: queue an entry of the witness log."},
    {"write", store_write, METH_VARARGS, "write(name, args): queue another row."},
    {"query", store_query, METH_VARARGS, "query(name, args) -> list of dicts."},
    {"flush", store_flush, METH_VARARGS,
     "flush(timeout_s=-1.0, durable=True): wait until all that is queued is written."},
    {"close", store_close, METH_NOARGS, "Write what waits and close the file."},
    {"new_id", store_new_id, METH_NOARGS, "A new UUID, version 7."},
    {"stats", store_stats, METH_NOARGS, "Counters of the queue and the writer."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef store_getset[] = {
    {"path", store_path, NULL, "The file, absolute.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot store_slots[] = {
    {Py_tp_doc, "Store(dir, queue_depth=0, queue_bytes=0, max_batch=0, max_wait_ms=0, "
                "busy_timeout_ms=0): memory.db in a folder, with its writer thread."},
    {Py_tp_new, (void *)store_new},
    {Py_tp_dealloc, (void *)store_dealloc},
    {Py_tp_methods, store_methods},
    {Py_tp_getset, store_getset},
    {0, NULL},
};

static PyType_Spec store_spec = {
    .name = "ruvllm._core.Store",
    .basicsize = sizeof(Store),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = store_slots,
};

int rv_py_add_store(PyObject *m, rv_py_state *st) {
    return rv_py_add_type(m, &store_spec, &st->store);
}
