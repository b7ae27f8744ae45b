/* The causal forward pass: pre-norm layers of attention (or LFM2's gated short convolution) and
 * SwiGLU, for new tokens at the ends of some sequences.  Rows are shared by all but attention and
 * convolutions, which know whose row is whose. */
#include <math.h>

#include "model/net.h"
#include "rvk.h"

typedef struct pass {
    rv_run *r;
    const rv_net *net;
    const rv_layer *l;
    const rv_span *spans;
    size_t n_spans, n, e; /* n: rows of all spans */
    const float *norm;    /* of the next half layer */
    const float *add;     /* residual to add first, or NULL; ld_add floats per token */
    const float *bias;    /* added with it, or NULL */
} pass;

static void embed_token(const rv_net *net, int32_t id, float *x) {
    const rv_mat *m = &net->tok_embd;
    rvk.dequant[m->type](x, m->w + (size_t)id * m->stride, m->n_in);
}

/* cos and sin of every pair at one position. */
static void rotation(const rv_net *net, size_t pos, float *cs) {
    const size_t half = (size_t)net->n_rot / 2;
    for (size_t i = 0; i < half; i++) {
        const double a = (double)pos * net->inv_freq[i];
        cs[i] = (float)(cos(a) * net->rope_gain);
        cs[half + i] = (float)(sin(a) * net->rope_gain);
    }
}

/* x += the half layer's output; y = norm(x). */
static void residual_norm(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    float *x = p->r->x + i * p->e;
    if (p->add) rvk.add(x, x, p->add + i * p->e, p->e);
    if (p->bias) rvk.add(x, x, p->bias, p->e);
    rvk.rms_norm(p->r->y + i * p->e, x, p->norm, p->e, p->net->eps);
}

static void norm_heads(float *x, const float *g, size_t heads, size_t d, float eps) {
    for (size_t h = 0; h < heads; h++) rvk.rms_norm(x + h * d, x + h * d, g, d, eps);
}

/* Biases, head norms and rotation. */
static void finish_qkv(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const rv_net *net = p->net;
    const rv_layer *l = p->l;
    const size_t d = (size_t)net->head_dim, h = (size_t)net->n_head, g = (size_t)l->n_head_kv;
    float *q = p->r->q + i * h * d, *k = p->r->k + i * g * d, *v = p->r->v + i * g * d;
    const float *cs = p->r->cs + i * (size_t)net->n_rot;
    if (l->bq) rvk.add(q, q, l->bq, h * d);
    if (l->bk) rvk.add(k, k, l->bk, g * d);
    if (l->bv) rvk.add(v, v, l->bv, g * d);
    if (l->q_norm) norm_heads(q, l->q_norm, h, d, net->eps);
    if (l->k_norm) norm_heads(k, l->k_norm, g, d, net->eps);
    rvk.rope(q, h, d, (size_t)net->n_rot, cs, net->neox);
    rvk.rope(k, g, d, (size_t)net->n_rot, cs, net->neox);
}

static void attention(pass *p) {
    rv_run *r = p->r;
    const rv_net *net = p->net;
    const rv_layer *l = p->l;
    const size_t q = l->wq.n_out, kv = l->wk.n_out;
    const rv_mm qkv[] = {{&l->wq, r->q, q}, {&l->wk, r->k, kv}, {&l->wv, r->v, kv}};
    rv_run_mm(r, qkv, 3, r->y, p->e, p->n);
    rv_run_tokens(r, p->n, finish_qkv, p);
    rv_run_store_kv(r, p->spans, p->n_spans, (size_t)l->i_kv, (size_t)l->n_head_kv);
    const rv_attn_task t = {.n_head = (size_t)net->n_head,
                            .n_head_kv = (size_t)l->n_head_kv,
                            .head_dim = (size_t)net->head_dim,
                            .n_swa = (size_t)net->n_swa,
                            .spans = p->spans,
                            .n_spans = p->n_spans,
                            .i_layer = (size_t)l->i_kv};
    rv_run_attention(r, &t);
    const rv_mm out = {&l->wo, r->y, p->e};
    rv_run_mm(r, &out, 1, r->att, q, p->n);
    p->add = r->y;
    p->bias = l->bo;
}

