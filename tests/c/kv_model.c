/* See kv_model.h. */
#include "kv_model.h"

#include <math.h>

#include "rvk.h"

enum { D = 32 };
static const int32_t HEADS[] = {2, 1};

rv_km_budget rv_km_budget_open(uint64_t bytes) {
    rv_km_budget b;
    CHECK(rv_budget_new(&b.b, bytes, NULL) == RV_OK);
    CHECK(rv_budget_join(&b.m, b.b, "one", 0, NULL, NULL, NULL) == RV_OK);
    return b;
}

void rv_km_budget_free(rv_km_budget *b) {
    CHECK(rv_budget_held(b->m) == 0);
    rv_budget_leave(&b->m);
    rv_budget_free(&b->b);
}

rv_kv_format rv_km_format(rv_kv_type type, rv_kv_type store, bool rotate, bool state) {
    return (rv_kv_format){.n_layers = 2,
                          .heads = HEADS,
                          .head_dim = D,
                          .type = type,
                          .store = store,
                          .rotate = rotate,
                          .tail = 64,
                          .batch = 64,
                          .state_bytes = state ? RV_KM_STATE * sizeof(float) : 0};
}

rv_kv_cache *rv_km_open(const rv_kv_format *f, uint64_t pages, bool share, rv_fit fit) {
    const size_t run = f->n_layers ? RV_PAGE_TOKENS * rv_kv_head_bytes(f->type, f->head_dim) : 64;
    size_t heads = f->n_layers ? 0 : 1;
    for (size_t l = 0; l < f->n_layers; l++) heads += (size_t)f->heads[l];
    const rv_kv_cache_opts o = {
        .budget = pages * run * heads, .fit = fit, .share = share, .hash_bits = 8};
    rv_kv_cache *c;
    rv_err err = {0};
    if (rv_kv_cache_new(&c, f, &o, &err) != RV_OK) fprintf(stderr, "%s\n", err.msg);
    CHECK(c);
    return c;
}

/* ---- what belongs to a position ---- */

static uint64_t start_of(const rv_km *s) {
    return s->id * 1000003 + 17;
}

static uint64_t after(uint64_t h, int32_t tok) {
    uint64_t x = h ^ ((uint64_t)(uint32_t)tok + 1) * UINT64_C(0x9e3779b97f4a7c15);
    return rv_test_rand(&x);
}

static void contents(uint64_t h, size_t layer, size_t head, float *k, float *v) {
    uint64_t x = h + 97 * layer + 13 * head;
    for (int i = 0; i < D; i++) {
        k[i] = rv_test_uniform(&x);
        v[i] = rv_test_uniform(&x);
    }
}

/* One token more; every value of it depends on all tokens. */
static void advance(float *state, uint64_t h) {
    for (int i = 0; i < RV_KM_STATE; i++)
        state[i] = state[i] * 0.5f + (float)(h >> (i % 40) & 0xff);
}

/* What storing and reading makes of k and v. */
static void round_trip(int type, float *k, float *v) {
    static _Thread_local float run[2 * RVK_ATTN_RUN * D];
    rvk_attn_put(type, run, 5, k, v, D);
    rvk_attn_get(type, run, 5, k, v, D);
}

/* ---- the sequence ---- */

rv_kv_scope rv_km_scope(const rv_km *s) {
    return (rv_kv_scope){&s->id, sizeof s->id, s->tail};
}

void rv_km_new_tail(rv_km *s, rv_kv_cache *c, uint64_t id, size_t tail) {
    *s = (rv_km){.c = c, .id = id, .tail = tail};
    const rv_kv_scope scope = rv_km_scope(s);
    CHECK(rv_kv_new(&s->kv, c, &scope, NULL) == RV_OK);
    CHECK(rv_kv_len(s->kv) == 0);
}

void rv_km_new(rv_km *s, rv_kv_cache *c, uint64_t id) {
    rv_km_new_tail(s, c, id, 0);
}

void rv_km_free(rv_km *s) {
    rv_kv_free(&s->kv);
    CHECK(!s->kv);
    s->n = 0;
}

void rv_km_fork(rv_km *to, const rv_km *s) {
    *to = *s;
    CHECK(rv_kv_fork(&to->kv, s->kv, NULL) == RV_OK);
}

size_t rv_km_match(rv_km *s, const int32_t *tok, size_t n) {
    s->n = rv_kv_match(s->kv, tok, n);
    CHECK(s->n == rv_kv_len(s->kv) && (s->n < n || n == 0));
    memcpy(s->tok, tok, s->n * sizeof *tok);
    return s->n;
}

