/* ruvllm: the public C interface of the core.
 *
 * One header, opaque handles, status codes, contracts.  A function that can fail returns an
 * rv_status (0 or negative) and takes an rv_err last, which may be NULL; on failure the err holds
 * one line naming the thing, the value found and the value wanted, and every out parameter is
 * NULL or untouched.  x_free(T **) takes a handle or NULL and stores NULL.  A child handle keeps
 * its parent alive, so any order of freeing is safe.  The core never exits, aborts, prints or
 * reads an environment variable.  Strings are UTF-8 unless said otherwise. */
#ifndef RUVLLM_H
#define RUVLLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define RV_API
#else
#define RV_API __attribute__((visibility("default")))
#endif

/* ---------------------------------------------------------------- status */

typedef enum rv_status {
    RV_OK = 0,
    RV_EARG = -1,         /* an argument is outside its range */
    RV_EFORMAT = -2,      /* bytes from outside are not what they should be */
    RV_EIO = -3,          /* the operating system refused a file or device operation */
    RV_ENOMEM = -4,       /* an allocation failed */
    RV_EFULL = -5,        /* a stated limit is reached: context, queue, budget */
    RV_ECANCEL = -6,      /* the caller cancelled */
    RV_EUNSUPPORTED = -7, /* valid, but not something this build can do */
    RV_ESTATE = -8,       /* the handle is closed, busy, or not ready for this call */
    RV_ENOTFOUND = -9,    /* no such file, key, row or tensor */
    RV_EINTERNAL = -10,   /* a broken invariant: a bug of ours */
} rv_status;

typedef struct rv_err {
    rv_status code;
    char msg[500]; /* NUL-terminated, one line */
} rv_err;

/* Borrowed bytes: p is NULL only when n is 0; not NUL-terminated. */
typedef struct rv_str {
    const char *p;
    size_t n;
} rv_str;

/* Detect the CPU and fill the kernel table.  Called by every rv_*_open / rv_*_new that needs it;
 * idempotent and thread-safe.  Only the first call does anything. */
RV_API void rv_init(void);
RV_API const char *rv_version(void);

/* Bytes now held by the core's allocator (mappings are not counted). */
RV_API size_t rv_live_bytes(void);
/* Read a buffer of that many bytes once and say how fast that went: what decoding, which reads every
 * weight once per token, can at best reach.  RV_EARG n_threads outside 1 .. 256 or under 1 MiB. */
RV_API rv_status rv_read_bandwidth(int n_threads, size_t bytes, double *bytes_per_s, rv_err *err);
/* Free memory that the core handed to the caller. NULL is allowed. */
RV_API void rv_free(void *p);

/* ---------------------------------------------------------------- tensor types */

/* ggml's numbers, because they are what files hold. */
typedef enum rv_dtype {
    RV_F32 = 0,
    RV_F16 = 1,
    RV_Q4_0 = 2,
    RV_Q4_1 = 3,
    RV_Q5_0 = 6,
    RV_Q5_1 = 7,
    RV_Q8_0 = 8,
    RV_Q2_K = 10,
    RV_Q3_K = 11,
    RV_Q4_K = 12,
    RV_Q5_K = 13,
    RV_Q6_K = 14,
    RV_IQ4_NL = 20,
    RV_IQ4_XS = 23,
    RV_BF16 = 30,
    RV_DTYPE_END = 31,
} rv_dtype;

/* ---------------------------------------------------------------- GGUF files */

typedef struct rv_gguf rv_gguf;

/* Value types, numbered as in the file. */
typedef enum rv_gguf_type {
    RV_GGUF_U8 = 0,
    RV_GGUF_I8 = 1,
    RV_GGUF_U16 = 2,
    RV_GGUF_I16 = 3,
    RV_GGUF_U32 = 4,
    RV_GGUF_I32 = 5,
    RV_GGUF_F32 = 6,
    RV_GGUF_BOOL = 7,
    RV_GGUF_STR = 8,
    RV_GGUF_ARR = 9,
    RV_GGUF_U64 = 10,
    RV_GGUF_I64 = 11,
    RV_GGUF_F64 = 12,
} rv_gguf_type;

/* One metadata pair, borrowed from the open file.  Exactly one of the value members is set. */
typedef struct rv_gguf_kv {
    rv_str key;
    rv_gguf_type type;
    rv_gguf_type elem;   /* of an array: its element type */
    uint64_t n;          /* of an array: its length; else 1 */
    uint64_t u;          /* U8 U16 U32 U64 BOOL */
    int64_t i;           /* I8 I16 I32 I64 */
    double f;            /* F32 F64 */
    rv_str s;            /* STR */
    const uint8_t *data; /* ARR: the elements as they stand in the file (little-endian, unaligned,
                            strings as u64 length + bytes, nested arrays as u32 type + u64 length +
                            elements); validated when the file was opened */
    uint64_t data_bytes;
} rv_gguf_kv;

