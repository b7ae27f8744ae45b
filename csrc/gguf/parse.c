/* One part of a GGUF file: header, metadata pairs, tensor descriptions, and every check that makes
 * the views handed out safe to read.
 *
 *   "GGUF" | u32 version | u64 n_tensors | u64 n_kv
 *   n_kv      x  key: u64 length + bytes | u32 type | value
 *   n_tensors x  name: u64 length + bytes | u32 n_dims | u64 dims[n_dims] | u32 type | u64 offset
 *   zeros up to a multiple of the alignment, then the data section, which offsets count from
 *
 * Holds afterwards: 1. every key and name is UTF-8 without NUL and differs from the others;
 * 2. a tensor's bytes lie inside the data section of its part, aligned; 3. no two tensors share a
 * byte.  Data pages are never touched here: opening costs the same for any size of weights. */
#include <stdio.h>
#include <stdlib.h>

#include "gguf/gguf.h"
#include "rvk.h"

enum {
    MIN_KV_BYTES = 8 + 1 + 4 + 1,             /* a key of one byte, a u8 */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8, /* a name of one byte, one dimension */
};

_Static_assert((int)RV_DTYPE_END == (int)RVK_N_TYPES, "rv_dtype and the kernels number alike");

/* All tensor types that were ever given a number, to name those this build does not read. */
static const char *const TYPE_NAMES[] = {
    "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
    "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
    "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
    "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
    "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",    "NVFP4",    "Q1_0",
    "Q2_0",
};

typedef unsigned long long ull;

static void read_version(rv_cursor *c, rv_gguf_head *head) {
    const uint8_t *magic = rv_cur_bytes(c, 4, "magic");
    if (magic && memcmp(magic, "GGUF", 4) != 0) {
        char buf[RV_GGUF_QUOTED];
        rv_str found = {(const char *)magic, 4};
        rv_fail(&c->err, RV_EFORMAT, "magic: found %s, want \"GGUF\"", rv_gguf_quote(buf, found));
    }
    uint32_t v = rv_cur_u32(c, "version");
    if (c->err.code != RV_OK) return;
    head->version = v;
    if (v == 2 || v == 3) return;
    uint32_t swapped = __builtin_bswap32(v);
    if (swapped >= 1 && swapped <= 16)
        rv_fail(&c->err, RV_EUNSUPPORTED,
                "byte order: found big-endian (version %u), want little-endian", swapped);
    else
        rv_fail(&c->err, v ? RV_EUNSUPPORTED : RV_EFORMAT, "version: found %u, want 2 or 3", v);
}

static uint64_t read_count(rv_cursor *c, const char *what, unsigned limit) {
    uint64_t n = rv_cur_u64(c, what);
    if (n > limit && c->err.code == RV_OK)
        rv_fail(&c->err, n > rv_cur_left(c) ? RV_EFORMAT : RV_EUNSUPPORTED,
                "%s: found %llu, want at most %u", what, (ull)n, limit);
    return n;
}

static void check_room(rv_cursor *c, const char *what, uint64_t n, unsigned min_bytes) {
    if (c->err.code == RV_OK && n > rv_cur_left(c) / min_bytes)
        rv_fail(&c->err, RV_EFORMAT, "%s: found %llu, want at most %zu in the %zu bytes left", what,
                (ull)n, rv_cur_left(c) / min_bytes, rv_cur_left(c));
}

static bool is_utf8(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n;) {
        uint8_t b = p[i];
        size_t len = b < 0x80 ? 1 : b < 0xc2 ? 0 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : b < 0xf5 ? 4 : 0;
        if (len == 0 || len > n - i) return false;
        for (size_t k = 1; k < len; k++)
            if ((p[i + k] & 0xc0) != 0x80) return false;
        if ((b == 0xe0 && p[i + 1] < 0xa0) || (b == 0xed && p[i + 1] > 0x9f) ||
            (b == 0xf0 && p[i + 1] < 0x90) || (b == 0xf4 && p[i + 1] > 0x8f))
            return false;
        i += len;
    }
    return true;
}

