/* Several caches and others in one budget: who yields to whom, what is never lost, random worlds,
 * threads, and a scheduler beside holders that come and go. */
#include <pthread.h>

#include "base/budget.h"
#include "kv_model.h"
#include "sim.h"

enum { N_CACHES = 2 };

/* Pages of the format of share_open. */
static const size_t PAGE = 3 * RV_PAGE_TOKENS * 32 * 2 * sizeof(float);

static rv_kv_cache_stats stats_of(rv_kv_cache *c) {
    rv_kv_cache_stats s;
    rv_kv_cache_get_stats(c, &s);
    return s;
}

static void share_open(rv_budget **b, rv_kv_cache *c[N_CACHES], size_t pages) {
    static const char *const NAMES[N_CACHES] = {"first", "second"};
    const rv_kv_format f = rv_km_format(RV_KV_F32, RV_KV_AUTO, false, false);
    CHECK(rv_budget_new(b, pages * PAGE, NULL) == RV_OK);
    for (int i = 0; i < N_CACHES; i++) {
        const rv_kv_cache_opts o = {.memory = *b, .name = NAMES[i], .share = true};
        CHECK(rv_kv_cache_new(&c[i], &f, &o, NULL) == RV_OK);
        CHECK(rv_kv_cache_budget(c[i]) == *b && rv_kv_cache_page_bytes(c[i], RV_KEEP_HOT) == PAGE);
    }
}

static void share_close(rv_budget **b, rv_kv_cache *c[N_CACHES]) {
    rv_budget_stats s;
    CHECK(rv_budget_resize(*b, 0) == 0);
    for (int i = 0; i < N_CACHES; i++) {
        CHECK(stats_of(c[i]).n_sequences == 0 && stats_of(c[i]).pages.held_bytes == 0);
        rv_kv_cache_free(&c[i]);
    }
    rv_budget_get_stats(*b, &s);
    CHECK(s.used == 0);
    rv_budget_free(b);
}

static const int32_t *text(uint64_t x, size_t n) {
    static _Thread_local int32_t tok[RV_KM_LEN];
    for (size_t i = 0; i < n; i++) tok[i] = (int32_t)(rv_test_rand(&x) % 1000);
    return tok;
}

static rv_status grow_to(rv_km *s, uint64_t x, size_t n, rv_err *err) {
    return rv_km_grow(s, text(x, n) + s->n, n - s->n, NULL, err);
}

/* One cache's idle pages make room for the other; its sequences do not. */
static void caches_yield_idle_pages(void) {
    rv_budget *b;
    rv_kv_cache *c[N_CACHES];
    static rv_km a, d;
    rv_err err = {0};
    share_open(&b, c, 20);
    const size_t capacity = rv_kv_cache_capacity(c[0], 0);
    CHECK(capacity == 320);
    rv_km_new(&a, c[0], 1), rv_km_new(&d, c[1], 1);
    CHECK(grow_to(&a, 1, 16 * 12, NULL) == RV_OK);
    CHECK(rv_kv_cache_has_room(c[1], 16 * 8) && !rv_kv_cache_has_room(c[1], 16 * 8 + 1));
    CHECK(grow_to(&d, 2, 16 * 9, &err) == RV_EFULL);
    CHECK(strstr(err.msg, "others hold 147456")); /* 12 pages */
    rv_km_free(&a);
    CHECK(stats_of(c[0]).prefix.n_evictable == 12);
    CHECK(rv_kv_cache_capacity(c[1], 0) == capacity); /* whatever others hold */
    CHECK(grow_to(&d, 2, 16 * 9, NULL) == RV_OK);
    CHECK(stats_of(c[0]).prefix.n_evictable == 11); /* one was enough */
    rv_km_check(&d, 1);
    rv_km_new(&a, c[0], 1); /* the end was let go first: the beginning is still there */
    CHECK(rv_km_match(&a, text(1, 192), 192) == 176);
    CHECK(rv_kv_cache_has_room(c[0], 0) && !rv_kv_cache_has_room(c[0], 1));
    rv_km_check(&a, 1);
    rv_km_free(&d);
    CHECK(grow_to(&a, 1, 320, NULL) == RV_OK);
    CHECK(stats_of(c[1]).prefix.n_evictable == 0 && stats_of(c[0]).pages.held_bytes == 20 * PAGE);
    rv_km_check(&a, 1);
    rv_km_free(&a);
    rv_budget_stats s;
    rv_budget_get_stats(b, &s);
    CHECK(s.peak == 20 * PAGE);
    share_close(&b, c);
}

typedef struct other { /* somebody who holds pieces and can give them up unless he is pinned */
    rv_budget_member *m;
    atomic_long n;
    atomic_bool pinned;
} other;

