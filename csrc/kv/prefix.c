/* The prefix tree: nodes by number in one array, found through a hash table with chains.
 *
 * What can be evicted stands in one list, least recently let go first; an entry of it is a node and
 * what is kept of it, node << 2 | keep.  Entry 0 is the list's head.  Somebody may take a reference
 * to a page in the list: evict finds that out and drops the entry, which comes back when the page
 * is let go again (its owner, in pages.h, is the node). */
#include "kv/prefix.h"

#define NOT_LISTED UINT32_MAX

typedef struct link {
    uint32_t prev, next;
} link;

typedef struct identity {
    uint64_t number;
    char *p;
    size_t n;
} identity;

typedef struct node {
    uint64_t hash;
    rv_node parent, child, prev, next; /* first child; siblings */
    rv_node chain;                     /* in the table, or among the free numbers */
    uint32_t n_locks;
    rv_page page[RV_KEEP_N];
    link list[RV_KEEP_N];
    union {
        int32_t tok[RV_PAGE_TOKENS];
        identity id; /* of a root: parent is 0 */
    };
} node;

struct rv_prefix {
    rv_pages *pages;
    uint64_t hash_mask;
    node *nodes; /* number 0 names no node; its list[0] is the head of the list */
    size_t cap_nodes, n_numbers;
    rv_node vacant; /* first free number */
    rv_node *table; /* [n_table] a power of two */
    size_t n_table;
    uint64_t n_nodes, n_evicted, id_bytes;
};

enum { FIRST_TABLE = 64, MAX_NODES = 1 << 29 };

rv_status rv_prefix_new(rv_prefix **out, rv_pages *pages, int hash_bits, rv_err *err) {
    *out = NULL;
    if (hash_bits < 1 || hash_bits > 64)
        return rv_fail(err, RV_EARG, "hash_bits: is %d, want 1 .. 64", hash_bits);
    rv_prefix *t = rv_calloc(1, sizeof *t);
    void *nodes = NULL;
    if (t && rv_grow(&nodes, &t->cap_nodes, 1, sizeof *t->nodes)) {
        t->nodes = nodes;
        memset(t->nodes, 0, sizeof *t->nodes);
        t->n_numbers = 1;
        t->table = rv_calloc(FIRST_TABLE, sizeof *t->table);
    }
    if (!t || !t->table) {
        rv_prefix_free(&t);
        return rv_fail(err, RV_ENOMEM, "prefix tree: out of memory");
    }
    t->n_table = FIRST_TABLE;
    t->pages = pages;
    t->hash_mask = UINT64_MAX >> (64 - hash_bits);
    *out = t;
    return RV_OK;
}

void rv_prefix_free(rv_prefix **pt) {
    rv_prefix *t = *pt;
    *pt = NULL;
    if (!t) return;
    for (size_t b = 0; b < t->n_table; b++) {
        for (rv_node i = t->table[b]; i; i = t->nodes[i].chain) {
            const node *n = &t->nodes[i];
            for (int k = 0; k < RV_KEEP_N; k++) {
                if (!n->page[k]) continue;
                rv_pages_set_owner(t->pages, n->page[k], 0);
                rv_pages_unref(t->pages, n->page[k]);
            }
            if (!n->parent) rv_free(n->id.p);
        }
    }
    rv_free(t->nodes);
    rv_free(t->table);
    rv_free(t);
}

/* ---- finding ---- */

static uint64_t mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * UINT64_C(0x9e3779b97f4a7c15);
    h ^= h >> 29;
    h *= UINT64_C(0xbf58476d1ce4e5b9);
    return h ^ h >> 32;
}

static uint64_t hash_tokens(const rv_prefix *t, rv_node parent, const int32_t *tok) {
    uint64_t h = parent;
    for (int i = 0; i < RV_PAGE_TOKENS; i += 2)
        h = mix(h, (uint64_t)(uint32_t)tok[i] << 32 | (uint32_t)tok[i + 1]);
    return h & t->hash_mask;
}

static uint64_t hash_identity(const rv_prefix *t, uint64_t number, const char *p, size_t n) {
    uint64_t h = mix(number, n);
    for (size_t i = 0; i < n; i++) h = mix(h, (uint8_t)p[i]);
    return h & t->hash_mask;
}

static rv_node *bucket(const rv_prefix *t, uint64_t hash) {
    return &t->table[hash & (t->n_table - 1)];
}

