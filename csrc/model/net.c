/* Binding a model: which architecture, what its decoder parts are called, and giving it all back.
 */
#include "model/net.h"

#include <math.h>
#include <stdio.h>

#include "rvk.h"

static const rv_arch *const ARCHS[] = {&rv_arch_llama, &rv_arch_qwen2, &rv_arch_qwen3,
                                       &rv_arch_lfm2, &rv_arch_bert};

static rv_status find_arch(rv_net *net, rv_err *err) {
    const rv_gguf_kv *kv = rv_gguf_find_kv(net->g, "general.architecture");
    if (!kv)
        return rv_fail(err, RV_EFORMAT,
                       "general.architecture: is missing, want a string such as \"llama\"");
    if (kv->type != RV_GGUF_STR)
        return rv_fail(err, RV_EFORMAT, "general.architecture: has value type %d, want a string",
                       (int)kv->type);
    for (size_t i = 0; i < RV_COUNT(ARCHS); i++) {
        const char *name = ARCHS[i]->name;
        if (strlen(name) == kv->s.n && memcmp(name, kv->s.p, kv->s.n) == 0) {
            net->arch = ARCHS[i];
            return RV_OK;
        }
    }
    return rv_fail(err, RV_EUNSUPPORTED,
                   "general.architecture: is \"%.*s\", want llama, qwen2, qwen3, lfm2 or bert",
                   (int)RV_MIN(kv->s.n, (size_t)60), kv->s.p);
}

/* A tensor that nothing was bound to is a part of the model we do not know: to go on without it
 * would give wrong answers without a word. */
static rv_status check_all_used(const rv_net *net, rv_err *err) {
    for (uint64_t i = 0; i < rv_gguf_n_tensors(net->g); i++) {
        if (net->used[i]) continue;
        const rv_str name = rv_gguf_tensor_at(net->g, i)->name;
        return rv_fail(err, RV_EUNSUPPORTED,
                       "tensor %.*s: is not a part of %s that this build knows, want it absent",
                       (int)RV_MIN(name.n, (size_t)80), name.p, net->arch->name);
    }
    return RV_OK;
}

rv_status rv_net_new(rv_net **out, const rv_gguf *g, rv_err *err) {
    *out = NULL;
    rv_init();
    rv_net *net = rv_calloc(1, sizeof *net);
    if (!net) return rv_fail(err, RV_ENOMEM, "model: out of memory");
    net->g = g;
    rv_status st = find_arch(net, err);
    net->used = rv_calloc((size_t)rv_gguf_n_tensors(g) + 1, sizeof *net->used);
    if (st == RV_OK && !net->used) st = rv_fail(err, RV_ENOMEM, "model: out of memory");
    if (st == RV_OK) st = net->arch->bind(net, err);
    if (st == RV_OK) st = check_all_used(net, err);
    if (st != RV_OK) {
        rv_net_free(&net);
        return st;
    }
    *out = net;
    return RV_OK;
}

void rv_net_free(rv_net **pnet) {
    rv_net *net = *pnet;
    *pnet = NULL;
    if (!net) return;
    for (size_t i = 0; i < net->n_owned; i++) rv_free(net->owned[i]);
    rv_free(net->owned);
    rv_free(net->inv_freq);
    rv_panels_free(&net->panels);
    rv_free(net->layers);
    rv_free(net->used);
    rv_free(net);
}

void rv_net_each_mat(rv_net *net, void (*fn)(rv_mat *m, void *arg), void *arg) {
    for (int32_t i = 0; i < net->n_layer; i++) {
        rv_layer *l = &net->layers[i];
        rv_mat *const all[] = {&l->wq,       &l->wk,   &l->wv, &l->wo,  &l->conv_in,
                               &l->conv_out, &l->gate, &l->up, &l->down};
        for (size_t k = 0; k < RV_COUNT(all); k++)
            if (all[k]->w) fn(all[k], arg);
    }
    if (net->output.w) fn(&net->output, arg);
}

static void find_rounded(rv_mat *m, void *arg) {
    bool *any = arg;
    *any |= rvk.mul_rounded[m->type] != NULL;
}

void rv_net_set_fast(rv_net *net) {
    rv_net_each_mat(net, find_rounded, &net->fast);
}

/* Sizes that every architecture names alike.  A layer has at least one tensor, so a layer count
 * beyond the tensor count is a lie, found before anything is allocated for it. */
