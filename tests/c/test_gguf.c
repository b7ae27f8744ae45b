/* gguf: what only C can test: failing allocations, bytes read past the end (under a sanitizer),
 * pages touched.  Hostile files are in tests/py/gguf_bad.py and tests/bad. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test.h"

#define GOLDEN RV_TEST_DATA "/golden/models/llama-d64-f32.gguf"

/* ---- a writer of small files ---- */

typedef struct buf {
    uint8_t p[4096];
    size_t n;
} buf;

static void put(buf *b, const void *p, size_t n) {
    CHECK(n <= sizeof b->p - b->n);
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void put_int(buf *b, uint64_t x, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++, x >>= 8) {
        uint8_t byte = (uint8_t)x;
        put(b, &byte, 1);
    }
}

static void put_str(buf *b, const char *s) {
    put_int(b, strlen(s), 8);
    put(b, s, strlen(s));
}

static void put_head(buf *b, uint64_t n_tensors, uint64_t n_kv) {
    b->n = 0;
    put(b, "GGUF", 4);
    put_int(b, 3, 4);
    put_int(b, n_tensors, 8);
    put_int(b, n_kv, 8);
}

static void put_u32_kv(buf *b, const char *key, uint32_t value) {
    put_str(b, key);
    put_int(b, RV_GGUF_U32, 4);
    put_int(b, value, 4);
}

/* A tensor of 8 float32. */
static void put_tensor(buf *b, const char *name, uint64_t offset) {
    put_str(b, name);
    put_int(b, 2, 4);
    put_int(b, 4, 8);
    put_int(b, 2, 8);
    put_int(b, RV_F32, 4);
    put_int(b, offset, 8);
}

static void put_data(buf *b, size_t n) {
    while (b->n % 32) put_int(b, 0, 1);
    for (size_t i = 0; i < n; i++) put_int(b, i, 1);
}

/* Three tensors out of order, a string array, an array of arrays. */
static void put_sample(buf *b) {
    put_head(b, 3, 3);
    put_u32_kv(b, "number", 7);
    put_str(b, "words");
    put_int(b, RV_GGUF_ARR, 4), put_int(b, RV_GGUF_STR, 4), put_int(b, 3, 8);
    put_str(b, "one"), put_str(b, ""), put_str(b, "three");
    put_str(b, "deep");
    put_int(b, RV_GGUF_ARR, 4), put_int(b, RV_GGUF_ARR, 4), put_int(b, 2, 8);
    put_int(b, RV_GGUF_U16, 4), put_int(b, 1, 8), put_int(b, 9, 2);
    put_int(b, RV_GGUF_ARR, 4), put_int(b, 0, 8);
    put_tensor(b, "b", 64), put_tensor(b, "c", 32), put_tensor(b, "a", 0);
    put_data(b, 96);
}

/* Open a copy of exactly n bytes, so that a sanitizer sees a read past them. */
static rv_status open_copy(const buf *b, size_t n, rv_err *err) {
    uint8_t *p = malloc(n ? n : 1);
    CHECK(p);
    memcpy(p, b->p, n);
    rv_gguf *g = NULL;
    rv_status st = rv_gguf_open_mem(&g, p, n, err);
    CHECK((st == RV_OK) == (g != NULL));
    rv_gguf_free(&g);
    free(p);
    return st;
}

static void write_file(const char *path, const buf *b) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(b->p, 1, b->n, f) == b->n && fclose(f) == 0);
}

/* ---- tests ---- */

static void gguf_reads_the_golden_file(void) {
    rv_gguf *g = NULL;
    rv_err err = {0};
    CHECK(rv_gguf_open(&g, GOLDEN, &err) == RV_OK);
    const rv_gguf_kv *kv = rv_gguf_find_kv(g, "general.architecture");
    CHECK(kv && kv->type == RV_GGUF_STR && kv->s.n == 5 && memcmp(kv->s.p, "llama", 5) == 0);
    const rv_gguf_tensor *t = rv_gguf_find_tensor(g, "token_embd.weight");
    CHECK(t && t->type == RV_F32 && t->n_dims == 2 && t->dims[0] == 64 && t->dims[1] == 512);
    CHECK(t->dims[2] == 1 && t->dims[3] == 1 && t->n_values == 64 * 512 && t->n_bytes == 131072);
    CHECK(rv_gguf_kv_at(g, rv_gguf_n_kv(g)) == NULL);
    CHECK(rv_gguf_tensor_at(g, rv_gguf_n_tensors(g)) == NULL && rv_gguf_find_tensor(g, "") == NULL);
    rv_gguf_free(&g);
    CHECK(g == NULL);
    rv_gguf_free(&g);
    rv_gguf_free(NULL);
}

static void gguf_walks_string_arrays(void) {
    static buf b;
    put_sample(&b);
    rv_gguf *g = NULL;
    rv_str s = {0};
    uint64_t pos = 0;
    CHECK(rv_gguf_open_mem(&g, b.p, b.n, NULL) == RV_OK && rv_gguf_n_kv(g) == 3);
    const rv_gguf_kv *kv = rv_gguf_find_kv(g, "words");
    CHECK(kv->elem == RV_GGUF_STR && kv->n == 3 && kv->data_bytes == 3 * 8 + 8);
    CHECK(rv_gguf_next_str(kv, &pos, &s) && s.n == 3 && memcmp(s.p, "one", 3) == 0);
    CHECK(rv_gguf_next_str(kv, &pos, &s) && s.n == 0 && s.p == NULL);
    CHECK(rv_gguf_next_str(kv, &pos, &s) && s.n == 5 && memcmp(s.p, "three", 5) == 0);
    CHECK(!rv_gguf_next_str(kv, &pos, &s) && !rv_gguf_next_str(kv, &pos, &s));
    pos = 0;
    CHECK(!rv_gguf_next_str(rv_gguf_find_kv(g, "number"), &pos, &s));
    CHECK(!rv_gguf_next_str(rv_gguf_find_kv(g, "deep"), &pos, &s) && pos == 0);
    rv_gguf_free(&g);
}

