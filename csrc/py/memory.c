/* Budget, Holder: one byte budget, and who holds part of it.
 *
 * A holder has a function of Python's, which the core calls from whatever thread wants memory.  The
 * function must not refer to its holder but weakly: nothing here looks for cycles. */
#include "py/py.h"

#include "base/base.h"

typedef struct {
    PyObject_HEAD
    rv_budget *h;
} Budget;

typedef struct {
    PyObject_HEAD
    rv_budget_member *h;
    PyObject *fn; /* or NULL */
} Holder;

/* ---- Holder ---- */

/* The holder may be freed by what its function does, and is not looked at afterwards. */
static bool shrink(void *ctx, uint64_t want) {
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *fn = Py_NewRef(((Holder *)ctx)->fn);
    PyObject *r = PyObject_CallFunction(fn, "K", (unsigned long long)want);
    const int freed = r ? PyObject_IsTrue(r) : -1;
    if (freed < 0) PyErr_WriteUnraisable(fn);
    Py_XDECREF(r);
    Py_DECREF(fn);
    PyGILState_Release(gil);
    return freed > 0;
}

static void tell(void *ctx) {
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *fn = Py_NewRef(((Holder *)ctx)->fn), *r = PyObject_CallNoArgs(fn);
    if (!r) PyErr_WriteUnraisable(fn);
    Py_XDECREF(r);
    Py_DECREF(fn);
    PyGILState_Release(gil);
}

static Holder *new_holder(rv_py_state *st, PyObject *fn) {
    Holder *s = (Holder *)((allocfunc)PyType_GetSlot(st->holder, Py_tp_alloc))(st->holder, 0);
    if (s && fn != Py_None) s->fn = Py_NewRef(fn);
    return s;
}

static void holder_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    Holder *s = (Holder *)o;
    rv_budget_member *h = s->h;
    Py_BEGIN_ALLOW_THREADS /* its function may be about to run in another thread */
    rv_budget_leave(&h);
    Py_END_ALLOW_THREADS
    Py_XDECREF(s->fn);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

static PyObject *holder_take(PyObject *o, PyObject *arg) {
    const unsigned long long n = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred()) return NULL;
    rv_budget_member *h = ((Holder *)o)->h;
    rv_err err = {0};
    rv_status rc;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_budget_take(h, n, &err);
    Py_END_ALLOW_THREADS
    if (rc != RV_OK) return rv_py_raise(rv_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}

static PyObject *holder_give(PyObject *o, PyObject *none) {
    (void)none;
    rv_budget_member *h = ((Holder *)o)->h;
    rv_budget_give(h, rv_budget_held(h));
    Py_RETURN_NONE;
}

static PyObject *holder_use(PyObject *o, PyObject *none) {
    (void)none;
    rv_budget_use(((Holder *)o)->h);
    Py_RETURN_NONE;
}

static PyObject *holder_held(PyObject *o, PyObject *none) {
    (void)none;
    return PyLong_FromUnsignedLongLong(rv_budget_held(((Holder *)o)->h));
}

