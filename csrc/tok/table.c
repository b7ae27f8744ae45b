/* String tables, pair tables and the heap: the containers of this folder.  All open addressing,
 * linear probing, at most half full, and seeded. */
#include "tok/impl.h"

/* ---- strings ---- */

bool rv_strs_add(rv_strs *s, const char *p, size_t n) {
    size_t from = s->n ? s->end[s->n - 1] : 0, end;
    if (__builtin_add_overflow(from, n, &end)) return false;
    if (!rv_grow((void **)&s->end, &s->cap, s->n + 1, sizeof *s->end)) return false;
    if (!rv_grow((void **)&s->bytes, &s->cap_bytes, end + 1, 1)) return false;
    if (n) memcpy(s->bytes + from, p, n);
    s->end[s->n++] = end;
    return true;
}

void rv_strs_free(rv_strs *s) {
    rv_free(s->bytes);
    rv_free(s->end);
    *s = (rv_strs){0};
}

static inline uint64_t mix(uint64_t h) {
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

static uint64_t hash_bytes(const char *p, size_t n, uint64_t seed) {
    uint64_t h = seed ^ n * 0x9e3779b97f4a7c15u;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        h = (h ^ v) * 0x9fb21c651e98df25u;
        h ^= h >> 29;
    }
    uint64_t tail = 0;
    for (size_t i = 0; i < n; i++) tail |= (uint64_t)(uint8_t)p[i] << 8 * i;
    return mix((h ^ tail) * 0x9fb21c651e98df25u);
}

static size_t slots_for(size_t n) {
    size_t slots = 16;
    while (slots / 2 < n && slots < SIZE_MAX / 4) slots *= 2;
    return slots;
}

/* ---- strings by hash ---- */

static bool strtab_alloc(rv_strtab *t, size_t slots) {
    t->slot = rv_calloc(slots, sizeof *t->slot);
    if (!t->slot) return false;
    memset(t->slot, 0xff, slots * sizeof *t->slot);
    t->mask = slots - 1;
    return true;
}

bool rv_strtab_init(rv_strtab *t, size_t n_expected, uint64_t seed) {
    *t = (rv_strtab){.seed = seed};
    return strtab_alloc(t, slots_for(n_expected));
}

void rv_strtab_free(rv_strtab *t) {
    rv_free(t->slot);
    *t = (rv_strtab){0};
}

uint32_t rv_strtab_find(const rv_strtab *t, const rv_strs *s, const char *p, size_t n) {
    uint64_t h = hash_bytes(p, n, t->seed);
    for (size_t i = h & t->mask;; i = (i + 1) & t->mask) {
        if (t->slot[i].id == RV_TOK_NONE) return RV_TOK_NONE;
        if (t->slot[i].tag != (uint32_t)(h >> 32)) continue;
        rv_str have = rv_strs_at(s, t->slot[i].id);
        if (have.n == n && (n == 0 || memcmp(have.p, p, n) == 0)) return t->slot[i].id;
    }
}

static bool strtab_grow(rv_strtab *t, const rv_strs *s) {
    rv_strtab old = *t;
    if (!strtab_alloc(t, 2 * (old.mask + 1))) {
        *t = old;
        return false;
    }
    for (size_t k = 0; k <= old.mask; k++) {
        if (old.slot[k].id == RV_TOK_NONE) continue;
        rv_str key = rv_strs_at(s, old.slot[k].id);
        size_t i = hash_bytes(key.p, key.n, t->seed) & t->mask;
        while (t->slot[i].id != RV_TOK_NONE) i = (i + 1) & t->mask;
        t->slot[i] = old.slot[k];
    }
    rv_free(old.slot);
    return true;
}

bool rv_strtab_put(rv_strtab *t, const rv_strs *s, uint32_t id) {
    rv_str key = rv_strs_at(s, id);
    if (rv_strtab_find(t, s, key.p, key.n) != RV_TOK_NONE) return true;
    if (2 * (t->n + 1) > t->mask + 1 && !strtab_grow(t, s)) return false;
    uint64_t h = hash_bytes(key.p, key.n, t->seed);
    size_t i = h & t->mask;
    while (t->slot[i].id != RV_TOK_NONE) i = (i + 1) & t->mask;
    t->slot[i].tag = (uint32_t)(h >> 32);
    t->slot[i].id = id;
    t->n++;
    return true;
}

/* ---- pairs ---- */

bool rv_pairtab_init(rv_pairtab *t, size_t n, uint64_t seed) {
    size_t slots = slots_for(n);
    *t = (rv_pairtab){.seed = seed, .mask = slots - 1};
    t->slot = rv_calloc(slots, sizeof *t->slot);
    if (!t->slot) return false;
    memset(t->slot, 0xff, slots * sizeof *t->slot);
    return true;
}

void rv_pairtab_free(rv_pairtab *t) {
    rv_free(t->slot);
    *t = (rv_pairtab){0};
}

static size_t pair_slot(const rv_pairtab *t, uint32_t left, uint32_t right) {
    size_t i = mix(((uint64_t)left << 32 | right) ^ t->seed) & t->mask;
    while (t->slot[i].rank != RV_TOK_NONE && (t->slot[i].left != left || t->slot[i].right != right))
        i = (i + 1) & t->mask;
    return i;
}

uint32_t rv_pairtab_find(const rv_pairtab *t, uint32_t left, uint32_t right) {
    return t->slot[pair_slot(t, left, right)].rank;
}

void rv_pairtab_put(rv_pairtab *t, uint32_t left, uint32_t right, uint32_t rank) {
    size_t i = pair_slot(t, left, right);
    if (t->slot[i].rank != RV_TOK_NONE) return;
    t->slot[i].left = left;
    t->slot[i].right = right;
    t->slot[i].rank = rank;
}

/* ---- heap: four children per node, for half the levels and one cache line per step ---- */

bool rv_heap_push(rv_heap *h, uint64_t key) {
    if (h->n == h->cap && !rv_grow((void **)&h->key, &h->cap, h->n + 1, sizeof *h->key))
        return false;
    size_t i = h->n++;
    while (i > 0 && h->key[(i - 1) / 4] > key) {
        h->key[i] = h->key[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    h->key[i] = key;
    return true;
}

uint64_t rv_heap_pop(rv_heap *h) {
    uint64_t least = h->key[0], key = h->key[--h->n];
    size_t i = 0;
    for (;;) {
        size_t c = 4 * i + 1, best = c, end = RV_MIN(c + 4, h->n);
        if (c >= h->n) break;
        for (size_t k = c + 1; k < end; k++)
            if (h->key[k] < h->key[best]) best = k;
        if (h->key[best] >= key) break;
        h->key[i] = h->key[best];
        i = best;
    }
    h->key[i] = key;
    return least;
}

void rv_heap_free(rv_heap *h) {
    rv_free(h->key);
    *h = (rv_heap){0};
}
