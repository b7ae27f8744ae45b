/* The extension module ruvllm._core: multi-phase init, per-module state, heap types only. */
#include "py/py.h"

static const char *const ERROR_NAMES[RV_PY_N_STATUS] = {
    "RuvllmError",      "ArgumentError", "FormatError",    "FileError",
    "OutOfMemoryError", "FullError",     "CancelledError", "UnsupportedError",
    "StateError",       "NotFoundError", "InternalError",
};

rv_py_state *rv_py_state_of_module(PyObject *module) {
    return PyModule_GetState(module);
}

rv_py_state *rv_py_state_of(PyTypeObject *type) {
    return PyType_GetModuleState(type);
}

int rv_py_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **slot) {
    PyObject *t = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!t) return -1;
    *slot = (PyTypeObject *)t;
    return PyModule_AddType(module, *slot);
}

static PyObject *class_of(const rv_py_state *st, const rv_err *err) {
    const int i = -(int)err->code;
    return st->errors[i < 1 || i >= RV_PY_N_STATUS ? -RV_EINTERNAL : i];
}

static PyObject *message_of(const rv_err *err) {
    return PyUnicode_DecodeUTF8(err->msg, (Py_ssize_t)strlen(err->msg), "replace");
}

PyObject *rv_py_error(rv_py_state *st, const rv_err *err) {
    PyObject *msg = message_of(err);
    PyObject *e = msg ? PyObject_CallFunctionObjArgs(class_of(st, err), msg, NULL) : NULL;
    Py_XDECREF(msg);
    return e;
}

PyObject *rv_py_raise(rv_py_state *st, const rv_err *err) {
    PyObject *msg = message_of(err);
    if (msg) PyErr_SetObject(class_of(st, err), msg);
    Py_XDECREF(msg);
    return NULL;
}

PyObject *rv_py_counts(const rv_py_count *all, size_t n) {
    PyObject *d = PyDict_New();
    for (size_t i = 0; d && i < n; i++) {
        PyObject *v = PyLong_FromUnsignedLongLong(all[i].value);
        if (!v || PyDict_SetItemString(d, all[i].name, v) < 0) Py_CLEAR(d);
        Py_XDECREF(v);
    }
    return d;
}

static int take_errors(rv_py_state *st) {
    PyObject *mod = PyImport_ImportModule("ruvllm._errors");
    if (!mod) return -1;
    int rc = 0;
    for (int i = 0; i < RV_PY_N_STATUS && rc == 0; i++)
        if (!(st->errors[i] = PyObject_GetAttrString(mod, ERROR_NAMES[i]))) rc = -1;
    Py_DECREF(mod);
    return rc;
}

static int module_exec(PyObject *m) {
    rv_py_state *st = PyModule_GetState(m);
    rv_init();
    if (take_errors(st) < 0) return -1;
    if (PyModule_AddStringConstant(m, "version", rv_version()) < 0) return -1;
    int (*const parts[])(PyObject *, rv_py_state *) = {
        rv_py_add_array,   rv_py_add_page,   rv_py_add_kernels, rv_py_add_gguf,
        rv_py_add_tok,     rv_py_add_memory, rv_py_add_model,   rv_py_add_session,
        rv_py_add_sampler, rv_py_add_engine, rv_py_add_store,
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (parts[i](m, st) < 0) return -1;
    return 0;
}

static PyObject **type_slots(rv_py_state *st, size_t i) {
    PyTypeObject **const slots[] = {&st->array,  &st->page,    &st->gguf,      &st->tok,
                                    &st->model,  &st->session, &st->cancel,    &st->sampler,
                                    &st->engine, &st->store,   &st->gguf_view, &st->budget,
                                    &st->holder};
    return i < sizeof slots / sizeof slots[0] ? (PyObject **)slots[i] : NULL;
}

static int module_traverse(PyObject *m, visitproc visit, void *arg) {
    rv_py_state *st = PyModule_GetState(m);
    for (int i = 0; i < RV_PY_N_STATUS; i++) Py_VISIT(st->errors[i]);
    for (size_t i = 0; type_slots(st, i); i++) Py_VISIT(*type_slots(st, i));
    return 0;
}

static int module_clear(PyObject *m) {
    rv_py_state *st = PyModule_GetState(m);
    for (int i = 0; i < RV_PY_N_STATUS; i++) Py_CLEAR(st->errors[i]);
    for (size_t i = 0; type_slots(st, i); i++) Py_CLEAR(*type_slots(st, i));
    return 0;
}

static PyObject *live_bytes(PyObject *m, PyObject *none) {
    (void)m, (void)none;
    return PyLong_FromSize_t(rv_live_bytes());
}

/* read_bandwidth(n_threads, n_bytes) -> bytes per second */
static PyObject *read_bandwidth(PyObject *m, PyObject *args) {
    int n_threads;
    Py_ssize_t n;
    double rate = 0.0;
    rv_err err = {0};
    rv_status rc;
    if (!PyArg_ParseTuple(args, "in:read_bandwidth", &n_threads, &n)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_read_bandwidth(n_threads, n < 0 ? 0 : (size_t)n, &rate, &err);
    Py_END_ALLOW_THREADS
    return rc == RV_OK ? PyFloat_FromDouble(rate) : rv_py_raise(PyModule_GetState(m), &err);
}

static PyMethodDef methods[] = {
    {"live_bytes", live_bytes, METH_NOARGS, "Bytes the core's allocator holds."},
    {"read_bandwidth", read_bandwidth, METH_VARARGS,
     "read_bandwidth(n_threads, n_bytes) -> bytes per second one pass over memory reaches."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

struct PyModuleDef rv_py_module = {
    PyModuleDef_HEAD_INIT,         .m_name = "ruvllm._core", .m_doc = "The C core of ruvllm.",
    .m_size = sizeof(rv_py_state), .m_methods = methods,     .m_slots = slots,
    .m_traverse = module_traverse, .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&rv_py_module);
}