static bool give_up(void *ctx, uint64_t want) {
    other *o = ctx;
    bool any = false;
    for (uint64_t freed = 0; freed < want && !atomic_load(&o->pinned); freed += PAGE) {
        long n = atomic_load(&o->n);
        do {
            if (n == 0) return any;
        } while (!atomic_compare_exchange_weak(&o->n, &n, n - 1));
        rv_budget_give(o->m, PAGE);
        any = true;
    }
    return any;
}

static void more(other *o) {
    if (rv_budget_take(o->m, PAGE, NULL) == RV_OK) atomic_fetch_add(&o->n, 1);
}

static void a_cache_asks_others_when_its_own_are_gone(void) {
    rv_budget *b;
    rv_kv_cache *c[N_CACHES];
    static rv_km a;
    other o = {0};
    share_open(&b, c, 20);
    CHECK(rv_budget_join(&o.m, b, "other", 1, give_up, &o, NULL) == RV_OK);
    for (int i = 0; i < 10; i++) more(&o);
    rv_km_new(&a, c[0], 1);
    CHECK(grow_to(&a, 1, 16 * 10, NULL) == RV_OK);
    rv_km_free(&a);
    CHECK(stats_of(c[0]).prefix.n_evictable == 10 && atomic_load(&o.n) == 10);
    rv_km_new(&a, c[0], 1);
    CHECK(grow_to(&a, 2, 16 * 10, NULL) == RV_OK); /* its own idle pages do */
    CHECK(stats_of(c[0]).prefix.n_evictable == 0 && atomic_load(&o.n) == 10);
    CHECK(rv_kv_cache_has_room(c[0], 16) && atomic_load(&o.n) == 9);
    atomic_store(&o.pinned, true);
    CHECK(!rv_kv_cache_has_room(c[0], 32) && atomic_load(&o.n) == 9);
    CHECK(grow_to(&a, 2, 16 * 12, NULL) == RV_EFULL && rv_kv_len(a.kv) == 160);
    atomic_store(&o.pinned, false);
    CHECK(grow_to(&a, 2, 16 * 12, NULL) == RV_OK && atomic_load(&o.n) == 8);
    CHECK(!rv_kv_cache_has_room(c[0], 16 * 9) && atomic_load(&o.n) == 8); /* in vain */
    rv_km_check(&a, 1);
    rv_km_free(&a);
    more(&o); /* idle pages have the lower priority */
    CHECK(atomic_load(&o.n) == 9 && stats_of(c[0]).prefix.n_evictable == 11);
    rv_budget_leave(&o.m);
    share_close(&b, c);
}

/* ---- random worlds ---- */

enum { N_SEQ = 6 };

typedef struct world {
    rv_budget *b;
    rv_kv_cache *c[N_CACHES];
    rv_km s[N_SEQ];
    other o;
    uint64_t rand;
} world;

static size_t pick(world *w, size_t n) {
    return (size_t)(rv_test_rand(&w->rand) % n);
}

static void random_step(world *w) {
    rv_km *s = &w->s[pick(w, N_SEQ)];
    const size_t r = pick(w, 100);
    const uint64_t x = pick(w, 5);
    if (r < 15) {
        more(&w->o);
    } else if (r < 25) {
        give_up(&w->o, PAGE * pick(w, 4));
    } else if (r < 30) {
        atomic_store(&w->o.pinned, pick(w, 2));
    } else if (!s->kv) {
        rv_km_new(s, w->c[pick(w, N_CACHES)], x);
        rv_km_match(s, text(x, 100), 100);
    } else if (r < 75) {
        const size_t n = 1 + pick(w, 50);
        if (s->n + n < 300) rv_km_grow(s, text(s->id, s->n + n) + s->n, n, NULL, NULL);
    } else if (r < 90) {
        rv_km_free(s);
    } else if (s->n) {
        CHECK(rv_km_truncate(s, pick(w, s->n)) == RV_OK);
    }
    if (s->kv) rv_km_check(s, 3);
    rv_budget_stats t;
    rv_budget_get_stats(w->b, &t);
    uint64_t sum = rv_budget_held(w->o.m);
    for (int i = 0; i < N_CACHES; i++) sum += stats_of(w->c[i]).pages.held_bytes;
    CHECK(t.used == sum && t.used <= t.budget && t.peak <= t.budget);
}

static void random_worlds_stay_within_the_budget(void) {
    for (uint64_t seed = 1; seed <= 8; seed++) {
        static world w;
        memset(&w, 0, sizeof w);
        w.rand = seed;
        printf("shared: seed %d\n", (int)seed);
        share_open(&w.b, w.c, 12 + pick(&w, 60));
        CHECK(rv_budget_join(&w.o.m, w.b, "other", (int)pick(&w, 2), give_up, &w.o, NULL) == RV_OK);
        for (int i = 0; i < 1500; i++) random_step(&w);
        for (int i = 0; i < N_SEQ; i++)
            if (w.s[i].kv) rv_km_free(&w.s[i]);
        rv_budget_leave(&w.o.m);
        share_close(&w.b, w.c);
    }
}

