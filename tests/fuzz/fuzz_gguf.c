/* Fuzz target: bytes to GGUF.  Whatever the bytes are, opening either fails with a message and
 * leaves nothing behind, or every value and every view it hands out can be read and the promises
 * of csrc/gguf/parse.c hold.
 *
 * The mutator knows the format: it walks the file for as long as it makes sense, remembers where
 * numbers stand, and replaces, repeats or drops those, because random bytes rarely get past the
 * first length. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "fuzz.h"

/* ---- the target ---- */

static volatile unsigned g_sink; /* reads must not be optimised away */

static void read_bytes(const void *p, uint64_t n) {
    const uint8_t *b = p;
    unsigned sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += b[i];
    g_sink += sum;
}

static char *name_of(rv_str s) {
    char *z = rv_strndup(s.p, s.n);
    FUZZ_CHECK(z && strlen(z) == s.n); /* names hold no NUL */
    return z;
}

static void check_kv(const rv_gguf *g, const rv_gguf_kv *kv) {
    char *key = name_of(kv->key);
    FUZZ_CHECK(rv_gguf_find_kv(g, key) == kv);
    rv_free(key);
    read_bytes(kv->s.p, kv->s.n);
    read_bytes(kv->data, kv->data_bytes);
    FUZZ_CHECK(kv->type == RV_GGUF_ARR || kv->n == 1);
    uint64_t pos = 0, n = 0;
    for (rv_str s; rv_gguf_next_str(kv, &pos, &s); n++) read_bytes(s.p, s.n);
    FUZZ_CHECK(n == (kv->type == RV_GGUF_ARR && kv->elem == RV_GGUF_STR ? kv->n : 0));
}

static void check_tensor(const rv_gguf *g, const rv_gguf_tensor *t, const uint8_t *file, size_t n) {
    char *name = name_of(t->name);
    FUZZ_CHECK(rv_gguf_find_tensor(g, name) == t);
    rv_free(name);
    FUZZ_CHECK(t->n_bytes >= 1 && t->offset <= n && t->n_bytes <= n - t->offset);
    FUZZ_CHECK((const uint8_t *)t->data == file + t->offset && t->i_file == 0);
    FUZZ_CHECK(t->offset % rv_gguf_alignment(g) == 0 && t->n_dims >= 1 && t->n_dims <= 4);
    FUZZ_CHECK(t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3] == t->n_values);
    read_bytes(t->data, t->n_bytes);
}

