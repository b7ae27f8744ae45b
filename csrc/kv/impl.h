/* Inside kv: what the cache and its sequences are made of, for cache.c, kv.c, resume.c, tier.c. */
#ifndef RV_KV_IMPL_H
#define RV_KV_IMPL_H

#include <pthread.h>

#include "kv/kv.h"

/* Widest head with a store: it can be rotated, and migration holds it on the stack. */
enum { RV_KV_MAX_STORE_DIM = 1024 };

struct rv_kv_cache {
    pthread_mutex_t lock; /* guards pages, tree and the counts */
    atomic_size_t n_refs;
    rv_kv_format f; /* f.heads is heads */
    int32_t *heads;
    size_t *first;  /* [n_layers] heads of the layers before it */
    size_t n_heads; /* of all layers */
    int type[2];    /* by the kernels' numbers: HOT, COLD (-1: no store) */
    size_t run_bytes[2], page_bytes[RV_KEEP_N];
    bool share;
    rv_budget *budget;
    rv_budget_member *member;
    rv_pages *pages;
    rv_prefix *tree;                                             /* empty without sharing */
    uint64_t n_sequences, n_looked_up, n_hit, n_moved, n_copied; /* n_moved: pages */
};

/* RV_PAGE_TOKENS positions of a sequence. */
typedef struct rv_kv_entry {
    rv_page page[RV_KEEP_N]; /* STATE: behind them, of position rolling only */
    rv_node node;            /* of entries below n_nodes */
    bool fresh;              /* the COLD page is still to be filled */
    char *at[2];             /* of the HOT and the COLD page: found without the lock */
    int32_t tok[RV_PAGE_TOKENS];
} rv_kv_entry;

/*   entries   0 ...... n_cold ...... len / 16 ...... n
 *                 hot_lo .................... HOT ... n
 *             COLD .... |                                   n_nodes <= len / 16 */
struct rv_kv {
    rv_kv_cache *c;
    rv_kv_entry *e;
    size_t tail; /* the format's, or its own */
    size_t len;
    size_t n, cap;      /* entries */
    size_t hot_lo;      /* entries below have no HOT page */
    size_t n_cold;      /* entries below have a COLD page */
    size_t n_nodes;     /* entries below stand in the tree */
    size_t n_shared[2]; /* of HOT and COLD: entries below are in the tree too, if they are kept */
    rv_node root, node; /* node: the deepest, locked */
    float *state;
    rv_page buf; /* for the next snapshot */
    float *buf_at;
    size_t snap_at; /* position of the snapshot that is being written, or 0 */
    size_t rolling; /* position of the last snapshot that the tree does not have, or 0 */
    size_t want;    /* position where others would like to resume, or 0 */
};

static inline size_t rv_kv_pages_of(size_t n) {
    return n / RV_PAGE_TOKENS + (n % RV_PAGE_TOKENS != 0);
}

/* ---- cache.c; with the lock ---- */

/* A page of a class, evicting where it must; counted down in left, which says what is to be taken
 * besides.  0: no room, or no memory (rv_pages_starved). */
rv_page rv_kv_take(rv_kv_cache *c, int class, size_t left[RV_PAGE_CLASSES]);
/* Drop a reference; 0 is allowed. */
void rv_kv_let_go(rv_kv_cache *c, rv_page page);

/* ---- tier.c ---- */

/* The tail of a scope with that one, 0 too. */
size_t rv_kv_tail_of(const rv_kv_cache *c, size_t tail);
size_t rv_kv_bound(const rv_kv_cache *c, size_t tail, size_t n); /* m(n) */
/* First position whose HOT page a sequence of len positions keeps: K4. */
size_t rv_kv_keep_from(const rv_kv_cache *c, size_t tail, size_t len);
/* Fill the fresh COLD pages of entries lo .. hi - 1; how many there were. */
size_t rv_kv_migrate(rv_kv *kv, size_t lo, size_t hi, rv_pool *pool);

/* ---- resume.c; with the lock ---- */

/* Entries that are full get into the tree, their pages too, or are replaced by the tree's. */
void rv_kv_publish(rv_kv *kv);
/* The tree keeps the state behind pos positions, if it has a node there. */
bool rv_kv_publish_state(rv_kv *kv, size_t pos);

#endif
