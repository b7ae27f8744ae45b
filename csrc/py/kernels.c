/* The kernel table seen from Python: what this CPU gets, quantising and dequantising for
 * `ruvllm quantize`, and one thin function per kernel for the tests.
 *
 * Every array is a C-contiguous buffer of the right number of bytes; results go into the caller's
 * out.  The functions over single kernels check sizes and nothing else: they are not public API. */
#include "py/py.h"

#include <limits.h>
#include <math.h>

#include "base/base.h"
#include "rvk.h"

/* ---- buffers ---- */

/* Take a C-contiguous buffer of n_bytes (SIZE_MAX: any number that is a multiple of unit). */
static int take(PyObject *m, PyObject *o, Py_buffer *v, bool writable, size_t n_bytes, size_t unit,
                const char *what) {
    rv_err err = {0};
    if (PyObject_GetBuffer(o, v, PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)) < 0)
        return -1;
    const size_t n = (size_t)v->len;
    if (n_bytes != SIZE_MAX && n != n_bytes)
        rv_fail(&err, RV_EARG, "%s: found %zu bytes, want %zu", what, n, n_bytes);
    else if (n % unit)
        rv_fail(&err, RV_EARG, "%s: found %zu bytes, want a multiple of %zu", what, n, unit);
    if (err.code == RV_OK) return 0;
    PyBuffer_Release(v);
    v->obj = NULL;
    rv_py_raise(rv_py_state_of_module(m), &err);
    return -1;
}

enum { MAX_BUFFERS = 8 };

/* The buffers of one call: released together, on every path. */
typedef struct buffers {
    PyObject *m;
    Py_buffer v[MAX_BUFFERS];
    int n;
} buffers;

/* An empty buffer may have no address; NULL means failure here. */
static void *not_null(void *p) {
    static char nothing[64];
    return p ? p : nothing;
}

/* The float32 buffer o of n values (SIZE_MAX: any number), or NULL with an exception set. */
static float *take_f32(buffers *b, PyObject *o, bool writable, size_t n, const char *what) {
    const size_t want = n == SIZE_MAX ? SIZE_MAX : n * sizeof(float);
    if (take(b->m, o, &b->v[b->n], writable, want, sizeof(float), what) < 0) return NULL;
    return not_null(b->v[b->n++].buf);
}

static void *take_bytes(buffers *b, PyObject *o, bool writable, size_t n, const char *what) {
    if (take(b->m, o, &b->v[b->n], writable, n, 1, what) < 0) return NULL;
    return not_null(b->v[b->n++].buf);
}

static size_t last_floats(const buffers *b) {
    return (size_t)b->v[b->n - 1].len / sizeof(float);
}