static rv_status bind_sizes(rv_net *net, rv_err *err) {
    const int64_t n_tensors = (int64_t)RV_MIN(rv_gguf_n_tensors(net->g), (uint64_t)65536);
    const int64_t most = 1 << 24;
    rv_status st = rv_meta_int(net, "block_count", 1, RV_MAX(n_tensors, 1), -1, &net->n_layer, err);
    if (st == RV_OK) st = rv_meta_int(net, "embedding_length", 1, most, -1, &net->n_embd, err);
    if (st == RV_OK) st = rv_meta_int(net, "context_length", 1, INT32_MAX, -1, &net->n_ctx, err);
    if (st == RV_OK) st = rv_meta_int(net, "feed_forward_length", 1, most, -1, &net->n_ff, err);
    if (st == RV_OK) st = rv_meta_int(net, "attention.head_count", 1, 65536, -1, &net->n_head, err);
    if (st != RV_OK) return st;
    net->layers = rv_calloc((size_t)net->n_layer, sizeof *net->layers);
    return net->layers
               ? RV_OK
               : rv_fail(err, RV_ENOMEM, "model: out of memory for %d layers", net->n_layer);
}

static rv_status bind_heads(rv_net *net, rv_err *err) {
    char name[48];
    int32_t value_dim;
    const int32_t even = net->n_embd / net->n_head;
    rv_status st =
        rv_meta_int(net, "attention.key_length", 1, 4096, RV_MAX(even, 1), &net->head_dim, err);
    if (st == RV_OK)
        st = rv_meta_int(net, "attention.value_length", 1, 4096, net->head_dim, &value_dim, err);
    if (st != RV_OK) return st;
    if (value_dim != net->head_dim)
        return rv_fail(err, RV_EUNSUPPORTED,
                       "%s.attention.value_length: is %d, want %d like the keys", net->arch->name,
                       value_dim, net->head_dim);
    net->attn_scale = 1.0f / sqrtf((float)net->head_dim);
    st = rv_meta_float(net, "attention.scale", 0, 1e6, net->attn_scale, &net->attn_scale, err);
    int32_t *kv = rv_calloc((size_t)net->n_layer, sizeof *kv);
    if (!kv) return rv_fail(err, RV_ENOMEM, "model: out of memory");
    if (st == RV_OK)
        st = rv_meta_per_layer(net, "attention.head_count_kv", 0, 65536, net->n_head, kv, err);
    for (int32_t i = 0; st == RV_OK && i < net->n_layer; i++) {
        const int32_t n = net->layers[i].n_head_kv = kv[i];
        snprintf(name, sizeof name, "%s.attention.head_count_kv", net->arch->name);
        if (n == 0 && net->arch != &rv_arch_lfm2)
            st = rv_fail(err, RV_EFORMAT, "%s: is 0 in layer %d, want at least 1", name, i);
        else if (n > 0 && net->n_head % n)
            st = rv_fail(err, RV_EFORMAT, "%s: is %d in layer %d, want a divisor of head_count %d",
                         name, n, i, net->n_head);
        net->layers[i].i_kv = n ? net->n_kv_layers++ : net->n_conv_layers++;
        net->max_head_kv = RV_MAX(net->max_head_kv, n);
    }
    rv_free(kv);
    return st;
}

static rv_status bind_embedding(rv_net *net, rv_err *err) {
    const rv_gguf_tensor *t = rv_gguf_find_tensor(net->g, "token_embd.weight");
    if (!t) return rv_fail(err, RV_EFORMAT, "tensor token_embd.weight: is missing");
    if (t->dims[1] > INT32_MAX)
        return rv_fail(err, RV_EFORMAT, "tensor token_embd.weight: has %llu rows, want at most %d",
                       (unsigned long long)t->dims[1], INT32_MAX);
    net->n_vocab = (int32_t)t->dims[1];
    return rv_bind_mat(net, "token_embd.weight", (size_t)net->n_vocab, (size_t)net->n_embd, false,
                       &net->tok_embd, err);
}

rv_status rv_bind_common(rv_net *net, rv_err *err) {
    rv_status st = bind_sizes(net, err);
    if (st == RV_OK) st = bind_heads(net, err);
    if (st == RV_OK) st = bind_embedding(net, err);
    return st;
}

