/* Qwen3 (dense): half-split RoPE, a norm per head on Q and K, head size free of the width. */
#include "model/net.h"

static rv_status bind(rv_net *net, rv_err *err) {
    rv_status st = rv_bind_decoder(net, err);
    net->neox = true;
    if (st == RV_OK)
        st = rv_bind_vec(net, "output_norm.weight", (size_t)net->n_embd, false, &net->output_norm,
                         err);
    for (int32_t i = 0; st == RV_OK && i < net->n_layer; i++)
        st = rv_bind_attention(net, i, false, true, err);
    return st;
}

const rv_arch rv_arch_qwen3 = {"qwen3", bind};
