/* Embeddings: texts through an encoder, or through a causal model whose final hidden states are
 * averaged; rows of unit length.  Short texts go through an encoder packed, one behind the other
 * and without padding: a weight that is read serves them all, and no text sees another. */
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

/* Tokens of one pack: enough that a weight's row is worth its reading, few enough that the packed
 * activations of a layer stay in cache. */
enum { PACK = 256 };

/* Texts from tok on, as many as fit in max tokens (one at least), through the encoder into out. */
static rv_status embed_pack(rv_model *m, rv_run *run, const int32_t *tok, const size_t *len,
                            size_t n_texts, size_t *ends, size_t *n_done, const rv_cancel *cancel,
                            float *out, rv_err *err) {
    const size_t e = (size_t)m->info.n_embd;
    size_t n = 0, total = 0;
    while (n < n_texts && (n == 0 || total + len[n] <= PACK)) {
        total += len[n];
        ends[n++] = total;
    }
    rv_status st = rv_encoder_forward(run, tok, ends, n, cancel, err);
    for (size_t t = 0; st == RV_OK && t < n; t++)
        pool_rows(run->x + (ends[t] - len[t]) * e, len[t], e, m->info.pooling, out + t * e);
    *n_done = n;
    return st;
}

static rv_status embed_encoder(rv_model *m, rv_run *run, const int32_t *tok, const size_t *len,
                               size_t n_texts, const rv_cancel *cancel, float *out, rv_err *err) {
    size_t *ends = rv_calloc(RV_MIN(n_texts, (size_t)PACK), sizeof *ends), n_done;
    rv_status st = ends ? RV_OK : rv_fail(err, RV_ENOMEM, "embed: out of memory");
    for (size_t t = 0; st == RV_OK && t < n_texts; t += n_done) {
        st = embed_pack(m, run, tok, len + t, n_texts - t, ends, &n_done, cancel,
                        out + t * (size_t)m->info.n_embd, err);
        for (size_t i = t; i < t + n_done; i++) tok += len[i];
    }
    rv_free(ends);
    return st;
}

rv_status rv_model_embed(rv_model *m, const int32_t *tok, const size_t *len, size_t n_texts,
                         rv_cancel *cancel, float *out, rv_err *err) {
    rv_err_clear(err);
    const size_t e = (size_t)m->info.n_embd;
    size_t longest;
    rv_run *run = NULL;
    rv_status st = check_texts(m, tok, len, n_texts, &longest, err);
    if (st != RV_OK || n_texts == 0) return st;
    const size_t cap = m->info.causal ? RV_MIN(longest, (size_t)m->info.n_batch)
                                      : RV_MAX(longest, n_texts > 1 ? (size_t)PACK : 0);
    st = rv_model_take_run(m, cap, &run, err);
    if (st != RV_OK) return st;
    if (!m->info.causal) {
        st = embed_encoder(m, run, tok, len, n_texts, cancel, out, err);
    } else {
        for (size_t t = 0; st == RV_OK && t < n_texts; tok += len[t++])
            st = embed_causal(m, run, tok, len[t], cancel, out + t * e, err);
    }
    for (size_t t = 0; st == RV_OK && t < n_texts; t++) make_unit(out + t * e, e);
    rv_model_give_run(m, run);
    return st;
}
