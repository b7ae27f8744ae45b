/* WordPiece ("bert"): words by white space and punctuation, each cut into the longest tokens.
 *
 * Words are lower-cased and stripped of accents as the vocabulary asks.  A token that starts a word
 * is spelled with U+2581 before it, others are spelled as they are (files hold it so, where
 * Hugging Face writes "##" before the others); so a word is matched as U+2581 and its characters.
 * A word with a part that no token matches is unknown as a whole.
 *
 * Decomposition keeps the first code point only, and every mark is dropped: what the published
 * GGUF tokenizers do.  It differs from Unicode's for Hangul (the first jamo stays) and for scripts
 * whose vowel signs are marks. */
#include "tok/impl.h"
#include "tok/unicode.h"

static const char WORD_START[] = "\xE2\x96\x81";
enum { WORD_START_LEN = 3 };

rv_status rv_wpm_init(rv_tok *t, const rv_tok_spec *spec, rv_err *err) {
    rv_wpm *w = &t->wpm;
    w->lowercase = spec->lowercase != 0;
    w->strip_accents = spec->strip_accents < 0 ? w->lowercase : spec->strip_accents;
    if (!rv_trie_init(&w->trie, t->seed))
        return rv_fail(err, RV_ENOMEM, "tokenizer: out of memory");
    for (size_t i = 0; i < t->n_vocab; i++) {
        rv_str text = rv_strs_at(&t->text, i);
        if (!rv_tok_from_text(t->type[i])) continue;
        if (text.n > RV_TOK_MAX_TOKEN)
            return rv_fail(err, RV_EUNSUPPORTED,
                           "tokenizer: token %zu has %zu bytes, want at most %zu", i, text.n,
                           RV_TOK_MAX_TOKEN);
        if (!rv_trie_put(&w->trie, text.p, text.n, (int32_t)i))
            return rv_fail(err, RV_ENOMEM, "tokenizer: out of memory");
    }
    return RV_OK;
}

void rv_wpm_free(rv_wpm *w) {
    rv_trie_free(&w->trie);
}

/* Longest token at the start of p: its id and length, or -1. */
static int32_t longest(const rv_trie *t, const uint8_t *p, size_t n, size_t *len) {
    int32_t best = -1;
    uint32_t v = 0;
    for (size_t i = 0; i < n; i++) {
        v = rv_trie_child(t, v, p[i]);
        if (v == RV_TOK_NONE) break;
        if (t->tok[v] < 0) continue;
        best = t->tok[v];
        *len = i + 1;
    }
    return best;
}

static bool encode_word(rv_enc *e, const uint8_t *p, size_t n) {
    const rv_tok *t = e->t;
    size_t n_before = e->out.n;
    for (size_t i = 0, len = 0; i < n; i += len) {
        int32_t id = longest(&t->wpm.trie, p + i, n - i, &len);
        if (id < 0) {
            e->out.n = n_before;
            return t->info.unk < 0 || rv_ids_add(&e->out, t->info.unk);
        }
        if (!rv_ids_add(&e->out, id)) return false;
    }
    return true;
}

/* Han characters stand alone.  The gap between the blocks E (from 2B820) and this 2B920 is in the
 * tokenizers that vocabularies were made with. */
static bool is_han(uint32_t c) {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
           (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
           (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
           (c >= 0x2F800 && c <= 0x2FA1F);
}

/* The word in e->buf[0 .. *n), whose first bytes are WORD_START. */
static bool end_word(rv_enc *e, size_t *n) {
    bool ok = *n == WORD_START_LEN || encode_word(e, e->buf, *n);
    *n = WORD_START_LEN;
    return ok;
}

static bool add_char(rv_enc *e, uint32_t cp, size_t *n) {
    if (!rv_grow((void **)&e->buf, &e->cap_buf, *n + 4, 1)) return false;
    *n += rv_uc_encode(e->t->wpm.lowercase ? rv_uc_lower(cp) : cp, e->buf + *n);
    return true;
}

bool rv_wpm_encode(rv_enc *e, const uint8_t *p, size_t n) {
    const rv_wpm *w = &e->t->wpm;
    size_t n_word = WORD_START_LEN;
    if (!rv_grow((void **)&e->buf, &e->cap_buf, 256, 1)) return false;
    memcpy(e->buf, WORD_START, WORD_START_LEN);
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        i += rv_uc_decode(p + i, n - i, &cp);
        if (w->strip_accents) cp = rv_uc_nfd_first(cp);
        unsigned cls = rv_uc_class(cp);
        if (cls & UC_SPACE) {
            if (!end_word(e, &n_word)) return false;
            continue;
        }
        if (cp == 0 || cp == UC_BAD || cls & UC_C || (w->strip_accents && cls & UC_M)) continue;
        bool alone = cls & UC_P || (cp < 0x7F && cls & UC_S) || is_han(cp);
        if (alone && !end_word(e, &n_word)) return false;
        if (!add_char(e, cp, &n_word)) return false;
        if (alone && !end_word(e, &n_word)) return false;
    }
    return end_word(e, &n_word);
}
