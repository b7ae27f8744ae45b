/* Ids to text.  What each token adds to running text is worked out once, when the tokenizer is
 * built, so a piece is a borrowed string and decoding is copying. */
#include "tok/impl.h"
#include "tok/unicode.h"

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The byte of "<0xHH>".  A byte token with another spelling stands for nothing. */
static size_t byte_piece(rv_str s, char *out) {
    if (s.n != 6 || memcmp(s.p, "<0x", 3) != 0 || s.p[5] != '>') return 0;
    int hi = hex_digit(s.p[3]), lo = hex_digit(s.p[4]);
    if (hi < 0 || lo < 0) return 0;
    *out = (char)(hi << 4 | lo);
    return 1;
}

/* Characters that stand for a byte give the byte, others themselves: what is spelled in plain
 * text in a byte-level vocabulary was put there by hand. */
static size_t bpe_piece(rv_str s, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        size_t len = rv_uc_decode((const uint8_t *)s.p + i, s.n - i, &cp);
        int byte = len == 1 && cp >= 0x80 ? -1 : rv_uc_char_byte(cp);
        if (byte >= 0) {
            out[n++] = (char)byte;
        } else {
            memcpy(out + n, s.p + i, len);
            n += len;
        }
        i += len;
    }
    return n;
}

static size_t space_piece(rv_str s, char *out) { /* U+2581 is a space */
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        bool space = s.n - i >= 3 && memcmp(s.p + i, "\xE2\x96\x81", 3) == 0;
        out[n++] = space ? ' ' : s.p[i];
        i += space ? 3 : 1;
    }
    return n;
}

bool rv_tok_make_pieces(rv_tok *t) {
    size_t longest = 1;
    for (size_t i = 0; i < t->n_vocab; i++) longest = RV_MAX(longest, rv_strs_at(&t->text, i).n);
    char *buf = rv_malloc(longest);
    bool ok = buf != NULL;
    for (size_t i = 0; ok && i < t->n_vocab; i++) {
        rv_str s = rv_strs_at(&t->text, i);
        size_t n = 0;
        switch (t->type[i]) {
        case RV_TOK_NORMAL:
            n = t->kind == RV_TOK_BPE ? bpe_piece(s, buf) : space_piece(s, buf);
            break;
        case RV_TOK_BYTE: n = byte_piece(s, buf); break;
        case RV_TOK_UNUSED: break;
        default:
            if (s.n) memcpy(buf, s.p, s.n);
            n = s.n;
        }
        ok = rv_strs_add(&t->piece, buf, n);
    }
    rv_free(buf);
    return ok;
}

rv_status rv_tok_piece(const rv_tok *t, int32_t id, bool special, rv_str *out, rv_err *err) {
    rv_err_clear(err);
    *out = (rv_str){"", 0};
    if (id < 0 || (size_t)id >= t->n_vocab)
        return rv_fail(err, RV_EARG, "token id is %d, want 0 .. %zu", id, t->n_vocab - 1);
    bool hidden = t->type[id] == RV_TOK_CONTROL || t->type[id] == RV_TOK_UNKNOWN;
    if (special || !hidden) *out = rv_strs_at(&t->piece, (size_t)id);
    return RV_OK;
}

/* Put words of an English text back together, in three passes over p[0 .. n): no space before
 * ? ! . and , ; none around a lone apostrophe; none before 's 'm 're 've. */
static size_t tidy(char *p, size_t n) {
    size_t at = 0;
    char prev = 0;
    for (size_t i = 0; i < n; prev = p[i++]) {
        if (prev == ' ' && (p[i] == '?' || p[i] == '!' || p[i] == '.' || p[i] == ',')) at--;
        p[at++] = p[i];
    }
    n = at;
    at = 0, prev = 0;
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        bool lone = c == '\'' && prev == ' ' && i + 1 < n && p[i + 1] == ' ';
        if (lone) at--, i++;
        p[at++] = c;
        prev = lone ? 0 : c;
    }
    n = at;
    at = 0, prev = 0;
    for (size_t i = 0; i < n; i++) {
        char c = p[i], a = i + 1 < n ? p[i + 1] : 0, b = i + 2 < n ? p[i + 2] : 0;
        bool two = (a == 'r' || a == 'v') && b == 'e';
        if (prev == ' ' && c == '\'' && (a == 's' || a == 'm' || two)) at--;
        p[at++] = c;
        prev = c;
    }
    return at;
}

/* Total bytes of the pieces; the first character of text is dropped if it is the space that
 * encoding put before it. */
static rv_status join(const rv_tok *t, const int32_t *ids, size_t n_ids, bool special, char *out,
                      size_t *n_out, rv_err *err) {
    bool drop_space = t->info.add_space_prefix || t->kind == RV_TOK_WPM;
    size_t n = 0;
    for (size_t i = 0; i < n_ids; i++) {
        rv_str s;
        rv_status st = rv_tok_piece(t, ids[i], special, &s, err);
        if (st != RV_OK) return st;
        if (s.n && drop_space && s.p[0] == ' ')
            s.p++, s.n--, drop_space = false;
        else if (s.n)
            drop_space = false;
        if (out && s.n) memcpy(out + n, s.p, s.n);
        if (__builtin_add_overflow(n, s.n, &n))
            return rv_fail(err, RV_EARG, "decode: the text of %zu ids is too long", n_ids);
    }
    *n_out = n;
    return RV_OK;
}

rv_status rv_tok_decode(const rv_tok *t, const int32_t *ids, size_t n_ids, bool special,
                        char **text, size_t *n_bytes, rv_err *err) {
    rv_err_clear(err);
    *text = NULL;
    *n_bytes = 0;
    size_t n;
    rv_status st = join(t, ids, n_ids, special, NULL, &n, err);
    if (st != RV_OK) return st;
    char *p = n < SIZE_MAX ? rv_malloc(n + 1) : NULL;
    if (!p) return rv_fail(err, RV_ENOMEM, "decode: out of memory for %zu bytes of text", n);
    st = join(t, ids, n_ids, special, p, &n, err);
    if (st != RV_OK) {
        rv_free(p);
        return st;
    }
    if (t->kind == RV_TOK_WPM) n = tidy(p, n);
    p[n] = 0;
    *text = p;
    *n_bytes = n;
    return RV_OK;
}
