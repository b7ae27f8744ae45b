/* kv/prefix: collisions, identities, order of eviction, and random operations against a model. */
#include "kv_model.h"

static rv_prefix_stats stats_of(const rv_prefix *t) {
    rv_prefix_stats s;
    rv_prefix_get_stats(t, &s);
    return s;
}

static const size_t SIZES[] = {64, 128, 192};

static rv_km_budget g_budget; /* of the tree that is open */

static void open_pages(rv_pages **p) {
    g_budget = rv_km_budget_open(1 << 20);
    CHECK(rv_pages_new(p, SIZES, 3, g_budget.m, RV_FIT_FIRST, NULL) == RV_OK);
}

static void close_pages(rv_pages **p) {
    rv_pages_free(p);
    rv_km_budget_free(&g_budget);
}

static void open_tree(rv_pages **p, rv_prefix **t, int hash_bits) {
    open_pages(p);
    CHECK(rv_prefix_new(t, *p, hash_bits, NULL) == RV_OK);
}

static void close_tree(rv_pages **p, rv_prefix **t) {
    rv_pages_stats s;
    rv_prefix_free(t);
    rv_pages_get_stats(*p, &s);
    CHECK(s.held_bytes == 0);
    close_pages(p);
}

/* Sixteen tokens made of a number. */
static const int32_t *tokens(uint64_t x) {
    static int32_t tok[RV_PAGE_TOKENS];
    for (int i = 0; i < RV_PAGE_TOKENS; i++) tok[i] = (int32_t)(x >> i & 1) - (i == 9);
    return tok;
}

static void collisions_are_found_by_comparing(void) {
    rv_pages *p;
    rv_prefix *t;
    open_pages(&p);
    CHECK(rv_prefix_new(&t, p, 0, NULL) == RV_EARG && rv_prefix_new(&t, p, 65, NULL) == RV_EARG);
    close_pages(&p);
    for (int bits = 1; bits <= 64; bits += 7) {
        rv_node roots[2], a[300], b[300];
        open_tree(&p, &t, bits);
        for (int r = 0; r < 2; r++) roots[r] = rv_prefix_root(t, 0, &r, sizeof r);
        for (uint64_t i = 0; i < 300; i++) {
            CHECK(rv_prefix_child(t, roots[0], tokens(i)) == 0);
            a[i] = rv_prefix_add(t, roots[0], tokens(i));
            b[i] = rv_prefix_add(t, i % 2 ? roots[1] : a[i], tokens(i)); /* the parent counts too */
            CHECK(a[i] && b[i] && a[i] != b[i]);
            rv_prefix_lock(t, a[i]), rv_prefix_lock(t, b[i]);
        }
        CHECK(stats_of(t).n_nodes == 602);
        for (uint64_t i = 0; i < 300; i++) {
            CHECK(rv_prefix_child(t, roots[0], tokens(i)) == a[i]);
            CHECK(rv_prefix_add(t, i % 2 ? roots[1] : a[i], tokens(i)) == b[i]);
            CHECK(rv_prefix_parent(t, b[i]) == (i % 2 ? roots[1] : a[i]));
            CHECK(rv_prefix_child(t, roots[0], tokens(i + 300)) == 0);
        }
        for (uint64_t i = 0; i < 300; i++) rv_prefix_unlock(t, a[i]), rv_prefix_unlock(t, b[i]);
        CHECK(stats_of(t).n_nodes == 2);
        close_tree(&p, &t);
    }
}

