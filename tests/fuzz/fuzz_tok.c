/* Fuzz target: the bytes choose a model, build a small vocabulary and a text, and the text goes
 * through it and back.  What must hold: no crash, ids in range, and for a byte-level vocabulary
 * with every byte, valid UTF-8 comes back as it was. */
#include <stdlib.h>

#include "base/base.h"
#include "tok/unicode.h"

enum { MAX_TOKENS = 256 + 64, MAX_MERGES = 64 };

typedef struct input {
    const uint8_t *p;
    size_t n;
} input;

static uint8_t take(input *in) {
    if (in->n == 0) return 0;
    in->n--;
    return *in->p++;
}

static rv_str take_str(input *in) {
    size_t n = take(in) & 31;
    n = RV_MIN(n, in->n);
    rv_str s = {(const char *)in->p, n};
    in->p += n;
    in->n -= n;
    return s;
}

static size_t add_bytes(rv_str *tokens, char (*spelled)[4]) {
    for (int i = 0; i < 256; i++) {
        uint8_t c[4];
        size_t n = rv_uc_encode(rv_uc_byte_char((uint8_t)i), c);
        memcpy(spelled[i], c, n);
        tokens[i] = (rv_str){spelled[i], n};
    }
    return 256;
}

static void check(bool ok) {
    if (!ok) abort();
}

static void round_trip(const rv_tok *t, input in, unsigned flags, bool exact) {
    int32_t *ids;
    size_t n_ids, n_text;
    char *text;
    check(rv_tok_encode(t, (const char *)in.p, in.n, flags, &ids, &n_ids, NULL) == RV_OK);
    for (size_t i = 0; i < n_ids; i++) {
        check(ids[i] >= 0 && ids[i] < rv_tok_get_info(t)->n_vocab);
        rv_tok_is_eog(t, ids[i]);
    }
    check(rv_tok_decode(t, ids, n_ids, true, &text, &n_text, NULL) == RV_OK);
    if (exact && rv_uc_valid_prefix(in.p, in.n) == in.n)
        check(n_text == in.n && memcmp(text, in.p, in.n) == 0);
    rv_free(text);
    rv_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const models[] = {"gpt2", "llama", "bert", "t5"};
    static const char *const pres[] = {"gpt-2", "llama-bpe", "qwen2",  "smollm",
                                       "",      "tekken",    "qwen35", "nothing"};
    static char spelled[256][4];
    rv_str tokens[MAX_TOKENS], merges[MAX_MERGES];
    int32_t types[MAX_TOKENS];
    float scores[MAX_TOKENS];
    input in = {data, size};
    rv_tok_spec s;
    rv_tok_spec_init(&s);
    uint8_t how = take(&in), n_more = take(&in) & 63, n_merges = take(&in) & 63;
    const char *model = models[how & 3], *pre = pres[how >> 2 & 7];
    bool bytes = how & 32;
    s.model = (rv_str){model, strlen(model)};
    s.pre = (rv_str){pre, strlen(pre)};
    s.n_tokens = bytes ? add_bytes(tokens, spelled) : 0;
    for (size_t i = 0; i < s.n_tokens; i++) types[i] = RV_TOK_NORMAL, scores[i] = 0;
    for (int i = 0; i < n_more; i++) {
        types[s.n_tokens] = take(&in) % 8;
        scores[s.n_tokens] = (float)(int8_t)take(&in);
        tokens[s.n_tokens++] = take_str(&in);
    }
    for (; s.n_merges < n_merges; s.n_merges++) merges[s.n_merges] = take_str(&in);
    s.tokens = tokens;
    s.merges = merges;
    s.types = how & 64 ? types : NULL;
    s.scores = how & 128 ? scores : NULL;
    s.bos = (int8_t)take(&in);
    s.unk = (int8_t)take(&in);
    rv_tok *t;
    rv_err err;
    if (rv_tok_new(&t, &s, &err) != RV_OK) {
        check(!t && err.msg[0]);
        return 0;
    }
    /* with types, single bytes may be spelled by tokens that show nothing */
    bool exact = bytes && !s.types && model[0] == 'g';
    round_trip(t, in, 0, exact);
    round_trip(t, in, RV_TOK_SPECIAL, exact);
    round_trip(t, in, RV_TOK_BOS | RV_TOK_EOS | RV_TOK_SPECIAL, false);
    rv_tok_free(&t);
    return 0;
}
