/* The causal forward pass: pre-norm layers of attention (or LFM2's gated short convolution) and
 * SwiGLU, for a chunk of tokens at the end of a sequence. */
#include <math.h>

#include "model/net.h"
#include "rvk.h"

typedef struct pass {
    rv_run *r;
    const rv_net *net;
    const rv_layer *l;
    rv_kv *kv;
    size_t n, pos, e;
    const float *norm; /* of the next half layer */
    const float *add;  /* residual to add first, or NULL; ld_add floats per token */
    const float *bias; /* added with it, or NULL */
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
    rv_run_store_kv(r, p->kv, (size_t)l->i_kv, (size_t)l->n_head_kv, p->pos, p->n);
    const rv_attn_task t = {.n_head = (size_t)net->n_head,
                            .n_head_kv = (size_t)l->n_head_kv,
                            .head_dim = (size_t)net->head_dim,
                            .n = p->n,
                            .pos = p->pos,
                            .n_swa = (size_t)net->n_swa,
                            .kv = p->kv,
                            .i_layer = (size_t)l->i_kv};
    rv_run_attention(r, &t);
    const rv_mm out = {&l->wo, r->y, p->e};
    rv_run_mm(r, &out, 1, r->att, q, p->n);
    p->bias = l->bo;
}

static void short_conv(pass *p, float *state) {
    rv_run *r = p->r;
    const rv_layer *l = p->l;
    const size_t e = p->e;
    const rv_mm in = {&l->conv_in, r->gate, 3 * e};
    rv_run_mm(r, &in, 1, r->y, e, p->n);
    for (size_t i = 0; i < p->n; i++) {
        const float *b = r->gate + i * 3 * e, *c = b + e, *u = c + e;
        rvk.shortconv(r->att + i * e, b, c, u, l->taps, state, e, (size_t)p->net->conv_l);
    }
    const rv_mm out = {&l->conv_out, r->y, e};
    rv_run_mm(r, &out, 1, r->att, e, p->n);
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
}

static void last_norm(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    float *x = p->r->x + i * p->e;
    rvk.add(x, x, p->add + i * p->e, p->e);
    rvk.rms_norm(x, x, p->net->output_norm, p->e, p->net->eps);
}

rv_status rv_decoder_forward(rv_run *r, rv_kv *kv, float *conv, const int32_t *tok, size_t n,
                             size_t pos, const rv_cancel *cancel, rv_err *err) {
    const rv_net *net = r->net;
    pass p = {.r = r, .net = net, .kv = kv, .n = n, .pos = pos, .e = (size_t)net->n_embd};
    const size_t state = (size_t)(net->conv_l ? net->conv_l - 1 : 0) * p.e;
    for (size_t i = 0; i < n; i++) {
        embed_token(net, tok[i], r->x + i * p.e);
        rotation(net, pos + i, r->cs + i * (size_t)net->n_rot);
    }
    for (int32_t i = 0; i < net->n_layer; i++) {
        if (cancel && rv_cancel_get(cancel))
            return rv_fail(err, RV_ECANCEL, "cancelled at token %zu, layer %d", pos, i);
        p.l = &net->layers[i];
        p.norm = p.l->attn_norm;
        rv_run_tokens(r, n, residual_norm, &p);
        if (p.l->n_head_kv)
            attention(&p);
        else
            short_conv(&p, conv + (size_t)p.l->i_kv * state);
        p.add = r->y;
        p.norm = p.l->ffn_norm;
        rv_run_tokens(r, n, residual_norm, &p);
        feed_forward(&p);
        p.bias = NULL;
    }
    rv_run_tokens(r, n, last_norm, &p);
    return RV_OK;
}
