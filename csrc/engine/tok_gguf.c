/* The vocabulary of a GGUF file as a tokenizer: names of keys, types of values, nothing else.
 *
 * A key that is there must have the type it should have; only tokenizer.ggml.model and
 * tokenizer.ggml.tokens have to be there, and tokenizer.ggml.merges for "gpt2". */
#include <stdio.h>

#include "base/base.h"

#define KEY "tokenizer.ggml."

/* Keys are short literals of this file. */
static const rv_gguf_kv *find(const rv_gguf *g, const char *name) {
    char key[80];
    snprintf(key, sizeof key, KEY "%s", name);
    return rv_gguf_find_kv(g, key);
}

static const char *type_name(rv_gguf_type t) {
    static const char *const names[] = {"u8",   "i8",  "u16", "i16", "u32", "i32", "f32",
                                        "bool", "str", "arr", "u64", "i64", "f64"};
    return (size_t)t < RV_COUNT(names) ? names[t] : "?";
}

static rv_status wrong(const char *name, const rv_gguf_kv *kv, const char *want, rv_err *err) {
    bool arr = kv->type == RV_GGUF_ARR;
    return rv_fail(err, RV_EFORMAT, "gguf: " KEY "%s: found %s%s, want %s", name,
                   arr ? "array of " : "", type_name(arr ? kv->elem : kv->type), want);
}

static rv_status get_str(const rv_gguf *g, const char *name, rv_str *out, rv_err *err) {
    const rv_gguf_kv *kv = find(g, name);
    if (!kv) return RV_OK;
    if (kv->type != RV_GGUF_STR) return wrong(name, kv, "str", err);
    *out = kv->s;
    return RV_OK;
}

static bool is_unsigned(rv_gguf_type t) {
    return t == RV_GGUF_U8 || t == RV_GGUF_U16 || t == RV_GGUF_U32 || t == RV_GGUF_U64;
}

static bool is_signed(rv_gguf_type t) {
    return t == RV_GGUF_I8 || t == RV_GGUF_I16 || t == RV_GGUF_I32 || t == RV_GGUF_I64;
}

/* A token id.  Files write "none" as a missing key, -1, or the same bits unsigned. */
static rv_status get_id(const rv_gguf *g, const char *name, int64_t *out, rv_err *err) {
    const rv_gguf_kv *kv = find(g, name);
    if (!kv) return RV_OK;
    if (is_unsigned(kv->type)) {
        if (kv->type == RV_GGUF_U32 && kv->u == UINT32_MAX) return RV_OK;
        if (kv->u > INT64_MAX)
            return rv_fail(err, RV_EFORMAT, "gguf: " KEY "%s: found %llu, want a token id", name,
                           (unsigned long long)kv->u);
        *out = (int64_t)kv->u;
        return RV_OK;
    }
    if (!is_signed(kv->type)) return wrong(name, kv, "an integer", err);
    if (kv->i < -1)
        return rv_fail(err, RV_EFORMAT, "gguf: " KEY "%s: found %lld, want a token id", name,
                       (long long)kv->i);
    *out = kv->i;
    return RV_OK;
}

static rv_status get_bool(const rv_gguf *g, const char *name, int *out, rv_err *err) {
    const rv_gguf_kv *kv = find(g, name);
    if (!kv) return RV_OK;
    if (kv->type != RV_GGUF_BOOL) return wrong(name, kv, "bool", err);
    *out = kv->u != 0;
    return RV_OK;
}

/* The array under a key, or *out NULL when there is none. */
static rv_status get_array(const rv_gguf *g, const char *name, rv_gguf_type elem, rv_gguf_type or,
                           const char *want, const rv_gguf_kv **out, rv_err *err) {
    const rv_gguf_kv *kv = *out = find(g, name);
    if (kv && (kv->type != RV_GGUF_ARR || (kv->elem != elem && kv->elem != or))) {
        *out = NULL;
        return wrong(name, kv, want, err);
    }
    return RV_OK;
}

static rv_status get_strings(const rv_gguf *g, const char *name, rv_str **out, size_t *n,
                             rv_err *err) {
    const rv_gguf_kv *kv;
    rv_status st = get_array(g, name, RV_GGUF_STR, RV_GGUF_STR, "array of str", &kv, err);
    if (st != RV_OK || !kv) return st;
    if (kv->n > SIZE_MAX / sizeof **out || !(*out = rv_calloc((size_t)kv->n + 1, sizeof **out)))
        return rv_fail(err, RV_ENOMEM, "gguf: " KEY "%s: out of memory for %llu strings", name,
                       (unsigned long long)kv->n);
    uint64_t pos = 0;
    while (*n < kv->n && rv_gguf_next_str(kv, &pos, *out + *n)) ++*n;
    if (*n == kv->n) return RV_OK;
    return rv_fail(err, RV_EFORMAT, "gguf: " KEY "%s: found %zu strings, want %llu", name, *n,
                   (unsigned long long)kv->n);
}

static rv_status too_few(const char *name, const rv_gguf_kv *kv, size_t want, rv_err *err) {
    return rv_fail(err, RV_EFORMAT, "gguf: " KEY "%s: found %llu values, want %zu, one per token",
                   name, (unsigned long long)kv->n, want);
}