/* A key or a tensor name. */
static rv_str read_name(rv_cursor *c, const char *what, unsigned max) {
    uint64_t n = rv_cur_u64(c, what);
    if (c->err.code == RV_OK && (n == 0 || n > max))
        rv_fail(&c->err, RV_EFORMAT, "%s: found a length of %llu bytes, want 1 to %u", what, (ull)n,
                max);
    const uint8_t *p = rv_cur_bytes(c, n, what);
    if (!p) return (rv_str){0};
    rv_str s = {(const char *)p, (size_t)n};
    if (memchr(p, 0, s.n) || !is_utf8(p, s.n)) {
        char buf[RV_GGUF_QUOTED];
        rv_fail(&c->err, RV_EFORMAT, "%s: found %s, want UTF-8 without NUL", what,
                rv_gguf_quote(buf, s));
    }
    return s;
}

static void read_kvs(rv_cursor *c, rv_gguf_head *head, uint64_t n_kv) {
    check_room(c, "metadata count", n_kv, MIN_KV_BYTES);
    if (c->err.code != RV_OK) return;
    head->kv = rv_calloc((size_t)n_kv, sizeof *head->kv);
    if (!head->kv) {
        rv_fail(&c->err, RV_ENOMEM, "out of memory for %llu metadata pairs", (ull)n_kv);
        return;
    }
    char buf[RV_GGUF_QUOTED];
    for (uint64_t i = 0; i < n_kv && c->err.code == RV_OK; i++) {
        rv_gguf_kv *kv = &head->kv[i];
        kv->key = read_name(c, "key", RV_GGUF_MAX_KEY);
        if (c->err.code != RV_OK) {
            rv_gguf_context(c, "metadata pair %llu of %llu", (ull)i, (ull)n_kv);
            return;
        }
        rv_gguf_read_value(c, kv);
        rv_gguf_context(c, "metadata pair %llu, %s", (ull)i, rv_gguf_quote(buf, kv->key));
    }
    if (c->err.code != RV_OK) return;
    head->n_kv = (size_t)n_kv;
    size_t dup = 0;
    rv_status st = rv_gguf_table_build(&head->keys, head->kv, sizeof *head->kv, head->n_kv, &dup);
    if (st == RV_ENOMEM)
        rv_fail(&c->err, st, "out of memory for the index of %zu keys", head->n_kv);
    else if (st != RV_OK)
        rv_fail(&c->err, st, "metadata pair %zu: found the key %s twice, want it once", dup,
                rv_gguf_quote(buf, head->kv[dup].key));
}

static void read_alignment(rv_cursor *c, rv_gguf_head *head) {
    head->alignment = RV_GGUF_DEFAULT_ALIGNMENT;
    const rv_gguf_kv *kv = rv_gguf_head_find(head, "general.alignment");
    if (c->err.code != RV_OK || !kv) return;
    if (kv->type != RV_GGUF_U32) {
        rv_fail(&c->err, RV_EFORMAT, "general.alignment: found type %s, want u32",
                rv_gguf_type_name(kv->type));
        return;
    }
    head->alignment = kv->u;
    if (kv->u < RV_GGUF_MIN_ALIGNMENT || kv->u > RV_GGUF_MAX_ALIGNMENT || (kv->u & (kv->u - 1)))
        rv_fail(&c->err, RV_EFORMAT, "general.alignment: found %llu, want a power of two, %d to %d",
                (ull)kv->u, RV_GGUF_MIN_ALIGNMENT, RV_GGUF_MAX_ALIGNMENT);
}

