/* kv: sequences, sharing, the store, recurrent state, lack of room, failures, threads; what is read
 * back is always what was written for those tokens. */
#include <pthread.h>

#include "kv/impl.h"
#include "kv_model.h"

static rv_kv_cache_stats stats_of(rv_kv_cache *c) {
    rv_kv_cache_stats s;
    rv_kv_cache_get_stats(c, &s);
    return s;
}

/* Nothing is held when nobody wants it. */
static void close_cache(rv_kv_cache **c) {
    const rv_kv_cache_stats s = stats_of(*c);
    CHECK(s.n_sequences == 0);
    for (int k = 0; k < RV_PAGE_CLASSES; k++) CHECK(s.pages.n_used[k] == s.pages.n_spare[k]);
    CHECK(rv_budget_resize(rv_kv_cache_budget(*c), 0) == 0);
    CHECK(stats_of(*c).pages.held_bytes == 0 && stats_of(*c).prefix.n_nodes == 0);
    rv_kv_cache_free(c);
}

/* n tokens of text number x; texts x and y are equal in their first 50 when x % 10 == y % 10. */
static const int32_t *text(uint64_t x, size_t n) {
    static _Thread_local int32_t tok[RV_KM_LEN];
    uint64_t a = x % 10, b = x;
    for (size_t i = 0; i < n; i++) tok[i] = (int32_t)(rv_test_rand(i < 50 ? &a : &b) % 1000);
    return tok;
}

static void grow_to(rv_km *s, uint64_t x, size_t n, size_t step) {
    while (s->n < n) {
        const size_t m = RV_MIN(step, n - s->n);
        CHECK(rv_km_grow(s, text(x, n) + s->n, m, NULL, NULL) == RV_OK);
    }
}

static void formats_are_checked(void) {
    const rv_kv_cache_opts o = {.budget = 1 << 20};
    rv_kv_format f = rv_km_format(RV_KV_F16, RV_KV_Q8_0, true, false);
    rv_kv_cache *c;
    rv_err err = {0};
    const rv_kv_format good = f;
    f.type = RV_KV_AUTO;
    CHECK(rv_kv_cache_new(&c, &f, &o, NULL) == RV_EARG && !c);
    f = good, f.store = RV_KV_F16;
    CHECK(rv_kv_cache_new(&c, &f, &o, NULL) == RV_EARG);
    f = good, f.type = RV_KV_Q8_0;
    CHECK(rv_kv_cache_new(&c, &f, &o, NULL) == RV_EARG);
    f = good, f.tail = 100;
    CHECK(rv_kv_cache_new(&c, &f, &o, NULL) == RV_EARG);
    f = good, f.batch = 0;
    CHECK(rv_kv_cache_new(&c, &f, &o, NULL) == RV_EARG);
    f = good, f.head_dim = 0;
    CHECK(rv_kv_cache_new(&c, &f, &o, NULL) == RV_EARG);
    f = good, f.head_dim = 2048;
    CHECK(rv_kv_cache_new(&c, &f, &o, NULL) == RV_EUNSUPPORTED);
    f = good, f.heads = (const int32_t[]){1, 0};
    CHECK(rv_kv_cache_new(&c, &f, &o, NULL) == RV_EARG);
    f = good;
    const rv_kv_cache_opts small = {.budget = 1000};
    CHECK(rv_kv_cache_new(&c, &f, &small, &err) == RV_EFULL && strstr(err.msg, "1000 bytes"));
    for (long k = 0;; k++) {
        const size_t live = rv_live_bytes();
        rv_test_fail_alloc_at(k);
        const rv_status st = rv_kv_cache_new(&c, &f, &o, NULL);
        rv_test_fail_alloc_at(-1);
        if (st == RV_OK) break;
        CHECK(st == RV_ENOMEM && !c && rv_live_bytes() == live);
    }
    CHECK(rv_kv_cache_page_bytes(c, RV_KEEP_HOT) == 3 * 16 * 32 * 2 * 2);
    CHECK(rv_kv_cache_page_bytes(c, RV_KEEP_COLD) == 3 * 16 * 34 * 2);
    CHECK(rv_kv_page_offset(c, true, 1, 0) == 2 * rv_kv_run_bytes(c, true));
    CHECK(rv_kv_bytes_per_token(c, false) == 3 * 32 * 2 * 2);
    CHECK(rv_kv_cache_format(c)->heads != f.heads && rv_kv_cache_format(c)->heads[1] == 1);
    close_cache(&c);
}

static void contents_survive_chunks_forks_and_truncations(void) {
    static const rv_kv_type TYPES[] = {RV_KV_F32, RV_KV_F16, RV_KV_Q8_0, RV_KV_Q4_0};
    for (size_t t = 0; t < 8; t++) {
        const rv_kv_format f = rv_km_format(TYPES[t / 2], RV_KV_AUTO, false, false);
        rv_kv_cache *c = rv_km_open(&f, 100, t % 2, RV_FIT_FIRST);
        static rv_km a, b;
        rv_km_new(&a, c, 1);
        for (size_t step = 1; step < 40; step += 3) grow_to(&a, 5, a.n + 2 * step, step);
        rv_km_check(&a, 1);
        rv_km_fork(&b, &a);
        const uint64_t copied = stats_of(c).n_copied;
        grow_to(&a, 5, a.n + 1, 1);
        CHECK(stats_of(c).n_copied == copied + 1); /* the last page was shared */
        grow_to(&b, 15, b.n + 9, 4);
        CHECK(stats_of(c).n_copied == copied + 1); /* and is not any more */
        rv_km_check(&a, 1), rv_km_check(&b, 1);
        CHECK(rv_km_truncate(&b, b.n + 1) == RV_EARG);
        CHECK(rv_km_truncate(&b, 37) == RV_OK && rv_km_truncate(&a, a.n) == RV_OK);
        grow_to(&b, 25, 111, 50);
        rv_km_check(&a, 1), rv_km_check(&b, 1);
        CHECK(rv_km_truncate(&a, 0) == RV_OK && rv_kv_page(a.kv, false, 0) == 0);
        rv_km_check(&a, 1), rv_km_check(&b, 1);
        rv_km_free(&a);
        rv_km_check(&b, 1);
        rv_km_free(&b);
        close_cache(&c);
    }
}