/* Neither a shorter nor a longer identity is the same one, nor another with the same parts. */
static void identities_are_compared_whole(void) {
    static const struct {
        const char *p;
        size_t n;
    } IDS[] = {{NULL, 0},   {"", 1},     {"a", 1},     {"ab", 2},   {"a\0b", 3},
               {"ab\0", 3}, {"\0ab", 3}, {"a\0", 2},   {"a|bc", 4}, {"ab|c", 4},
               {"b", 1},    {"abc", 3},  {"a\0bc", 4}, {"ab\0c", 4}};
    for (int bits = 1; bits <= 64; bits += 63) {
        rv_pages *p;
        rv_prefix *t;
        rv_node id[RV_COUNT(IDS)];
        open_tree(&p, &t, bits);
        for (size_t i = 0; i < RV_COUNT(IDS); i++) {
            id[i] = rv_prefix_root(t, 0, IDS[i].p, IDS[i].n);
            for (size_t k = 0; k < i; k++) CHECK(id[k] != id[i]);
        }
        for (size_t i = 0; i < RV_COUNT(IDS); i++) {
            CHECK(rv_prefix_root(t, 0, IDS[i].p, IDS[i].n) == id[i]);
            rv_prefix_unlock(t, id[i]);
        }
        CHECK(stats_of(t).n_nodes == RV_COUNT(IDS));
        for (size_t i = 0; i < RV_COUNT(IDS); i++) rv_prefix_unlock(t, id[i]);
        CHECK(stats_of(t).n_nodes == 0);
        close_tree(&p, &t);
    }
}

static void the_longest_beginning_is_found(void) {
    rv_pages *p;
    rv_prefix *t;
    size_t n;
    open_tree(&p, &t, 64);
    const rv_node root = rv_prefix_root(t, 0, NULL, 0);
    rv_node with[2];
    static const uint64_t NUMBER[] = {0x0ff0, 0x00f0};
    for (int i = 0; i < 2; i++) {
        with[i] = rv_prefix_add(t, root, tokens(NUMBER[i]));
        const rv_page page = rv_pages_alloc(p, RV_KEEP_HOT);
        rv_prefix_put(t, with[i], RV_KEEP_HOT, page);
        rv_pages_unref(p, page);
        rv_prefix_idle(t, with[i], RV_KEEP_HOT);
    }
    const rv_node bare = rv_prefix_add(t, root, tokens(0x7ff0)); /* has no page */
    rv_prefix_lock(t, bare);
    CHECK(rv_prefix_partial(t, root, tokens(0x7ff0), 15, &n) == with[0] && n == 12);
    CHECK(rv_prefix_partial(t, root, tokens(0x7ff0), 10, &n) == with[0] && n == 10);
    CHECK(rv_prefix_partial(t, root, tokens(0x02f0), 15, &n) == with[1] && n == 9);
    CHECK(rv_prefix_partial(t, root, tokens(1), 15, &n) == 0 && n == 0);
    CHECK(rv_prefix_partial(t, root, tokens(0), 0, &n) == 0);
    CHECK(rv_prefix_partial(t, with[0], tokens(0), 15, &n) == 0);
    rv_prefix_unlock(t, bare);
    rv_prefix_unlock(t, root);
    CHECK(stats_of(t).n_nodes == 3 && stats_of(t).n_evictable == 2);
    CHECK(rv_prefix_evict(t) == RV_KEEP_HOT && stats_of(t).n_nodes == 2);
    CHECK(rv_prefix_evict(t) == RV_KEEP_HOT && stats_of(t).n_nodes == 0);
    CHECK(rv_prefix_evict(t) == -1 && stats_of(t).n_evicted == 2);
    close_tree(&p, &t);
}

