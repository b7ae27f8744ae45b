/* The inside of a tokenizer, shared by the files of this folder.
 *
 *   text ──specials──► fragments ──one of──► ids
 *     special.c  whole-token matches (user-defined, and control when asked) cut the text
 *     bpe.c      split.c cuts a fragment into words, merge.c merges the bytes of each word
 *     spm.c      merge.c merges the characters of the escaped fragment
 *     wpm.c      words by white space and punctuation, longest match in a trie
 *
 * A tokenizer is immutable once built: every call keeps its own scratch, so threads share it. */
#ifndef RV_TOK_IMPL_H
#define RV_TOK_IMPL_H

#include "base/base.h"

#define RV_TOK_NONE UINT32_MAX

/* Longest text one call takes: indices into it are 32 bits wide, and an escaped space is three
 * bytes. */
#define RV_TOK_MAX_TEXT ((size_t)1 << 30)
/* Longest token of a vocabulary that is matched character by character ("llama", "bert"): the
 * factor by which a hostile vocabulary can slow encoding down.  Real ones stay below 200. */
#define RV_TOK_MAX_TOKEN ((size_t)1024)

/* ---- table.c: many short strings in one block, found by hash ---- */

typedef struct rv_strs {
    char *bytes;
    size_t *end; /* [n]: string i is bytes[end[i - 1] .. end[i]) */
    size_t n, cap, cap_bytes;
} rv_strs;

static inline rv_str rv_strs_at(const rv_strs *s, size_t i) {
    size_t from = i ? s->end[i - 1] : 0;
    return (rv_str){s->bytes + from, s->end[i] - from};
}
bool rv_strs_add(rv_strs *s, const char *p, size_t n); /* false: out of memory */
void rv_strs_free(rv_strs *s);

/* Open addressing over strings kept elsewhere.  The seed keeps a file from choosing collisions. */
typedef struct rv_strtab {
    struct {
        uint32_t tag, id;
    } *slot; /* id RV_TOK_NONE: free */
    size_t mask, n;
    uint64_t seed;
} rv_strtab;

bool rv_strtab_init(rv_strtab *t, size_t n_expected, uint64_t seed);
void rv_strtab_free(rv_strtab *t);
/* The id of p among the strings of s, or RV_TOK_NONE. */
uint32_t rv_strtab_find(const rv_strtab *t, const rv_strs *s, const char *p, size_t n);
/* Enter string id of s unless an equal one is there.  false: out of memory. */
bool rv_strtab_put(rv_strtab *t, const rv_strs *s, uint32_t id);

/* (left, right) -> rank; the first rank put for a pair stays. */
typedef struct rv_pairtab {
    struct {
        uint32_t left, right, rank;
    } *slot; /* rank RV_TOK_NONE: free */
    size_t mask;
    uint64_t seed;
} rv_pairtab;

bool rv_pairtab_init(rv_pairtab *t, size_t n, uint64_t seed);
void rv_pairtab_free(rv_pairtab *t);
uint32_t rv_pairtab_find(const rv_pairtab *t, uint32_t left, uint32_t right);
void rv_pairtab_put(rv_pairtab *t, uint32_t left, uint32_t right, uint32_t rank);

/* A heap of 64-bit keys, least first. */
typedef struct rv_heap {
    uint64_t *key;
    size_t n, cap;
} rv_heap;

bool rv_heap_push(rv_heap *h, uint64_t key); /* false: out of memory */
uint64_t rv_heap_pop(rv_heap *h);            /* n > 0 */
void rv_heap_free(rv_heap *h);

/* ---- trie.c ---- */

/* Nodes are numbered from 0, the root, parents before children. */
typedef struct rv_trie {
    uint32_t root[256];
    struct {
        uint32_t node, child;
        uint8_t byte;
    } *slot; /* edges below the root; child RV_TOK_NONE: free */
    size_t mask, n_edges;
    uint64_t seed;
    int32_t *tok;     /* [n]: token spelled by the path to the node, or -1 */
    uint32_t *parent; /* [n] */
    uint32_t *fail;   /* [n]: longest proper suffix that is a node (after rv_trie_link) */
    uint32_t *link;   /* [n]: longest proper suffix that is a token; 0: none */
    uint32_t *depth;  /* [n] */
    uint8_t *byte;    /* [n]: of the edge from the parent */
    size_t n, cap;
} rv_trie;

bool rv_trie_init(rv_trie *t, uint64_t seed);
void rv_trie_free(rv_trie *t);
/* The first of equal strings stays.  false: out of memory. */
bool rv_trie_put(rv_trie *t, const char *p, size_t n, int32_t tok);
/* Child of node by byte, or RV_TOK_NONE. */
uint32_t rv_trie_child(const rv_trie *t, uint32_t node, uint8_t byte);
bool rv_trie_link(rv_trie *t); /* compute fail and link; false: out of memory */

/* ---- split.c: pre-tokenizers ---- */

typedef size_t (*rv_splitter)(const uint8_t *p, size_t n); /* length of the first piece, n > 0 */

enum { RV_PRE_MAX_STAGES = 4 };
typedef struct rv_pre {
    rv_splitter stage[RV_PRE_MAX_STAGES]; /* each cuts the pieces of the one before */
    int n_stages;
    bool ignore_merges, add_bos;
} rv_pre;

/* false: no pre-tokenizer has this name. */
bool rv_pre_find(rv_pre *out, rv_str name);

/* ---- merge.c ---- */

/* Scratch of a merge: n symbols in a doubly linked list over indices.  val is the user's. */
typedef struct rv_merge {
    uint32_t *val, *next, *prev, *key;
    size_t cap;
    rv_heap heap;
} rv_merge;