static void check_open(const rv_gguf *g, const uint8_t *data, size_t size) {
    FUZZ_CHECK(rv_gguf_file_bytes(g) == size);
    FUZZ_CHECK(rv_gguf_version(g) == 2 || rv_gguf_version(g) == 3);
    uint64_t n = rv_gguf_n_tensors(g);
    for (uint64_t i = 0; i < rv_gguf_n_kv(g); i++) check_kv(g, rv_gguf_kv_at(g, i));
    for (uint64_t i = 0; i < n; i++) {
        const rv_gguf_tensor *t = rv_gguf_tensor_at(g, i);
        check_tensor(g, t, data, size);
        for (uint64_t k = 0; k < i && n < 64; k++) {
            const rv_gguf_tensor *o = rv_gguf_tensor_at(g, k);
            FUZZ_CHECK(o->offset >= t->offset + t->n_bytes || t->offset >= o->offset + o->n_bytes);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t live = rv_live_bytes();
    rv_gguf *g = NULL;
    rv_err err = {0};
    rv_status st = rv_gguf_open_mem(&g, data, size, &err);
    FUZZ_CHECK(st == err.code && (st == RV_OK) == (g != NULL) && (st == RV_OK) == !err.msg[0]);
    if (st == RV_OK) {
        FUZZ_CHECK(rv_live_bytes() - live <= 2 * size + (16u << 20));
        check_open(g, data, size);
        rv_gguf_free(&g);
    } else {
        FUZZ_CHECK(st == RV_EFORMAT || st == RV_EUNSUPPORTED);
        FUZZ_CHECK(strncmp(err.msg, "memory: ", 8) == 0);
        for (const char *p = err.msg; *p; p++) FUZZ_CHECK(*p >= 0x20 && *p < 0x7f);
    }
    FUZZ_CHECK(rv_live_bytes() == live);
    return 0;
}

/* ---- the mutator ---- */

enum { MAX_FIELDS = 512 };

typedef struct field {
    size_t off, width; /* of a number */
} field;

typedef struct walk {
    const uint8_t *p;
    size_t n, off;
    field fields[MAX_FIELDS];
    size_t n_fields;
    size_t items[MAX_FIELDS]; /* where pairs and tensor descriptions begin */
    size_t n_items;
} walk;

static uint64_t number(walk *w, size_t width) {
    uint64_t x = 0;
    if (width > w->n - w->off) {
        w->off = w->n;
        return 0;
    }
    for (size_t i = 0; i < width; i++) x |= (uint64_t)w->p[w->off + i] << 8 * i;
    if (w->n_fields < MAX_FIELDS) w->fields[w->n_fields++] = (field){w->off, width};
    w->off += width;
    return x;
}

static void skip(walk *w, uint64_t n) {
    w->off = n > w->n - w->off ? w->n : w->off + (size_t)n;
}

static void value(walk *w, uint64_t type, int depth) {
    static const uint8_t SIZE[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == RV_GGUF_STR) {
        skip(w, number(w, 8));
    } else if (type == RV_GGUF_ARR && depth < 10) {
        uint64_t elem = number(w, 4), n = number(w, 8);
        for (uint64_t i = 0; i < n && w->off < w->n; i++) value(w, elem, depth + 1);
    } else if (type < sizeof SIZE && SIZE[type]) {
        number(w, SIZE[type]);
    } else {
        w->off = w->n;
    }
}

static void item(walk *w) {
    if (w->n_items < MAX_FIELDS) w->items[w->n_items++] = w->off;
}

static void walk_file(walk *w) {
    skip(w, 4);
    number(w, 4);
    uint64_t n_tensors = number(w, 8), n_kv = number(w, 8);
    for (uint64_t i = 0; i < n_kv && w->off < w->n; i++) {
        item(w);
        skip(w, number(w, 8));
        value(w, number(w, 4), 0);
    }
    for (uint64_t i = 0; i < n_tensors && w->off < w->n; i++) {
        item(w);
        skip(w, number(w, 8));
        uint64_t n_dims = number(w, 4);
        for (uint64_t k = 0; k < n_dims && k < 8; k++) number(w, 8);
        number(w, 4);
        number(w, 8);
    }
    item(w);
}

static void change_number(uint8_t *data, const field *f, unsigned r) {
    static const uint64_t NUMBERS[] = {
        0,          1,          2,          3,          4,          5,         7,
        8,          9,          12,         13,         16,         31,        32,
        33,         64,         256,        65535,      65536,      1 << 20,   INT32_MAX,
        UINT32_MAX, 1ull << 32, 1ull << 60, 1ull << 61, 1ull << 62, INT64_MAX, UINT64_MAX};
    uint64_t x = 0;
    for (size_t i = 0; i < f->width; i++) x |= (uint64_t)data[f->off + i] << 8 * i;
    unsigned pick = r >> 2;
    switch (r & 3) {
    case 0: x = NUMBERS[pick % RV_COUNT(NUMBERS)]; break;
    case 1: x += 1 + pick % 64; break;
    case 2: x -= 1 + pick % 64; break;
    default: x = pick & 1 ? -x : x << (pick % 63); break;
    }
    for (size_t i = 0; i < f->width; i++, x >>= 8) data[f->off + i] = (uint8_t)x;
}

/* Repeat or drop one pair or tensor description, and say so in the header half of the time. */
static size_t change_item(uint8_t *data, size_t size, size_t max_size, const walk *w, unsigned r) {
    if (w->n_items < 2 || size < 24) return size;
    size_t i = (r >> 2) % (w->n_items - 1), at = w->items[i], n = w->items[i + 1] - at;
    bool repeat = r & 1;
    if (repeat && n > max_size - size) return size;
    if (repeat)
        memmove(data + at + n, data + at, size - at);
    else
        memmove(data + at, data + at + n, size - at - n);
    if (r & 2) { /* the low byte of n_kv */
        data[16] = (uint8_t)(data[16] + (repeat ? 1 : -1));
    }
    return repeat ? size + n : size - n;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    static walk w;
    unsigned r = (seed ^ seed >> 15) * 0x2c1b3c6du;
    r ^= r >> 12;
    if (r % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
    w = (walk){.p = data, .n = size};
    walk_file(&w);
    if (w.n_fields == 0) return LLVMFuzzerMutate(data, size, max_size);
    if (r % 16 == 1) return change_item(data, size, max_size, &w, r >> 4);
    change_number(data, &w.fields[(r >> 12) % w.n_fields], seed >> 3);
    return size;
}
