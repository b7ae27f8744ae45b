/* kv/pages: strategies, budgets, failing allocations, and random operations against a model. */
#include "kv_model.h"

static const rv_fit FITS[] = {RV_FIT_FIRST, RV_FIT_BEST, RV_FIT_ROUND_ROBIN};

static rv_pages_stats stats_of(const rv_pages *p) {
    rv_pages_stats s;
    rv_pages_get_stats(p, &s);
    return s;
}

/* Three slabs of eight pages with 2, 5 and 1 free ones: where the next three pages are taken, and
 * whether the second slab goes back when its three first pages are free. */
static void fits_choose_different_slabs(void) {
    static const uint32_t WANT[3][3] = {{1, 1, 2}, {3, 1, 1}, {1, 2, 3}};
    static const bool BACK[3] = {false, true, false};
    const size_t bytes = (size_t)256 << 10;
    for (size_t f = 0; f < 3; f++) {
        rv_pages *p;
        rv_page a[24], b[3];
        rv_km_budget own = rv_km_budget_open((uint64_t)64 << 20);
        CHECK(rv_pages_new(&p, &bytes, 1, own.m, FITS[f], NULL) == RV_OK);
        for (size_t i = 0; i < 24; i++) a[i] = rv_pages_alloc(p, 0);
        CHECK(a[0] >> 6 == 1 && a[8] >> 6 == 2 && a[23] >> 6 == 3);
        CHECK(stats_of(p).held_bytes == 24 * bytes && stats_of(p).n_free[0] == 0);
        for (size_t i = 0; i < 2; i++) CHECK(rv_pages_unref(p, a[i]) == 0);
        for (size_t i = 8; i < 13; i++) CHECK(rv_pages_unref(p, a[i]) == 0);
        CHECK(rv_pages_unref(p, a[16]) == 0);
        for (size_t i = 0; i < 3; i++) {
            b[i] = rv_pages_alloc(p, 0);
            CHECK(b[i] >> 6 == WANT[f][i]);
        }
        for (size_t i = 13; i < 16; i++) rv_pages_unref(p, a[i]);
        CHECK((stats_of(p).held_bytes == 16 * bytes) == BACK[f]);
        CHECK(stats_of(p).peak_bytes == 24 * bytes);
        CHECK(rv_budget_held(own.m) == stats_of(p).held_bytes);
        rv_pages_free(&p);
        rv_km_budget_free(&own);
    }
}

/* Thousands of slabs, so that tables grow and the sets have several levels. */
static void few_free_pages_among_many_are_found(void) {
    enum { N = 64 * 4700 };
    static const uint32_t SLABS[] = {4600, 70, 4200, 1}, WANT[3][4] = {{1, 70, 4200, 4600},
                                                                       {1, 4200, 70, 4600},
                                                                       {1, 70, 4200, 4600}};
    const size_t bytes = 64;
    rv_page *a = rv_malloc(N * sizeof *a);
    for (size_t f = 0; f < 3; f++) {
        rv_pages *p;
        rv_km_budget own = rv_km_budget_open((uint64_t)N * bytes);
        CHECK(rv_pages_new(&p, &bytes, 1, own.m, FITS[f], NULL) == RV_OK);
        for (size_t i = 0; i < N; i++) {
            a[i] = rv_pages_alloc(p, 0);
            CHECK(a[i] == ((i / 64 + 1) << 6 | i % 64));
            memset(rv_pages_at(p, a[i]), (int)(i % 251), bytes);
        }
        CHECK(!rv_pages_alloc(p, 0) && stats_of(p).held_bytes == (uint64_t)N * bytes);
        for (size_t i = 0; i < 4; i++) rv_pages_unref(p, (rv_page)(SLABS[i] << 6 | 9));
        for (size_t i = 0; i < 4; i++) CHECK(rv_pages_alloc(p, 0) == (WANT[f][i] << 6 | 9));
        for (size_t i = 0; i < N; i++) {
            const uint8_t *at = rv_pages_at(p, a[i]);
            CHECK(at[0] == i % 251 && at[bytes - 1] == i % 251);
            CHECK(rv_pages_unref(p, a[i]) == 0);
        }
        CHECK(stats_of(p).held_bytes == 0 && stats_of(p).n_free[0] == 0);
        rv_pages_free(&p);
        rv_km_budget_free(&own);
    }
    rv_free(a);
}

