/* BERT (Devlin et al. 2018) encoders: post-norm layers, learnt positions, attention to the whole
 * text, GELU in its tanh form. */
#include <math.h>

#include "model/net.h"
#include "rvk.h"

static rv_status bind_layer(rv_net *net, int32_t i, rv_err *err) {
    rv_layer *l = &net->layers[i];
    const size_t e = (size_t)net->n_embd, f = (size_t)net->n_ff;
    char b[96];
    rv_status st = rv_bind_attention(net, i, false, false, err);
#define VEC(name, n, field)                                                                        \
    if (st == RV_OK) st = rv_bind_vec(net, rv_blk(b, i, name), n, false, &l->field, err)
    VEC("attn_output_norm.weight", e, attn_norm);
    VEC("attn_output_norm.bias", e, attn_norm_b);
    VEC("layer_output_norm.weight", e, ffn_norm);
    VEC("layer_output_norm.bias", e, ffn_norm_b);
    VEC("ffn_up.bias", f, b_up);
    VEC("ffn_down.bias", e, b_down);
#undef VEC
    if (st == RV_OK) st = rv_bind_mat(net, rv_blk(b, i, "ffn_up.weight"), f, e, false, &l->up, err);
    if (st == RV_OK)
        st = rv_bind_mat(net, rv_blk(b, i, "ffn_down.weight"), e, f, false, &l->down, err);
    return st;
}

static rv_status bind_pooling(rv_net *net, rv_err *err) {
    int32_t pooling;
    rv_status st = rv_meta_int(net, "pooling_type", 0, 4, RV_POOL_MEAN, &pooling, err);
    if (st == RV_OK && pooling > RV_POOL_LAST)
        st = rv_fail(err, RV_EUNSUPPORTED,
                     "bert.pooling_type: is %d, want 1 (mean), 2 (CLS) or 3 (last)", pooling);
    net->pooling = pooling == RV_POOL_NONE ? RV_POOL_MEAN : (rv_pooling)pooling;
    return st;
}

static rv_status bind(rv_net *net, rv_err *err) {
    bool causal;
    rv_status st = rv_bind_common(net, err);
    if (st == RV_OK)
        st = rv_meta_float(net, "attention.layer_norm_epsilon", 0, 1, NAN, &net->eps, err);
    if (st == RV_OK) st = rv_meta_bool(net, "attention.causal", false, &causal, err);
    if (st == RV_OK && causal)
        st = rv_fail(err, RV_EUNSUPPORTED, "bert.attention.causal: is true, want false");
    if (st == RV_OK) st = bind_pooling(net, err);
    if (st != RV_OK) return st;
    const size_t e = (size_t)net->n_embd;
    const rv_gguf_tensor *types = rv_gguf_find_tensor(net->g, "token_types.weight");
    st =
        rv_bind_mat(net, "position_embd.weight", (size_t)net->n_ctx, e, false, &net->pos_embd, err);
    if (st == RV_OK && types)
        st = rv_bind_mat(net, "token_types.weight", (size_t)types->dims[1], e, false,
                         &net->type_embd, err);
    if (st == RV_OK)
        st = rv_bind_vec(net, "token_embd_norm.weight", e, false, &net->embd_norm, err);
    if (st == RV_OK)
        st = rv_bind_vec(net, "token_embd_norm.bias", e, false, &net->embd_norm_b, err);
    for (int32_t i = 0; st == RV_OK && i < net->n_layer; i++) st = bind_layer(net, i, err);
    return st;
}

const rv_arch rv_arch_bert = {"bert", bind};

typedef struct pass {
    rv_run *r;
    const rv_net *net;
    const rv_layer *l;
    size_t e, f;
    const float *g, *b, *bias; /* of the norm that follows, and of the matrix before it */
} pass;

static void add_row(const rv_mat *m, size_t i, float *x, float *tmp) {
    rvk.dequant[m->type](tmp, m->w + i * m->stride, m->n_in);
    rvk.add(x, x, tmp, m->n_in);
}

