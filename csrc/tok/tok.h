/* Tokenizers, built from plain arrays: this layer knows no file format.
 *
 * The public functions of ruvllm.h (rv_tok_encode, rv_tok_decode, ...) are implemented here;
 * rv_tok_open, which reads the arrays from a GGUF, is in engine/tok_gguf.c. */
#ifndef RV_TOK_H
#define RV_TOK_H

#include "base/base.h"

/* Everything a vocabulary says.  Borrowed for the time of rv_tok_new; nothing is kept. */
typedef struct rv_tok_spec {
    rv_str model;         /* "gpt2", "llama", "bert" */
    rv_str pre;           /* pre-tokenizer name, "" when the file names none */
    const rv_str *tokens; /* [n_tokens] */
    size_t n_tokens;
    const float *scores;  /* [n_tokens] or NULL */
    const int32_t *types; /* [n_tokens] rv_tok_type, or NULL: all normal */
    const rv_str *merges; /* [n_merges] "left right", by falling priority */
    size_t n_merges;
    int64_t bos, eos, eot, unk, pad, sep, cls, mask; /* ids; -1: the file does not say */
    int add_bos, add_eos, add_space_prefix;          /* 0, 1; -1: the file does not say */
    int remove_extra_whitespaces, ignore_merges;     /* 0, 1; -1: the file does not say */
} rv_tok_spec;

void rv_tok_spec_init(rv_tok_spec *s); /* all absent */
/* RV_EFORMAT inconsistent (ids out of range, no tokens, duplicate tokens are allowed: the first
 * wins, lengths); RV_EUNSUPPORTED model or pre-tokenizer not known; RV_ENOMEM. */
rv_status rv_tok_new(rv_tok **out, const rv_tok_spec *spec, rv_err *err);

#endif