/* Scores and types: as many as tokens, at least. */
static rv_status get_numbers(const rv_gguf *g, rv_tok_spec *s, float **scores, int32_t **types,
                             rv_err *err) {
    const rv_gguf_kv *sc, *ty;
    rv_status st = get_array(g, "scores", RV_GGUF_F32, RV_GGUF_I32, "array of f32", &sc, err);
    if (st == RV_OK)
        st = get_array(g, "token_type", RV_GGUF_I32, RV_GGUF_U32, "array of i32", &ty, err);
    if (st != RV_OK) return st;
    if (sc && sc->n < s->n_tokens) return too_few("scores", sc, s->n_tokens, err);
    if (ty && ty->n < s->n_tokens) return too_few("token_type", ty, s->n_tokens, err);
    if ((sc && !(*scores = rv_calloc(s->n_tokens + 1, sizeof **scores))) ||
        (ty && !(*types = rv_calloc(s->n_tokens + 1, sizeof **types))))
        return rv_fail(err, RV_ENOMEM, "gguf: tokenizer: out of memory for %zu tokens",
                       s->n_tokens);
    for (size_t i = 0; sc && i < s->n_tokens; i++) {
        const uint8_t *p = sc->data + 4 * i;
        (*scores)[i] = sc->elem == RV_GGUF_F32 ? rv_lef32(p) : (float)(int32_t)rv_le32(p);
    }
    for (size_t i = 0; ty && i < s->n_tokens; i++) (*types)[i] = (int32_t)rv_le32(ty->data + 4 * i);
    s->scores = *scores;
    s->types = *types;
    return RV_OK;
}

static rv_status get_scalars(const rv_gguf *g, rv_tok_spec *s, rv_err *err) {
    const struct {
        const char *name;
        int64_t *out;
    } ids[] = {
        {"bos_token_id", &s->bos},         {"eos_token_id", &s->eos},
        {"eot_token_id", &s->eot},         {"eom_token_id", &s->eom},
        {"unknown_token_id", &s->unk},     {"padding_token_id", &s->pad},
        {"seperator_token_id", &s->sep},   {"cls_token_id", &s->cls},
        {"mask_token_id", &s->mask},       {"prefix_token_id", &s->fim_pre},
        {"suffix_token_id", &s->fim_suf},  {"middle_token_id", &s->fim_mid},
        {"fim_pre_token_id", &s->fim_pre}, {"fim_suf_token_id", &s->fim_suf},
        {"fim_mid_token_id", &s->fim_mid}, {"fim_pad_token_id", &s->fim_pad},
        {"fim_rep_token_id", &s->fim_rep}, {"fim_sep_token_id", &s->fim_sep},
    };
    const struct {
        const char *name;
        int *out;
    } bools[] = {
        {"add_bos_token", &s->add_bos},
        {"add_eos_token", &s->add_eos},
        {"add_space_prefix", &s->add_space_prefix},
        {"remove_extra_whitespaces", &s->remove_extra_whitespaces},
        {"normalizer.lowercase", &s->lowercase},
        {"normalizer.strip_accents", &s->strip_accents},
    };
    rv_status st = RV_OK;
    for (size_t i = 0; st == RV_OK && i < RV_COUNT(ids); i++)
        st = get_id(g, ids[i].name, ids[i].out, err);
    for (size_t i = 0; st == RV_OK && i < RV_COUNT(bools); i++)
        st = get_bool(g, bools[i].name, bools[i].out, err);
    return st;
}

static rv_status open(rv_tok **out, const rv_gguf *g, rv_tok_spec *s, rv_err *err) {
    rv_str *tokens = NULL, *merges = NULL;
    float *scores = NULL;
    int32_t *types = NULL;
    rv_status st = get_strings(g, "tokens", &tokens, &s->n_tokens, err);
    s->tokens = tokens;
    if (st == RV_OK && !tokens)
        st = rv_fail(err, RV_EFORMAT, "gguf: " KEY "tokens: found none, want an array of str");
    if (st == RV_OK) st = get_strings(g, "merges", &merges, &s->n_merges, err);
    s->merges = merges;
    if (st == RV_OK && !merges && s->model.n == 4 && memcmp(s->model.p, "gpt2", 4) == 0)
        st = rv_fail(err, RV_EFORMAT, "gguf: " KEY "merges: found none, want an array of str");
    if (st == RV_OK) st = get_numbers(g, s, &scores, &types, err);
    if (st == RV_OK) st = get_scalars(g, s, err);
    if (st == RV_OK) st = rv_tok_new(out, s, err);
    rv_free(tokens);
    rv_free(merges);
    rv_free(scores);
    rv_free(types);
    return st;
}

rv_status rv_tok_open(rv_tok **out, const rv_gguf *g, rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    rv_tok_spec s;
    rv_tok_spec_init(&s);
    const rv_gguf_kv *arch = rv_gguf_find_kv(g, "general.architecture");
    const rv_gguf_kv *name = rv_gguf_find_kv(g, "general.name");
    if (arch && arch->type == RV_GGUF_STR) s.arch = arch->s;
    if (name && name->type == RV_GGUF_STR) s.name = name->s;
    rv_status st = get_str(g, "model", &s.model, err);
    if (st == RV_OK && !s.model.p)
        st = rv_fail(err, RV_EFORMAT, "gguf: " KEY "model: found none, want gpt2, llama or bert");
    if (st == RV_OK) st = get_str(g, "pre", &s.pre, err);
    return st == RV_OK ? open(out, g, &s, err) : st;
}