/* Release everything; None when ok, else NULL (an exception is set). */
static PyObject *finish(buffers *b, bool ok) {
    while (b->n) PyBuffer_Release(&b->v[--b->n]);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

static PyObject *fail(buffers *b, const rv_err *err) {
    rv_py_raise(rv_py_state_of_module(b->m), err);
    return finish(b, false);
}

/* Bytes of a row, or 0 with an exception set. */
static size_t row_bytes(PyObject *m, int type, size_t k, const char *what) {
    rv_err err = {0};
    const size_t n = rvk_row_bytes(type, k);
    if (n) return n;
    if (type < 0 || type >= RVK_N_TYPES || !rvk_dtypes[type].name)
        rv_fail(&err, RV_EARG, "%s: found tensor type %d, want one of dtypes()", what, type);
    else if (k == 0)
        rv_fail(&err, RV_EARG, "%s: found rows of 0 values, want at least 1", what);
    else
        rv_fail(&err, RV_EARG, "%s: found rows of %zu values, want a multiple of %u for %s", what,
                k, rvk_dtypes[type].block_values, rvk_dtypes[type].name);
    rv_py_raise(rv_py_state_of_module(m), &err);
    return 0;
}

/* ---- what there is ---- */

static int put(PyObject *dict, const char *key, PyObject *take_value) {
    if (!take_value) return -1;
    const int rc = PyDict_SetItemString(dict, key, take_value);
    Py_DECREF(take_value);
    return rc;
}

static int put_str(PyObject *dict, const char *key, const char *s) {
    return s ? put(dict, key, PyUnicode_FromString(s)) : 0;
}

static PyObject *kernel_names(void) {
    PyObject *d = PyDict_New();
    if (!d) return NULL;
    int rc = 0;
    for (int t = 0; t < RVK_N_TYPES && rc == 0; t++) {
        if (!rvk.isa_mul[t]) continue;
        char key[32] = "mul_";
        strncat(key, rvk_dtypes[t].name, sizeof key - sizeof "mul_");
        rc = put_str(d, key, rvk.isa_mul[t]);
        if (rc == 0 && rvk.isa_mul_rounded[t]) {
            strncat(key, "_rounded", sizeof key - strlen(key) - 1);
            rc = put_str(d, key, rvk.isa_mul_rounded[t]);
        }
    }
    if (rc == 0) rc = put_str(d, "quant", rvk.isa_quant);
    if (rc == 0) rc = put_str(d, "norm", rvk.isa_norm);
    if (rc == 0) rc = put_str(d, "rope", rvk.isa_rope);
    if (rc == 0) rc = put_str(d, "act", rvk.isa_act);
    if (rc == 0) rc = put_str(d, "attn", rvk.isa_attn);
    if (rc == 0) return d;
    Py_DECREF(d);
    return NULL;
}

static PyObject *py_cpu(PyObject *m, PyObject *none) {
    (void)m, (void)none;
    PyObject *d = PyDict_New();
    if (!d) return NULL;
    if (put_str(d, "features", rvk_cpu_names(rvk.cpu)) == 0 &&
        put_str(d, "machine", rvk_cpu_names(rvk_cpu())) == 0 &&
        put(d, "kernels", kernel_names()) == 0)
        return d;
    Py_DECREF(d);
    return NULL;
}

static PyObject *py_cpu_limit(PyObject *m, PyObject *arg) {
    rv_err err = {0};
    int huge;
    const long mask = PyLong_AsLongAndOverflow(arg, &huge);
    if (mask == -1 && PyErr_Occurred()) return NULL;
    if (huge || mask < 0 || mask > RVK_ALL) {
        rv_fail(&err, RV_EARG, "cpu_limit: mask is %s%ld, want 0 .. %d", huge ? "beyond " : "",
                huge > 0   ? LONG_MAX
                : huge < 0 ? LONG_MIN
                           : mask,
                RVK_ALL);
        return rv_py_raise(rv_py_state_of_module(m), &err);
    }
    rvk_init((unsigned)mask);
    Py_RETURN_NONE;
}

static PyObject *py_dtypes(PyObject *m, PyObject *none) {
    (void)m, (void)none;
    PyObject *d = PyDict_New();
    for (int t = 0; d && t < RVK_N_TYPES; t++) {
        const rvk_dtype_info *i = &rvk_dtypes[t];
        if (i->name &&
            put(d, i->name, Py_BuildValue("iII", t, i->block_values, i->block_bytes)) < 0)
            Py_CLEAR(d);
    }
    return d;
}

/* ---- quant ---- */

static PyObject *py_dequantize(PyObject *m, PyObject *args) {
    int type;
    Py_ssize_t k;
    PyObject *o_data, *o_out;
    if (!PyArg_ParseTuple(args, "iOnO", &type, &o_data, &k, &o_out)) return NULL;
    const size_t bytes = row_bytes(m, type, k < 0 ? 0 : (size_t)k, "dequantize");
    if (!bytes) return NULL;
    buffers b = {.m = m};
    const void *data = take_bytes(&b, o_data, false, bytes, "dequantize: data");
    float *out = data ? take_f32(&b, o_out, true, (size_t)k, "dequantize: out") : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        rvk.dequant[type](out, data, (size_t)k);
        Py_END_ALLOW_THREADS
    }
    return finish(&b, out != NULL);
}

/* Values must be below this in magnitude for the type to hold them, scales in half precision
 * included (65520 is where halves round to infinity). */
