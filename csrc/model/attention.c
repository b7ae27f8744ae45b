/* Attention of a chunk of tokens: to the cache, or of whole texts to themselves.
 *
 * The unit of work is a key head and a tile of tokens.  In the cache, positions are walked in
 * segments of SEGMENT, and inside in blocks of RV_KV_BLOCK, that start at multiples of their size
 * whatever the tile, chunk or window: each segment starts a sum of its own and the sums are joined
 * in order, so a token's result is the same whether one thread walks all segments or each has
 * another one.  They are shared out only where heads and tiles are too few for the threads.
 *
 *   pos      0 ....... 511 | 512 ..... 1023 | 1024 ..        a tile sees [first, end) of them;
 *   sums     a blocks in     b blocks in      c              a block that every token of the tile
 *            order           order                           sees whole is one kernel call
 *   result   (a + b) + c, each rescaled to the larger maximum */
#include <math.h>

#include "model/net.h"
#include "rvk.h"

/* TILE: tokens that share one walk over the keys.  SPLIT: units of work per thread below which
 * segments are shared out. */
enum { TILE = 8, SEGMENT = 8 * RV_KV_BLOCK, SPLIT = 4 };

typedef struct attn_loop {
    rv_run *r;
    const rv_attn_task *t;
    size_t n_tiles, group, d;
    int type;            /* of the cache */
    bool packed;         /* queries are rounded to 8 bits */
    size_t q_bytes;      /* of a query for the kernel */
    size_t first, n_seg; /* segments shared out: the first, and how many; 0: not shared out */
} attn_loop;

/* A running softmax of some queries: [queries][d] weighted values, maxima, sums. */
typedef struct state {
    float *acc, *top, *sum;
    size_t n, d;
} state;

typedef struct tile {
    uint8_t *q;       /* queries [tokens][group] for the kernel */
    size_t base, len; /* a text: its first row, and its tokens */
    size_t t0, n_tok; /* tokens t0 .. t0 + n_tok - 1 of the chunk or text */
} tile;

static size_t state_floats(size_t n, size_t d) {
    return n * (d + 2);
}

static state state_at(float *at, size_t n, size_t d) {
    return (state){at, at + n * d, at + n * d + n, n, d};
}

static void state_clear(const state *s) {
    memset(s->acc, 0, s->n * s->d * sizeof *s->acc);
    for (size_t h = 0; h < s->n; h++) s->top[h] = -INFINITY, s->sum[h] = 0.0f;
}

/* Queries that saw nothing of the part stay as they are. */
static void state_join(const state *s, const state *part) {
    for (size_t h = 0; h < s->n; h++) {
        const float *from = part->acc + h * s->d;
        float *to = s->acc + h * s->d;
        if (part->sum[h] == 0.0f) continue;
        if (s->sum[h] == 0.0f) {
            memcpy(to, from, s->d * sizeof *to);
            s->top[h] = part->top[h], s->sum[h] = part->sum[h];
            continue;
        }
        const float top = s->top[h] > part->top[h] ? s->top[h] : part->top[h];
        const float a = expf(s->top[h] - top), b = expf(part->top[h] - top);
        for (size_t i = 0; i < s->d; i++) to[i] = to[i] * a + from[i] * b;
        s->sum[h] = s->sum[h] * a + part->sum[h] * b;
        s->top[h] = top;
    }
}

static void state_result(const attn_loop *l, const tile *t, size_t g, const state *s) {
    const size_t n = l->group * l->d, ld = l->t->n_head * l->d;
    for (size_t h = 0; h < s->n; h++) {
        const size_t token = t->base + t->t0 + h / l->group;
        float *out = l->r->att + token * ld + g * n + h % l->group * l->d;
        const float by = 1.0f / s->sum[h];
        for (size_t i = 0; i < l->d; i++) out[i] = s->acc[h * l->d + i] * by;
    }
}

/* ---- scratch of a thread: queries, one scaled row, a part, the whole ---- */

static size_t query_bytes(size_t d) {
    return RV_MAX(rvk_act_bytes((d + 31) / 32 * 32), d * sizeof(float));
}

size_t rv_attn_scratch_floats(const rv_net *net) {
    size_t group = 1;
    for (int32_t i = 0; i < net->n_layer; i++)
        if (net->layers[i].n_head_kv)
            group = RV_MAX(group, (size_t)(net->n_head / net->layers[i].n_head_kv));
    const size_t d = (size_t)net->head_dim, n = TILE * group;
    const size_t floats = n * query_bytes(d) / sizeof(float) + d + 2 * state_floats(n, d);
    return (floats + 15) / 16 * 16;
}

