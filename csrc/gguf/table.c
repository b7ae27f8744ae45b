/* Names to positions in constant time.
 *
 * The hash is seeded from the clock and an address: a hostile file cannot hold names chosen to
 * collide, which would make opening it quadratic.  Nothing a caller sees depends on the seed. */
#include "gguf/gguf.h"

static uint64_t fold(uint64_t a, uint64_t b) {
    uint64_t lo = (a & 0xffffffffu) * (b & 0xffffffffu), hi = (a >> 32) * (b >> 32);
    uint64_t m1 = (a >> 32) * (b & 0xffffffffu), m2 = (a & 0xffffffffu) * (b >> 32);
    uint64_t mid = (lo >> 32) + (m1 & 0xffffffffu) + (m2 & 0xffffffffu);
    return (lo & 0xffffffffu) ^ (mid << 32) ^ (hi + (m1 >> 32) + (m2 >> 32) + (mid >> 32));
}

static uint64_t hash(uint64_t seed, rv_str s) {
    uint64_t h = seed ^ s.n;
    size_t i = 0;
    for (; s.n - i >= 8; i += 8) h = fold(h ^ rv_le64(s.p + i), seed ^ 0x9e3779b97f4a7c15u);
    uint64_t tail = 0;
    for (size_t k = 0; i < s.n; i++, k += 8) tail |= (uint64_t)(uint8_t)s.p[i] << k;
    return fold(h ^ tail ^ 0xbf58476d1ce4e5b9u, seed ^ 0x94d049bb133111ebu);
}

static rv_str name_of(const void *items, size_t size, size_t i) {
    rv_str s;
    memcpy(&s, (const char *)items + i * size, sizeof s);
    return s;
}

static uint32_t *slot_of(const rv_gguf_table *t, const void *items, size_t size, rv_str name) {
    size_t i = (size_t)hash(t->seed, name) & t->mask;
    for (; t->slot[i]; i = (i + 1) & t->mask) {
        rv_str s = name_of(items, size, t->slot[i] - 1);
        if (s.n == name.n && memcmp(s.p, name.p, s.n) == 0) break;
    }
    return &t->slot[i];
}

rv_status rv_gguf_table_build(rv_gguf_table *t, const void *items, size_t size, size_t n,
                              size_t *dup) {
    size_t n_slots = 8;
    while (n_slots < 2 * n) n_slots *= 2; /* n is at most 65536 */
    t->slot = rv_calloc(n_slots, sizeof *t->slot);
    if (!t->slot) return RV_ENOMEM;
    t->mask = n_slots - 1;
    t->seed = (rv_now_ns() * 0x9e3779b97f4a7c15u) ^ (uint64_t)(uintptr_t)t->slot;
    for (size_t i = 0; i < n; i++) {
        uint32_t *slot = slot_of(t, items, size, name_of(items, size, i));
        if (*slot) {
            *dup = i;
            return RV_EFORMAT;
        }
        *slot = (uint32_t)i + 1;
    }
    return RV_OK;
}

void rv_gguf_table_free(rv_gguf_table *t) {
    rv_free(t->slot);
    *t = (rv_gguf_table){0};
}

const void *rv_gguf_table_find(const rv_gguf_table *t, const void *items, size_t size,
                               rv_str name) {
    if (!t->slot) return NULL;
    uint32_t i = *slot_of(t, items, size, name);
    return i ? (const char *)items + (size_t)(i - 1) * size : NULL;
}