static double quant_limit(int type) {
    switch (type) {
    case RVK_BF16: return 0x1.ffp127;
    case RVK_F16:
    case RVK_Q4_1:
    case RVK_Q5_1: return 65520.0;
    case RVK_Q4_0: return 65520.0 * 8;
    case RVK_Q5_0: return 65520.0 * 16;
    case RVK_Q8_0: return 65520.0 * 127;
    /* half * largest code * largest level, or the largest minimum */
    case RVK_Q2_K: return 65504.0 * 15;
    case RVK_Q3_K: return 65504.0 * 31 * 3;
    case RVK_Q4_K:
    case RVK_Q5_K: return 65504.0 * 63;
    case RVK_Q6_K: return 65504.0 * 127 * 31;
    case RVK_IQ4_NL: return 65504.0 * 113;
    case RVK_IQ4_XS: return 65504.0 * 31 * 113;
    default: return INFINITY;
    }
}

static void check_values(int type, const float *x, size_t n, size_t k, rv_err *err) {
    const double limit = quant_limit(type);
    for (size_t i = 0; i < n; i++) {
        if (isfinite(x[i]) && fabs((double)x[i]) < limit) continue;
        if (isfinite(x[i]))
            rv_fail(err, RV_EARG, "quantize: x[%zu] of row %zu is %g, want less than %g for %s",
                    i % k, i / k, (double)x[i], limit, rvk_dtypes[type].name);
        else
            rv_fail(err, RV_EARG, "quantize: x[%zu] of row %zu is %g, want a finite number", i % k,
                    i / k, (double)x[i]);
        return;
    }
}

static void check_weights(const float *w, size_t k, rv_err *err) {
    for (size_t i = 0; i < k; i++) {
        if (isfinite(w[i]) && w[i] >= 0.0f) continue;
        rv_fail(err, RV_EARG, "quantize: weights[%zu] is %g, want a finite number of at least 0", i,
                (double)w[i]);
        return;
    }
}

/* weights: of the columns, or NULL. */
static void quantize_rows(int type, const float *x, size_t n_rows, size_t k, uint8_t *out,
                          const float *weights, rv_err *err) {
    const size_t bytes = rvk_row_bytes(type, k);
    if (weights) check_weights(weights, k, err);
    if (err->code == RV_OK) check_values(type, x, n_rows * k, k, err);
    if (err->code != RV_OK) return;
    for (size_t r = 0; r < n_rows; r++) {
        if (weights && rvk.quant_w[type])
            rvk.quant_w[type](out + r * bytes, x + r * k, weights, k);
        else
            rvk.quant[type](out + r * bytes, x + r * k, k);
    }
}

static PyObject *py_quantize(PyObject *m, PyObject *args) {
    int type;
    PyObject *o_x, *o_out, *o_w = Py_None;
    Py_ssize_t k;
    if (!PyArg_ParseTuple(args, "iOnO|O", &type, &o_x, &k, &o_out, &o_w)) return NULL;
    const size_t bytes = row_bytes(m, type, k < 0 ? 0 : (size_t)k, "quantize");
    if (!bytes) return NULL;
    buffers b = {.m = m};
    rv_err err = {0};
    const float *x = take_f32(&b, o_x, false, SIZE_MAX, "quantize: x");
    if (!x) return NULL;
    const size_t n = last_floats(&b);
    if (n % (size_t)k) {
        rv_fail(&err, RV_EARG, "quantize: x has %zu values, want a multiple of k = %zd", n, k);
        return fail(&b, &err);
    }
    uint8_t *out = take_bytes(&b, o_out, true, n / (size_t)k * bytes, "quantize: out");
    if (!out) return finish(&b, false);
    const float *w = NULL;
    if (o_w != Py_None) {
        w = take_f32(&b, o_w, false, (size_t)k, "quantize: weights");
        if (!w) return finish(&b, false);
    }
    Py_BEGIN_ALLOW_THREADS
    quantize_rows(type, x, n / (size_t)k, (size_t)k, out, w, &err);
    Py_END_ALLOW_THREADS
    return err.code == RV_OK ? finish(&b, true) : fail(&b, &err);
}