static void small_budgets_hold_what_they_say(void) {
    static const size_t BYTES[] = {1 << 20, 4096, 64};
    rv_pages *p;
    rv_err err = {0};
    const uint64_t one = (1 << 20) + 4096 + 64;
    rv_km_budget own = rv_km_budget_open(one - 1);
    CHECK(rv_pages_new(&p, BYTES, 3, own.m, RV_FIT_FIRST, &err) == RV_EFULL && !p);
    CHECK(strstr(err.msg, "1052735 bytes"));
    CHECK(rv_budget_resize(own.b, one) == 0);
    CHECK(rv_pages_new(&p, BYTES, 5, own.m, RV_FIT_FIRST, NULL) == RV_EARG);
    CHECK(rv_pages_new(&p, (size_t[]){100}, 1, own.m, RV_FIT_FIRST, NULL) == RV_EARG);
    CHECK(rv_pages_new(&p, BYTES, 3, own.m, RV_FIT_FIRST, NULL) == RV_OK);
    size_t need[RV_PAGE_CLASSES] = {1, 1, 1};
    CHECK(rv_pages_fits(p, need) && !rv_pages_fits(p, (size_t[RV_PAGE_CLASSES]){1, 1, 2}));
    CHECK(!rv_pages_fits(p, (size_t[RV_PAGE_CLASSES]){SIZE_MAX, 0, 0}));
    CHECK(rv_pages_lack(p, (size_t[RV_PAGE_CLASSES]){1, 2, 1}) == 4096);
    CHECK(rv_pages_lack(p, (size_t[RV_PAGE_CLASSES]){SIZE_MAX, SIZE_MAX, 0}) == UINT64_MAX);
    const rv_page a = rv_pages_alloc_beside(p, 2, need);
    need[2] = 0; /* is taken */
    const rv_page b = rv_pages_alloc_beside(p, 1, need), c = rv_pages_alloc(p, 0);
    CHECK(a && b && c && stats_of(p).held_bytes == one && stats_of(p).used_bytes == one);
    CHECK(!rv_pages_alloc(p, 2) && !rv_pages_starved(p) && stats_of(p).n_refused == 1);
    CHECK(rv_pages_class(p, b) == 1 && rv_pages_bytes(p, 1) == 4096 && rv_pages_n_refs(p, b) == 1);
    CHECK(rv_budget_resize(own.b, 4096) == one - 4096 && stats_of(p).budget_bytes == 4096);
    rv_pages_unref(p, c);
    CHECK(!rv_pages_alloc(p, 1) && stats_of(p).held_bytes == 4096 + 64);
    CHECK(rv_pages_lack(p, (size_t[RV_PAGE_CLASSES]){0, 1, 0}) == 4096 + 64);
    rv_pages_unref(p, a);
    rv_pages_unref(p, b);
    CHECK(stats_of(p).held_bytes == 0 && rv_pages_alloc(p, 1) && stats_of(p).peak_bytes == one);
    rv_pages_free(&p);
    rv_km_budget_free(&own);
}

/* What another member holds is not there; what is given back is, for both. */
static void pools_share_a_budget(void) {
    enum { KIB = 1024 };
    const size_t bytes = 4 * KIB;
    rv_km_budget own = rv_km_budget_open(64 * KIB);
    rv_budget_member *other;
    rv_pages *p, *q;
    rv_page a[16];
    CHECK(rv_budget_join(&other, own.b, "other", 0, NULL, NULL, NULL) == RV_OK);
    CHECK(rv_pages_new(&p, &bytes, 1, own.m, RV_FIT_FIRST, NULL) == RV_OK);
    CHECK(rv_pages_new(&q, &bytes, 1, other, RV_FIT_FIRST, NULL) == RV_OK);
    for (size_t i = 0; i < 12; i++) CHECK((a[i] = rv_pages_alloc(p, 0)) != 0);
    for (size_t i = 12; i < 16; i++) CHECK((a[i] = rv_pages_alloc(q, 0)) != 0);
    CHECK(!rv_pages_alloc(p, 0) && !rv_pages_alloc(q, 0) && !rv_pages_starved(q));
    size_t need[RV_PAGE_CLASSES] = {4};
    CHECK(rv_pages_lack(p, need) == 16 * KIB);
    rv_pages_set_owner(p, a[0], 7); /* could be given up, and its slab with it */
    CHECK(rv_pages_lack(p, need) == 12 * KIB && rv_pages_lack(q, need) == 16 * KIB);
    CHECK(stats_of(p).clear_bytes == 4 * KIB && stats_of(q).clear_bytes == 0);
    CHECK(rv_pages_unref(q, a[15]) == 0);
    CHECK(rv_pages_lack(p, need) == 8 * KIB && rv_pages_lack(q, need) == 12 * KIB);
    CHECK(rv_pages_alloc(p, 0) && !rv_pages_alloc(q, 0));
    CHECK(rv_budget_held(own.m) == 52 * KIB && rv_budget_held(other) == 12 * KIB);
    rv_pages_free(&p);
    CHECK(rv_budget_held(own.m) == 0 && rv_pages_lack(q, need) == 0 && rv_pages_alloc(q, 0));
    rv_pages_free(&q);
    rv_budget_leave(&other);
    rv_km_budget_free(&own);
}

