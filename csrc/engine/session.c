/* rv_session: one sequence with its keys and values.
 *
 * S1  A failed eval leaves the sequence as it was.  In one pass nothing is committed before all has
 *     been computed, and the recurrent state, which is changed on the way, is copied aside first.
 *     Of several passes the first ones are committed; so that the state and what has moved to the
 *     store come back, a fork keeps the sequence as it was before them. */
#include "engine/engine.h"

struct rv_session {
    rv_model *m;
    rv_kv *kv;
    float *saved;  /* recurrent state before a pass, or NULL */
    float *logits; /* [n_vocab] of the last token */
    size_t n_ctx;
    bool has_logits;
    atomic_bool busy;
};

rv_status rv_session_new(rv_session **out, rv_model *m, int32_t n_ctx, rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    if (!m->info.causal)
        return rv_fail(err, RV_EUNSUPPORTED, "%.*s is an encoder: it embeds, it does not generate",
                       (int)m->info.arch.n, m->info.arch.p);
    if (n_ctx < 1 || n_ctx > m->info.n_ctx)
        return rv_fail(err, RV_EARG, "n_ctx: is %d, want 1 .. %d", n_ctx, m->info.n_ctx);
    rv_session *s = rv_calloc(1, sizeof *s);
    if (!s) return rv_fail(err, RV_ENOMEM, "session: out of memory");
    s->m = rv_model_ref(m);
    s->n_ctx = (size_t)n_ctx;
    const size_t state_bytes = rv_kv_cache_format(m->kv)->state_bytes;
    s->logits = rv_alloc_aligned((size_t)m->info.n_vocab * 4);
    if (state_bytes) s->saved = rv_malloc(state_bytes);
    rv_status st = RV_OK;
    if (!s->logits || (state_bytes && !s->saved))
        st = rv_fail(err, RV_ENOMEM, "session: out of memory");
    if (st == RV_OK) st = rv_kv_new(&s->kv, m->kv, NULL, err);
    if (st != RV_OK) {
        rv_session_free(&s);
        return st;
    }
    *out = s;
    return RV_OK;
}

void rv_session_free(rv_session **ps) {
    rv_session *s = *ps;
    *ps = NULL;
    if (!s) return;
    rv_kv_free(&s->kv);
    rv_free(s->saved);
    rv_free(s->logits);
    rv_model_free(&s->m);
    rv_free(s);
}

/* n tokens of a pass. */
static rv_status eval_pass(rv_session *s, rv_run *run, const int32_t *tok, size_t n,
                           const rv_cancel *cancel, rv_err *err) {
    const rv_span span = {s->kv, tok, n};
    const size_t state_bytes = rv_kv_cache_format(s->m->kv)->state_bytes;
    rv_status st = rv_kv_reserve(s->kv, n, s->m->pool, err);
    if (st != RV_OK) return st;
    if (state_bytes) memcpy(s->saved, rv_kv_state(s->kv), state_bytes);
    st = rv_decoder_forward(run, &span, 1, cancel, err);
    if (st == RV_OK)
        rv_kv_commit(s->kv, tok, n);
    else if (state_bytes)
        memcpy(rv_kv_state(s->kv), s->saved, state_bytes);
    return st;
}

static rv_status eval_passes(rv_session *s, rv_run *run, const int32_t *tok, size_t n, float *all,
                             const rv_cancel *cancel, rv_err *err) {
    const size_t e = (size_t)s->m->info.n_embd, v = (size_t)s->m->info.n_vocab;
    for (size_t done = 0; done < n;) {
        const size_t m = RV_MIN(n - done, rv_model_max_rows(s->m));
        rv_status st = eval_pass(s, run, tok + done, m, cancel, err);
        if (st != RV_OK) return st;
        if (all) rv_net_head(run, run->x, m, all + done * v);
        done += m;
        if (done < n) continue;
        if (all)
            memcpy(s->logits, all + (n - 1) * v, v * 4);
        else
            rv_net_head(run, run->x + (m - 1) * e, 1, s->logits);
    }
    return RV_OK;
}

