/* Embeddings: texts through an encoder, or through a causal model whose final hidden states are
 * averaged; rows of unit length. */
#include <math.h>

#include "engine/engine.h"

static void pool_rows(const float *x, size_t n, size_t e, rv_pooling how, float *out) {
    if (how == RV_POOL_CLS || how == RV_POOL_LAST) {
        memcpy(out, x + (how == RV_POOL_LAST ? (n - 1) * e : 0), e * 4);
        return;
    }
    for (size_t i = 0; i < e; i++) {
        double sum = 0.0;
        for (size_t t = 0; t < n; t++) sum += x[t * e + i];
        out[i] = (float)(sum / (double)n);
    }
}

static void make_unit(float *x, size_t n) {
    double sq = 0.0;
    for (size_t i = 0; i < n; i++) sq += (double)x[i] * x[i];
    const double scale = sq > 0.0 ? 1.0 / sqrt(sq) : 0.0;
    for (size_t i = 0; i < n; i++) x[i] = (float)(x[i] * scale);
}

/* The mean over chunks of a causal model's hidden states. */
static rv_status embed_causal(rv_model *m, rv_run *run, const int32_t *tok, size_t n,
                              const rv_cancel *cancel, float *out, rv_err *err) {
    const size_t e = (size_t)m->info.n_embd, n_state = rv_model_state_floats(m);
    rv_kv *kv = NULL;
    float *state = rv_calloc(n_state + 1, 4);
    double *sum = rv_calloc(e, sizeof *sum);
    rv_status st = state && sum ? RV_OK : rv_fail(err, RV_ENOMEM, "embed: out of memory");
    if (st == RV_OK) st = rv_model_new_kv(m, &kv, err);
    if (st == RV_OK) st = rv_kv_reserve(kv, n, err);
    for (size_t done = 0; st == RV_OK && done < n;) {
        const size_t c = RV_MIN(n - done, run->cap);
        st = rv_decoder_forward(run, kv, state, tok + done, c, done, cancel, err);
        for (size_t t = 0; st == RV_OK && t < c; t++)
            for (size_t i = 0; i < e; i++) sum[i] += run->x[t * e + i];
        done += c;
    }
    for (size_t i = 0; st == RV_OK && i < e; i++) out[i] = (float)(sum[i] / (double)n);
    rv_kv_free(&kv);
    rv_free(state);
    rv_free(sum);
    return st;
}

static rv_status check_texts(const rv_model *m, const int32_t *tok, const size_t *len,
                             size_t n_texts, size_t *longest, rv_err *err) {
    *longest = 0;
    for (size_t t = 0; t < n_texts; t++) {
        if (len[t] == 0)
            return rv_fail(err, RV_EARG, "text %zu: has no tokens, want at least 1", t);
        if (len[t] > (size_t)m->info.n_ctx)
            return rv_fail(err, RV_EFULL, "text %zu: has %zu tokens, want at most %d", t, len[t],
                           m->info.n_ctx);
        rv_status st = rv_model_check_ids(m, tok, len[t], err);
        if (st != RV_OK) return st;
        tok += len[t];
        *longest = RV_MAX(*longest, len[t]);
    }
    return RV_OK;
}

rv_status rv_model_embed(rv_model *m, const int32_t *tok, const size_t *len, size_t n_texts,
                         rv_cancel *cancel, float *out, rv_err *err) {
    rv_err_clear(err);
    const size_t e = (size_t)m->info.n_embd;
    size_t longest;
    rv_run *run = NULL;
    rv_status st = check_texts(m, tok, len, n_texts, &longest, err);
    if (st != RV_OK || n_texts == 0) return st;
    const size_t cap = m->info.causal ? RV_MIN(longest, (size_t)m->info.n_batch) : longest;
    st = rv_model_take_run(m, cap, &run, err);
    if (st != RV_OK) return st;
    for (size_t t = 0; st == RV_OK && t < n_texts; t++) {
        float *row = out + t * e;
        if (m->info.causal) {
            st = embed_causal(m, run, tok, len[t], cancel, row, err);
        } else {
            st = rv_encoder_forward(run, tok, len[t], cancel, err);
            if (st == RV_OK) pool_rows(run->x, len[t], e, m->info.pooling, row);
        }
        if (st == RV_OK) make_unit(row, e);
        tok += len[t];
    }
    rv_model_give_run(m, run);
    return st;
}