static void write_rows(rv_km *s, const int32_t *tok, size_t n, const rv_kv_format *f) {
    float k[8][D], v[8][D], *to = NULL, *state = rv_kv_state(s->kv);
    uint64_t h = start_of(s), x;
    for (size_t i = 0; i < s->n; i++) h = after(h, s->tok[i]);
    const size_t at = rv_kv_snapshot(s->kv, n, &to);
    CHECK(at <= n && (at == 0 || (to && (s->n + at) % RV_PAGE_TOKENS == 0)));
    for (size_t p = 0; p < n; p += 8) { /* rows of eight at a time, as a pass does */
        const size_t m = RV_MIN(n - p, (size_t)8);
        for (size_t l = 0; l < f->n_layers; l++) {
            for (size_t g = 0; g < (size_t)f->heads[l]; g++) {
                x = h;
                for (size_t i = 0; i < m; i++) contents(x = after(x, tok[p + i]), l, g, k[i], v[i]);
                rv_kv_write(s->kv, l, g, s->n + p, m, k[0], v[0], D);
            }
        }
        for (size_t i = 0; i < m; i++) {
            h = after(h, tok[p + i]);
            if (state) advance(state, h);
            if (at && p + i + 1 == at) memcpy(to, state, f->state_bytes);
        }
    }
}

rv_status rv_km_grow(rv_km *s, const int32_t *tok, size_t n, rv_pool *pool, rv_err *err) {
    const rv_kv_format *f = rv_kv_cache_format(s->c);
    CHECK(s->n + n <= RV_KM_LEN);
    const rv_status st = rv_kv_reserve(s->kv, n, pool, err);
    if (st != RV_OK) return st;
    write_rows(s, tok, n, f);
    rv_kv_commit(s->kv, tok, n);
    memcpy(s->tok + s->n, tok, n * sizeof *tok);
    s->n += n;
    CHECK(rv_kv_len(s->kv) == s->n);
    return RV_OK;
}

rv_status rv_km_truncate(rv_km *s, size_t n) {
    const rv_status st = rv_kv_truncate(s->kv, n, NULL);
    if (st == RV_OK) s->n = n;
    CHECK(rv_kv_len(s->kv) == s->n);
    return st;
}

/* ---- reading it back ---- */

static void check_position(const rv_km *s, const rv_kv_format *f, uint64_t h, size_t p, bool old) {
    const int hot = rv_kv_type_of(s->kv, false);
    const void *runs[RV_KV_BLOCK / RV_PAGE_TOKENS];
    float k[D], v[D], gk[D], gv[D];
    for (size_t l = 0; l < f->n_layers; l++) {
        const size_t g = (p + l) % (size_t)f->heads[l]; /* every head, in turn */
        contents(h, l, g, k, v);
        round_trip(hot, k, v);
        if (old && f->rotate) rvk_hadamard(k, 1, D, D);
        if (old) round_trip(rv_kv_type_of(s->kv, true), k, v);
        rv_kv_runs(s->kv, old, l, g, p / RV_KV_BLOCK, runs);
        rvk_attn_get(rv_kv_type_of(s->kv, old), runs[p % RV_KV_BLOCK / RV_PAGE_TOKENS],
                     p % RV_PAGE_TOKENS, gk, gv, D);
        CHECK(memcmp(k, gk, sizeof k) == 0 && memcmp(v, gv, sizeof v) == 0);
        if (!old) continue;
        contents(h, l, g, k, v);
        if (f->rotate) rvk_hadamard(gk, 1, D, D);                 /* its own inverse */
        const float most = f->store == RV_KV_Q8_0 ? 0.02f : 0.5f; /* rounding of values up to 1 */
        for (int i = 0; i < D; i++) CHECK(fabsf(k[i] - gk[i]) < most && fabsf(v[i] - gv[i]) < most);
    }
}

void rv_km_check(const rv_km *s, size_t step) {
    const rv_kv_format *f = rv_kv_cache_format(s->c);
    size_t m = rv_kv_boundary(s->kv, s->n + 1); /* of the next query, or of the last one */
    if (m && !rv_kv_page(s->kv, true, m / RV_PAGE_TOKENS - 1)) m = rv_kv_boundary(s->kv, s->n);
    const float *got = rv_kv_state(s->kv);
    float state[RV_KM_STATE] = {0};
    uint64_t h = start_of(s);
    CHECK(rv_kv_len(s->kv) == s->n && m <= s->n && (got != NULL) == (f->state_bytes > 0));
    for (size_t p = 0; p < s->n; p++) {
        h = after(h, s->tok[p]);
        if (got) advance(state, h);
        if ((p + s->n) % step == 0) check_position(s, f, h, p, p < m);
    }
    if (got) CHECK(memcmp(state, got, sizeof state) == 0);
}