typedef struct rv_gguf_tensor {
    rv_str name;
    rv_dtype type;
    uint32_t n_dims;   /* 1..4 */
    uint64_t dims[4];  /* dims[0] is the contiguous one; unused ones are 1 */
    uint64_t n_values; /* product of dims */
    uint64_t n_bytes;  /* rows of dims[0] values in the type's blocks */
    uint64_t offset;   /* in its file, absolute */
    uint32_t i_file;   /* 0 .. files - 1: which of the split files */
    const void *data;  /* into the mapping */
} rv_gguf_tensor;

/* Open a GGUF v2 or v3 file, memory-mapped.  Of a split file ("...-00001-of-00003.gguf", any part)
 * the other parts are opened too, and the tensors of all are listed.
 * RV_ENOTFOUND no such file; RV_EIO; RV_EFORMAT with the offset and what was wrong; RV_ENOMEM. */
RV_API rv_status rv_gguf_open(rv_gguf **out, const char *path, rv_err *err);
/* The same over bytes in memory, which must outlive the handle (tests, fuzzing). */
RV_API rv_status rv_gguf_open_mem(rv_gguf **out, const void *p, size_t n, rv_err *err);
RV_API void rv_gguf_free(rv_gguf **g);
RV_API uint32_t rv_gguf_version(const rv_gguf *g);
RV_API uint64_t rv_gguf_alignment(const rv_gguf *g);
RV_API uint64_t rv_gguf_file_bytes(const rv_gguf *g); /* all parts */
RV_API uint64_t rv_gguf_n_kv(const rv_gguf *g);       /* of the first part */
RV_API uint64_t rv_gguf_n_tensors(const rv_gguf *g);
RV_API const rv_gguf_kv *rv_gguf_kv_at(const rv_gguf *g, uint64_t i);         /* i < n_kv */
RV_API const rv_gguf_tensor *rv_gguf_tensor_at(const rv_gguf *g, uint64_t i); /* i < n_tensors */
/* By name, NUL-terminated; NULL when there is none.  O(1). */
RV_API const rv_gguf_kv *rv_gguf_find_kv(const rv_gguf *g, const char *key);
RV_API const rv_gguf_tensor *rv_gguf_find_tensor(const rv_gguf *g, const char *name);
/* Read the next string of a string array: *pos starts at 0 and moves on.  false past the end. */
RV_API bool rv_gguf_next_str(const rv_gguf_kv *kv, uint64_t *pos, rv_str *out);

/* ---------------------------------------------------------------- tokenizers */

typedef struct rv_tok rv_tok;

enum {                     /* rv_tok_encode flags */
       RV_TOK_BOS = 1,     /* put the begin token first, if the vocabulary has one */
       RV_TOK_EOS = 2,     /* put the end token last, if the vocabulary has one */
       RV_TOK_SPECIAL = 4, /* text that spells a control token becomes that token */
};

typedef enum rv_tok_type { /* as in tokenizer.ggml.token_type */
                           RV_TOK_NORMAL = 1,
                           RV_TOK_UNKNOWN = 2,
                           RV_TOK_CONTROL = 3,
                           RV_TOK_USER = 4, /* user-defined: matched as a whole in any text */
                           RV_TOK_UNUSED = 5,
                           RV_TOK_BYTE = 6,
} rv_tok_type;

typedef struct rv_tok_info {
    rv_str model; /* "gpt2", "llama", "bert" */
    rv_str pre;   /* name of the pre-tokenizer as the file gives it, or "" */
    int32_t n_vocab;
    int32_t bos, eos, eot, unk, pad, sep, cls, mask; /* ids, -1 when there is none */
    bool add_bos, add_eos;                           /* what the file asks for by default */
    bool add_space_prefix;
} rv_tok_info;

/* The tokenizer of a GGUF; the file may have no tensors.  Nothing of g is kept.
 * RV_EFORMAT keys missing or inconsistent; RV_EUNSUPPORTED model or pre-tokenizer not known. */
RV_API rv_status rv_tok_open(rv_tok **out, const rv_gguf *g, rv_err *err);
RV_API rv_tok *rv_tok_ref(rv_tok *t);
RV_API void rv_tok_free(rv_tok **t); /* drops one reference */
RV_API const rv_tok_info *rv_tok_get_info(const rv_tok *t);
/* Bytes to ids.  text: any bytes (invalid UTF-8 is replaced as U+FFFD where the kind of
 * vocabulary has no bytes).  *ids is from rv_free.  Time is near linear in n_bytes for any input.
 * Thread-safe on one tokenizer. */
