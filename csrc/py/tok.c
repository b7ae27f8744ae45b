/* The type _core.Tokenizer: text to ids and back.  Immutable, so every method may run at once in
 * several threads; encode and decode work without the GIL. */
#include "py/py.h"

#include "base/base.h"

PyObject *rv_py_tok_wrap(rv_py_state *st, rv_tok *take) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(st->tok, Py_tp_alloc);
    rv_py_tok *o = (rv_py_tok *)alloc(st->tok, 0);
    if (o)
        o->h = take;
    else
        rv_tok_free(&take);
    return (PyObject *)o;
}

static void tok_dealloc(PyObject *o) {
    PyTypeObject *t = Py_TYPE(o);
    rv_tok_free(&((rv_py_tok *)o)->h);
    ((freefunc)PyType_GetSlot(t, Py_tp_free))(o);
    Py_DECREF(t);
}

static rv_tok *handle(PyObject *o) {
    return ((rv_py_tok *)o)->h;
}

static PyObject *bytes_of(rv_str s) {
    return PyBytes_FromStringAndSize(s.n ? s.p : "", (Py_ssize_t)s.n);
}

/* ---- methods ---- */

/* The UTF-8 of a str, or the bytes of a bytes object; both live as long as o. */
static int text_of(rv_py_state *st, PyObject *o, rv_str *out) {
    Py_ssize_t n = 0;
    char *p = NULL;
    if (PyBytes_Check(o)) {
        if (PyBytes_AsStringAndSize(o, &p, &n) < 0) return -1;
    } else if (PyUnicode_Check(o)) {
        p = (char *)(uintptr_t)PyUnicode_AsUTF8AndSize(o, &n);
        if (!p) {
            if (!PyErr_ExceptionMatches(PyExc_UnicodeError)) return -1;
            PyErr_Clear();
            PyErr_SetString(st->errors[-RV_EARG],
                            "text: found a str with a lone surrogate, want Unicode text");
            return -1;
        }
    } else {
        PyErr_SetString(st->errors[-RV_EARG], "text: want str or bytes");
        return -1;
    }
    *out = (rv_str){p, (size_t)n};
    return 0;
}

