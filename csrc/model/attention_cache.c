/* Attention of sequences to the cache, and the storing of their keys and values.
 *
 * The unit of work is a key head and a tile: up to RV_ATTN_TILE neighbouring tokens of a sequence.
 * Positions are walked in segments of SEGMENT, and inside in blocks of RV_KV_BLOCK, that start at
 * multiples of their size whatever the tile, chunk or window: each segment starts a sum of its own
 * and the sums are joined in order, so a token's result is the same whether one thread walks all
 * segments or each has another one, and whatever else is in the pass.  Segments are shared out only
 * where heads and tiles are too few for the threads.
 *
 *   pos      0 ....... 511 | 512 ..... 1023 | 1024 ..        a tile sees [first, end) of them;
 *   sums     a blocks in     b blocks in      c              a block that every token of the tile
 *            order           order                           sees whole, in the same tier, is one
 *   result   (a + b) + c, each rescaled to the larger maximum     kernel call
 *
 *   tiers    store (old) ............... | tail              for the query at position p the tail
 *                                                            begins at rv_kv_boundary(p + 1), with
 *                                                            a block: no block is in both */
#include <math.h>

#include "model/attention.h"
#include "rvk.h"

_Static_assert(RV_KV_BLOCK == (int)RVK_ATTN_BLOCK, "attention reads whole blocks");
_Static_assert(RV_PAGE_TOKENS == (int)RVK_ATTN_RUN, "a page holds a run of each head");

/* SPLIT: units of work per thread below which segments are shared out.  MAX_PARTS: most floats that
 * their sums may take. */
enum { SEGMENT = 8 * RV_KV_BLOCK, SPLIT = 4, MAX_PARTS = 1 << 24 };
enum { RUNS = RV_KV_BLOCK / RV_PAGE_TOKENS };

static size_t first_seen(const rv_attn_task *t, size_t pos) {
    return t->n_swa && pos + 1 > t->n_swa ? pos + 1 - t->n_swa : 0;
}

static rv_tile tile_at(const rv_attn_loop *l, const rv_span *s, size_t i, size_t row) {
    rv_tile t = {.row = row + i, .n = RV_MIN((size_t)RV_ATTN_TILE, s->n - i), .kv = s->kv};
    t.pos = rv_kv_len(s->kv) + i;
    t.tail[0] = rv_kv_boundary(s->kv, t.pos + 1);
    t.tail[1] = rv_kv_boundary(s->kv, t.pos + t.n);
    t.first_seg = first_seen(l->t, t.pos) / SEGMENT;
    t.n_seg = (t.pos + t.n - 1) / SEGMENT + 1 - t.first_seg;
    return t;
}

/* Cut the spans into tiles; most tokens of one. */
static size_t cut_tiles(rv_attn_loop *l) {
    size_t row = 0, most = 0;
    for (size_t s = 0; s < l->t->n_spans; s++) {
        const rv_span *span = &l->t->spans[s];
        for (size_t i = 0; i < span->n; i += RV_ATTN_TILE) {
            rv_tile *t = &l->r->tiles[l->n_tiles++];
            *t = tile_at(l, span, i, row);
            t->i_seg = l->n_seg;
            l->n_seg += t->n_seg;
            most = RV_MAX(most, t->n);
        }
        row += span->n;
    }
    return most;
}

/* ---- walking the positions ---- */

/* A tile and a key head at work; q: the queries for the tail and for the store. */
typedef struct walk {
    const rv_attn_loop *l;
    const rv_tile *t;
    size_t g;
    const uint8_t *q[2];
} walk;

/* Prepares the queries in the forms that positions lo .. hi - 1 ask for. */
static walk walk_begin(const rv_attn_loop *l, const rv_tile *t, size_t g, size_t lo, size_t hi,
                       int i_thread) {
    walk w = {.l = l, .t = t, .g = g};
    if (hi > t->tail[0]) w.q[0] = rv_attn_queries(l, t, g, false, i_thread);
    if (lo < t->tail[1]) w.q[1] = rv_attn_queries(l, t, g, true, i_thread);
    return w;
}

/* Tokens a .. a + n - 1 of the tile against positions lo .. hi - 1 of a block. */
static void attend(const walk *w, const rv_attn_state *s, bool old, const void *const *runs,
                   const void *const *next, size_t a, size_t n, size_t lo, size_t hi) {
    const rv_attn_form *form = &w->l->form[old];
    const size_t h = a * w->l->group, d = w->l->d;
    rvk.attn[form->type](w->q[old] + h * form->stride, n * w->l->group, d, runs, next, lo, hi,
                         s->top + h, s->sum + h, s->acc + h * d);
}

