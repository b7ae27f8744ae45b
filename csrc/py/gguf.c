/* The type _core.GGUF: metadata as Python values, tensors as read-only views over the mapping.
 *
 * A view (memoryview over GGUFView) keeps its GGUF alive and counts as an export: close() says
 * BufferError while one exists, because it would unmap what the view shows. */
#include "py/py.h"

#include "base/base.h"
#include "rvk.h"

typedef struct {
    PyObject_HEAD
    rv_py_gguf *gguf; /* strong */
    const void *data;
    Py_ssize_t n_bytes;
} View;

static const char *const TYPE_NAMES[] = {"u8",   "i8",  "u16", "i16", "u32", "i32", "f32",
                                         "bool", "str", "arr", "u64", "i64", "f64"};

/* ---- objects ---- */

static rv_py_gguf *new_gguf(rv_py_state *st, const rv_gguf *h, rv_gguf *owned, PyObject *owner) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(st->gguf, Py_tp_alloc);
    rv_py_gguf *g = (rv_py_gguf *)alloc(st->gguf, 0);
    if (!g) {
        rv_gguf_free(&owned);
        return NULL;
    }
    g->h = h;
    g->owned = owned;
    g->owner = owner;
    Py_XINCREF(owner);
    return g;
}

PyObject *rv_py_gguf_wrap(rv_py_state *st, const rv_gguf *borrowed, PyObject *owner) {
    return (PyObject *)new_gguf(st, borrowed, NULL, owner);
}

static void let_go(rv_py_gguf *g) {
    g->h = NULL;
    rv_gguf_free(&g->owned);
    Py_CLEAR(g->owner);
}

static void gguf_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    let_go((rv_py_gguf *)o);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

/* The open handle, or NULL with StateError set. */
static const rv_gguf *handle(PyObject *o) {
    const rv_gguf *h = ((rv_py_gguf *)o)->h;
    if (!h)
        PyErr_SetString(rv_py_state_of(Py_TYPE(o))->errors[-RV_ESTATE],
                        "gguf: found it closed, want it open");
    return h;
}

static void view_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_py_gguf *g = ((View *)o)->gguf;
    if (g) {
        g->n_views--;
        Py_DECREF((PyObject *)g);
    }
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

static int view_getbuffer(PyObject *o, Py_buffer *v, int flags) {
    View *w = (View *)o;
    return PyBuffer_FillInfo(v, o, (void *)(uintptr_t)w->data, w->n_bytes, /*readonly*/ 1, flags);
}

/* ---- values ---- */

/* Strings of a file need not be UTF-8: what is not becomes U+FFFD. */
static PyObject *str_of(rv_str s) {
    return PyUnicode_DecodeUTF8(s.n ? s.p : "", (Py_ssize_t)s.n, "replace");
}

static double f64_of(const uint8_t *p) {
    uint64_t u = rv_le64(p);
    double d;
    memcpy(&d, &u, sizeof d);
    return d;
}

static PyObject *array_of(rv_cursor *c, uint32_t elem, uint64_t n, uint64_t max);

/* The element the cursor stands on.  Opening checked the bytes, so the cursor cannot fail. */
static PyObject *element_of(rv_cursor *c, uint32_t type, uint64_t max) {
    switch (type) {
    case RV_GGUF_U8: return PyLong_FromUnsignedLong(rv_cur_u8(c, "u8"));
    case RV_GGUF_I8: return PyLong_FromLong((int8_t)rv_cur_u8(c, "i8"));
    case RV_GGUF_U16: return PyLong_FromUnsignedLong(rv_cur_u16(c, "u16"));
    case RV_GGUF_I16: return PyLong_FromLong((int16_t)rv_cur_u16(c, "i16"));
    case RV_GGUF_U32: return PyLong_FromUnsignedLong(rv_cur_u32(c, "u32"));
    case RV_GGUF_I32: return PyLong_FromLong((int32_t)rv_cur_u32(c, "i32"));
    case RV_GGUF_U64: return PyLong_FromUnsignedLongLong(rv_cur_u64(c, "u64"));
    case RV_GGUF_I64: return PyLong_FromLongLong((int64_t)rv_cur_u64(c, "i64"));
    case RV_GGUF_BOOL: return PyBool_FromLong(rv_cur_u8(c, "bool"));
    case RV_GGUF_F32: return PyFloat_FromDouble((double)rv_lef32(rv_cur_bytes(c, 4, "f32")));
    case RV_GGUF_F64: return PyFloat_FromDouble(f64_of(rv_cur_bytes(c, 8, "f64")));
    case RV_GGUF_STR: {
        uint64_t n = rv_cur_u64(c, "length");
        return str_of((rv_str){(const char *)rv_cur_bytes(c, n, "string"), (size_t)n});
    }
    default: {
        uint32_t elem = rv_cur_u32(c, "type");
        uint64_t n = rv_cur_u64(c, "length");
        return array_of(c, elem, n, max);
    }
    }
}

