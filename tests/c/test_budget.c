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

/* ---- order ---- */

static void budget_asks_the_least_recently_used(void) {
    rv_budget *b;
    holder h[3] = {{.piece = 10}, {.piece = 10}, {.piece = 10}};
    static const char *const NAMES[] = {"zero", "one", "two"};
    rv_budget_holding list[4];
    CHECK(rv_budget_new(&b, 60, NULL) == RV_OK);
    for (int i = 0; i < 3; i++) {
        CHECK(rv_budget_join(&h[i].m, b, NAMES[i], 7, shrink, &h[i], NULL) == RV_OK);
        for (int k = 0; k < 2; k++) CHECK(hold(&h[i], NULL) == RV_OK);
    }
    rv_budget_use(h[0].m);
    CHECK(rv_budget_list(b, list, 4) == 3 && rv_budget_list(b, NULL, 0) == 3);
    CHECK(strcmp(list[0].name, "one") == 0 && strcmp(list[2].name, "zero") == 0);
    CHECK(list[1].bytes == 20 && list[1].priority == 7);
    CHECK(hold(&h[2], NULL) == RV_OK && atomic_load(&h[1].n) == 1);
    rv_budget_use(h[1].m);
    CHECK(hold(&h[1], NULL) == RV_OK && atomic_load(&h[2].n) == 2);
    for (int i = 0; i < 3; i++) rv_budget_leave(&h[i].m);
    CHECK(rv_budget_list(b, list, 4) == 0);
    rv_budget_free(&b);
}

static void budget_asks_nobody_in_vain(void) {
    rv_budget *b;
    rv_err err = {0};
    rv_budget_member *fixed;
    holder h[2] = {{.piece = 10}, {.piece = 1}};
    CHECK(rv_budget_new(&b, 100, NULL) == RV_OK);
    CHECK(rv_budget_join(&fixed, b, "fixed", 0, NULL, NULL, NULL) == RV_OK);
    for (int i = 0; i < 2; i++)
        CHECK(rv_budget_join(&h[i].m, b, i ? "asker" : "idle", 1, shrink, &h[i], NULL) == RV_OK);
    CHECK(rv_budget_take(fixed, 50, NULL) == RV_OK);
    for (int i = 0; i < 4; i++) CHECK(hold(&h[0], NULL) == RV_OK);
    rv_budget_stats s;
    CHECK(rv_budget_take(h[1].m, 51, &err) == RV_EFULL);
    CHECK(strstr(err.msg, "asker wants 51 bytes, 90 of 100 are in use: fixed 50, idle 40"));
    CHECK(!rv_budget_ask(h[1].m, 41) && !rv_budget_ask(h[0].m, 1));
    rv_budget_get_stats(b, &s);
    CHECK(s.n_shrinks == 0 && s.used == 90 && s.n_refused == 1);
    CHECK(rv_budget_left(h[1].m) == 10 && rv_budget_left(h[0].m) == 50);
    CHECK(rv_budget_bytes(fixed) == 100);
    CHECK(rv_budget_ask(h[1].m, 15) && atomic_load(&h[0].n) == 2);
    CHECK(rv_budget_take(h[1].m, 50, NULL) == RV_OK && atomic_load(&h[0].n) == 0);
    for (int i = 0; i < 2; i++) rv_budget_leave(&h[i].m);
    rv_budget_leave(&fixed);
    rv_budget_free(&b);
}

static void budget_names_as_many_as_fit(void) {
    enum { N = 200 };
    rv_budget *b;
    rv_budget_member *m[N];
    rv_budget_holding list[3];
    rv_err err = {0};
    char name[100];
    memset(name, 'x', sizeof name);
    name[99] = 0;
    CHECK(rv_budget_new(&b, N, NULL) == RV_OK);
    for (int i = 0; i < N; i++) {
        CHECK(rv_budget_join(&m[i], b, name, i, NULL, NULL, NULL) == RV_OK);
        CHECK(rv_budget_take(m[i], 1, NULL) == RV_OK);
    }
    CHECK(rv_budget_take(m[0], 1, &err) == RV_EFULL && strlen(err.msg) < sizeof err.msg);
    CHECK(rv_budget_list(b, list, 3) == N && strlen(list[2].name) == 63 && list[2].priority == 2);
    for (int i = 0; i < N; i++) rv_budget_leave(&m[i]);
    rv_budget_free(&b);
}

/* ---- functions that do more than free ---- */

