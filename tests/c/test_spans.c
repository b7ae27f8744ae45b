/* Attention of sequences in the cache, one or two tiers of it: against float64 over what is stored,
 * and the same bits whatever else is in the pass, in any chunks, with any number of threads. */
#include <math.h>

#include "model/attention.h"
#include "rvk.h"
#include "test.h"

typedef struct shape {
    rv_kv_type type, store;
    int32_t n_head, n_head_kv, d, n_swa;
    size_t tail, batch;
    bool plain; /* keys of the store are not rotated */
} shape;

/* A network of one layer that is nothing but its shape, and a cache. */
typedef struct world {
    shape s;
    rv_layer layer;
    rv_net net;
    rv_pool *pool;
    rv_run *r;
    rv_kv_cache *cache;
    bool starve; /* attention gets no memory */
} world;

enum { MAX_ROWS = 512, MAX_SEQS = 4 };

static void open_world(world *w, const shape *s, int n_threads) {
    *w = (world){.s = *s, .layer = {.n_head_kv = s->n_head_kv}};
    w->net = (rv_net){.n_embd = 1,
                      .n_layer = 1,
                      .n_head = s->n_head,
                      .head_dim = s->d,
                      .n_ff = 1,
                      .max_head_kv = s->n_head_kv,
                      .attn_scale = 0.5f,
                      .layers = &w->layer};
    const rv_kv_format f = {.n_layers = 1,
                            .heads = &s->n_head_kv,
                            .head_dim = (size_t)s->d,
                            .type = s->type,
                            .store = s->store,
                            .rotate = s->store != RV_KV_AUTO && !s->plain,
                            .tail = s->tail,
                            .batch = s->batch};
    const rv_kv_cache_opts o = {.budget = 64 << 20};
    CHECK(rv_pool_new(&w->pool, n_threads, NULL) == RV_OK);
    CHECK(rv_run_new(&w->r, &w->net, w->pool, NULL) == RV_OK);
    CHECK(rv_run_reserve(w->r, MAX_ROWS, NULL) == RV_OK);
    CHECK(rv_kv_cache_new(&w->cache, &f, &o, NULL) == RV_OK);
}

static void close_world(world *w) {
    rv_kv_cache_free(&w->cache);
    rv_run_free(&w->r);
    rv_pool_free(&w->pool);
}

/* n positions to come: queries [n][heads][d], keys and values [n][key heads][d]; the results. */
typedef struct seq {
    size_t n;
    float *q, *k, *v, *out;
    rv_kv *kv;
} seq;

static float *noise(size_t n, uint64_t seed) {
    float *x = rv_malloc((n + 1) * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < n; i++) x[i] = rv_test_uniform(&seed);
    return x;
}

static seq open_seq(const world *w, size_t n, uint64_t seed) {
    const size_t q = (size_t)(w->s.n_head * w->s.d), k = (size_t)(w->s.n_head_kv * w->s.d);
    seq s = {n, noise(n * q, seed), noise(n * k, seed + 1), noise(n * k, seed + 2), NULL, NULL};
    s.out = noise(n * q, 0);
    CHECK(rv_kv_new(&s.kv, w->cache, NULL, NULL) == RV_OK);
    return s;
}

static void close_seq(seq *s) {
    rv_kv_free(&s->kv);
    rv_free(s->q), rv_free(s->k), rv_free(s->v), rv_free(s->out);
}

static void attend(world *w, const rv_span *spans, size_t n_spans) {
    rv_run_store_kv(w->r, spans, n_spans, 0, (size_t)w->s.n_head_kv);
    const rv_attn_task t = {.n_head = (size_t)w->s.n_head,
                            .n_head_kv = (size_t)w->s.n_head_kv,
                            .head_dim = (size_t)w->s.d,
                            .n_swa = (size_t)w->s.n_swa,
                            .spans = spans,
                            .n_spans = n_spans};
    if (w->starve) rv_test_fail_alloc_at(0);
    rv_run_attention(w->r, &t);
    rv_test_fail_alloc_at(-1);
}

/* A pass of up to rows[i] positions of each sequence; how many there were.  look is called for each
 * sequence before its positions are committed. */