RV_API rv_status rv_tok_encode(const rv_tok *t, const char *text, size_t n_bytes, unsigned flags,
                               int32_t **ids, size_t *n_ids, rv_err *err);
/* Ids to bytes; control tokens give nothing unless special.  *text is from rv_free and is
 * NUL-terminated beyond n_bytes.  RV_EARG: an id outside 0 .. n_vocab - 1. */
RV_API rv_status rv_tok_decode(const rv_tok *t, const int32_t *ids, size_t n_ids, bool special,
                               char **text, size_t *n_bytes, rv_err *err);
/* The bytes one id adds to running text (control tokens: nothing unless special), borrowed. */
RV_API rv_status rv_tok_piece(const rv_tok *t, int32_t id, bool special, rv_str *out, rv_err *err);
/* The token as the vocabulary spells it, borrowed; "" for an id out of range. */
RV_API rv_str rv_tok_text(const rv_tok *t, int32_t id);
RV_API rv_tok_type rv_tok_type_of(const rv_tok *t, int32_t id);
/* The id whose vocabulary spelling is exactly this, or -1. */
RV_API int32_t rv_tok_find(const rv_tok *t, const char *text, size_t n_bytes);
/* True for every token that ends a generation: eos, eot, <|im_end|>, ... */
RV_API bool rv_tok_is_eog(const rv_tok *t, int32_t id);

/* ---------------------------------------------------------------- models */

typedef struct rv_model rv_model;

typedef enum rv_kv_type {
    RV_KV_AUTO = 0, /* F32 when the weights are F32, else F16 */
    RV_KV_F16 = 1,
    RV_KV_F32 = 2,
} rv_kv_type;

typedef enum rv_pooling { /* as in <arch>.pooling_type */
                          RV_POOL_NONE = 0,
                          RV_POOL_MEAN = 1,
                          RV_POOL_CLS = 2,
                          RV_POOL_LAST = 3,
} rv_pooling;

typedef struct rv_model_opts {
    int32_t n_threads; /* 1 .. 256; 0: one per physical core the process may use */
    rv_kv_type kv_type;
    int32_t n_batch; /* tokens per prefill chunk, 1 .. 4096; 0: 128 */
    bool prefault;   /* read the whole file into the page cache while opening */
    /* Called from the opening thread with 0..1; a false return cancels.  May be NULL. */
    bool (*progress)(void *ctx, double fraction);
    void *progress_ctx;
} rv_model_opts;

typedef struct rv_model_info {
    rv_str arch, name;
    int32_t n_vocab, n_embd, n_layer, n_head, n_head_kv /* the largest of any layer */, head_dim;
    int32_t n_ff;
    int32_t n_ctx; /* trained context length */
    int32_t n_swa; /* sliding window in tokens, 0: none */
    bool causal;   /* false: an encoder; it embeds and gives no logits */
    rv_pooling pooling;
    rv_kv_type kv_type;
    int32_t n_threads, n_batch;
    uint64_t n_params, n_bytes;  /* of all tensors */
    uint64_t kv_bytes_per_token; /* of a session */
    rv_dtype main_type;          /* the type most weight bytes have */
} rv_model_info;

/* Open a model: binds and checks every tensor the architecture needs.  Weights stay in the
 * mapping.  RV_EUNSUPPORTED unknown architecture or tensor type; RV_EFORMAT a missing key, a
 * missing tensor or a wrong shape, by name. */
RV_API rv_status rv_model_open(rv_model **out, const char *path, const rv_model_opts *opts,
                               rv_err *err);
RV_API rv_model *rv_model_ref(rv_model *m);
RV_API void rv_model_free(rv_model **m); /* drops one reference */
RV_API const rv_model_info *rv_model_get_info(const rv_model *m);
RV_API rv_tok *rv_model_tok(const rv_model *m); /* borrowed; NULL when the file has no vocabulary */
RV_API const rv_gguf *rv_model_gguf(const rv_model *m); /* borrowed */

/* A flag another thread sets to stop a running call within one layer of one chunk. */
typedef struct rv_cancel rv_cancel;
RV_API rv_status rv_cancel_new(rv_cancel **out, rv_err *err);
RV_API void rv_cancel_free(rv_cancel **c);
RV_API void rv_cancel_set(rv_cancel *c, bool on);
RV_API bool rv_cancel_get(const rv_cancel *c);

/* Embed n_texts token sequences, one after another in tok: text t has len[t] ids.
 *   out  [n_texts][n_embd] float32, rows of unit length
 * An encoder pools as its metadata says; a causal model gives the mean of its final hidden states.
 * RV_EARG id out of range or empty text; RV_EFULL a text longer than the context; RV_ECANCEL.
 * Thread-safe on one model. */
