/* The model of sim.h and the backend that computes it: tokens from hashes, and what is stored of a
 * position.  Behind quantisers that is 1 and -1 in the kernels' layouts; a cache without a store
 * never looks into its pages, so there it may be 16 plain bytes (sim_opts.raw), which takes a tenth
 * of the time. */
#include "rvk.h"
#include "sim.h"

enum { CHECK_ALL_EVERY = 256 }; /* steps, between those that look at a few positions only */

uint64_t sim_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t sim_start(const rv_kv_scope *scope) {
    const uint64_t tail = scope->tail ? scope->tail : RV_KV_BLOCK; /* the cache's */
    uint64_t h = 0x243f6a8885a308d3u + scope->n + tail * 0x100000001b3u;
    for (size_t i = 0; i < scope->n; i++) h = sim_mix(h ^ ((const uint8_t *)scope->identity)[i]);
    return h;
}

uint64_t sim_more(uint64_t hash, int32_t tok) {
    return sim_mix(hash + 0x9e3779b97f4a7c15u * (uint64_t)(tok + 1));
}

int32_t sim_token(uint64_t hash) {
    return (int32_t)(sim_mix(hash ^ 0x13198a2e03707344u) % SIM_VOCAB);
}

bool sim_is_end(int32_t tok) {
    return tok < 4;
}

/* ---- what is stored of a position: head 0 the hash, head 1 token and number ---- */

typedef struct cell {
    uint32_t word[4];
} cell;

static cell cell_of(const sim_req *q, size_t pos) {
    const uint64_t hash = q->hash[pos + 1];
    return (cell){{(uint32_t)hash, (uint32_t)(hash >> 32), (uint32_t)q->tok[pos], (uint32_t)pos}};
}

static const void *run_of(const rv_kv *kv, bool old, size_t head, size_t pos) {
    const void *runs[RV_KV_BLOCK / RV_PAGE_TOKENS];
    rv_kv_runs(kv, old, 0, head, pos / RV_KV_BLOCK, runs);
    return runs[pos % RV_KV_BLOCK / RV_PAGE_TOKENS];
}

/* Where raw cells stand: in the run of head 0. */
static const char *raw_at(const rv_kv *kv, size_t pos) {
    return (const char *)run_of(kv, false, 0, pos) + pos % RV_PAGE_TOKENS * sizeof(cell);
}

static void write_cell(const sim *s, rv_kv *kv, size_t pos, cell c) {
    if (s->o.raw) {
        memcpy((void *)(uintptr_t)raw_at(kv, pos), &c, sizeof c);
        return;
    }
    float x[4][SIM_DIM];
    for (int w = 0; w < 4; w++)
        for (int i = 0; i < SIM_DIM; i++) x[w][i] = (float)(c.word[w] >> i & 1) * 2.0f - 1.0f;
    rv_kv_write(kv, 0, 0, pos, 1, x[0], x[1], SIM_DIM);
    rv_kv_write(kv, 0, 1, pos, 1, x[2], x[3], SIM_DIM);
}

static uint32_t word_of(const float *x) {
    uint32_t w = 0;
    for (int i = 0; i < SIM_DIM; i++) w |= (uint32_t)(x[i] > 0) << i;
    return w;
}

static cell read_cell(const sim *s, const rv_kv *kv, size_t pos, bool old) {
    cell c;
    if (s->o.raw) {
        memcpy(&c, raw_at(kv, pos), sizeof c);
        return c;
    }
    for (size_t head = 0; head < 2; head++) {
        float k[SIM_DIM], v[SIM_DIM];
        rvk_attn_get(rv_kv_type_of(kv, old), run_of(kv, old, head, pos), pos % RV_PAGE_TOKENS, k, v,
                     SIM_DIM);
        if (old && rv_kv_rotated(kv)) rvk_hadamard(k, 1, SIM_DIM, SIM_DIM);
        c.word[2 * head] = word_of(k);
        c.word[2 * head + 1] = word_of(v);
    }
    return c;
}

static void check_cell(sim *s, const sim_req *q, const rv_kv *kv, size_t pos, bool old) {
    const cell want = cell_of(q, pos), got = read_cell(s, kv, pos, old);
    SIM_CHECK(s, memcmp(&want, &got, sizeof want) == 0);
}

/* As the next query sees it. */
static void check_seen(sim *s, const sim_req *q, const rv_kv *kv, size_t pos) {
    check_cell(s, q, kv, pos, pos < rv_kv_boundary(kv, rv_kv_len(kv) + 1));
}

static void check_state(sim *s, const sim_req *q, rv_kv *kv) {
    const float *state = rv_kv_state(kv);
    const size_t len = rv_kv_len(kv);
    const uint64_t want = len ? q->hash[len] : 0;
    SIM_CHECK(s, (state != NULL) == s->o.state);
    if (state) SIM_CHECK(s, memcmp(state, &want, sizeof want) == 0);
}

void sim_check_kv(sim *s, const sim_req *q, rv_kv *kv) {
    const size_t bound = rv_kv_boundary(kv, rv_kv_len(kv) + 1);
    for (size_t i = 0; i < rv_kv_len(kv);
         i++) /* of what is not reserved, some may not have moved */
        check_cell(s, q, kv, i, i < bound && rv_kv_page(kv, true, i / RV_PAGE_TOKENS));
    check_state(s, q, kv);
}

