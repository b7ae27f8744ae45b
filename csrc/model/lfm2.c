/* LFM2: gated short convolutions and grouped-query attention mixed; a layer with no key heads is a
 * convolution.  The norm before the head is named token_embd_norm. */
#include "model/net.h"

static rv_status bind_conv(rv_net *net, int32_t i, rv_err *err) {
    rv_layer *l = &net->layers[i];
    const size_t e = (size_t)net->n_embd, taps = (size_t)net->conv_l;
    char b[96];
    rv_status st = rv_bind_mat(net, rv_blk(b, i, "shortconv.in_proj.weight"), 3 * e, e, false,
                               &l->conv_in, err);
    if (st == RV_OK)
        st = rv_bind_mat(net, rv_blk(b, i, "shortconv.out_proj.weight"), e, e, false, &l->conv_out,
                         err);
    if (st != RV_OK) return st;
    const rv_gguf_tensor *t = rv_gguf_find_tensor(net->g, rv_blk(b, i, "shortconv.conv.weight"));
    if (t && (t->dims[0] != taps || t->dims[1] != e))
        return rv_fail(err, RV_EFORMAT, "tensor %s: has shape [%llu, %llu], want [%zu, %zu]", b,
                       (unsigned long long)t->dims[0], (unsigned long long)t->dims[1], taps, e);
    return rv_bind_vec(net, b, e * taps, false, &l->taps, err);
}

static rv_status bind(rv_net *net, rv_err *err) {
    rv_status st = rv_bind_decoder(net, err);
    net->neox = true;
    if (st == RV_OK) st = rv_meta_int(net, "shortconv.l_cache", 1, 64, -1, &net->conv_l, err);
    if (st == RV_OK)
        st = rv_bind_vec(net, "token_embd_norm.weight", (size_t)net->n_embd, false,
                         &net->output_norm, err);
    for (int32_t i = 0; st == RV_OK && i < net->n_layer; i++)
        st = net->layers[i].n_head_kv ? rv_bind_attention(net, i, false, true, err)
                                      : bind_conv(net, i, err);
    return st;
}

const rv_arch rv_arch_lfm2 = {"lfm2", bind};