typedef struct guest {
    rv_budget_member *m, *other;
    long n_called;
} guest;

/* Gives all back, takes for another member, and is gone. */
static bool give_take_leave(void *ctx, uint64_t want) {
    guest *g = ctx;
    (void)want;
    g->n_called++;
    rv_budget_use(g->m);
    rv_budget_give(g->m, rv_budget_held(g->m));
    CHECK(rv_budget_take(g->other, 20, NULL) == RV_OK);
    CHECK(rv_budget_take(g->other, 90, NULL) == RV_EFULL); /* the one that could is in here */
    rv_budget_leave(&g->m);
    free(g);
    return true;
}

static void members_leave_from_where_they_are_asked(void) {
    rv_budget *b;
    rv_budget_member *m, *other;
    CHECK(rv_budget_new(&b, 100, NULL) == RV_OK);
    CHECK(rv_budget_join(&m, b, "m", 5, NULL, NULL, NULL) == RV_OK);
    CHECK(rv_budget_join(&other, b, "other", 5, NULL, NULL, NULL) == RV_OK);
    for (int i = 0; i < 3; i++) {
        guest *g = calloc(1, sizeof *g);
        CHECK(g);
        g->other = other;
        CHECK(rv_budget_join(&g->m, b, "guest", i, give_take_leave, g, NULL) == RV_OK);
        CHECK(rv_budget_take(g->m, 90, NULL) == RV_OK);
        CHECK(rv_budget_take(m, 40, NULL) == RV_OK);
        CHECK(rv_budget_held(m) == 40 && rv_budget_held(other) == 20);
        rv_budget_give(other, 20);
        rv_budget_give(m, 40);
    }
    rv_budget_leave(&other);
    rv_budget_leave(&m);
    rv_budget_free(&b);
}

typedef struct slow {
    rv_budget_member *m;
    atomic_bool started, asked;
} slow;

static bool free_slowly(void *ctx, uint64_t want) {
    slow *s = ctx;
    (void)want;
    atomic_store(&s->asked, true);
    while (!atomic_load(&s->started)) {}
    rv_budget_give(s->m, 100);
    return true;
}

typedef struct late {
    slow *s;
    rv_budget_member *m;
    rv_status st;
} late;

static void *take_late(void *arg) {
    late *l = arg;
    while (!atomic_load(&l->s->asked)) {}
    atomic_store(&l->s->started, true);
    l->st = rv_budget_take(l->m, 40, NULL);
    return NULL;
}

/* What another thread is being given is waited for. */
static void two_who_want_memory_get_it_from_one(void) {
    for (int i = 0; i < 50; i++) {
        rv_budget *b;
        rv_budget_member *m;
        slow s = {0};
        late l = {.s = &s};
        pthread_t thread;
        CHECK(rv_budget_new(&b, 100, NULL) == RV_OK);
        CHECK(rv_budget_join(&m, b, "m", 1, NULL, NULL, NULL) == RV_OK);
        CHECK(rv_budget_join(&l.m, b, "late", 1, NULL, NULL, NULL) == RV_OK);
        CHECK(rv_budget_join(&s.m, b, "slow", 1, free_slowly, &s, NULL) == RV_OK);
        CHECK(rv_budget_take(s.m, 100, NULL) == RV_OK);
        CHECK(pthread_create(&thread, NULL, take_late, &l) == 0);
        CHECK(rv_budget_take(m, 60, NULL) == RV_OK);
        pthread_join(thread, NULL);
        CHECK(l.st == RV_OK && rv_budget_held(l.m) == 40);
        rv_budget_leave(&s.m);
        rv_budget_leave(&l.m);
        rv_budget_leave(&m);
        rv_budget_free(&b);
    }
}

/* ---- watches ---- */

typedef struct watcher {
    rv_budget_member *w;
    long n_told;
    bool leaves;
} watcher;

static void told(void *ctx) {
    watcher *w = ctx;
    w->n_told++;
    if (w->leaves) rv_budget_leave(&w->w);
}

