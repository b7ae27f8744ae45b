/* base: allocation, cursor, thread pool. */
#include <unistd.h>

#include "base/pool.h"
#include "test.h"

static void alloc_counts_and_aligns(void) {
    size_t live = rv_live_bytes();
    for (size_t n = 0; n < 300; n += 7) {
        char *a = rv_malloc(n), *b = rv_alloc_aligned(n);
        CHECK(a && b && (uintptr_t)a % 16 == 0 && (uintptr_t)b % 64 == 0);
        memset(a, 1, n), memset(b, 2, n);
        a = rv_realloc(a, n + 100);
        for (size_t i = 0; i < n; i++) CHECK(a[i] == 1);
        CHECK(rv_live_bytes() == live + n + 100 + n);
        rv_free(a), rv_free(b);
    }
    CHECK(rv_calloc(SIZE_MAX / 2, 3) == NULL && rv_malloc(SIZE_MAX) == NULL);
    rv_test_fail_alloc_at(1);
    void *p = rv_malloc(1);
    CHECK(p && rv_malloc(1) == NULL);
    rv_test_fail_alloc_at(-1);
    rv_free(p);
}

static void alloc_of_large_blocks(void) {
    const size_t live = rv_live_bytes(), huge = (size_t)2 << 20;
    for (size_t n = 2 * huge - 1; n < 4 * huge; n += huge / 2 + 1) {
        uint8_t *p = rv_alloc_aligned(n);
        CHECK(p && (uintptr_t)p % (n < 2 * huge ? 64 : huge) == 0);
        CHECK(rv_live_bytes() == live + n);
        memset(p, 3, n);
        CHECK(p[0] == 3 && p[n - 1] == 3);
        rv_free(p);
    }
    rv_test_fail_alloc_at(0);
    CHECK(rv_alloc_aligned(4 * huge) == NULL);
    rv_test_fail_alloc_at(-1);
    CHECK(rv_alloc_aligned(SIZE_MAX / 2) == NULL && rv_live_bytes() == live);
}

/* Pages of address space and of memory that the process has; 0 where the system does not say. */
static void process_pages(unsigned long *mapped, unsigned long *resident) {
    *mapped = *resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return;
    if (fscanf(f, "%lu %lu", mapped, resident) != 2) *mapped = *resident = 0;
    fclose(f);
}

static void alloc_gives_large_blocks_back_to_the_system(void) {
    enum { N = 64 };
    const size_t mib = (size_t)1 << 20;
    char *held[N], *between[N]; /* the latter stay, as what a heap must keep */
    unsigned long mapped[2], resident[2];
    process_pages(&mapped[0], &resident[0]);
    for (int round = 0; round < 8; round++) {
        for (size_t i = 0; i < N; i++) {
            const size_t n = mib + i * mib / 16 + i;
            held[i] = i % 3 ? rv_alloc_aligned(n) : i % 2 ? rv_calloc(n, 1) : rv_malloc(n);
            CHECK(held[i] && (i % 6 != 3 || held[i][n - 1] == 0));
            memset(held[i], 1, n);
            if (round == 7) CHECK((between[i] = rv_malloc(64)) != NULL);
        }
        for (size_t i = 0; i < N; i++) rv_free(held[(i * 37) % N]);
    }
    process_pages(&mapped[1], &resident[1]);
#ifndef RV_SANITIZED /* sanitizers keep it for a while */
    CHECK(mapped[1] <= mapped[0] + 128 && resident[1] <= resident[0] + 128);
#endif
    for (size_t i = 0; i < N; i++) rv_free(between[i]);
}

static void cursor_is_sticky_and_bounded(void) {
    const uint8_t b[] = {1, 0, 2, 0, 0, 0, 9};
    rv_cursor c;
    rv_cur_init(&c, b, sizeof b);
    CHECK(rv_cur_u16(&c, "a") == 1 && rv_cur_u32(&c, "b") == 2 && rv_cur_left(&c) == 1);
    CHECK(rv_cur_u64(&c, "the count") == 0 && c.err.code == RV_EFORMAT);
    CHECK(strstr(c.err.msg, "the count: need 8 bytes at offset 6, have 1"));
    CHECK(rv_cur_u8(&c, "d") == 0 && c.off == 6);
    rv_cur_init(&c, b, sizeof b);
    CHECK(rv_cur_bytes(&c, UINT64_MAX, "all") == NULL && c.err.code == RV_EFORMAT);
}