static size_t step(world *w, seq *seqs, size_t n, const size_t *rows,
                   void (*look)(const world *w, const seq *s, size_t n)) {
    static const int32_t tok[MAX_ROWS];
    const size_t q = (size_t)(w->s.n_head * w->s.d), k = (size_t)(w->s.n_head_kv * w->s.d);
    rv_span spans[MAX_SEQS];
    size_t row = 0, m = 0, of[MAX_SEQS];
    for (size_t i = 0; i < n; i++) {
        const size_t p = rv_kv_len(seqs[i].kv), c = RV_MIN(rows[i], seqs[i].n - p);
        if (c == 0) continue;
        CHECK(row + c <= MAX_ROWS && rv_kv_reserve(seqs[i].kv, c, w->pool, NULL) == RV_OK);
        memcpy(w->r->q + row * q, seqs[i].q + p * q, c * q * 4);
        memcpy(w->r->k + row * k, seqs[i].k + p * k, c * k * 4);
        memcpy(w->r->v + row * k, seqs[i].v + p * k, c * k * 4);
        spans[m] = (rv_span){seqs[i].kv, tok, c};
        of[m++] = i;
        row += c;
    }
    if (m == 0) return 0;
    attend(w, spans, m);
    row = 0;
    for (size_t j = 0; j < m; j++) {
        const seq *s = &seqs[of[j]];
        memcpy(s->out + rv_kv_len(s->kv) * q, w->r->att + row * q, spans[j].n * q * 4);
        if (look) look(w, s, spans[j].n);
        rv_kv_commit(s->kv, tok, spans[j].n);
        row += spans[j].n;
    }
    return row;
}

/* ---- float64 ---- */

/* A softmax over some positions: weighted values, largest score, sum. */
typedef struct soft {
    double acc[128], top, sum;
    size_t n;
} soft;

/* w values of the query and the key, d of the value. */
static void see(soft *s, const float *q, const float *k, size_t w, const float *v, size_t d) {
    double score = 0;
    for (size_t i = 0; i < w; i++) score += (double)q[i] * k[i];
    const double top = fmax(s->top, score), keep = exp(s->top - top), e = exp(score - top);
    for (size_t i = 0; i < d; i++) s->acc[i] = s->acc[i] * keep + e * v[i];
    s->sum = s->sum * keep + e;
    s->top = top;
    s->n++;
}

/* What both have seen together; by_length: what it would be by the numbers of positions. */
static void join(const soft *a, const soft *b, size_t d, double *out, double *by_length) {
    const double top = fmax(a->top, b->top), wa = exp(a->top - top), wb = exp(b->top - top);
    for (size_t i = 0; i < d; i++) {
        out[i] = (a->acc[i] * wa + b->acc[i] * wb) / (a->sum * wa + b->sum * wb);
        by_length[i] = ((a->n ? a->acc[i] / a->sum * (double)a->n : 0) +
                        (b->n ? b->acc[i] / b->sum * (double)b->n : 0)) /
                       (double)(a->n + b->n);
    }
}

static double distance(const float *found, const double *want, size_t d) {
    double most = 0, size = 0;
    for (size_t i = 0; i < d; i++) {
        most = fmax(most, fabs(found[i] - want[i]));
        size = fmax(size, fabs(want[i]));
    }
    return most / size;
}

static double distance64(const double *found, const double *want, size_t d) {
    double most = 0, size = 0;
    for (size_t i = 0; i < d; i++) {
        most = fmax(most, fabs(found[i] - want[i]));
        size = fmax(size, fabs(want[i]));
    }
    return most / size;
}

/* The scaled query of a head as the kernel for that tier reads it; how wide it is. */
static size_t query(const world *w, const seq *s, size_t p, size_t h, bool old, float *q) {
    const size_t d = (size_t)w->s.d;
    const int type = rv_kv_type_of(s->kv, old);
    const size_t wide = rvk_attn_width(type, d);
    uint8_t *packed = rv_alloc_aligned(rvk_act_bytes(128));
    for (size_t i = 0; i < d; i++) q[i] = s->q[(p * (size_t)w->s.n_head + h) * d + i] * 0.5f;
    for (size_t i = d; i < wide; i++) q[i] = 0;
    if (old && rv_kv_rotated(s->kv)) rvk_hadamard(q, 1, wide, wide);
    if (rvk_attn_is_coded(type)) {
        rvk.act_pack(packed, q, wide);
        const float *scale = (const float *)(const void *)(packed + rvk_act_off_d(wide));
        for (size_t i = 0; i < wide; i++) q[i] = scale[i / 32] * (float)(int8_t)packed[i];
    }
    rv_free(packed);
    return wide;
}