/* The queries of the tile, scaled, and rounded to 8 bits for a cache of codes. */
static float *begin_tile(const attn_loop *l, tile *t, size_t g, int i_thread) {
    const size_t n = l->group * l->d, ld = l->t->n_head * l->d, heads = t->n_tok * l->group;
    float *scratch = l->r->scratch + (size_t)i_thread * l->r->scratch_floats;
    float *row = scratch + TILE * l->group * query_bytes(l->d) / sizeof(float);
    t->q = (uint8_t *)scratch;
    for (size_t h = 0; h < heads; h++) {
        const size_t token = t->base + t->t0 + h / l->group;
        const float *q = l->r->q + token * ld + g * n + h % l->group * l->d;
        float *out = l->packed ? row : scratch + h * l->d;
        for (size_t i = 0; i < l->d; i++) out[i] = q[i] * l->r->net->attn_scale;
        if (l->packed) rvk.act_pack(t->q + h * l->q_bytes, row, l->d);
    }
    return row + l->d;
}

/* ---- the cache ---- */

static size_t first_seen(const rv_attn_task *t, size_t i) {
    const size_t p = t->pos + i;
    return t->n_swa && p + 1 > t->n_swa ? p + 1 - t->n_swa : 0;
}

/* Tokens a .. a + n_tok - 1 of the tile against positions lo .. hi - 1 of a block. */
static void walk(const attn_loop *l, const tile *t, const state *s, const void *block,
                 const void *next, size_t a, size_t n_tok, size_t lo, size_t hi) {
    const size_t h = a * l->group;
    rvk.attn[l->type](t->q + h * l->q_bytes, n_tok * l->group, l->d, block, next, lo, hi,
                      s->top + h, s->sum + h, s->acc + h * l->d);
}

static void walk_block(const attn_loop *l, const tile *t, const state *s, size_t g, size_t b) {
    const size_t start = b * RV_KV_BLOCK, pos = l->t->pos + t->t0;
    const void *block = rv_kv_block(l->t->kv, l->t->i_layer, g, b), *next = NULL;
    if (start + RV_KV_BLOCK < pos + t->n_tok) next = rv_kv_block(l->t->kv, l->t->i_layer, g, b + 1);
    if (first_seen(l->t, t->t0 + t->n_tok - 1) <= start && start + RV_KV_BLOCK <= pos + 1) {
        walk(l, t, s, block, next, 0, t->n_tok, 0, RV_KV_BLOCK);
        return;
    }
    for (size_t a = 0; a < t->n_tok; a++) {
        const size_t from = RV_MAX(start, first_seen(l->t, t->t0 + a));
        const size_t to = RV_MIN(start + RV_KV_BLOCK, pos + a + 1);
        if (from < to) walk(l, t, s, block, NULL, a, 1, from - start, to - start);
    }
}

static void walk_segment(const attn_loop *l, const tile *t, const state *s, size_t g, size_t i) {
    const size_t lo = RV_MAX(i * SEGMENT, first_seen(l->t, t->t0));
    const size_t hi = RV_MIN((i + 1) * SEGMENT, l->t->pos + t->t0 + t->n_tok);
    state_clear(s);
    for (size_t b = lo / RV_KV_BLOCK; b * RV_KV_BLOCK < hi; b++) walk_block(l, t, s, g, b);
}

/* Chunk: a tile and a key head, the tiles of a head together. */
static void attn_tile(void *arg, size_t i_chunk, int i_thread) {
    const attn_loop *l = arg;
    const size_t g = i_chunk / l->n_tiles;
    tile t = {.t0 = i_chunk % l->n_tiles * TILE};
    t.n_tok = RV_MIN((size_t)TILE, l->t->n - t.t0);
    const size_t heads = t.n_tok * l->group;
    float *at = begin_tile(l, &t, g, i_thread);
    const state whole = state_at(at, heads, l->d);
    const state part = state_at(at + state_floats(heads, l->d), heads, l->d);
    state_clear(&whole);
    const size_t end = l->t->pos + t.t0 + t.n_tok;
    for (size_t i = first_seen(l->t, t.t0) / SEGMENT; i * SEGMENT < end; i++) {
        walk_segment(l, &t, &part, g, i);
        state_join(&whole, &part);
    }
    state_result(l, &t, g, &whole);
}

/* ---- segments shared out: chunk is a key head and a segment, all tokens one tile ---- */

static state shared_part(const attn_loop *l, size_t g, size_t i) {
    const size_t heads = l->t->n * l->group;
    return state_at(l->r->parts + (g * l->n_seg + i) * state_floats(heads, l->d), heads, l->d);
}

