/* Model, Cancel: open a file, look into it, embed. */
#include "py/py.h"

#include "base/base.h"

typedef struct {
    PyObject_HEAD
    rv_cancel *h;
} Cancel;

/* ---- Cancel ---- */

static PyObject *cancel_new(PyTypeObject *type, PyObject *args, PyObject *kw) {
    (void)args, (void)kw;
    rv_err err = {0};
    rv_cancel *h;
    if (rv_cancel_new(&h, &err) != RV_OK) return rv_py_raise(rv_py_state_of(type), &err);
    Cancel *c = (Cancel *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (c)
        c->h = h;
    else
        rv_cancel_free(&h);
    return (PyObject *)c;
}

static void cancel_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_cancel_free(&((Cancel *)o)->h);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

static PyObject *cancel_set(PyObject *o, PyObject *on) {
    int yes = PyObject_IsTrue(on);
    if (yes < 0) return NULL;
    rv_cancel_set(((Cancel *)o)->h, yes);
    Py_RETURN_NONE;
}

static PyObject *cancel_get(PyObject *o, PyObject *none) {
    (void)none;
    return PyBool_FromLong(rv_cancel_get(((Cancel *)o)->h));
}

static PyMethodDef cancel_methods[] = {
    {"set", cancel_set, METH_O, "Set or clear the flag."},
    {"get", cancel_get, METH_NOARGS, "Whether the flag is set."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot cancel_slots[] = {
    {Py_tp_doc, "A flag that stops a running call."},
    {Py_tp_new, (void *)cancel_new},
    {Py_tp_dealloc, (void *)cancel_dealloc},
    {Py_tp_methods, cancel_methods},
    {0, NULL},
};

static PyType_Spec cancel_spec = {
    .name = "ruvllm._core.Cancel",
    .basicsize = sizeof(Cancel),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = cancel_slots,
};

int rv_py_get_cancel(rv_py_state *st, PyObject *o, rv_cancel **out) {
    *out = NULL;
    if (o == Py_None) return 0;
    if (!PyObject_TypeCheck(o, st->cancel)) {
        PyErr_SetString(PyExc_TypeError, "cancel: want a Cancel or None");
        return -1;
    }
    *out = ((Cancel *)o)->h;
    return 0;
}

/* ---- Model ---- */

typedef struct progress {
    PyObject *fn;
    bool failed;
} progress;

static bool report(void *ctx, double fraction) {
    progress *p = ctx;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *r = PyObject_CallFunction(p->fn, "d", fraction);
    if (!r) p->failed = true;
    Py_XDECREF(r);
    PyGILState_Release(gil);
    return !p->failed;
}

/* model_open(path, n_threads, kv_type, n_batch, prefault, progress, repack=0, kv_budget=0,
 * kv_store=0, kv_rotate=True, kv_tail=0, kv_batch=0, kv_fit=0, share=True, numerics=0,
 * memory=None) */
static PyObject *model_open(PyObject *m, PyObject *args) {
    rv_py_state *st = rv_py_state_of_module(m);
    PyObject *path = NULL, *fn, *memory = Py_None;
    rv_budget *budget = NULL;
    unsigned long long kv_budget = 0;
    int n_threads, kv_type, n_batch, prefault, repack = 0;
    int kv_store = 0, kv_rotate = 1, kv_tail = 0, kv_batch = 0, kv_fit = 0, share = 1, numerics = 0;
    if (!PyArg_ParseTuple(args, "O&iiipO|iKipiiipiO:model_open", PyUnicode_FSConverter, &path,
                          &n_threads, &kv_type, &n_batch, &prefault, &fn, &repack, &kv_budget,
                          &kv_store, &kv_rotate, &kv_tail, &kv_batch, &kv_fit, &share, &numerics,
                          &memory))
        return NULL;
    if (rv_py_get_budget(st, memory, &budget) < 0) {
        Py_DECREF(path);
        return NULL;
    }
    progress p = {fn, false};
    rv_model_opts o = {.n_threads = n_threads,
                       .kv_type = (rv_kv_type)kv_type,
                       .n_batch = n_batch,
                       .prefault = prefault,
                       .repack = (rv_repack)repack,
                       .numerics = (rv_numerics)numerics,
                       .kv_budget = kv_budget,
                       .memory = budget,
                       .kv_store = (rv_kv_type)kv_store,
                       .kv_no_rotate = !kv_rotate,
                       .kv_tail = kv_tail,
                       .kv_batch = kv_batch,
                       .kv_fit = (rv_fit)kv_fit,
                       .no_sharing = !share,
                       .progress = fn == Py_None ? NULL : report,
                       .progress_ctx = &p};
    rv_py_model *self =
        (rv_py_model *)((allocfunc)PyType_GetSlot(st->model, Py_tp_alloc))(st->model, 0);
    if (!self) {
        Py_DECREF(path);
        return NULL;
    }
    rv_err err = {0};
    rv_status rc;
    const char *cpath = PyBytes_AsString(path);
    Py_BEGIN_ALLOW_THREADS
    rc = rv_model_open(&self->h, cpath, &o, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (rc == RV_OK) return (PyObject *)self;
    Py_DECREF(self);
    return p.failed ? NULL : rv_py_raise(st, &err);
}

static void model_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_model *h = ((rv_py_model *)o)->h;
    Py_BEGIN_ALLOW_THREADS /* joins the pool's threads */
    rv_model_free(&h);
    Py_END_ALLOW_THREADS((freefunc)PyType_GetSlot(t, Py_tp_free))
    (o);
    Py_DECREF(t);
}

static const char *const KV_TYPES[] = {"auto", "f16", "f32", "q8_0", "q4_0", "k8v4"};
static const char *const NUMERICS[] = {"exact", "fast"};
static const char *const POOLING[] = {"none", "mean", "cls", "last"};

static PyObject *str_of(rv_str s) {
    return PyUnicode_DecodeUTF8(s.p ? s.p : "", (Py_ssize_t)s.n, "replace");
}

static PyObject *model_info(PyObject *o, PyObject *none) {
    (void)none;
    const rv_model_info *i = rv_model_get_info(((rv_py_model *)o)->h);
    return Py_BuildValue(
        "{s:N,s:N,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:N,s:s,s:s,s:z,s:s,s:i,s:i,s:K,s:K,s:K,"
        "s:K,s:i}",
        "arch", str_of(i->arch), "name", str_of(i->name), "n_vocab", i->n_vocab, "n_embd",
        i->n_embd, "n_layer", i->n_layer, "n_head", i->n_head, "n_head_kv", i->n_head_kv,
        "head_dim", i->head_dim, "n_ff", i->n_ff, "n_ctx", i->n_ctx, "n_swa", i->n_swa,
        "n_kv_layers", i->n_kv_layers, "causal", PyBool_FromLong(i->causal), "pooling",
        POOLING[i->pooling], "kv_type", KV_TYPES[i->kv_type], "kv_store",
        i->kv_store ? KV_TYPES[i->kv_store] : NULL, "numerics", NUMERICS[i->numerics], "n_threads",
        i->n_threads, "n_batch", i->n_batch, "n_params", (unsigned long long)i->n_params, "n_bytes",
        (unsigned long long)i->n_bytes, "kv_bytes_per_token",
        (unsigned long long)i->kv_bytes_per_token, "kv_store_bytes_per_token",
        (unsigned long long)i->kv_store_bytes_per_token, "main_type", (int)i->main_type);
}

static PyObject *model_tokenizer(PyObject *o, PyObject *none) {
    (void)none;
    rv_tok *t = rv_model_tok(((rv_py_model *)o)->h);
    if (!t) Py_RETURN_NONE;
    return rv_py_tok_wrap(rv_py_state_of(Py_TYPE(o)), rv_tok_ref(t));
}

static PyObject *model_gguf(PyObject *o, PyObject *none) {
    (void)none;
    return rv_py_gguf_wrap(rv_py_state_of(Py_TYPE(o)), rv_model_gguf(((rv_py_model *)o)->h), o);
}

/* embed(tokens int32, lengths int32, cancel) -> Array float32 (n, n_embd) */
static PyObject *model_embed(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    rv_model *h = ((rv_py_model *)o)->h;
    PyObject *tok_o, *len_o, *cancel_o, *result = NULL;
    rv_py_i32 tok = {0}, len = {0};
    rv_cancel *cancel;
    if (!PyArg_ParseTuple(args, "OOO:embed", &tok_o, &len_o, &cancel_o)) return NULL;
    if (rv_py_get_cancel(st, cancel_o, &cancel) < 0) return NULL;
    if (rv_py_get_i32(st, tok_o, &tok, "tokens") < 0) return NULL;
    if (rv_py_get_i32(st, len_o, &len, "lengths") < 0) {
        rv_py_release_i32(&tok);
        return NULL;
    }
    const size_t e = (size_t)rv_model_get_info(h)->n_embd;
    size_t *lens = rv_calloc(len.n + 1, sizeof *lens), total = 0;
    float *out = rv_alloc_aligned((len.n * e + 1) * 4);
    rv_err err = {0};
    rv_status rc = lens && out ? RV_OK : rv_fail(&err, RV_ENOMEM, "embed: out of memory");
    for (size_t i = 0; rc == RV_OK && i < len.n; i++) {
        if (len.p[i] < 0)
            rc = rv_fail(&err, RV_EARG, "lengths[%zu]: is %d, want >= 0", i, len.p[i]);
        lens[i] = (size_t)len.p[i];
        total += lens[i];
    }
    if (rc == RV_OK && total != tok.n)
        rc = rv_fail(&err, RV_EARG, "lengths: sum to %zu, want the %zu tokens given", total, tok.n);
    if (rc == RV_OK) {
        Py_BEGIN_ALLOW_THREADS
        rc = rv_model_embed(h, tok.p, lens, len.n, cancel, out, &err);
        Py_END_ALLOW_THREADS
    }
    const size_t n = len.n;
    rv_free(lens);
    rv_py_release_i32(&tok);
    rv_py_release_i32(&len);
    if (rc == RV_OK) {
        result = rv_py_array_new(st, out, 'f', 2, n, e);
    } else {
        rv_free(out);
        rv_py_raise(st, &err);
    }
    return result;
}

static PyObject *model_repacked_bytes(PyObject *o, PyObject *none) {
    (void)none;
    return PyLong_FromSize_t(rv_model_repacked_bytes(((rv_py_model *)o)->h));
}

static PyObject *model_work_bytes(PyObject *o, PyObject *none) {
    (void)none;
    return PyLong_FromSize_t(rv_model_work_bytes(((rv_py_model *)o)->h));
}

static PyObject *model_memory(PyObject *o, PyObject *none) {
    (void)none;
    rv_budget *b = rv_model_memory(((rv_py_model *)o)->h);
    if (!b) Py_RETURN_NONE;
    return rv_py_budget_wrap(rv_py_state_of(Py_TYPE(o)), rv_budget_ref(b));
}

static PyObject *model_kv_stats(PyObject *o, PyObject *none) {
    (void)none;
    rv_kv_stats s;
    rv_model_get_kv_stats(((rv_py_model *)o)->h, &s);
    const rv_py_count all[] = {
        {"budget_bytes", s.budget_bytes},
        {"held_bytes", s.held_bytes},
        {"peak_bytes", s.peak_bytes},
        {"used_bytes", s.used_bytes},
        {"n_pages", s.n_pages},
        {"n_pages_free", s.n_pages_free},
        {"n_evictable", s.n_evictable},
        {"n_evicted", s.n_evicted},
        {"evictable_bytes", s.evictable_bytes},
        {"n_nodes", s.n_nodes},
        {"n_sequences", s.n_sequences},
        {"n_looked_up", s.n_looked_up},
        {"n_hit", s.n_hit},
        {"n_migrated", s.n_migrated},
        {"n_copied", s.n_copied},
    };
    return rv_py_counts(all, RV_COUNT(all));
}

static PyMethodDef model_methods[] = {
    {"info", model_info, METH_NOARGS, "Hyperparameters and sizes as a dict."},
    {"tokenizer", model_tokenizer, METH_NOARGS, "The file's Tokenizer, or None."},
    {"gguf", model_gguf, METH_NOARGS, "The open file as a GGUF."},
    {"repacked_bytes", model_repacked_bytes, METH_NOARGS, "Memory of repacked weights so far."},
    {"work_bytes", model_work_bytes, METH_NOARGS, "Memory of work areas that are not in use."},
    {"memory", model_memory, METH_NOARGS, "The Budget of its keys and values, or None."},
    {"kv_stats", model_kv_stats, METH_NOARGS, "Memory of keys and values, and its use, as a dict."},
    {"embed", model_embed, METH_VARARGS, "embed(tokens, lengths, cancel) -> Array (n, n_embd)."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_doc, "An open model."},
    {Py_tp_dealloc, (void *)model_dealloc},
    {Py_tp_methods, model_methods},
    {0, NULL},
};

static PyType_Spec model_spec = {
    .name = "ruvllm._core.Model",
    .basicsize = sizeof(rv_py_model),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};

static PyMethodDef functions[] = {
    {"model_open", model_open, METH_VARARGS,
     "model_open(path, n_threads, kv_type, n_batch, prefault, progress, repack=0, kv_budget=0, "
     "kv_store=0, kv_rotate=True, kv_tail=0, kv_batch=0, kv_fit=0, share=True, "
     "numerics=0, memory=None) -> Model."},
    {NULL, NULL, 0, NULL},
};

int rv_py_add_model(PyObject *m, rv_py_state *st) {
    if (rv_py_add_type(m, &model_spec, &st->model) < 0) return -1;
    if (rv_py_add_type(m, &cancel_spec, &st->cancel) < 0) return -1;
    return PyModule_AddFunctions(m, functions);
}