static PyObject *py_act_pack(PyObject *m, PyObject *o_x) {
    buffers b = {.m = m};
    rv_err err = {0};
    const float *x = take_f32(&b, o_x, false, SIZE_MAX, "act_pack: x");
    if (!x) return NULL;
    const size_t k = last_floats(&b);
    if (k % RVK_QK) {
        rv_fail(&err, RV_EARG, "act_pack: x has %zu values, want a multiple of 32", k);
        return fail(&b, &err);
    }
    uint8_t *p = rv_alloc_aligned(rvk_act_bytes(k));
    if (!p) {
        rv_fail(&err, RV_ENOMEM, "act_pack: no %zu bytes", rvk_act_bytes(k));
        return fail(&b, &err);
    }
    memset(p, 0, rvk_act_bytes(k));
    rvk.act_pack(p, x, k);
    PyObject *out = PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)rvk_act_bytes(k));
    rv_free(p);
    finish(&b, false);
    return out;
}

/* ---- dot ---- */

/* How the weights of a mul lie, and whether x is rounded to their type. */
enum { ROWS, PANELS, ROUNDED };

/* One mul over whole matrices, x packed or rounded first when that is wanted. */
static rv_status mul(int type, float *y, const void *w, int how, size_t n_rows, const float *x,
                     size_t n_cols, size_t k, rv_err *err) {
    const size_t stride = rvk_row_bytes(type, k);
    if (!rvk_dtypes[type].act_q8 && how != ROUNDED) {
        rvk.mul[type](y, n_rows, w, stride, n_rows, x, k * sizeof *x, n_cols, k);
        return RV_OK;
    }
    const size_t x_stride = how == ROUNDED ? stride : rvk_act_bytes(k);
    uint8_t *packed = rv_alloc_aligned(n_cols * x_stride);
    if (!packed) return rv_fail(err, RV_ENOMEM, "mul: no %zu bytes", n_cols * x_stride);
    for (size_t c = 0; c < n_cols; c++) {
        if (how == ROUNDED)
            rvk.quant[type](packed + c * x_stride, x + c * k, k);
        else
            rvk.act_pack(packed + c * x_stride, x + c * k, k);
    }
    if (how == ROUNDED)
        rvk.mul_rounded[type](y, n_rows, w, stride, n_rows, packed, x_stride, n_cols, k);
    else if (how == PANELS)
        rvk.mul_panels[type](y, n_rows, w, n_rows, packed, x_stride, n_cols, k);
    else
        rvk.mul[type](y, n_rows, w, stride, n_rows, packed, x_stride, n_cols, k);
    rv_free(packed);
    return RV_OK;
}

/* Bytes of the panels of n_rows rows, 0 with an error where the kernels in use read none. */
static uint64_t panels_bytes(int type, size_t k, Py_ssize_t n_rows, rv_err *err) {
    uint64_t bytes = 0;
    if (!rvk.mul_panels[type])
        rv_fail(err, RV_EARG, "panels: found type %s, want one the kernels read as panels",
                rvk_dtypes[type].name);
    else if (n_rows < 1 ||
             !rv_mul_u64(((uint64_t)n_rows + 15) / 16, rvk_panel_bytes(type, k), &bytes))
        rv_fail(err, RV_EARG, "panels: found %zd rows, want 1 or more that fit memory", n_rows);
    return bytes;
}

static PyObject *py_panel_bytes(PyObject *m, PyObject *args) {
    int type;
    Py_ssize_t n_rows, k;
    if (!PyArg_ParseTuple(args, "inn", &type, &n_rows, &k)) return NULL;
    if (!row_bytes(m, type, k < 0 ? 0 : (size_t)k, "panel_bytes")) return NULL;
    rv_err err = {0};
    buffers b = {.m = m};
    const uint64_t bytes = panels_bytes(type, (size_t)k, n_rows, &err);
    return bytes ? PyLong_FromUnsignedLongLong(bytes) : fail(&b, &err);
}