/* The rows of a span through the convolution, one after another. */
static void conv_span(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const rv_span_at *at = &p->r->at[i];
    const size_t e = p->e, taps = (size_t)p->net->conv_l;
    const size_t n_state = (taps - 1) * e, off = (size_t)p->l->i_kv * n_state;
    float *state = n_state ? rv_kv_state(p->spans[i].kv) + off : NULL;
    for (size_t t = 0; t < p->spans[i].n; t++) {
        const float *b = p->r->gate + (at->row + t) * 3 * e, *c = b + e, *u = c + e;
        rvk.shortconv(p->r->att + (at->row + t) * e, b, c, u, p->l->taps, state, e, taps);
        if (t + 1 == at->n_snap) memcpy(at->snap + off, state, n_state * sizeof *state);
    }
}

/* The inner values are the product of three projections, which adds up the errors of all, and they
 * go straight into another: rounded to 8 bits both times they are most of LFM2's error. */
static void short_conv(pass *p) {
    rv_run *r = p->r;
    const rv_layer *l = p->l;
    const size_t e = p->e;
    const rv_mm in = {&l->conv_in, r->gate, 3 * e};
    rv_run_mm_fine(r, &in, r->y, e, p->n);
    rv_run_tokens(r, p->n_spans, conv_span, p);
    const rv_mm out = {&l->conv_out, r->gate, e};
    rv_run_mm_fine(r, &out, r->att, e, p->n);
    p->add = r->gate;
    p->bias = NULL;
}

static void swiglu(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const size_t f = (size_t)p->net->n_ff;
    float *g = p->r->gate + i * f;
    rvk.swiglu(g, g, p->r->up + i * f, f);
}

static void feed_forward(pass *p) {
    rv_run *r = p->r;
    const rv_layer *l = p->l;
    const size_t f = (size_t)p->net->n_ff;
    const rv_mm in[] = {{&l->gate, r->gate, f}, {&l->up, r->up, f}};
    rv_run_mm(r, in, 2, r->y, p->e, p->n);
    rv_run_tokens(r, p->n, swiglu, p);
    const rv_mm out = {&l->down, r->y, p->e};
    rv_run_mm(r, &out, 1, r->gate, f, p->n);
    p->add = r->y;
    p->bias = NULL;
}

static void last_norm(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    float *x = p->r->x + i * p->e;
    rvk.add(x, x, p->add + i * p->e, p->e);
    rvk.rms_norm(x, x, p->net->output_norm, p->e, p->net->eps);
}

/* Rows, embeddings and rotations of span i, and the snapshot that it wants. */
static void begin_span(pass *p, size_t i) {
    rv_run *r = p->r;
    const rv_span *s = &p->spans[i];
    rv_span_at *at = &r->at[i];
    const size_t pos = rv_kv_len(s->kv), row = p->n;
    at->row = row;
    at->n_snap = rv_kv_snapshot(s->kv, s->n, &at->snap);
    for (size_t t = 0; t < s->n; t++) {
        embed_token(p->net, s->tok[t], r->x + (row + t) * p->e);
        rotation(p->net, pos + t, r->cs + (row + t) * (size_t)p->net->n_rot);
    }
    p->n += s->n;
}

rv_status rv_decoder_forward(rv_run *r, const rv_span *spans, size_t n_spans,
                             const rv_cancel *cancel, rv_err *err) {
    const rv_net *net = r->net;
    pass p = {.r = r, .net = net, .spans = spans, .n_spans = n_spans, .e = (size_t)net->n_embd};
    for (size_t i = 0; i < n_spans; i++) begin_span(&p, i);
    for (int32_t i = 0; i < net->n_layer; i++) {
        if (cancel && rv_cancel_get(cancel))
            return rv_fail(err, RV_ECANCEL, "cancelled in layer %d", i);
        p.l = &net->layers[i];
        p.norm = p.l->attn_norm;
        rv_run_tokens(r, p.n, residual_norm, &p);
        if (p.l->n_head_kv)
            attention(&p);
        else
            short_conv(&p);
        p.norm = p.l->ffn_norm;
        rv_run_tokens(r, p.n, residual_norm, &p);
        feed_forward(&p);
    }
    rv_run_tokens(r, p.n, last_norm, &p);
    return RV_OK;
}