static const double LOSS[] = {[RV_KV_F16] = 3e-3,
                              [RV_KV_F32] = 1e-5,
                              [RV_KV_Q8_0] = 0.06,
                              [RV_KV_Q4_0] = 0.8,
                              [RV_KV_K8V4] = 0.3};
static size_t n_length_told; /* queries of two tiers that a merge by length would have got wrong */

/* What query head h of position p sees: first, and which key head. */
static size_t first_of(const world *w, size_t p) {
    const size_t swa = (size_t)w->s.n_swa;
    return swa && p + 1 > swa ? p + 1 - swa : 0;
}
static size_t key_head(const world *w, size_t h) {
    return h / (size_t)(w->s.n_head / w->s.n_head_kv);
}

/* What is stored of that, in each tier. */
static void see_tiers(const world *w, const seq *s, size_t p, size_t h, soft tier[2]) {
    const size_t d = (size_t)w->s.d, g = key_head(w, h), m = rv_kv_boundary(s->kv, p + 1);
    float q[2][128], k[128], v[128];
    tier[0] = tier[1] = (soft){.top = -INFINITY};
    size_t wide[2] = {query(w, s, p, h, false, q[0]), 0};
    if (m) wide[1] = query(w, s, p, h, true, q[1]);
    for (size_t j = first_of(w, p); j <= p; j++) {
        const bool old = j < m;
        const void *runs[RV_KV_BLOCK / RV_PAGE_TOKENS];
        rv_kv_runs(s->kv, old, 0, g, j / RV_KV_BLOCK, runs);
        rvk_attn_get(rv_kv_type_of(s->kv, old), runs[j % RV_KV_BLOCK / RV_PAGE_TOKENS],
                     j % RV_PAGE_TOKENS, k, v, wide[old]);
        see(&tier[old], q[old], k, wide[old], v, d);
    }
}

static void check_sums(const world *w, const seq *s, size_t p, size_t h) {
    const size_t d = (size_t)w->s.d;
    double want[128], by_length[128];
    soft tier[2];
    see_tiers(w, s, p, h, tier);
    join(&tier[1], &tier[0], d, want, by_length);
    CHECK(distance(s->out + (p * (size_t)w->s.n_head + h) * d, want, d) <= 1e-5);
    if (tier[0].n && tier[1].n) n_length_told += distance64(by_length, want, d) > 1e-5;
}

static void check_query(const world *w, const seq *s, size_t p, size_t h) {
    const size_t d = (size_t)w->s.d, heads = (size_t)w->s.n_head_kv, g = key_head(w, h);
    const float *out = s->out + (p * (size_t)w->s.n_head + h) * d;
    float q[128];
    double want[128], by_length[128];
    soft exact = {.top = -INFINITY};
    const soft none = {.top = -INFINITY};
    check_sums(w, s, p, h);
    for (size_t i = 0; i < d; i++) q[i] = s->q[(p * (size_t)w->s.n_head + h) * d + i] * 0.5f;
    for (size_t j = first_of(w, p); j <= p; j++)
        see(&exact, q, s->k + (j * heads + g) * d, d, s->v + (j * heads + g) * d, d);
    join(&exact, &none, d, want, by_length);
    CHECK(distance(out, want, d) <= fmax(LOSS[w->s.type], LOSS[w->s.store]));
}

static size_t n_two_tiers;

static void check_step(const world *w, const seq *s, size_t n) {
    const size_t heads = (size_t)w->s.n_head;
    for (size_t i = 0; i < n; i++) {
        const size_t p = rv_kv_len(s->kv) + i;
        n_two_tiers += rv_kv_boundary(s->kv, p + 1) > 0;
        if (p < 3 || p % 61 == 0 || p + 1 == s->n)
            for (size_t h = 0; h < heads; h++) check_query(w, s, p, h);
        else
            check_query(w, s, p, p % heads);
    }
}