static PyObject *py_panel_pack(PyObject *m, PyObject *args) {
    int type;
    Py_ssize_t n_rows, k;
    PyObject *o_w, *o_out;
    if (!PyArg_ParseTuple(args, "iOnnO", &type, &o_w, &n_rows, &k, &o_out)) return NULL;
    const size_t stride = row_bytes(m, type, k < 0 ? 0 : (size_t)k, "panel_pack");
    if (!stride) return NULL;
    buffers b = {.m = m};
    rv_err err = {0};
    const uint64_t bytes = panels_bytes(type, (size_t)k, n_rows, &err);
    if (!bytes) return fail(&b, &err);
    const uint8_t *w = take_bytes(&b, o_w, false, (size_t)n_rows * stride, "panel_pack: w");
    uint8_t *out = w ? take_bytes(&b, o_out, true, bytes, "panel_pack: out") : NULL;
    if (!out) return finish(&b, false);
    Py_BEGIN_ALLOW_THREADS
    for (size_t r = 0; r < (size_t)n_rows; r += RVK_PANEL_ROWS)
        rvk.panel_pack(out + r / RVK_PANEL_ROWS * rvk_panel_bytes(type, (size_t)k), type,
                       w + r * stride, stride, RV_MIN((size_t)n_rows - r, (size_t)RVK_PANEL_ROWS),
                       (size_t)k);
    Py_END_ALLOW_THREADS
    return finish(&b, true);
}

static PyObject *py_mul(PyObject *m, PyObject *args) {
    int type, panels = 0, rounded = 0;
    Py_ssize_t n_rows, k;
    PyObject *o_w, *o_x, *o_out;
    if (!PyArg_ParseTuple(args, "iOnOnO|pp", &type, &o_w, &n_rows, &o_x, &k, &o_out, &panels,
                          &rounded))
        return NULL;
    const size_t bytes = row_bytes(m, type, k < 0 ? 0 : (size_t)k, "mul");
    if (!bytes) return NULL;
    buffers b = {.m = m};
    rv_err err = {0};
    uint64_t w_bytes = 0;
    if (n_rows < 0 || !rv_mul_u64((uint64_t)n_rows, bytes, &w_bytes)) {
        rv_fail(&err, RV_EARG, "mul: found %zd rows, want 0 or more that fit memory", n_rows);
        return fail(&b, &err);
    }
    if (panels && !(w_bytes = panels_bytes(type, (size_t)k, n_rows, &err))) return fail(&b, &err);
    if (rounded && (panels || !rvk.mul_rounded[type])) {
        rv_fail(&err, RV_EARG, "mul: found %s, rounded, want rows of a type the kernels take so",
                rvk_dtypes[type].name);
        return fail(&b, &err);
    }
    const void *w = take_bytes(&b, o_w, false, w_bytes, "mul: w");
    const float *x = w ? take_f32(&b, o_x, false, SIZE_MAX, "mul: x") : NULL;
    if (!x) return finish(&b, false);
    const size_t n = last_floats(&b), n_cols = n / (size_t)k;
    if (n % (size_t)k) {
        rv_fail(&err, RV_EARG, "mul: x has %zu values, want a multiple of k = %zd", n, k);
        return fail(&b, &err);
    }
    float *out = take_f32(&b, o_out, true, n_cols * (size_t)n_rows, "mul: out");
    if (!out) return finish(&b, false);
    Py_BEGIN_ALLOW_THREADS
    mul(type, out, w,
        rounded  ? ROUNDED
        : panels ? PANELS
                 : ROWS,
        (size_t)n_rows, x, n_cols, (size_t)k, &err);
    Py_END_ALLOW_THREADS
    return err.code == RV_OK ? finish(&b, true) : fail(&b, &err);
}

/* ---- the other families: test hooks ---- */

