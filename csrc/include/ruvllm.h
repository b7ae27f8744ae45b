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
/* Read a buffer of that many bytes once and say how fast that went: what decoding, which reads
 * every weight once per token, can at best reach.  RV_EARG n_threads outside 1 .. 256 or under 1
 * MiB. */
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
RV_API const rv_gguf_kv *rv_gguf_kv_at(const rv_gguf *g, uint64_t i); /* i < n_kv */
/* The tensors stand in one array: at(i) is at(0) + i. */
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

/* Everything a vocabulary says, as plain arrays.  Borrowed for the time of rv_tok_new; nothing is
 * kept. */
typedef struct rv_tok_spec {
    rv_str model;         /* "gpt2", "llama", "bert" */
    rv_str pre;           /* pre-tokenizer name, "" when the file names none */
    rv_str arch, name;    /* of the model: a few vocabularies need them (tok/vocab_special.c) */
    const rv_str *tokens; /* [n_tokens] */
    size_t n_tokens;
    const float *scores;  /* [n_tokens] or NULL */
    const int32_t *types; /* [n_tokens] rv_tok_type, or NULL: all normal */
    const rv_str *merges; /* [n_merges] "left right", by falling priority */
    size_t n_merges;
    int64_t bos, eos, eot, eom, unk, pad, sep, cls, mask; /* ids; -1: the file does not say */
    int64_t fim_pre, fim_suf, fim_mid, fim_pad, fim_rep, fim_sep;
    int add_bos, add_eos, add_space_prefix;      /* 0, 1; -1: the file does not say */
    int remove_extra_whitespaces, ignore_merges; /* 0, 1; -1: the file does not say */
    int lowercase, strip_accents;                /* bert; 0, 1; -1: the file does not say */
} rv_tok_spec;

RV_API void rv_tok_spec_init(rv_tok_spec *s); /* all absent */
/* RV_EFORMAT inconsistent (ids out of range, no tokens, lengths; duplicate tokens are allowed: the
 * first wins); RV_EUNSUPPORTED model or pre-tokenizer not known, or a token too long to be matched
 * in linear time; RV_ENOMEM. */
RV_API rv_status rv_tok_new(rv_tok **out, const rv_tok_spec *spec, rv_err *err);

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

/* ---------------------------------------------------------------- memory */

/* One byte budget for several holders of memory: pages of keys and values, adapters, weights of
 * routers.
 *
 * A member says how much it wants before it allocates and gives it back after it has freed.  When
 * the budget is full, members are asked to free what they can do without: those of the lowest
 * priority first, of equals the least recently used.  A member whose holdings must not be lost
 * writes them away before it frees them.
 *
 * U1  used <= budget at every instant, whatever the threads do: bytes are counted before they are
 *     allocated, and a claim is one compare-and-swap.
 * U2  No lock is held while a member frees or is told; members may take, give and leave meanwhile.
 * U3  A claim that cannot be met changes nothing of its member and says why in numbers.  Where not
 *     even all that others hold would do, nobody is asked.
 *
 * Thread-safe. */
typedef struct rv_budget rv_budget;
typedef struct rv_budget_member rv_budget_member;

/* Free about that many bytes of what can be done without (rv_budget_give as they go), never what is
 * in use; whether anything was freed.  Called by the thread of whoever wants memory, by one at a
 * time. */
typedef bool (*rv_budget_shrink)(void *ctx, uint64_t want);

RV_API rv_status rv_budget_new(rv_budget **out, uint64_t bytes, rv_err *err);
RV_API rv_budget *rv_budget_ref(rv_budget *b);
RV_API void rv_budget_free(rv_budget **b); /* drops one reference; members hold one each */
/* shrink may be NULL: nothing can be done without.  name is copied. */
RV_API rv_status rv_budget_join(rv_budget_member **out, rv_budget *b, const char *name,
                                int priority, rv_budget_shrink shrink, void *ctx, rv_err *err);
/* Waits until no other thread is in a function of it, and none will be; what it still holds is
 * given back.  A function of the member itself may do this: then ctx has to last until that
 * returns.  Two functions of two members must not make each other's leave. */
