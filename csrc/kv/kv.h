/* Keys, values and recurrent state: one cache for all sequences of a model, and the sequences.
 *
 * A page holds RV_PAGE_TOKENS positions of all layers: [layer][head] one run of rvk.h.  Attention
 * reads pages in place, RV_KV_BLOCK positions (four runs) at a time.
 *
 *   positions   0 ............. m(n) ............ n          n positions are seen
 *               COLD: store_type      HOT: type
 *               (only with a store)
 *
 *   m(n) = 0 without a store, else (n - tail) rounded down to a multiple of batch, at least 0
 *
 * The tail is the format's or the sequence's own, from its making on.
 *
 * K1  What position j is read from by the query at position p depends on j, p and the tail alone
 *     (m(p + 1)), never on chunks, memory pressure or neighbours.
 * K2  Positions at and behind the committed length are written by the owner alone, in pages with
 *     one reference.  Full pages never change.
 * K3  A failed call changes nothing.
 * K4  A sequence that grew by itself can forget its last RV_KV_BLOCK positions: what those before
 *     them see as HOT, and a block more, keeps its HOT pages.
 *
 * With sharing, full pages are published in the prefix tree as they are committed, and a new
 * sequence starts with what is there.  It can start at a page boundary h if all COLD pages below
 * m(h + 1), all HOT pages from there to h, and the STATE behind h (where the model has one) are
 * kept: a point to resume.  Where the tree knows more of a prompt than can be resumed, the boundary
 * is remembered and kept when the sequence passes it, so the next one resumes there.
 *
 * One lock per cache, held for bookkeeping only; a sequence is used by one thread at a time.  The
 * budget's lock may be taken under it, never the other way round, and nobody is asked for memory
 * under either. */
#ifndef RV_KV_H
#define RV_KV_H

#include "base/base.h"
#include "base/pool.h"
#include "kv/pages.h"
#include "kv/prefix.h"

enum { RV_KV_BLOCK = 64 };

typedef struct rv_kv rv_kv;

/* The kernels' number of a type other than RV_KV_AUTO; -1: no such type. */
int rv_kv_kernel_type(rv_kv_type type);
/* What keys and values of one head at one position take. */
size_t rv_kv_head_bytes(rv_kv_type type, size_t head_dim);

typedef struct rv_kv_format {
    size_t n_layers;      /* that keep keys; 0 is allowed */
    const int32_t *heads; /* [n_layers] key heads of each; copied */
    size_t head_dim;
    rv_kv_type type;    /* not RV_KV_AUTO */
    rv_kv_type store;   /* RV_KV_AUTO: no store; else Q8_0, Q4_0 or K8V4, and type is F16 or F32 */
    bool rotate;        /* keys of the store, as wide as it holds them, are Hadamard-rotated */
    size_t tail, batch; /* with a store: positions, multiples of RV_KV_BLOCK, at least one */
    size_t state_bytes; /* recurrent state of a sequence; 0: none */
} rv_kv_format;

typedef struct rv_kv_cache_opts {
    uint64_t budget;   /* bytes of pages */
    rv_budget *memory; /* instead of it, a budget shared with others; NULL: none */
    const char *name;  /* as its member; NULL: "keys and values" */
    rv_fit fit;
    bool share;    /* publish and match prefixes */
    int hash_bits; /* 0: 64; tests force collisions */
} rv_kv_cache_opts;

typedef struct rv_kv_cache_stats {
    rv_pages_stats pages;
    rv_prefix_stats prefix;
    uint64_t n_sequences;
    uint64_t n_looked_up, n_hit;   /* tokens of rv_kv_match: asked for, and found */
    uint64_t n_migrated, n_copied; /* blocks moved to the store; pages copied on write */
} rv_kv_cache_stats;

/* RV_EFULL the budget does not hold the pages of one block. */
rv_status rv_kv_cache_new(rv_kv_cache **out, const rv_kv_format *f, const rv_kv_cache_opts *o,
                          rv_err *err);
rv_kv_cache *rv_kv_cache_ref(rv_kv_cache *c);
void rv_kv_cache_free(rv_kv_cache **c); /* drops one reference; sequences hold one each */
void rv_kv_cache_get_stats(rv_kv_cache *c, rv_kv_cache_stats *out);
const rv_kv_format *rv_kv_cache_format(const rv_kv_cache *c);
size_t rv_kv_cache_page_bytes(const rv_kv_cache *c, int keep);
/* What its pages are counted in, borrowed.  Where others want memory of it, the cache gives back
 * pages that no sequence needs. */