static rv_status eval(rv_session *s, const int32_t *tok, size_t n, float *all,
                      const rv_cancel *cancel, rv_err *err) {
    if (n == 0) return rv_fail(err, RV_EARG, "tokens: there are none, want at least 1");
    const size_t room = rv_session_room(s), rows = RV_MIN(n, rv_model_max_rows(s->m));
    if (n > room)
        return rv_fail(err, RV_EFULL,
                       "context: %zu tokens do not fit, %zu of %zu positions are left", n, room,
                       s->n_ctx);
    rv_status st = rv_model_check_ids(s->m, tok, n, err);
    rv_run *run = NULL;
    rv_kv *before = NULL;
    if (st == RV_OK && n > rows) st = rv_kv_fork(&before, s->kv, err);
    if (st == RV_OK) st = rv_model_take_run(s->m, rows, &run, err);
    if (st == RV_OK) st = eval_passes(s, run, tok, n, all, cancel, err);
    if (run) rv_model_give_run(s->m, run);
    if (st == RV_OK) s->has_logits = true;
    if (st != RV_OK && before) {
        rv_kv *failed = s->kv;
        s->kv = before;
        before = failed;
    }
    rv_kv_free(&before);
    return st;
}

rv_status rv_session_eval(rv_session *s, const int32_t *tok, size_t n, float *all,
                          rv_cancel *cancel, rv_err *err) {
    rv_err_clear(err);
    if (atomic_exchange(&s->busy, true))
        return rv_fail(err, RV_ESTATE, "session: is busy in another thread");
    rv_status st = eval(s, tok, n, all, cancel, err);
    atomic_store(&s->busy, false);
    return st;
}

rv_status rv_session_truncate(rv_session *s, size_t n, rv_err *err) {
    rv_err_clear(err);
    const size_t n_past = rv_kv_len(s->kv);
    if (n > n_past) return rv_fail(err, RV_EARG, "truncate: to %zu, want 0 .. %zu", n, n_past);
    if (n == n_past) return RV_OK;
    rv_status st = rv_kv_truncate(s->kv, n, err);
    if (st == RV_OK) s->has_logits = false;
    return st;
}

size_t rv_session_n_past(const rv_session *s) {
    return rv_kv_len(s->kv);
}

size_t rv_session_room(const rv_session *s) {
    return s->n_ctx - rv_kv_len(s->kv);
}

const float *rv_session_logits(const rv_session *s) {
    return s->has_logits ? s->logits : NULL;
}

size_t rv_session_kv_bytes(const rv_session *s) {
    return rv_kv_bytes(s->kv);
}

/* ---- starting from what there is ---- */

static rv_status check_start(const rv_session *s, size_t n, rv_err *err) {
    if (n == 0) return rv_fail(err, RV_EARG, "tokens: there are none, want at least 1");
    if (n > s->n_ctx)
        return rv_fail(err, RV_EFULL, "context: %zu tokens do not fit in %zu", n, s->n_ctx);
    return RV_OK;
}

/* Put another sequence in its place. */
static void replace(rv_session *s, rv_kv *take) {
    rv_kv_free(&s->kv);
    s->kv = take;
    s->has_logits = false;
}

rv_status rv_session_start(rv_session *s, const int32_t *tok, size_t n, size_t *n_past,
                           rv_err *err) {
    rv_err_clear(err);
    *n_past = 0;
    rv_status st = check_start(s, n, err);
    if (st != RV_OK) return st;
    const size_t same = RV_MIN(rv_kv_same(s->kv, tok, n), n - 1), len = rv_kv_len(s->kv);
    const bool keeps = same == len || (same && rv_kv_truncate(s->kv, same, NULL) == RV_OK);
    if (same < len) s->has_logits = false;
    const size_t have = keeps ? same : 0;
    if (!have || rv_kv_peek(s->m->kv, NULL, tok, n) > have) {
        rv_kv *kv;
        st = rv_kv_new(&kv, s->m->kv, NULL, err);
        if (st != RV_OK) return st;
        rv_kv_match(kv, tok, n);
        replace(s, kv);
    }
    *n_past = rv_kv_len(s->kv);
    return RV_OK;
}