/* The cursor must end behind the array even when the list is cut: an array of arrays goes on. */
static PyObject *array_of(rv_cursor *c, uint32_t elem, uint64_t n, uint64_t max) {
    PyObject *list = PyList_New((Py_ssize_t)RV_MIN(n, max));
    for (uint64_t i = 0; i < n && list; i++) {
        PyObject *item = element_of(c, elem, max);
        if (!item) {
            Py_CLEAR(list);
        } else if (i >= max) {
            Py_DECREF(item);
        } else if (PyList_SetItem(list, (Py_ssize_t)i, item) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *value_of(const rv_gguf_kv *kv, uint64_t max) {
    switch (kv->type) {
    case RV_GGUF_U8:
    case RV_GGUF_U16:
    case RV_GGUF_U32:
    case RV_GGUF_U64: return PyLong_FromUnsignedLongLong(kv->u);
    case RV_GGUF_I8:
    case RV_GGUF_I16:
    case RV_GGUF_I32:
    case RV_GGUF_I64: return PyLong_FromLongLong(kv->i);
    case RV_GGUF_BOOL: return PyBool_FromLong((long)kv->u);
    case RV_GGUF_F32:
    case RV_GGUF_F64: return PyFloat_FromDouble(kv->f);
    case RV_GGUF_STR: return str_of(kv->s);
    case RV_GGUF_ARR: break;
    }
    rv_cursor c;
    rv_cur_init(&c, kv->data, (size_t)kv->data_bytes);
    /* Only nested arrays must be read past the cut. */
    return array_of(&c, kv->elem, kv->elem == RV_GGUF_ARR ? kv->n : RV_MIN(kv->n, max), max);
}

static PyObject *type_name_of(const rv_gguf_kv *kv) {
    if (kv->type != RV_GGUF_ARR) return PyUnicode_FromString(TYPE_NAMES[kv->type]);
    return PyUnicode_FromFormat("arr[%s]", TYPE_NAMES[kv->elem]);
}

/* ---- methods ---- */

static PyObject *gguf_version(PyObject *o, PyObject *none) {
    (void)none;
    const rv_gguf *h = handle(o);
    return h ? PyLong_FromUnsignedLong(rv_gguf_version(h)) : NULL;
}

static PyObject *gguf_alignment(PyObject *o, PyObject *none) {
    (void)none;
    const rv_gguf *h = handle(o);
    return h ? PyLong_FromUnsignedLongLong(rv_gguf_alignment(h)) : NULL;
}

static PyObject *gguf_file_bytes(PyObject *o, PyObject *none) {
    (void)none;
    const rv_gguf *h = handle(o);
    return h ? PyLong_FromUnsignedLongLong(rv_gguf_file_bytes(h)) : NULL;
}

static PyObject *gguf_n_kv(PyObject *o, PyObject *none) {
    (void)none;
    const rv_gguf *h = handle(o);
    return h ? PyLong_FromUnsignedLongLong(rv_gguf_n_kv(h)) : NULL;
}

static PyObject *gguf_n_tensors(PyObject *o, PyObject *none) {
    (void)none;
    const rv_gguf *h = handle(o);
    return h ? PyLong_FromUnsignedLongLong(rv_gguf_n_tensors(h)) : NULL;
}

/* (key, type name, value); steals nothing. */
static PyObject *row_of(const rv_gguf_kv *kv, uint64_t max) {
    PyObject *key = str_of(kv->key), *type = type_name_of(kv), *value = value_of(kv, max);
    PyObject *row = key && type && value ? PyTuple_Pack(3, key, type, value) : NULL;
    Py_XDECREF(key);
    Py_XDECREF(type);
    Py_XDECREF(value);
    return row;
}

static PyObject *gguf_kv(PyObject *o, PyObject *arg) {
    const rv_gguf *h = handle(o);
    if (!h) return NULL;
    long long max = PyLong_AsLongLong(arg);
    if (max == -1 && PyErr_Occurred()) return NULL;
    if (max < -1)
        return PyErr_Format(rv_py_state_of(Py_TYPE(o))->errors[-RV_EARG],
                            "max_array: found %lld, want -1 (all) or a number of elements", max);
    uint64_t n = rv_gguf_n_kv(h);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (uint64_t i = 0; i < n && list; i++) {
        PyObject *row = row_of(rv_gguf_kv_at(h, i), max < 0 ? UINT64_MAX : (uint64_t)max);
        if (!row || PyList_SetItem(list, (Py_ssize_t)i, row) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *gguf_get(PyObject *o, PyObject *arg) {
    const rv_gguf *h = handle(o);
    if (!h) return NULL;
    Py_ssize_t n;
    const char *key = PyUnicode_AsUTF8AndSize(arg, &n);
    if (!key) return NULL;
    /* A key with a NUL in it is in no file; its first half may be. */
    const rv_gguf_kv *kv = strlen(key) == (size_t)n ? rv_gguf_find_kv(h, key) : NULL;
    if (!kv) Py_RETURN_NONE;
    return value_of(kv, UINT64_MAX);
}

static PyObject *tensor_row(const rv_gguf_tensor *t) {
    PyObject *name = str_of(t->name), *dims = PyTuple_New((Py_ssize_t)t->n_dims);
    for (uint32_t i = 0; i < t->n_dims && dims; i++) {
        PyObject *d = PyLong_FromUnsignedLongLong(t->dims[i]);
        if (!d || PyTuple_SetItem(dims, (Py_ssize_t)i, d) < 0) Py_CLEAR(dims);
    }
    if (!name || !dims) {
        Py_XDECREF(name);
        Py_XDECREF(dims);
        return NULL;
    }
    return Py_BuildValue("(NisNKKI)", name, (int)t->type, rvk_dtypes[t->type].name, dims,
                         (unsigned long long)t->offset, (unsigned long long)t->n_bytes,
                         (unsigned)t->i_file);
}

static PyObject *gguf_tensors(PyObject *o, PyObject *none) {
    (void)none;
    const rv_gguf *h = handle(o);
    if (!h) return NULL;
    uint64_t n = rv_gguf_n_tensors(h);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (uint64_t i = 0; i < n && list; i++) {
        PyObject *row = tensor_row(rv_gguf_tensor_at(h, i));
        if (!row || PyList_SetItem(list, (Py_ssize_t)i, row) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *gguf_tensor_data(PyObject *o, PyObject *arg) {
    const rv_gguf *h = handle(o);
    if (!h) return NULL;
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    long long i = PyLong_AsLongLong(arg);
    if (i == -1 && PyErr_Occurred()) return NULL;
    const rv_gguf_tensor *t = i < 0 ? NULL : rv_gguf_tensor_at(h, (uint64_t)i);
    if (!t)
        return PyErr_Format(st->errors[-RV_EARG], "tensor: found %lld, want 0 to %lld", i,
                            (long long)rv_gguf_n_tensors(h) - 1);
    allocfunc alloc = (allocfunc)PyType_GetSlot(st->gguf_view, Py_tp_alloc);
    View *w = (View *)alloc(st->gguf_view, 0);
    if (!w) return NULL;
    w->gguf = (rv_py_gguf *)o;
    Py_INCREF(o);
    w->gguf->n_views++;
    w->data = t->data;
    w->n_bytes = (Py_ssize_t)t->n_bytes;
    PyObject *m = PyMemoryView_FromObject((PyObject *)w);
    Py_DECREF((PyObject *)w);
    return m;
}

static PyObject *gguf_close(PyObject *o, PyObject *none) {
    (void)none;
    rv_py_gguf *g = (rv_py_gguf *)o;
    if (g->n_views)
        return PyErr_Format(PyExc_BufferError, "gguf: found %zd tensor views alive, want none",
                            g->n_views);
    let_go(g);
    Py_RETURN_NONE;
}

static PyMethodDef gguf_methods[] = {
    {"version", gguf_version, METH_NOARGS, "Version of the format: 2 or 3."},
    {"alignment", gguf_alignment, METH_NOARGS, "Alignment of tensor data, in bytes."},
    {"file_bytes", gguf_file_bytes, METH_NOARGS, "Size of all parts, in bytes."},
    {"n_kv", gguf_n_kv, METH_NOARGS, "Number of metadata pairs (of the first part)."},
    {"n_tensors", gguf_n_tensors, METH_NOARGS, "Number of tensors (of all parts)."},
    {"kv", gguf_kv, METH_O, "kv(max_array): [(key, type name, value)]; -1: whole arrays."},
    {"get", gguf_get, METH_O, "get(key): the value, or None."},
    {"tensors", gguf_tensors, METH_NOARGS,
     "[(name, type, type name, dims, offset, n_bytes, i_file)]"},
    {"tensor_data", gguf_tensor_data, METH_O, "tensor_data(i): the bytes, a read-only view."},
    {"close", gguf_close, METH_NOARGS, "Unmap the file; BufferError while views exist."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gguf_slots[] = {
    {Py_tp_doc, "An open GGUF file."},
    {Py_tp_dealloc, (void *)gguf_dealloc},
    {Py_tp_methods, gguf_methods},
    {0, NULL},
};

static PyType_Spec gguf_spec = {
    .name = "ruvllm._core.GGUF",
    .basicsize = sizeof(rv_py_gguf),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gguf_slots,
};

static PyType_Slot view_slots[] = {
    {Py_tp_doc, "The bytes of one tensor; read them through the buffer protocol."},
    {Py_tp_dealloc, (void *)view_dealloc},
    {Py_bf_getbuffer, (void *)view_getbuffer},
    {0, NULL},
};

static PyType_Spec view_spec = {
    .name = "ruvllm._core.GGUFView",
    .basicsize = sizeof(View),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = view_slots,
};

/* ---- functions ---- */

static PyObject *gguf_open(PyObject *m, PyObject *arg) {
    rv_py_state *st = rv_py_state_of_module(m);
    PyObject *path;
    if (!PyUnicode_FSConverter(arg, &path)) return NULL;
    rv_gguf *h = NULL;
    rv_err err = {0};
    const char *p = PyBytes_AsString(path);
    rv_status rc;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_gguf_open(&h, p, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (rc != RV_OK) return rv_py_raise(st, &err);
    return (PyObject *)new_gguf(st, h, h, NULL);
}

static PyObject *gguf_open_bytes(PyObject *m, PyObject *arg) {
    rv_py_state *st = rv_py_state_of_module(m);
    if (!PyBytes_Check(arg)) /* what can change after the checks is not accepted */
        return PyErr_Format(PyExc_TypeError, "data: want bytes");
    rv_gguf *h = NULL;
    rv_err err = {0};
    const char *p = PyBytes_AsString(arg);
    size_t n = (size_t)PyBytes_Size(arg);
    rv_status rc;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_gguf_open_mem(&h, p, n, &err);
    Py_END_ALLOW_THREADS
    if (rc != RV_OK) return rv_py_raise(st, &err);
    return (PyObject *)new_gguf(st, h, h, arg);
}

static PyMethodDef functions[] = {
    {"gguf_open", gguf_open, METH_O, "gguf_open(path): open a GGUF file, all parts of it."},
    {"gguf_open_bytes", gguf_open_bytes, METH_O, "gguf_open_bytes(data): the same over bytes."},
    {NULL, NULL, 0, NULL},
};

int rv_py_add_gguf(PyObject *m, rv_py_state *st) {
    if (rv_py_add_type(m, &gguf_spec, &st->gguf) < 0) return -1;
    if (rv_py_add_type(m, &view_spec, &st->gguf_view) < 0) return -1;
    return PyModule_AddFunctions(m, functions);
}