typedef struct count {
    atomic_uint hits[1000];
    atomic_int seen_thread[8];
} count;

static void count_chunk(void *arg, size_t i, int i_thread) {
    count *c = arg;
    atomic_fetch_add(&c->hits[i], 1);
    atomic_fetch_add(&c->seen_thread[i_thread], 1);
}

static void pool_runs_every_chunk_once(void) {
    rv_err err = {0};
    rv_pool *p;
    CHECK(rv_pool_new(&p, 0, &err) == RV_EARG && p == NULL);
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        CHECK(rv_pool_new(&p, n_threads, NULL) == RV_OK);
        static count c;
        for (unsigned round = 1; round <= 2000; round++) {
            memset(&c, 0, sizeof c);
            size_t n = (round * 37) % 1000;
            rv_pool_run(p, n, count_chunk, &c);
            for (size_t i = 0; i < 1000; i++) CHECK(atomic_load(&c.hits[i]) == (i < n));
        }
        rv_pool_free(&p);
        CHECK(p == NULL);
    }
}

typedef struct nest {
    rv_pool *pool;
    count outer, inner[50];
} nest;

static void inner_loop(void *arg, size_t i, int i_thread) {
    nest *x = arg;
    count_chunk(&x->outer, i, i_thread);
    rv_pool_run(x->pool, 20, count_chunk, &x->inner[i]);
}

/* The thread of a chunk runs the loop that the chunk starts, as thread 0 of it. */
static void pool_runs_loops_inside_chunks(void) {
    static nest x;
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        memset(&x, 0, sizeof x);
        CHECK(rv_pool_new(&x.pool, n_threads, NULL) == RV_OK);
        rv_pool_run(x.pool, 50, inner_loop, &x);
        for (size_t i = 0; i < 50; i++) {
            CHECK(atomic_load(&x.outer.hits[i]) == 1);
            CHECK(atomic_load(&x.inner[i].seen_thread[0]) == 20);
            for (size_t k = 0; k < 20; k++) CHECK(atomic_load(&x.inner[i].hits[k]) == 1);
        }
        rv_pool_run(x.pool, 50, inner_loop, &x); /* and the pool is whole afterwards */
        CHECK(atomic_load(&x.outer.hits[49]) == 2);
        rv_pool_free(&x.pool);
    }
}

static void map_reports_bad_paths(void) {
    rv_err err = {0};
    rv_map m;
    CHECK(rv_map_open(&m, "/no/such/file", &err) == RV_ENOTFOUND && m.p == NULL);
    rv_err_clear(&err);
    CHECK(rv_map_open(&m, "/tmp", &err) == RV_EIO && strstr(err.msg, "is a directory"));
}

/* Any part of it, and what another process has cut off meanwhile. */
static void map_populates(void) {
    char path[] = "/tmp/rv_testXXXXXX";
    enum { PAGE = 1 << 16, N = 5 * PAGE + 321 };
    static uint8_t bytes[N];
    rv_map m;
    for (size_t i = 0; i < N; i++) bytes[i] = (uint8_t)(i * 7 + i / 251);
    const int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, bytes, N) == N);
    CHECK(rv_map_open(&m, path, NULL) == RV_OK && m.n == N);
    rv_map_populate(m.p, 0);
    rv_map_populate(m.p + 17, 1);
    rv_map_populate(m.p + PAGE - 1, 2 * PAGE);
    rv_map_populate(m.p, N);
    CHECK(memcmp(m.p, bytes, N) == 0);
    CHECK(ftruncate(fd, PAGE) == 0);
    rv_map_populate(m.p, N);
    CHECK(memcmp(m.p, bytes, PAGE) == 0);
    rv_map_close(&m);
    close(fd);
    unlink(path);
}

const rv_test tests_base[] = {
    {"alloc_counts_and_aligns", alloc_counts_and_aligns},
    {"alloc_of_large_blocks", alloc_of_large_blocks},
    {"alloc_gives_large_blocks_back_to_the_system", alloc_gives_large_blocks_back_to_the_system},
    {"cursor_is_sticky_and_bounded", cursor_is_sticky_and_bounded},
    {"pool_runs_every_chunk_once", pool_runs_every_chunk_once},
    {"pool_runs_loops_inside_chunks", pool_runs_loops_inside_chunks},
    {"map_reports_bad_paths", map_reports_bad_paths},
    {"map_populates", map_populates},
    {NULL, NULL},
};