static void watches_are_told_once_of_each_rise(void) {
    rv_budget *b;
    rv_budget_member *m;
    rv_err err = {0};
    watcher w[3] = {{.leaves = false}, {.leaves = true}, {.leaves = false}};
    static const double AT[] = {0.5, 0.75, 1.0};
    CHECK(rv_budget_new(&b, 100, NULL) == RV_OK);
    CHECK(rv_budget_join(&m, b, "m", 1, NULL, NULL, NULL) == RV_OK);
    CHECK(rv_budget_watch(&w[0].w, b, 0.0, told, NULL, &err) == RV_EARG && !w[0].w);
    CHECK(strstr(err.msg, "is 0, want more than 0 and at most 1"));
    CHECK(rv_budget_watch(&w[0].w, b, 1.01, told, NULL, NULL) == RV_EARG);
    for (int i = 0; i < 3; i++)
        CHECK(rv_budget_watch(&w[i].w, b, AT[i], told, &w[i], NULL) == RV_OK);
    CHECK(rv_budget_take(m, 49, NULL) == RV_OK && w[0].n_told == 0);
    CHECK(rv_budget_take(m, 1, NULL) == RV_OK && w[0].n_told == 1);
    CHECK(rv_budget_take(m, 1, NULL) == RV_OK && w[0].n_told == 1 && w[1].n_told == 0);
    CHECK(rv_budget_take(m, 40, NULL) == RV_OK && w[1].n_told == 1 && !w[1].w);
    rv_budget_give(m, 42);
    CHECK(rv_budget_try(m, 20) && w[0].n_told == 1);
    rv_budget_tell(m);
    CHECK(w[0].n_told == 2 && w[1].n_told == 1 && w[2].n_told == 0);
    CHECK(rv_budget_resize(b, 60) == 9 && w[2].n_told == 1);
    CHECK(rv_budget_resize(b, 500) == 0 && rv_budget_resize(b, 100) == 0);
    CHECK(w[0].n_told == 3 && w[2].n_told == 1);
    rv_budget_leave(&w[2].w);
    rv_budget_leave(&w[0].w);
    rv_budget_leave(&m);
    rv_budget_free(&b);
}

/* ---- members that come and go ---- */

typedef struct passer {
    rv_budget *b;
    uint64_t random;
    long n_over, n_told;
} passer;

static void count_told(void *ctx) {
    ((passer *)ctx)->n_told++;
}

static void *come_and_go(void *arg) {
    passer *p = arg;
    rv_budget_member *watch;
    CHECK(rv_budget_watch(&watch, p->b, 0.9, count_told, p, NULL) == RV_OK);
    for (int i = 0; i < 2000; i++) {
        const uint64_t r = rv_test_rand(&p->random);
        holder h = {.piece = 1 + r % 200};
        CHECK(rv_budget_join(&h.m, p->b, "passer", (int)(r >> 60), shrink, &h, NULL) == RV_OK);
        for (uint64_t k = 0; k < r % 8; k++) hold(&h, NULL);
        rv_budget_use(h.m);
        rv_budget_stats s;
        rv_budget_get_stats(p->b, &s);
        p->n_over += s.used > 1000;
        rv_budget_leave(&h.m);
    }
    rv_budget_leave(&watch);
    return NULL;
}

static void members_come_and_go(void) {
    rv_budget *b;
    passer p[4];
    pthread_t threads[4];
    CHECK(rv_budget_new(&b, 1000, NULL) == RV_OK);
    for (int i = 0; i < 4; i++) {
        p[i] = (passer){b, (uint64_t)i + 5, 0, 0};
        CHECK(pthread_create(&threads[i], NULL, come_and_go, &p[i]) == 0);
    }
    long n_told = 0;
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        CHECK(p[i].n_over == 0);
        n_told += p[i].n_told;
    }
    rv_budget_stats s;
    rv_budget_get_stats(b, &s);
    CHECK(s.used == 0 && s.peak <= 1000 && s.peak > 900 && n_told > 0);
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
        rv_test_fail_alloc_at(k);
        CHECK(rv_budget_watch(&m, b, 0.5, told, NULL, NULL) == RV_ENOMEM && !m);
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
    {"budget_asks_the_least_recently_used", budget_asks_the_least_recently_used},
    {"budget_asks_nobody_in_vain", budget_asks_nobody_in_vain},
    {"budget_names_as_many_as_fit", budget_names_as_many_as_fit},
    {"budget_members_leave_from_where_they_are_asked", members_leave_from_where_they_are_asked},
    {"budget_two_who_want_memory_get_it_from_one", two_who_want_memory_get_it_from_one},
    {"budget_watches_are_told_once_of_each_rise", watches_are_told_once_of_each_rise},
    {"budget_members_come_and_go", members_come_and_go},
    {"budget_without_memory", budget_without_memory},
    {"crc_is_castagnolis", crc_is_castagnolis},
    {NULL, NULL},
};