static void write_cells(const sim *s, const sim_req *q, rv_kv *kv, size_t n) {
    const size_t len = rv_kv_len(kv);
    for (size_t i = len; i < len + n; i++) write_cell(s, kv, i, cell_of(q, i));
}

static void advance_state(sim *s, const sim_req *q, rv_kv *kv, size_t n) {
    const size_t len = rv_kv_len(kv);
    float *state = rv_kv_state(kv), *to = NULL;
    if (!state) return;
    const size_t at = rv_kv_snapshot(kv, n, &to);
    SIM_CHECK(s, at <= n);
    if (at) memcpy(to, &q->hash[len + at], sizeof *q->hash);
    memcpy(state, &q->hash[len + n], sizeof *q->hash);
}

void sim_write_kv(sim *s, const sim_req *q, rv_kv *kv, size_t n) {
    write_cells(s, q, kv, n);
    advance_state(s, q, kv, n);
}

/* ---- the backend ---- */

static void check_rows(sim *s, const rv_sched_rows *g) {
    const sim_req *q = g->user;
    const size_t len = rv_kv_len(g->kv);
    SIM_CHECK(s, g->n > 0 && len + g->n <= q->n && g->status == RV_OK);
    SIM_CHECK(s, g->n <= s->o.sched.max_chunk);
    SIM_CHECK(s, memcmp(g->tok, q->tok + len, g->n * sizeof *g->tok) == 0);
    SIM_CHECK(s, g->choose == (len + g->n == q->n) && g->i_token == q->n - q->n_prompt);
    check_state(s, q, g->kv);
    if (s->i_step % CHECK_ALL_EVERY == 0) {
        for (size_t i = 0; i < len; i++) check_seen(s, q, g->kv, i);
    } else if (len > 0) { /* the last one, from which the model goes on, and a few others */
        check_seen(s, q, g->kv, len - 1);
        for (int i = 0; i < 2; i++) check_seen(s, q, g->kv, sim_below(s, len));
    }
}

static void choose(sim *s, rv_sched_rows *g) {
    const size_t last = rv_kv_len(g->kv) + g->n - 1;
    /* From what is stored, not from what is known. */
    const cell c = read_cell(s, g->kv, last, false);
    g->token = sim_token(c.word[0] | (uint64_t)c.word[1] << 32);
    g->end = sim_is_end(g->token);
}

rv_status sim_backend_step(void *ctx, rv_sched_rows *rows, size_t n, rv_err *err) {
    sim *s = ctx;
    size_t n_rows = 0;
    SIM_CHECK(s, n <= s->o.sched.max_running);
    for (size_t i = 0; i < n; i++) {
        n_rows += rows[i].n;
        check_rows(s, &rows[i]);
        write_cells(s, rows[i].user, rows[i].kv, rows[i].n);
    }
    SIM_CHECK(s, n_rows > 0 && n_rows <= s->o.sched.max_rows);
    if (sim_chance(s, s->o.fail_step)) return rv_fail(err, RV_EIO, "sim: no luck");
    for (size_t i = 0; i < n; i++) {
        sim_req *q = rows[i].user;
        advance_state(s, q, rows[i].kv, rows[i].n);
        if (sim_chance(s, s->o.fail_row)) {
            q->failed = true;
            rows[i].status = RV_EINTERNAL;
        }
        choose(s, &rows[i]);
    }
    return RV_OK;
}

static sim_req *find(sim *s, uint64_t id) {
    for (size_t i = 0; i < s->n_live; i++)
        if (s->live[i]->id == id) return s->live[i];
    return NULL;
}

static rv_status swap_out(void *ctx, uint64_t request, rv_kv *kv, const int32_t *tok, rv_err *err) {
    sim *s = ctx;
    sim_req *q = find(s, request);
    const size_t len = rv_kv_len(kv);
    SIM_CHECK(s, q && !q->n_saved && len > 0);
    SIM_CHECK(s, memcmp(tok, q->tok, len * sizeof *tok) == 0);
    sim_check_kv(s, q, kv);
    if (sim_chance(s, s->o.fail_swap)) return rv_fail(err, RV_EIO, "sim: no room to swap");
    q->n_saved = len;
    return RV_OK;
}

static size_t swap_in(void *ctx, uint64_t request, rv_kv *kv, const int32_t *tok, size_t n) {
    sim *s = ctx;
    sim_req *q = find(s, request);
    /* The last token is not in the cache, and may not have been reported yet. */
    SIM_CHECK(s, q && q->n_saved == n && n <= q->n && rv_kv_len(kv) == 0);
    if (sim_chance(s, s->o.fail_swap)) return 0;
    const size_t most = rv_kv_most(kv);
    for (size_t len = 0, m; len < n; len += m) {
        m = RV_MIN(most, n - len);
        if (rv_kv_reserve(kv, m, NULL, NULL) != RV_OK) return len; /* what came is right */
        sim_write_kv(s, q, kv, m);
        rv_kv_commit(kv, tok + len, m);
    }
    s->n_swapped_in++;
    return n;
}

static void swap_drop(void *ctx, uint64_t request) {
    sim *s = ctx;
    sim_req *q = find(s, request);
    SIM_CHECK(s, q && q->n_saved);
    q->n_saved = 0;
}

rv_sched_backend sim_backend(sim *s) {
    rv_sched_backend b = {.ctx = s, .step = sim_backend_step};
    if (s->o.swap) {
        b.swap_out = swap_out;
        b.swap_in = swap_in;
        b.swap_drop = swap_drop;
    }
    return b;
}