static PyObject *py_rms_norm(PyObject *m, PyObject *args) {
    PyObject *o_x, *o_g, *o_out;
    float eps;
    if (!PyArg_ParseTuple(args, "OOfO", &o_x, &o_g, &eps, &o_out)) return NULL;
    buffers b = {.m = m};
    const float *x = take_f32(&b, o_x, false, SIZE_MAX, "rms_norm: x");
    const size_t n = x ? last_floats(&b) : 0;
    const float *g = x ? take_f32(&b, o_g, false, n, "rms_norm: g") : NULL;
    float *out = g ? take_f32(&b, o_out, true, n, "rms_norm: out") : NULL;
    if (out && n) rvk.rms_norm(out, x, g, n, eps);
    return finish(&b, out != NULL);
}

static PyObject *py_layer_norm(PyObject *m, PyObject *args) {
    PyObject *o_x, *o_g, *o_b, *o_out;
    float eps;
    if (!PyArg_ParseTuple(args, "OOOfO", &o_x, &o_g, &o_b, &eps, &o_out)) return NULL;
    buffers b = {.m = m};
    const float *x = take_f32(&b, o_x, false, SIZE_MAX, "layer_norm: x"), *bias = NULL;
    const size_t n = x ? last_floats(&b) : 0;
    const float *g = x ? take_f32(&b, o_g, false, n, "layer_norm: g") : NULL;
    if (g && o_b != Py_None && !(bias = take_f32(&b, o_b, false, n, "layer_norm: b")))
        return finish(&b, false);
    float *out = g ? take_f32(&b, o_out, true, n, "layer_norm: out") : NULL;
    if (out && n) rvk.layer_norm(out, x, g, bias, n, eps);
    return finish(&b, out != NULL);
}

static PyObject *py_rope(PyObject *m, PyObject *args) {
    PyObject *o_x, *o_cs;
    Py_ssize_t n_heads, head_dim;
    int neox;
    if (!PyArg_ParseTuple(args, "OnnOp", &o_x, &n_heads, &head_dim, &o_cs, &neox)) return NULL;
    buffers b = {.m = m};
    rv_err err = {0};
    if (n_heads < 0 || head_dim < 0 || (head_dim && n_heads > PY_SSIZE_T_MAX / 4 / head_dim)) {
        rv_fail(&err, RV_EARG, "rope: found %zd heads of %zd, want sizes that fit memory", n_heads,
                head_dim);
        return fail(&b, &err);
    }
    float *x = take_f32(&b, o_x, true, (size_t)n_heads * (size_t)head_dim, "rope: x");
    const float *cs = x ? take_f32(&b, o_cs, false, SIZE_MAX, "rope: cs") : NULL;
    if (!cs) return finish(&b, false);
    const size_t n_rot = last_floats(&b);
    if (n_rot % 2 || n_rot > (size_t)head_dim) {
        rv_fail(&err, RV_EARG, "rope: cs has %zu values, want an even number up to %zd", n_rot,
                head_dim);
        return fail(&b, &err);
    }
    rvk.rope(x, (size_t)n_heads, (size_t)head_dim, n_rot, cs, neox != 0);
    return finish(&b, true);
}

/* out = f(a, b) over float32 buffers of one size; which: 0 swiglu, 1 add. */
static PyObject *binary(PyObject *m, PyObject *args, int which, const char *what) {
    PyObject *o_a, *o_b, *o_out;
    if (!PyArg_ParseTuple(args, "OOO", &o_a, &o_b, &o_out)) return NULL;
    buffers b = {.m = m};
    const float *x = take_f32(&b, o_a, false, SIZE_MAX, what);
    const size_t n = x ? last_floats(&b) : 0;
    const float *z = x ? take_f32(&b, o_b, false, n, what) : NULL;
    float *out = z ? take_f32(&b, o_out, true, n, what) : NULL;
    if (out) (which ? rvk.add : rvk.swiglu)(out, x, z, n);
    return finish(&b, out != NULL);
}

static PyObject *py_swiglu(PyObject *m, PyObject *args) {
    return binary(m, args, 0, "swiglu");
}

static PyObject *py_add(PyObject *m, PyObject *args) {
    return binary(m, args, 1, "add");
}

