/* Byte-level BPE: a word's bytes are merged by the ranks of the vocabulary's merge list.
 *
 * A vocabulary spells bytes as printable characters; everything here works on the bytes they stand
 * for.  Each byte string that a token or a merge names is a symbol with a number, so merging looks
 * at pairs of numbers only.  A merge may name strings that are no token (they are steps on the way
 * to one); if such a symbol is left at the end, its bytes are given one by one, and a byte that
 * has no token is dropped. */
#include "tok/impl.h"
#include "tok/unicode.h"

/* The bytes that a vocabulary's spelling stands for; false: some character stands for none. */
static bool spelled_bytes(rv_str s, char *out, size_t *n_out) {
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        size_t len = rv_uc_decode((const uint8_t *)s.p + i, s.n - i, &cp);
        int byte = len == 1 && cp >= 0x80 ? -1 : rv_uc_char_byte(cp);
        if (byte < 0) return false;
        out[n++] = (char)byte;
        i += len;
    }
    *n_out = n;
    return true;
}

/* The number of a symbol, new or not; RV_TOK_NONE: out of memory. */
static uint32_t intern(rv_bpe *b, const char *p, size_t n) {
    uint32_t id = rv_strtab_find(&b->by_sym, &b->sym, p, n);
    if (id != RV_TOK_NONE) return id;
    if (b->sym.n >= RV_TOK_NONE - 1 || !rv_strs_add(&b->sym, p, n)) return RV_TOK_NONE;
    id = (uint32_t)b->sym.n - 1;
    return rv_strtab_put(&b->by_sym, &b->sym, id) ? id : RV_TOK_NONE;
}

/* Symbols of the tokens.  reserved[sym]: spelled by a token that text may not become. */
static bool add_tokens(rv_tok *t, char *buf, uint8_t **reserved, size_t *cap) {
    rv_bpe *b = &t->bpe;
    size_t cap_tok = 0;
    for (size_t i = 0; i < 256; i++) {
        char byte = (char)i;
        if ((b->byte_sym[i] = intern(b, &byte, 1)) == RV_TOK_NONE) return false;
    }
    if (!rv_grow((void **)&b->sym_tok, &cap_tok, t->n_vocab + 256, sizeof *b->sym_tok) ||
        !rv_grow((void **)reserved, cap, t->n_vocab + 256, 1))
        return false;
    memset(b->sym_tok, 0xff, cap_tok * sizeof *b->sym_tok);
    memset(*reserved, 0, *cap);
    for (size_t i = 0; i < t->n_vocab; i++) {
        size_t n;
        if (!spelled_bytes(rv_strs_at(&t->text, i), buf, &n) || n == 0) continue;
        uint32_t sym = intern(b, buf, n);
        if (sym == RV_TOK_NONE) return false;
        /* a single byte is never refused: there is nothing else to write it with */
        if (n > 1 && !rv_tok_from_text(t->type[i]))
            (*reserved)[sym] = 1;
        else if (b->sym_tok[sym] < 0)
            b->sym_tok[sym] = (int32_t)i;
    }
    return true;
}

/* One entry of the merge list.  Entries without a space, with characters that stand for no byte,
 * or that would make a reserved token can never apply, and are passed over. */
static bool add_merge(rv_bpe *b, rv_str m, uint32_t rank, char *buf, const uint8_t *reserved,
                      size_t n_reserved) {
    const char *space = m.n > 1 ? memchr(m.p + 1, ' ', m.n - 1) : NULL;
    b->result[rank] = RV_TOK_NONE;
    if (!space) return true;
    size_t n_left, n_right, at = (size_t)(space - m.p);
    if (!spelled_bytes((rv_str){m.p, at}, buf, &n_left) ||
        !spelled_bytes((rv_str){space + 1, m.n - at - 1}, buf + n_left, &n_right) || n_left == 0 ||
        n_right == 0)
        return true;
    uint32_t whole = intern(b, buf, n_left + n_right);
    uint32_t left = intern(b, buf, n_left), right = intern(b, buf + n_left, n_right);
    if (whole == RV_TOK_NONE || left == RV_TOK_NONE || right == RV_TOK_NONE) return false;
    if (whole < n_reserved && reserved[whole]) return true;
    b->result[rank] = whole;
    rv_pairtab_put(&b->pairs, left, right, rank);
    return true;
}

static bool build(rv_tok *t, const rv_tok_spec *spec, char *buf) {
    rv_bpe *b = &t->bpe;
    uint8_t *reserved = NULL;
    size_t cap = 0, n_tok_sym = 0;
    bool ok = rv_strtab_init(&b->by_sym, t->n_vocab + 256, t->seed) &&
              rv_pairtab_init(&b->pairs, spec->n_merges, t->seed) &&
              (b->result = rv_calloc(spec->n_merges + 1, sizeof *b->result)) != NULL &&
              add_tokens(t, buf, &reserved, &cap);
    n_tok_sym = b->sym.n;
    for (size_t i = 0; ok && i < spec->n_merges; i++)
        ok = add_merge(b, spec->merges[i], (uint32_t)i, buf, reserved, n_tok_sym);
    rv_free(reserved);
    if (!ok) return false;
    int32_t *tok = rv_realloc(b->sym_tok, b->sym.n * sizeof *tok);
    if (!tok) return false;
    for (size_t i = n_tok_sym; i < b->sym.n; i++) tok[i] = -1;
    b->sym_tok = tok;
    return true;
}

