/* Reading hyperparameters and finding tensors: every way a file can be wrong ends here, in a
 * message with the key or tensor, what was found and what was wanted. */
#include <math.h>
#include <stdio.h>

#include "model/net.h"
#include "rvk.h"

static const rv_gguf_kv *find(const rv_net *net, const char *key, char full[160]) {
    snprintf(full, 160, "%s.%s", net->arch->name, key);
    return rv_gguf_find_kv(net->g, full);
}

static bool is_int(const rv_gguf_kv *kv, int64_t *out) {
    switch (kv->type) {
    case RV_GGUF_U8:
    case RV_GGUF_U16:
    case RV_GGUF_U32:
    case RV_GGUF_U64: *out = kv->u > INT64_MAX ? INT64_MAX : (int64_t)kv->u; return true;
    case RV_GGUF_I8:
    case RV_GGUF_I16:
    case RV_GGUF_I32:
    case RV_GGUF_I64: *out = kv->i; return true;
    default: return false;
    }
}

static rv_status check_range(const char *name, int64_t x, int64_t lo, int64_t hi, rv_err *err) {
    if (x >= lo && x <= hi) return RV_OK;
    return rv_fail(err, RV_EFORMAT, "%s: is %lld, want %lld .. %lld", name, (long long)x,
                   (long long)lo, (long long)hi);
}

rv_status rv_meta_int(const rv_net *net, const char *key, int64_t lo, int64_t hi, int64_t def,
                      int32_t *out, rv_err *err) {
    char full[160];
    const rv_gguf_kv *kv = find(net, key, full);
    int64_t x = def;
    if (!kv && def < lo)
        return rv_fail(err, RV_EFORMAT, "%s: is missing, want an integer %lld .. %lld", full,
                       (long long)lo, (long long)hi);
    if (kv) {
        if (!is_int(kv, &x))
            return rv_fail(err, RV_EFORMAT, "%s: has value type %d, want an integer", full,
                           (int)kv->type);
        rv_status st = check_range(full, x, lo, hi, err);
        if (st != RV_OK) return st;
    }
    *out = (int32_t)x;
    return RV_OK;
}

rv_status rv_meta_float(const rv_net *net, const char *key, double lo, double hi, double def,
                        float *out, rv_err *err) {
    char full[160];
    const rv_gguf_kv *kv = find(net, key, full);
    double x = def;
    int64_t i;
    if (!kv && isnan(def))
        return rv_fail(err, RV_EFORMAT, "%s: is missing, want a number %g .. %g", full, lo, hi);
    if (kv) {
        if (kv->type == RV_GGUF_F32 || kv->type == RV_GGUF_F64)
            x = kv->f;
        else if (is_int(kv, &i))
            x = (double)i;
        else
            return rv_fail(err, RV_EFORMAT, "%s: has value type %d, want a number", full,
                           (int)kv->type);
        if (!(x >= lo && x <= hi))
            return rv_fail(err, RV_EFORMAT, "%s: is %g, want %g .. %g", full, x, lo, hi);
    }
    *out = (float)x;
    return RV_OK;
}

rv_status rv_meta_bool(const rv_net *net, const char *key, bool def, bool *out, rv_err *err) {
    char full[160];
    const rv_gguf_kv *kv = find(net, key, full);
    *out = def;
    if (!kv) return RV_OK;
    if (kv->type != RV_GGUF_BOOL)
        return rv_fail(err, RV_EFORMAT, "%s: has value type %d, want a bool", full, (int)kv->type);
    *out = kv->u != 0;
    return RV_OK;
}

rv_status rv_meta_str(const rv_net *net, const char *key, rv_str *out, rv_err *err) {
    char full[160];
    const rv_gguf_kv *kv = find(net, key, full);
    *out = (rv_str){0};
    if (!kv) return RV_OK;
    if (kv->type != RV_GGUF_STR)
        return rv_fail(err, RV_EFORMAT, "%s: has value type %d, want a string", full,
                       (int)kv->type);
    *out = kv->s;
    return RV_OK;
}

/* Element i of an integer array. */
static bool array_int(const rv_gguf_kv *kv, uint64_t i, int64_t *out) {
    static const uint8_t size[] = {1, 1, 2, 2, 4, 4, 0, 0, 0, 0, 8, 8, 0};
    if ((size_t)kv->elem >= sizeof size || !size[kv->elem]) return false;
    const uint8_t *p = kv->data + i * size[kv->elem];
    switch (kv->elem) {
    case RV_GGUF_U8: *out = *p; break;
    case RV_GGUF_I8: *out = (int8_t)*p; break;
    case RV_GGUF_U16: *out = rv_le16(p); break;
    case RV_GGUF_I16: *out = (int16_t)rv_le16(p); break;
    case RV_GGUF_U32: *out = rv_le32(p); break;
    case RV_GGUF_I32: *out = (int32_t)rv_le32(p); break;
    case RV_GGUF_U64: *out = (int64_t)RV_MIN(rv_le64(p), (uint64_t)INT64_MAX); break;
    default: *out = (int64_t)rv_le64(p); break;
    }
    return true;
}

