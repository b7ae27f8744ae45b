/* GGUF files: one file or the parts of a split one behind one handle, and the accessors.
 *
 * A split model is N files, each a whole GGUF: "x-00001-of-0000N.gguf" holds the model's metadata,
 * every part holds its own tensors, and three keys tie them together: split.no, split.count,
 * split.tensors.count.  The keys decide whether a file is a part; its name says where the others
 * are.  Any part may be given: the first one's metadata is what the handle shows. */
#include <stdio.h>

#include "gguf/gguf.h"

enum { SUFFIX_MAX = 56 }; /* "-00001-of-00002.gguf", and any two numbers of 64 bits */

typedef unsigned long long ull;

static rv_gguf *new_gguf(rv_err *err) {
    rv_gguf *g = rv_calloc(1, sizeof *g);
    if (!g) rv_fail(err, RV_ENOMEM, "gguf: out of memory");
    if (g) g->max_tensors = RV_GGUF_MAX_TENSORS;
    return g;
}

static void drop_parts(rv_gguf *g) {
    rv_gguf_head_free(&g->head);
    g->n_tensors = 0;
    while (g->n_parts) {
        rv_gguf_part *p = &g->parts[--g->n_parts];
        if (!p->borrowed) rv_map_close(&p->map);
    }
}

void rv_gguf_free(rv_gguf **pg) {
    rv_gguf *g = pg ? *pg : NULL;
    if (!g) return;
    drop_parts(g);
    rv_free(g->parts);
    rv_free(g->tensors);
    rv_gguf_table_free(&g->names);
    rv_free(g);
    *pg = NULL;
}

static rv_status add_part(rv_gguf *g, rv_err *err) {
    if (!rv_grow((void **)&g->parts, &g->cap_parts, g->n_parts + 1, sizeof *g->parts))
        return rv_fail(err, RV_ENOMEM, "gguf: out of memory for part %zu", g->n_parts);
    g->parts[g->n_parts++] = (rv_gguf_part){0};
    return RV_OK;
}

static rv_status open_part(rv_gguf *g, rv_gguf_head *head, const char *path, rv_err *err) {
    rv_status st = add_part(g, err);
    if (st == RV_OK) st = rv_map_open(&g->parts[g->n_parts - 1].map, path, err);
    if (st == RV_OK) st = rv_gguf_parse(g, head, path, err);
    return st;
}

/* ---- split files ---- */

typedef struct split {
    uint64_t no, count, n_tensors;
} split;

static rv_status split_key(const rv_gguf_head *head, const char *key, uint64_t max,
                           const char *what, uint64_t *out, rv_err *err) {
    const rv_gguf_kv *kv = rv_gguf_head_find(head, key);
    if (!kv) return rv_fail(err, RV_EFORMAT, "%s: key %s: found none, want one", what, key);
    switch (kv->type) {
    case RV_GGUF_U8:
    case RV_GGUF_U16:
    case RV_GGUF_U32:
    case RV_GGUF_U64: *out = kv->u; break;
    case RV_GGUF_I8:
    case RV_GGUF_I16:
    case RV_GGUF_I32:
    case RV_GGUF_I64: *out = (uint64_t)kv->i; break; /* below zero becomes too large */
    default:
        return rv_fail(err, RV_EFORMAT, "%s: key %s: found type %s, want an integer", what, key,
                       rv_gguf_type_name(kv->type));
    }
    if (*out > max)
        return rv_fail(err, RV_EFORMAT, "%s: key %s: found %lld, want 0 to %llu", what, key,
                       (long long)*out, (ull)max);
    return RV_OK;
}

/* count is 1 for a file that is not split. */
static rv_status read_split(const rv_gguf_head *head, const char *path, split *s, rv_err *err) {
    *s = (split){.count = 1};
    if (!rv_gguf_head_find(head, "split.count")) return RV_OK;
    const char *what = rv_gguf_path_end(path);
    rv_status st = split_key(head, "split.count", RV_GGUF_MAX_PARTS, what, &s->count, err);
    if (st != RV_OK || s->count <= 1) return st;
    st = split_key(head, "split.no", s->count - 1, what, &s->no, err);
    if (st == RV_OK)
        st = split_key(head, "split.tensors.count", INT32_MAX, what, &s->n_tensors, err);
    if (st == RV_OK && s->n_tensors > RV_GGUF_MAX_TENSORS)
        st = rv_fail(err, RV_EUNSUPPORTED,
                     "%s: key split.tensors.count: found %llu, want at most %d", what,
                     (ull)s->n_tensors, RV_GGUF_MAX_TENSORS);
    return st;
}