static void beginnings_are_shared(void) {
    const rv_kv_format f = rv_km_format(RV_KV_F32, RV_KV_AUTO, false, false);
    rv_kv_cache *c = rv_km_open(&f, 100, true, RV_FIT_FIRST);
    static rv_km a, b, d;
    uint64_t id = 1;
    rv_km_new(&a, c, id);
    rv_km_new(&b, c, id);
    CHECK(rv_km_match(&a, text(3, 112), 112) == 0);
    grow_to(&a, 3, 112, 60);
    CHECK(rv_kv_match(a.kv, text(3, 112), 112) == 0); /* it is not empty */
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, sizeof id, 0}, text(3, 200), 200) == 112);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, sizeof id, 0}, text(3, 200), 113) == 112);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, sizeof id - 1, 0}, text(3, 200), 113) == 0);
    CHECK(rv_km_match(&b, text(3, 112), 112) == 111); /* the last page in part */
    const uint64_t used = stats_of(c).pages.n_used[0];
    CHECK(used == 7 && rv_kv_page(a.kv, false, 6) == rv_kv_page(b.kv, false, 6));
    grow_to(&b, 3, 112, 1);
    /* It was copied, and is the same again now that it is full. */
    CHECK(stats_of(c).n_copied == 1 && stats_of(c).pages.n_used[0] == used);
    CHECK(rv_kv_page(a.kv, false, 6) == rv_kv_page(b.kv, false, 6));
    rv_km_new(&d, c, id);
    CHECK(rv_km_match(&d, text(13, 100), 100) == 50); /* it differs from there on */
    grow_to(&d, 13, 100, 7);
    rv_km_check(&a, 1), rv_km_check(&b, 1), rv_km_check(&d, 1);
    CHECK(rv_kv_own_bytes(d.kv) + 3 * rv_kv_cache_page_bytes(c, 0) == rv_kv_bytes(d.kv));
    CHECK(stats_of(c).n_looked_up == 112 + 112 + 100 && stats_of(c).n_hit == 111 + 50);
    rv_km_free(&a), rv_km_free(&b), rv_km_free(&d);
    CHECK(stats_of(c).prefix.n_evictable == 10);
    rv_km_new(&b, c, id); /* what is written after going back is published too */
    CHECK(rv_km_match(&b, text(3, 112), 112) == 111 && rv_km_truncate(&b, 20) == RV_OK);
    grow_to(&b, 4, 80, 80);
    memcpy(a.tok, b.tok, sizeof b.tok);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, sizeof id, 0}, a.tok, 81) == 80);
    rv_km_free(&b);
    rv_km_new(&a, c, 2); /* another identity */
    CHECK(rv_km_match(&a, text(3, 112), 112) == 0);
    rv_km_free(&a);
    rv_km_new(&a, c, id);
    CHECK(rv_km_match(&a, text(3, 112), 10) == 9 && rv_km_truncate(&a, 0) == RV_OK);
    CHECK(rv_km_match(&a, text(3, 112), 1) == 0 && rv_km_match(&a, text(3, 112), 0) == 0);
    rv_km_free(&a);
    close_cache(&c);
    c = rv_km_open(&f, 100, false, RV_FIT_FIRST);
    rv_km_new(&a, c, id), rv_km_new(&b, c, id);
    grow_to(&a, 3, 112, 112);
    CHECK(rv_km_match(&b, text(3, 112), 112) == 0);
    rv_km_free(&a), rv_km_free(&b);
    CHECK(stats_of(c).pages.held_bytes == 0);
    close_cache(&c);
}

/* The tail is as it was, the rest is what moving it makes of it, in any chunks and on any thread.
 */
static void old_blocks_move_to_the_store(void) {
    rv_pool *pool;
    CHECK(rv_pool_new(&pool, 3, NULL) == RV_OK);
    for (int i = 0; i < 8; i++) {
        rv_kv_format f = rv_km_format(i & 1 ? RV_KV_F32 : RV_KV_F16,
                                      i & 2 ? RV_KV_Q4_0 : RV_KV_Q8_0, i & 4, false);
        if (i & 1) f.batch = 192;
        rv_kv_cache *c = rv_km_open(&f, 200, i & 1, RV_FIT_BEST);
        static rv_km a, b;
        rv_km_new(&a, c, 1);
        CHECK(rv_km_grow(&a, text(1, 65), 65, NULL, NULL) == RV_EARG); /* more than the tail */
        for (size_t n; a.n < 400;) {
            n = RV_MIN(1 + a.n * 7 % 64, 400 - a.n);
            CHECK(rv_km_grow(&a, text(4, 400) + a.n, n, i & 2 ? pool : NULL, NULL) == RV_OK);
            CHECK(rv_kv_boundary(a.kv, a.n) == (a.n > 64 ? (a.n - 64) / f.batch * f.batch : 0));
            rv_km_check(&a, 1);
            rv_km_fork(&b, &a); /* K4 */
            CHECK(rv_km_truncate(&b, a.n - RV_MIN(a.n, (size_t)RV_KV_BLOCK)) == RV_OK);
            rv_km_check(&b, 1);
            rv_km_free(&b);
        }
        if (i & 1) {
            CHECK(stats_of(c).n_migrated == 3 && rv_kv_boundary(a.kv, 400) == 192);
            rv_km_free(&a);
            close_cache(&c);
            continue;
        }
        CHECK(stats_of(c).n_migrated == 5 && rv_kv_boundary(a.kv, 400) == 320);
        CHECK(rv_kv_page(a.kv, true, 19) && !rv_kv_page(a.kv, true, 20));
        CHECK(!rv_kv_page(a.kv, false, 15) && rv_kv_page(a.kv, false, 16)); /* K4 */
        rv_km_fork(&b, &a);
        CHECK(rv_km_truncate(&b, 318) == RV_EUNSUPPORTED && rv_km_truncate(&b, 319) == RV_OK);
        rv_km_check(&b, 1);
        CHECK(rv_km_truncate(&b, 0) == RV_OK);
        grow_to(&b, 34, 300, 40);
        CHECK(!rv_kv_page(b.kv, false, 7) && rv_kv_page(b.kv, false, 8));
        rv_km_free(&b);
        CHECK(rv_km_truncate(&a, 340) == RV_OK);
        rv_km_check(&a, 1);
        grow_to(&a, 14, 390, 64);
        rv_km_check(&a, 1);
        CHECK(rv_km_truncate(&a, 300) == RV_EUNSUPPORTED);
        rv_km_fork(&b, &a);
        grow_to(&b, 24, 500, 33);
        rv_km_free(&a);
        rv_km_check(&b, 1);
        rv_km_free(&b);
        close_cache(&c);
    }
    rv_pool_free(&pool);
}