RV_API void rv_budget_leave(rv_budget_member **m);
/* RV_EFULL what was wanted, the budget, and who holds how much of it. */
RV_API rv_status rv_budget_take(rv_budget_member *m, uint64_t bytes, rv_err *err);
RV_API void rv_budget_give(rv_budget_member *m, uint64_t bytes);
/* It is now the most recently used of its priority. */
RV_API void rv_budget_use(rv_budget_member *m);
RV_API uint64_t rv_budget_held(const rv_budget_member *m);
/* A new budget; with less than is held members are asked to free.  What is over it still. */
RV_API uint64_t rv_budget_resize(rv_budget *b, uint64_t bytes);
/* A member that holds nothing and is told, outside of all locks, when use rises to that fraction of
 * the budget, 0 < fraction <= 1, or a smaller budget lowers it to what is used: once each time. */
RV_API rv_status rv_budget_watch(rv_budget_member **out, rv_budget *b, double fraction,
                                 void (*tell)(void *ctx), void *ctx, rv_err *err);

typedef struct rv_budget_stats {
    uint64_t budget, used, peak;
    uint64_t n_refused, n_shrinks; /* claims; calls of shrink */
} rv_budget_stats;
RV_API void rv_budget_get_stats(const rv_budget *b, rv_budget_stats *out);

typedef struct rv_budget_holding {
    char name[64]; /* as much of it as fits */
    int priority;
    uint64_t bytes;
} rv_budget_holding;
/* Who holds something, in the order in which they would be asked; cap of them are filled in.  How
 * many there are. */
RV_API size_t rv_budget_list(rv_budget *b, rv_budget_holding *out, size_t cap);

/* ---------------------------------------------------------------- models */

typedef struct rv_model rv_model;

typedef enum rv_kv_type {
    RV_KV_AUTO = 0, /* F32 when the weights are F32, else F16 */
    RV_KV_F16 = 1,
    RV_KV_F32 = 2,
    RV_KV_Q8_0 = 3, /* 8 bits and a scale per 32 values; heads take whole blocks of 32 */
    RV_KV_Q4_0 = 4, /* 4 bits, the same */
    RV_KV_K8V4 = 5, /* keys in Q8_0, values in Q4_0; of a store only */
} rv_kv_type;

/* Which free page is taken: of the lowest-numbered slab that has one, of the slab with the fewest,
 * of the next slab in turn. */
typedef enum rv_fit { RV_FIT_FIRST = 0, RV_FIT_BEST = 1, RV_FIT_ROUND_ROBIN = 2 } rv_fit;

typedef enum rv_pooling { /* as in <arch>.pooling_type */
                          RV_POOL_NONE = 0,
                          RV_POOL_MEAN = 1,
                          RV_POOL_CLS = 2,
                          RV_POOL_LAST = 3,
} rv_pooling;

/* Quantised weights are held a second time in memory, in the order the kernels read (the file's
 * pages are given back); results do not change, decoding is faster. */
typedef enum rv_repack {
    RV_REPACK_AUTO = 0, /* where it leaves half of the available memory free */
    RV_REPACK_NEVER = 1,
    RV_REPACK_ALWAYS = 2
} rv_repack;

/* What a product of a matrix may give up to be quicker.  With both the order of a sum depends on
 * the model and the tokens alone, so a result does too: not on batches, chunks or threads.
 *   EXACT  activations are float32 under float weights, 8 bits under quantised ones
 *   FAST   under BF16 weights they are rounded to BF16, where the CPU multiplies pairs of those
 *          (AVX512_BF16); elsewhere, and under weights of other types, as EXACT */
typedef enum rv_numerics { RV_NUMERICS_EXACT = 0, RV_NUMERICS_FAST = 1 } rv_numerics;