static void failed_allocations_change_nothing(void) {
    rv_pages *p;
    rv_prefix *t = NULL;
    open_pages(&p);
    const size_t live = rv_live_bytes();
    for (long k = 0; k < 3; k++) {
        rv_test_fail_alloc_at(k);
        CHECK(rv_prefix_new(&t, p, 64, NULL) == RV_ENOMEM && !t);
        rv_test_fail_alloc_at(-1);
        CHECK(rv_live_bytes() == live);
    }
    CHECK(rv_prefix_new(&t, p, 64, NULL) == RV_OK);
    for (uint64_t i = 0; i < 400;
         i++) { /* without memory its table does not grow, which is no error */
        rv_node root = 0, child = 0;
        for (long k = 0; !root; k++) {
            rv_test_fail_alloc_at(k);
            root = rv_prefix_root(t, 0, &i, sizeof i);
            rv_test_fail_alloc_at(-1);
            CHECK(stats_of(t).n_nodes == 2 * i + (root != 0));
        }
        for (long k = 0; !child; k++) {
            rv_test_fail_alloc_at(k);
            child = rv_prefix_add(t, root, tokens(i));
            rv_test_fail_alloc_at(-1);
            CHECK(stats_of(t).n_nodes == 2 * i + 1 + (child != 0));
        }
        CHECK(rv_prefix_child(t, root, tokens(i)) == child);
        rv_prefix_lock(t, child);
    }
    CHECK(stats_of(t).n_nodes == 800);
    const rv_page page = rv_pages_alloc(p, RV_KEEP_COLD);
    rv_prefix_put(t, rv_prefix_root(t, 0, "", 1), RV_KEEP_COLD, page);
    CHECK(rv_pages_unref(p, page) == 1);
    close_tree(&p, &t); /* gives back what it keeps */
}

/* ---- random operations ---- */

enum { MOST = 4096, DEEP = 4, WIDE = 3 };

typedef struct mnode {
    rv_node node;
    int parent;      /* index; -1: a root */
    uint64_t number; /* of its tokens, or of its identity */
    int n_children, n_locks;
    rv_page page[RV_KEEP_N];
    int n_held[RV_KEEP_N]; /* references of sequences */
    uint64_t since[RV_KEEP_N];
    bool live;
} mnode;

typedef struct model {
    rv_pages *p;
    rv_prefix *t;
    uint64_t rand, clock, n_live;
    mnode m[MOST];
    int n;
} model;

static int find(const model *x, int parent, uint64_t number) {
    for (int i = 0; i < x->n; i++)
        if (x->m[i].live && x->m[i].parent == parent && x->m[i].number == number) return i;
    return -1;
}

static void prune(model *x, int i) {
    while (i >= 0) {
        mnode *m = &x->m[i];
        for (int k = 0; k < RV_KEEP_N; k++)
            if (m->page[k]) return;
        if (m->n_children || m->n_locks) return;
        m->live = false;
        x->n_live--;
        i = m->parent;
        if (i >= 0) x->m[i].n_children--;
    }
}

static void unlock(model *x, int i) {
    x->m[i].n_locks--;
    rv_prefix_unlock(x->t, x->m[i].node);
    prune(x, i);
}

static int add(model *x, int parent, uint64_t number) {
    const rv_node want = parent < 0 ? 0 : rv_prefix_child(x->t, x->m[parent].node, tokens(number));
    int i = find(x, parent, number);
    if (parent >= 0) CHECK(i >= 0 ? want == x->m[i].node : want == 0);
    const rv_node node = parent < 0 ? rv_prefix_root(x->t, 0, &number, 1 + number % 3)
                                    : rv_prefix_add(x->t, x->m[parent].node, tokens(number));
    if (parent >= 0) rv_prefix_lock(x->t, node);
    if (i < 0) {
        for (i = 0; i < x->n && x->m[i].live; i++) {}
        CHECK(i < MOST);
        if (i == x->n) x->n++;
        x->m[i] = (mnode){.node = node, .parent = parent, .number = number, .live = true};
        if (parent >= 0) x->m[parent].n_children++;
        x->n_live++;
    }
    CHECK(x->m[i].node == node);
    x->m[i].n_locks++;
    return i;
}