/* Where the store ends depends on a sequence's own tail, and nothing is shared with other tails. */
static void sequences_have_tails_of_their_own(void) {
    rv_kv_format f = rv_km_format(RV_KV_F16, RV_KV_Q8_0, true, false);
    rv_kv_cache *c = rv_km_open(&f, 300, true, RV_FIT_FIRST);
    const size_t tails[] = {0, 64, 128, 256, 1 << 20}, begins[] = {320, 320, 256, 128, 0};
    const size_t known[] = {0, 399, 0, 0, 0}; /* 64 is the format's */
    static rv_km s[5], t;
    for (size_t i = 0; i < RV_COUNT(tails); i++) {
        rv_km_new_tail(&s[i], c, 1, tails[i]);
        CHECK(rv_kv_most(s[i].kv) == (tails[i] ? tails[i] : 64));
        CHECK(rv_km_match(&s[i], text(4, 400), 400) == known[i]);
        grow_to(&s[i], 4, 400, 50);
        CHECK(rv_kv_boundary(s[i].kv, 400) == begins[i]);
        rv_km_check(&s[i], 1);
        rv_km_fork(&t, &s[i]);
        CHECK(rv_kv_boundary(t.kv, 400) == begins[i]);
        CHECK(rv_km_truncate(&t, 400 - RV_KV_BLOCK) == RV_OK); /* K4 */
        rv_km_check(&t, 1);
        rv_km_free(&t);
    }
    for (size_t i = 0; i < RV_COUNT(tails); i++) {
        const rv_kv_scope scope = rv_km_scope(&s[i]);
        CHECK(rv_kv_peek(c, &scope, text(4, 400), 400) == 399);
        rv_km_free(&s[i]);
        rv_km_new_tail(&s[i], c, 1, tails[i]);
        CHECK(rv_km_match(&s[i], text(4, 400), 400) == 399);
        rv_km_check(&s[i], 1);
        rv_km_free(&s[i]);
    }
    const rv_kv_scope odd = {NULL, 0, 65};
    CHECK(rv_kv_new(&t.kv, c, &odd, NULL) == RV_EARG && !t.kv);
    CHECK(rv_kv_cache_capacity(c, 128) <= rv_kv_cache_capacity(c, 64));
    CHECK(rv_kv_cache_capacity(c, 1 << 20) < rv_kv_cache_capacity(c, 128));
    close_cache(&c);
    f = rv_km_format(RV_KV_F16, RV_KV_AUTO, false, false);
    c = rv_km_open(&f, 300, true, RV_FIT_FIRST);
    rv_km_new(&s[0], c, 1);
    grow_to(&s[0], 4, 100, 100);
    rv_km_new_tail(&s[1], c, 1, 128); /* without a store it means nothing */
    CHECK(rv_km_match(&s[1], text(4, 100), 100) == 96 && rv_kv_most(s[1].kv) > 1000);
    rv_km_free(&s[0]), rv_km_free(&s[1]);
    close_cache(&c);
}

/* With a store a sequence can start where the pages of both tiers are kept. */
static void both_tiers_are_shared(void) {
    const rv_kv_format f = rv_km_format(RV_KV_F16, RV_KV_Q8_0, true, false);
    rv_kv_cache *c = rv_km_open(&f, 200, true, RV_FIT_FIRST);
    static rv_km a, b;
    rv_km_new(&a, c, 1), rv_km_new(&b, c, 1);
    grow_to(&a, 6, 300, 64);
    const uint64_t moved = stats_of(c).n_migrated;
    CHECK(rv_km_match(&b, text(6, 301), 301) == 288);
    rv_km_check(&b, 1);
    grow_to(&b, 6, 300, 12);
    CHECK(stats_of(c).n_migrated == moved); /* the tree had those blocks */
    CHECK(rv_kv_page(a.kv, true, 11) == rv_kv_page(b.kv, true, 11));
    CHECK(rv_km_truncate(&b, 300 - RV_KV_BLOCK) == RV_OK); /* it took what was there for that */
    rv_km_check(&b, 1);
    rv_km_free(&a), rv_km_free(&b);
    /* HOT pages that were let go first are evicted first: shorter beginnings cannot be resumed,
     * the whole still can. */
    rv_km_new(&a, c, 1);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&a.id, sizeof a.id, 0}, text(6, 301), 301) == 288);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&a.id, sizeof a.id, 0}, text(6, 301), 101) == 100);
    const rv_kv_cache_stats s = stats_of(c);
    const uint64_t budget = s.pages.budget_bytes;
    CHECK(rv_budget_resize(rv_kv_cache_budget(c), s.pages.held_bytes - 1) == 0);
    CHECK(rv_budget_resize(rv_kv_cache_budget(c), budget) == 0);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&a.id, sizeof a.id, 0}, text(6, 301), 101) == 0);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&a.id, sizeof a.id, 0}, text(6, 301), 301) == 288);
    CHECK(rv_km_match(&a, text(6, 301), 301) == 288);
    grow_to(&a, 6, 300, 12);
    rv_km_fork(&b, &a);
    grow_to(&b, 6, 400, 50);
    CHECK(stats_of(c).n_migrated == moved + 2);
    grow_to(&a, 6, 400, 50); /* the tree has those blocks now */
    CHECK(stats_of(c).n_migrated == moved + 2);
    CHECK(rv_kv_page(a.kv, true, 18) == rv_kv_page(b.kv, true, 18));
    rv_km_check(&a, 1), rv_km_check(&b, 1);
    rv_km_free(&a), rv_km_free(&b);
    close_cache(&c);
}