static void read_shape(rv_cursor *c, rv_gguf_tensor *t) {
    t->n_dims = rv_cur_u32(c, "dimension count");
    if (c->err.code == RV_OK && (t->n_dims < 1 || t->n_dims > 4))
        rv_fail(&c->err, RV_EFORMAT, "dimension count: found %u, want 1 to 4", t->n_dims);
    t->n_values = 1;
    for (unsigned i = 0; i < 4; i++) {
        t->dims[i] = 1;
        if (i >= t->n_dims || c->err.code != RV_OK) continue;
        t->dims[i] = rv_cur_u64(c, "dimension");
        if (c->err.code == RV_OK && t->dims[i] < 1)
            rv_fail(&c->err, RV_EFORMAT, "dimension %u: found 0, want at least 1", i);
        if (!rv_mul_u64(t->n_values, t->dims[i], &t->n_values) || t->n_values > INT64_MAX)
            rv_fail(&c->err, RV_EFORMAT,
                    "dimension %u: found %llu, so the values are more than 2^63 - 1", i,
                    (ull)t->dims[i]);
    }
}

/* The type is known here; block sizes come from the kernels' table. */
static void read_type(rv_cursor *c, rv_gguf_tensor *t) {
    uint32_t type = rv_cur_u32(c, "tensor type");
    if (c->err.code != RV_OK) return;
    if (type >= RVK_N_TYPES || !rvk_dtypes[type].name) {
        rv_fail(&c->err, RV_EUNSUPPORTED, "tensor type: found %u (%s), want one this build reads",
                type, type < RV_COUNT(TYPE_NAMES) ? TYPE_NAMES[type] : "no known type");
        return;
    }
    const rvk_dtype_info *d = &rvk_dtypes[type];
    t->type = (rv_dtype)type;
    if (t->dims[0] % d->block_values)
        rv_fail(&c->err, RV_EFORMAT, "dimension 0: found %llu, want a multiple of %u (type %s)",
                (ull)t->dims[0], d->block_values, d->name);
    else if (!rv_mul_u64(t->n_values / d->block_values, d->block_bytes, &t->n_bytes))
        rv_fail(&c->err, RV_EFORMAT, "size: found %llu values of type %s, want below 2^64 bytes",
                (ull)t->n_values, d->name);
}

/* Offsets become absolute and data pointers are set; the cursor stands behind the last tensor. */
static void place_tensors(rv_cursor *c, const rv_gguf_head *head, rv_gguf_tensor *t, size_t n) {
    if (c->err.code != RV_OK) return;
    size_t pad = (size_t)(-(uint64_t)c->off & (head->alignment - 1));
    size_t start_min = c->off;
    const uint8_t *data = rv_cur_bytes(c, pad, "padding before the data section");
    if (!data) return;
    uint64_t start = start_min + pad, size = rv_cur_left(c);
    data += pad;
    char buf[RV_GGUF_QUOTED];
    for (size_t i = 0; i < n && c->err.code == RV_OK; i++) {
        if (t[i].offset % head->alignment)
            rv_fail(&c->err, RV_EFORMAT,
                    "offset: found %llu, want a multiple of the alignment %llu", (ull)t[i].offset,
                    (ull)head->alignment);
        else if (t[i].offset > size || t[i].n_bytes > size - t[i].offset)
            rv_fail(&c->err, RV_EFORMAT,
                    "data: found %llu bytes at offset %llu of the data section, want them inside "
                    "its %llu bytes",
                    (ull)t[i].n_bytes, (ull)t[i].offset, (ull)size);
        else
            t[i].data = data + t[i].offset;
        t[i].offset += start;
        rv_gguf_context(c, "tensor %zu, %s", i, rv_gguf_quote(buf, t[i].name));
    }
}

typedef struct span {
    uint64_t offset;
    size_t i;
} span;

