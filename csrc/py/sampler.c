/* _core.Sampler: parameters in, logits in, a token out.  Keywords and defaults live in ruvllm/. */
#include "py/py.h"

#include "base/base.h"

/* Numbers by hand rather than by format codes, so that each failure is an ArgumentError that
 * names its parameter. */
static int arg_fail(rv_py_state *st, PyObject *o, const char *name, const char *want) {
    PyErr_Clear();
    PyObject *type = PyType_GetName(Py_TYPE(o));
    if (type) PyErr_Format(st->errors[-RV_EARG], "%s: is a %U, want %s", name, type, want);
    Py_XDECREF(type);
    return -1;
}

static int get_f32(rv_py_state *st, PyObject *o, const char *name, float *out) {
    double v = PyFloat_AsDouble(o);
    if (v == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) return arg_fail(st, o, name, "a number");
        PyErr_Clear();
        PyErr_Format(st->errors[-RV_EARG], "%s: is an int too great for a float", name);
        return -1;
    }
    *out = (float)v;
    return 0;
}

static int get_i32(rv_py_state *st, PyObject *o, const char *name, int32_t *out) {
    PyObject *index = PyNumber_Index(o);
    if (!index) return arg_fail(st, o, name, "an int");
    int overflow;
    long v = PyLong_AsLongAndOverflow(index, &overflow);
    if (overflow || v < INT32_MIN || v > INT32_MAX) {
        PyErr_Format(st->errors[-RV_EARG], "%s: is %S, want an int of 32 bits", name, index);
        Py_DECREF(index);
        return -1;
    }
    Py_DECREF(index);
    *out = (int32_t)v;
    return 0;
}

static int get_u64(rv_py_state *st, PyObject *o, const char *name, uint64_t *out) {
    PyObject *index = PyNumber_Index(o);
    if (!index) return arg_fail(st, o, name, "an int");
    *out = PyLong_AsUnsignedLongLong(index);
    if (*out == UINT64_MAX && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(st->errors[-RV_EARG], "%s: is %S, want 0 to 2^64 - 1", name, index);
        Py_DECREF(index);
        return -1;
    }
    Py_DECREF(index);
    return 0;
}

/* [n] float32 from a sequence of numbers; rv_free. */
static float *get_floats(rv_py_state *st, PyObject *o, const char *name, size_t n) {
    Py_ssize_t found = PySequence_Check(o) ? PySequence_Size(o) : -1;
    if (found < 0) return arg_fail(st, o, name, "a sequence of numbers"), NULL;
    if ((size_t)found != n) {
        PyErr_Format(st->errors[-RV_EARG], "%s: has %zd entries, want %zu, one per id", name, found,
                     n);
        return NULL;
    }
    float *v = rv_malloc(n * sizeof *v);
    if (!v) return PyErr_NoMemory(), NULL;
    for (size_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(o, (Py_ssize_t)i);
        int rc = item ? get_f32(st, item, name, &v[i]) : -1;
        Py_XDECREF(item);
        if (rc < 0) {
            rv_free(v);
            return NULL;
        }
    }
    return v;
}

enum {
    A_TEMPERATURE,
    A_TOP_K,
    A_TOP_P,
    A_MIN_P,
    A_TYPICAL_P,
    A_REPEAT,
    A_FREQUENCY,
    A_PRESENCE,
    A_LAST_N,
    A_SEED,
    A_BIAS_IDS,
    A_BIAS,
    A_N_LOGPROBS,
};
_Static_assert(A_N_LOGPROBS + 1 == RV_PY_N_PARAMS, "what py.h says");

static int get_numbers(rv_py_state *st, PyObject *const *a, rv_sample_params *p) {
    const struct {
        int i;
        const char *name;
        float *out;
    } floats[] = {
        {A_TEMPERATURE, "temperature", &p->temperature},
        {A_TOP_P, "top_p", &p->top_p},
        {A_MIN_P, "min_p", &p->min_p},
        {A_TYPICAL_P, "typical_p", &p->typical_p},
        {A_REPEAT, "repeat_penalty", &p->repeat_penalty},
        {A_FREQUENCY, "frequency_penalty", &p->frequency_penalty},
        {A_PRESENCE, "presence_penalty", &p->presence_penalty},
    };
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++)
        if (get_f32(st, a[floats[i].i], floats[i].name, floats[i].out) < 0) return -1;
    if (get_i32(st, a[A_TOP_K], "top_k", &p->top_k) < 0) return -1;
    if (get_i32(st, a[A_LAST_N], "penalty_last_n", &p->penalty_last_n) < 0) return -1;
    if (get_u64(st, a[A_SEED], "seed", &p->seed) < 0) return -1;
    return get_i32(st, a[A_N_LOGPROBS], "n_logprobs", &p->n_logprobs);
}