rv_budget *rv_kv_cache_budget(rv_kv_cache *c);
/* rv_kv_cache_fits for n more positions in a new sequence. */
bool rv_kv_cache_has_room(rv_kv_cache *c, size_t n);
/* The most positions that one sequence with that tail can have in an otherwise empty cache and
 * budget, in whole pages; so that how long a sequence may get does not depend on what others hold
 * just now. */
size_t rv_kv_cache_capacity(rv_kv_cache *c, size_t tail);
/* Room for several sequences: pages of each kind. */
typedef struct rv_kv_need {
    size_t n[RV_PAGE_CLASSES];
} rv_kv_need;
/* Add what kv takes, besides the pages it has, to grow to n positions; NULL: a new sequence with
 * that tail (0: the format's). */
void rv_kv_need_add(rv_kv_cache *c, const rv_kv *kv, size_t tail, size_t n, rv_kv_need *sum);
/* Whether all that could be had, evicting what can be.  Others of the budget are asked to free what
 * is lacking beside what they hold. */
bool rv_kv_cache_fits(rv_kv_cache *c, const rv_kv_need *need);

/* ---- sequences ---- */

/* What keys and values of a sequence depend on besides tokens; the model and the format are the
 * cache's.  Sequences of different scopes share nothing. */
typedef struct rv_kv_scope {
    const void *identity; /* [n] adapter, tenant ... */
    size_t n;
    size_t tail; /* positions, a multiple of RV_KV_BLOCK; 0, or without a store: the format's */
} rv_kv_scope;

/* An empty one; scope may be NULL. */
rv_status rv_kv_new(rv_kv **out, rv_kv_cache *c, const rv_kv_scope *scope, rv_err *err);
/* An empty one that finds no prefixes and leaves none behind. */
rv_status rv_kv_new_apart(rv_kv **out, rv_kv_cache *c, rv_err *err);
void rv_kv_free(rv_kv **kv); /* full pages stay in the tree as long as there is room */
/* Of an empty sequence: start with the longest prefix of tok that can be resumed, at most n - 1
 * tokens.  Returns its length (0: nothing, or no sharing). */
size_t rv_kv_match(rv_kv *kv, const int32_t *tok, size_t n);
/* What rv_kv_match would find, without taking it. */
size_t rv_kv_peek(rv_kv_cache *c, const rv_kv_scope *scope, const int32_t *tok, size_t n);
/* Give back the memory of what the cache keeps of tok [n] alone: from the end to the first page
 * that a sequence holds or another continuation stands on. */
void rv_kv_forget(rv_kv_cache *c, const rv_kv_scope *scope, const int32_t *tok, size_t n);
size_t rv_kv_len(const rv_kv *kv);
/* How many of its first tokens are those of tok [n]. */
size_t rv_kv_same(const rv_kv *kv, const int32_t *tok, size_t n);
/* Make room for n more positions, which may then be written: allocates pages (evicting others,
 * then asking the others of the budget), copies a shared last page, and moves blocks to the store
 * that the new positions see there; pool may be NULL.  n <= rv_kv_most(kv).  RV_EFULL no room
 * (bytes wanted, held, budget). */
rv_status rv_kv_reserve(rv_kv *kv, size_t n, rv_pool *pool, rv_err *err);
/* The most positions that can be reserved at once. */
size_t rv_kv_most(const rv_kv *kv);
/* Store positions pos .. pos + n - 1, reserved, of one head of one layer: k, v [head_dim] float32
 * each, ld floats apart.  Different heads may be written at the same time. */
void rv_kv_write(rv_kv *kv, size_t i_layer, size_t i_head, size_t pos, size_t n, const float *k,
                 const float *v, size_t ld);
/* The reserved positions len .. len + n - 1 hold tok: publishes pages that are full, lets go of HOT
 * pages behind K4, keeps a snapshot.  Without memory for the tree nothing is published. */
void rv_kv_commit(rv_kv *kv, const int32_t *tok, size_t n);
/* Forget position n and on, 0 .. len.  RV_EUNSUPPORTED: not kept (HOT pages before n are gone, or
 * there is recurrent state and n is neither 0, len, nor a kept snapshot of this sequence). */