static int by_offset(const void *a, const void *b) {
    const span *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static void fail_overlap(rv_cursor *c, const rv_gguf_tensor *a, const rv_gguf_tensor *b) {
    char abuf[RV_GGUF_QUOTED], bbuf[RV_GGUF_QUOTED];
    rv_fail(&c->err, RV_EFORMAT,
            "tensor %s: found its bytes from %llu on, inside tensor %s that ends at %llu, want "
            "tensors apart",
            rv_gguf_quote(bbuf, b->name), (ull)b->offset, rv_gguf_quote(abuf, a->name),
            (ull)(a->offset + a->n_bytes));
}

static void check_overlap(rv_cursor *c, const rv_gguf_tensor *t, size_t n) {
    if (c->err.code != RV_OK) return;
    size_t i = 1; /* files are written in order: nearly always one pass is all */
    while (i < n && t[i].offset >= t[i - 1].offset + t[i - 1].n_bytes) i++;
    if (i >= n) return;
    span *s = rv_malloc(n * sizeof *s);
    if (!s) {
        rv_fail(&c->err, RV_ENOMEM, "out of memory for the offsets of %zu tensors", n);
        return;
    }
    for (i = 0; i < n; i++) s[i] = (span){t[i].offset, i};
    qsort(s, n, sizeof *s, by_offset);
    for (i = 1; i < n; i++) {
        const rv_gguf_tensor *a = &t[s[i - 1].i], *b = &t[s[i].i];
        if (b->offset < a->offset + a->n_bytes) {
            fail_overlap(c, a, b);
            break;
        }
    }
    rv_free(s);
}

static void read_tensors(rv_cursor *c, rv_gguf *g, const rv_gguf_head *head, uint64_t n) {
    check_room(c, "tensor count", n, MIN_TENSOR_BYTES);
    if (c->err.code != RV_OK) return;
    if (n > g->max_tensors - g->n_tensors) {
        rv_fail(&c->err, RV_EFORMAT, "tensor count: found %llu after %zu, want %zu in all parts",
                (ull)n, g->n_tensors, g->max_tensors);
        return;
    }
    size_t first = g->n_tensors, need = first + (size_t)n;
    if (!rv_grow((void **)&g->tensors, &g->cap_tensors, need, sizeof *g->tensors)) {
        rv_fail(&c->err, RV_ENOMEM, "out of memory for %llu tensors", (ull)n);
        return;
    }
    if (n == 0) return;
    char buf[RV_GGUF_QUOTED];
    for (size_t i = first; i < need && c->err.code == RV_OK; i++) {
        rv_gguf_tensor *t = &g->tensors[i];
        *t = (rv_gguf_tensor){.i_file = (uint32_t)(g->n_parts - 1)};
        t->name = read_name(c, "name", RV_GGUF_MAX_NAME);
        if (c->err.code != RV_OK) {
            rv_gguf_context(c, "tensor %zu of %llu", i - first, (ull)n);
            return;
        }
        read_shape(c, t);
        read_type(c, t);
        t->offset = rv_cur_u64(c, "offset");
        rv_gguf_context(c, "tensor %zu, %s", i - first, rv_gguf_quote(buf, t->name));
    }
    place_tensors(c, head, g->tensors + first, (size_t)n);
    check_overlap(c, g->tensors + first, (size_t)n);
    if (c->err.code == RV_OK) g->n_tensors = need;
}

rv_status rv_gguf_parse(rv_gguf *g, rv_gguf_head *head, const char *what, rv_err *err) {
    const rv_map *map = &g->parts[g->n_parts - 1].map;
    rv_cursor c;
    rv_cur_init(&c, map->p, map->n);
    if (map->n == 0) rv_fail(&c.err, RV_EFORMAT, "found 0 bytes, want a GGUF file");
    read_version(&c, head);
    uint64_t n_tensors = read_count(&c, "tensor count", RV_GGUF_MAX_TENSORS);
    uint64_t n_kv = read_count(&c, "metadata count", RV_GGUF_MAX_KV);
    read_kvs(&c, head, n_kv);
    read_alignment(&c, head);
    read_tensors(&c, g, head, n_tensors);
    if (c.err.code == RV_OK) return RV_OK;
    return rv_fail(err, c.err.code, "%s: %.330s", rv_gguf_path_end(what), c.err.msg);
}

void rv_gguf_head_free(rv_gguf_head *head) {
    rv_gguf_table_free(&head->keys);
    rv_free(head->kv);
    *head = (rv_gguf_head){0};
}

const rv_gguf_kv *rv_gguf_head_find(const rv_gguf_head *head, const char *key) {
    rv_str s = {key, strlen(key)};
    return rv_gguf_table_find(&head->keys, head->kv, sizeof *head->kv, s);
}
