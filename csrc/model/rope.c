/* RoPE frequencies and their scaling, from metadata.
 *
 *   linear   Chen et al. 2023: positions divided by the factor
 *   yarn     Peng et al. 2023, eq. 17-23: long wavelengths interpolated, short ones kept, a ramp
 *            between, and a gain on the rotated vectors
 *   llama3   divisors per frequency, which the file carries as the tensor rope_freqs.weight */
#include <math.h>

#include "model/net.h"

typedef struct yarn {
    float factor, ext, attn, fast, slow;
    int32_t n_orig;
} yarn;

static double correction_dim(const rv_net *net, double base, int32_t n_orig, double turns) {
    return net->n_rot * log(n_orig / (turns * 2 * M_PI)) / (2 * log(base));
}

static void apply_yarn(rv_net *net, double base, const yarn *y) {
    double lo = floor(correction_dim(net, base, y->n_orig, y->fast));
    double hi = ceil(correction_dim(net, base, y->n_orig, y->slow));
    lo = fmax(lo, 0.0);
    hi = fmin(hi, net->n_rot - 1.0);
    for (int32_t i = 0; i < net->n_rot / 2; i++) {
        const double ramp = 1.0 - fmin(1.0, fmax(0.0, (i - lo) / fmax(0.001, hi - lo)));
        const double mix = ramp * y->ext; /* 1: keep the frequency; 0: interpolate it */
        net->inv_freq[i] *= (1.0 - mix) / y->factor + mix;
    }
    if (y->ext != 0.0f)
        net->rope_gain = (float)(y->attn * (1.0 + 0.1 * log(y->factor)));
    else
        net->rope_gain = y->attn;
}

static rv_status read_yarn(const rv_net *net, yarn *y, rv_err *err) {
    rv_status st = rv_meta_float(net, "rope.scaling.yarn_ext_factor", 0, 1, 1, &y->ext, err);
    if (st == RV_OK)
        st = rv_meta_float(net, "rope.scaling.attn_factor", 1e-3, 1e3, 1, &y->attn, err);
    if (st == RV_OK)
        st = rv_meta_float(net, "rope.scaling.yarn_attn_factor", 1e-3, 1e3, y->attn, &y->attn, err);
    if (st == RV_OK)
        st = rv_meta_float(net, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32, &y->fast, err);
    if (st == RV_OK)
        st = rv_meta_float(net, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1, &y->slow, err);
    if (st == RV_OK)
        st = rv_meta_int(net, "rope.scaling.original_context_length", 1, INT32_MAX, net->n_ctx,
                         &y->n_orig, err);
    return st;
}

static rv_status apply_scaling(rv_net *net, double base, rv_err *err) {
    rv_str type;
    yarn y = {.factor = 1};
    rv_status st = rv_meta_str(net, "rope.scaling.type", &type, err);
    if (st == RV_OK) st = rv_meta_float(net, "rope.scale_linear", 1e-3, 1e6, 1, &y.factor, err);
    if (st == RV_OK)
        st = rv_meta_float(net, "rope.scaling.factor", 0, 1e6, y.factor, &y.factor, err);
    if (st != RV_OK) return st;
    if (y.factor == 0.0f) y.factor = 1.0f; /* some writers say 0 for "none" */
#define IS(s) (type.n == sizeof(s) - 1 && memcmp(type.p, s, type.n) == 0)
    if (type.n == 0 || IS("linear")) {
        for (int32_t i = 0; i < net->n_rot / 2; i++) net->inv_freq[i] /= y.factor;
        return RV_OK;
    }
    if (IS("none")) return RV_OK;
    if (!IS("yarn"))
        return rv_fail(err, RV_EUNSUPPORTED,
                       "%s.rope.scaling.type: is \"%.*s\", want none, linear or yarn",
                       net->arch->name, (int)RV_MIN(type.n, (size_t)40), type.p);
#undef IS
    st = read_yarn(net, &y, err);
    if (st == RV_OK) apply_yarn(net, base, &y);
    return st;
}

rv_status rv_bind_rope(rv_net *net, rv_err *err) {
    float base;
    rv_status st =
        rv_meta_int(net, "rope.dimension_count", 0, net->head_dim, net->head_dim, &net->n_rot, err);
    if (st == RV_OK) st = rv_meta_float(net, "rope.freq_base", 1.0, 1e12, 10000, &base, err);
    if (st != RV_OK) return st;
    if (net->n_rot == 0) net->n_rot = net->head_dim; /* some writers leave 0 for "all" */
    if (net->n_rot % 2)
        return rv_fail(err, RV_EFORMAT, "%s.rope.dimension_count: is %d, want an even number",
                       net->arch->name, net->n_rot);
    const size_t half = (size_t)net->n_rot / 2;
    const float *factors;
    net->rope_gain = 1.0f;
    net->inv_freq = rv_alloc_aligned(half * sizeof *net->inv_freq);
    if (!net->inv_freq) return rv_fail(err, RV_ENOMEM, "rope: out of memory");
    for (size_t i = 0; i < half; i++) net->inv_freq[i] = pow(base, -2.0 * (double)i / net->n_rot);
    st = apply_scaling(net, base, err);
    if (st == RV_OK) st = rv_bind_vec(net, "rope_freqs.weight", half, true, &factors, err);
    if (st != RV_OK || !factors) return st;
    for (size_t i = 0; i < half; i++) {
        if (!(factors[i] > 0.0f) || isinf(factors[i]))
            return rv_fail(err, RV_EFORMAT, "tensor rope_freqs.weight: value %zu is %g, want > 0",
                           i, factors[i]);
        net->inv_freq[i] /= factors[i];
    }
    return RV_OK;
}