static const shape SHAPES[] = {
    {RV_KV_F32, RV_KV_AUTO, 3, 1, 16, 0, 0, 0, false},
    {RV_KV_F16, RV_KV_AUTO, 4, 2, 48, 0, 0, 0, false},
    {RV_KV_F16, RV_KV_AUTO, 2, 1, 32, 37, 0, 0, false},
    {RV_KV_F16, RV_KV_AUTO, 5, 1, 64, 600, 0, 0, false},
    {RV_KV_Q8_0, RV_KV_AUTO, 4, 2, 32, 0, 0, 0, false},
    {RV_KV_Q8_0, RV_KV_AUTO, 7, 1, 64, 90, 0, 0, false},
    {RV_KV_Q4_0, RV_KV_AUTO, 2, 1, 96, 0, 0, 0, false},
    {RV_KV_Q4_0, RV_KV_AUTO, 2, 2, 32, 1, 0, 0, false},
    {RV_KV_Q8_0, RV_KV_AUTO, 1, 1, 128, 513, 0, 0, false},
    {RV_KV_F16, RV_KV_Q8_0, 4, 2, 64, 0, 128, 64, false},
    {RV_KV_F16, RV_KV_Q8_0, 3, 1, 32, 0, 128, 192, false},
    {RV_KV_F32, RV_KV_Q4_0, 2, 1, 32, 0, 192, 64, false},
    {RV_KV_F16, RV_KV_Q4_0, 6, 3, 96, 0, 128, 64, true},
    {RV_KV_F16, RV_KV_Q8_0, 2, 1, 96, 0, 128, 64, false}, /* rotated in three parts */
    {RV_KV_F16, RV_KV_Q8_0, 4, 2, 28, 0, 128, 64, false}, /* heads that do not fill their blocks */
    {RV_KV_F32, RV_KV_Q4_0, 2, 1, 28, 0, 128, 64, true},
    {RV_KV_F16, RV_KV_K8V4, 3, 1, 80, 0, 128, 64, false},
    {RV_KV_F16, RV_KV_Q4_0, 2, 1, 44, 0, 128, 128, false},
    {RV_KV_Q8_0, RV_KV_AUTO, 2, 1, 20, 70, 0, 0, false},
    {RV_KV_Q4_0, RV_KV_AUTO, 5, 1, 40, 0, 0, 0, false},
    {RV_KV_F16, RV_KV_Q8_0, 2, 1, 32, 100, 128, 128, false}, /* a window within the tail */
    {RV_KV_F32, RV_KV_Q8_0, 2, 2, 64, 300, 128, 64, false},  /* and beyond it */
};

/* A sequence of n positions in chunks of 16 by one thread. */
static seq alone(world *w, size_t n, uint64_t seed, bool check) {
    seq s = open_seq(w, n, seed);
    const size_t rows = 16;
    while (step(w, &s, 1, &rows, check ? check_step : NULL)) {}
    return s;
}

static void sequences_match_float64(void) {
    n_length_told = n_two_tiers = 0;
    for (size_t i = 0; i < RV_COUNT(SHAPES); i++) {
        world w;
        open_world(&w, &SHAPES[i], 1);
        const int32_t d = SHAPES[i].d;
        seq s = alone(&w, d % 32 ? 540 : d < 64 ? 1100 : 700, 7 * i, true);
        close_seq(&s);
        close_world(&w);
    }
    CHECK(n_two_tiers > 1000);
    CHECK(n_length_told > 1000); /* or the bound would let a wrong merge pass */
}

static void every_level_matches_float64(void) {
    static const unsigned LEVELS[] = {0, RVK_AVX2, RVK_AVX2 | RVK_AVX512, RVK_ALL};
    for (size_t l = 0; l < RV_COUNT(LEVELS); l++) {
        rvk_init(LEVELS[l]);
        const shape s = {RV_KV_F16, l % 2 ? RV_KV_Q8_0 : RV_KV_Q4_0, 4, 2, 32, 0, 64, 64, false};
        world w;
        open_world(&w, &s, 1);
        seq q = alone(&w, 230, 5, true);
        close_seq(&q);
        close_world(&w);
    }
    rvk_init(RVK_ALL);
}

