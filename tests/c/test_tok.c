/* Tokenizers over small vocabularies: semantics by hand, merging and special tokens against naive
 * versions of their rules, hostile vocabularies, and every allocation failing in turn. */
#include <math.h>

#include "test.h"
#include "tok/unicode.h"

enum { MAX_TOK = 600 };

typedef struct vocab {
    rv_tok_spec spec;
    rv_str tok[MAX_TOK], merge[MAX_TOK];
    int32_t type[MAX_TOK];
    float score[MAX_TOK];
    char bytes[256][3]; /* spellings of the single bytes */
} vocab;

static rv_str str(const char *z) {
    return (rv_str){z, strlen(z)};
}

static void start(vocab *v, const char *model, const char *pre) {
    rv_tok_spec_init(&v->spec);
    v->spec.model = str(model);
    v->spec.pre = str(pre);
    v->spec.tokens = v->tok;
    v->spec.types = v->type;
    v->spec.scores = v->score;
    v->spec.merges = v->merge;
}

static int32_t add(vocab *v, const char *z, int32_t type, float score) {
    size_t i = v->spec.n_tokens++;
    CHECK(i < MAX_TOK);
    v->tok[i] = str(z);
    v->type[i] = type;
    v->score[i] = score;
    return (int32_t)i;
}

static void add_merge(vocab *v, const char *z) {
    v->merge[v->spec.n_merges++] = str(z);
}

/* Tokens 0 .. 255: the single bytes. */
static void add_bytes(vocab *v) {
    for (int i = 0; i < 256; i++) {
        uint8_t c[4];
        size_t n = rv_uc_encode(rv_uc_byte_char((uint8_t)i), c);
        memcpy(v->bytes[i], c, n);
        v->bytes[i][n] = 0;
        add(v, v->bytes[i], RV_TOK_NORMAL, 0);
    }
}

static rv_tok *make(const vocab *v) {
    rv_tok *t;
    rv_err err = {0};
    rv_status st = rv_tok_new(&t, &v->spec, &err);
    if (st != RV_OK) fprintf(stderr, "%s\n", err.msg);
    CHECK(st == RV_OK && t);
    return t;
}

static bool encodes(const rv_tok *t, const char *text, size_t n, unsigned flags,
                    const int32_t *want, size_t n_want) {
    int32_t *ids;
    size_t n_ids;
    CHECK(rv_tok_encode(t, text, n, flags, &ids, &n_ids, NULL) == RV_OK);
    bool same = n_ids == n_want && (n_ids == 0 || memcmp(ids, want, n_ids * sizeof *ids) == 0);
    if (!same)
        for (size_t i = 0; i < n_ids; i++) fprintf(stderr, "%d ", ids[i]);
    rv_free(ids);
    return same;
}

#define IDS(...) ((const int32_t[]){__VA_ARGS__}), sizeof((const int32_t[]){__VA_ARGS__}) / 4
#define ENCODES(t, text, flags, ...) encodes(t, text, strlen(text), flags, IDS(__VA_ARGS__))

static bool decodes(const rv_tok *t, const int32_t *ids, size_t n, bool special, const char *want) {
    char *text;
    size_t n_text;
    CHECK(rv_tok_decode(t, ids, n, special, &text, &n_text, NULL) == RV_OK);
    bool same = n_text == strlen(want) && memcmp(text, want, n_text + 1) == 0;
    if (!same) fprintf(stderr, "decoded '%s'\n", text);
    rv_free(text);
    return same;
}

/* ---- characters ---- */

