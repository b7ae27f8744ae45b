/* Pre-tokenizers: where a text is cut into words before merging.
 *
 * Published vocabularies define the cuts by a regular expression.  Each family of expressions is
 * written here as a scanner that looks at the text from its start and returns the length of the
 * first piece: one pass, no backtracking, no stack.  Expressions that are applied one after
 * another are stages, and each stage cuts the pieces of the one before.
 *
 * The text is valid UTF-8.  \s is White_Space, \p{L} \p{N} \p{P} are the general categories. */
#include "tok/impl.h"
#include "tok/unicode.h"

typedef enum kind { K_END, K_LETTER, K_NUMBER, K_SPACE, K_OTHER } kind;

typedef struct ch {
    uint32_t cp;
    uint32_t len; /* 0 at the end */
    kind kind;
} ch;

static inline kind kind_of(unsigned cls, bool marks) {
    if (cls & UC_L || (marks && cls & UC_M)) return K_LETTER;
    if (cls & UC_N) return K_NUMBER;
    return cls & UC_SPACE ? K_SPACE : K_OTHER;
}

/* marks: combining marks count as letters. */
static inline ch at(const uint8_t *p, size_t n, size_t i, bool marks) {
    if (i >= n) return (ch){0, 0, K_END};
    ch c;
    c.len = (uint32_t)rv_uc_decode(p + i, n - i, &c.cp);
    c.kind = kind_of(rv_uc_class(c.cp), marks);
    return c;
}

/* End of the run of characters of this kind that starts at i. */
static size_t span(const uint8_t *p, size_t n, size_t i, kind k, bool marks) {
    for (ch c = at(p, n, i, marks); c.kind == k; c = at(p, n, i, marks)) i += c.len;
    return i;
}

static size_t span_bytes(const uint8_t *p, size_t n, size_t i, const char *set) {
    while (i < n && p[i] && strchr(set, p[i])) i++;
    return i;
}