rv_status rv_kv_truncate(rv_kv *kv, size_t n, rv_err *err);
/* Another sequence with the same contents; pages are shared until written.  What was reserved has
 * to be reserved again. */
rv_status rv_kv_fork(rv_kv **out, const rv_kv *kv, rv_err *err);

/* ---- reading, without locks; of positions that are reserved ---- */

/* m(n). */
size_t rv_kv_boundary(const rv_kv *kv, size_t n);
/* The runs of positions i_block * RV_KV_BLOCK and on, from the store if old; runs that are not
 * there repeat the first one. */
void rv_kv_runs(const rv_kv *kv, bool old, size_t i_layer, size_t i_head, size_t i_block,
                const void *runs[RV_KV_BLOCK / RV_PAGE_TOKENS]);
/* By the kernels' numbers; -1: no store. */
int rv_kv_type_of(const rv_kv *kv, bool old);
bool rv_kv_rotated(const rv_kv *kv); /* keys of the store */
/* Recurrent state behind len positions, state_bytes of it, the owner's to change; zeros at 0.
 * NULL: the model has none. */
float *rv_kv_state(rv_kv *kv);
/* Behind how many positions of the next n a copy of the state is wanted (1 .. n; 0: nowhere), and
 * where to. */
size_t rv_kv_snapshot(rv_kv *kv, size_t n, float **to);

/* ---- pages as they are, for views, files and tests ---- */

/* The page of positions RV_PAGE_TOKENS * i and on, of the store if old, or 0; borrowed. */
rv_page rv_kv_page(const rv_kv *kv, bool old, size_t i);
/* Take and drop a reference; at: its bytes.  Thread-safe. */
const void *rv_kv_page_pin(rv_kv_cache *c, rv_page page);
void rv_kv_page_unpin(rv_kv_cache *c, rv_page page);
/* Bytes from the start of a page to a head of a layer, and of one run. */
size_t rv_kv_page_offset(const rv_kv_cache *c, bool old, size_t i_layer, size_t i_head);
size_t rv_kv_run_bytes(const rv_kv_cache *c, bool old);

/* ---- files (file.c) ---- */

/* Write what is kept of the sequence under that name: whole or not at all (a file of that name
 * stands until the new one is on the disk).
 *   tag  what keys and values depend on besides format and tokens (model, numerics, identity)
 * RV_EARG an empty sequence; RV_EIO; RV_ENOMEM. */
rv_status rv_kv_save(const rv_kv *kv, const char *path, rv_str tag, rv_err *err);
/* The same in pieces.  The sequence stays as it is until the writer is freed.
 *   durable  as rv_kv_save.  false: it does not wait for the disk, and a loss of power may leave a
 *            file that rv_kv_load finds damaged */
typedef struct rv_kv_writer rv_kv_writer;
rv_status rv_kv_writer_new(rv_kv_writer **out, const rv_kv *kv, const char *path, rv_str tag,
                           bool durable, rv_err *err);
uint64_t rv_kv_writer_bytes(const rv_kv_writer *w); /* of the file when it is done */
/* At least n bytes more, a page at a time; *done: the file has its name.  After an error the writer
 * can only be freed. */
rv_status rv_kv_writer_write(rv_kv_writer *w, uint64_t n, bool *done, rv_err *err);
void rv_kv_writer_free(rv_kv_writer **w); /* what is not done is gone */
/* Of an empty sequence: take from a file as much of tok [n] as it has and can be resumed, at most
 * n - 1 tokens; rv_kv_len says how many, 0 too.  Nothing is taken before all of the file has been
 * read and found right.
 * RV_ENOTFOUND; RV_EIO; RV_EFORMAT damaged; RV_EUNSUPPORTED of another version, format or tag;
 * RV_EFULL no room; RV_ENOMEM. */
rv_status rv_kv_load(rv_kv *kv, const char *path, rv_str tag, const int32_t *tok, size_t n,
                     rv_err *err);

size_t rv_kv_bytes(const rv_kv *kv); /* of its pages, shared ones too, and itself */
/* Of what nobody else has a reference to, the tree aside, and itself. */
size_t rv_kv_own_bytes(const rv_kv *kv);
size_t rv_kv_bytes_per_token(const rv_kv_cache *c, bool old);

#endif