rv_status rv_session_fork(rv_session **out, const rv_session *s, rv_err *err) {
    *out = NULL;
    rv_session *t;
    rv_kv *kv;
    rv_status st = rv_session_new(&t, s->m, (int32_t)s->n_ctx, err);
    if (st != RV_OK) return st;
    st = rv_kv_fork(&kv, s->kv, err);
    if (st != RV_OK) {
        rv_session_free(&t);
        return st;
    }
    replace(t, kv);
    *out = t;
    return RV_OK;
}

/* ---- files ---- */

rv_status rv_session_save(rv_session *s, const char *path, rv_str digest, rv_err *err) {
    rv_err_clear(err);
    char *tag = NULL;
    rv_str t;
    rv_status st = rv_spill_tag(s->m, digest, (rv_str){0}, &tag, &t, err);
    if (st == RV_OK) st = rv_kv_save(s->kv, path, t, err);
    rv_free(tag);
    return st;
}

rv_status rv_session_load(rv_session *s, const char *path, rv_str digest, const int32_t *tok,
                          size_t n, size_t *n_past, rv_err *err) {
    rv_err_clear(err);
    *n_past = 0;
    char *tag = NULL;
    rv_str t;
    rv_kv *kv = NULL;
    rv_status st = check_start(s, n, err);
    if (st == RV_OK) st = rv_spill_tag(s->m, digest, (rv_str){0}, &tag, &t, err);
    if (st == RV_OK) st = rv_kv_new(&kv, s->m->kv, NULL, err);
    if (st == RV_OK) st = rv_kv_load(kv, path, t, tok, n, err);
    rv_free(tag);
    if (st != RV_OK) {
        rv_kv_free(&kv);
        return st;
    }
    replace(s, kv);
    *n_past = rv_kv_len(kv);
    return RV_OK;
}

/* ---- pages as they are ---- */

rv_status rv_session_page(rv_session *s, size_t i_layer, size_t i_page, rv_page_view *out,
                          rv_err *err) {
    const rv_kv_format *f = rv_kv_cache_format(s->m->kv);
    const size_t len = rv_kv_len(s->kv), n_pages = (len + RV_PAGE_TOKENS - 1) / RV_PAGE_TOKENS;
    if (i_layer >= f->n_layers)
        return rv_fail(err, RV_EARG, "layer: is %zu, want 0 .. %zu", i_layer, f->n_layers - 1);
    if (i_page >= n_pages)
        return rv_fail(err, RV_EARG, "page: is %zu, want below %zu", i_page, n_pages);
    const bool old =
        i_page * RV_PAGE_TOKENS < rv_kv_boundary(s->kv, len + 1) && rv_kv_page(s->kv, true, i_page);
    *out = (rv_page_view){.n_heads = (size_t)f->heads[i_layer],
                          .head_dim = f->head_dim,
                          .run_bytes = rv_kv_run_bytes(s->m->kv, old),
                          .type = old ? f->store : f->type,
                          .rotated = old && f->rotate,
                          .n_tokens = RV_MIN((size_t)RV_PAGE_TOKENS, len - i_page * RV_PAGE_TOKENS),
                          .cache = rv_kv_cache_ref(s->m->kv),
                          .page = rv_kv_page(s->kv, old, i_page)};
    out->at = (const char *)rv_kv_page_pin(out->cache, out->page) +
              rv_kv_page_offset(out->cache, old, i_layer, 0);
    return RV_OK;
}

void rv_page_view_free(rv_page_view *p) {
    if (p->cache) rv_kv_page_unpin(p->cache, p->page);
    rv_kv_cache_free(&p->cache);
    p->at = NULL;
}
