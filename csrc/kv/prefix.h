/* The prefix tree: which pages hold the keys and values of which tokens.
 *
 * A node is RV_PAGE_TOKENS tokens behind its parent's; a root is an identity (everything besides
 * the tokens that keys and values depend on).  The table is searched by a hash of parent and
 * tokens, but tokens and parent are compared on a hit: the hash finds, it never decides.
 *
 *   identity ── 16 tokens ── 16 tokens ─┬─ 16 tokens          each node: what is kept of it
 *                                       └─ 16 tokens ── ...     HOT   page of the tail's type
 *                                                               COLD  page of the store's type
 *                                                               STATE recurrent state behind it
 *
 * T1  A node owns one reference of each page in it.
 * T2  A node is locked while a sequence stands on it or below it; only pages of which the tree has
 *     the last reference can be evicted, least recently let go first.
 * T3  A node without pages, children and locks does not exist. */
#ifndef RV_PREFIX_H
#define RV_PREFIX_H

#include "kv/pages.h"

enum { RV_PAGE_TOKENS = 16 };
enum { RV_KEEP_HOT = 0, RV_KEEP_COLD = 1, RV_KEEP_STATE = 2, RV_KEEP_N = 3 }; /* also the classes */

typedef struct rv_prefix rv_prefix;
typedef uint32_t rv_node; /* 0: none */

/* hash_bits 1 .. 64: tests shorten the hash to force collisions. */
rv_status rv_prefix_new(rv_prefix **out, rv_pages *pages, int hash_bits, rv_err *err);
void rv_prefix_free(rv_prefix **t); /* drops the references of its pages */
/* The root of an identity (a number and any bytes, compared whole), made when it is new, locked
 * once.  0: out of memory. */
rv_node rv_prefix_root(rv_prefix *t, uint64_t number, const void *bytes, size_t n);
/* The child with these RV_PAGE_TOKENS tokens, or 0.  Locks nothing. */
rv_node rv_prefix_child(const rv_prefix *t, rv_node parent, const int32_t *tok);
/* The same, made when it is new (without pages).  0: out of memory. */
rv_node rv_prefix_add(rv_prefix *t, rv_node parent, const int32_t *tok);
/* The child that begins with most of tok[0 .. n - 1], n < RV_PAGE_TOKENS, and has a HOT page; how
 * many of them it begins with.  0: none begins with even one. */
rv_node rv_prefix_partial(const rv_prefix *t, rv_node parent, const int32_t *tok, size_t n,
                          size_t *n_same);
rv_node rv_prefix_parent(const rv_prefix *t, rv_node node);
void rv_prefix_lock(rv_prefix *t, rv_node node);
void rv_prefix_unlock(rv_prefix *t, rv_node node); /* the last one may free the node */
/* The page kept of a node, or 0; borrowed. */
rv_page rv_prefix_get(const rv_prefix *t, rv_node node, int keep);
/* Keep a page (takes a reference of its own); does nothing when there is one already. */
void rv_prefix_put(rv_prefix *t, rv_node node, int keep, rv_page page);
/* A sequence has let go of its reference to what is kept of a node: it is now the most recently
 * used of what can be evicted, unless others hold it. */
void rv_prefix_idle(rv_prefix *t, rv_node node, int keep);
/* Free the page that was let go least recently; its class, or -1: there is none. */
int rv_prefix_evict(rv_prefix *t);
/* Free what is kept of a node and of those above it, up to the first that something else stands on
 * (a lock, another child, a reference to a page).  They count as evicted. */
void rv_prefix_forget(rv_prefix *t, rv_node node);

typedef struct rv_prefix_stats {
    uint64_t n_nodes, n_evicted, n_evictable; /* nodes; pages */
    uint64_t bytes;                           /* of the tree itself */
} rv_prefix_stats;
void rv_prefix_get_stats(const rv_prefix *t, rv_prefix_stats *out);

#endif
