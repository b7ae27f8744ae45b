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

/* The mean of a causal model's hidden states, in several passes where the text is long. */
static rv_status embed_causal(rv_model *m, rv_run *run, const int32_t *tok, size_t n,
                              const rv_cancel *cancel, float *out, rv_err *err) {
    const size_t e = (size_t)m->info.n_embd;
    rv_kv *kv = NULL;
    double *sum = rv_calloc(e, sizeof *sum);
    rv_status st = sum ? RV_OK : rv_fail(err, RV_ENOMEM, "embed: out of memory");
    if (st == RV_OK) st = rv_kv_new_apart(&kv, m->kv, err);
    for (size_t done = 0; st == RV_OK && done < n;) {
        const size_t c = RV_MIN(n - done, rv_model_max_rows(m));
        const rv_span span = {kv, tok + done, c};
        st = rv_kv_reserve(kv, c, m->pool, err);
        if (st == RV_OK) st = rv_decoder_forward(run, &span, 1, cancel, err);
        if (st != RV_OK) break;
        rv_kv_commit(kv, span.tok, c);
        for (size_t t = 0; t < c; t++)
            for (size_t i = 0; i < e; i++) sum[i] += run->x[t * e + i];
        done += c;
    }
    for (size_t i = 0; st == RV_OK && i < e; i++) out[i] = (float)(sum[i] / (double)n);
    rv_kv_free(&kv);
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

/* PACK: tokens of one pass; enough that a weight's row is worth its reading, few enough that the
 * packed activations of a layer stay in cache.  Where there is more than SHARE tokens for each
 * thread, each takes passes of its own; after WAVE of them other callers have their turn. */
enum { PACK = 128, SHARE = 64, WAVE = 2 };

typedef struct pack {
    const int32_t *tok;
    const size_t *len;
    float *out;
    size_t n_texts;
} pack;

typedef struct wave {
    rv_model *m;
    rv_run **runs; /* [threads] */
    size_t *ends;  /* [threads][PACK] */
    pack *packs;   /* [WAVE * threads] */
    const rv_cancel *cancel;
    atomic_bool cancelled;
} wave;

static void embed_pack(void *arg, size_t i_pack, int i_thread) {
    wave *w = arg;
    const pack *p = &w->packs[i_pack];
    rv_run *run = w->runs[i_thread];
    const size_t e = (size_t)w->m->info.n_embd;
    size_t *ends = w->ends + (size_t)i_thread * PACK, total = 0;
    for (size_t t = 0; t < p->n_texts; t++) ends[t] = total += p->len[t];
    if (rv_encoder_forward(run, p->tok, ends, p->n_texts, w->cancel, NULL) != RV_OK) {
        atomic_store(&w->cancelled, true);
        return;
    }
    for (size_t t = 0; t < p->n_texts; t++)
        pool_rows(run->x + (ends[t] - p->len[t]) * e, p->len[t], e, w->m->info.pooling,
                  p->out + t * e);
}

/* The texts from *p on that fit in limit tokens, one at least; *p goes on behind them. */
static pack next_pack(pack *p, size_t limit, size_t e) {
    pack now = *p;
    size_t n = 0, total = 0;
    while (n < p->n_texts && (n == 0 || total + p->len[n] <= limit)) total += p->len[n++];
    now.n_texts = n;
    *p = (pack){p->tok + total, p->len + n, p->out + n * e, p->n_texts - n};
    return now;
}

/* limit: tokens of a pass; n_runs: work areas for that many, one per thread that has passes. */
static rv_status embed_packs(wave *w, pack rest, size_t limit, size_t n_runs, rv_err *err) {
    while (rest.n_texts) {
        size_t n = 0;
        while (n < WAVE * n_runs && rest.n_texts)
            w->packs[n++] = next_pack(&rest, limit, (size_t)w->m->info.n_embd);
        if (n_runs > 1)
            rv_pool_run(w->m->pool, n, embed_pack, w);
        else
            for (size_t i = 0; i < n; i++) embed_pack(w, i, 0);
        if (atomic_load(&w->cancelled)) return rv_fail(err, RV_ECANCEL, "embed: cancelled");
    }
    return RV_OK;
}

static rv_status embed_encoder(rv_model *m, pack all, size_t longest, const rv_cancel *cancel,
                               rv_err *err) {
    const size_t threads = (size_t)rv_pool_n_threads(m->pool);
    size_t total = 0;
    for (size_t t = 0; t < all.n_texts; t++) total += all.len[t];
    size_t n_passes = (total + PACK - 1) / PACK, n_runs = 1;
    if (threads > 1 && total >= threads * SHARE) {
        n_runs = threads;
        n_passes = (n_passes + threads - 1) / threads * threads;
    }
    const size_t limit = RV_MIN(total / n_passes + longest, (size_t)PACK);
    wave w = {.m = m, .cancel = cancel};
    w.runs = rv_calloc(n_runs, sizeof *w.runs);
    w.ends = rv_calloc(n_runs * PACK, sizeof *w.ends);
    w.packs = rv_calloc(WAVE * n_runs, sizeof *w.packs);
    rv_status st =
        w.runs && w.ends && w.packs ? RV_OK : rv_fail(err, RV_ENOMEM, "embed: out of memory");
    for (size_t i = 0; st == RV_OK && i < n_runs; i++)
        st = rv_model_take_run(m, RV_MAX(longest, limit), &w.runs[i], err);
    if (st == RV_OK) st = embed_packs(&w, all, limit, n_runs, err);
    for (size_t i = 0; w.runs && i < n_runs; i++)
        if (w.runs[i]) rv_model_give_run(m, w.runs[i]);
    rv_free(w.runs);
    rv_free(w.ends);
    rv_free(w.packs);
    return st;
}

static rv_status embed_texts(rv_model *m, const int32_t *tok, const size_t *len, size_t n_texts,
                             size_t longest, const rv_cancel *cancel, float *out, rv_err *err) {
    rv_run *run = NULL;
    rv_status st = rv_model_take_run(m, RV_MIN(longest, rv_model_max_rows(m)), &run, err);
    if (st != RV_OK) return st;
    for (size_t t = 0; st == RV_OK && t < n_texts; tok += len[t++])
        st = embed_causal(m, run, tok, len[t], cancel, out + t * (size_t)m->info.n_embd, err);
    rv_model_give_run(m, run);
    return st;
}

rv_status rv_model_embed(rv_model *m, const int32_t *tok, const size_t *len, size_t n_texts,
                         rv_cancel *cancel, float *out, rv_err *err) {
    rv_err_clear(err);
    const size_t e = (size_t)m->info.n_embd;
    size_t longest;
    rv_status st = check_texts(m, tok, len, n_texts, &longest, err);
    if (st != RV_OK || n_texts == 0) return st;
    st = m->info.causal ? embed_texts(m, tok, len, n_texts, longest, cancel, out, err)
                        : embed_encoder(m, (pack){tok, len, out, n_texts}, longest, cancel, err);
    for (size_t t = 0; st == RV_OK && t < n_texts; t++) make_unit(out + t * e, e);
    return st;
}