int rv_py_get_params(rv_py_state *st, PyObject *const *a, rv_py_params *out) {
    memset(out, 0, sizeof *out);
    rv_sample_defaults(&out->p);
    if (get_numbers(st, a, &out->p) < 0) return -1;
    if (rv_py_get_i32(st, a[A_BIAS_IDS], &out->ids, "bias_ids") < 0) return -1;
    out->bias = get_floats(st, a[A_BIAS], "bias", out->ids.n);
    if (!out->bias) {
        rv_py_release_params(out);
        return -1;
    }
    out->p.bias_ids = out->ids.p;
    out->p.bias = out->bias;
    out->p.n_bias = out->ids.n;
    return 0;
}

void rv_py_release_params(rv_py_params *p) {
    rv_free(p->bias);
    p->bias = NULL;
    rv_py_release_i32(&p->ids);
}

static PyObject *sampler_new(PyObject *module, PyObject *const *a, Py_ssize_t n_args) {
    rv_py_state *st = rv_py_state_of_module(module);
    if (n_args != RV_PY_N_PARAMS + 1)
        return PyErr_Format(PyExc_TypeError, "sampler_new: takes %d arguments, found %zd",
                            RV_PY_N_PARAMS + 1, n_args);
    rv_py_params p;
    int32_t n_vocab;
    if (get_i32(st, a[RV_PY_N_PARAMS], "n_vocab", &n_vocab) < 0) return NULL;
    if (rv_py_get_params(st, a, &p) < 0) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(st->sampler, Py_tp_alloc);
    PyObject *o = alloc(st->sampler, 0);
    if (o) {
        rv_err err = {0};
        ((rv_py_sampler *)o)->n_vocab = n_vocab;
        if (rv_sampler_new(&((rv_py_sampler *)o)->h, &p.p, n_vocab, &err) != RV_OK) {
            Py_CLEAR(o);
            rv_py_raise(st, &err);
        }
    }
    rv_py_release_params(&p);
    return o;
}

static void sampler_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_sampler_free(&((rv_py_sampler *)o)->h);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

static int sampler_enter(rv_py_state *st, rv_py_sampler *s) {
    if (s->busy) {
        PyErr_SetString(st->errors[-RV_ESTATE],
                        "sampler: is in use by another thread, want one thread at a time");
        return -1;
    }
    s->busy = 1;
    return 0;
}

static PyObject *sampler_accept(PyObject *o, PyObject *arg) {
    rv_py_sampler *s = (rv_py_sampler *)o;
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    rv_py_i32 ids;
    if (rv_py_get_i32(st, arg, &ids, "ids") < 0) return NULL;
    rv_err err = {0};
    rv_status rc = RV_OK;
    if (sampler_enter(st, s) < 0) {
        rv_py_release_i32(&ids);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    rc = rv_sampler_accept(s->h, ids.p, ids.n, &err);
    Py_END_ALLOW_THREADS
    s->busy = 0;
    rv_py_release_i32(&ids);
    if (rc != RV_OK) return rv_py_raise(st, &err);
    Py_RETURN_NONE;
}

int rv_py_tops(const int32_t *ids, const float *logprobs, size_t n, PyObject **ids_out,
               PyObject **logprobs_out) {
    PyObject *t = *ids_out = PyTuple_New((Py_ssize_t)n);
    PyObject *p = *logprobs_out = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; t && p && i < n; i++) {
        PyObject *id = PyLong_FromLong(ids[i]);
        PyObject *logprob = PyFloat_FromDouble(logprobs[i]);
        if (id && logprob && PyTuple_SetItem(t, (Py_ssize_t)i, id) == 0) {
            if (PyTuple_SetItem(p, (Py_ssize_t)i, logprob) == 0) continue;
        } else {
            Py_XDECREF(logprob);
        }
        Py_CLEAR(t);
    }
    if (t && p) return 0;
    Py_XDECREF(t);
    Py_XDECREF(p);
    *ids_out = *logprobs_out = NULL;
    return -1;
}

static PyObject *sampled(const rv_sampled *r) {
    PyObject *ids, *logprobs;
    if (rv_py_tops(r->top_ids, r->top_logprobs, r->n_top, &ids, &logprobs) < 0) return NULL;
    return Py_BuildValue("(idNN)", r->id, (double)r->logprob, ids, logprobs);
}

