/* base: one byte budget for several members, and checksums. */
#include <pthread.h>

#include "base/budget.h"
#include "test.h"

/* A member that holds pieces of one size, some of them pinned. */
typedef struct holder {
    rv_budget_member *m;
    uint64_t piece;
    atomic_long n, n_pinned, n_asked;
    long *order, rank; /* of being asked: order[0] counts */
} holder;

static bool shrink(void *ctx, uint64_t want) {
    holder *h = ctx;
    bool any = false;
    if (h->order && atomic_fetch_add(&h->n_asked, 1) == 0) h->rank = ++*h->order;
    for (uint64_t freed = 0; freed < want; freed += h->piece) {
        long n = atomic_load(&h->n);
        do {
            if (n <= atomic_load(&h->n_pinned)) return any;
        } while (!atomic_compare_exchange_weak(&h->n, &n, n - 1));
        rv_budget_give(h->m, h->piece);
        any = true;
    }
    return any;
}

static rv_status hold(holder *h, rv_err *err) {
    const rv_status st = rv_budget_take(h->m, h->piece, err);
    if (st == RV_OK) atomic_fetch_add(&h->n, 1);
    return st;
}

static void budget_asks_the_lowest_first(void) {
    rv_budget *b;
    rv_err err = {0};
    long order = 0;
    holder h[3] = {{.piece = 10}, {.piece = 20}, {.piece = 30}};
    CHECK(rv_budget_new(&b, 100, NULL) == RV_OK);
    const int priority[] = {2, 0, 1};
    for (int i = 0; i < 3; i++) {
        h[i].order = &order;
        CHECK(rv_budget_join(&h[i].m, b, "a holder", priority[i], shrink, &h[i], NULL) == RV_OK);
    }
    for (int i = 0; i < 2; i++) CHECK(hold(&h[0], NULL) == RV_OK);
    for (int i = 0; i < 4; i++) CHECK(hold(&h[1], NULL) == RV_OK);
    CHECK(order == 0);
    CHECK(hold(&h[2], NULL) == RV_OK); /* 30: two of h[1] go */
    CHECK(atomic_load(&h[1].n) == 2 && atomic_load(&h[0].n) == 2 && h[1].rank == 1);
    atomic_store(&h[1].n_pinned, 2);
    CHECK(hold(&h[2], NULL) == RV_OK); /* h[1] is pinned now, so one of h[2] itself goes */
    CHECK(atomic_load(&h[2].n) == 1 && h[2].rank == 2 && h[0].rank == 0);
    atomic_store(&h[2].n_pinned, 1);
    atomic_store(&h[0].n_pinned, 2);
    CHECK(hold(&h[2], &err) == RV_EFULL);
    CHECK(strstr(err.msg, "a holder wants 30 bytes, 90 of 100 are in use"));
    rv_err_clear(&err);
    rv_budget_stats s;
    rv_budget_get_stats(b, &s);
    CHECK(s.used == 90 && s.peak <= 100 && s.n_refused == 1);
    CHECK(rv_budget_resize(b, 60) == 30);
    atomic_store(&h[1].n_pinned, 0);
    CHECK(rv_budget_resize(b, 60) == 0 && atomic_load(&h[1].n) == 0);
    CHECK(rv_budget_take(h[0].m, UINT64_MAX, &err) == RV_EFULL);
    for (int i = 0; i < 3; i++) rv_budget_leave(&h[i].m);
    rv_budget_get_stats(b, &s);
    CHECK(s.used == 0);
    rv_budget_free(&b);
}

typedef struct worker {
    holder *h;
    rv_budget *b;
    uint64_t random;
    long n_over;
} worker;

static void *take_and_give(void *arg) {
    worker *w = arg;
    for (int i = 0; i < 20000; i++) {
        const uint64_t r = rv_test_rand(&w->random);
        holder *h = &w->h[r & 3];
        if (r >> 62) {
            hold(h, NULL);
        } else {
            shrink(h, 1);
        }
        rv_budget_stats s;
        rv_budget_get_stats(w->b, &s);
        w->n_over += s.used > 1000;
    }
    return NULL;
}

static void budget_is_never_exceeded(void) {
    rv_budget *b;
    holder h[4] = {{.piece = 70}, {.piece = 130}, {.piece = 9}, {.piece = 300}};
    worker w[4];
    pthread_t threads[4];
    CHECK(rv_budget_new(&b, 1000, NULL) == RV_OK);
    for (int i = 0; i < 4; i++)
        CHECK(rv_budget_join(&h[i].m, b, "h", i % 2, shrink, &h[i], NULL) == RV_OK);
    for (int i = 0; i < 4; i++) {
        w[i] = (worker){h, b, (uint64_t)i * 77 + 1, 0};
        CHECK(pthread_create(&threads[i], NULL, take_and_give, &w[i]) == 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    rv_budget_stats s;
    rv_budget_get_stats(b, &s);
    uint64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        CHECK(w[i].n_over == 0);
        CHECK(rv_budget_held(h[i].m) == h[i].piece * (uint64_t)atomic_load(&h[i].n));
        sum += rv_budget_held(h[i].m);
    }
    CHECK(s.used == sum && s.peak <= 1000 && s.peak > 900);
    for (int i = 0; i < 4; i++) rv_budget_leave(&h[i].m);
    rv_budget_free(&b);
}

static void budget_without_memory(void) {
    rv_budget *b;
    rv_budget_member *m;
    const size_t live = rv_live_bytes();
    rv_test_fail_alloc_at(0);
    CHECK(rv_budget_new(&b, 1, NULL) == RV_ENOMEM && !b);
    rv_test_fail_alloc_at(-1);
    CHECK(rv_budget_new(&b, 1, NULL) == RV_OK);
    for (long k = 0; k < 2; k++) {
        rv_test_fail_alloc_at(k);
        CHECK(rv_budget_join(&m, b, "x", 0, NULL, NULL, NULL) == RV_ENOMEM && !m);
        rv_test_fail_alloc_at(-1);
    }
    rv_budget_free(&b);
    CHECK(rv_live_bytes() == live);
}

/* RFC 3720 B.4, and the same in any pieces. */
static void crc_is_castagnolis(void) {
    uint8_t b[48], up[32];
    memset(b, 0, 32);
    CHECK(rv_crc32c(0, b, 32) == 0x8a9136aa);
    memset(b, 0xff, 32);
    CHECK(rv_crc32c(0, b, 32) == 0x62a8ab43);
    for (int i = 0; i < 32; i++) up[i] = (uint8_t)i;
    CHECK(rv_crc32c(0, up, 32) == 0x46dd794e);
    CHECK(rv_crc32c(0, "123456789", 9) == 0xe3069283 && rv_crc32c(0, NULL, 0) == 0);
    for (size_t cut = 0; cut <= 32; cut++)
        CHECK(rv_crc32c(rv_crc32c(0, up, cut), up + cut, 32 - cut) == 0x46dd794e);
}

const rv_test tests_budget[] = {
    {"budget_asks_the_lowest_first", budget_asks_the_lowest_first},
    {"budget_is_never_exceeded", budget_is_never_exceeded},
    {"budget_without_memory", budget_without_memory},
    {"crc_is_castagnolis", crc_is_castagnolis},
    {NULL, NULL},
};