/* Of some positions only some pages are left in the tree: what can be resumed then. */
static void nothing_is_resumed_without_all_its_pages(void) {
    static const struct {
        size_t n, hot, cold, left; /* pages that stay: HOT from hot on, COLD from cold on */
    } CASES[] = {{300, 12, 0, 288}, {300, 13, 0, 0},   {300, 12, 1, 0},
                 {300, 12, 99, 0},  {400, 16, 0, 399}, {400, 16, 1, 0},
                 {128, 0, 0, 127},  {128, 0, 3, 112},  {128, 0, 99, 112}};
    const rv_kv_format f = rv_km_format(RV_KV_F16, RV_KV_Q8_0, true, false);
    for (size_t i = 0; i < RV_COUNT(CASES); i++) {
        rv_kv_cache *c = rv_km_open(&f, 200, true, RV_FIT_FIRST);
        static rv_km a;
        rv_page pins[64];
        size_t n_pins = 0;
        rv_km_new(&a, c, 1);
        grow_to(&a, 6, CASES[i].n, 64);
        for (size_t k = 0; k < 32; k++) {
            if (k >= CASES[i].hot) pins[n_pins++] = rv_kv_page(a.kv, false, k);
            if (n_pins && !pins[n_pins - 1]) n_pins--;
            if (k >= CASES[i].cold) pins[n_pins++] = rv_kv_page(a.kv, true, k);
            if (n_pins && !pins[n_pins - 1]) n_pins--;
        }
        for (size_t k = 0; k < n_pins; k++) rv_kv_page_pin(c, pins[k]);
        rv_km_free(&a);
        const uint64_t budget = stats_of(c).pages.budget_bytes;
        CHECK(rv_budget_resize(rv_kv_cache_budget(c), 0) > 0 && stats_of(c).pages.clear_bytes == 0);
        CHECK(rv_budget_resize(rv_kv_cache_budget(c), budget) == 0);
        while (rv_prefix_evict(c->tree) >= 0) {} /* from slabs that stay, too */
        rv_km_new(&a, c, 1);
        CHECK(rv_km_match(&a, text(6, CASES[i].n), CASES[i].n) == CASES[i].left);
        grow_to(&a, 6, CASES[i].n + 10, 30);
        rv_km_check(&a, 1);
        for (size_t k = 0; k < n_pins; k++) rv_kv_page_unpin(c, pins[k]);
        rv_km_free(&a);
        close_cache(&c);
    }
}

/* A state is kept where a text that others began with ends, and where a sequence ended. */
static void states_are_kept_where_they_are_wanted(void) {
    for (int i = 0; i < 4; i++) {
        rv_kv_format f = rv_km_format(RV_KV_F32, i & 1 ? RV_KV_Q8_0 : RV_KV_AUTO, true, true);
        if (i & 2) f.n_layers = 0;
        rv_kv_cache *c = rv_km_open(&f, i & 2 ? 1000 : 200, true, RV_FIT_FIRST);
        static rv_km a, b, d, e;
        rv_km_new(&a, c, 1), rv_km_new(&b, c, 1), rv_km_new(&d, c, 1), rv_km_new(&e, c, 1);
        CHECK(rv_km_match(&a, text(2, 200), 200) == 0);
        grow_to(&a, 2, 200, 64);
        rv_km_check(&a, 1);
        CHECK(rv_km_truncate(&a, 199) == RV_EUNSUPPORTED);
        CHECK(rv_km_truncate(&a, 192) == RV_OK); /* the last page boundary it passed */
        rv_km_check(&a, 1);
        grow_to(&a, 2, 200, 64);
        CHECK(rv_km_match(&b, text(12, 150), 150) == 0); /* 48 tokens are known, no state there */
        grow_to(&b, 12, 150, 64);
        CHECK(rv_km_match(&d, text(22, 150), 150) == 48); /* now there is one */
        rv_km_check(&d, 1);
        grow_to(&d, 22, 150, 20);
        CHECK(rv_km_truncate(&d, 48) == RV_OK); /* where it began */
        rv_km_check(&d, 1);
        rv_km_free(&b);
        rv_km_free(&a);
        CHECK(rv_km_match(&e, text(2, 300), 300) == 192); /* a goes on where it was */
        grow_to(&e, 2, 300, 64);
        rv_km_fork(&a, &e);
        CHECK(rv_km_truncate(&a, 288) == RV_OK);
        grow_to(&a, 2, 330, 10);
        rv_km_check(&e, 1), rv_km_check(&a, 1);
        CHECK(rv_km_truncate(&a, 288) == RV_EUNSUPPORTED && rv_km_truncate(&a, 320) == RV_OK);
        CHECK(rv_km_truncate(&a, 0) == RV_OK);
        rv_km_check(&a, 1);
        rv_km_free(&a), rv_km_free(&d), rv_km_free(&e);
        close_cache(&c);
    }
}

static void lack_of_room_changes_nothing(void) {
    const rv_kv_format f = rv_km_format(RV_KV_F32, RV_KV_AUTO, false, false);
    rv_kv_cache *c = rv_km_open(&f, 10, true, RV_FIT_FIRST);
    static rv_km a, b;
    rv_err err = {0};
    rv_km_new(&a, c, 1), rv_km_new(&b, c, 2);
    CHECK(rv_kv_cache_has_room(c, 160) && !rv_kv_cache_has_room(c, 161));
    CHECK(rv_kv_cache_has_room(c, 0) && !rv_kv_cache_has_room(c, SIZE_MAX));
    grow_to(&b, 1, 64, 64);
    rv_km_free(&b);
    grow_to(&a, 1, 100, 32); /* a page of b has gone */
    CHECK(stats_of(c).prefix.n_evictable == 3 && rv_kv_cache_has_room(c, 48));
    CHECK(rv_km_grow(&a, text(1, 200) + 100, 61, NULL, &err) == RV_EFULL);
    CHECK(strstr(err.msg, "122880") && strstr(err.msg, "49152") && strstr(err.msg, "61 positions"));
    CHECK(stats_of(c).prefix.n_evictable == 3 && stats_of(c).pages.n_used[0] == 10);
    CHECK(rv_kv_reserve(a.kv, SIZE_MAX, NULL, NULL) == RV_EFULL);
    CHECK(rv_kv_reserve(a.kv, SIZE_MAX / 8, NULL, NULL) == RV_EFULL);
    rv_km_check(&a, 1);
    grow_to(&a, 1, 160, 60);
    CHECK(stats_of(c).prefix.n_evictable == 0 && !rv_kv_cache_has_room(c, 1));
    CHECK(rv_km_grow(&a, text(1, 200), 1, NULL, NULL) == RV_EFULL);
    CHECK(rv_budget_resize(rv_kv_cache_budget(c), 0) ==
          10 * rv_kv_cache_page_bytes(c, RV_KEEP_HOT));
    rv_km_check(&a, 1);
    CHECK(stats_of(c).pages.peak_bytes <= 10 * rv_kv_cache_page_bytes(c, RV_KEEP_HOT));
    rv_km_free(&a);
    close_cache(&c);
}

