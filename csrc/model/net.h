/* A network: hyperparameters and weights of one model, bound to the tensors of an open GGUF, and
 * the work area in which it runs.  Weights stay in the mapping; what is not float32 but must be
 * (norms, biases) is widened once into memory the net owns.
 *
 * An architecture is a file that fills an rv_net (bind) and names the forward pass that runs it. */
#ifndef RV_NET_H
#define RV_NET_H

#include "base/base.h"
#include "base/pool.h"
#include "kv/kv.h"

/* A weight matrix [n_out][n_in] in blocks of its type; w is NULL when the model has none. */
typedef struct rv_mat {
    const uint8_t *w;
    int type;
    size_t n_in, n_out, stride; /* stride: bytes per row */
    int32_t i_panels;           /* -1: never packed */
    size_t panels_at;           /* bytes into the panels of the net */
} rv_mat;

typedef struct rv_layer {
    int32_t n_head_kv; /* 0: a short convolution instead of attention */
    int32_t i_kv;      /* index among the layers that keep keys, or among the convolutions */
    const float *attn_norm, *attn_norm_b, *ffn_norm, *ffn_norm_b;
    rv_mat wq, wk, wv, wo;
    const float *bq, *bk, *bv, *bo;
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    rv_mat conv_in, conv_out;
    const float *taps; /* [n_embd][conv_l] */
    rv_mat gate, up, down;
    const float *b_up, *b_down;
} rv_layer;

typedef struct rv_net rv_net;
typedef struct rv_panels rv_panels;
typedef struct rv_run rv_run;

typedef struct rv_arch {
    const char *name;
    rv_status (*bind)(rv_net *net, rv_err *err);
} rv_arch;

struct rv_net {
    const rv_gguf *g; /* borrowed: outlives the net */
    const rv_arch *arch;
    int32_t n_vocab, n_embd, n_layer, n_head, head_dim, n_ff, n_ctx, n_rot, n_swa, conv_l;
    int32_t n_kv_layers, n_conv_layers, max_head_kv;
    bool causal, neox;
    rv_pooling pooling;
    float eps, attn_scale;
    double *inv_freq; /* [n_rot / 2] radians per position */
    float rope_gain;  /* on cosines and sines (YaRN's attention factor) */
    rv_mat tok_embd, pos_embd, type_embd, output;
    const float *embd_norm, *embd_norm_b, *output_norm, *output_b;
    rv_layer *layers;
    float **owned; /* widened vectors */
    size_t n_owned, cap_owned;
    bool *used;        /* [tensors of the file] bound to something */
    bool fast;         /* inputs of products are rounded where rvk.mul_rounded takes them */
    rv_panels *panels; /* NULL: products read the rows of the file */
};

/* Bind the model of an open file.  Errors: see rv_model_open. */
rv_status rv_net_new(rv_net **out, const rv_gguf *g, rv_err *err);
void rv_net_free(rv_net **net);
/* Call fn for every matrix that a pass multiplies. */
void rv_net_each_mat(rv_net *net, void (*fn)(rv_mat *m, void *arg), void *arg);
/* Round the inputs of products where that is quicker; net->fast says whether it is anywhere. */
void rv_net_set_fast(rv_net *net);

/* ---- what bind functions are written with (bind.c) ---- */

/* <arch>.<key> as an integer in [lo, hi]; def < lo means the key is required. */
rv_status rv_meta_int(const rv_net *net, const char *key, int64_t lo, int64_t hi, int64_t def,
                      int32_t *out, rv_err *err);
/* The same as a finite float in [lo, hi]; def NAN: required. */
rv_status rv_meta_float(const rv_net *net, const char *key, double lo, double hi, double def,
                        float *out, rv_err *err);
rv_status rv_meta_bool(const rv_net *net, const char *key, bool def, bool *out, rv_err *err);
/* A string, or {NULL, 0} when there is none. */
rv_status rv_meta_str(const rv_net *net, const char *key, rv_str *out, rv_err *err);
/* An integer per layer: a scalar for all, or an array of n_layer. */
rv_status rv_meta_per_layer(const rv_net *net, const char *key, int64_t lo, int64_t hi, int64_t def,
                            int32_t *out, rv_err *err);

/* A matrix by name; optional ones may be absent (w stays NULL). */
rv_status rv_bind_mat(rv_net *net, const char *name, size_t n_out, size_t n_in, bool optional,
                      rv_mat *out, rv_err *err);
/* A float32 vector of n values (any stored type). */
rv_status rv_bind_vec(rv_net *net, const char *name, size_t n, bool optional, const float **out,
                      rv_err *err);
/* "blk.<i>.<name>", for the two functions above. */
const char *rv_blk(char buf[96], int32_t i, const char *name);

/* Sizes, heads and the token embedding. */
rv_status rv_bind_common(rv_net *net, rv_err *err);
/* What every causal decoder has: shapes, rope, embedding, norms, layers' FFN and attention. */
rv_status rv_bind_decoder(rv_net *net, rv_err *err);
rv_status rv_bind_attention(rv_net *net, int32_t i, bool biases, bool head_norms, rv_err *err);
rv_status rv_bind_rope(rv_net *net, rv_err *err);

extern const rv_arch rv_arch_llama, rv_arch_qwen2, rv_arch_qwen3, rv_arch_lfm2, rv_arch_bert;