rv_status rv_bpe_init(rv_tok *t, const rv_tok_spec *spec, rv_err *err) {
    rv_bpe *b = &t->bpe;
    if (!rv_pre_find(&b->pre, spec->pre))
        return rv_fail(err, RV_EUNSUPPORTED, "tokenizer: pre-tokenizer \"%.*s\" is not known",
                       (int)RV_MIN(spec->pre.n, 60), spec->pre.p);
    if (spec->n_merges >= RV_TOK_NONE)
        return rv_fail(err, RV_EFORMAT, "tokenizer: %zu merges, want at most %u", spec->n_merges,
                       RV_TOK_NONE - 1);
    b->ignore_merges = spec->ignore_merges < 0 ? b->pre.ignore_merges : spec->ignore_merges;
    size_t longest = 0;
    for (size_t i = 0; i < spec->n_merges; i++) longest = RV_MAX(longest, spec->merges[i].n);
    for (size_t i = 0; i < t->n_vocab; i++) longest = RV_MAX(longest, rv_strs_at(&t->text, i).n);
    char *buf = rv_malloc(longest + 1);
    bool ok = buf && build(t, spec, buf);
    rv_free(buf);
    return ok ? RV_OK : rv_fail(err, RV_ENOMEM, "tokenizer: out of memory");
}

void rv_bpe_free(rv_bpe *b) {
    rv_free(b->sym_tok);
    rv_free(b->result);
    rv_strs_free(&b->sym);
    rv_strtab_free(&b->by_sym);
    rv_pairtab_free(&b->pairs);
}

static uint32_t pair_key(const void *ctx, const rv_merge *m, uint32_t left, uint32_t right) {
    const rv_bpe *b = ctx;
    return rv_pairtab_find(&b->pairs, m->val[left], m->val[right]);
}

static void pair_join(const void *ctx, rv_merge *m, uint32_t left, uint32_t right, uint32_t key) {
    (void)right;
    m->val[left] = ((const rv_bpe *)ctx)->result[key];
}

static bool emit(rv_enc *e, uint32_t sym) {
    const rv_bpe *b = &e->t->bpe;
    if (b->sym_tok[sym] >= 0) return rv_ids_add(&e->out, b->sym_tok[sym]);
    rv_str s = rv_strs_at(&b->sym, sym);
    for (size_t i = 0; i < s.n; i++) {
        int32_t tok = b->sym_tok[b->byte_sym[(uint8_t)s.p[i]]];
        if (tok >= 0 && !rv_ids_add(&e->out, tok)) return false;
    }
    return true;
}

static bool encode_word(rv_enc *e, const uint8_t *p, size_t n) {
    static const rv_merge_ops ops = {pair_key, pair_join};
    const rv_bpe *b = &e->t->bpe;
    rv_merge *m = &e->merge;
    if (b->ignore_merges) {
        uint32_t sym = rv_strtab_find(&b->by_sym, &b->sym, (const char *)p, n);
        if (sym != RV_TOK_NONE && b->sym_tok[sym] >= 0) return rv_ids_add(&e->out, b->sym_tok[sym]);
    }
    if (!rv_merge_reserve(m, n)) return false;
    for (size_t i = 0; i < n; i++) m->val[i] = b->byte_sym[p[i]];
    if (!rv_merge_run(m, n, &ops, b)) return false;
    for (uint32_t i = 0; i != RV_TOK_NONE; i = m->next[i])
        if (!emit(e, m->val[i])) return false;
    return true;
}

/* Cut by every stage in turn, without recursion: part[k] is what stage k has still to cut. */
static bool encode_valid(rv_enc *e, const uint8_t *p, size_t n) {
    const rv_pre *pre = &e->t->bpe.pre;
    struct {
        const uint8_t *p;
        size_t n;
    } part[RV_PRE_MAX_STAGES] = {{p, n}};
    for (int k = 0; k >= 0;) {
        if (part[k].n == 0) {
            k--;
            continue;
        }
        const uint8_t *from = part[k].p;
        size_t len = pre->stage[k](from, part[k].n);
        part[k].p += len;
        part[k].n -= len;
        if (k + 1 < pre->n_stages) {
            part[++k].p = from;
            part[k].n = len;
        } else if (!encode_word(e, from, len)) {
            return false;
        }
    }
    return true;
}

/* Bytes that are not UTF-8 become U+FFFD, one each, as the published tokenizers do: the words of a
 * pre-tokenizer are defined over characters. */
static bool repair(rv_enc *e, const uint8_t *p, size_t n, size_t *n_out) {
    size_t n_bad = 0, at = 0;
    for (size_t i = rv_uc_valid_prefix(p, n); i < n; i += rv_uc_valid_prefix(p + i, n - i)) {
        n_bad++;
        i++;
    }
    if (!rv_grow((void **)&e->buf, &e->cap_buf, n + 2 * n_bad, 1)) return false;
    for (size_t i = 0; i < n;) {
        size_t ok = rv_uc_valid_prefix(p + i, n - i);
        memcpy(e->buf + at, p + i, ok);
        i += ok;
        at += ok;
        if (i < n) {
            memcpy(e->buf + at, "\xEF\xBF\xBD", 3);
            at += 3;
            i++;
        }
    }
    *n_out = at;
    return true;
}

bool rv_bpe_encode(rv_enc *e, const uint8_t *p, size_t n) {
    if (rv_uc_valid_prefix(p, n) < n) {
        if (!repair(e, p, n, &n)) return false;
        p = e->buf;
    }
    return encode_valid(e, p, n);
}