/* No positions are refused for a snapshot, which one can do without. */
static void snapshots_take_no_room(void) {
    const rv_kv_format f = rv_km_format(RV_KV_F32, RV_KV_AUTO, false, true);
    rv_kv_cache *c = rv_km_open(&f, 10, true, RV_FIT_FIRST);
    static rv_km a;
    rv_km_new(&a, c, 1);
    CHECK(rv_km_grow(&a, text(1, 160), 160, NULL, NULL) == RV_OK);
    rv_km_check(&a, 1);
    CHECK(stats_of(c).pages.n_used[RV_KEEP_STATE] == 0);
    CHECK(rv_km_truncate(&a, 32) == RV_EUNSUPPORTED && rv_km_truncate(&a, 0) == RV_OK);
    grow_to(&a, 1, 40, 20);
    CHECK(stats_of(c).pages.n_used[RV_KEEP_STATE] == 1 && rv_km_truncate(&a, 32) == RV_OK);
    rv_km_check(&a, 1);
    rv_km_free(&a);
    close_cache(&c);
}

/* 128 pages in slabs of four, twelve of them spare.  A page more and a batch of the store fit only
 * when the page does not lie where the others could make room. */
static void pages_that_are_spread_are_put_together(void) {
    rv_kv_format f = rv_km_format(RV_KV_F32, RV_KV_Q8_0, true, false);
    f.batch = 512;
    for (int fit = RV_FIT_FIRST; fit <= RV_FIT_ROUND_ROBIN; fit++) {
        static const size_t N[] = {575, 575, 575, 128, 192};
        static rv_km s[5];
        rv_kv_cache *c = rv_km_open(&f, 128, true, (rv_fit)fit);
        for (size_t i = 0; i < 5; i++) {
            rv_km_new(&s[i], c, 1);
            grow_to(&s[i], i, N[i], 64);
        }
        rv_km_free(&s[4]);
        const rv_pages_stats p = stats_of(c).pages;
        CHECK(p.held_bytes == p.budget_bytes && p.n_used[0] == 128 && p.n_spare[0] == 12);
        CHECK(rv_km_grow(&s[0], text(0, 577) + 575, 2, NULL, NULL) == RV_OK);
        CHECK(stats_of(c).pages.n_used[1] == 32);
        for (size_t i = 0; i < 4; i++) {
            rv_km_check(&s[i], 1);
            rv_km_free(&s[i]);
        }
        close_cache(&c);
    }
}

/* A pinned page stays as it is, whatever becomes of the sequence; then it can be evicted again. */
static void pinned_pages_stay(void) {
    const rv_kv_format f = rv_km_format(RV_KV_F32, RV_KV_AUTO, false, false);
    rv_kv_cache *c = rv_km_open(&f, 4, true, RV_FIT_FIRST);
    const size_t bytes = rv_kv_cache_page_bytes(c, RV_KEEP_HOT);
    static rv_km a;
    rv_km_new(&a, c, 1);
    grow_to(&a, 1, 40, 8);
    const rv_page page[] = {rv_kv_page(a.kv, false, 1), rv_kv_page(a.kv, false, 2)};
    const void *at[] = {rv_kv_page_pin(c, page[0]), rv_kv_page_pin(c, page[1])};
    char *copy = rv_malloc(2 * bytes);
    for (size_t i = 0; i < 2; i++) memcpy(copy + i * bytes, at[i], bytes);
    grow_to(&a, 1, 41, 1);
    CHECK(rv_kv_page(a.kv, false, 2) != page[1]); /* one that is written is copied */
    rv_km_free(&a);
    rv_km_new(&a, c, 2);
    CHECK(rv_kv_cache_has_room(c, 32) && !rv_kv_cache_has_room(c, 33));
    grow_to(&a, 9, 32, 8);
    CHECK(rv_km_grow(&a, text(1, 1), 1, NULL, NULL) == RV_EFULL);
    for (size_t i = 0; i < 2; i++) {
        CHECK(memcmp(copy + i * bytes, at[i], bytes) == 0);
        rv_kv_page_unpin(c, page[i]);
    }
    grow_to(&a, 9, 64, 8);
    rv_km_check(&a, 1);
    rv_km_free(&a);
    rv_free(copy);
    close_cache(&c);
}

/* ---- the k-th allocation fails, of every call ---- */

typedef struct failing {
    long k;
    size_t n_failed;
} failing;

static void fail_grow(failing *f, rv_km *s, uint64_t x, size_t n, rv_pool *pool) {
    rv_test_fail_alloc_at(f->k);
    rv_status st = rv_km_grow(s, text(x, s->n + n) + s->n, n, pool, NULL);
    rv_test_fail_alloc_at(-1);
    rv_km_check(s, 3);
    if (st == RV_OK) return;
    CHECK(st == RV_ENOMEM);
    f->n_failed++;
    CHECK(rv_km_grow(s, text(x, s->n + n) + s->n, n, pool, NULL) == RV_OK);
    rv_km_check(s, 3);
}

static void fail_new(failing *f, rv_km *s, rv_kv_cache *c, const rv_km *from) {
    const size_t live = rv_live_bytes();
    const uint64_t n = stats_of(c).n_sequences;
    rv_kv *kv;
    rv_test_fail_alloc_at(f->k);
    const rv_status st =
        from ? rv_kv_fork(&kv, from->kv, NULL) : rv_kv_new(&kv, c, &(rv_kv_scope){"x", 1, 0}, NULL);
    rv_test_fail_alloc_at(-1);
    if (st != RV_OK) {
        CHECK(st == RV_ENOMEM && !kv && rv_live_bytes() == live && stats_of(c).n_sequences == n);
        f->n_failed++;
    } else {
        rv_kv_free(&kv);
    }
    if (from)
        rv_km_fork(s, from);
    else
        rv_km_new(s, c, 1);
}