static rv_node find_child(const rv_prefix *t, rv_node parent, const int32_t *tok, uint64_t hash) {
    for (rv_node i = *bucket(t, hash); i; i = t->nodes[i].chain) {
        const node *n = &t->nodes[i];
        if (n->hash == hash && n->parent == parent && !memcmp(n->tok, tok, sizeof n->tok)) return i;
    }
    return 0;
}

static rv_node find_root(const rv_prefix *t, uint64_t number, const void *p, size_t size,
                         uint64_t hash) {
    for (rv_node i = *bucket(t, hash); i; i = t->nodes[i].chain) {
        const node *n = &t->nodes[i];
        if (n->hash != hash || n->parent || n->id.number != number || n->id.n != size) continue;
        if (size == 0 || memcmp(n->id.p, p, size) == 0) return i;
    }
    return 0;
}

rv_node rv_prefix_child(const rv_prefix *t, rv_node parent, const int32_t *tok) {
    return find_child(t, parent, tok, hash_tokens(t, parent, tok));
}

rv_node rv_prefix_partial(const rv_prefix *t, rv_node parent, const int32_t *tok, size_t n,
                          size_t *n_same) {
    rv_node best = 0;
    *n_same = 0;
    for (rv_node i = t->nodes[parent].child; i; i = t->nodes[i].next) {
        const node *c = &t->nodes[i];
        size_t same = 0;
        while (same < n && c->tok[same] == tok[same]) same++;
        if (same <= *n_same || !c->page[RV_KEEP_HOT]) continue;
        *n_same = same;
        best = i;
    }
    return best;
}

rv_node rv_prefix_parent(const rv_prefix *t, rv_node i) {
    return t->nodes[i].parent;
}

/* ---- making and unmaking ---- */

/* Twice as many chains; without memory for them they grow longer. */
static void widen(rv_prefix *t) {
    rv_node *table = rv_calloc(2 * t->n_table, sizeof *table);
    if (!table) return;
    for (size_t b = 0; b < t->n_table; b++) {
        for (rv_node i = t->table[b], next; i; i = next) {
            node *n = &t->nodes[i];
            rv_node *to = &table[n->hash & (2 * t->n_table - 1)];
            next = n->chain;
            n->chain = *to;
            *to = i;
        }
    }
    rv_free(t->table);
    t->table = table;
    t->n_table *= 2;
}

/* A node without anything in it, in the table; 0: out of memory. */
static rv_node make(rv_prefix *t, rv_node parent, uint64_t hash) {
    rv_node i = t->vacant;
    if (i) {
        t->vacant = t->nodes[i].chain;
    } else {
        void *nodes = t->nodes;
        const bool ok = t->n_numbers < MAX_NODES &&
                        rv_grow(&nodes, &t->cap_nodes, t->n_numbers + 1, sizeof *t->nodes);
        t->nodes = nodes;
        if (!ok) return 0;
        i = (rv_node)t->n_numbers++;
    }
    if (t->n_nodes >= t->n_table) widen(t);
    node *n = &t->nodes[i];
    memset(n, 0, sizeof *n);
    n->hash = hash;
    n->parent = parent;
    for (int k = 0; k < RV_KEEP_N; k++) n->list[k] = (link){NOT_LISTED, NOT_LISTED};
    n->chain = *bucket(t, hash);
    *bucket(t, hash) = i;
    if (parent) {
        n->next = t->nodes[parent].child;
        if (n->next) t->nodes[n->next].prev = i;
        t->nodes[parent].child = i;
    }
    t->n_nodes++;
    return i;
}

/* T3, upwards from a node. */
static void prune(rv_prefix *t, rv_node i) {
    while (i) {
        node *n = &t->nodes[i];
        const rv_node parent = n->parent;
        if (n->n_locks || n->child) return;
        for (int k = 0; k < RV_KEEP_N; k++)
            if (n->page[k]) return;
        if (parent) {
            if (n->prev) t->nodes[n->prev].next = n->next;
            if (n->next) t->nodes[n->next].prev = n->prev;
            if (!n->prev) t->nodes[parent].child = n->next;
        } else {
            t->id_bytes -= n->id.n;
            rv_free(n->id.p);
        }
        rv_node *at = bucket(t, n->hash);
        while (*at != i) at = &t->nodes[*at].chain;
        *at = n->chain;
        n->chain = t->vacant;
        t->vacant = i;
        t->n_nodes--;
        i = parent;
    }
}