/* ---- 32 k positions ---- */

enum { LONG = 32768, N_KINDS = 6 };

/* The score of a position: noise; all alike; rising to the tail; falling from the first block; one
 * position of the store above all; segments far apart. */
static float score_at(int kind, size_t p, uint64_t *seed) {
    const float part = (float)p / LONG;
    switch (kind) {
    case 0: return 8 * rv_test_uniform(seed);
    case 1: return 1;
    case 2: return 24 * part;
    case 3: return -24 * part;
    case 4: return p == 777 ? 30.0f : 0.0f;
    default: return p / 512 % 2 ? 15.0f : -15.0f;
    }
}

/* Keys whose products with the last query, an even vector, are such scores but for some noise. */
static void give_scores(const world *w, seq *s, int kind) {
    const size_t d = (size_t)w->s.d;
    uint64_t seed = 99;
    for (size_t i = 0; i < d; i++) s->q[(s->n - 1) * d + i] = 2;
    for (size_t p = 0; p < s->n; p++) {
        const float each = score_at(kind, p, &seed) / (float)d;
        for (size_t i = 0; i < d; i++) s->k[p * d + i] = each + s->k[p * d + i] * 0.01f;
    }
}

static void check_long(const shape *sh, int kind) {
    static const int32_t tok[RV_KV_BLOCK];
    const size_t d = (size_t)sh->d, one = 1;
    world w;
    open_world(&w, sh, 2);
    seq s = open_seq(&w, LONG, 3);
    give_scores(&w, &s, kind);
    while (rv_kv_len(s.kv) < LONG - 1) { /* keys and values alone: nobody asks before the last */
        const size_t p = rv_kv_len(s.kv), n = RV_MIN(LONG - 1 - p, (size_t)RV_KV_BLOCK);
        CHECK(rv_kv_reserve(s.kv, n, w.pool, NULL) == RV_OK);
        rv_kv_write(s.kv, 0, 0, p, n, s.k + p * d, s.v + p * d, d);
        rv_kv_commit(s.kv, tok, n);
    }
    CHECK(step(&w, &s, 1, &one, NULL) == 1 && rv_kv_boundary(s.kv, LONG) >= LONG - 256);
    check_sums(&w, &s, LONG - 1, 0);
    close_seq(&s);
    close_world(&w);
}

static void long_sequences_match_float64(void) {
    static const shape STORES[] = {{RV_KV_F16, RV_KV_Q8_0, 1, 1, 32, 0, 64, 64, false},
                                   {RV_KV_F16, RV_KV_K8V4, 1, 1, 28, 0, 192, 64, false},
                                   {RV_KV_F32, RV_KV_Q4_0, 1, 1, 32, 0, 128, 128, false}};
    for (int kind = 0; kind < N_KINDS; kind++) {
        check_long(&STORES[0], kind);
        check_long(&STORES[1 + kind % 2], kind);
    }
}

/* Parts of a softmax whose maxima lie apart, one after another as segments are, in float64. */
static void parts_are_joined_by_their_sums(void) {
    enum { D = 5, N = LONG / 512 };
    static const float APART[] = {0, 1e-3f, 1, 20, 80, 88, 100, 300};
    for (size_t g = 0; g < 2 * RV_COUNT(APART); g++) {
        uint64_t seed = g;
        float room[2][D + 2];
        const rv_attn_state s = rv_attn_state_at(room[0], 1, D);
        const rv_attn_state part = rv_attn_state_at(room[1], 1, D);
        soft all = {.top = -INFINITY, .n = 1};
        double want[D], by_length[D];
        rv_attn_state_clear(&s);
        for (int i = 0; i < N; i++) {
            rv_attn_state_clear(&part);
            if (i % 5 != 2) { /* the others saw nothing */
                part.top[0] = rv_test_uniform(&seed) * (g % 2 ? APART[g / 2] : 0) -
                              (float)(i % 2) * APART[g / 2];
                part.sum[0] = 1 + 200 * (1 + rv_test_uniform(&seed));
                for (int k = 0; k < D; k++) part.acc[k] = part.sum[0] * rv_test_uniform(&seed);
            }
            const double to = (double)part.top[0], top = fmax(all.top, to);
            const double a = exp(all.top - top), b = exp(to - top);
            for (int k = 0; k < D; k++) all.acc[k] = all.acc[k] * a + (double)part.acc[k] * b;
            all.sum = all.sum * a + (double)part.sum[0] * b, all.top = top;
            rv_attn_state_join(&s, &part);
        }
        join(&all, &(soft){.top = -INFINITY}, D, want, by_length);
        for (int k = 0; k < D; k++) room[0][k] /= s.sum[0];
        CHECK(distance(room[0], want, D) <= 1e-5 && s.top[0] == (float)all.top);
    }
}

