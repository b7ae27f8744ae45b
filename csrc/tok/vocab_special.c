/* What the names of tokens decide: which tokens end a generation, which are control tokens even if
 * the file forgot to say so, and which swallow the white space beside them.
 *
 * Files are often silent or wrong about these, so every runtime goes by the spelling.  The names
 * below are those that published vocabularies use. */
#include "tok/impl.h"

static const char *const EOT[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\xEF\xBD\x9C"
    "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
    "<end_of_utterance>",
    NULL,
};
static const char *const EOM[] = {"<|eom_id|>", NULL};
static const char *const FIM_PRE[] = {
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<\xEF\xBD\x9C"
    "fim\xE2\x96\x81"
    "begin\xEF\xBD\x9C>",
    "<PRE>",
    "\xE2\x96\x81<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    NULL,
};
static const char *const FIM_SUF[] = {
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<\xEF\xBD\x9C"
    "fim\xE2\x96\x81hole\xEF\xBD\x9C>",
    "<SUF>",
    "\xE2\x96\x81<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    NULL,
};
static const char *const FIM_MID[] = {
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<\xEF\xBD\x9C"
    "fim\xE2\x96\x81"
    "end\xEF\xBD\x9C>",
    "<MID>",
    "\xE2\x96\x81<MID>",
    "<|code_middle|>",
    "<|middle|>",
    NULL,
};
static const char *const FIM_PAD[] = {"<|fim_pad|>", "<fim-pad>", "<fim_pad>",
                                      "<PAD>",       "[PAD]",     NULL};
static const char *const FIM_REP[] = {
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", NULL,
};
static const char *const FIM_SEP[] = {"<|file_sep|>", NULL};
/* Every one of these ends a generation, besides eos, eot, eom and the FIM pad, repo and file
 * separators. */
static const char *const EOG[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\xEF\xBD\x9C"
    "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
    "[e~[",
    NULL,
};
/* Parts of a message that are always shown. */
static const char *const SHOWN[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>",
                                    NULL};

static int32_t find(const rv_tok *t, const char *name) {
    return rv_tok_find(t, name, strlen(name));
}

/* id, or the first of the names that is a token, which becomes a control token. */
static int32_t named(rv_tok *t, int64_t id, const char *const *names) {
    if (id >= 0) return (int32_t)id;
    for (; *names; names++) {
        int32_t found = find(t, *names);
        if (found < 0) continue;
        t->type[found] = RV_TOK_CONTROL;
        return found;
    }
    return -1;
}

static void set_eog(rv_tok *t, int32_t id, bool on) {
    if (id < 0) return;
    if (on)
        t->flags[id] |= RV_TF_EOG;
    else
        t->flags[id] &= (uint8_t)~RV_TF_EOG;
}

static bool ends(const rv_tok *t, const char *name) {
    return rv_tok_is_eog(t, find(t, name));
}

static void find_eog(rv_tok *t, int32_t eom, int32_t fim_pad, int32_t fim_rep, int32_t fim_sep) {
    for (const char *const *name = EOG; *name; name++) {
        int32_t id = find(t, *name);
        if (id < 0) continue;
        t->type[id] = RV_TOK_CONTROL;
        set_eog(t, id, true);
    }
    for (const char *const *name = SHOWN; *name; name++) {
        int32_t id = find(t, *name);
        if (id >= 0) t->type[id] = RV_TOK_USER;
    }
    const int32_t ids[] = {fim_pad, fim_rep, fim_sep, t->info.eos, t->info.eot, eom};
    for (size_t i = 0; i < RV_COUNT(ids); i++) set_eog(t, ids[i], true);
    /* where a message can be called or returned, <|end|> closes only a part of it */
    if (ends(t, "<|end|>") &&
        ((ends(t, "<|return|>") && (ends(t, "<|call|>") || ends(t, "<|calls|>"))) ||
         (ends(t, "<|flush|>") && (ends(t, "<|call|>") || ends(t, "<|calls|>"))))) {
        set_eog(t, find(t, "<|end|>"), false);
        t->type[find(t, "<|end|>")] = RV_TOK_USER;
    }
    if (ends(t, "</s>") && (ends(t, "<|tool_response>") || ends(t, "<|plamo:eos|>"))) {
        set_eog(t, find(t, "</s>"), false);
        t->type[find(t, "</s>")] = RV_TOK_NORMAL;
    }
}

static bool contains(rv_str s, const char *part) { /* part in lower case; s in any */
    size_t n = strlen(part);
    for (size_t i = 0; i + n <= s.n; i++) {
        size_t k = 0;
        while (k < n &&
               (s.p[i + k] >= 'A' && s.p[i + k] <= 'Z' ? s.p[i + k] + 32 : s.p[i + k]) == part[k])
            k++;
        if (k == n) return true;
    }
    return false;
}