static void test_unicode_tables(void) {
    uint64_t h = 0xcbf29ce484222325u;
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xD800 && c < 0xE000) continue;
        const uint64_t v[] = {rv_uc_class(c), rv_uc_lower(c), rv_uc_nfd_first(c)};
        for (size_t i = 0; i < RV_COUNT(v); i++) h = (h ^ v[i]) * 0x100000001b3u;
        uint8_t out[4];
        uint32_t back;
        size_t n = rv_uc_encode(c, out);
        CHECK(rv_uc_decode(out, n, &back) == n && back == c && rv_uc_valid_prefix(out, n) == n);
    }
    CHECK(h == rv_uc_digest());
    CHECK(rv_uc_class('a') == UC_L && rv_uc_class(0x0663) == UC_N && rv_uc_class('_') == UC_P);
    CHECK(rv_uc_class(0x85) == (UC_C | UC_SPACE) && rv_uc_class(0x3000) == (UC_Z | UC_SPACE));
    CHECK(rv_uc_class(0x1F6DC) == UC_S); /* of Unicode 15 */
    CHECK(rv_uc_lower(0x0130) == 'i' && rv_uc_lower(0x10400) == 0x10428);
    CHECK(rv_uc_nfd_first(0xE9) == 'e' && rv_uc_nfd_first(0xAC00) == 0x1100);
}

static void test_utf8_is_strict(void) {
    static const char *const bad[] = {
        "\x80",         "\xBF",         "\xC0\x80",         "\xC1\xBF",         "\xE0\x80\xAF",
        "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x80\x80\xAF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
        "\xFF",         "\xC3",         "\xE2\x96",         "\xF0\x9F\x99",     "\xE2\x28\xA1",
    };
    for (size_t i = 0; i < RV_COUNT(bad); i++) {
        uint32_t cp;
        const uint8_t *p = (const uint8_t *)bad[i];
        CHECK(rv_uc_decode(p, strlen(bad[i]), &cp) == 1 && cp == UC_BAD);
        CHECK(rv_uc_valid_prefix(p, strlen(bad[i])) == 0);
    }
    bool seen[256] = {0};
    for (uint32_t c = 0; c < 0x200; c++) {
        int b = rv_uc_char_byte(c);
        if (b < 0) continue;
        CHECK(!seen[b] && rv_uc_byte_char((uint8_t)b) == c);
        seen[b] = true;
    }
    for (int i = 0; i < 256; i++) CHECK(seen[i]);
}

/* ---- byte-level BPE ---- */

static void test_bpe(void) {
    vocab v = {0};
    start(&v, "gpt2", "gpt-2");
    add_bytes(&v);
    int32_t he = add(&v, "he", 1, 0), the = add(&v, "the", 1, 0);
    int32_t sp = add(&v, "\xC4\xA0the", 1, 0), dup = add(&v, "the", 1, 0);
    int32_t end = add(&v, "<end>", RV_TOK_CONTROL, 0), usr = add(&v, "[user]", RV_TOK_USER, 0);
    add_merge(&v, "h e");
    add_merge(&v, "t he");
    add_merge(&v, "\xC4\xA0 the");
    add_merge(&v, "x y"); /* makes no token: its bytes come out again */
    add_merge(&v, "nospace");
    add_merge(&v, "");
    add_merge(&v, " q");
    v.spec.eos = end;
    rv_tok *t = make(&v);
    CHECK(ENCODES(t, "the", 0, the) && ENCODES(t, "he the", 0, he, sp));
    CHECK(rv_tok_find(t, "the", 3) == the && dup != the);
    CHECK(ENCODES(t, "xy", 0, 'x', 'y'));
    CHECK(ENCODES(t, "<end>", 0, '<', 'e', 'n', 'd', '>') &&
          ENCODES(t, "<end>", RV_TOK_SPECIAL, end));
    CHECK(ENCODES(t, "a[user]b", 0, 'a', usr, 'b'));
    CHECK(ENCODES(t, "a", RV_TOK_BOS | RV_TOK_EOS, 'a', end)); /* there is no begin token */
    CHECK(encodes(t, NULL, 0, 0, NULL, 0));
    CHECK(ENCODES(t, "a\xFF", 0, 'a', 0xEF, 0xBF, 0xBD)); /* not UTF-8: U+FFFD */
    CHECK(ENCODES(t, "\xC0\xAF", 0, 0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD));
    CHECK(decodes(t, IDS(he, sp, 0xC3, 0xA9), false, "he the\xC3\xA9"));
    CHECK(decodes(t, IDS('a', end, usr), false, "a[user]") &&
          decodes(t, IDS('a', end, usr), true, "a<end>[user]"));
    CHECK(rv_tok_is_eog(t, end) && !rv_tok_is_eog(t, the) && !rv_tok_is_eog(t, -1));
    rv_str piece;
    rv_err err;
    CHECK(rv_tok_piece(t, (int32_t)v.spec.n_tokens, true, &piece, &err) == RV_EARG);
    CHECK(strstr(err.msg, "262") && strstr(err.msg, "261"));
    CHECK(rv_tok_piece(t, INT32_MIN, true, &piece, NULL) == RV_EARG && piece.n == 0);
    char *text;
    size_t n;
    CHECK(rv_tok_decode(t, IDS('a', -1), false, &text, &n, NULL) == RV_EARG && !text);
    int32_t *ids;
    CHECK(rv_tok_encode(t, "a", 1, 8, &ids, &n, NULL) == RV_EARG && !ids);
    CHECK(rv_tok_encode(t, "a", SIZE_MAX, 0, &ids, &n, NULL) == RV_EARG && !ids);
    rv_tok *again = rv_tok_ref(t);
    rv_tok_free(&t);
    CHECK(!t && ENCODES(again, "the", 0, the));
    rv_tok_free(&again);
    rv_tok_free(&again);
}