static PyMethodDef holder_methods[] = {
    {"take", holder_take, METH_O, "take(bytes): count them; others may have to go."},
    {"give", holder_give, METH_NOARGS, "Give all of it back."},
    {"use", holder_use, METH_NOARGS, "It is the most recently used of its priority."},
    {"held", holder_held, METH_NOARGS, "Bytes it holds."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot holder_slots[] = {
    {Py_tp_doc, "Part of a budget."},
    {Py_tp_dealloc, (void *)holder_dealloc},
    {Py_tp_methods, holder_methods},
    {0, NULL},
};

static PyType_Spec holder_spec = {
    .name = "ruvllm._core.Holder",
    .basicsize = sizeof(Holder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = holder_slots,
};

/* ---- Budget ---- */

PyObject *rv_py_budget_wrap(rv_py_state *st, rv_budget *take) {
    Budget *b = (Budget *)((allocfunc)PyType_GetSlot(st->budget, Py_tp_alloc))(st->budget, 0);
    if (b)
        b->h = take;
    else
        rv_budget_free(&take);
    return (PyObject *)b;
}

int rv_py_get_budget(rv_py_state *st, PyObject *o, rv_budget **out) {
    *out = NULL;
    if (o == Py_None) return 0;
    if (!PyObject_TypeCheck(o, st->budget)) {
        PyErr_SetString(PyExc_TypeError, "memory: want a Budget or None");
        return -1;
    }
    *out = ((Budget *)o)->h;
    return 0;
}

static PyObject *budget_new(PyObject *m, PyObject *arg) {
    rv_py_state *st = rv_py_state_of_module(m);
    const unsigned long long n = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred()) return NULL;
    rv_err err = {0};
    rv_budget *h;
    if (rv_budget_new(&h, n, &err) != RV_OK) return rv_py_raise(st, &err);
    return rv_py_budget_wrap(st, h);
}

static void budget_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_budget_free(&((Budget *)o)->h);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

/* join(name, priority, shrink) -> Holder */
static PyObject *budget_join(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    const char *name;
    int priority;
    PyObject *fn;
    if (!PyArg_ParseTuple(args, "siO:join", &name, &priority, &fn)) return NULL;
    Holder *s = new_holder(st, fn);
    if (!s) return NULL;
    rv_err err = {0};
    if (rv_budget_join(&s->h, ((Budget *)o)->h, name, priority, s->fn ? shrink : NULL, s, &err) ==
        RV_OK)
        return (PyObject *)s;
    Py_DECREF(s);
    return rv_py_raise(st, &err);
}

/* watch(fraction, tell) -> Holder */
static PyObject *budget_watch(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    double fraction;
    PyObject *fn;
    if (!PyArg_ParseTuple(args, "dO:watch", &fraction, &fn)) return NULL;
    Holder *s = new_holder(st, fn);
    if (!s) return NULL;
    rv_err err = {0};
    if (rv_budget_watch(&s->h, ((Budget *)o)->h, fraction, tell, s, &err) == RV_OK)
        return (PyObject *)s;
    Py_DECREF(s);
    return rv_py_raise(st, &err);
}

static PyObject *budget_resize(PyObject *o, PyObject *arg) {
    const unsigned long long n = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred()) return NULL;
    rv_budget *h = ((Budget *)o)->h;
    uint64_t over;
    Py_BEGIN_ALLOW_THREADS
    over = rv_budget_resize(h, n);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLongLong(over);
}

static PyObject *budget_stats(PyObject *o, PyObject *none) {
    (void)none;
    rv_budget_stats s;
    rv_budget_get_stats(((Budget *)o)->h, &s);
    const rv_py_count all[] = {{"budget", s.budget},
                               {"used", s.used},
                               {"peak", s.peak},
                               {"n_refused", s.n_refused},
                               {"n_shrinks", s.n_shrinks}};
    return rv_py_counts(all, RV_COUNT(all));
}

/* holders() -> [(name, priority, bytes)] */
static PyObject *budget_holders(PyObject *o, PyObject *none) {
    (void)none;
    rv_budget *h = ((Budget *)o)->h;
    size_t n = 0, cap = 0;
    rv_budget_holding *all = NULL;
    while ((n = rv_budget_list(h, all, cap)) > cap) { /* more may have come */
        rv_free(all);
        cap = n + 8;
        all = rv_calloc(cap, sizeof *all);
        if (!all) return PyErr_NoMemory();
    }
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list && i < n; i++) {
        const char *name = all[i].name;
        PyObject *item =
            Py_BuildValue("(NiK)", PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace"),
                          all[i].priority, (unsigned long long)all[i].bytes);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0) Py_CLEAR(list);
    }
    rv_free(all);
    return list;
}

static PyMethodDef budget_methods[] = {
    {"join", budget_join, METH_VARARGS, "join(name, priority, shrink) -> Holder."},
    {"watch", budget_watch, METH_VARARGS, "watch(fraction, tell) -> Holder."},
    {"resize", budget_resize, METH_O, "resize(bytes) -> bytes over it that nobody could free."},
    {"stats", budget_stats, METH_NOARGS, "budget, used, peak, n_refused, n_shrinks as a dict."},
    {"holders", budget_holders, METH_NOARGS, "(name, priority, bytes) of each that holds some."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot budget_slots[] = {
    {Py_tp_doc, "A byte budget for several holders of memory."},
    {Py_tp_dealloc, (void *)budget_dealloc},
    {Py_tp_methods, budget_methods},
    {0, NULL},
};

static PyType_Spec budget_spec = {
    .name = "ruvllm._core.Budget",
    .basicsize = sizeof(Budget),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = budget_slots,
};

static PyMethodDef functions[] = {
    {"budget_new", budget_new, METH_O, "budget_new(bytes) -> Budget."},
    {NULL, NULL, 0, NULL},
};

int rv_py_add_memory(PyObject *m, rv_py_state *st) {
    if (rv_py_add_type(m, &budget_spec, &st->budget) < 0) return -1;
    if (rv_py_add_type(m, &holder_spec, &st->holder) < 0) return -1;
    return PyModule_AddFunctions(m, functions);
}