/* ---- packed weights (panels.c) ---- */

/* Have the products of net pack their weights; does nothing where no kernel reads panels.  always:
 * even if less than half of the available memory would stay free. */
rv_status rv_panels_new(rv_net *net, bool always, rv_err *err);
void rv_panels_free(rv_panels **s);
size_t rv_panels_bytes(const rv_panels *s); /* allocated; s may be NULL */
/* The panels of m, or NULL: multiply its rows.  With *fill set the caller packs them there, whole,
 * and then calls rv_panels_ready.  many: the pass is long enough to pack at first sight. */
const uint8_t *rv_panels_get(rv_panels *s, const rv_mat *m, bool many, uint8_t **fill);
void rv_panels_ready(rv_panels *s, const rv_mat *m);

/* ---- running (run.c) ---- */

/* Of a span in the pass under way: its first row, and where a copy of the recurrent state behind
 * n_snap of its rows goes (0: nowhere). */
typedef struct rv_span_at {
    size_t row, n_snap;
    float *snap;
} rv_span_at;

/* The work area of one caller: buffers for chunks of at most cap tokens. */
struct rv_run {
    const rv_net *net;
    rv_pool *pool;
    size_t cap;
    float *x, *y, *q, *k, *v, *att, *gate, *up; /* x, y: [cap][n_embd] */
    float *cs;                                  /* [cap][n_rot] */
    uint8_t *packed;                            /* [cap] packed activations */
    uint8_t *rounded;                           /* [cap] rounded ones; NULL unless net->fast */
    rv_span_at *at;                             /* [cap] */
    struct rv_tile *tiles;                      /* [cap] of attention, see attention.h */
    float *scratch;                             /* [n_threads] tiles of attention */
    size_t scratch_floats;
    float *parts; /* attention of a few tokens in segments, see attention_cache.c */
    size_t cap_parts;
};

rv_status rv_run_new(rv_run **out, const rv_net *net, rv_pool *pool, rv_err *err);
void rv_run_free(rv_run **run);
/* Have buffers for n tokens. */
rv_status rv_run_reserve(rv_run *run, size_t n, rv_err *err);
size_t rv_run_bytes(const rv_run *run); /* of its buffers */

/* y_j = W_j x for n rows of x ([n][n_in], ldx floats apart), all matrices in one loop. */
typedef struct rv_mm {
    const rv_mat *m;
    float *y;
    size_t ldy;
} rv_mm;
void rv_run_mm(rv_run *run, const rv_mm *jobs, size_t n_jobs, const float *x, size_t ldx, size_t n);
/* The same of one matrix with the rounding of x to 8 bits, if its type wants that, made good: what
 * it left is rounded and multiplied as well.  Overwrites x; y has room for 2 n rows. */
void rv_run_mm_fine(rv_run *run, const rv_mm *job, float *x, size_t ldx, size_t n);
/* fn(arg, i) for every token i < n, in parallel when that pays. */
void rv_run_tokens(rv_run *run, size_t n, rv_pool_fn fn, void *arg);

/* ---- forward passes ---- */

/* Some new positions of one sequence in a pass: rv_kv_len(kv) .. + n - 1, which are reserved. */
typedef struct rv_span {
    rv_kv *kv;
    const int32_t *tok; /* [n] */
    size_t n;
} rv_span;

/* The tokens of all spans, one after another (at most run->cap; no sequence twice), through all
 * layers; the normalised hidden states are left in run->x, in that order.  A row's bits do not
 * depend on the other rows; all sequences are of one cache.  Writes keys, values, recurrent state
 * and the snapshots that the sequences want, and commits nothing: that is the caller's.  RV_ECANCEL
 * leaves states half written: the caller restores them. */
rv_status rv_decoder_forward(rv_run *run, const rv_span *spans, size_t n_spans,
                             const rv_cancel *cancel, rv_err *err);
/* n_text whole texts through an encoder, one after another in tok; text t is the tokens
 * ends[t - 1] .. ends[t] - 1 (from 0), ends[n_text - 1] <= run->cap.  A text's result does not
 * depend on the others. */
rv_status rv_encoder_forward(rv_run *run, const int32_t *tok, const size_t *ends, size_t n_text,
                             const rv_cancel *cancel, rv_err *err);
/* Logits [n][n_vocab] of n hidden rows. */
void rv_net_head(rv_run *run, const float *x, size_t n, float *logits);

/* ---- attention (attention.c, attention_cache.c) ---- */

/* Attention of the query rows in run->q: spans of sequences, one after another, to the cached
 * positions before and among them; or, without spans, n_text whole texts (ends as in
 * rv_encoder_forward), each to itself. */
typedef struct rv_attn_task {
    size_t n_head, n_head_kv, head_dim, n_swa;
    const rv_span *spans;
    size_t n_spans;
    size_t i_layer; /* of the cache */
    const size_t *ends;
    size_t n_text;
} rv_attn_task;
void rv_run_attention(rv_run *run, const rv_attn_task *t);
/* The rows of run->k and run->v into the spans' positions of a layer of the cache. */
void rv_run_store_kv(rv_run *run, const rv_span *spans, size_t n_spans, size_t i_layer,
                     size_t n_head_kv);
size_t rv_attn_scratch_floats(const rv_net *net); /* per thread */

#endif