RV_API rv_status rv_model_embed(rv_model *m, const int32_t *tok, const size_t *len, size_t n_texts,
                                rv_cancel *cancel, float *out, rv_err *err);

/* ---------------------------------------------------------------- sessions */

typedef struct rv_session rv_session;

/* A sequence with its KV cache.  n_ctx: most tokens it may hold, 1 .. the model's n_ctx;
 * memory grows as the sequence does.  RV_EUNSUPPORTED for an encoder. */
RV_API rv_status rv_session_new(rv_session **out, rv_model *m, int32_t n_ctx, rv_err *err);
RV_API void rv_session_free(rv_session **s);
/* Run the model over n tokens at the end of the sequence.
 *   tok   [n] ids in [0, n_vocab); copied
 *   all   [n][n_vocab] float32 that receives the logits of every token, or NULL
 * The logits of the last token stay in the session either way.  Split into chunks of the model's
 * n_batch; the result has the same bits for any split, chunk size and thread count.
 * On any error no position is consumed.
 * RV_EARG id out of range or n == 0; RV_EFULL n > room; RV_ECANCEL; RV_ENOMEM.
 * One thread at a time per session; sessions of one model run in parallel. */
RV_API rv_status rv_session_eval(rv_session *s, const int32_t *tok, size_t n, float *all,
                                 rv_cancel *cancel, rv_err *err);
/* Forget everything from position n on.  RV_EUNSUPPORTED when the architecture keeps recurrent
 * state and n is neither 0 nor the present length. */
RV_API rv_status rv_session_truncate(rv_session *s, size_t n, rv_err *err);
RV_API size_t rv_session_n_past(const rv_session *s);
RV_API size_t rv_session_room(const rv_session *s);
/* [n_vocab] logits of the last evaluated token, valid until the next eval; NULL before the first.
 */
RV_API const float *rv_session_logits(const rv_session *s);
RV_API size_t rv_session_kv_bytes(const rv_session *s);

/* ---------------------------------------------------------------- sampling */

typedef struct rv_sampler rv_sampler;

typedef struct rv_sample_params {
    float temperature;       /* >= 0; 0 is greedy */
    int32_t top_k;           /* >= 0; 0 is off */
    float top_p;             /* 0 < p <= 1; 1 is off */
    float min_p;             /* 0 <= p <= 1; 0 is off */
    float typical_p;         /* 0 < p <= 1; 1 is off */
    float repeat_penalty;    /* > 0; 1 is off */
    float frequency_penalty; /* -100 .. 100; 0 is off */
    float presence_penalty;  /* -100 .. 100; 0 is off */
    int32_t penalty_last_n;  /* tokens looked back at, at most 2^20; -1: all, 0: none */
    uint64_t seed;
    const int32_t *bias_ids; /* [n_bias] distinct ids in [0, n_vocab); copied */
    const float *bias;       /* [n_bias] added to the logits; -inf bans a token */
    size_t n_bias;
    int32_t n_logprobs; /* most likely tokens to report, 0 .. 100 */
} rv_sample_params;

typedef struct rv_sampled {
    int32_t id;
    float logprob;          /* nats, of the model's own distribution (softmax of the raw logits) */
    const int32_t *top_ids; /* [n_top] by falling logprob, ties by id; valid until the next call */
    const float *top_logprobs;
    size_t n_top;
} rv_sampled;

RV_API void rv_sample_defaults(rv_sample_params *p); /* greedy: temperature 0, everything off */
/* RV_EARG names the parameter, the value found and the range wanted; NaN is never in range. */
RV_API rv_status rv_sampler_new(rv_sampler **out, const rv_sample_params *p, int32_t n_vocab,
                                rv_err *err);
RV_API void rv_sampler_free(rv_sampler **s);
/* Tell the penalties about tokens that are already in the text (the prompt). */
RV_API rv_status rv_sampler_accept(rv_sampler *s, const int32_t *ids, size_t n, rv_err *err);
/* Choose a token.
 *   logits  [n_vocab], not changed
 *   pos     index of the generated token: the random number depends on (seed, pos) alone
 *   allow   bitmask of ceil(n_vocab / 32) words, bit i % 32 of word i / 32; NULL allows all
 * The chosen token is accepted into the penalty history.
 * RV_EARG a NaN in the logits; RV_ESTATE no token is allowed. */
RV_API rv_status rv_sampler_sample(rv_sampler *s, const float *logits, uint64_t pos,
                                   const uint32_t *allow, rv_sampled *out, rv_err *err);

#ifdef __cplusplus
}
#endif
#endif