static PyObject *list_of(const int32_t *ids, size_t n) {
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *x = PyLong_FromLong(ids[i]);
        if (!x || PyList_SetItem(list, (Py_ssize_t)i, x) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *tok_encode(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    PyObject *text;
    int flags;
    rv_str s;
    if (!PyArg_ParseTuple(args, "Oi:encode", &text, &flags) || text_of(st, text, &s) < 0)
        return NULL;
    rv_err err = {0};
    rv_status rc;
    int32_t *ids;
    size_t n;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_tok_encode(handle(o), s.p, s.n, (unsigned)flags, &ids, &n, &err);
    Py_END_ALLOW_THREADS
    if (rc != RV_OK) return rv_py_raise(st, &err);
    PyObject *list = list_of(ids, n);
    rv_free(ids);
    return list;
}

static PyObject *tok_decode(PyObject *o, PyObject *args) {
    rv_py_state *st = rv_py_state_of(Py_TYPE(o));
    PyObject *seq;
    int special;
    rv_py_i32 ids;
    if (!PyArg_ParseTuple(args, "Op:decode", &seq, &special) ||
        rv_py_get_i32(st, seq, &ids, "ids") < 0)
        return NULL;
    rv_err err = {0};
    rv_status rc;
    char *text;
    size_t n;
    Py_BEGIN_ALLOW_THREADS
    rc = rv_tok_decode(handle(o), ids.p, ids.n, special, &text, &n, &err);
    Py_END_ALLOW_THREADS
    rv_py_release_i32(&ids);
    if (rc != RV_OK) return rv_py_raise(st, &err);
    PyObject *bytes = PyBytes_FromStringAndSize(text, (Py_ssize_t)n);
    rv_free(text);
    return bytes;
}

static PyObject *tok_piece(PyObject *o, PyObject *args) {
    int id, special;
    rv_err err = {0};
    rv_str s;
    if (!PyArg_ParseTuple(args, "ip:piece", &id, &special)) return NULL;
    if (rv_tok_piece(handle(o), id, special, &s, &err) != RV_OK)
        return rv_py_raise(rv_py_state_of(Py_TYPE(o)), &err);
    return bytes_of(s);
}

/* An id in range, or -1 with ArgumentError set. */
static int32_t id_of(PyObject *o, PyObject *arg) {
    rv_err err = {0};
    rv_str s;
    long id = PyLong_AsLong(arg);
    if (id == -1 && PyErr_Occurred()) return -1;
    if (id != (int32_t)id) id = -1;
    if (rv_tok_piece(handle(o), (int32_t)id, true, &s, &err) == RV_OK) return (int32_t)id;
    rv_py_raise(rv_py_state_of(Py_TYPE(o)), &err);
    return -1;
}

static PyObject *tok_text(PyObject *o, PyObject *arg) {
    long id = PyLong_AsLong(arg);
    if (id == -1 && PyErr_Occurred()) return NULL;
    return bytes_of(rv_tok_text(handle(o), id == (int32_t)id ? (int32_t)id : -1));
}

static PyObject *tok_type_of(PyObject *o, PyObject *arg) {
    int32_t id = id_of(o, arg);
    return id < 0 ? NULL : PyLong_FromLong(rv_tok_type_of(handle(o), id));
}

static PyObject *tok_find(PyObject *o, PyObject *arg) {
    rv_str s;
    if (text_of(rv_py_state_of(Py_TYPE(o)), arg, &s) < 0) return NULL;
    return PyLong_FromLong(rv_tok_find(handle(o), s.p, s.n));
}

static PyObject *tok_is_eog(PyObject *o, PyObject *arg) {
    int32_t id = id_of(o, arg);
    return id < 0 ? NULL : PyBool_FromLong(rv_tok_is_eog(handle(o), id));
}

static PyObject *tok_info(PyObject *o, PyObject *none) {
    (void)none;
    const rv_tok_info *i = rv_tok_get_info(handle(o));
    return Py_BuildValue(
        "{s:s#,s:s#,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:N,s:N,s:N}", /* names are checked */
        "model", i->model.p, (Py_ssize_t)i->model.n, "pre", i->pre.p, (Py_ssize_t)i->pre.n,
        "n_vocab", i->n_vocab, "bos", i->bos, "eos", i->eos, "eot", i->eot, "unk", i->unk, "pad",
        i->pad, "sep", i->sep, "cls", i->cls, "mask", i->mask, "add_bos",
        PyBool_FromLong(i->add_bos), "add_eos", PyBool_FromLong(i->add_eos), "add_space_prefix",
        PyBool_FromLong(i->add_space_prefix));
}

static PyMethodDef tok_methods[] = {
    {"encode", tok_encode, METH_VARARGS, "encode(text, flags): ids."},
    {"decode", tok_decode, METH_VARARGS, "decode(ids, special): bytes."},
    {"piece", tok_piece, METH_VARARGS, "piece(id, special): bytes."},
    {"text", tok_text, METH_O,
     "text(id): the token as the vocabulary spells it; empty for an id out of range."},
    {"type_of", tok_type_of, METH_O, "type_of(id): 1 normal, 2 unknown, 3 control, 4 user, ..."},
    {"find", tok_find, METH_O, "find(spelling): id, or -1."},
    {"is_eog", tok_is_eog, METH_O, "is_eog(id): whether the token ends a generation."},
    {"info", tok_info, METH_NOARGS, "info(): what the vocabulary says of itself."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot tok_slots[] = {
    {Py_tp_doc, "A vocabulary: text to ids and back.  Threads may share it."},
    {Py_tp_dealloc, (void *)tok_dealloc},
    {Py_tp_methods, tok_methods},
    {0, NULL},
};

static PyType_Spec tok_spec = {
    .name = "ruvllm._core.Tokenizer",
    .basicsize = sizeof(rv_py_tok),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tok_slots,
};

/* ---- functions of the module ---- */

static PyObject *finish(rv_py_state *st, rv_status rc, rv_tok *t, const rv_err *err) {
    return rc == RV_OK ? rv_py_tok_wrap(st, t) : rv_py_raise(st, err);
}

static PyObject *tokenizer_open(PyObject *m, PyObject *arg) {
    rv_py_state *st = rv_py_state_of_module(m);
    int is = PyObject_IsInstance(arg, (PyObject *)st->gguf);
    if (is < 0) return NULL;
    rv_err err = {0};
    if (!is) {
        rv_fail(&err, RV_EARG, "gguf: want a GGUF");
        return rv_py_raise(st, &err);
    }
    rv_py_gguf *g = (rv_py_gguf *)arg;
    if (!g->h) {
        rv_fail(&err, RV_ESTATE, "gguf: found it closed, want it open");
        return rv_py_raise(st, &err);
    }
    /* the GIL is kept: another thread may close the file otherwise */
    rv_tok *t;
    rv_status rc = rv_tok_open(&t, g->h, &err);
    return finish(st, rc, t, &err);
}

/* A list of bytes as strings that borrow from it.  *list holds the items. */
static int strings_of(PyObject *o, PyObject **list, rv_str **out, size_t *n) {
    if (o == Py_None) return 0;
    *list = PySequence_Tuple(o);
    if (!*list) return -1;
    *n = (size_t)PyTuple_Size(*list);
    if (!(*out = rv_calloc(*n + 1, sizeof **out))) return PyErr_NoMemory(), -1;
    for (size_t i = 0; i < *n; i++) {
        char *p;
        Py_ssize_t len;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(*list, (Py_ssize_t)i), &p, &len) < 0) return -1;
        (*out)[i] = (rv_str){p, (size_t)len};
    }
    return 0;
}

static int numbers_of(PyObject *o, size_t n, const char *what, float **f, int32_t **i) {
    if (o == Py_None) return 0;
    PyObject *t = PySequence_Tuple(o);
    int rc = t ? 0 : -1;
    if (t && (size_t)PyTuple_Size(t) != n) {
        PyErr_Format(PyExc_ValueError, "%s: found %zd, want %zu, one per token", what,
                     PyTuple_Size(t), n);
        rc = -1;
    }
    if (rc == 0 && ((f && !(*f = rv_calloc(n + 1, sizeof **f))) ||
                    (i && !(*i = rv_calloc(n + 1, sizeof **i))))) {
        PyErr_NoMemory();
        rc = -1;
    }
    for (size_t k = 0; rc == 0 && k < n; k++) {
        PyObject *x = PyTuple_GetItem(t, (Py_ssize_t)k);
        if (f)
            (*f)[k] = (float)PyFloat_AsDouble(x);
        else
            (*i)[k] = (int32_t)PyLong_AsLong(x);
        if (PyErr_Occurred()) rc = -1;
    }
    Py_XDECREF(t);
    return rc;
}

/* One entry of the specials: an id or a flag; absent leaves *out. */
static int take_id(PyObject *dict, const char *key, int64_t *id, int *flag) {
    PyObject *x = PyDict_GetItemString(dict, key);
    if (!x) return 0;
    long long v = PyLong_AsLongLong(x);
    if (v == -1 && PyErr_Occurred()) return -1;
    if (id)
        *id = v;
    else
        *flag = v < 0 ? -1 : v != 0;
    return 1;
}

static int take_str(PyObject *dict, const char *key, rv_str *out) {
    PyObject *x = PyDict_GetItemString(dict, key);
    if (!x) return 0;
    Py_ssize_t n;
    const char *p = PyUnicode_AsUTF8AndSize(x, &n);
    if (!p) return -1;
    *out = (rv_str){p, (size_t)n};
    return 1;
}

static int take_specials(PyObject *dict, rv_tok_spec *s) {
    const struct {
        const char *key;
        int64_t *id;
        int *flag;
        rv_str *str;
    } all[] = {
        {"bos", &s->bos, NULL, NULL},
        {"eos", &s->eos, NULL, NULL},
        {"eot", &s->eot, NULL, NULL},
        {"eom", &s->eom, NULL, NULL},
        {"unk", &s->unk, NULL, NULL},
        {"pad", &s->pad, NULL, NULL},
        {"sep", &s->sep, NULL, NULL},
        {"cls", &s->cls, NULL, NULL},
        {"mask", &s->mask, NULL, NULL},
        {"fim_pre", &s->fim_pre, NULL, NULL},
        {"fim_suf", &s->fim_suf, NULL, NULL},
        {"fim_mid", &s->fim_mid, NULL, NULL},
        {"fim_pad", &s->fim_pad, NULL, NULL},
        {"fim_rep", &s->fim_rep, NULL, NULL},
        {"fim_sep", &s->fim_sep, NULL, NULL},
        {"add_bos", NULL, &s->add_bos, NULL},
        {"add_eos", NULL, &s->add_eos, NULL},
        {"add_space_prefix", NULL, &s->add_space_prefix, NULL},
        {"remove_extra_whitespaces", NULL, &s->remove_extra_whitespaces, NULL},
        {"ignore_merges", NULL, &s->ignore_merges, NULL},
        {"lowercase", NULL, &s->lowercase, NULL},
        {"strip_accents", NULL, &s->strip_accents, NULL},
        {"arch", NULL, NULL, &s->arch},
        {"name", NULL, NULL, &s->name},
    };
    Py_ssize_t n_known = 0;
    for (size_t i = 0; i < RV_COUNT(all); i++) {
        int rc = all[i].str ? take_str(dict, all[i].key, all[i].str)
                            : take_id(dict, all[i].key, all[i].id, all[i].flag);
        if (rc < 0) return -1;
        n_known += rc;
    }
    if (n_known == PyDict_Size(dict)) return 0;
    PyErr_Format(PyExc_ValueError, "specials: found a key that is not known in %R", dict);
    return -1;
}

static PyObject *tokenizer_new(PyObject *m, PyObject *args) {
    rv_py_state *st = rv_py_state_of_module(m);
    rv_tok_spec s;
    rv_tok_spec_init(&s);
    PyObject *tokens, *scores, *types, *merges, *specials, *list_t = NULL, *list_m = NULL;
    PyObject *result = NULL;
    Py_ssize_t n_model, n_pre;
    rv_str *strs = NULL, *mstrs = NULL;
    float *f = NULL;
    int32_t *i32 = NULL;
    if (!PyArg_ParseTuple(args, "s#s#OOOOO!:tokenizer_new", &s.model.p, &n_model, &s.pre.p, &n_pre,
                          &tokens, &scores, &types, &merges, &PyDict_Type, &specials))
        return NULL;
    s.model.n = (size_t)n_model;
    s.pre.n = (size_t)n_pre;
    if (strings_of(tokens, &list_t, &strs, &s.n_tokens) == 0 &&
        strings_of(merges, &list_m, &mstrs, &s.n_merges) == 0 &&
        numbers_of(scores, s.n_tokens, "scores", &f, NULL) == 0 &&
        numbers_of(types, s.n_tokens, "types", NULL, &i32) == 0 &&
        take_specials(specials, &s) == 0) {
        rv_err err = {0};
        rv_tok *t;
        s.tokens = strs, s.merges = mstrs, s.scores = f, s.types = i32;
        rv_status rc = rv_tok_new(&t, &s, &err);
        result = finish(st, rc, t, &err);
    }
    rv_free(strs);
    rv_free(mstrs);
    rv_free(f);
    rv_free(i32);
    Py_XDECREF(list_t);
    Py_XDECREF(list_m);
    return result;
}

static PyMethodDef functions[] = {
    {"tokenizer_open", tokenizer_open, METH_O, "tokenizer_open(gguf): its vocabulary."},
    {"tokenizer_new", tokenizer_new, METH_VARARGS,
     "tokenizer_new(model, pre, tokens, scores, types, merges, specials): from plain arrays."},
    {NULL, NULL, 0, NULL},
};

int rv_py_add_tok(PyObject *m, rv_py_state *st) {
    if (rv_py_add_type(m, &tok_spec, &st->tok) < 0) return -1;
    return PyModule_AddFunctions(m, functions);
}
