/* Text to ids: special tokens cut the text, the kind of vocabulary does the rest. */
#include "tok/impl.h"

static bool part(rv_enc *e, const uint8_t *p, size_t n, int32_t token) {
    if (token >= 0) return rv_ids_add(&e->out, token);
    switch (e->t->kind) {
    case RV_TOK_BPE: return rv_bpe_encode(e, p, n);
    case RV_TOK_SPM: return rv_spm_encode(e, p, n);
    default: return rv_wpm_encode(e, p, n);
    }
}

rv_status rv_tok_encode(const rv_tok *t, const char *text, size_t n_bytes, unsigned flags,
                        int32_t **ids, size_t *n_ids, rv_err *err) {
    rv_err_clear(err);
    *ids = NULL;
    *n_ids = 0;
    if (n_bytes > RV_TOK_MAX_TEXT)
        return rv_fail(err, RV_EARG, "encode: text has %zu bytes, want at most %zu", n_bytes,
                       RV_TOK_MAX_TEXT);
    if (flags & ~(unsigned)(RV_TOK_BOS | RV_TOK_EOS | RV_TOK_SPECIAL))
        return rv_fail(err, RV_EARG, "encode: flags are %u, want 0 .. %d", flags,
                       RV_TOK_BOS | RV_TOK_EOS | RV_TOK_SPECIAL);
    rv_enc e = {.t = t};
    int32_t bos = t->info.bos, eos = t->kind == RV_TOK_WPM ? t->info.sep : t->info.eos;
    const rv_special *special = flags & RV_TOK_SPECIAL ? &t->all : &t->user;
    bool ok = !(flags & RV_TOK_BOS) || bos < 0 || rv_ids_add(&e.out, bos);
    ok = ok && rv_special_cut(special, &e, (const uint8_t *)text, n_bytes, part);
    ok = ok && (!(flags & RV_TOK_EOS) || eos < 0 || rv_ids_add(&e.out, eos));
    rv_merge_free(&e.merge);
    rv_free(e.buf);
    rv_free(e.off);
    if (!ok) {
        rv_free(e.out.p);
        return rv_fail(err, RV_ENOMEM, "encode: out of memory for %zu bytes of text", n_bytes);
    }
    *ids = e.out.p;
    *n_ids = e.out.n;
    return RV_OK;
}
