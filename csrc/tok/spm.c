/* SentencePiece-style BPE ("llama"): characters are merged into the token with the best score.
 *
 * A space is spelled U+2581, and every piece of text gets one before it if the vocabulary asks.  A
 * character that no token spells is given by its bytes (<0x00> .. <0xFF>).  A character is as long
 * as its first byte says, whether or not the bytes that follow fit: bytes that are not UTF-8 come
 * back as they were, but for a space that a broken character swallows, which stays U+2581.  (The
 * published tokenizers do so.)
 *
 * In most vocabularies no token has U+2581 behind anything but U+2581.  Then no merge crosses the
 * start of a word, and each word is merged by itself, which is the same result in less time. */
#include "tok/impl.h"
#include "tok/unicode.h"

static const char SPACE[] = "\xE2\x96\x81";
enum { SPACE_LEN = 3 };

/* A score as an unsigned number that falls as the score rises.  NaN is the worst score. */
static uint32_t score_key(float score) {
    uint32_t u;
    if (score != score) return RV_TOK_NONE - 1;
    if (score == 0) score = 0; /* -0 and +0 are equal */
    memcpy(&u, &score, 4);
    u = u >> 31 ? ~u : u | 0x80000000u;
    return RV_MIN(~u, RV_TOK_NONE - 1);
}

static bool is_space(const char *p, size_t n) {
    return n >= SPACE_LEN && memcmp(p, SPACE, SPACE_LEN) == 0;
}

/* True when a space stands behind something else in s. */
static bool crosses_words(rv_str s) {
    size_t i = 0;
    while (is_space(s.p + i, s.n - i)) i += SPACE_LEN;
    for (; i < s.n; i++)
        if (is_space(s.p + i, s.n - i)) return true;
    return false;
}

static void find_bytes(rv_tok *t) {
    for (int i = 0; i < 256; i++) {
        static const char hex[] = "0123456789ABCDEF";
        char name[6] = {'<', '0', 'x', hex[i >> 4], hex[i & 15], '>'}, byte = (char)i;
        int32_t id = rv_tok_find(t, name, sizeof name);
        if (id < 0) id = rv_tok_find(t, &byte, 1);
        t->spm.byte_tok[i] = id < 0 ? t->info.unk : id;
    }
}

rv_status rv_spm_init(rv_tok *t, const rv_tok_spec *spec, rv_err *err) {
    rv_spm *s = &t->spm;
    s->word_bound = true;
    s->key = rv_calloc(t->n_vocab, sizeof *s->key);
    if (!s->key || !rv_strtab_init(&s->words, t->n_vocab, t->seed))
        return rv_fail(err, RV_ENOMEM, "tokenizer: out of memory");
    for (size_t i = 0; i < t->n_vocab; i++) {
        rv_str text = rv_strs_at(&t->text, i);
        s->key[i] = score_key(spec->scores ? spec->scores[i] : 0);
        if (!rv_tok_from_text(t->type[i]) || text.n == 0) continue;
        if (text.n > RV_TOK_MAX_TOKEN)
            return rv_fail(err, RV_EUNSUPPORTED,
                           "tokenizer: token %zu has %zu bytes, want at most %zu", i, text.n,
                           RV_TOK_MAX_TOKEN);
        if (!rv_strtab_put(&s->words, &t->text, (uint32_t)i))
            return rv_fail(err, RV_ENOMEM, "tokenizer: out of memory");
        s->max_len = RV_MAX(s->max_len, text.n);
        s->word_bound &= !crosses_words(text);
    }
    find_bytes(t);
    return RV_OK;
}

void rv_spm_free(rv_spm *s) {
    rv_free(s->key);
    rv_strtab_free(&s->words);
}

/* val of a symbol is its length; its text starts at off. */
typedef struct span {
    const rv_tok *t;
    const char *text;
    const uint32_t *off;
} span;

static uint32_t pair_key(const void *ctx, const rv_merge *m, uint32_t left, uint32_t right) {
    const span *s = ctx;
    size_t n = (size_t)m->val[left] + m->val[right];
    if (n > s->t->spm.max_len) return RV_TOK_NONE;
    uint32_t id = rv_strtab_find(&s->t->spm.words, &s->t->text, s->text + s->off[left], n);
    return id == RV_TOK_NONE ? RV_TOK_NONE : s->t->spm.key[id];
}

static void pair_join(const void *ctx, rv_merge *m, uint32_t left, uint32_t right, uint32_t key) {
    (void)ctx, (void)key;
    m->val[left] += m->val[right];
}

static bool emit(rv_enc *e, const char *p, size_t n) {
    const rv_spm *s = &e->t->spm;
    uint32_t id = rv_strtab_find(&s->words, &e->t->text, p, n);
    if (id != RV_TOK_NONE) return rv_ids_add(&e->out, (int32_t)id);
    for (size_t i = 0; i < n; i++) {
        int32_t byte = s->byte_tok[(uint8_t)p[i]];
        if (byte >= 0 && !rv_ids_add(&e->out, byte)) return false;
    }
    return true;
}

/* Symbols 0 .. n - 1 of a word, at e->off, lengths in merge.val. */
static bool encode_symbols(rv_enc *e, const char *text, size_t n) {
    static const rv_merge_ops ops = {pair_key, pair_join};
    rv_merge *m = &e->merge;
    span s = {e->t, text, e->off};
    if (n == 0) return true;
    if (!rv_merge_run(m, n, &ops, &s)) return false;
    for (uint32_t i = 0; i != RV_TOK_NONE; i = m->next[i])
        if (!emit(e, text + e->off[i], m->val[i])) return false;
    return true;
}

static size_t char_len(uint8_t b) {
    return b < 0xC0 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

static bool escape(rv_enc *e, const uint8_t *p, size_t n, size_t *n_out) {
    bool space_prefix = e->t->info.add_space_prefix;
    size_t need = n + (space_prefix ? SPACE_LEN : 0), at = 0;
    for (size_t i = 0; i < n; i++) need += p[i] == ' ' ? SPACE_LEN - 1 : 0;
    if (!rv_grow((void **)&e->buf, &e->cap_buf, need, 1)) return false;
    if (space_prefix) {
        memcpy(e->buf, SPACE, SPACE_LEN);
        at = SPACE_LEN;
    }
    for (size_t i = 0; i < n; i++) {
        if (p[i] == ' ') {
            memcpy(e->buf + at, SPACE, SPACE_LEN);
            at += SPACE_LEN;
        } else {
            e->buf[at++] = p[i];
        }
    }
    *n_out = at;
    return true;
}

bool rv_spm_encode(rv_enc *e, const uint8_t *p, size_t n) {
    bool was_space = false;
    size_t n_sym = 0;
    if (!escape(e, p, n, &n)) return false;
    const char *text = (const char *)e->buf;
    for (size_t i = 0; i < n;) {
        size_t len = RV_MIN(char_len((uint8_t)text[i]), n - i);
        bool space = len == SPACE_LEN && is_space(text + i, len);
        if (e->t->spm.word_bound && space && !was_space) {
            if (!encode_symbols(e, text, n_sym)) return false;
            n_sym = 0;
        }
        if (!rv_merge_reserve(&e->merge, n_sym + 1) ||
            !rv_grow((void **)&e->off, &e->cap_off, n_sym + 1, sizeof *e->off))
            return false;
        e->off[n_sym] = (uint32_t)i;
        e->merge.val[n_sym++] = (uint32_t)len;
        was_space = space;
        i += len;
    }
    return encode_symbols(e, text, n_sym);
}
