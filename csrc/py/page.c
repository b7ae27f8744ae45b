/* Page: keys and values of sixteen positions of a layer, as they lie in memory. */
#include "py/py.h"

typedef struct {
    PyObject_HEAD
    rv_page_view v;
    Py_ssize_t shape[2], strides[2];
    const char *format;
} Page;

PyObject *rv_py_page_new(rv_py_state *st, rv_page_view *take) {
    Page *p = (Page *)((allocfunc)PyType_GetSlot(st->page, Py_tp_alloc))(st->page, 0);
    if (!p) {
        rv_page_view_free(take);
        return NULL;
    }
    p->v = *take;
    const Py_ssize_t size = take->type == RV_KV_F32 ? 4 : take->type == RV_KV_F16 ? 2 : 1;
    p->format = size == 4 ? "f" : size == 2 ? "e" : "B";
    p->shape[0] = (Py_ssize_t)take->n_heads;
    p->shape[1] = (Py_ssize_t)take->run_bytes / size;
    p->strides[0] = (Py_ssize_t)take->run_bytes;
    p->strides[1] = size;
    return (PyObject *)p;
}

static void page_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_page_view_free(&((Page *)o)->v);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

/* The cast is for a field that Python declares without const; readonly is set. */
static int page_getbuffer(PyObject *o, Py_buffer *b, int flags) {
    Page *p = (Page *)o;
    const Py_ssize_t n = p->shape[0] * p->strides[0];
    b->obj = NULL;
    if (PyBuffer_FillInfo(b, o, (void *)(uintptr_t)p->v.at, n, /*readonly*/ 1, flags) < 0)
        return -1;
    b->itemsize = p->strides[1];
    if (flags & PyBUF_FORMAT) b->format = (char *)(uintptr_t)p->format;
    if (flags & PyBUF_ND) {
        b->ndim = 2;
        b->shape = p->shape;
    }
    if ((flags & PyBUF_STRIDES) == PyBUF_STRIDES) b->strides = p->strides;
    return 0;
}

static PyObject *page_about(PyObject *o, PyObject *none) {
    (void)none;
    const rv_page_view *v = &((Page *)o)->v;
    static const char *const TYPES[] = {"auto", "f16", "f32", "q8_0", "q4_0", "k8v4"};
    return Py_BuildValue("{s:s,s:n,s:n,s:n,s:O}", "type", TYPES[v->type], "n_heads",
                         (Py_ssize_t)v->n_heads, "head_dim", (Py_ssize_t)v->head_dim, "n_tokens",
                         (Py_ssize_t)v->n_tokens, "rotated", v->rotated ? Py_True : Py_False);
}

static PyMethodDef page_methods[] = {
    {"about", page_about, METH_NOARGS, "type, n_heads, head_dim, n_tokens, rotated."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot page_slots[] = {
    {Py_tp_doc, "Sixteen positions of a layer; read them through the buffer protocol."},
    {Py_tp_dealloc, (void *)page_dealloc},
    {Py_tp_methods, page_methods},
    {Py_bf_getbuffer, (void *)page_getbuffer},
    {0, NULL},
};

static PyType_Spec page_spec = {
    .name = "ruvllm._core.Page",
    .basicsize = sizeof(Page),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = page_slots,
};

int rv_py_add_page(PyObject *m, rv_py_state *st) {
    return rv_py_add_type(m, &page_spec, &st->page);
}