/* 's 't 'm 'd 're 've 'll at p[0] == '\'': its length, or 0. */
static size_t contraction(const uint8_t *p, size_t n, bool any_case) {
    unsigned fold = any_case ? 0x20 : 0;
    if (n < 2) return 0;
    unsigned a = p[1] | fold, b = n > 2 ? p[2] | fold : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ at a space: a run before other text leaves its last space to that text. */
static size_t spaces(const uint8_t *p, size_t n) {
    size_t end = 0, last = 0;
    for (ch c = at(p, n, 0, false); c.kind == K_SPACE; c = at(p, n, end, false)) {
        last = end;
        end += c.len;
    }
    return end < n && last > 0 ? last : end;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ at a space: a run is cut behind its last line end. */
static size_t lines_or_spaces(const uint8_t *p, size_t n) {
    size_t end = 0, last = 0, line = 0;
    for (ch c = at(p, n, 0, false); c.kind == K_SPACE; c = at(p, n, end, false)) {
        last = end;
        end += c.len;
        if (c.cp == '\r' || c.cp == '\n') line = end;
    }
    if (line) return line;
    return end < n && last > 0 ? last : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t gpt2(const uint8_t *p, size_t n) {
    ch c = at(p, n, 0, false);
    size_t len = c.cp == '\'' ? contraction(p, n, false) : 0;
    if (len) return len;
    size_t i = c.cp == ' ';
    ch d = i ? at(p, n, 1, false) : c;
    if (d.kind != K_SPACE && d.kind != K_END) return span(p, n, i, d.kind, false);
    return spaces(p, n);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}
 * | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * and, with marks, [\p{L}\p{M}] in place of \p{L}. */
static size_t modern(const uint8_t *p, size_t n, int digits, bool marks) {
    ch c = at(p, n, 0, marks);
    size_t len = c.cp == '\'' ? contraction(p, n, true) : 0;
    if (len) return len;
    if (c.kind == K_NUMBER) {
        for (; digits > 0 && c.kind == K_NUMBER; digits--, c = at(p, n, len, marks)) len += c.len;
        return len;
    }
    if (c.kind == K_LETTER) return span(p, n, 0, K_LETTER, marks);
    ch d = at(p, n, c.len, marks);
    if (d.kind == K_LETTER && c.cp != '\r' && c.cp != '\n')
        return span(p, n, c.len, K_LETTER, marks);
    size_t i = c.cp == ' ';
    if ((i ? d.kind : c.kind) == K_OTHER)
        return span_bytes(p, n, span(p, n, i, K_OTHER, marks), "\r\n");
    return lines_or_spaces(p, n);
}

static size_t llama3(const uint8_t *p, size_t n) {
    return modern(p, n, 3, false);
}
static size_t qwen2(const uint8_t *p, size_t n) {
    return modern(p, n, 1, false);
}
static size_t qwen35(const uint8_t *p, size_t n) {
    return modern(p, n, 1, true);
}

/* U*V+|U+V* at a letter, U being letters but a-z and V letters but A-Z. */
static size_t cased_word(const uint8_t *p, size_t n, size_t i) {
    size_t both = 0; /* end of the last letter that is in U and V */
    ch c = at(p, n, i, false);
    for (; c.kind == K_LETTER && c.cp - 'a' >= 26; c = at(p, n, i, false)) {
        i += c.len;
        if (c.cp >= 0x80) both = i;
    }
    if (c.kind != K_LETTER) return both ? both : i; /* c cannot be in V: give letters back to V+ */
    for (; c.kind == K_LETTER && c.cp - 'A' >= 26; c = at(p, n, i, false)) i += c.len;
    return i;
}

/* [^\r\n\p{L}\p{N}]?(cased word)|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t tekken(const uint8_t *p, size_t n) {
    ch c = at(p, n, 0, false);
    if (c.kind == K_NUMBER) return c.len;
    if (c.kind == K_LETTER) return cased_word(p, n, 0);
    ch d = at(p, n, c.len, false);
    if (d.kind == K_LETTER && c.cp != '\r' && c.cp != '\n') return cased_word(p, n, c.len);
    size_t i = c.cp == ' ';
    if ((i ? d.kind : c.kind) == K_OTHER)
        return span_bytes(p, n, span(p, n, i, K_OTHER, false), "\r\n/");
    return lines_or_spaces(p, n);
}

/* The pieces of "isolate every match": a match, or the text up to the next one. */

static size_t each_number(const uint8_t *p, size_t n) { /* \p{N} */
    ch c = at(p, n, 0, false);
    if (c.kind == K_NUMBER) return c.len;
    size_t i = 0;
    for (; c.kind != K_NUMBER && c.kind != K_END; c = at(p, n, i, false)) i += c.len;
    return i;
}

static size_t numbers(const uint8_t *p, size_t n) { /* \p{N}+ */
    ch c = at(p, n, 0, false);
    return c.kind == K_NUMBER ? span(p, n, 0, K_NUMBER, false) : each_number(p, n);
}

static bool is_digit(uint8_t b) {
    return b >= '0' && b <= '9';
}

static size_t three_digits(const uint8_t *p, size_t n) { /* [0-9][0-9][0-9] */
    for (size_t i = 0; i + 3 <= n; i++)
        if (is_digit(p[i]) && is_digit(p[i + 1]) && is_digit(p[i + 2])) return i ? i : 3;
    return n;
}

static size_t punctuation(const uint8_t *p, size_t n) { /* [\p{P}\$\+<=>\^~\|]+ */
    size_t i = 0;
    bool first = false;
    while (i < n) {
        uint32_t cp;
        size_t len = rv_uc_decode(p + i, n - i, &cp);
        bool in = rv_uc_class(cp) & UC_P || (cp && cp < 0x80 && strchr("$+<=>^~|", (int)cp));
        if (i == 0) first = in;
        if (in != first) break;
        i += len;
    }
    return i;
}

enum { IGNORE_MERGES = 1, ADD_BOS = 2 };

/* Names as files give them, by the expression they stand for. */
static const struct family {
    rv_splitter stage[RV_PRE_MAX_STAGES];
    unsigned flags;
    const char *names;
} FAMILIES[] = {
    {{punctuation, gpt2, numbers, three_digits}, 0, " default "},
    {{gpt2},
     0,
     " gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert"
     " jina-v1-en jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling exaone4 "},
    {{each_number, gpt2},
     0,
     " smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 "},
    {{llama3},
     IGNORE_MERGES | ADD_BOS,
     " llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano "},
    {{llama3}, IGNORE_MERGES, " glm4 glm5 "},
    {{llama3}, 0, " dbrx smaug-bpe chatglm-bpe "},
    {{qwen2},
     0,
     " qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 "},
    {{qwen35}, 0, " qwen35 "},
    {{tekken}, IGNORE_MERGES | ADD_BOS, " tekken "},
};

static bool has_name(const char *names, rv_str name) {
    if (name.n == 0 || name.n > 40 || memchr(name.p, ' ', name.n)) return false;
    char word[44] = " ";
    memcpy(word + 1, name.p, name.n);
    word[name.n + 1] = ' ';
    return strlen(word) == name.n + 2 && strstr(names, word);
}

bool rv_pre_find(rv_pre *out, rv_str name) {
    static const rv_str none = {"default", 7};
    if (name.n == 0) name = none;
    for (size_t i = 0; i < RV_COUNT(FAMILIES); i++) {
        const struct family *f = &FAMILIES[i];
        if (!has_name(f->names, name)) continue;
        *out = (rv_pre){.ignore_merges = f->flags & IGNORE_MERGES, .add_bos = f->flags & ADD_BOS};
        for (int k = 0; k < RV_PRE_MAX_STAGES && f->stage[k]; k++)
            out->stage[out->n_stages++] = f->stage[k];
        return true;
    }
    return false;
}