typedef struct rv_merge_ops {
    /* Priority of joining the symbols left and right, least first; RV_TOK_NONE: never. */
    uint32_t (*key)(const void *ctx, const rv_merge *m, uint32_t left, uint32_t right);
    /* Make left stand for both. */
    void (*join)(const void *ctx, rv_merge *m, uint32_t left, uint32_t right, uint32_t key);
} rv_merge_ops;

bool rv_merge_reserve(rv_merge *m, size_t n); /* n symbols; false: out of memory */
/* Merge symbols 0 .. n - 1 (n > 0, val filled); afterwards 0, next[0], ... is what is left.
 * O(n log n).  false: out of memory. */
bool rv_merge_run(rv_merge *m, size_t n, const rv_merge_ops *ops, const void *ctx);
void rv_merge_free(rv_merge *m);

/* ---- the tokenizer ---- */

typedef enum rv_tok_kind { RV_TOK_BPE, RV_TOK_SPM, RV_TOK_WPM } rv_tok_kind;

/* Byte-level BPE.  A symbol is a byte string that the vocabulary or a merge names. */
typedef struct rv_bpe {
    rv_pre pre;
    bool ignore_merges;
    uint32_t byte_sym[256];
    int32_t *sym_tok; /* [n_sym] token, or -1 */
    rv_strs sym;
    rv_strtab by_sym;
    rv_pairtab pairs;
    uint32_t *result; /* [n_merges] symbol made by the merge of that rank */
} rv_bpe;

typedef struct rv_spm {
    rv_strtab words; /* tokens that text may become */
    uint32_t *key;   /* [n_vocab] merge priority, least first: falling score */
    int32_t byte_tok[256];
    size_t max_len;  /* of a token in words */
    bool word_bound; /* no token has a space after something else: words are independent */
} rv_spm;

typedef struct rv_wpm {
    rv_trie trie;
    bool lowercase, strip_accents;
} rv_wpm;

enum { RV_TF_EOG = 1, RV_TF_LSTRIP = 2, RV_TF_RSTRIP = 4 };

typedef struct rv_special {
    rv_trie trie;
    uint32_t *rank;    /* [trie.n] of the token at a node: longest first, then lowest id */
    uint32_t *node_of; /* [n] node by rank */
    size_t n;
} rv_special;

struct rv_tok {
    atomic_uint refs;
    rv_tok_kind kind;
    rv_tok_info info;
    char *names; /* what info.model and info.pre point into */
    size_t n_vocab;
    uint64_t seed;
    rv_strs text, piece;
    rv_strtab by_text;
    uint8_t *type, *flags; /* [n_vocab] */
    rv_special user, all;  /* matched always; matched when special tokens are asked for */
    rv_bpe bpe;
    rv_spm spm;
    rv_wpm wpm;
};

typedef struct rv_ids {
    int32_t *p;
    size_t n, cap;
} rv_ids;

static inline bool rv_ids_add(rv_ids *v, int32_t id) {
    if (v->n == v->cap && !rv_grow((void **)&v->p, &v->cap, v->n + 1, sizeof *v->p)) return false;
    v->p[v->n++] = id;
    return true;
}

/* Scratch of one call of rv_tok_encode. */
typedef struct rv_enc {
    const rv_tok *t;
    rv_ids out;
    rv_merge merge;
    uint8_t *buf; /* repaired or escaped text */
    size_t cap_buf;
    uint32_t *off; /* spm: offsets of symbols */
    size_t cap_off;
} rv_enc;

/* Text of this type may come out of merging or matching words.  Control, unknown and byte tokens
 * may not: no text spells its way to them. */
static inline bool rv_tok_from_text(uint8_t type) {
    return type == RV_TOK_NORMAL || type == RV_TOK_USER || type == RV_TOK_UNUSED;
}

static inline bool rv_str_eq(rv_str s, const char *z) {
    size_t n = strlen(z);
    return s.n == n && memcmp(s.p, z, n) == 0;
}

/* vocab_special.c: find the special tokens, flags and types that names decide. */
rv_status rv_tok_find_specials(rv_tok *t, const rv_tok_spec *spec, rv_err *err);
/* decode.c: fill t->piece; false: out of memory. */
bool rv_tok_make_pieces(rv_tok *t);

rv_status rv_bpe_init(rv_tok *t, const rv_tok_spec *spec, rv_err *err);
rv_status rv_spm_init(rv_tok *t, const rv_tok_spec *spec, rv_err *err);
rv_status rv_wpm_init(rv_tok *t, const rv_tok_spec *spec, rv_err *err);
void rv_bpe_free(rv_bpe *b);
void rv_spm_free(rv_spm *s);
void rv_wpm_free(rv_wpm *w);

/* One fragment to ids at the end of e->out.  false: out of memory. */
bool rv_bpe_encode(rv_enc *e, const uint8_t *p, size_t n);
bool rv_spm_encode(rv_enc *e, const uint8_t *p, size_t n);
bool rv_wpm_encode(rv_enc *e, const uint8_t *p, size_t n);

/* special.c */
bool rv_special_init(rv_special *s, const rv_tok *t, bool control);
void rv_special_free(rv_special *s);
/* Cut p[0 .. n) and call fn for each part in order: a piece of text (token -1) or a whole token.
 * Two pieces of text never follow one another.  false: out of memory, or fn said so. */
typedef bool (*rv_special_fn)(rv_enc *e, const uint8_t *p, size_t n, int32_t token);
bool rv_special_cut(const rv_special *s, rv_enc *e, const uint8_t *p, size_t n, rv_special_fn fn);

#endif