static void gguf_truncated_anywhere_is_refused(void) {
    static buf b;
    put_sample(&b);
    rv_err err = {0};
    for (size_t n = 0; n < b.n; n++) {
        CHECK(open_copy(&b, n, &err) == RV_EFORMAT && strncmp(err.msg, "memory: ", 8) == 0);
        CHECK(open_copy(&b, n, NULL) == RV_EFORMAT);
    }
    CHECK(open_copy(&b, b.n, &err) == RV_OK && err.code == RV_OK && err.msg[0] == 0);
}

static void gguf_any_changed_byte_is_survived(void) {
    static buf b;
    put_sample(&b);
    size_t n_opened = 0, n_refused = 0;
    for (size_t i = 0; i < b.n - 96; i++) {
        uint8_t was = b.p[i];
        for (int x = 0; x < 256; x++) {
            b.p[i] = (uint8_t)x;
            rv_err err = {0};
            rv_status st = open_copy(&b, b.n, &err);
            CHECK(st == RV_OK || st == RV_EFORMAT || st == RV_EUNSUPPORTED);
            CHECK((st == RV_OK) == (err.msg[0] == 0) && err.code == st);
            st == RV_OK ? n_opened++ : n_refused++;
        }
        b.p[i] = was;
    }
    CHECK(n_opened > 0 && n_refused > 0);
}

/* Part no of 2, with 9 tensors whose order in the file is not that of their bytes. */
static void put_part(buf *b, uint32_t no) {
    put_head(b, 9, 3);
    put_u32_kv(b, "split.no", no);
    put_u32_kv(b, "split.count", 2);
    put_u32_kv(b, "split.tensors.count", 18);
    for (uint64_t i = 0; i < 9; i++) {
        char name[2] = {(char)('a' + 9 * no + i), 0};
        put_tensor(b, name, 32 * (8 - i));
    }
    put_data(b, 9 * 32);
}

static void gguf_survives_failing_allocations(void) {
    char dir[] = "/tmp/rv_gguf_XXXXXX", path[2][64];
    CHECK(mkdtemp(dir));
    static buf b;
    for (uint32_t no = 0; no < 2; no++) {
        put_part(&b, no);
        snprintf(path[no], sizeof path[no], "%s/x-%05u-of-00002.gguf", dir, no + 1);
        write_file(path[no], &b);
    }
    size_t live = rv_live_bytes();
    for (unsigned from = 0; from < 2; from++) {
        long k = 0;
        for (;; k++) {
            rv_gguf *g = NULL;
            rv_err err = {0};
            rv_test_fail_alloc_at(k);
            rv_status st = rv_gguf_open(&g, path[from], &err);
            rv_test_fail_alloc_at(-1);
            if (st == RV_OK) {
                CHECK(rv_gguf_n_tensors(g) == 18 && rv_gguf_find_tensor(g, "r")->i_file == 1);
                rv_gguf_free(&g);
                CHECK(rv_live_bytes() == live);
                break;
            }
            CHECK(st == RV_ENOMEM && err.code == st && strstr(err.msg, "out of memory"));
            CHECK(g == NULL && rv_live_bytes() == live);
        }
        CHECK(k >= 12); /* each place that allocates failed once, in both parts */
    }
    unlink(path[0]), unlink(path[1]), rmdir(dir);
}

/* A sparse gigabyte: what opening brings into the page cache must not grow with it. */
static void gguf_open_touches_no_tensor_data(void) {
    enum { GIB = 1 << 30 };
    char path[] = "/tmp/rv_gguf_XXXXXX";
    int fd = mkstemp(path);
    static buf b;
    put_head(&b, 1, 0);
    put_str(&b, "huge");
    put_int(&b, 1, 4), put_int(&b, GIB / 4, 8), put_int(&b, RV_F32, 4), put_int(&b, 0, 8);
    put_data(&b, 0);
    CHECK(fd >= 0 && write(fd, b.p, b.n) == (ssize_t)b.n);
    CHECK(ftruncate(fd, (off_t)b.n + GIB) == 0);
    rv_gguf *g = NULL;
    CHECK(rv_gguf_open(&g, path, NULL) == RV_OK);
    size_t n = b.n + GIB, page = (size_t)sysconf(_SC_PAGESIZE), n_pages = (n + page - 1) / page;
    CHECK(rv_gguf_file_bytes(g) == n);
    unsigned char *in_core = malloc(n_pages);
    void *p = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(in_core && p != MAP_FAILED && mincore(p, n, (void *)in_core) == 0);
    size_t n_in = 0;
    for (size_t i = 0; i < n_pages; i++) n_in += in_core[i] & 1;
    CHECK(n_in * page < (16u << 20)); /* the kernel reads a little ahead of the header */
    munmap(p, n), free(in_core), close(fd), unlink(path);
    rv_gguf_free(&g);
}

const rv_test tests_gguf[] = {
    {"gguf_reads_the_golden_file", gguf_reads_the_golden_file},
    {"gguf_walks_string_arrays", gguf_walks_string_arrays},
    {"gguf_truncated_anywhere_is_refused", gguf_truncated_anywhere_is_refused},
    {"gguf_any_changed_byte_is_survived", gguf_any_changed_byte_is_survived},
    {"gguf_survives_failing_allocations", gguf_survives_failing_allocations},
    {"gguf_open_touches_no_tensor_data", gguf_open_touches_no_tensor_data},
    {NULL, NULL},
};