/* ---- the same bits ---- */

static const size_t LENGTHS[MAX_SEQS] = {560, 65, 1, 300};

/* All sequences in passes together, with chunks that change from one pass to the next. */
static void check_together(const shape *sh, const seq *want, int n_threads, size_t first) {
    static const size_t CHUNKS[] = {1, 7, 64, 128, 3};
    world w;
    seq s[MAX_SEQS];
    size_t rows[MAX_SEQS];
    open_world(&w, sh, n_threads);
    for (size_t i = 0; i < MAX_SEQS; i++) s[i] = open_seq(&w, LENGTHS[i], 100 * i);
    for (size_t pass = first;; pass++) {
        for (size_t i = 0; i < MAX_SEQS; i++) rows[i] = CHUNKS[(pass + 2 * i) % RV_COUNT(CHUNKS)];
        if (step(&w, s, MAX_SEQS, rows, NULL) == 0) break;
    }
    for (size_t i = 0; i < MAX_SEQS; i++) {
        const size_t n = LENGTHS[i] * (size_t)(sh->n_head * sh->d);
        CHECK(memcmp(want[i].out, s[i].out, n * sizeof *s[i].out) == 0);
        close_seq(&s[i]);
    }
    close_world(&w);
}

static void check_chunks(const shape *sh, const seq *want, size_t chunk, int n_threads,
                         bool starve) {
    world w;
    open_world(&w, sh, n_threads);
    w.starve = starve;
    seq s = open_seq(&w, LENGTHS[0], 0);
    while (step(&w, &s, 1, &chunk, NULL)) {}
    CHECK(memcmp(want->out, s.out, s.n * (size_t)(sh->n_head * sh->d) * sizeof *s.out) == 0);
    close_seq(&s);
    close_world(&w);
}

static void a_pass_has_the_bits_of_each_alone(void) {
    for (size_t i = 0; i < RV_COUNT(SHAPES); i++) {
        world w;
        seq want[MAX_SEQS];
        open_world(&w, &SHAPES[i], 1);
        for (size_t k = 0; k < MAX_SEQS; k++) want[k] = alone(&w, LENGTHS[k], 100 * k, false);
        for (int threads = 1; threads <= 3; threads++)
            check_together(&SHAPES[i], want, threads, (size_t)threads);
        check_chunks(&SHAPES[i], want, 1, 3, false); /* segments are shared out */
        check_chunks(&SHAPES[i], want, 1, 8, true);  /* or not, without memory for their sums */
        check_chunks(&SHAPES[i], want, 7, 8, false);
        check_chunks(&SHAPES[i], want, 64, 2, false);
        check_chunks(&SHAPES[i], want, 128, 3, false);
        for (size_t k = 0; k < MAX_SEQS; k++) close_seq(&want[k]);
        close_world(&w);
    }
}

const rv_test tests_spans[] = {
    {"sequences_match_float64", sequences_match_float64},
    {"every_level_matches_float64", every_level_matches_float64},
    {"long_sequences_match_float64", long_sequences_match_float64},
    {"parts_are_joined_by_their_sums", parts_are_joined_by_their_sums},
    {"a_pass_has_the_bits_of_each_alone", a_pass_has_the_bits_of_each_alone},
    {NULL, NULL},
};