static void fail_once(failing *f, const rv_kv_format *fmt) {
    static rv_km a, b, d;
    rv_kv_cache *c = rv_km_open(fmt, 60, true, RV_FIT_BEST);
    fail_new(f, &a, c, NULL);
    fail_grow(f, &a, 1, 60, NULL);
    fail_grow(f, &a, 1, 60, NULL);
    fail_new(f, &b, c, &a);
    fail_grow(f, &b, 11, 30, NULL);
    fail_grow(f, &a, 1, 40, NULL);
    fail_new(f, &d, c, NULL);
    rv_test_fail_alloc_at(f->k);
    const size_t would = rv_kv_peek(c, &(rv_kv_scope){&d.id, sizeof d.id, 0}, text(1, 150), 150);
    rv_test_fail_alloc_at(f->k);
    const size_t found = rv_km_match(&d, text(1, 150), 150);
    rv_test_fail_alloc_at(-1);
    CHECK(would == 0 || found == 0 || would == found);
    rv_km_check(&d, 1);
    fail_grow(f, &d, 1, 50, NULL);
    rv_test_fail_alloc_at(f->k);
    CHECK(rv_km_truncate(&a, a.n) == RV_OK && rv_km_truncate(&b, 0) == RV_OK);
    rv_km_free(&b), rv_km_free(&d);
    rv_test_fail_alloc_at(-1);
    rv_km_check(&a, 1);
    rv_km_free(&a);
    CHECK(stats_of(c).prefix.n_evicted == 0); /* nobody gains by that */
    close_cache(&c);
}

static void failed_allocations_change_nothing(void) {
    for (int i = 0; i < 4; i++) {
        const rv_kv_format fmt =
            rv_km_format(RV_KV_F16, i & 1 ? RV_KV_Q8_0 : RV_KV_AUTO, true, i & 2);
        failing f = {0};
        for (size_t before = 1; before; f.k++) {
            f.n_failed = 0;
            fail_once(&f, &fmt);
            before = f.n_failed;
        }
        CHECK(f.k > 4);
    }
}

/* Of the pages that a sequence names. */
static size_t bytes_of_pages(const rv_km *s) {
    size_t bytes = 0;
    for (int old = 0; old < 2; old++)
        for (size_t i = 0; i < RV_KM_LEN / RV_PAGE_TOKENS; i++)
            if (rv_kv_page(s->kv, old, i)) bytes += rv_kv_cache_page_bytes(s->c, old);
    return bytes;
}

/* What is said to be held is what the allocator gave for it, to the byte. */
static void bytes_reported_are_bytes_held(void) {
    static const rv_kv_type STORES[] = {RV_KV_AUTO, RV_KV_Q8_0, RV_KV_Q4_0, RV_KV_K8V4};
    static const size_t PER_64[] = {0, 34, 18, 26}; /* bytes, where F16 has 64 */
    for (size_t i = 0; i < 2 * RV_COUNT(STORES); i++) {
        const bool state = i % 2;
        const rv_kv_format f = rv_km_format(RV_KV_F16, STORES[i / 2], true, state);
        rv_kv_cache *c = rv_km_open(&f, 400, false, RV_FIT_FIRST);
        static rv_km s;
        size_t live = 0;
        CHECK(64 * rv_kv_bytes_per_token(c, true) ==
              PER_64[i / 2] * rv_kv_bytes_per_token(c, false));
        for (int round = 0; round < 2; round++) { /* in the first one the pool gets its tables */
            rv_km_new(&s, c, 1);
            for (size_t n = 5; n <= 600; n += 35) {
                grow_to(&s, 3, n, 35);
                const rv_pages_stats p = stats_of(c).pages;
                if (!state) CHECK(p.used_bytes == bytes_of_pages(&s));
                if (!round) continue;
                CHECK(rv_live_bytes() - live == p.held_bytes - p.used_bytes + rv_kv_bytes(s.kv));
            }
            rv_km_free(&s);
            CHECK(stats_of(c).pages.held_bytes == 0);
            live = rv_live_bytes();
        }
        close_cache(&c);
    }
}

/* ---- random operations ---- */

typedef struct setup {
    rv_kv_type type, store;
    bool rotate, state, no_layers, alone;
    size_t tail, batch;
    rv_fit fit;
    uint64_t pages;
} setup;

enum { N_SEQ = 7, N_PIN = 3, N_OPS = 700 };

typedef struct world {
    rv_kv_cache *c;
    uint64_t rand, budget;
    rv_km s[N_SEQ];
    struct {
        rv_page page;
        const char *at;
        char *copy;
    } pin[N_PIN];
    size_t n_ok, n_full, n_back, n_kept; /* growths, refused ones; truncations, refused ones */
    bool free_back;                      /* truncations are always possible */
} world;

static size_t pick(world *w, size_t n) {
    return (size_t)(rv_test_rand(&w->rand) % n);
}

/* Tokens that others are likely to have as well: texts of two kinds with few branches. */
static void random_text(world *w, int32_t *tok, size_t n) {
    uint64_t x = pick(w, 2);
    for (size_t i = 0; i < n; i++) {
        if (i % 24 == 23) x = 2 * x + pick(w, 2);
        uint64_t y = x * 1000 + i;
        tok[i] = (int32_t)(rv_test_rand(&y) % 50);
    }
}

static void random_grow(world *w, rv_km *s, size_t n) {
    static int32_t tok[RV_KM_LEN];
    random_text(w, tok, RV_KM_LEN);
    n = RV_MIN(n, RV_KM_LEN - s->n);
    n = RV_MIN(n, rv_kv_most(s->kv));
    const rv_kv_cache_stats before = stats_of(w->c);
    const rv_status st = rv_km_grow(s, tok + (pick(w, 2) ? s->n : 0) % 500, n, NULL, NULL);
    CHECK(st == RV_OK || st == RV_EFULL);
    w->n_ok += st == RV_OK;
    w->n_full += st == RV_EFULL;
    if (st == RV_OK) return;
    const rv_kv_cache_stats after = stats_of(w->c);
    CHECK(memcmp(before.pages.n_used, after.pages.n_used, sizeof after.pages.n_used) == 0);
    CHECK(before.prefix.n_evicted == after.prefix.n_evicted);
    rv_km_check(s, 1);
}

static void random_new(world *w, rv_km *s) {
    static int32_t tok[RV_KM_LEN];
    const size_t n = pick(w, 200);
    rv_km_new_tail(s, w->c, pick(w, 8) == 0, pick(w, 4) ? 0 : pick(w, 4) * RV_KV_BLOCK);
    random_text(w, tok, n);
    const rv_kv_scope scope = rv_km_scope(s);
    const size_t found = rv_kv_peek(w->c, &scope, tok, n);
    CHECK(rv_km_match(s, tok, n) == found);
    rv_km_check(s, 1);
    for (size_t m; s->n < n;) {
        m = RV_MIN(n - s->n, (size_t)50);
        if (rv_km_grow(s, tok + s->n, m, NULL, NULL) != RV_OK) break;
    }
}