rv_node rv_prefix_root(rv_prefix *t, uint64_t number, const void *p, size_t n) {
    const uint64_t hash = hash_identity(t, number, p, n);
    rv_node i = find_root(t, number, p, n, hash);
    if (!i) {
        char *copy = n ? rv_malloc(n) : NULL;
        if (n && !copy) return 0;
        if (n) memcpy(copy, p, n);
        i = make(t, 0, hash);
        if (!i) {
            rv_free(copy);
            return 0;
        }
        t->nodes[i].id = (identity){number, copy, n};
        t->id_bytes += n;
    }
    t->nodes[i].n_locks++;
    return i;
}

rv_node rv_prefix_add(rv_prefix *t, rv_node parent, const int32_t *tok) {
    const uint64_t hash = hash_tokens(t, parent, tok);
    rv_node i = find_child(t, parent, tok, hash);
    if (!i && (i = make(t, parent, hash)) != 0)
        memcpy(t->nodes[i].tok, tok, sizeof t->nodes[i].tok);
    return i;
}

void rv_prefix_lock(rv_prefix *t, rv_node i) {
    t->nodes[i].n_locks++;
}

void rv_prefix_unlock(rv_prefix *t, rv_node i) {
    if (--t->nodes[i].n_locks == 0) prune(t, i);
}

/* ---- what is kept ---- */

static link *entry(const rv_prefix *t, uint32_t e) {
    return &t->nodes[e >> 2].list[e & 3];
}

static void unlist(rv_prefix *t, uint32_t e) {
    link *l = entry(t, e);
    if (l->next == NOT_LISTED) return;
    entry(t, l->prev)->next = l->next;
    entry(t, l->next)->prev = l->prev;
    *l = (link){NOT_LISTED, NOT_LISTED};
}

rv_page rv_prefix_get(const rv_prefix *t, rv_node i, int keep) {
    return t->nodes[i].page[keep];
}

void rv_prefix_put(rv_prefix *t, rv_node i, int keep, rv_page page) {
    if (t->nodes[i].page[keep]) return;
    t->nodes[i].page[keep] = page;
    rv_pages_ref(t->pages, page);
    rv_pages_set_owner(t->pages, page, i);
}

void rv_prefix_idle(rv_prefix *t, rv_node i, int keep) {
    const rv_page page = t->nodes[i].page[keep];
    const uint32_t e = i << 2 | (uint32_t)keep;
    if (!page || rv_pages_n_refs(t->pages, page) > 1) return;
    unlist(t, e);
    link *head = entry(t, 0);
    *entry(t, e) = (link){head->prev, 0};
    entry(t, head->prev)->next = e;
    head->prev = e;
}

int rv_prefix_evict(rv_prefix *t) {
    for (uint32_t e; (e = entry(t, 0)->next) != 0;) {
        const rv_node i = e >> 2;
        const int keep = (int)(e & 3);
        const rv_page page = t->nodes[i].page[keep];
        unlist(t, e);
        if (rv_pages_n_refs(t->pages, page) > 1) continue;
        t->nodes[i].page[keep] = 0;
        rv_pages_set_owner(t->pages, page, 0);
        rv_pages_unref(t->pages, page);
        t->n_evicted++;
        prune(t, i);
        return keep;
    }
    return -1;
}

static bool is_wanted(const rv_prefix *t, const node *n) {
    if (n->n_locks || n->child) return true;
    for (int k = 0; k < RV_KEEP_N; k++)
        if (n->page[k] && rv_pages_n_refs(t->pages, n->page[k]) > 1) return true;
    return false;
}

void rv_prefix_forget(rv_prefix *t, rv_node i) {
    for (rv_node parent; (parent = t->nodes[i].parent) != 0; i = parent) {
        node *n = &t->nodes[i];
        if (is_wanted(t, n)) return;
        for (uint32_t k = 0; k < RV_KEEP_N; k++) {
            const rv_page page = n->page[k];
            if (!page) continue;
            unlist(t, i << 2 | k);
            n->page[k] = 0;
            rv_pages_set_owner(t->pages, page, 0);
            rv_pages_unref(t->pages, page);
            t->n_evicted++;
        }
        t->nodes[parent].n_locks++; /* it is looked at next */
        prune(t, i);
        t->nodes[parent].n_locks--;
    }
}

void rv_prefix_get_stats(const rv_prefix *t, rv_prefix_stats *out) {
    rv_pages_stats pages;
    rv_pages_get_stats(t->pages, &pages);
    *out = (rv_prefix_stats){.n_nodes = t->n_nodes, .n_evicted = t->n_evicted};
    for (int k = 0; k < RV_KEEP_N; k++) out->n_evictable += pages.n_spare[k];
    out->bytes = sizeof *t + t->cap_nodes * sizeof *t->nodes + t->n_table * sizeof *t->table;
    out->bytes += t->id_bytes;
}