static rv_status bind_ffn(rv_net *net, int32_t i, rv_err *err) {
    rv_layer *l = &net->layers[i];
    const size_t e = (size_t)net->n_embd, f = (size_t)net->n_ff;
    char b[96];
    rv_status st = rv_bind_vec(net, rv_blk(b, i, "ffn_norm.weight"), e, false, &l->ffn_norm, err);
    if (st == RV_OK)
        st = rv_bind_mat(net, rv_blk(b, i, "ffn_gate.weight"), f, e, false, &l->gate, err);
    if (st == RV_OK) st = rv_bind_mat(net, rv_blk(b, i, "ffn_up.weight"), f, e, false, &l->up, err);
    if (st == RV_OK)
        st = rv_bind_mat(net, rv_blk(b, i, "ffn_down.weight"), e, f, false, &l->down, err);
    return st;
}

rv_status rv_bind_attention(rv_net *net, int32_t i, bool biases, bool head_norms, rv_err *err) {
    rv_layer *l = &net->layers[i];
    const size_t e = (size_t)net->n_embd, d = (size_t)net->head_dim;
    const size_t q = (size_t)net->n_head * d, kv = (size_t)l->n_head_kv * d;
    char b[96];
    rv_status st = rv_bind_mat(net, rv_blk(b, i, "attn_q.weight"), q, e, false, &l->wq, err);
    if (st == RV_OK)
        st = rv_bind_mat(net, rv_blk(b, i, "attn_k.weight"), kv, e, false, &l->wk, err);
    if (st == RV_OK)
        st = rv_bind_mat(net, rv_blk(b, i, "attn_v.weight"), kv, e, false, &l->wv, err);
    if (st == RV_OK)
        st = rv_bind_mat(net, rv_blk(b, i, "attn_output.weight"), e, q, false, &l->wo, err);
    if (st == RV_OK) st = rv_bind_vec(net, rv_blk(b, i, "attn_q.bias"), q, !biases, &l->bq, err);
    if (st == RV_OK) st = rv_bind_vec(net, rv_blk(b, i, "attn_k.bias"), kv, !biases, &l->bk, err);
    if (st == RV_OK) st = rv_bind_vec(net, rv_blk(b, i, "attn_v.bias"), kv, !biases, &l->bv, err);
    if (st == RV_OK) st = rv_bind_vec(net, rv_blk(b, i, "attn_output.bias"), e, true, &l->bo, err);
    if (st == RV_OK && head_norms)
        st = rv_bind_vec(net, rv_blk(b, i, "attn_q_norm.weight"), d, false, &l->q_norm, err);
    if (st == RV_OK && head_norms)
        st = rv_bind_vec(net, rv_blk(b, i, "attn_k_norm.weight"), d, false, &l->k_norm, err);
    return st;
}

static rv_status refuse_experts(rv_net *net, rv_err *err) {
    int32_t n;
    rv_status st = rv_meta_int(net, "expert_count", 0, INT32_MAX, 0, &n, err);
    if (st == RV_OK && n > 0)
        st = rv_fail(err, RV_EUNSUPPORTED, "%s.expert_count: is %d, want 0: no mixtures of experts",
                     net->arch->name, n);
    return st;
}

rv_status rv_bind_decoder(rv_net *net, rv_err *err) {
    char b[96];
    net->causal = true;
    rv_status st = refuse_experts(net, err);
    if (st == RV_OK) st = rv_bind_common(net, err);
    if (st == RV_OK)
        st = rv_meta_float(net, "attention.layer_norm_rms_epsilon", 0, 1, NAN, &net->eps, err);
    if (st == RV_OK) st = rv_bind_rope(net, err);
    const size_t e = (size_t)net->n_embd;
    if (st == RV_OK)
        st = rv_bind_mat(net, "output.weight", (size_t)net->n_vocab, e, true, &net->output, err);
    if (st == RV_OK && !net->output.w) net->output = net->tok_embd; /* a tied head */
    if (st == RV_OK)
        st = rv_bind_vec(net, "output.bias", (size_t)net->n_vocab, true, &net->output_b, err);
    for (int32_t i = 0; st == RV_OK && i < net->n_layer; i++) {
        st = rv_bind_vec(net, rv_blk(b, i, "attn_norm.weight"), e, false, &net->layers[i].attn_norm,
                         err);
        if (st == RV_OK) st = bind_ffn(net, i, err);
    }
    return st;
}