/* ---- threads ---- */

typedef struct worker {
    rv_budget *b;
    rv_kv_cache *c; /* or NULL: it is the other */
    other *o;
    uint64_t rand;
    size_t n_ok, n_over;
} worker;

static void *work(void *arg) {
    worker *w = arg;
    rv_km *s = rv_calloc(1, sizeof *s);
    CHECK(s);
    for (int i = 0; i < 200; i++) {
        const uint64_t r = rv_test_rand(&w->rand), x = r / 8 % 4;
        const size_t n = 20 + r / 64 % 150;
        rv_budget_stats t;
        if (w->c) {
            rv_km_new(s, w->c, x);
            rv_km_match(s, text(x, n), n);
            for (size_t m; s->n < n; w->n_ok++) {
                m = RV_MIN(n - s->n, (size_t)40);
                if (rv_km_grow(s, text(x, n) + s->n, m, NULL, NULL) != RV_OK) break;
            }
            rv_km_check(s, 3);
            if (r % 3 == 0) rv_kv_cache_has_room(w->c, 100);
            rv_km_free(s);
        } else if (r % 3) {
            more(w->o);
        } else {
            give_up(w->o, 5 * PAGE);
        }
        rv_budget_get_stats(w->b, &t);
        w->n_over += t.used > t.budget;
    }
    rv_free(s);
    return NULL;
}

static void threads_share_a_budget(void) {
    enum { N = 5 };
    rv_budget *b;
    rv_kv_cache *c[N_CACHES];
    other o = {0};
    pthread_t threads[N];
    worker w[N];
    size_t n_ok = 0;
    share_open(&b, c, 40);
    CHECK(rv_budget_join(&o.m, b, "other", 1, give_up, &o, NULL) == RV_OK);
    for (size_t t = 0; t < N; t++) {
        w[t] = (worker){b, t < 4 ? c[t % N_CACHES] : NULL, &o, t + 1, 0, 0};
        CHECK(pthread_create(&threads[t], NULL, work, &w[t]) == 0);
    }
    for (size_t t = 0; t < N; t++) {
        pthread_join(threads[t], NULL);
        CHECK(w[t].n_over == 0);
        n_ok += w[t].n_ok;
    }
    CHECK(n_ok > 100);
    rv_budget_leave(&o.m);
    share_close(&b, c);
}

/* ---- a scheduler ---- */

/* Others take what they can and give it back when they please: requests wait and start anew, their
 * tokens (which the world checks) and lengths stay what they are, and all of them end. */
static void a_scheduler_beside_others_changes_nothing(void) {
    for (uint64_t seed = 1; seed <= 6; seed++) {
        sim_opts o = sim_defaults();
        sim s;
        other x = {0};
        o.state = true;
        o.n_pages = 40;
        o.sched.max_preempt = (int)(seed % 3);
        sim_open(&s, &o, seed);
        rv_budget *b = rv_kv_cache_budget(s.cache);
        CHECK(rv_budget_join(&x.m, b, "other", 1, give_up, &x, NULL) == RV_OK);
        uint64_t n_full = 0;
        for (int i = 0; i < 1500; i++) {
            const uint64_t r = sim_below(&s, 100);
            if (r < 10 && s.n_live < 20) sim_submit_random(&s, 1 + sim_below(&s, 200), 30, NULL);
            if (r >= 10 && r < 30) more(&x);
            if (r >= 30 && r < 35) give_up(&x, (uint64_t)-1);
            if (r >= 35 && r < 40) atomic_store(&x.pinned, sim_below(&s, 4));
            const rv_status st = sim_step(&s, 128, NULL);
            CHECK(st == RV_OK || st == RV_EFULL);
            n_full += st == RV_EFULL;
        }
        CHECK(s.n_ended > 20);
        printf("shared: seed %d: %d requests, %d steps without room\n", (int)seed, (int)s.n_ended,
               (int)n_full);
        atomic_store(&x.pinned, false);
        s.calm = true;
        sim_drain(&s); /* what is idle makes room */
        rv_budget_leave(&x.m);
        sim_close(&s);
    }
}

const rv_test tests_shared[] = {
    {"shared_caches_yield_idle_pages", caches_yield_idle_pages},
    {"shared_a_cache_asks_others", a_cache_asks_others_when_its_own_are_gone},
    {"shared_random_worlds_stay_within_the_budget", random_worlds_stay_within_the_budget},
    {"shared_threads", threads_share_a_budget},
    {"shared_a_scheduler_changes_nothing", a_scheduler_beside_others_changes_nothing},
    {NULL, NULL},
};