static void random_truncate(world *w, rv_km *s) {
    size_t n = pick(w, 3) ? s->n - pick(w, RV_MIN(s->n, (size_t)80) + 1) : pick(w, s->n + 1);
    if (pick(w, 2)) n -= n % RV_PAGE_TOKENS;
    const rv_status st = rv_km_truncate(s, n);
    CHECK(st == RV_OK || (st == RV_EUNSUPPORTED && !w->free_back));
    w->n_back += st == RV_OK;
    w->n_kept += st != RV_OK;
}

static void random_pin(world *w, const rv_km *s) {
    const size_t i = pick(w, N_PIN), bytes = rv_kv_cache_page_bytes(w->c, RV_KEEP_HOT);
    if (w->pin[i].page) {
        CHECK(memcmp(w->pin[i].copy, w->pin[i].at, bytes) == 0);
        rv_kv_page_unpin(w->c, w->pin[i].page);
        rv_free(w->pin[i].copy);
        w->pin[i].page = 0;
    }
    if (!s || s->n < RV_PAGE_TOKENS) return;
    const rv_page page = rv_kv_page(s->kv, false, pick(w, s->n / RV_PAGE_TOKENS));
    if (!page) return;
    w->pin[i].page = page;
    w->pin[i].at = rv_kv_page_pin(w->c, page);
    w->pin[i].copy = rv_malloc(bytes);
    memcpy(w->pin[i].copy, w->pin[i].at, bytes);
}

/* What is said to have room has it. */
static void random_room(world *w) {
    static rv_km s;
    static int32_t tok[64];
    const size_t n = 1 + pick(w, 64);
    if (!rv_kv_cache_has_room(w->c, n)) return;
    rv_km_new(&s, w->c, 77);
    random_text(w, tok, n);
    CHECK(rv_km_grow(&s, tok, n, NULL, NULL) == RV_OK);
    rv_km_check(&s, 1);
    rv_km_free(&s);
}

static void random_step(world *w) {
    rv_km *s = &w->s[pick(w, N_SEQ)], *t = &w->s[pick(w, N_SEQ)];
    const size_t r = pick(w, 100);
    if (!s->kv) {
        random_new(w, s);
    } else if (r < 40) {
        random_grow(w, s, 1 + pick(w, 40));
    } else if (r < 55) {
        random_truncate(w, s);
    } else if (r < 65) {
        if (!t->kv) rv_km_fork(t, s);
    } else if (r < 85) {
        rv_km_free(s);
    } else if (r < 90) {
        rv_budget_resize(rv_kv_cache_budget(w->c), pick(w, 2) ? w->budget : w->budget / 2);
    } else if (r < 95) {
        random_pin(w, s);
    } else {
        random_room(w);
    }
    if (s->kv) rv_km_check(s, 5);
    const rv_kv_cache_stats now = stats_of(w->c); /* of states a sequence holds two at most */
    CHECK(now.pages.n_used[2] - now.pages.n_spare[2] <= 2 * now.n_sequences);
    if (t->kv) CHECK(rv_kv_own_bytes(t->kv) <= rv_kv_bytes(t->kv));
}

static void random_world(const setup *u, uint64_t seed) {
    static world w;
    rv_kv_format f = rv_km_format(u->type, u->store, u->rotate, u->state);
    if (u->no_layers) f.n_layers = 0;
    if (u->tail) f.tail = u->tail, f.batch = u->batch;
    memset(&w, 0, sizeof w);
    w.rand = seed;
    w.c = rv_km_open(&f, u->pages, !u->alone, u->fit);
    w.budget = stats_of(w.c).pages.budget_bytes;
    w.free_back = !u->state && u->store == RV_KV_AUTO;
    for (int i = 0; i < N_OPS; i++) {
        random_step(&w);
        if (i % 50 == 49)
            for (int k = 0; k < N_SEQ; k++)
                if (w.s[k].kv) rv_km_check(&w.s[k], 1);
    }
    const rv_kv_cache_stats s = stats_of(w.c);
    printf(
        "kv: seed %d: %zu grown, %zu full, %zu back, %zu not, %d%% found, %d evicted, %d moved\n",
        (int)seed, w.n_ok, w.n_full, w.n_back, w.n_kept,
        (int)(s.n_looked_up ? 100 * s.n_hit / s.n_looked_up : 0), (int)s.prefix.n_evicted,
        (int)s.n_migrated);
    CHECK(s.pages.peak_bytes <= w.budget);
    for (int k = 0; k < N_SEQ; k++)
        if (w.s[k].kv) rv_km_free(&w.s[k]);
    for (int k = 0; k < 1000 && (w.pin[0].page || w.pin[1].page || w.pin[2].page); k++)
        random_pin(&w, NULL);
    close_cache(&w.c);
}

static void random_operations_keep_all_contents(void) {
    static const setup SETUPS[] = {
        {.type = RV_KV_F32, .pages = 40},
        {.type = RV_KV_F32, .pages = 12, .fit = RV_FIT_BEST},
        {.type = RV_KV_Q8_0, .pages = 200, .fit = RV_FIT_ROUND_ROBIN},
        {.type = RV_KV_F16, .pages = 40, .alone = true},
        {.type = RV_KV_F32, .store = RV_KV_Q8_0, .rotate = true, .pages = 60},
        {.type = RV_KV_F16, .store = RV_KV_Q4_0, .rotate = true, .pages = 40, .fit = RV_FIT_BEST},
        {.type = RV_KV_F32, .store = RV_KV_Q8_0, .pages = 60, .tail = 64, .batch = 192},
        {.type = RV_KV_F16, .store = RV_KV_Q8_0, .pages = 60, .tail = 128, .batch = 64},
        {.type = RV_KV_F16, .store = RV_KV_Q8_0, .rotate = true, .pages = 60, .alone = true},
        {.type = RV_KV_F16, .store = RV_KV_K8V4, .rotate = true, .pages = 60},
        {.type = RV_KV_F32, .pages = 40, .state = true},
        {.type = RV_KV_F32, .pages = 12, .state = true, .fit = RV_FIT_ROUND_ROBIN},
        {.type = RV_KV_F32, .pages = 40, .state = true, .alone = true},
        {.type = RV_KV_F32, .store = RV_KV_Q8_0, .rotate = true, .pages = 50, .state = true},
        {.type = RV_KV_F32, .pages = 40, .state = true, .no_layers = true},
    };
    for (uint64_t i = 0; i < 2 * RV_COUNT(SETUPS); i++)
        random_world(&SETUPS[i % RV_COUNT(SETUPS)], i + 1);
}

