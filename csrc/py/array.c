/* Memory of the core seen from Python: an owner with a read-only buffer, and int32 input. */
#include <stdlib.h>

#include "py/py.h"

#include "base/base.h"

typedef struct {
    PyObject_HEAD
    void *data;
    int n_dims;
    char format[2];
    Py_ssize_t shape[2], strides[2];
} Array;

PyObject *rv_py_array_new(rv_py_state *st, void *take_data, char format, int n_dims, size_t d0,
                          size_t d1) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(st->array, Py_tp_alloc);
    Array *a = (Array *)alloc(st->array, 0);
    if (!a) {
        rv_free(take_data);
        return NULL;
    }
    a->data = take_data;
    a->n_dims = n_dims;
    a->format[0] = format;
    a->shape[0] = (Py_ssize_t)d0;
    a->shape[1] = (Py_ssize_t)d1;
    a->strides[n_dims - 1] = 4;
    if (n_dims == 2) a->strides[0] = 4 * a->shape[1];
    return (PyObject *)a;
}

static void array_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_free(((Array *)o)->data);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

static int array_getbuffer(PyObject *o, Py_buffer *v, int flags) {
    Array *a = (Array *)o;
    Py_ssize_t n = a->shape[0] * (a->n_dims == 2 ? a->shape[1] : 1);
    static char empty[4];
    v->obj = NULL;
    if (PyBuffer_FillInfo(v, o, a->data ? a->data : empty, n * 4, /*readonly*/ 1, flags) < 0)
        return -1;
    v->itemsize = 4;
    if (flags & PyBUF_FORMAT) v->format = a->format;
    if (flags & PyBUF_ND) {
        v->ndim = a->n_dims;
        v->shape = a->shape;
    }
    if ((flags & PyBUF_STRIDES) == PyBUF_STRIDES) v->strides = a->strides;
    return 0;
}

static PyType_Slot array_slots[] = {
    {Py_tp_doc, "Numbers owned by the core; read them through the buffer protocol."},
    {Py_tp_dealloc, (void *)array_dealloc},
    {Py_bf_getbuffer, (void *)array_getbuffer},
    {0, NULL},
};

static PyType_Spec array_spec = {
    .name = "ruvllm._core.Array",
    .basicsize = sizeof(Array),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = array_slots,
};

int rv_py_add_array(PyObject *m, rv_py_state *st) {
    return rv_py_add_type(m, &array_spec, &st->array);
}

static int copy_ints(rv_py_state *st, PyObject *o, rv_py_i32 *out, const char *what) {
    Py_ssize_t n = PySequence_Size(o);
    if (n < 0) return -1;
    out->copy = rv_malloc((size_t)n * 4 + 4);
    if (!out->copy) return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(o, i);
        if (!item) goto fail;
        PyObject *index = PyNumber_Index(item);
        Py_DECREF(item);
        if (!index) goto fail;
        int overflow;
        long long x = PyLong_AsLongLongAndOverflow(index, &overflow);
        Py_DECREF(index);
        if (x == -1 && !overflow && PyErr_Occurred()) goto fail;
        if (overflow || x < INT32_MIN || x > INT32_MAX) {
            PyErr_Format(st->errors[-RV_EARG], "%s[%zd]: does not fit 32 bits", what, i);
            goto fail;
        }
        out->copy[i] = (int32_t)x;
    }
    out->p = out->copy;
    out->n = (size_t)n;
    return 0;
fail:
    rv_free(out->copy);
    out->copy = NULL;
    return -1;
}

int rv_py_get_i32(rv_py_state *st, PyObject *o, rv_py_i32 *out, const char *what) {
    memset(out, 0, sizeof *out);
    if (PyObject_CheckBuffer(o) && !PyBytes_Check(o) && !PyByteArray_Check(o)) {
        if (PyObject_GetBuffer(o, &out->view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return -1;
        const char *f = out->view.format ? out->view.format : "B";
        if (out->view.itemsize == 4 && out->view.ndim == 1 && (*f == 'i' || *f == 'l') && !f[1]) {
            out->p = out->view.buf;
            out->n = (size_t)out->view.len / 4;
            return 0;
        }
        PyBuffer_Release(&out->view); /* other integers: one by one */
    }
    if (PyUnicode_Check(o) || PyBytes_Check(o) || !PySequence_Check(o)) {
        PyErr_Format(st->errors[-RV_EARG], "%s: want a sequence of integers or an int32 array",
                     what);
        return -1;
    }
    return copy_ints(st, o, out, what);
}

void rv_py_release_i32(rv_py_i32 *v) {
    if (v->view.obj) PyBuffer_Release(&v->view);
    rv_free(v->copy);
    memset(v, 0, sizeof *v);
}