/* The runs of block b in the tier in which the first token of the tile sees it. */
static void find_runs(const walk *w, size_t b, const void *runs[RUNS]) {
    const bool old = b * RV_KV_BLOCK < w->t->tail[0];
    rv_kv_runs(w->t->kv, old, w->l->t->i_layer, w->g, b, runs);
}

/* Block b token by token: they see different parts of it, or see it in different tiers. */
static void walk_tokens(const walk *w, const rv_attn_state *s, size_t b, const void *const *runs) {
    const rv_tile *t = w->t;
    const size_t start = b * RV_KV_BLOCK;
    const bool first = start < t->tail[0], last = start < t->tail[1];
    const void *moved[RUNS];
    if (first != last) rv_kv_runs(t->kv, last, w->l->t->i_layer, w->g, b, moved);
    for (size_t a = 0; a < t->n; a++) {
        const size_t p = t->pos + a;
        const size_t from = RV_MAX(start, first_seen(w->l->t, p));
        const size_t to = RV_MIN(start + RV_KV_BLOCK, p + 1);
        const bool old = first == last ? first : start < rv_kv_boundary(t->kv, p + 1);
        if (from < to)
            attend(w, s, old, old == first ? runs : moved, NULL, a, 1, from - start, to - start);
    }
}

static void walk_block(const walk *w, const rv_attn_state *s, size_t b, const void *const *runs,
                       const void *const *next) {
    const rv_tile *t = w->t;
    const size_t start = b * RV_KV_BLOCK;
    const bool old = start < t->tail[0], whole = start + RV_KV_BLOCK <= t->pos + 1 &&
                                                 first_seen(w->l->t, t->pos + t->n - 1) <= start;
    if (whole && old == (start < t->tail[1]))
        attend(w, s, old, runs, next, 0, t->n, 0, RV_KV_BLOCK);
    else
        walk_tokens(w, s, b, runs);
}

static void walk_segment(const walk *w, const rv_attn_state *s, size_t i) {
    const size_t end = w->t->pos + w->t->n, hi = RV_MIN((i + 1) * SEGMENT, end);
    size_t b = RV_MAX(i * SEGMENT, first_seen(w->l->t, w->t->pos)) / RV_KV_BLOCK;
    const void *runs[2][RUNS];
    rv_attn_state_clear(s);
    find_runs(w, b, runs[b % 2]);
    for (; b * RV_KV_BLOCK < hi; b++) {
        const bool more = (b + 1) * RV_KV_BLOCK < end;
        if (more) find_runs(w, b + 1, runs[(b + 1) % 2]);
        walk_block(w, s, b, runs[b % 2], more ? runs[(b + 1) % 2] : NULL);
    }
}

/* Chunk: a tile and a key head, the tiles of a head together. */
static void attn_tile(void *arg, size_t i_chunk, int i_thread) {
    const rv_attn_loop *l = arg;
    const size_t g = i_chunk / l->n_tiles;
    const rv_tile *t = &l->r->tiles[i_chunk % l->n_tiles];
    const walk w = walk_begin(l, t, g, first_seen(l->t, t->pos), t->pos + t->n, i_thread);
    const size_t heads = t->n * l->group;
    float *room = rv_attn_room(l, i_thread);
    const rv_attn_state whole = rv_attn_state_at(room, heads, l->d);
    const rv_attn_state part =
        rv_attn_state_at(room + rv_attn_state_floats(heads, l->d), heads, l->d);
    rv_attn_state_clear(&whole);
    for (size_t i = 0; i < t->n_seg; i++) {
        walk_segment(&w, &part, t->first_seg + i);
        rv_attn_state_join(&whole, &part);
    }
    rv_attn_state_result(l, t, g, &whole);
}

/* ---- segments shared out ---- */

/* The sums of segment i (counted over all tiles) and key head g. */
static rv_attn_state shared_part(const rv_attn_loop *l, const rv_tile *t, size_t g, size_t i) {
    return rv_attn_state_at(l->r->parts + (g * l->n_seg + i) * l->part_floats, t->n * l->group,
                            l->d);
}

/* The tile to which segment i of all belongs. */
static const rv_tile *tile_of_segment(const rv_attn_loop *l, size_t i) {
    size_t lo = 0, hi = l->n_tiles; /* tiles[lo].i_seg <= i < tiles[hi].i_seg */
    while (hi - lo > 1) {
        const size_t mid = lo + (hi - lo) / 2;
        if (l->r->tiles[mid].i_seg <= i)
            lo = mid;
        else
            hi = mid;
    }
    return &l->r->tiles[lo];
}