typedef struct rv_model_opts {
    int32_t n_threads; /* 1 .. 256; 0: one per physical core the process may use */
    rv_kv_type kv_type;
    int32_t n_batch; /* tokens per prefill chunk, 1 .. 4096; 0: 128 */
    bool prefault;   /* read the whole file into the page cache while opening */
    rv_repack repack;
    rv_numerics numerics;
    /* Keys and values of all sequences of the model, engine and sessions alike. */
    uint64_t kv_budget;  /* bytes; 0: half of the memory that is available */
    rv_budget *memory;   /* instead of kv_budget: a budget shared with others; NULL: none */
    rv_kv_type kv_store; /* Q8_0 Q4_0 K8V4: positions older than the tail move there; AUTO: none */
    bool kv_no_rotate;   /* do not rotate the keys of the store (Hadamard) */
    int32_t kv_tail;     /* positions, a multiple of 64; 0: 256 */
    int32_t kv_batch;    /* positions that move at once, a multiple of 64; 0: 64 */
    rv_fit kv_fit;
    bool no_sharing; /* sequences with equal beginnings do not share pages */
    /* Called from the opening thread with 0..1; a false return cancels.  May be NULL. */
    bool (*progress)(void *ctx, double fraction);
    void *progress_ctx;
} rv_model_opts;

typedef struct rv_model_info {
    rv_str arch, name;
    int32_t n_vocab, n_embd, n_layer, n_head, n_head_kv /* the largest of any layer */, head_dim;
    int32_t n_ff;
    int32_t n_ctx;       /* trained context length */
    int32_t n_swa;       /* sliding window in tokens, 0: none */
    int32_t n_kv_layers; /* that keep keys and values */
    bool causal;         /* false: an encoder; it embeds and gives no logits */
    rv_pooling pooling;
    rv_kv_type kv_type, kv_store; /* kv_store: AUTO, none */
    rv_numerics numerics;         /* FAST: asked for, and it makes a difference here */
    int32_t n_threads, n_batch;
    uint64_t n_params, n_bytes;        /* of all tensors */
    uint64_t kv_bytes_per_token;       /* of a session */
    uint64_t kv_store_bytes_per_token; /* of the positions that have moved there; 0: no store */
    rv_dtype main_type;                /* the type most weight bytes have */
} rv_model_info;

/* Open a model: binds and checks every tensor the architecture needs.  Weights stay in the
 * mapping.  RV_EUNSUPPORTED unknown architecture or tensor type, or heads too wide for a
 * kv_store; RV_EFORMAT a missing key, a missing tensor or a wrong shape, by name; RV_EARG
 * an option out of range; RV_EFULL a budget that does not hold a block of 64 positions. */
RV_API rv_status rv_model_open(rv_model **out, const char *path, const rv_model_opts *opts,
                               rv_err *err);
RV_API rv_model *rv_model_ref(rv_model *m);
RV_API void rv_model_free(rv_model **m); /* drops one reference */
RV_API const rv_model_info *rv_model_get_info(const rv_model *m);
/* Bytes held by repacked weights so far: all or none of them count. */
RV_API size_t rv_model_repacked_bytes(const rv_model *m);
/* Bytes of the work areas of forward passes that wait for their next use. */
RV_API size_t rv_model_work_bytes(rv_model *m);
/* The budget its keys and values are counted in, borrowed; NULL for an encoder. */
RV_API rv_budget *rv_model_memory(const rv_model *m);
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
typedef struct rv_kv_cache rv_kv_cache;

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
 * RV_EARG id out of range or n == 0; RV_EFULL n > room, or the model's budget is used up;
 * RV_ECANCEL; RV_ENOMEM.
 * One thread at a time per session; sessions of one model run in parallel. */
RV_API rv_status rv_session_eval(rv_session *s, const int32_t *tok, size_t n, float *all,
                                 rv_cancel *cancel, rv_err *err);
/* Forget everything from position n on.  0 and the present length are always possible;
 * RV_EUNSUPPORTED when the recurrent state behind n is not kept, or with a store when n is too far
 * back. */
RV_API rv_status rv_session_truncate(rv_session *s, size_t n, rv_err *err);
/* Have the session hold as much of tok [n] as can be had without computing, at most n - 1 tokens:
 * what it has in common with them, or what the model's cache knows of them if that is more.  The
 * rest is for rv_session_eval.  *n_past: how many.  RV_EARG n == 0; RV_EFULL n > n_ctx. */
RV_API rv_status rv_session_start(rv_session *s, const int32_t *tok, size_t n, size_t *n_past,
                                  rv_err *err);