static void test_control_is_never_merged(void) {
    vocab v = {0};
    start(&v, "gpt2", "llama-bpe"); /* whole words are looked up first */
    add_bytes(&v);
    int32_t st = add(&v, "st", 1, 0);
    add(&v, "stop", RV_TOK_CONTROL, 0);
    add_merge(&v, "s t");
    add_merge(&v, "o p");
    add_merge(&v, "st op");
    rv_tok *t = make(&v);
    CHECK(ENCODES(t, "stop", 0, st, 'o', 'p'));
    CHECK(ENCODES(t, "stop", RV_TOK_SPECIAL, st + 1));
    rv_tok_free(&t);
    v = (vocab){0};
    start(&v, "llama", "");
    add(&v, "<unk>", RV_TOK_UNKNOWN, 0);
    int32_t s = add(&v, "<s", RV_TOK_NORMAL, -1), gt = add(&v, ">", RV_TOK_NORMAL, -2);
    add(&v, "<s>", RV_TOK_CONTROL, 0);
    v.spec.add_space_prefix = 0;
    t = make(&v);
    CHECK(ENCODES(t, "<s>", 0, s, gt) && ENCODES(t, "<s>", RV_TOK_SPECIAL, 3));
    rv_tok_free(&t);
}

/* The rule of merging, word for word. */
static size_t naive_bpe(const vocab *v, const char *text, size_t n, rv_str *out) {
    for (size_t i = 0; i < n; i++) out[i] = (rv_str){text + i, 1};
    for (;;) {
        size_t best = SIZE_MAX, at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t r = 0; r < v->spec.n_merges && r < best; r++) {
                rv_str m = v->merge[r];
                if (m.n == out[i].n + out[i + 1].n + 1 && m.p[out[i].n] == ' ' &&
                    memcmp(m.p, out[i].p, out[i].n) == 0 &&
                    memcmp(m.p + out[i].n + 1, out[i + 1].p, out[i + 1].n) == 0) {
                    best = r;
                    at = i;
                }
            }
        if (best == SIZE_MAX) return n;
        out[at].n += out[at + 1].n;
        memmove(out + at + 1, out + at + 2, (--n - at - 1) * sizeof *out);
    }
}