/* A C-contiguous buffer of n items of 4 bytes whose format is one of the letters. */
static int get_words(rv_py_state *st, PyObject *o, Py_buffer *v, const char *what,
                     const char *letters, const char *type, Py_ssize_t n) {
    if (!PyObject_CheckBuffer(o)) return arg_fail(st, o, what, type);
    if (PyObject_GetBuffer(o, v, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return arg_fail(st, o, what, "a C-contiguous array");
    const char *f = v->format ? v->format : "B";
    if (v->itemsize == 4 && *f && strchr(letters, *f) && !f[1] && v->len == 4 * n) return 0;
    PyErr_Format(st->errors[-RV_EARG], "%s: has %zd items of %zd bytes, format \"%s\"; want %zd %s",
                 what, v->itemsize ? v->len / v->itemsize : 0, v->itemsize, f, n, type);
    PyBuffer_Release(v);
    return -1;
}

int rv_py_get_mask(rv_py_state *st, PyObject *o, size_t n_vocab, Py_buffer *v) {
    if (o == Py_None) return 0;
    return get_words(st, o, v, "allow", "iIlL", "int32 or uint32 words",
                     (Py_ssize_t)((n_vocab + 31) / 32));
}

PyObject *rv_py_sampler_draw(rv_py_state *st, PyObject *o, const float *logits, size_t n,
                             uint64_t pos, PyObject *mask) {
    rv_py_sampler *s = (rv_py_sampler *)o;
    Py_buffer allow = {0};
    rv_err err = {0};
    rv_sampled r;
    PyObject *result = NULL;
    if (n != (size_t)s->n_vocab) {
        rv_fail(&err, RV_EARG, "sampler: was made for %zd tokens, the logits are of %zu",
                s->n_vocab, n);
        return rv_py_raise(st, &err);
    }
    if (rv_py_get_mask(st, mask, (size_t)s->n_vocab, &allow) < 0) return NULL;
    if (sampler_enter(st, s) == 0) {
        rv_status rc;
        Py_BEGIN_ALLOW_THREADS
        rc = rv_sampler_sample(s->h, logits, pos, allow.buf, &r, &err);
        Py_END_ALLOW_THREADS
        result = rc == RV_OK ? sampled(&r) : rv_py_raise(st, &err);
        s->busy = 0;
    }
    if (allow.obj) PyBuffer_Release(&allow);
    return result;
}

static PyObject *sampler_sample(PyObject *o, PyObject *const *a, Py_ssize_t n_args) {
    rv_py_sampler *s = (rv_py_sampler *)o;
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    if (n_args != 3)
        return PyErr_Format(PyExc_TypeError, "sample: takes 3 arguments, found %zd", n_args);
    uint64_t pos;
    Py_buffer logits;
    if (get_u64(st, a[1], "pos", &pos) < 0) return NULL;
    if (get_words(st, a[0], &logits, "logits", "f", "float32", s->n_vocab) < 0) return NULL;
    PyObject *result = rv_py_sampler_draw(st, o, logits.buf, (size_t)s->n_vocab, pos, a[2]);
    PyBuffer_Release(&logits);
    return result;
}

static PyMethodDef sampler_methods[] = {
    {"accept", sampler_accept, METH_O, "accept(ids): tokens already in the text, for penalties."},
    {"sample", (PyCFunction)(void (*)(void))sampler_sample, METH_FASTCALL,
     "sample(logits, pos, allow) -> (id, logprob, top_ids, top_logprobs)."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sampler_slots[] = {
    {Py_tp_doc, "Chooses tokens from logits."},
    {Py_tp_dealloc, (void *)sampler_dealloc},
    {Py_tp_methods, sampler_methods},
    {0, NULL},
};

static PyType_Spec sampler_spec = {
    .name = "ruvllm._core.Sampler",
    .basicsize = sizeof(rv_py_sampler),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = sampler_slots,
};

static PyMethodDef functions[] = {
    {"sampler_new", (PyCFunction)(void (*)(void))sampler_new, METH_FASTCALL,
     "sampler_new(temperature, top_k, top_p, min_p, typical_p, repeat_penalty, "
     "frequency_penalty, presence_penalty, penalty_last_n, seed, bias_ids, bias, n_logprobs, "
     "n_vocab) -> Sampler."},
    {NULL, NULL, 0, NULL},
};

int rv_py_add_sampler(PyObject *m, rv_py_state *st) {
    if (rv_py_add_type(m, &sampler_spec, &st->sampler) < 0) return -1;
    return PyModule_AddFunctions(m, functions);
}