static void failed_allocations_change_nothing(void) {
    rv_km_budget own = rv_km_budget_open(4096 * 1100);
    const size_t bytes = 4096, live = rv_live_bytes();
    rv_pages *p = NULL;
    rv_test_fail_alloc_at(0);
    CHECK(rv_pages_new(&p, &bytes, 1, own.m, RV_FIT_BEST, NULL) == RV_ENOMEM && !p);
    rv_test_fail_alloc_at(-1);
    CHECK(rv_pages_new(&p, &bytes, 1, own.m, RV_FIT_BEST, NULL) == RV_OK);
    for (size_t i = 0; i < 1000;) { /* grows its tables several times */
        const rv_pages_stats s = stats_of(p);
        long k = 0;
        rv_page page;
        for (;; k++) {
            rv_test_fail_alloc_at(k);
            page = rv_pages_alloc(p, 0);
            rv_test_fail_alloc_at(-1);
            if (page) break;
            CHECK(rv_pages_starved(p) && stats_of(p).n_refused == s.n_refused + (uint64_t)k + 1);
            CHECK(stats_of(p).held_bytes == s.held_bytes && stats_of(p).n_used[0] == s.n_used[0]);
            CHECK(rv_budget_held(own.m) == s.held_bytes);
        }
        CHECK(k == 0 || s.n_free[0] == 0);
        for (i++; i % 31; i++) CHECK(rv_pages_alloc(p, 0));
    }
    rv_pages_free(&p);
    CHECK(rv_live_bytes() == live);
    rv_km_budget_free(&own);
}

/* ---- random operations ---- */

enum { MOST = 3000 };
static const size_t SIZES[RV_PAGE_CLASSES] = {1024, 64, 8192, 192};

typedef struct held {
    rv_page page;
    uint32_t refs;
    int class;
    bool owned;
    uint64_t stamp;
} held;

typedef struct model {
    rv_pages *p;
    uint64_t rand, n_stamp, overhead;
    held h[MOST];
    size_t n;
} model;

static void stamp(const model *m, const held *h, bool set) {
    char *at = rv_pages_at(m->p, h->page);
    uint64_t *ends[] = {(uint64_t *)(void *)at, (uint64_t *)(void *)(at + SIZES[h->class] - 8)};
    CHECK((uintptr_t)at % 64 == 0);
    for (int i = 0; i < 2; i++) {
        if (set) *ends[i] = h->stamp;
        CHECK(*ends[i] == h->stamp);
    }
}

static bool take(model *m, int class, const size_t *need) {
    const rv_page page = rv_pages_alloc_beside(m->p, class, need);
    if (!page) return false;
    CHECK(m->n < MOST);
    for (size_t i = 0; i < m->n; i += 1 + i / 8) CHECK(m->h[i].page != page);
    m->h[m->n] = (held){page, 1, class, false, ++m->n_stamp};
    stamp(m, &m->h[m->n++], true);
    return true;
}

static void drop(model *m, size_t i) {
    held *h = &m->h[i];
    stamp(m, h, false);
    if (h->owned && h->refs == 1) rv_pages_set_owner(m->p, h->page, 0);
    CHECK(rv_pages_unref(m->p, h->page) == --h->refs);
    if (h->refs == 0) *h = m->h[--m->n];
}