static void test_bpe_against_naive(void) {
    enum { N_MERGES = 60, MAX = 200 };
    static char merges[N_MERGES][80], tokens[N_MERGES][80];
    uint64_t seed = 7;
    for (int round = 0; round < 30; round++) {
        vocab v = {0};
        rv_str parts[N_MERGES + 3] = {{"a", 1}, {"b", 1}, {"c", 1}};
        start(&v, "gpt2", "gpt-2");
        add_bytes(&v);
        for (size_t i = 0, n = 3; i < N_MERGES; i++) { /* merges of earlier results */
            rv_str l = parts[rv_test_rand(&seed) % n], r = parts[rv_test_rand(&seed) % n];
            if (l.n + r.n > 60) l = r = parts[rv_test_rand(&seed) % 3];
            sprintf(merges[i], "%.*s %.*s", (int)l.n, l.p, (int)r.n, r.p);
            sprintf(tokens[i], "%.*s%.*s", (int)l.n, l.p, (int)r.n, r.p);
            add(&v, tokens[i], 1, 0);
            add_merge(&v, merges[i]);
            parts[n++] = str(tokens[i]);
        }
        rv_tok *t = make(&v);
        for (int k = 0; k < 40; k++) {
            char text[MAX];
            size_t n = 1 + rv_test_rand(&seed) % (k % 2 ? 20 : MAX - 1);
            for (size_t i = 0; i < n; i++) text[i] = "abc"[rv_test_rand(&seed) % (k % 3 ? 3 : 1)];
            rv_str want[MAX];
            int32_t ids[MAX];
            size_t n_want = naive_bpe(&v, text, n, want);
            for (size_t i = 0; i < n_want; i++) ids[i] = rv_tok_find(t, want[i].p, want[i].n);
            CHECK(encodes(t, text, n, 0, ids, n_want));
        }
        rv_tok_free(&t);
    }
}

/* ---- SentencePiece ---- */

static void test_spm(void) {
    vocab v = {0};
    start(&v, "llama", "default");
    add(&v, "<unk>", RV_TOK_UNKNOWN, 0);
    int32_t bos = add(&v, "<s>", RV_TOK_CONTROL, 0), eos = add(&v, "</s>", RV_TOK_CONTROL, 0);
    int32_t byte_c3 = add(&v, "<0xC3>", RV_TOK_BYTE, 0),
            byte_a9 = add(&v, "<0xa9>", RV_TOK_BYTE, 0);
    int32_t bad = add(&v, "<0xZZ>", RV_TOK_BYTE, 0), sp = add(&v, "\xE2\x96\x81", 1, -9);
    int32_t a = add(&v, "a", 1, -5), b = add(&v, "b", 1, -5), ab = add(&v, "ab", 1, -2);
    int32_t ba = add(&v, "ba", 1, -1), sp_a = add(&v,
                                                  "\xE2\x96\x81"
                                                  "a",
                                                  1, -3);
    int32_t two = add(&v, "\xE2\x96\x81\xE2\x96\x81", 1, -4);
    rv_tok *t = make(&v);
    const rv_tok_info *i = rv_tok_get_info(t);
    CHECK(i->bos == bos && i->eos == eos && i->unk == 0 && i->add_bos && !i->add_eos);
    CHECK(i->add_space_prefix && rv_tok_is_eog(t, eos));
    CHECK(ENCODES(t, "a", 0, sp_a) && ENCODES(t, "aba", 0, sp_a, ba)); /* best score first */
    CHECK(ENCODES(t, "ab", 0, sp, ab) && ENCODES(t, "b", RV_TOK_BOS | RV_TOK_EOS, bos, sp, b, eos));
    CHECK(ENCODES(t, "  b", 0, two, sp, b)); /* equal scores: leftmost first */
    CHECK(ENCODES(t, "a<s>a", RV_TOK_SPECIAL, sp_a, bos, sp_a));
    CHECK(ENCODES(t, "\xC3", 0, sp, byte_c3));
    CHECK(ENCODES(t, "\xA9", 0, sp, 0)); /* only the upper case spelling is looked for */
    CHECK(ENCODES(t, "z", 0, sp, 0));
    CHECK(decodes(t, IDS(sp_a, b, sp_a), false, "ab a"));
    CHECK(decodes(t, IDS(bos, sp_a), false, "a") && decodes(t, IDS(bos, sp_a), true, "<s> a"));
    CHECK(decodes(t, IDS(a, byte_c3, byte_a9, bad), false, "a\xC3\xA9"));
    rv_tok_free(&t);
    v.spec.add_space_prefix = 0;
    t = make(&v);
    CHECK(ENCODES(t, "a", 0, a) && decodes(t, IDS(sp_a), false, " a"));
    rv_tok_free(&t);
}