/* Another session with the same contents and no logits; memory is shared until one goes on. */
RV_API rv_status rv_session_fork(rv_session **out, const rv_session *s, rv_err *err);
/* Write keys, values and state into a file, whole or not at all; and take them back: as
 * rv_session_start, from the file.  The file is refused unless it was written with the same kv
 * options, kernels and numerics, and the same digest (any bytes that tell the model and whatever
 * else keys and values depend on).
 * save: RV_EARG an empty session; RV_EIO.  load: RV_ENOTFOUND; RV_EIO; RV_EFORMAT damaged;
 * RV_EUNSUPPORTED of another version, model or kind; RV_EFULL no room. */
RV_API rv_status rv_session_save(rv_session *s, const char *path, rv_str digest, rv_err *err);
RV_API rv_status rv_session_load(rv_session *s, const char *path, rv_str digest, const int32_t *tok,
                                 size_t n, size_t *n_past, rv_err *err);

/* A page of keys and values as it lies in memory: 16 positions of one layer, head after head. */
typedef struct rv_page_view {
    const void *at; /* [n_heads][run_bytes] */
    size_t n_heads, head_dim, run_bytes;
    rv_kv_type type;    /* of what is there */
    bool rotated;       /* keys are Hadamard-rotated */
    size_t n_tokens;    /* 1 .. 16 of the positions hold something */
    rv_kv_cache *cache; /* for rv_page_view_free */
    uint32_t page;
} rv_page_view;
/* The page with positions 16 * i_page and on of the i_layer-th layer that keeps keys; with a store,
 * old ones are seen as it holds them.  It stays as it is until rv_page_view_free, also when the
 * session goes on.  RV_EARG out of range. */
RV_API rv_status rv_session_page(rv_session *s, size_t i_layer, size_t i_page, rv_page_view *out,
                                 rv_err *err);
RV_API void rv_page_view_free(rv_page_view *p);
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
    int32_t n_logprobs; /* most likely tokens to report, 0 .. 100; -1: no logprob at all */
} rv_sample_params;

