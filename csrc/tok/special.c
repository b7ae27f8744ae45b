/* Tokens that are matched as a whole before anything else looks at the text.
 *
 * The rule is that of the published tokenizers: the longest token is searched first, everywhere,
 * then the next longest in what is left, and so on; among equally long ones the lowest id.  One
 * pass of an Aho-Corasick machine finds, for each position, the longest token that ends there; a
 * heap brings these up in the order of the rule, and one that is no longer free falls back to the
 * next shorter token that ends at the same place.  Because tokens come up by falling length, a
 * token can only collide with a taken one at its own first or last byte. */
#include "tok/impl.h"

enum { FREE = 0, TAKEN = 1 };

static bool wanted(const rv_tok *t, size_t id, bool control) {
    uint8_t type = t->type[id];
    if (rv_strs_at(&t->text, id).n == 0) return false;
    return type == RV_TOK_USER || (control && (type == RV_TOK_CONTROL || type == RV_TOK_UNKNOWN));
}

static bool rank_nodes(rv_special *s) {
    const rv_trie *trie = &s->trie;
    rv_heap order = {0};
    s->rank = rv_malloc(trie->n * sizeof *s->rank);
    bool ok = s->rank != NULL;
    for (size_t v = 1; ok && v < trie->n; v++)
        if (trie->tok[v] >= 0) {
            s->n++;
            ok = rv_heap_push(&order, (uint64_t)~trie->depth[v] << 32 | (uint32_t)trie->tok[v]);
        }
    /* the heap gives ids in order; nodes are found again by their id */
    uint32_t *node_of_id = NULL;
    size_t n_ids = 0;
    for (size_t v = 1; ok && v < trie->n; v++)
        if (trie->tok[v] >= 0) n_ids = RV_MAX(n_ids, (size_t)trie->tok[v] + 1);
    ok = ok && (node_of_id = rv_calloc(n_ids + 1, sizeof *node_of_id)) != NULL &&
         (s->node_of = rv_calloc(s->n + 1, sizeof *s->node_of)) != NULL;
    for (size_t v = 1; ok && v < trie->n; v++)
        if (trie->tok[v] >= 0) node_of_id[trie->tok[v]] = (uint32_t)v;
    for (uint32_t r = 0; ok && order.n; r++) {
        uint32_t v = node_of_id[(uint32_t)rv_heap_pop(&order)];
        s->node_of[r] = v;
        s->rank[v] = r;
    }
    rv_free(node_of_id);
    rv_heap_free(&order);
    return ok;
}

bool rv_special_init(rv_special *s, const rv_tok *t, bool control) {
    if (!rv_trie_init(&s->trie, t->seed)) return false;
    for (size_t i = 0; i < t->n_vocab; i++) {
        rv_str text = rv_strs_at(&t->text, i);
        if (wanted(t, i, control) && !rv_trie_put(&s->trie, text.p, text.n, (int32_t)i))
            return false;
    }
    return s->trie.n == 1 || (rv_trie_link(&s->trie) && rank_nodes(s));
}

void rv_special_free(rv_special *s) {
    rv_trie_free(&s->trie);
    rv_free(s->rank);
    rv_free(s->node_of);
    *s = (rv_special){0};
}

/* For each position where tokens end: (rank of the longest, position) into found. */
static bool scan(const rv_special *s, const uint8_t *p, size_t n, rv_heap *found) {
    const rv_trie *t = &s->trie;
    uint32_t v = 0, c;
    for (size_t i = 0; i < n; i++) {
        while ((c = rv_trie_child(t, v, p[i])) == RV_TOK_NONE && v) v = t->fail[v];
        if (c == RV_TOK_NONE) continue;
        v = c;
        uint32_t hit = t->tok[v] >= 0 ? v : t->link[v];
        if (hit && !rv_heap_push(found, (uint64_t)s->rank[hit] << 32 | (uint32_t)(i + 1)))
            return false;
    }
    return true;
}

static bool is_white(uint8_t b) {
    return b == ' ' || (b >= '\t' && b <= '\r');
}

static void take(const rv_tok *t, int32_t id, uint8_t *map, const uint8_t *p, size_t n,
                 size_t start, size_t end) {
    memset(map + start, TAKEN, end - start);
    if (t->flags[id] & RV_TF_LSTRIP)
        while (start > 0 && map[start - 1] == FREE && is_white(p[start - 1])) map[--start] = TAKEN;
    if (t->flags[id] & RV_TF_RSTRIP)
        while (end < n && map[end] == FREE && is_white(p[end])) map[end++] = TAKEN;
}

/* Choose among found; chosen gets (start, rank).  map: which bytes no longer are text. */
static bool choose(const rv_special *s, const rv_tok *t, const uint8_t *p, size_t n, uint8_t *map,
                   rv_heap *found, rv_heap *chosen) {
    const rv_trie *trie = &s->trie;
    while (found->n) {
        uint64_t top = rv_heap_pop(found);
        size_t end = (uint32_t)top;
        uint32_t v = s->node_of[top >> 32];
        if (map[end - 1] != FREE) continue;
        if (map[end - trie->depth[v]] == FREE) {
            size_t start = end - trie->depth[v];
            take(t, trie->tok[v], map, p, n, start, end);
            if (!rv_heap_push(chosen, (uint64_t)start << 32 | top >> 32)) return false;
            continue;
        }
        while (v && map[end - trie->depth[v]] != FREE) v = trie->link[v];
        if (v && !rv_heap_push(found, (uint64_t)s->rank[v] << 32 | (uint32_t)end)) return false;
    }
    return true;
}

static bool hand_out(const rv_special *s, rv_enc *e, const uint8_t *p, size_t n, const uint8_t *map,
                     rv_heap *chosen, rv_special_fn fn) {
    size_t at = 0;
    for (bool more = true; more;) {
        more = chosen->n > 0;
        uint64_t top = more ? rv_heap_pop(chosen) : 0;
        size_t start = more ? (size_t)(top >> 32) : n, from = at, to = start;
        while (from < to && map[from] != FREE) from++; /* stripped white space */
        while (to > from && map[to - 1] != FREE) to--;
        if (to > from && !fn(e, p + from, to - from, -1)) return false;
        if (!more) break;
        uint32_t v = s->node_of[(uint32_t)top];
        if (!fn(e, NULL, 0, s->trie.tok[v])) return false;
        at = start + s->trie.depth[v];
    }
    return true;
}

bool rv_special_cut(const rv_special *s, rv_enc *e, const uint8_t *p, size_t n, rv_special_fn fn) {
    rv_heap found = {0}, chosen = {0};
    uint8_t *map = NULL;
    bool ok = s->n == 0 || scan(s, p, n, &found);
    if (ok && found.n == 0) {
        ok = n == 0 || fn(e, p, n, -1);
    } else if (ok) {
        map = rv_calloc(n, 1);
        ok = map && choose(s, e->t, p, n, map, &found, &chosen) &&
             hand_out(s, e, p, n, map, &chosen, fn);
    }
    rv_free(map);
    rv_heap_free(&found);
    rv_heap_free(&chosen);
    return ok;
}