/* A token with a space inside makes words depend on each other: the whole text is merged at once,
 * and a text with no such token gives the same ids either way. */
static void test_spm_words(void) {
    vocab v = {0};
    uint64_t seed = 3;
    start(&v, "llama", "");
    add(&v, "<unk>", RV_TOK_UNKNOWN, 0);
    static const char *const toks[] = {"\xE2\x96\x81",
                                       "a",
                                       "b",
                                       "aa",
                                       "ab",
                                       "ba",
                                       "aab",
                                       "\xE2\x96\x81"
                                       "a",
                                       "\xE2\x96\x81\xE2\x96\x81",
                                       "\xE2\x96\x81"
                                       "ab",
                                       "\xE2\x96\x81\xE2\x96\x81"
                                       "b"};
    for (size_t i = 0; i < RV_COUNT(toks); i++)
        add(&v, toks[i], 1, (float)(rv_test_rand(&seed) % 5));
    rv_tok *words = make(&v);
    add(&v, "zq\xE2\x96\x81z", 1, 0); /* never reached: there is no zq */
    rv_tok *whole = make(&v);
    add(&v, "a\xE2\x96\x81", 1, 9);
    rv_tok *crossing = make(&v);
    CHECK(ENCODES(crossing, "a a", 0, 8 - 7, 13, 2));
    for (int k = 0; k < 300; k++) {
        char text[90];
        int32_t *x, *y;
        size_t n = rv_test_rand(&seed) % sizeof text, nx, ny;
        for (size_t i = 0; i < n; i++) text[i] = "ab  \xE2\x96"[rv_test_rand(&seed) % 6];
        CHECK(rv_tok_encode(words, text, n, 0, &x, &nx, NULL) == RV_OK);
        CHECK(rv_tok_encode(whole, text, n, 0, &y, &ny, NULL) == RV_OK);
        CHECK(nx == ny && (nx == 0 || memcmp(x, y, nx * sizeof *x) == 0));
        rv_free(x);
        rv_free(y);
    }
    rv_tok_free(&words);
    rv_tok_free(&whole);
    rv_tok_free(&crossing);
}

/* ---- WordPiece ---- */

#define W "\xE2\x96\x81"

static void test_wpm(void) {
    vocab v = {0};
    start(&v, "bert", "");
    int32_t cls = add(&v, "[CLS]", RV_TOK_CONTROL, 0), sep = add(&v, "[SEP]", RV_TOK_CONTROL, 0);
    int32_t unk = add(&v, "[UNK]", RV_TOK_CONTROL, 0), re = add(&v, W "re", 1, 0);
    int32_t sume = add(&v, "sume", 1, 0), resum = add(&v, W "resum", 1, 0);
    int32_t dot = add(&v, W ".", 1, 0), han = add(&v, W "\xE6\x9D\xB1", 1, 0);
    int32_t q = add(&v, W "'", 1, 0), es = add(&v, W "s", 1, 0), d = add(&v, W "$", 1, 0);
    v.spec.cls = cls, v.spec.sep = sep, v.spec.unk = unk;
    rv_tok *t = make(&v);
    CHECK(rv_tok_get_info(t)->bos == cls && rv_tok_get_info(t)->add_bos &&
          rv_tok_get_info(t)->add_eos);
    CHECK(ENCODES(t, "R\xC3\xA9sum\xC3\xA9", 3, cls, unk, sep)); /* the longest match leaves "e" */
    CHECK(ENCODES(t, " re\tRE.re ", 0, re, re, dot, re));
    CHECK(ENCODES(t, "re\xE6\x9D\xB1\xE6\x9D\xB1re", 0, re, han, han, re));
    CHECK(ENCODES(t, "re$s", 0, re, d, es) && ENCODES(t,
                                                      "r\xC2\xAD"
                                                      "e\xFF",
                                                      0, re));
    CHECK(encodes(t, "\x01\xFF\xCC\x81", 4, 0, NULL, 0));
    CHECK(ENCODES(t, "[CLS]", 0, unk, unk, unk) && ENCODES(t, "[CLS]", RV_TOK_SPECIAL, cls));
    CHECK(decodes(t, IDS(re, sume, dot), false, "resume."));
    CHECK(decodes(t, IDS(cls, re, q, es, dot, sep), false, "re's."));
    CHECK(decodes(t, IDS(re, q, re), false, "re're"));
    CHECK(resum > 0);
    rv_tok_free(&t);
    v.spec.lowercase = 0;
    t = make(&v);
    CHECK(ENCODES(t, "RE re r\xC3\xA9", 0, unk, re, unk));
    rv_tok_free(&t);
}