static void bias_qkv(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const rv_layer *l = p->l;
    const size_t q = l->wq.n_out, kv = l->wk.n_out;
    rv_run *r = p->r;
    if (l->bq) rvk.add(r->q + i * q, r->q + i * q, l->bq, q);
    if (l->bk) rvk.add(r->k + i * kv, r->k + i * kv, l->bk, kv);
    if (l->bv) rvk.add(r->v + i * kv, r->v + i * kv, l->bv, kv);
}

/* x = norm(x + y + bias) */
static void residual_norm(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    float *x = p->r->x + i * p->e;
    rvk.add(x, x, p->r->y + i * p->e, p->e);
    if (p->bias) rvk.add(x, x, p->bias, p->e);
    rvk.layer_norm(x, x, p->g, p->b, p->e, p->net->eps);
}

static void gelu(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const pass *p = arg;
    float *u = p->r->up + i * p->f;
    rvk.add(u, u, p->l->b_up, p->f);
    rvk.gelu(u, u, p->f);
}

static void layer(pass *p, const size_t *ends, size_t n_text) {
    const size_t n = ends[n_text - 1];
    rv_run *r = p->r;
    const rv_net *net = p->net;
    const rv_layer *l = p->l;
    const size_t q = l->wq.n_out, kv = l->wk.n_out;
    const rv_mm qkv[] = {{&l->wq, r->q, q}, {&l->wk, r->k, kv}, {&l->wv, r->v, kv}};
    rv_run_mm(r, qkv, 3, r->x, p->e, n);
    rv_run_tokens(r, n, bias_qkv, p);
    const rv_attn_task t = {.n_head = (size_t)net->n_head,
                            .n_head_kv = (size_t)l->n_head_kv,
                            .head_dim = (size_t)net->head_dim,
                            .ends = ends,
                            .n_text = n_text};
    rv_run_attention(r, &t);
    const rv_mm out = {&l->wo, r->y, p->e};
    rv_run_mm(r, &out, 1, r->att, q, n);
    p->g = l->attn_norm, p->b = l->attn_norm_b, p->bias = l->bo;
    rv_run_tokens(r, n, residual_norm, p);
    const rv_mm up = {&l->up, r->up, p->f};
    rv_run_mm(r, &up, 1, r->x, p->e, n);
    rv_run_tokens(r, n, gelu, p);
    const rv_mm down = {&l->down, r->y, p->e};
    rv_run_mm(r, &down, 1, r->up, p->f, n);
    p->g = l->ffn_norm, p->b = l->ffn_norm_b, p->bias = l->b_down;
    rv_run_tokens(r, n, residual_norm, p);
}

static void embed_text(const pass *p, const int32_t *tok, size_t first, size_t end) {
    const rv_net *net = p->net;
    for (size_t i = first; i < end; i++) {
        float *x = p->r->x + i * p->e;
        memset(x, 0, p->e * 4);
        add_row(&net->tok_embd, (size_t)tok[i], x, p->r->y);
        if (net->type_embd.w) add_row(&net->type_embd, 0, x, p->r->y);
        add_row(&net->pos_embd, i - first, x, p->r->y);
        rvk.layer_norm(x, x, net->embd_norm, net->embd_norm_b, p->e, net->eps);
    }
}

rv_status rv_encoder_forward(rv_run *r, const int32_t *tok, const size_t *ends, size_t n_text,
                             const rv_cancel *cancel, rv_err *err) {
    const rv_net *net = r->net;
    pass p = {.r = r, .net = net, .e = (size_t)net->n_embd, .f = (size_t)net->n_ff};
    for (size_t t = 0; t < n_text; t++) embed_text(&p, tok, t ? ends[t - 1] : 0, ends[t]);
    for (int32_t i = 0; i < net->n_layer; i++) {
        if (cancel && rv_cancel_get(cancel))
            return rv_fail(err, RV_ECANCEL, "cancelled in layer %d", i);
        p.l = &net->layers[i];
        layer(&p, ends, n_text);
    }
    return RV_OK;
}