static PyObject *py_gelu(PyObject *m, PyObject *args) {
    PyObject *o_x, *o_out;
    if (!PyArg_ParseTuple(args, "OO", &o_x, &o_out)) return NULL;
    buffers b = {.m = m};
    const float *x = take_f32(&b, o_x, false, SIZE_MAX, "gelu: x");
    float *out = x ? take_f32(&b, o_out, true, last_floats(&b), "gelu: out") : NULL;
    if (out) rvk.gelu(out, x, last_floats(&b));
    return finish(&b, out != NULL);
}

static PyObject *py_shortconv(PyObject *m, PyObject *args) {
    PyObject *o_b, *o_c, *o_u, *o_taps, *o_state, *o_out;
    Py_ssize_t l;
    if (!PyArg_ParseTuple(args, "OOOOOnO", &o_b, &o_c, &o_u, &o_taps, &o_state, &l, &o_out))
        return NULL;
    buffers b = {.m = m};
    rv_err err = {0};
    if (l < 1 || l > 1024) {
        rv_fail(&err, RV_EARG, "shortconv: found %zd taps, want 1 to 1024", l);
        return fail(&b, &err);
    }
    const size_t n_taps = (size_t)l;
    const float *vb = take_f32(&b, o_b, false, SIZE_MAX, "shortconv: b");
    const size_t n = vb ? last_floats(&b) : 0;
    const float *vc = vb ? take_f32(&b, o_c, false, n, "shortconv: c") : NULL;
    const float *vu = vc ? take_f32(&b, o_u, false, n, "shortconv: u") : NULL;
    const float *taps = vu ? take_f32(&b, o_taps, false, n * n_taps, "shortconv: taps") : NULL;
    float *state = taps ? take_f32(&b, o_state, true, n * (n_taps - 1), "shortconv: state") : NULL;
    float *out = state ? take_f32(&b, o_out, true, n, "shortconv: out") : NULL;
    if (out) rvk.shortconv(out, vb, vc, vu, taps, state, n, n_taps);
    return finish(&b, out != NULL);
}

enum { ATTN_RUNS = RVK_ATTN_BLOCK / RVK_ATTN_RUN };

/* Rows [hi][d] of keys and values as a block of the cache, its runs one after another, and queries
 * as its kernel wants them; NULL without memory. */
static char *attn_block(int type, const float *k, const float *v, size_t hi, size_t d,
                        const void *runs[ATTN_RUNS]) {
    const size_t bytes = rvk_attn_run_bytes(type, d);
    char *block = rv_alloc_aligned(ATTN_RUNS * bytes);
    for (size_t r = 0; block && r < ATTN_RUNS; r++) runs[r] = block + r * bytes;
    for (size_t p = 0; block && p < hi; p++)
        rvk_attn_put(type, block + p / RVK_ATTN_RUN * bytes, p % RVK_ATTN_RUN, k + p * d, v + p * d,
                     d);
    return block;
}

static void *attn_queries(int type, const float *q, size_t n_q, size_t d) {
    const bool codes = rvk_attn_is_coded(type);
    const size_t w = rvk_attn_width(type, d), row = codes ? rvk_act_bytes(w) : d * sizeof *q;
    float *wide = rv_calloc(w, sizeof *wide);
    char *out = wide ? rv_alloc_aligned(n_q * row) : NULL;
    for (size_t h = 0; out && h < n_q; h++) {
        memcpy(wide, q + h * d, d * sizeof *q);
        if (codes)
            rvk.act_pack(out + h * row, wide, w);
        else
            memcpy(out + h * row, wide, row);
    }
    rv_free(wide);
    return out;
}