/* Chunk: a key head and a segment of a tile. */
static void attn_segment(void *arg, size_t i_chunk, int i_thread) {
    const rv_attn_loop *l = arg;
    const size_t g = i_chunk / l->n_seg, i = i_chunk % l->n_seg;
    const rv_tile *t = tile_of_segment(l, i);
    const rv_attn_state part = shared_part(l, t, g, i);
    const size_t seg = t->first_seg + i - t->i_seg;
    const size_t lo = RV_MAX(seg * SEGMENT, first_seen(l->t, t->pos));
    const walk w = walk_begin(l, t, g, lo, RV_MIN((seg + 1) * SEGMENT, t->pos + t->n), i_thread);
    walk_segment(&w, &part, seg);
}

/* Chunk: a key head and a tile. */
static void join_segments(void *arg, size_t i_chunk, int i_thread) {
    (void)i_thread;
    const rv_attn_loop *l = arg;
    const size_t g = i_chunk / l->n_tiles;
    const rv_tile *t = &l->r->tiles[i_chunk % l->n_tiles];
    const rv_attn_state whole = shared_part(l, t, g, t->i_seg);
    for (size_t i = 1; i < t->n_seg; i++) {
        const rv_attn_state part = shared_part(l, t, g, t->i_seg + i);
        rv_attn_state_join(&whole, &part);
    }
    rv_attn_state_result(l, t, g, &whole);
}

/* Whether to share segments out; without memory for their sums the answer is no. */
static bool share_segments(rv_attn_loop *l, size_t most_tokens) {
    const size_t threads = (size_t)rv_pool_n_threads(l->r->pool), heads = l->t->n_head_kv;
    if (threads == 1 || l->n_seg == l->n_tiles || l->n_tiles * heads >= SPLIT * threads)
        return false;
    l->part_floats = rv_attn_state_floats(most_tokens * l->group, l->d);
    const size_t need = l->n_seg * heads * l->part_floats;
    void *parts = l->r->parts;
    if (need > MAX_PARTS || !rv_grow(&parts, &l->r->cap_parts, need, sizeof *l->r->parts))
        return false;
    l->r->parts = parts;
    return true;
}

void rv_attn_cached(rv_attn_loop *l) {
    const rv_attn_task *t = l->t;
    const rv_kv *kv = t->spans[0].kv; /* all are of one cache */
    l->form[0] = rv_attn_form_of(rv_kv_type_of(kv, false), false, l->d);
    if (rv_kv_type_of(kv, true) >= 0)
        l->form[1] = rv_attn_form_of(rv_kv_type_of(kv, true), rv_kv_rotated(kv), l->d);
    if (!share_segments(l, cut_tiles(l))) {
        rv_pool_run(l->r->pool, l->n_tiles * t->n_head_kv, attn_tile, l);
        return;
    }
    rv_pool_run(l->r->pool, l->n_seg * t->n_head_kv, attn_segment, l);
    rv_run_tokens(l->r, l->n_tiles * t->n_head_kv, join_segments, l);
}

/* ---- storing ---- */

typedef struct store_loop {
    const rv_run *r;
    const rv_span *spans;
    size_t n_spans, i_layer, n_head_kv;
} store_loop;

static void store_head(void *arg, size_t g, int i_thread) {
    (void)i_thread;
    const store_loop *l = arg;
    const size_t d = (size_t)l->r->net->head_dim, ld = l->n_head_kv * d;
    size_t at = g * d;
    for (size_t i = 0; i < l->n_spans; i++) {
        const rv_span *s = &l->spans[i];
        rv_kv_write(s->kv, l->i_layer, g, rv_kv_len(s->kv), s->n, l->r->k + at, l->r->v + at, ld);
        at += s->n * ld;
    }
}

/* By heads and not by tokens: neighbouring positions lie in the same cache lines. */
void rv_run_store_kv(rv_run *r, const rv_span *spans, size_t n_spans, size_t i_layer,
                     size_t n_head_kv) {
    store_loop l = {r, spans, n_spans, i_layer, n_head_kv};
    size_t n = 0;
    for (size_t i = 0; i < n_spans; i++) n += spans[i].n;
    if (n >= 4)
        rv_pool_run(r->pool, n_head_kv, store_head, &l);
    else
        for (size_t g = 0; g < n_head_kv; g++) store_head(&l, g, 0);
}