/* ---- special tokens ---- */

/* The rule word for word: token by token, longest first, in what text is left. */
static size_t naive_cut(const vocab *v, const char *text, size_t n, int32_t *out) {
    int32_t at[256];
    size_t len[256] = {0}, n_out = 0;
    for (size_t i = 0; i < n; i++) at[i] = -1; /* text */
    for (size_t want = n; want > 0; want--)
        for (size_t k = 256; k < v->spec.n_tokens; k++)
            for (size_t i = 0; v->tok[k].n == want && i + want <= n; i++) {
                bool is_free = memcmp(text + i, v->tok[k].p, want) == 0;
                for (size_t j = i; j < i + want; j++) is_free &= at[j] == -1;
                if (!is_free) continue;
                for (size_t j = i; j < i + want; j++) at[j] = -2;
                at[i] = (int32_t)k;
                len[i] = want;
            }
    for (size_t i = 0; i < n; i += at[i] >= 0 ? len[i] : 1)
        out[n_out++] = at[i] >= 0 ? at[i] : (uint8_t)text[i];
    return n_out;
}

static void test_specials_against_naive(void) {
    uint64_t seed = 11;
    for (int round = 0; round < 200; round++) {
        static char toks[12][8];
        vocab v = {0};
        start(&v, "gpt2", "gpt-2");
        add_bytes(&v);
        size_t n_toks = 1 + rv_test_rand(&seed) % 12;
        for (size_t i = 0; i < n_toks; i++) {
            size_t n = 1 + rv_test_rand(&seed) % 6;
            for (size_t k = 0; k < n; k++) toks[i][k] = "xy"[rv_test_rand(&seed) % 2];
            toks[i][n] = 0;
            add(&v, toks[i], RV_TOK_USER, 0);
        }
        rv_tok *t = make(&v);
        for (int k = 0; k < 20; k++) {
            char text[100];
            int32_t want[100];
            size_t n = rv_test_rand(&seed) % sizeof text;
            for (size_t i = 0; i < n; i++) text[i] = "xyxyz"[rv_test_rand(&seed) % 5];
            size_t n_want = naive_cut(&v, text, n, want);
            CHECK(encodes(t, text, n, 0, want, n_want));
        }
        rv_tok_free(&t);
    }
}

static void test_strip_and_names(void) {
    vocab v = {0};
    start(&v, "gpt2", "jina-v2-de");
    add_bytes(&v);
    int32_t mask = add(&v, "<mask>", RV_TOK_CONTROL, 0), end = add(&v, "<|im_end|>", 1, 0);
    int32_t pad = add(&v, "<|fim_pad|>", RV_TOK_USER, 0), show = add(&v, "<|start|>", 3, 0);
    rv_tok *t = make(&v);
    CHECK(ENCODES(t, "a \n<mask> b", RV_TOK_SPECIAL, 'a', mask, ' ', 'b'));
    CHECK(ENCODES(t, "  <mask>", RV_TOK_SPECIAL, mask));
    CHECK(rv_tok_get_info(t)->eot == end && rv_tok_is_eog(t, end) && rv_tok_is_eog(t, pad));
    CHECK(rv_tok_type_of(t, end) == RV_TOK_CONTROL && rv_tok_type_of(t, pad) == RV_TOK_CONTROL);
    CHECK(rv_tok_type_of(t, show) == RV_TOK_USER);
    rv_tok_free(&t);
    v.spec.pre = str("gpt-2");
    v.spec.name = str("A Phi-3 Mini");
    t = make(&v);
    CHECK(ENCODES(t, " <|im_end|>\n\tb", RV_TOK_SPECIAL, ' ', end, 'b'));
    rv_tok_free(&t);
    v.spec.name = str("");
    int32_t e = add(&v, "<|end|>", 3, 0);
    add(&v, "<|return|>", 3, 0);
    add(&v, "<|call|>", 3, 0);
    t = make(&v);
    CHECK(!rv_tok_is_eog(t, e) && rv_tok_is_eog(t, e + 1) && rv_tok_type_of(t, e) == RV_TOK_USER);
    rv_tok_free(&t);
}