static void evict(model *x) {
    int best = -1, keep = 0;
    for (int i = 0; i < x->n; i++) {
        for (int k = 0; k < RV_KEEP_N; k++) {
            const mnode *m = &x->m[i];
            if (!m->live || !m->page[k] || m->n_held[k]) continue;
            if (best >= 0 && x->m[best].since[keep] < m->since[k]) continue;
            best = i;
            keep = k;
        }
    }
    CHECK(rv_prefix_evict(x->t) == (best < 0 ? -1 : keep));
    if (best < 0) return;
    x->m[best].page[keep] = 0;
    prune(x, best);
}

static void let_go(model *x, int i, int keep) {
    mnode *m = &x->m[i];
    rv_pages_unref(x->p, m->page[keep]);
    rv_prefix_idle(x->t, m->node, keep);
    if (--m->n_held[keep] == 0) m->since[keep] = ++x->clock;
}

static void step(model *x) {
    const uint64_t r = rv_test_rand(&x->rand);
    const int i = x->n ? (int)(r / 4096 % (uint64_t)x->n) : 0, keep = (int)(r / 256 % RV_KEEP_N);
    mnode *m = &x->m[i];
    if (r % 16 < 4) { /* a path, the last node of which stays locked */
        int at = add(x, -1, r / 17 % 3);
        for (uint64_t d = 0; d < r / 19 % DEEP; d++) {
            const int next = add(x, at, rv_test_rand(&x->rand) % WIDE);
            unlock(x, at);
            at = next;
        }
    } else if (!x->n || !m->live) {
        return;
    } else if (r % 16 < 8 && m->n_locks) {
        unlock(x, i);
    } else if (r % 16 < 11 && !m->page[keep]) {
        const rv_page page = rv_pages_alloc(x->p, keep);
        CHECK(page);
        rv_prefix_put(x->t, m->node, keep, page);
        CHECK(rv_pages_n_refs(x->p, page) == 2);
        m->page[keep] = page;
        m->n_held[keep] = 1;
        const rv_page other = rv_pages_alloc(x->p, keep); /* there is one: nothing happens */
        rv_prefix_put(x->t, m->node, keep, other);
        CHECK(rv_pages_unref(x->p, other) == 0);
    } else if (r % 16 == 11 && m->page[keep]) {
        rv_pages_ref(x->p, m->page[keep]);
        m->n_held[keep]++;
    } else if (r % 16 < 15 && m->n_held[keep]) {
        let_go(x, i, keep);
    } else if (r % 16 == 15) {
        evict(x);
    }
    m = &x->m[i];
    if (m->live) CHECK(rv_prefix_get(x->t, m->node, keep) == m->page[keep]);
    CHECK(stats_of(x->t).n_nodes == x->n_live);
}

static void random_operations_match_a_model(void) {
    static const int BITS[] = {64, 8, 1, 64};
    static model x;
    for (uint64_t seed = 1; seed <= RV_COUNT(BITS); seed++) {
        memset(&x, 0, sizeof x);
        x.rand = seed;
        printf("prefix: seed %d\n", (int)seed);
        open_tree(&x.p, &x.t, BITS[seed - 1]);
        for (int i = 0; i < 25000; i++) step(&x);
        for (int i = 0; i < x.n; i++) {
            for (int k = 0; k < RV_KEEP_N; k++)
                while (x.m[i].live && x.m[i].n_held[k]) let_go(&x, i, k);
            while (x.m[i].live && x.m[i].n_locks) unlock(&x, i);
        }
        while (stats_of(x.t).n_evictable) evict(&x);
        CHECK(stats_of(x.t).n_nodes == 0 && x.n_live == 0);
        close_tree(&x.p, &x.t);
    }
}

const rv_test tests_prefix[] = {
    {"collisions_are_found_by_comparing", collisions_are_found_by_comparing},
    {"identities_are_compared_whole", identities_are_compared_whole},
    {"the_longest_beginning_is_found", the_longest_beginning_is_found},
    {"failed_node_allocations_change_nothing", failed_allocations_change_nothing},
    {"random_prefix_operations_match_a_model", random_operations_match_a_model},
    {NULL, NULL},
};
