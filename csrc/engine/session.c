/* rv_session: one sequence with its keys and values.
 *
 *   n_past tokens are in kv and, for models with short convolutions, summed up in state.
 * S1  A failed eval leaves n_past, kv and state as they were: kv because only positions from
 *     n_past on were written, state because it is copied aside first. */
#include "engine/engine.h"

struct rv_session {
    rv_model *m;
    rv_kv *kv;
    float *state, *saved; /* [rv_model_state_floats] or NULL */
    float *logits;        /* [n_vocab] of the last token */
    size_t n_ctx, n_past;
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
    const size_t n_state = rv_model_state_floats(m);
    s->logits = rv_alloc_aligned((size_t)m->info.n_vocab * 4);
    if (n_state) {
        s->state = rv_calloc(n_state, 4);
        s->saved = rv_calloc(n_state, 4);
    }
    rv_status st = RV_OK;
    if (!s->logits || (n_state && (!s->state || !s->saved)))
        st = rv_fail(err, RV_ENOMEM, "session: out of memory");
    if (st == RV_OK) st = rv_model_new_kv(m, &s->kv, err);
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
    rv_free(s->state);
    rv_free(s->saved);
    rv_free(s->logits);
    rv_model_free(&s->m);
    rv_free(s);
}

static rv_status eval_chunks(rv_session *s, rv_run *run, const int32_t *tok, size_t n, float *all,
                             const rv_cancel *cancel, rv_err *err) {
    const size_t e = (size_t)s->m->info.n_embd, v = (size_t)s->m->info.n_vocab;
    for (size_t done = 0; done < n;) {
        const size_t m = RV_MIN(n - done, (size_t)s->m->info.n_batch);
        rv_status st =
            rv_decoder_forward(run, s->kv, s->state, tok + done, m, s->n_past + done, cancel, err);
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
    if (n > s->n_ctx - s->n_past)
        return rv_fail(err, RV_EFULL,
                       "context: %zu tokens do not fit, %zu of %zu positions are left", n,
                       s->n_ctx - s->n_past, s->n_ctx);
    rv_status st = rv_model_check_ids(s->m, tok, n, err);
    rv_run *run = NULL;
    if (st == RV_OK) st = rv_kv_reserve(s->kv, s->n_past + n, err);
    if (st == RV_OK) st = rv_model_take_run(s->m, RV_MIN(n, (size_t)s->m->info.n_batch), &run, err);
    if (st != RV_OK) return st;
    const size_t state_bytes = rv_model_state_floats(s->m) * 4;
    if (state_bytes) memcpy(s->saved, s->state, state_bytes);
    st = eval_chunks(s, run, tok, n, all, cancel, err);
    rv_model_give_run(s->m, run);
    if (st == RV_OK) {
        s->n_past += n;
        s->has_logits = true;
    } else if (state_bytes) {
        memcpy(s->state, s->saved, state_bytes);
    }
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
    if (n > s->n_past)
        return rv_fail(err, RV_EARG, "truncate: to %zu, want 0 .. %zu", n, s->n_past);
    if (n == s->n_past) return RV_OK;
    if (s->state && n)
        return rv_fail(err, RV_EUNSUPPORTED,
                       "truncate: to %zu of %zu, want 0: %.*s keeps recurrent state", n, s->n_past,
                       (int)s->m->info.arch.n, s->m->info.arch.p);
    if (s->state) memset(s->state, 0, rv_model_state_floats(s->m) * 4);
    rv_kv_truncate(s->kv, n);
    s->n_past = n;
    s->has_logits = false;
    return RV_OK;
}

size_t rv_session_n_past(const rv_session *s) {
    return s->n_past;
}

size_t rv_session_room(const rv_session *s) {
    return s->n_ctx - s->n_past;
}

const float *rv_session_logits(const rv_session *s) {
    return s->has_logits ? s->logits : NULL;
}

size_t rv_session_kv_bytes(const rv_session *s) {
    return rv_kv_bytes(s->kv);
}
