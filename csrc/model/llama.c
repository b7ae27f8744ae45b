/* Llama (Touvron et al. 2023) and Mistral: adjacent-pair RoPE, SwiGLU, grouped keys, optional
 * biases; a sliding window where the file names one. */
#include "model/net.h"

static rv_status bind(rv_net *net, rv_err *err) {
    rv_status st = rv_bind_decoder(net, err);
    if (st == RV_OK)
        st = rv_meta_int(net, "attention.sliding_window", 0, INT32_MAX, 0, &net->n_swa, err);
    if (st == RV_OK)
        st = rv_bind_vec(net, "output_norm.weight", (size_t)net->n_embd, false, &net->output_norm,
                         err);
    for (int32_t i = 0; st == RV_OK && i < net->n_layer; i++)
        st = rv_bind_attention(net, i, false, false, err);
    return st;
}

const rv_arch rv_arch_llama = {"llama", bind};
