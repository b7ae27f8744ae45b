/* One metadata value: read when it is a number or a string, checked and left where it stands when
 * it is an array.
 *
 * Arrays may hold arrays.  They are walked with a stack of RV_GGUF_MAX_DEPTH counts instead of
 * recursion, each element exactly once, so the work is linear in the bytes of the file. */
#include <stdio.h>

#include "gguf/gguf.h"

static const struct {
    const char *name;
    uint32_t min_bytes; /* the least an element of this type takes in a file */
} TYPES[] = {
    [RV_GGUF_U8] = {"u8", 1},    [RV_GGUF_I8] = {"i8", 1},     [RV_GGUF_U16] = {"u16", 2},
    [RV_GGUF_I16] = {"i16", 2},  [RV_GGUF_U32] = {"u32", 4},   [RV_GGUF_I32] = {"i32", 4},
    [RV_GGUF_F32] = {"f32", 4},  [RV_GGUF_BOOL] = {"bool", 1}, [RV_GGUF_STR] = {"str", 8},
    [RV_GGUF_ARR] = {"arr", 12}, /* u32 type + u64 count */
    [RV_GGUF_U64] = {"u64", 8},  [RV_GGUF_I64] = {"i64", 8},   [RV_GGUF_F64] = {"f64", 8},
};

const char *rv_gguf_type_name(uint32_t type) {
    return type < RV_COUNT(TYPES) ? TYPES[type].name : NULL;
}

const char *rv_gguf_quote(char buf[RV_GGUF_QUOTED], rv_str s) {
    enum { CUT = 48 };
    char *p = buf, *end = buf + RV_GGUF_QUOTED - 10;
    *p++ = '"';
    size_t i = 0;
    for (; i < s.n && i < CUT && p < end; i++) {
        unsigned char ch = (unsigned char)s.p[i];
        if (ch >= 0x20 && ch < 0x7f && ch != '"' && ch != '\\')
            *p++ = (char)ch;
        else
            p += snprintf(p, 5, "\\x%02x", ch);
    }
    strcpy(p, i < s.n ? "...\"" : "\"");
    return buf;
}

const char *rv_gguf_path_end(const char *path) {
    enum { KEEP = 160 };
    size_t n = strlen(path);
    return n > KEEP ? path + n - KEEP : path;
}

void rv_gguf_context(rv_cursor *c, const char *fmt, ...) {
    if (c->err.code == RV_OK) return;
    rv_err inner = c->err;
    char outer[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(outer, sizeof outer, fmt, ap);
    va_end(ap);
    rv_err_clear(&c->err);
    rv_fail(&c->err, inner.code, "%s: %.*s", outer, (int)(sizeof inner.msg - sizeof outer - 3),
            inner.msg);
}

static rv_gguf_type read_type(rv_cursor *c, const char *what) {
    size_t off = c->off;
    uint32_t type = rv_cur_u32(c, what);
    if (c->err.code == RV_OK && !rv_gguf_type_name(type))
        rv_fail(&c->err, RV_EFORMAT, "%s at offset %zu: found %u, want 0 to %u", what, off, type,
                (unsigned)RV_COUNT(TYPES) - 1);
    return c->err.code == RV_OK ? (rv_gguf_type)type : RV_GGUF_U8;
}

static uint8_t read_bool(rv_cursor *c) {
    uint8_t b = rv_cur_u8(c, "bool");
    if (b > 1)
        rv_fail(&c->err, RV_EFORMAT, "bool at offset %zu: found %u, want 0 or 1", c->off - 1, b);
    return b;
}

static rv_str read_str(rv_cursor *c) {
    uint64_t n = rv_cur_u64(c, "string length");
    const uint8_t *p = rv_cur_bytes(c, n, "string");
    return (rv_str){n && p ? (const char *)p : NULL, p ? (size_t)n : 0};
}

static void skip_elements(rv_cursor *c, rv_gguf_type elem, uint64_t n) {
    if (elem == RV_GGUF_STR) {
        for (uint64_t i = 0; i < n && c->err.code == RV_OK; i++) read_str(c);
    } else if (elem == RV_GGUF_BOOL) {
        for (uint64_t i = 0; i < n && c->err.code == RV_OK; i++) read_bool(c);
    } else {
        rv_cur_bytes(c, n * TYPES[elem].min_bytes, "array"); /* the product was checked */
    }
}

/* Walk over n elements; the cursor stands on the first. */
static void skip_array(rv_cursor *c, rv_gguf_type elem, uint64_t n) {
    uint64_t left[RV_GGUF_MAX_DEPTH]; /* elements still to come, per array of arrays */
    size_t depth = 0;
    while (c->err.code == RV_OK) {
        if (n > rv_cur_left(c) / TYPES[elem].min_bytes) {
            rv_fail(&c->err, RV_EFORMAT,
                    "array length: found %llu elements of type %s at offset %zu, want at most %llu "
                    "in the %zu bytes left",
                    (unsigned long long)n, TYPES[elem].name, c->off,
                    (unsigned long long)(rv_cur_left(c) / TYPES[elem].min_bytes), rv_cur_left(c));
            return;
        }
        if (elem != RV_GGUF_ARR) {
            skip_elements(c, elem, n);
        } else if (n && depth + 1 == RV_GGUF_MAX_DEPTH) {
            rv_fail(&c->err, RV_EUNSUPPORTED,
                    "nested arrays at offset %zu: found more than %d levels, want at most %d",
                    c->off, RV_GGUF_MAX_DEPTH, RV_GGUF_MAX_DEPTH);
        } else {
            left[depth++] = n;
        }
        while (depth && left[depth - 1] == 0) depth--;
        if (!depth) return;
        left[depth - 1]--;
        elem = read_type(c, "array element type");
        n = rv_cur_u64(c, "array length");
    }
}

void rv_gguf_read_value(rv_cursor *c, rv_gguf_kv *kv) {
    kv->type = read_type(c, "value type");
    kv->n = 1;
    switch (kv->type) {
    case RV_GGUF_U8: kv->u = rv_cur_u8(c, "u8"); break;
    case RV_GGUF_I8: kv->i = (int8_t)rv_cur_u8(c, "i8"); break;
    case RV_GGUF_U16: kv->u = rv_cur_u16(c, "u16"); break;
    case RV_GGUF_I16: kv->i = (int16_t)rv_cur_u16(c, "i16"); break;
    case RV_GGUF_U32: kv->u = rv_cur_u32(c, "u32"); break;
    case RV_GGUF_I32: kv->i = (int32_t)rv_cur_u32(c, "i32"); break;
    case RV_GGUF_U64: kv->u = rv_cur_u64(c, "u64"); break;
    case RV_GGUF_I64: kv->i = (int64_t)rv_cur_u64(c, "i64"); break;
    case RV_GGUF_BOOL: kv->u = read_bool(c); break;
    case RV_GGUF_STR: kv->s = read_str(c); break;
    case RV_GGUF_F32: {
        const uint8_t *p = rv_cur_bytes(c, 4, "f32");
        kv->f = p ? (double)rv_lef32(p) : 0;
        break;
    }
    case RV_GGUF_F64: {
        uint64_t u = rv_cur_u64(c, "f64");
        memcpy(&kv->f, &u, sizeof u);
        break;
    }
    case RV_GGUF_ARR: {
        kv->elem = read_type(c, "array element type");
        kv->n = rv_cur_u64(c, "array length");
        size_t start = c->off;
        skip_array(c, kv->elem, kv->n);
        kv->data = c->p + start;
        kv->data_bytes = c->off - start;
        break;
    }
    }
}