static size_t print_suffix(char buf[SUFFIX_MAX], uint64_t no, uint64_t count) {
    return (size_t)snprintf(buf, SUFFIX_MAX, "-%05llu-of-%05llu.gguf", (ull)no + 1, (ull)count);
}

static rv_status check_split(const split *found, const split *want, const char *path, rv_err *err) {
    const struct {
        const char *key;
        uint64_t found, want;
    } rows[] = {
        {"split.count", found->count, want->count},
        {"split.no", found->no, want->no},
        {"split.tensors.count", found->n_tensors, want->n_tensors},
    };
    for (size_t i = 0; i < RV_COUNT(rows); i++)
        if (rows[i].found != rows[i].want)
            return rv_fail(
                err, RV_EFORMAT, "%s: key %s: found %llu, want %llu to fit the other parts",
                rv_gguf_path_end(path), rows[i].key, (ull)rows[i].found, (ull)rows[i].want);
    return RV_OK;
}

/* path is a buffer whose suffix can be overwritten: part no of want is opened and checked. */
static rv_status open_next(rv_gguf *g, rv_gguf_head *head, char *path, size_t stem, uint64_t no,
                           const split *want, rv_err *err) {
    print_suffix(path + stem, no, want->count);
    rv_err inner = {0};
    rv_status st = open_part(g, head, path, &inner);
    if (st == RV_ENOTFOUND)
        return rv_fail(err, st, "%s: no such file, want part %llu of %llu", rv_gguf_path_end(path),
                       (ull)no + 1, (ull)want->count);
    if (st != RV_OK) return rv_fail(err, st, "%s", inner.msg);
    split found, want_part = *want;
    want_part.no = no;
    st = read_split(head, path, &found, err);
    return st == RV_OK ? check_split(&found, &want_part, path, err) : st;
}

static rv_status open_parts(rv_gguf *g, char *path, size_t stem, const split *s, rv_err *err) {
    rv_status st = RV_OK;
    if (s->no != 0) { /* the metadata is in the first part: begin again there */
        drop_parts(g);
        st = open_next(g, &g->head, path, stem, 0, s, err);
    }
    g->max_tensors = RV_MAX((size_t)s->n_tensors, g->n_tensors);
    if (st == RV_OK && !rv_grow((void **)&g->tensors, &g->cap_tensors, g->max_tensors,
                                sizeof *g->tensors)) /* once, not part by part */
        st = rv_fail(err, RV_ENOMEM, "gguf: out of memory for %zu tensors", g->max_tensors);
    for (uint64_t no = 1; no < s->count && st == RV_OK; no++) {
        rv_gguf_head head = {0};
        st = open_next(g, &head, path, stem, no, s, err);
        rv_gguf_head_free(&head);
    }
    if (st == RV_OK && g->n_tensors != s->n_tensors)
        st = rv_fail(err, RV_EFORMAT,
                     "%s: key split.tensors.count: found %llu, want %zu as in the parts",
                     rv_gguf_path_end(path), (ull)s->n_tensors, g->n_tensors);
    return st;
}

static rv_status open_split(rv_gguf *g, const char *path, rv_err *err) {
    split s;
    rv_status st = read_split(&g->head, path, &s, err);
    if (st != RV_OK || s.count <= 1) return st;
    char suffix[SUFFIX_MAX];
    size_t n = strlen(path), n_suffix = print_suffix(suffix, s.no, s.count);
    if (n < n_suffix || strcmp(path + n - n_suffix, suffix) != 0)
        return rv_fail(err, RV_EFORMAT,
                       "%s: part %llu of %llu: found another file name, want one that ends in %s",
                       rv_gguf_path_end(path), (ull)s.no + 1, (ull)s.count, suffix);
    char *buf = rv_malloc(n - n_suffix + SUFFIX_MAX);
    if (!buf) return rv_fail(err, RV_ENOMEM, "gguf: out of memory for a path");
    memcpy(buf, path, n + 1);
    st = open_parts(g, buf, n - n_suffix, &s, err);
    rv_free(buf);
    return st;
}