/* ---- hostile vocabularies ---- */

static rv_status try_new(const vocab *v, const char *part) {
    rv_tok *t;
    rv_err err;
    rv_status st = rv_tok_new(&t, &v->spec, &err);
    CHECK(st == RV_OK || (!t && strstr(err.msg, part)));
    rv_tok_free(&t);
    return st;
}

static void test_hostile(void) {
    vocab v = {0};
    start(&v, "gpt2", "");
    CHECK(try_new(&v, "0 tokens") == RV_EFORMAT);
    add(&v, "", 1, 0);
    add(&v, "", RV_TOK_CONTROL, 0);
    add(&v, "\xFF\xC3", 1, 0);
    add(&v, "\xE4\xB8\xAD", 1, 0);
    add(&v, "<0x-1>", RV_TOK_BYTE, 0);
    add(&v, "x", 99, 0);
    add(&v, "y", -5, 0);
    v.spec.pre = str("no-such");
    CHECK(try_new(&v, "\"no-such\"") == RV_EUNSUPPORTED);
    v.spec.pre = str("gpt-2 phi-2");
    CHECK(try_new(&v, "not known") == RV_EUNSUPPORTED);
    v.spec.pre = (rv_str){"gpt-2\0x", 7};
    CHECK(try_new(&v, "not known") == RV_EUNSUPPORTED);
    v.spec.pre = str("default");
    v.spec.model = str("t5");
    CHECK(try_new(&v, "\"t5\"") == RV_EUNSUPPORTED);
    v.spec.model = (rv_str){NULL, 0};
    CHECK(try_new(&v, "\"\"") == RV_EUNSUPPORTED);
    v.spec.model = str("gpt2");
    v.spec.eos = 7;
    CHECK(try_new(&v, "eos token is 7, want 0 .. 6") == RV_EFORMAT);
    v.spec.eos = INT64_MAX;
    CHECK(try_new(&v, "eos token") == RV_EFORMAT);
    v.spec.eos = INT64_MIN;
    CHECK(try_new(&v, "eos token") == RV_EFORMAT);
    v.spec.eos = -1;
    rv_tok *t = make(&v);
    CHECK(decodes(t, IDS(0, 1, 2, 3, 4, 5), true, "\xFF\xC3\xE4\xB8\xAD"));
    CHECK(rv_tok_find(t, "", 0) == -1 && ENCODES(t, "x", RV_TOK_SPECIAL, 5));
    CHECK(encodes(t, "zz", 2, 0, NULL, 0)); /* no token for it, and no unknown token */
    rv_tok_free(&t);
    v.spec.model = str("llama");
    for (size_t i = 0; i < v.spec.n_tokens; i++) v.score[i] = i % 2 ? -INFINITY : NAN;
    t = make(&v);
    CHECK(rv_tok_get_info(t)->bos == 1); /* what files mean that do not say */
    rv_tok_free(&t);
    static char longest[2000];
    memset(longest, 'a', sizeof longest - 1);
    int32_t far = add(&v, longest, 1, 0);
    CHECK(try_new(&v, "1999 bytes") == RV_EUNSUPPORTED);
    v.spec.model = str("bert");
    CHECK(try_new(&v, "1999 bytes") == RV_EUNSUPPORTED);
    v.type[far] = RV_TOK_CONTROL; /* found in one pass however long it is */
    CHECK(try_new(&v, "") == RV_OK);
    v.spec.n_tokens = (size_t)INT32_MAX;
    CHECK(try_new(&v, "tokens") == RV_EFORMAT);
    v.spec.n_tokens = 1;
    v.tok[0].n = (size_t)1 << 31;
    CHECK(try_new(&v, "2147483648 bytes") == RV_EFORMAT);
}

