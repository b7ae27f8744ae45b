/* A tokenizer's life: built from a spec, shared by reference count, asked about its tokens. */
#include "tok/impl.h"

void rv_tok_spec_init(rv_tok_spec *s) {
    *s = (rv_tok_spec){0};
    s->bos = s->eos = s->eot = s->eom = s->unk = s->pad = s->sep = s->cls = s->mask = -1;
    s->fim_pre = s->fim_suf = s->fim_mid = s->fim_pad = s->fim_rep = s->fim_sep = -1;
    s->add_bos = s->add_eos = s->add_space_prefix = -1;
    s->remove_extra_whitespaces = s->ignore_merges = -1;
    s->lowercase = s->strip_accents = -1;
}

static rv_status no_memory(rv_err *err) {
    return rv_fail(err, RV_ENOMEM, "tokenizer: out of memory");
}

static rv_status find_kind(rv_tok *t, const rv_tok_spec *spec, rv_err *err) {
    if (rv_str_eq(spec->model, "gpt2"))
        t->kind = RV_TOK_BPE;
    else if (rv_str_eq(spec->model, "llama"))
        t->kind = RV_TOK_SPM;
    else if (rv_str_eq(spec->model, "bert"))
        t->kind = RV_TOK_WPM;
    else
        return rv_fail(err, RV_EUNSUPPORTED,
                       "tokenizer: model \"%.*s\" is not known, want gpt2, llama or bert",
                       (int)RV_MIN(spec->model.n, 60), spec->model.p);
    return RV_OK;
}

static rv_status copy_tokens(rv_tok *t, const rv_tok_spec *spec, rv_err *err) {
    if (spec->n_tokens == 0 || !spec->tokens || spec->n_tokens >= INT32_MAX)
        return rv_fail(err, RV_EFORMAT, "tokenizer: %zu tokens, want 1 .. %d", spec->n_tokens,
                       INT32_MAX - 1);
    t->n_vocab = spec->n_tokens;
    t->type = rv_malloc(t->n_vocab);
    t->flags = rv_calloc(t->n_vocab, 1);
    if (!t->type || !t->flags || !rv_strtab_init(&t->by_text, t->n_vocab, t->seed))
        return no_memory(err);
    for (size_t i = 0; i < t->n_vocab; i++) {
        rv_str s = spec->tokens[i];
        int32_t type = spec->types ? spec->types[i] : RV_TOK_NORMAL;
        if (s.n > RV_TOK_MAX_TEXT)
            return rv_fail(err, RV_EFORMAT, "tokenizer: token %zu has %zu bytes, want at most %zu",
                           i, s.n, RV_TOK_MAX_TEXT);
        t->type[i] = (uint8_t)(type < 1 || type > RV_TOK_BYTE ? RV_TOK_UNUSED : type);
        if (!rv_strs_add(&t->text, s.p, s.n)) return no_memory(err);
        /* an empty token has no spelling to be found by */
        if (s.n && !rv_strtab_put(&t->by_text, &t->text, (uint32_t)i)) return no_memory(err);
    }
    return RV_OK;
}

static rv_status copy_info(rv_tok *t, const rv_tok_spec *spec, rv_err *err) {
    size_t n_pre = spec->pre.n, n_model = spec->model.n, n;
    if (__builtin_add_overflow(n_pre, n_model, &n) || !(t->names = rv_malloc(n + 1)))
        return no_memory(err);
    memcpy(t->names, spec->model.p, n_model);
    if (n_pre) memcpy(t->names + n_model, spec->pre.p, n_pre);
    t->info.model = (rv_str){t->names, n_model};
    t->info.pre = (rv_str){t->names + n_model, n_pre};
    t->info.n_vocab = (int32_t)t->n_vocab;
    bool spm = t->kind == RV_TOK_SPM, wpm = t->kind == RV_TOK_WPM;
    bool bos = t->kind == RV_TOK_BPE ? t->bpe.pre.add_bos : true;
    /* WordPiece texts always stand between [CLS] and [SEP], whatever the file says */
    t->info.add_bos = wpm || (spec->add_bos < 0 ? bos : spec->add_bos);
    t->info.add_eos = wpm || spec->add_eos > 0;
    t->info.add_space_prefix = spm && spec->add_space_prefix != 0;
    return RV_OK;
}

static rv_status init_kind(rv_tok *t, const rv_tok_spec *spec, rv_err *err) {
    switch (t->kind) {
    case RV_TOK_BPE: return rv_bpe_init(t, spec, err);
    case RV_TOK_SPM: return rv_spm_init(t, spec, err);
    default: return rv_wpm_init(t, spec, err);
    }
}

rv_status rv_tok_new(rv_tok **out, const rv_tok_spec *spec, rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    rv_tok *t = rv_calloc(1, sizeof *t);
    if (!t) return no_memory(err);
    atomic_init(&t->refs, 1);
    t->seed = rv_now_ns() * 0x9e3779b97f4a7c15u ^ (uintptr_t)t;
    rv_status st = find_kind(t, spec, err);
    if (st == RV_OK) st = copy_tokens(t, spec, err);
    if (st == RV_OK) st = rv_tok_find_specials(t, spec, err);
    if (st == RV_OK) st = init_kind(t, spec, err);
    if (st == RV_OK) st = copy_info(t, spec, err);
    if (st == RV_OK && (!rv_special_init(&t->user, t, false) ||
                        !rv_special_init(&t->all, t, true) || !rv_tok_make_pieces(t)))
        st = no_memory(err);
    if (st != RV_OK) {
        rv_tok_free(&t);
        return st;
    }
    *out = t;
    return RV_OK;
}

rv_tok *rv_tok_ref(rv_tok *t) {
    if (t) atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    return t;
}

void rv_tok_free(rv_tok **p) {
    rv_tok *t = *p;
    *p = NULL;
    if (!t || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) != 1) return;
    rv_bpe_free(&t->bpe);
    rv_spm_free(&t->spm);
    rv_wpm_free(&t->wpm);
    rv_special_free(&t->user);
    rv_special_free(&t->all);
    rv_strs_free(&t->text);
    rv_strs_free(&t->piece);
    rv_strtab_free(&t->by_text);
    rv_free(t->type);
    rv_free(t->flags);
    rv_free(t->names);
    rv_free(t);
}

const rv_tok_info *rv_tok_get_info(const rv_tok *t) {
    return &t->info;
}

static bool known(const rv_tok *t, int32_t id) {
    return id >= 0 && (size_t)id < t->n_vocab;
}

rv_str rv_tok_text(const rv_tok *t, int32_t id) {
    return known(t, id) ? rv_strs_at(&t->text, (size_t)id) : (rv_str){"", 0};
}

rv_tok_type rv_tok_type_of(const rv_tok *t, int32_t id) {
    return known(t, id) ? (rv_tok_type)t->type[id] : RV_TOK_UNUSED;
}

int32_t rv_tok_find(const rv_tok *t, const char *text, size_t n_bytes) {
    uint32_t id = n_bytes ? rv_strtab_find(&t->by_text, &t->text, text, n_bytes) : RV_TOK_NONE;
    return id == RV_TOK_NONE ? -1 : (int32_t)id;
}

bool rv_tok_is_eog(const rv_tok *t, int32_t id) {
    return known(t, id) && t->flags[id] & RV_TF_EOG;
}
