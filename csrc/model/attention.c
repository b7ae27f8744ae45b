/* Attention of the rows of a pass: to the cache (attention_cache.c), or of whole texts to
 * themselves.  Here is what both are made of: queries as a kernel wants them, running softmaxes and
 * how they are joined, the scratch of a thread. */
#include <math.h>

#include "model/attention.h"
#include "rvk.h"

void rv_attn_state_clear(const rv_attn_state *s) {
    memset(s->acc, 0, s->n * s->d * sizeof *s->acc);
    for (size_t h = 0; h < s->n; h++) s->top[h] = -INFINITY, s->sum[h] = 0.0f;
}

/* Queries that saw nothing of the part stay as they are. */
void rv_attn_state_join(const rv_attn_state *s, const rv_attn_state *part) {
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

void rv_attn_state_result(const rv_attn_loop *l, const rv_tile *t, size_t g,
                          const rv_attn_state *s) {
    const size_t n = l->group * l->d, ld = l->t->n_head * l->d;
    for (size_t h = 0; h < s->n; h++) {
        float *out = l->r->att + (t->row + h / l->group) * ld + g * n + h % l->group * l->d;
        const float by = 1.0f / s->sum[h];
        for (size_t i = 0; i < l->d; i++) out[i] = s->acc[h * l->d + i] * by;
    }
}

/* ---- scratch of a thread: queries in two forms, one scaled row, two states ---- */

/* Most values of a query in any form. */
static size_t row_floats(size_t d) {
    return (d + 31) / 32 * 32;
}

static size_t query_bytes(size_t d) {
    const size_t n = RV_MAX(rvk_act_bytes(row_floats(d)), d * sizeof(float));
    return (n + 63) / 64 * 64;
}

/* Floats of the queries of a tile in one form. */
static size_t form_floats(size_t group, size_t d) {
    return RV_ATTN_TILE * group * query_bytes(d) / sizeof(float);
}

size_t rv_attn_scratch_floats(const rv_net *net) {
    size_t group = 1;
    for (int32_t i = 0; i < net->n_layer; i++)
        if (net->layers[i].n_head_kv)
            group = RV_MAX(group, (size_t)(net->n_head / net->layers[i].n_head_kv));
    const size_t d = (size_t)net->head_dim;
    const size_t states = 2 * rv_attn_state_floats(RV_ATTN_TILE * group, d);
    return (2 * form_floats(group, d) + row_floats(d) + states + 15) / 16 * 16;
}

static float *scratch_of(const rv_attn_loop *l, int i_thread) {
    return l->r->scratch + (size_t)i_thread * l->r->scratch_floats;
}

float *rv_attn_room(const rv_attn_loop *l, int i_thread) {
    return scratch_of(l, i_thread) + 2 * form_floats(l->group, l->d) + row_floats(l->d);
}

rv_attn_form rv_attn_form_of(int type, bool rotated, size_t d) {
    const bool packed = rvk_attn_is_coded(type);
    const size_t w = rvk_attn_width(type, d);
    return (rv_attn_form){type, packed, rotated, w, packed ? rvk_act_bytes(w) : w * sizeof(float)};
}

uint8_t *rv_attn_queries(const rv_attn_loop *l, const rv_tile *t, size_t g, bool old,
                         int i_thread) {
    const size_t n = l->group * l->d, ld = l->t->n_head * l->d, heads = t->n * l->group;
    const rv_attn_form *form = &l->form[old];
    float *at = scratch_of(l, i_thread) + (old ? form_floats(l->group, l->d) : 0);
    float *row = scratch_of(l, i_thread) + 2 * form_floats(l->group, l->d);
    uint8_t *out = (uint8_t *)at;
    for (size_t h = 0; h < heads; h++) {
        const float *q = l->r->q + (t->row + h / l->group) * ld + g * n + h % l->group * l->d;
        float *to = form->packed ? row : at + h * l->d;
        for (size_t i = 0; i < l->d; i++) to[i] = q[i] * l->r->net->attn_scale;
        for (size_t i = l->d; i < form->w; i++) to[i] = 0.0f;
        if (form->rotated) rvk_hadamard(to, 1, form->w, form->w);
        if (form->packed) rvk.act_pack(out + h * form->stride, row, form->w);
    }
    return out;
}

/* ---- whole texts ---- */

/* Chunk: a text and a key head. */
static void attn_text(void *arg, size_t i_chunk, int i_thread) {
    const rv_attn_loop *l = arg;
    const size_t g = i_chunk % l->t->n_head_kv, i = i_chunk / l->t->n_head_kv;
    const size_t base = i ? l->t->ends[i - 1] : 0, end = l->t->ends[i];
    const size_t ld = l->t->n_head_kv * l->d;
    for (rv_tile t = {.row = base}; t.row < end; t.row += RV_ATTN_TILE) {
        t.n = RV_MIN((size_t)RV_ATTN_TILE, end - t.row);
        const size_t heads = t.n * l->group;
        const void *q = rv_attn_queries(l, &t, g, false, i_thread);
        const rv_attn_state s = rv_attn_state_at(rv_attn_room(l, i_thread), heads, l->d);
        rv_attn_state_clear(&s);
        for (size_t p = base; p < end; p += RVK_ATTN_ROWS) {
            const size_t off = p * ld + g * l->d;
            rvk.attn_rows(q, heads, l->d, l->r->k + off, l->r->v + off, ld * sizeof(float),
                          RV_MIN((size_t)RVK_ATTN_ROWS, end - p), s.top, s.sum, s.acc);
        }
        rv_attn_state_result(l, &t, g, &s);
    }
}

void rv_run_attention(rv_run *r, const rv_attn_task *t) {
    rv_attn_loop l = {.r = r, .t = t, .group = t->n_head / t->n_head_kv, .d = t->head_dim};
    if (t->spans) {
        rv_attn_cached(&l);
    } else {
        l.form[0] = rv_attn_form_of(RVK_F32, false, l.d);
        rv_pool_run(r->pool, t->n_text * t->n_head_kv, attn_text, &l);
    }
}