static void check(model *m) {
    const rv_pages_stats s = stats_of(m->p);
    uint64_t used[RV_PAGE_CLASSES] = {0}, spare[RV_PAGE_CLASSES] = {0}, bytes = 0, all = 0;
    for (size_t i = 0; i < m->n; i++) {
        const held *h = &m->h[i];
        used[h->class]++;
        spare[h->class] += h->owned && h->refs == 1;
        bytes += SIZES[h->class];
        CHECK(rv_pages_n_refs(m->p, h->page) == h->refs);
        CHECK((rv_pages_owner(m->p, h->page) == 7) == h->owned);
        stamp(m, h, false);
    }
    for (int c = 0; c < RV_PAGE_CLASSES; c++) {
        CHECK(s.n_used[c] == used[c] && s.n_spare[c] == spare[c]);
        all += (s.n_used[c] + s.n_free[c]) * SIZES[c];
    }
    CHECK(s.used_bytes == bytes && s.held_bytes == all && s.held_bytes <= s.peak_bytes);
    const uint64_t over = rv_live_bytes() - s.held_bytes; /* tables: they only grow */
    CHECK(over >= m->overhead);
    m->overhead = over;
}

/* fits says exactly what can be had when spare pages are given up. */
static void check_fits(model *m) {
    size_t need[RV_PAGE_CLASSES];
    const rv_pages_stats s = stats_of(m->p);
    const uint64_t room = s.budget_bytes / (4 + rv_test_rand(&m->rand) % 12);
    for (int c = 0; c < RV_PAGE_CLASSES; c++)
        need[c] = rv_test_rand(&m->rand) % (room / SIZES[c] + 2);
    const bool fits = rv_pages_fits(m->p, need);
    for (size_t i = m->n; i-- > 0;)
        if (m->h[i].owned && m->h[i].refs == 1) drop(m, i);
    bool ok = true;
    for (int c = 0; c < RV_PAGE_CLASSES; c++)
        for (; ok && need[c]; need[c]--) ok = take(m, c, need);
    CHECK(ok == fits);
    while (m->n > MOST / 8) drop(m, rv_test_rand(&m->rand) % m->n);
}

static void step(model *m) {
    const uint64_t r = rv_test_rand(&m->rand);
    const size_t i = m->n ? r / 64 % m->n : 0;
    const int class = (int)(r / 7 % RV_PAGE_CLASSES);
    if (r % 16 < 7 && m->n < MOST - 1) {
        const rv_pages_stats s = stats_of(m->p);
        if (take(m, class, NULL)) return;
        CHECK(s.n_free[class] == 0 && s.held_bytes + SIZES[class] > s.budget_bytes);
    } else if (m->n && r % 16 < 13) {
        drop(m, i);
    } else if (m->n && r % 16 == 13) {
        rv_pages_ref(m->p, m->h[i].page);
        m->h[i].refs++;
    } else if (m->n) {
        m->h[i].owned = !m->h[i].owned;
        rv_pages_set_owner(m->p, m->h[i].page, m->h[i].owned ? 7 : 0);
    }
}

static void random_operations_match_a_model(void) {
    static const uint64_t BUDGETS[] = {9472, 100000, 400000};
    static model m;
    for (uint64_t seed = 1; seed <= 9; seed++) {
        const uint64_t budget = BUDGETS[seed % 3];
        memset(&m, 0, sizeof m);
        m.rand = seed;
        printf("pages: seed %d\n", (int)seed);
        rv_km_budget own = rv_km_budget_open(budget);
        CHECK(rv_pages_new(&m.p, SIZES, RV_PAGE_CLASSES, own.m, FITS[seed / 3 % 3], NULL) == RV_OK);
        for (int i = 0; i < 12000; i++) {
            step(&m);
            if (i % 64 == 0) check(&m);
            if (i % 500 == 499) check_fits(&m);
        }
        CHECK(stats_of(m.p).peak_bytes <= budget);
        while (m.n) drop(&m, m.n - 1);
        check(&m);
        CHECK(stats_of(m.p).held_bytes == 0);
        rv_pages_free(&m.p);
        rv_km_budget_free(&own);
    }
}

const rv_test tests_pages[] = {
    {"fits_choose_different_slabs", fits_choose_different_slabs},
    {"few_free_pages_among_many_are_found", few_free_pages_among_many_are_found},
    {"small_budgets_hold_what_they_say", small_budgets_hold_what_they_say},
    {"pools_share_a_budget", pools_share_a_budget},
    {"failed_page_allocations_change_nothing", failed_allocations_change_nothing},
    {"random_page_operations_match_a_model", random_operations_match_a_model},
    {NULL, NULL},
};