/* ---- opening ---- */

static rv_status index_tensors(rv_gguf *g, const char *path, rv_err *err) {
    size_t dup = 0;
    rv_status st =
        rv_gguf_table_build(&g->names, g->tensors, sizeof *g->tensors, g->n_tensors, &dup);
    if (st == RV_ENOMEM) return rv_fail(err, st, "gguf: out of memory for the tensor index");
    if (st == RV_OK) return RV_OK;
    char buf[RV_GGUF_QUOTED];
    return rv_fail(err, st, "%s: tensor %zu: found the name %s twice, want it once",
                   rv_gguf_path_end(path), dup, rv_gguf_quote(buf, g->tensors[dup].name));
}

static rv_status hand_out(rv_gguf **out, rv_gguf *take_g, rv_status st) {
    if (st != RV_OK) rv_gguf_free(&take_g); /* copes with a half-built one */
    *out = take_g;
    return st;
}

rv_status rv_gguf_open(rv_gguf **out, const char *path, rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    rv_gguf *g = new_gguf(err);
    if (!g) return RV_ENOMEM;
    rv_status st = open_part(g, &g->head, path, err);
    if (st == RV_OK) st = open_split(g, path, err);
    if (st == RV_OK) st = index_tensors(g, path, err);
    return hand_out(out, g, st);
}

rv_status rv_gguf_open_mem(rv_gguf **out, const void *p, size_t n, rv_err *err) {
    static const char WHAT[] = "memory"; /* where a path stands in messages */
    rv_err_clear(err);
    *out = NULL;
    rv_gguf *g = new_gguf(err);
    if (!g) return RV_ENOMEM;
    rv_status st = add_part(g, err);
    if (st == RV_OK) {
        g->parts[0] = (rv_gguf_part){.map = {.p = p, .n = n}, .borrowed = true};
        st = rv_gguf_parse(g, &g->head, WHAT, err);
    }
    split s;
    if (st == RV_OK) st = read_split(&g->head, WHAT, &s, err);
    if (st == RV_OK && s.count > 1)
        st = rv_fail(err, RV_EUNSUPPORTED,
                     "%s: key split.count: found %llu, want 1: parts are opened by path", WHAT,
                     (ull)s.count);
    if (st == RV_OK) st = index_tensors(g, WHAT, err);
    return hand_out(out, g, st);
}

/* ---- accessors ---- */

uint32_t rv_gguf_version(const rv_gguf *g) {
    return g->head.version;
}

uint64_t rv_gguf_alignment(const rv_gguf *g) {
    return g->head.alignment;
}

uint64_t rv_gguf_file_bytes(const rv_gguf *g) {
    uint64_t sum = 0;
    for (size_t i = 0; i < g->n_parts; i++) sum += g->parts[i].map.n;
    return sum;
}

uint64_t rv_gguf_n_kv(const rv_gguf *g) {
    return g->head.n_kv;
}

uint64_t rv_gguf_n_tensors(const rv_gguf *g) {
    return g->n_tensors;
}

const rv_gguf_kv *rv_gguf_kv_at(const rv_gguf *g, uint64_t i) {
    return i < g->head.n_kv ? &g->head.kv[i] : NULL;
}

const rv_gguf_tensor *rv_gguf_tensor_at(const rv_gguf *g, uint64_t i) {
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}

const rv_gguf_kv *rv_gguf_find_kv(const rv_gguf *g, const char *key) {
    return rv_gguf_head_find(&g->head, key);
}

const rv_gguf_tensor *rv_gguf_find_tensor(const rv_gguf *g, const char *name) {
    rv_str s = {name, strlen(name)};
    return rv_gguf_table_find(&g->names, g->tensors, sizeof *g->tensors, s);
}

bool rv_gguf_next_str(const rv_gguf_kv *kv, uint64_t *pos, rv_str *out) {
    if (kv->type != RV_GGUF_ARR || kv->elem != RV_GGUF_STR || *pos >= kv->data_bytes) return false;
    uint64_t n = rv_le64(kv->data + *pos); /* checked when the file was opened */
    *out = (rv_str){n ? (const char *)kv->data + *pos + 8 : NULL, (size_t)n};
    *pos += 8 + n;
    return true;
}