static PyObject *py_attn(PyObject *m, PyObject *args) {
    int type;
    PyObject *o_q, *o_k, *o_v, *o_max, *o_sum, *o_acc;
    Py_ssize_t lo, hi;
    if (!PyArg_ParseTuple(args, "iOOOnnOOO", &type, &o_q, &o_k, &o_v, &lo, &hi, &o_max, &o_sum,
                          &o_acc))
        return NULL;
    buffers b = {.m = m};
    rv_err err = {0};
    float *st_max = take_f32(&b, o_max, true, SIZE_MAX, "attn: st_max");
    const size_t n_q = st_max ? last_floats(&b) : 0;
    float *st_sum = st_max ? take_f32(&b, o_sum, true, n_q, "attn: st_sum") : NULL;
    const float *q = st_sum ? take_f32(&b, o_q, false, SIZE_MAX, "attn: q") : NULL;
    if (!q) return finish(&b, false);
    const size_t n_values = last_floats(&b), d = n_q ? n_values / n_q : 0;
    if (lo < 0 || lo >= hi || hi > RVK_ATTN_BLOCK || d == 0 || n_values % n_q ||
        !rvk_attn_run_bytes(type, d)) {
        rv_fail(&err, RV_EARG,
                "attn: found type %d, positions %zd to %zd, %zu heads and %zu query values, want "
                "a type with a cache, positions within %d and whole heads",
                type, lo, hi, n_q, n_values, RVK_ATTN_BLOCK);
        return fail(&b, &err);
    }
    float *acc = take_f32(&b, o_acc, true, n_values, "attn: acc");
    const float *k = acc ? take_f32(&b, o_k, false, (size_t)hi * d, "attn: k") : NULL;
    const float *v = k ? take_f32(&b, o_v, false, (size_t)hi * d, "attn: v") : NULL;
    if (!v) return finish(&b, false);
    const void *runs[ATTN_RUNS];
    void *block = attn_block(type, k, v, (size_t)hi, d, runs);
    void *qs = attn_queries(type, q, n_q, d);
    if (block && qs)
        rvk.attn[type](qs, n_q, d, runs, NULL, (size_t)lo, (size_t)hi, st_max, st_sum, acc);
    else
        rv_fail(&err, RV_ENOMEM, "attn: out of memory");
    rv_free(block);
    rv_free(qs);
    return err.code == RV_OK ? finish(&b, true) : fail(&b, &err);
}

static PyMethodDef methods[] = {
    {"cpu", py_cpu, METH_NOARGS,
     "Instruction sets in use and available, and what serves each kernel."},
    {"cpu_limit", py_cpu_limit, METH_O, "Refill the kernel table for a mask. Tests only."},
    {"dtypes", py_dtypes, METH_NOARGS,
     "Tensor types: name -> (number, block values, block bytes)."},
    {"dequantize", py_dequantize, METH_VARARGS, "dequantize(type, data, k, out)"},
    {"quantize", py_quantize, METH_VARARGS, "quantize(type, x, k, out, weights=None)"},
    {"act_pack", py_act_pack, METH_O, "act_pack(x) -> bytes"},
    {"mul", py_mul, METH_VARARGS, "mul(type, w, n_rows, x, k, out, panels=False, rounded=False)"},
    {"panel_bytes", py_panel_bytes, METH_VARARGS, "panel_bytes(type, n_rows, k) -> int"},
    {"panel_pack", py_panel_pack, METH_VARARGS, "panel_pack(type, w, n_rows, k, out)"},
    {"rms_norm", py_rms_norm, METH_VARARGS, "rms_norm(x, g, eps, out)"},
    {"layer_norm", py_layer_norm, METH_VARARGS, "layer_norm(x, g, b, eps, out)"},
    {"rope", py_rope, METH_VARARGS, "rope(x, n_heads, head_dim, cs, neox): in place"},
    {"swiglu", py_swiglu, METH_VARARGS, "swiglu(gate, up, out)"},
    {"gelu", py_gelu, METH_VARARGS, "gelu(x, out)"},
    {"add", py_add, METH_VARARGS, "add(a, b, out)"},
    {"shortconv", py_shortconv, METH_VARARGS, "shortconv(b, c, u, taps, state, l, out)"},
    {"attn", py_attn, METH_VARARGS, "attn(type, q, k, v, lo, hi, st_max, st_sum, acc)"},
    {NULL, NULL, 0, NULL},
};

int rv_py_add_kernels(PyObject *m, rv_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(m, methods);
}