static void attn_segment(void *arg, size_t i_chunk, int i_thread) {
    const attn_loop *l = arg;
    const size_t g = i_chunk / l->n_seg, i = i_chunk % l->n_seg;
    tile t = {.n_tok = l->t->n};
    const state part = shared_part(l, g, i);
    begin_tile(l, &t, g, i_thread);
    walk_segment(l, &t, &part, g, l->first + i);
}

static void join_segments(const attn_loop *l, size_t g) {
    const tile t = {.n_tok = l->t->n};
    const state whole = shared_part(l, g, 0);
    for (size_t i = 1; i < l->n_seg; i++) {
        const state part = shared_part(l, g, i);
        state_join(&whole, &part);
    }
    state_result(l, &t, g, &whole);
}

/* Whether to share segments out; without memory for their sums the answer is no. */
static bool share_segments(attn_loop *l) {
    const rv_attn_task *t = l->t;
    const size_t threads = (size_t)rv_pool_n_threads(l->r->pool);
    l->first = first_seen(t, 0) / SEGMENT;
    const size_t n = (t->pos + t->n - 1) / SEGMENT + 1 - l->first;
    if (threads == 1 || t->n > TILE || n == 1 || t->n_head_kv >= SPLIT * threads) return false;
    const size_t need = n * t->n_head_kv * state_floats(t->n * l->group, l->d);
    void *parts = l->r->parts;
    if (!rv_grow(&parts, &l->r->cap_parts, need, sizeof *l->r->parts)) return false;
    l->r->parts = parts;
    l->n_seg = n;
    return true;
}

/* ---- whole texts ---- */

/* Chunk: a text and a key head. */
static void attn_text(void *arg, size_t i_chunk, int i_thread) {
    const attn_loop *l = arg;
    const size_t g = i_chunk % l->t->n_head_kv, i = i_chunk / l->t->n_head_kv;
    const size_t base = i ? l->t->ends[i - 1] : 0, row = l->t->n_head_kv * l->d;
    tile t = {.base = base, .len = l->t->ends[i] - base};
    for (; t.t0 < t.len; t.t0 += TILE) {
        t.n_tok = RV_MIN((size_t)TILE, t.len - t.t0);
        const size_t heads = t.n_tok * l->group;
        const state s = state_at(begin_tile(l, &t, g, i_thread), heads, l->d);
        state_clear(&s);
        for (size_t p = 0; p < t.len; p += RVK_ATTN_ROWS) {
            const size_t off = (base + p) * row + g * l->d;
            rvk.attn_rows((const float *)(const void *)t.q, heads, l->d, l->r->k + off,
                          l->r->v + off, row * sizeof(float),
                          RV_MIN((size_t)RVK_ATTN_ROWS, t.len - p), s.top, s.sum, s.acc);
        }
        state_result(l, &t, g, &s);
    }
}

void rv_run_attention(rv_run *r, const rv_attn_task *t) {
    const size_t d = t->head_dim;
    attn_loop l = {.r = r,
                   .t = t,
                   .n_tiles = (t->n + TILE - 1) / TILE,
                   .group = t->n_head / t->n_head_kv,
                   .d = d,
                   .type = t->kv ? rv_kv_type_of(t->kv) : RVK_F32};
    l.packed = l.type != RVK_F32 && l.type != RVK_F16;
    l.q_bytes = l.packed ? rvk_act_bytes(d) : d * sizeof(float);
    if (!t->kv) {
        rv_pool_run(r->pool, t->n_text * t->n_head_kv, attn_text, &l);
    } else if (share_segments(&l)) {
        rv_pool_run(r->pool, t->n_head_kv * l.n_seg, attn_segment, &l);
        for (size_t g = 0; g < t->n_head_kv; g++) join_segments(&l, g);
    } else {
        rv_pool_run(r->pool, l.n_tiles * t->n_head_kv, attn_tile, &l);
    }
}

/* ---- storing ---- */

typedef struct store_loop {
    const rv_run *r;
    rv_kv *kv;
    size_t i_layer, n_head_kv, pos, n;
} store_loop;

static void store_head(void *arg, size_t g, int i_thread) {
    (void)i_thread;
    const store_loop *l = arg;
    const size_t d = (size_t)l->r->net->head_dim;
    rv_kv_write(l->kv, l->i_layer, g, l->pos, l->n, l->r->k + g * d, l->r->v + g * d,
                l->n_head_kv * d);
}

/* By heads and not by tokens: neighbouring positions lie in the same cache lines. */
void rv_run_store_kv(rv_run *r, rv_kv *kv, size_t i_layer, size_t n_head_kv, size_t pos, size_t n) {
    store_loop l = {r, kv, i_layer, n_head_kv, pos, n};
    if (n >= 4)
        rv_pool_run(r->pool, n_head_kv, store_head, &l);
    else
        for (size_t g = 0; g < n_head_kv; g++) store_head(&l, g, 0);
}
