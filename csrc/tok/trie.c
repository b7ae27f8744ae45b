/* A trie over bytes with hashed edges, and the failure links that make it an Aho-Corasick machine:
 * one pass over a text finds every place where a string of the trie ends. */
#include "tok/impl.h"

static bool alloc_edges(rv_trie *t, size_t slots) {
    t->slot = rv_calloc(slots, sizeof *t->slot);
    if (!t->slot) return false;
    memset(t->slot, 0xff, slots * sizeof *t->slot);
    t->mask = slots - 1;
    return true;
}

static size_t edge_slot(const rv_trie *t, uint32_t node, uint8_t byte) {
    uint64_t h = ((uint64_t)node << 8 | byte) ^ t->seed;
    h *= 0x9fb21c651e98df25u;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    size_t i = (h >> 20) & t->mask;
    while (t->slot[i].child != RV_TOK_NONE && (t->slot[i].node != node || t->slot[i].byte != byte))
        i = (i + 1) & t->mask;
    return i;
}

static uint32_t new_node(rv_trie *t, uint32_t parent, uint8_t byte) {
    if (t->n == t->cap) {
        size_t cap[4] = {t->cap, t->cap, t->cap, t->cap}, want = t->n + 1;
        if (want >= RV_TOK_NONE || !rv_grow((void **)&t->tok, &cap[0], want, sizeof *t->tok) ||
            !rv_grow((void **)&t->parent, &cap[1], want, sizeof *t->parent) ||
            !rv_grow((void **)&t->depth, &cap[2], want, sizeof *t->depth) ||
            !rv_grow((void **)&t->byte, &cap[3], want, sizeof *t->byte))
            return RV_TOK_NONE;
        t->cap = cap[0]; /* rv_grow gives all four the same */
    }
    uint32_t v = (uint32_t)t->n++;
    t->tok[v] = -1;
    t->parent[v] = parent;
    t->depth[v] = v ? t->depth[parent] + 1 : 0;
    t->byte[v] = byte;
    return v;
}

bool rv_trie_init(rv_trie *t, uint64_t seed) {
    *t = (rv_trie){.seed = seed};
    memset(t->root, 0xff, sizeof t->root);
    return alloc_edges(t, 64) && new_node(t, 0, 0) == 0;
}

void rv_trie_free(rv_trie *t) {
    rv_free(t->slot);
    rv_free(t->tok);
    rv_free(t->parent);
    rv_free(t->fail);
    rv_free(t->link);
    rv_free(t->depth);
    rv_free(t->byte);
    *t = (rv_trie){0};
}

uint32_t rv_trie_child(const rv_trie *t, uint32_t node, uint8_t byte) {
    return node ? t->slot[edge_slot(t, node, byte)].child : t->root[byte];
}

static bool grow_edges(rv_trie *t) {
    rv_trie old = *t;
    if (!alloc_edges(t, 2 * (old.mask + 1))) {
        t->slot = old.slot;
        return false;
    }
    for (size_t k = 0; k <= old.mask; k++)
        if (old.slot[k].child != RV_TOK_NONE)
            t->slot[edge_slot(t, old.slot[k].node, old.slot[k].byte)] = old.slot[k];
    rv_free(old.slot);
    return true;
}

static uint32_t add_child(rv_trie *t, uint32_t node, uint8_t byte) {
    if (node && 2 * (t->n_edges + 1) > t->mask + 1 && !grow_edges(t)) return RV_TOK_NONE;
    uint32_t v = new_node(t, node, byte);
    if (v == RV_TOK_NONE) return v;
    if (!node) {
        t->root[byte] = v;
        return v;
    }
    size_t i = edge_slot(t, node, byte);
    t->slot[i].node = node;
    t->slot[i].byte = byte;
    t->slot[i].child = v;
    t->n_edges++;
    return v;
}

bool rv_trie_put(rv_trie *t, const char *p, size_t n, int32_t tok) {
    uint32_t v = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t c = rv_trie_child(t, v, (uint8_t)p[i]);
        if (c == RV_TOK_NONE) c = add_child(t, v, (uint8_t)p[i]);
        if (c == RV_TOK_NONE) return false;
        v = c;
    }
    if (v && t->tok[v] < 0) t->tok[v] = tok;
    return true;
}

/* Nodes by depth: a counting sort, because a link points to a shallower node. */
static uint32_t *by_depth(const rv_trie *t) {
    uint32_t deepest = 0;
    for (size_t v = 0; v < t->n; v++) deepest = RV_MAX(deepest, t->depth[v]);
    uint32_t *order = rv_malloc(t->n * sizeof *order);
    uint32_t *start = rv_calloc((size_t)deepest + 2, sizeof *start);
    if (order && start) {
        for (size_t v = 0; v < t->n; v++) start[t->depth[v] + 1]++;
        for (size_t d = 1; d <= deepest; d++) start[d] += start[d - 1];
        for (size_t v = 0; v < t->n; v++) order[start[t->depth[v]]++] = (uint32_t)v;
    } else {
        rv_free(order);
        order = NULL;
    }
    rv_free(start);
    return order;
}

bool rv_trie_link(rv_trie *t) {
    t->fail = rv_calloc(t->n, sizeof *t->fail);
    t->link = rv_calloc(t->n, sizeof *t->link);
    uint32_t *order = by_depth(t);
    if (!t->fail || !t->link || !order) {
        rv_free(order);
        return false;
    }
    for (size_t k = 1; k < t->n; k++) {
        uint32_t v = order[k], p = t->parent[v], f = 0;
        if (p) {
            uint32_t c;
            for (f = t->fail[p]; (c = rv_trie_child(t, f, t->byte[v])) == RV_TOK_NONE && f;)
                f = t->fail[f];
            f = c == RV_TOK_NONE ? 0 : c;
        }
        t->fail[v] = f;
        t->link[v] = t->tok[f] >= 0 ? f : t->link[f];
    }
    rv_free(order);
    return true;
}