/* ---- threads ---- */

typedef struct worker {
    rv_kv_cache *c;
    uint64_t rand;
    size_t n_ok, n_found;
} worker;

static void *work(void *arg) {
    worker *w = arg;
    rv_km *s = rv_calloc(2, sizeof *s);
    CHECK(s);
    for (int i = 0; i < 120; i++) {
        const uint64_t r = rv_test_rand(&w->rand), x = r / 8 % 4 * 10;
        const size_t n = 20 + r / 64 % 150;
        rv_km_new(&s[0], w->c, r % 8 == 0);
        w->n_found += rv_km_match(&s[0], text(x, n), n) > 0;
        for (size_t m; s[0].n < n; w->n_ok++) {
            m = RV_MIN(n - s[0].n, (size_t)40);
            if (rv_km_grow(&s[0], text(x, n) + s[0].n, m, NULL, NULL) != RV_OK) break;
        }
        rv_km_fork(&s[1], &s[0]);
        rv_km_grow(&s[1], text(x + 1, 10), 10, NULL, NULL);
        rv_km_check(&s[0], 3);
        rv_km_free(&s[0]);
        if (r % 3 == 0) rv_kv_cache_has_room(w->c, 100);
        rv_kv_peek(w->c, &(rv_kv_scope){&s[1].id, sizeof s[1].id, 0}, text(x, n), n);
        rv_km_check(&s[1], 3);
        if (s[1].n > 5) rv_km_truncate(&s[1], s[1].n - 5);
        rv_km_grow(&s[1], text(x + 2, 10), 10, NULL, NULL);
        rv_km_check(&s[1], 3);
        rv_km_free(&s[1]);
    }
    rv_free(s);
    return NULL;
}

static void threads_share_a_cache(void) {
    for (int i = 0; i < 4; i++) {
        const rv_kv_format f =
            rv_km_format(RV_KV_F32, i & 1 ? RV_KV_Q8_0 : RV_KV_AUTO, i & 1, i & 2);
        rv_kv_cache *c = rv_km_open(&f, 30, true, RV_FIT_BEST);
        pthread_t threads[4];
        worker w[4];
        size_t n_ok = 0, n_found = 0;
        for (size_t t = 0; t < 4; t++) {
            w[t] = (worker){c, t + 1, 0, 0};
            CHECK(pthread_create(&threads[t], NULL, work, &w[t]) == 0);
        }
        for (size_t t = 0; t < 4; t++) {
            pthread_join(threads[t], NULL);
            n_ok += w[t].n_ok;
            n_found += w[t].n_found;
        }
        CHECK(n_ok > 100 && n_found > 0);
        CHECK(stats_of(c).pages.peak_bytes <= stats_of(c).pages.budget_bytes);
        close_cache(&c);
    }
}

static void what_is_forgotten_is_nobody_elses(void) {
    const rv_kv_format f = rv_km_format(RV_KV_F16, RV_KV_AUTO, false, false);
    rv_kv_cache *c = rv_km_open(&f, 100, true, RV_FIT_FIRST);
    const uint64_t id = 3;
    const size_t size = sizeof id;
    rv_km a, b;
    rv_km_new(&a, c, id), rv_km_new(&b, c, id);
    grow_to(&a, 1, 200, 64);
    grow_to(&b, 11, 200, 64); /* the same in its first 50 */
    rv_km_free(&a);
    rv_kv_forget(c, &(rv_kv_scope){&id, size, 0}, text(11, 200), 200); /* it is in use */
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, size, 0}, text(11, 200), 200) == 192);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, size, 0}, text(1, 200), 200) == 192);
    rv_kv_forget(c, &(rv_kv_scope){&id, size, 0}, text(1, 190), 190);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, size, 0}, text(1, 200), 200) == 192); /* it goes on */
    rv_kv_forget(c, &(rv_kv_scope){&id, size, 0}, text(1, 200), 200);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, size, 0}, text(1, 200), 200) == 50);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, size, 0}, text(11, 200), 200) == 192);
    rv_km_check(&b, 1);
    rv_km_free(&b);
    rv_kv_forget(c, &(rv_kv_scope){"other", 5, 0}, text(11, 200), 200);
    CHECK(rv_kv_peek(c, &(rv_kv_scope){&id, size, 0}, text(11, 200), 200) == 192);
    rv_kv_forget(c, &(rv_kv_scope){&id, size, 0}, text(11, 200), 200);
    CHECK(stats_of(c).pages.held_bytes == 0 && stats_of(c).prefix.n_nodes == 0);
    close_cache(&c);
}

const rv_test tests_kv[] = {
    {"formats_are_checked", formats_are_checked},
    {"contents_survive_chunks_forks_and_truncations",
     contents_survive_chunks_forks_and_truncations},
    {"beginnings_are_shared", beginnings_are_shared},
    {"old_blocks_move_to_the_store", old_blocks_move_to_the_store},
    {"sequences_have_tails_of_their_own", sequences_have_tails_of_their_own},
    {"both_tiers_are_shared", both_tiers_are_shared},
    {"states_are_kept_where_they_are_wanted", states_are_kept_where_they_are_wanted},
    {"nothing_is_resumed_without_all_its_pages", nothing_is_resumed_without_all_its_pages},
    {"what_is_forgotten_is_nobody_elses", what_is_forgotten_is_nobody_elses},
    {"lack_of_room_changes_nothing", lack_of_room_changes_nothing},
    {"snapshots_take_no_room", snapshots_take_no_room},
    {"pages_that_are_spread_are_put_together", pages_that_are_spread_are_put_together},
    {"pinned_pages_stay", pinned_pages_stay},
    {"bytes_reported_are_bytes_held", bytes_reported_are_bytes_held},
    {"failed_cache_allocations_change_nothing", failed_allocations_change_nothing},
    {"random_operations_keep_all_contents", random_operations_keep_all_contents},
    {"threads_share_a_cache", threads_share_a_cache},
    {NULL, NULL},
};