rv_status rv_meta_per_layer(const rv_net *net, const char *key, int64_t lo, int64_t hi, int64_t def,
                            int32_t *out, rv_err *err) {
    char full[160];
    const rv_gguf_kv *kv = find(net, key, full);
    if (!kv || kv->type != RV_GGUF_ARR) {
        int32_t one;
        rv_status st = rv_meta_int(net, key, lo, hi, def, &one, err);
        for (int32_t i = 0; st == RV_OK && i < net->n_layer; i++) out[i] = one;
        return st;
    }
    if (kv->n != (uint64_t)net->n_layer)
        return rv_fail(err, RV_EFORMAT, "%s: has %llu entries, want one per layer: %d", full,
                       (unsigned long long)kv->n, net->n_layer);
    for (int32_t i = 0; i < net->n_layer; i++) {
        int64_t x;
        if (!array_int(kv, (uint64_t)i, &x))
            return rv_fail(err, RV_EFORMAT, "%s: holds value type %d, want integers", full,
                           (int)kv->elem);
        rv_status st = check_range(full, x, lo, hi, err);
        if (st != RV_OK) return st;
        out[i] = (int32_t)x;
    }
    return RV_OK;
}

const char *rv_blk(char buf[96], int32_t i, const char *name) {
    snprintf(buf, 96, "blk.%d.%s", i, name);
    return buf;
}

static rv_status wrong_shape(const rv_gguf_tensor *t, const char *name, size_t n_out, size_t n_in,
                             rv_err *err) {
    return rv_fail(err, RV_EFORMAT,
                   "tensor %s: has shape [%llu, %llu, %llu, %llu], want [%zu, %zu]", name,
                   (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                   (unsigned long long)t->dims[2], (unsigned long long)t->dims[3], n_in, n_out);
}

/* Find a tensor and remember that the model has a use for it. */
static const rv_gguf_tensor *take(rv_net *net, const char *name) {
    const rv_gguf_tensor *t = rv_gguf_find_tensor(net->g, name);
    if (t) net->used[t - rv_gguf_tensor_at(net->g, 0)] = true;
    return t;
}

rv_status rv_bind_mat(rv_net *net, const char *name, size_t n_out, size_t n_in, bool optional,
                      rv_mat *out, rv_err *err) {
    const rv_gguf_tensor *t = take(net, name);
    *out = (rv_mat){0};
    if (!t && optional) return RV_OK;
    if (!t)
        return rv_fail(err, RV_EFORMAT, "tensor %s: is missing, want shape [%zu, %zu]", name, n_in,
                       n_out);
    if (t->dims[0] != n_in || t->dims[1] != n_out || t->dims[2] != 1 || t->dims[3] != 1)
        return wrong_shape(t, name, n_out, n_in, err);
    if (!rvk.mul[t->type])
        return rv_fail(err, RV_EUNSUPPORTED, "tensor %s: has type %d, which cannot multiply", name,
                       (int)t->type);
    *out = (rv_mat){.w = t->data,
                    .type = (int)t->type,
                    .n_in = n_in,
                    .n_out = n_out,
                    .stride = rvk_row_bytes((int)t->type, n_in),
                    .i_panels = -1};
    return RV_OK;
}

rv_status rv_bind_vec(rv_net *net, const char *name, size_t n, bool optional, const float **out,
                      rv_err *err) {
    const rv_gguf_tensor *t = take(net, name);
    *out = NULL;
    if (!t && optional) return RV_OK;
    if (!t) return rv_fail(err, RV_EFORMAT, "tensor %s: is missing, want %zu values", name, n);
    if (t->n_values != n) return wrong_shape(t, name, 1, n, err);
    if (t->type == RV_F32 && (uintptr_t)t->data % 4 == 0) {
        *out = t->data;
        return RV_OK;
    }
    void *owned = net->owned;
    float *x = rv_alloc_aligned(n * 4);
    bool ok = x && rv_grow(&owned, &net->cap_owned, net->n_owned + 1, sizeof *net->owned);
    net->owned = owned;
    if (!ok) {
        rv_free(x);
        return rv_fail(err, RV_ENOMEM, "tensor %s: out of memory", name);
    }
    net->owned[net->n_owned++] = x;
    const size_t row = (size_t)t->dims[0], bytes = rvk_row_bytes((int)t->type, row);
    for (size_t i = 0; i < n / row; i++)
        rvk.dequant[t->type](x + i * row, (const uint8_t *)t->data + i * bytes, row);
    *out = x;
    return RV_OK;
}