typedef struct rv_sampled {
    int32_t id;
    float logprob;          /* nats, softmax of the raw logits; NaN when n_logprobs is -1 */
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

/* ---------------------------------------------------------------- engine */

/* Continuous batching: one forward pass per step over rows of many requests. */
typedef struct rv_engine rv_engine;

/* Who goes first among requests of one priority: the first to come, the one with the fewest tokens
 * left to compute, the tenant that has had least (virtual token counter; Sheng et al. 2023). */
typedef enum rv_policy { RV_POLICY_FCFS = 0, RV_POLICY_SJF = 1, RV_POLICY_FAIR = 2 } rv_policy;

typedef enum rv_priority {
    RV_PRIORITY_LOW = 0,
    RV_PRIORITY_NORMAL = 1,
    RV_PRIORITY_HIGH = 2,
    RV_PRIORITY_CRITICAL = 3,
} rv_priority;

typedef enum rv_finish {
    RV_FINISH_NONE = 0,   /* it goes on */
    RV_FINISH_STOP = 1,   /* an end token, or a stop string that the caller saw */
    RV_FINISH_LENGTH = 2, /* max_tokens, or the context is full */
    RV_FINISH_CANCELLED = 3,
    RV_FINISH_DEADLINE = 4,
    RV_FINISH_ERROR = 5,
} rv_finish;

typedef struct rv_engine_opts { /* 0 everywhere gives the defaults */
    rv_policy policy;
    int32_t n_ctx;            /* most tokens of a sequence; 0: the model's */
    int32_t max_rows;         /* of a step, 1 .. 4096; 0: 128 + max_running */
    int32_t max_chunk;        /* prompt tokens of one request in a step; 0: n_batch of the model */
    int32_t max_running;      /* requests at once, 1 .. 4096; 0: 64, or max_rows if that is less */
    int32_t max_queue;        /* requests that wait, 1 .. 100,000; 0: 1000 */
    int64_t max_queue_tokens; /* tokens of their prompts, 1 .. 2^40; 0: 2^22 */
    int32_t age_steps;        /* steps of waiting that lift a request by one priority; 0: 200 */
    int32_t max_preempt;      /* of one request, 1 .. 1000; 0: 3 */
    /* An existing folder for keys and values of requests and conversations that are not running, of
     * this engine alone; copied.  NULL: they stay in memory or are computed again. */
    const char *spill_dir;
    rv_str spill_digest; /* as the digest of rv_session_save; copied */
    bool swap;           /* preempted requests are written to spill_dir, not computed again */
} rv_engine_opts;

/* What keys and values of a sequence depend on besides model and tokens.  Beginnings are shared
 * among sequences of equal scopes only. */
typedef struct rv_scope {
    rv_str salt;     /* any bytes */
    int32_t kv_tail; /* newest positions that stay in kv_type, a multiple of 64; 0, or without a
                        kv_store: as the model has it */
} rv_scope;

typedef struct rv_engine_request {
    const int32_t *tok; /* [n] prompt; copied */
    size_t n;
    int32_t max_tokens;             /* >= 1 */
    const rv_sample_params *params; /* NULL: greedy; copied */
    const uint32_t *allow;   /* as rv_engine_allow, for the first choice; NULL: all; copied */
    const int32_t *stop_ids; /* [n_stop] end the generation as end tokens do; copied */
    size_t n_stop;
    bool ignore_eog; /* end tokens do not end it */
    rv_priority priority;
    uint64_t tenant;      /* for RV_POLICY_FAIR */
    uint64_t deadline_ms; /* from now; 0: none */
    rv_scope scope;       /* its salt is copied */
    /* A file of rv_engine_park with n_restore tokens of the same beginning, which is read where the
     * cache has less of it; copied.  NULL: none. */
    const char *restore;
    size_t n_restore;
} rv_engine_request;

typedef struct rv_engine_event {
    uint64_t request;
    int32_t token;          /* -1: none */
    float logprob;          /* as in rv_sampled; NaN without a token */
    const int32_t *top_ids; /* [n_top], borrowed until the next step, as everything here */
    const float *top_logprobs;
    size_t n_top;
    rv_finish finish;
    const rv_err *err;  /* when finish is RV_FINISH_ERROR, else NULL */
    size_t n_cached;    /* prompt tokens that were found and not computed */
    size_t n_restored;  /* tokens that came from the file of the request */
    const rv_err *lost; /* why that file, or what was swapped out, was of no use; NULL: nothing */
    uint32_t n_preempted;
} rv_engine_event;

typedef struct rv_engine_stats {
    uint64_t n_waiting, n_running, n_steps, n_rows, n_tokens;
    uint64_t n_submitted, n_refused, n_preempted;
    uint64_t n_finished, n_cancelled; /* finished: for any reason; of them cancelled */
    uint64_t n_prompt, n_cached;      /* tokens of admitted prompts, and those found in the cache */
    double step_ms, rows_per_step;    /* moving averages; step_ms: of the scheduler's own work */
} rv_engine_stats;

typedef struct rv_kv_stats { /* of a model; zeros for an encoder */
    uint64_t budget_bytes;   /* others may hold part of it */
    uint64_t held_bytes, peak_bytes, used_bytes;
    uint64_t n_pages, n_pages_free; /* that something refers to; without such, in held memory */
    /* Pages kept for requests to come only, and those of them that had to go. */
    uint64_t n_evictable, n_evicted, evictable_bytes;
    uint64_t n_nodes, n_sequences;
    uint64_t n_looked_up, n_hit;   /* prompt tokens */
    uint64_t n_migrated, n_copied; /* blocks moved to the store; pages copied on write */
} rv_kv_stats;
RV_API void rv_model_get_kv_stats(const rv_model *m, rv_kv_stats *out);

/* RV_EUNSUPPORTED for an encoder; RV_EARG an option out of range.  Keeps the model alive. */
RV_API rv_status rv_engine_new(rv_engine **out, rv_model *m, const rv_engine_opts *o, rv_err *err);
RV_API void rv_engine_free(rv_engine **e);
/* Queue a request; ids rise.  The last token of a request needs no place in the context, so a
 * prompt may be as long as that.  RV_EARG; RV_EFULL the queue is full, or the request can never fit
 * (numbers); RV_ESTATE in a forked process.  Thread-safe. */
RV_API rv_status rv_engine_submit(rv_engine *e, const rv_engine_request *r, uint64_t *id,
                                  rv_err *err);
/* End a request before the next step, which reports it; reason RV_FINISH_CANCELLED or
 * RV_FINISH_STOP.  RV_ENOTFOUND unknown or ended.  Thread-safe. */
RV_API rv_status rv_engine_cancel(rv_engine *e, uint64_t id, rv_finish reason, rv_err *err);
/* Which tokens the next choice of a request may take, and no later one: bitmask as in
 * rv_sampler_sample, copied; NULL: all.  RV_ENOTFOUND; RV_ENOMEM.  Thread-safe. */
RV_API rv_status rv_engine_allow(rv_engine *e, uint64_t id, const uint32_t *allow, rv_err *err);
/* One step; *events are borrowed until the next one.  *idle: nothing runs or waits.  One thread at
 * a time (RV_ESTATE otherwise).  An error is no request's fault (RV_ENOMEM; RV_EFULL: sessions, or
 * others of the model's budget, hold the memory for keys and values): nothing was computed, the
 * step may be tried again; the *n events of requests that ended before it are there. */
RV_API rv_status rv_engine_step(rv_engine *e, const rv_engine_event **events, size_t *n, bool *idle,
                                rv_err *err);
RV_API void rv_engine_get_stats(rv_engine *e, rv_engine_stats *out);

/* A conversation between its requests, in the thread that steps (RV_ESTATE in another while it
 * does).
 *
 * Begin to write what the cache has of tok [n] and could be resumed: *n_kept tokens into a file of
 * *n_bytes, whole or not at all.  0: nothing is there, and nothing is written.  RV_EUNSUPPORTED
 * without spill_dir; RV_ESTATE one is being written; RV_EIO; RV_ENOMEM. */
RV_API rv_status rv_engine_park(rv_engine *e, const char *path, const rv_scope *scope,
                                const int32_t *tok, size_t n, size_t *n_kept, uint64_t *n_bytes,
                                rv_err *err);
/* About n_bytes more of it; *done: the file is there, or nothing was being written.  An error ends
 * it, and a file that was there before stands. */
RV_API rv_status rv_engine_park_more(rv_engine *e, uint64_t n_bytes, bool *done, rv_err *err);
/* How many of tok [n] a request would find in the cache.  Thread-safe. */
RV_API rv_status rv_engine_peek(rv_engine *e, const rv_scope *scope, const int32_t *tok, size_t n,
                                size_t *out, rv_err *err);
/* Give back the memory of what the cache keeps of tok [n] and of no other continuation.
 * Thread-safe. */
RV_API rv_status rv_engine_forget(rv_engine *e, const rv_scope *scope, const int32_t *tok, size_t n,
                                  rv_err *err);

/* ---- store ---- */

/* The store: <dir>/memory.db, SQLite in WAL mode.  One thread of the core writes; callers queue.
 * Columns, meaning and durability are described in docs/store.md. */
typedef struct rv_store rv_store;

typedef struct rv_store_opts { /* 0 everywhere gives the defaults */
    int32_t queue_depth;       /* rows that may wait, 1 .. 1,000,000; 0: 10,000 */
    int64_t queue_bytes;       /* bytes that may wait, 1 .. 2^40; 0: 256 MiB */
    int32_t max_batch;         /* rows per commit, 1 .. 100,000; 0: 100 */
    int32_t max_wait_ms;       /* longest a row waits for others, 1 .. 3,600,000; 0: 1000 */
    int32_t busy_timeout_ms;   /* wait for another process's lock, 1 .. 3,600,000; 0: 5000 */
} rv_store_opts;

typedef enum rv_value_type {
    RV_VAL_NULL = 0,
    RV_VAL_INT = 1,
    RV_VAL_REAL = 2,
    RV_VAL_TEXT = 3,
    RV_VAL_BLOB = 4,
} rv_value_type;

typedef struct rv_value { /* the member of its type is set, the others are 0 */
    rv_value_type type;
    int64_t i;
    double f;
    rv_str s; /* TEXT (UTF-8) and BLOB */
} rv_value;

/* An entry of the witness log.  Everything is borrowed and copied by the call.  Null is written as
 * p == NULL in a string, NaN in a double, INT64_MIN in an integer, set == false in seed. */
typedef struct rv_opt_u64 {
    uint64_t v;
    bool set;
} rv_opt_u64;

typedef struct rv_witness {
    rv_str id; /* 36 characters, lower-case UUID; null: the store makes one (version 7) */
    rv_str request_id, session_id;
    int64_t ts_ms; /* UTC; null: now */
    rv_str kind;   /* "generate", "chat" or "embed" */
    rv_str model_used, model_name, model_digest, model_path, adapter;
    rv_str routing;    /* JSON */
    double propensity; /* 0 .. 1 */
    rv_str policy_version;
    rv_str query_embedding, response_embedding; /* float32, little-endian */
    double quality_score;                       /* 0 .. 1 */
    rv_str quality_metrics;                     /* JSON */
    double embedding_ms, retrieval_ms, routing_ms, attention_ms, generation_ms, total_ms;
    double prefill_ms, queue_ms;
    rv_str context_doc_ids, error, tags;                     /* JSON */
    rv_str prompt_text, prompt_ids, output_text, output_ids; /* ids: int32, little-endian */
    rv_opt_u64 seed; /* stored as the int64 of the same bits */
    rv_str params;   /* JSON */
    rv_str finish_reason;
    int64_t n_prompt, n_output;
    rv_str engine; /* JSON */
    rv_str user_id;
} rv_witness;

typedef enum rv_field_type {
    RV_FIELD_TEXT = 0, /* rv_str */
    RV_FIELD_JSON = 1, /* rv_str; the table refuses what is not JSON */
    RV_FIELD_BLOB = 2, /* rv_str */
    RV_FIELD_REAL = 3, /* double */
    RV_FIELD_INT = 4,  /* int64_t */
    RV_FIELD_U64 = 5,  /* rv_opt_u64 */
} rv_field_type;

typedef struct rv_witness_field {
    const char *name; /* of the member and of the column */
    rv_field_type type;
    size_t offset; /* in rv_witness */
} rv_witness_field;

typedef struct rv_store_stats {
    uint64_t queued;        /* rows accepted since opening */
    uint64_t written;       /* rows committed */
    uint64_t dropped;       /* rows a full queue refused, or given up on (critical; by close) */
    uint64_t failed;        /* rows the table refused */
    uint64_t batches;       /* commits */
    uint64_t retries;       /* commits that failed and were or will be tried again */
    uint64_t queue_depth;   /* rows waiting now */
    uint64_t queue_bytes;   /* bytes waiting now */
    uint64_t queued_seq;    /* number of the last row accepted, counted from 1 by this handle */
    uint64_t committed_seq; /* up to here all is settled (written, or failed and counted): it
                               survives the death of the process */
    uint64_t durable_seq;   /* up to here it survives the loss of power as well */
    bool failing;           /* the last commit failed and its rows still wait */
    bool ofd_locks;         /* file locks belong to our handles, not to the process */
    rv_err last_error;      /* of the newest row or commit that failed; RV_OK: none did */
} rv_store_stats;

RV_API void rv_witness_init(rv_witness *w); /* all null, kind "generate" */
/* The columns a caller sets, in the table's order. */
RV_API const rv_witness_field *rv_witness_fields(size_t *n);

/* Open (or make) the store in the folder dir, which is made with its parents (mode 0700) when it
 * is missing; the file gets mode 0600.
 * RV_EIO the folder or file cannot be made, read or written; RV_EFORMAT the file is not a database,
 * is another program's, or is damaged; RV_EUNSUPPORTED the schema is newer than this build (nothing
 * is written) or the file system cannot do WAL; RV_ESTATE the file was open in the parent when this
 * process was forked; RV_EARG an option out of range; RV_ENOMEM. */
RV_API rv_status rv_store_open(rv_store **out, const char *dir, const rv_store_opts *opts,
                               rv_err *err);
/* Write what waits, stop the thread, close the file.  A second call does nothing.  Safe beside
 * other calls, which then return RV_ESTATE.  The handle is closed whatever is returned:
 * RV_EIO rows could not be written and are lost (their number); RV_EFORMAT the table refused rows
 * since the last durable flush. */
RV_API rv_status rv_store_close(rv_store *s, rv_err *err);
RV_API void rv_store_free(rv_store **s);             /* closes first */
RV_API const char *rv_store_path(const rv_store *s); /* of the file, absolute; borrowed */

/* A new id: UUID version 7, later ones of a handle sort after earlier ones. */
RV_API rv_status rv_store_new_id(rv_store *s, char out[37], rv_err *err);
/* Queue an entry; never waits for the disk unless critical.
 *   critical  return when the entry is on the disk (fsync).  Such an entry is taken even when the
 *             queue is full; when it cannot be written it is given up and the error says why.
 *   id_out    gets the id, or may be NULL
 * RV_EARG a field out of range; RV_EFULL the queue is full (counted in dropped); RV_EFORMAT
 * critical, and the table refuses it; RV_EIO critical, and not written; RV_ESTATE closed, or the
 * process is a fork; RV_ENOMEM.  Thread-safe. */
RV_API rv_status rv_store_witness_put(rv_store *s, const rv_witness *w, bool critical,
                                      char id_out[37], rv_err *err);

typedef enum rv_write {
    RV_WRITE_DIGEST = 0, /* path TEXT, size INT, mtime_ns INT, inode INT, digest TEXT */
    RV_WRITE_META = 1,   /* key TEXT, value TEXT */
} rv_write;
/* Queue another row; as rv_store_witness_put. */
RV_API rv_status rv_store_write(rv_store *s, rv_write which, const rv_value *args, size_t n,
                                bool critical, rv_err *err);

/* Wait until every row queued before this call is committed, or with durable is on the disk.
 *   timeout_ms  negative: no limit
 * RV_ESTATE closed, or the time is over (how many rows still wait); RV_EIO a commit failed: the
 * rows stay queued and are tried again; RV_EFORMAT (durable only) all is written but for rows that
 * the table refused since the last such flush: their number and the last reason, said once. */
RV_API rv_status rv_store_flush(rv_store *s, int64_t timeout_ms, bool durable, rv_err *err);
/* RV_ESTATE in a fork.  Works after close. */
RV_API rv_status rv_store_get_stats(rv_store *s, rv_store_stats *out, rv_err *err);

typedef enum rv_query {
    /* All columns of one entry.  id TEXT: the id or the beginning of it.
     * RV_ENOTFOUND; RV_EARG more than one entry begins like that (how many). */
    RV_QUERY_WITNESS_GET = 0,
    /* All columns, newest first.  Each null filter is off:
     * since_ms INT (>=), until_ms INT (<), session_id TEXT, model_name TEXT, kind TEXT,
     * limit INT (-1: all), offset INT. */
    RV_QUERY_WITNESS_LIST = 1,
    /* Their number, as n: the five filters of the list. */
    RV_QUERY_WITNESS_COUNT = 2,
    /* digest.  path TEXT, size INT, mtime_ns INT, inode INT */
    RV_QUERY_DIGEST = 3,
    /* value.  key TEXT */
    RV_QUERY_META = 4,
} rv_query;
typedef struct rv_rows rv_rows;

/* Run a query on a reading connection: it sees what is committed, not what is queued.
 * RV_EARG wrong number or type of arguments; RV_EIO; RV_EFORMAT; RV_ESTATE; RV_ENOMEM.
 * Thread-safe. */
RV_API rv_status rv_store_query(rv_store *s, rv_query which, const rv_value *args, size_t n,
                                rv_rows **out, rv_err *err);
/* By name ("witness_get", ...; "digest", "meta" for writes), or -1. */
RV_API int rv_store_query_id(const char *name);
RV_API int rv_store_write_id(const char *name);
RV_API void rv_rows_free(rv_rows **r);
RV_API size_t rv_rows_n(const rv_rows *r);
RV_API size_t rv_rows_n_cols(const rv_rows *r);
RV_API const char *rv_rows_name(const rv_rows *r, size_t i_col); /* i_col < n_cols */
RV_API const rv_value *rv_rows_at(const rv_rows *r, size_t i_row, size_t i_col); /* borrowed */

#ifdef __cplusplus
}
#endif
#endif