static void set_flag(rv_tok *t, const char *name, unsigned flag, bool on) {
    int32_t id = find(t, name);
    if (id >= 0) t->flags[id] = (uint8_t)(on ? t->flags[id] | flag : t->flags[id] & ~flag);
}

/* The file format has no place for these, so they go by the name of the model. */
static void find_strip(rv_tok *t, const rv_tok_spec *spec) {
    rv_str pre = spec->pre, arch = spec->arch, name = spec->name;
    if (contains(pre, "jina-v2-de") || contains(pre, "jina-v2-es") ||
        contains(pre, "jina-v2-code") || contains(arch, "nomic-bert-moe") ||
        contains(arch, "jina-bert-v3")) {
        set_flag(t, "<mask>", RV_TF_LSTRIP, true);
    } else if (contains(name, "phi-3") || contains(name, "phi3")) {
        for (size_t i = 0; i < t->n_vocab; i++)
            if (t->type[i] == RV_TOK_CONTROL || t->type[i] == RV_TOK_USER ||
                t->type[i] == RV_TOK_UNKNOWN)
                t->flags[i] |= RV_TF_RSTRIP;
        set_flag(t, "</s>", RV_TF_RSTRIP, true);
        set_flag(t, "<unk>", RV_TF_RSTRIP, false);
        set_flag(t, "<s>", RV_TF_RSTRIP, false);
        set_flag(t, "<|endoftext|>", RV_TF_RSTRIP, false);
    } else if (contains(name, "modern-bert")) {
        set_flag(t, "[MASK]", RV_TF_LSTRIP, true);
    }
}

/* The id a file gives, checked; or what the kind of vocabulary uses when the file is silent. */
static rv_status special_id(int32_t *out, const rv_tok *t, int64_t id, int32_t silent,
                            const char *what, rv_err *err) {
    if (id >= (int64_t)t->n_vocab || id < -1)
        return rv_fail(err, RV_EFORMAT, "tokenizer: %s token is %lld, want 0 .. %zu", what,
                       (long long)id, t->n_vocab - 1);
    *out = id >= 0 ? (int32_t)id : (size_t)silent < t->n_vocab ? silent : -1;
    return RV_OK;
}

rv_status rv_tok_find_specials(rv_tok *t, const rv_tok_spec *s, rv_err *err) {
    bool spm = t->kind == RV_TOK_SPM, wpm = t->kind == RV_TOK_WPM;
    rv_tok_info *info = &t->info;
    int32_t eom, pre, suf, mid, pad, rep, sep;
    const struct {
        int32_t *out;
        int64_t id;
        int32_t silent; /* -1: none */
        const char *what;
    } ids[] = {
        {&info->bos, s->bos, spm ? 1 : -1, "bos"},
        {&info->eos, s->eos, spm ? 2 : -1, "eos"},
        {&info->eot, s->eot, -1, "eot"},
        {&eom, s->eom, -1, "eom"},
        {&info->unk, s->unk,
         spm   ? 0
         : wpm ? 100
               : -1,
         "unknown"},
        {&info->pad, s->pad, wpm ? 0 : -1, "padding"},
        {&info->sep, s->sep, wpm ? 102 : -1, "separator"},
        {&info->cls, s->cls, wpm ? 101 : -1, "cls"},
        {&info->mask, s->mask, wpm ? 103 : -1, "mask"},
        {&pre, s->fim_pre, -1, "fim_pre"},
        {&suf, s->fim_suf, -1, "fim_suf"},
        {&mid, s->fim_mid, -1, "fim_mid"},
        {&pad, s->fim_pad, -1, "fim_pad"},
        {&rep, s->fim_rep, -1, "fim_rep"},
        {&sep, s->fim_sep, -1, "fim_sep"},
    };
    for (size_t i = 0; i < RV_COUNT(ids); i++) {
        rv_status st = special_id(ids[i].out, t, ids[i].id, ids[i].silent, ids[i].what, err);
        if (st != RV_OK) return st;
    }
    if (wpm && info->bos < 0) info->bos = info->cls;
    info->eot = named(t, info->eot, EOT);
    eom = named(t, eom, EOM);
    named(t, pre, FIM_PRE);
    named(t, suf, FIM_SUF);
    named(t, mid, FIM_MID);
    pad = named(t, pad, FIM_PAD);
    rep = named(t, rep, FIM_REP);
    sep = named(t, sep, FIM_SEP);
    find_eog(t, eom, pad, rep, sep);
    find_strip(t, s);
    return RV_OK;
}