static void test_every_allocation_fails(void) {
    static const char *const models[] = {"gpt2", "llama", "bert"};
    for (size_t m = 0; m < RV_COUNT(models); m++) {
        vocab v = {0};
        start(&v, models[m], m ? "" : "default");
        add(&v, "<u>", RV_TOK_USER, 0);
        add(&v, "<c>", RV_TOK_CONTROL, 0);
        add_bytes(&v);
        add(&v, "ab", 1, 0);
        add_merge(&v, "a b");
        v.spec.unk = 1;
        bool made = false, ended = false;
        for (long k = 0; !ended; k++) {
            static const char text[] = "abcabcabcabcabcabcabcabcabcabc <u> a <c> 12345 \xFF .";
            rv_tok *t = NULL;
            int32_t *ids = NULL;
            char *back = NULL;
            size_t n = 0, n_back, live = rv_live_bytes();
            rv_test_fail_alloc_at(k);
            rv_status st = rv_tok_new(&t, &v.spec, NULL);
            made |= st == RV_OK;
            if (st == RV_OK) st = rv_tok_encode(t, text, sizeof text - 1, 4, &ids, &n, NULL);
            if (st == RV_OK) st = rv_tok_decode(t, ids, n, true, &back, &n_back, NULL);
            rv_test_fail_alloc_at(-1);
            CHECK(st == RV_OK || (st == RV_ENOMEM && !back));
            rv_free(back);
            rv_free(ids);
            rv_tok_free(&t);
            CHECK(rv_live_bytes() == live);
            ended = st == RV_OK;
        }
        CHECK(made);
    }
}

/* Inputs that make a careless tokenizer quadratic.  There is no clock here: with 4 MB each, a
 * quadratic one would not end. */
static void test_long_inputs(void) {
    enum { N = 4 << 20 };
    static const char *const models[] = {"gpt2", "llama", "bert"};
    char *text = rv_malloc(N);
    CHECK(text);
    for (size_t m = 0; m < RV_COUNT(models); m++) {
        vocab v = {0};
        start(&v, models[m], m ? "" : "gpt-2");
        add_bytes(&v);
        add(&v, "aa", 1, 0);
        add(&v, "aaaa", 1, 1);
        add(&v, "<<<<<<<<b", RV_TOK_USER, 0);
        add(&v, "<<<<", RV_TOK_USER, 0);
        add_merge(&v, "a a");
        add_merge(&v, "aa aa");
        rv_tok *t = make(&v);
        for (const char *c = "a <\n"; *c; c++) {
            int32_t *ids;
            size_t n;
            memset(text, *c, N);
            CHECK(rv_tok_encode(t, text, N, RV_TOK_SPECIAL, &ids, &n, NULL) == RV_OK);
            rv_free(ids);
        }
        rv_tok_free(&t);
    }
    rv_free(text);
}

const rv_test tests_tok[] = {
    {"tok_unicode_tables", test_unicode_tables},
    {"tok_utf8_is_strict", test_utf8_is_strict},
    {"tok_bpe", test_bpe},
    {"tok_control_is_never_merged", test_control_is_never_merged},
    {"tok_bpe_against_naive", test_bpe_against_naive},
    {"tok_spm", test_spm},
    {"tok_spm_words", test_spm_words},
    {"tok_wpm", test_wpm},
    {"tok_specials_against_naive", test_specials_against_naive},
    {"tok_strip_and_names", test_strip_and_names},
    {"tok_hostile", test_hostile},
    {"tok_every_allocation_fails", test_every_allocation_fails},
    {"tok_long_inputs", test_long_inputs},
    {NULL, NULL},
};
