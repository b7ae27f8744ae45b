/* How fast this machine reads memory: the roof that decoding is measured against. */
#include "base/pool.h"

enum { CHUNK = 1 << 20 };

typedef struct reads {
    const uint64_t *p;
    atomic_uint_fast64_t sink; /* keeps the loads alive */
} reads;

static void read_chunk(void *arg, size_t i_chunk, int i_thread) {
    (void)i_thread;
    reads *r = arg;
    const uint64_t *p = r->p + i_chunk * (CHUNK / 8);
    uint64_t s[8] = {0};
    for (size_t i = 0; i < CHUNK / 8; i += 8)
        for (size_t k = 0; k < 8; k++) s[k] ^= p[i + k];
    atomic_fetch_xor_explicit(&r->sink, s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7],
                              memory_order_relaxed);
}

rv_status rv_read_bandwidth(int n_threads, size_t bytes, double *bytes_per_s, rv_err *err) {
    rv_err_clear(err);
    const size_t n = bytes / CHUNK;
    if (n == 0) return rv_fail(err, RV_EARG, "bytes: is %zu, want at least %d", bytes, CHUNK);
    rv_pool *pool;
    rv_status st = rv_pool_new(&pool, n_threads, err);
    if (st != RV_OK) return st;
    uint64_t *p = rv_alloc_aligned(n * CHUNK);
    if (!p) {
        rv_pool_free(&pool);
        return rv_fail(err, RV_ENOMEM, "read bandwidth: no memory for %zu bytes", bytes);
    }
    memset(p, 1, n * CHUNK);
    reads r = {.p = p};
    uint64_t t = rv_now_ns();
    rv_pool_run(pool, n, read_chunk, &r);
    t = rv_now_ns() - t;
    *bytes_per_s = (double)(n * CHUNK) * 1e9 / (double)RV_MAX(t, (uint64_t)1);
    rv_free(p);
    rv_pool_free(&pool);
    return RV_OK;
}
