/* The page pool: slabs, the pages in them, and which one is taken next.
 *
 *   slab    a stretch of memory of one class; bit i of free: page i is free
 *           bit i of spare: only the owner (the tree) has a reference, so it can be given up
 *   set     the numbers of slabs, per class those with a free page, and those not in use at all:
 *           bitmaps over bitmaps, so the next member is found in a few steps whatever there is
 *   bucket  per class and number of free pages a list of slabs
 *
 * A slab is clear when all its pages are free or spare: giving those up gives back its memory.
 * Sums over slabs are kept by leave and enter, which stand around every change of a slab. */
#include "kv/pages.h"

enum { LEVELS = 4, MAX_SLABS = 1 << 24, SLAB_BYTES = 2 << 20, MIN_PAGES = 8 };
enum { VACANT = RV_PAGE_CLASSES, N_SETS };

/* A slab is at most this part of the budget, so that classes do not starve each other. */
enum { BUDGET_PARTS = 32 };

typedef struct slab {
    char *mem; /* NULL: the number is not in use */
    uint64_t free, spare;
    uint32_t prev, next; /* in its bucket */
    int class;
    uint32_t n_pages;
    uint32_t refs[RV_SLAB_PAGES], owner[RV_SLAB_PAGES];
} slab;

struct rv_pages {
    rv_budget_member *member;
    size_t page_bytes[RV_PAGE_CLASSES];
    rv_fit fit;
    slab *slabs; /* number 0 is never used */
    size_t cap_slabs;
    uint64_t *words; /* of the sets */
    size_t level_at[LEVELS], level_words[LEVELS], set_words;
    uint32_t bucket[RV_PAGE_CLASSES][RV_SLAB_PAGES + 1];
    uint64_t filled[RV_PAGE_CLASSES]; /* bit k - 1: bucket k is not empty */
    uint32_t last[RV_PAGE_CLASSES];   /* slab of the page taken last */
    uint64_t loose[RV_PAGE_CLASSES];  /* free and spare pages in slabs that are not clear */
    bool starved;
    rv_pages_stats stats; /* but for the budget */
};

/* ---- sets ---- */

static uint64_t *level(const rv_pages *p, int set, int l) {
    return p->words + (size_t)set * p->set_words + p->level_at[l];
}

static void set_add(rv_pages *p, int set, size_t i) {
    for (int l = 0; l < LEVELS; l++, i >>= 6) {
        uint64_t *w = level(p, set, l) + (i >> 6), old = *w;
        *w |= UINT64_C(1) << (i & 63);
        if (old) return;
    }
}

static void set_remove(rv_pages *p, int set, size_t i) {
    for (int l = 0; l < LEVELS; l++, i >>= 6) {
        uint64_t *w = level(p, set, l) + (i >> 6);
        *w &= ~(UINT64_C(1) << (i & 63));
        if (*w) return;
    }
}

/* The smallest member that is at least i, or 0. */
static size_t set_next(const rv_pages *p, int set, size_t i) {
    int l = 0;
    for (;; l++, i = (i >> 6) + 1) {
        if (l == LEVELS || i >> 6 >= p->level_words[l]) return 0;
        const uint64_t w = level(p, set, l)[i >> 6] & ~UINT64_C(0) << (i & 63);
        if (!w) continue;
        i = (i & ~(size_t)63) | (size_t)__builtin_ctzll(w);
        break;
    }
    while (l-- > 0) i = i << 6 | (size_t)__builtin_ctzll(level(p, set, l)[i]);
    return i;
}

/* Room for twice as many slabs. */
static bool grow(rv_pages *p) {
    rv_pages q = *p;
    const size_t cap = p->cap_slabs ? 2 * p->cap_slabs : 64;
    if (cap > MAX_SLABS) return false;
    q.set_words = 0;
    for (int l = 0; l < LEVELS; l++) {
        q.level_at[l] = q.set_words;
        q.level_words[l] = (cap + (((size_t)1 << 6 * (l + 1)) - 1)) >> 6 * (l + 1);
        q.set_words += q.level_words[l];
    }
    q.words = rv_calloc(N_SETS * q.set_words, sizeof *q.words);
    if (!q.words) return false;
    q.slabs = rv_realloc(p->slabs, cap * sizeof *q.slabs);
    if (!q.slabs) {
        rv_free(q.words);
        return false;
    }
    memset(q.slabs + p->cap_slabs, 0, (cap - p->cap_slabs) * sizeof *q.slabs);
    for (int s = 0; s < N_SETS && p->words; s++)
        for (int l = 0; l < LEVELS; l++)
            memcpy(level(&q, s, l), level(p, s, l), p->level_words[l] * sizeof *q.words);
    rv_free(p->words);
    const size_t old = RV_MAX(p->cap_slabs, (size_t)1);
    q.cap_slabs = cap;
    *p = q;
    for (size_t i = old; i < cap; i++) set_add(p, VACANT, i);
    return true;
}

/* ---- slabs ---- */

static uint32_t n_free(const slab *s) {
    return (uint32_t)__builtin_popcountll(s->free);
}

/* Take a slab out of all sums, and put it back. */
static void count(rv_pages *p, const slab *s, bool in) {
    const uint64_t f = n_free(s), spare = (uint64_t)__builtin_popcountll(s->spare);
    const uint64_t used = s->n_pages - f, bytes = p->page_bytes[s->class];
    const uint64_t by = in ? 1 : UINT64_MAX; /* times this wraps to a subtraction */
    p->stats.n_free[s->class] += by * f;
    p->stats.n_used[s->class] += by * used;
    p->stats.n_spare[s->class] += by * spare;
    p->stats.used_bytes += by * used * bytes;
    if (used == spare)
        p->stats.clear_bytes += by * s->n_pages * bytes;
    else
        p->loose[s->class] += by * (f + spare);
}

static void leave(rv_pages *p, uint32_t i) {
    slab *s = &p->slabs[i];
    const uint32_t f = n_free(s);
    count(p, s, false);
    if (!f) return;
    set_remove(p, s->class, i);
    if (s->prev) p->slabs[s->prev].next = s->next;
    if (s->next) p->slabs[s->next].prev = s->prev;
    if (!s->prev) p->bucket[s->class][f] = s->next;
    if (!p->bucket[s->class][f]) p->filled[s->class] &= ~(UINT64_C(1) << (f - 1));
}

static void enter(rv_pages *p, uint32_t i) {
    slab *s = &p->slabs[i];
    const uint32_t f = n_free(s);
    count(p, s, true);
    if (!f) return;
    uint32_t *head = &p->bucket[s->class][f];
    set_add(p, s->class, i);
    s->prev = 0;
    s->next = *head;
    if (*head) p->slabs[*head].prev = i;
    *head = i;
    p->filled[s->class] |= UINT64_C(1) << (f - 1);
}

/* Most pages of a slab of a class. */
static uint64_t most_pages(const rv_pages *p, int class) {
    const uint64_t bytes = p->page_bytes[class];
    uint64_t n = RV_MIN(RV_MAX(SLAB_BYTES / bytes, (uint64_t)MIN_PAGES), (uint64_t)RV_SLAB_PAGES);
    return RV_MIN(n, RV_MAX(rv_budget_bytes(p->member) / BUDGET_PARTS / bytes, (uint64_t)1));
}

/* Pages of the next slab of a class, leaving the budget keep bytes; 0: there is no room. */
static uint32_t slab_pages(const rv_pages *p, int class, uint64_t keep) {
    const uint64_t held = p->stats.held_bytes, most = rv_budget_left(p->member);
    if (held > most || keep > most - held) return 0;
    return (uint32_t)RV_MIN(most_pages(p, class), (most - held - keep) / p->page_bytes[class]);
}

/* A new slab of a class, or 0. */
static uint32_t new_slab(rv_pages *p, int class, uint64_t keep) {
    uint32_t n;
    do { /* others of the budget take too */
        n = slab_pages(p, class, keep);
        if (!n) return 0;
    } while (!rv_budget_try(p->member, n * p->page_bytes[class]));
    const size_t bytes = n * p->page_bytes[class];
    uint32_t i = (uint32_t)set_next(p, VACANT, 1);
    if (!i && grow(p)) i = (uint32_t)set_next(p, VACANT, 1);
    char *mem = i ? rv_alloc_aligned(bytes) : NULL;
    if (!mem) {
        rv_budget_give(p->member, bytes);
        p->starved = true;
        return 0;
    }
    slab *s = &p->slabs[i];
    s->mem = mem;
    p->stats.held_bytes += bytes;
    p->stats.peak_bytes = RV_MAX(p->stats.peak_bytes, p->stats.held_bytes);
    s->class = class;
    s->n_pages = n;
    s->free = n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1;
    s->spare = 0;
    set_remove(p, VACANT, i);
    enter(p, i);
    return i;
}

static uint32_t choose(const rv_pages *p, int class) {
    if (p->fit == RV_FIT_FIRST) return (uint32_t)set_next(p, class, 1);
    if (p->fit == RV_FIT_BEST) {
        const uint64_t filled = p->filled[class];
        return filled ? p->bucket[class][__builtin_ctzll(filled) + 1] : 0;
    }
    const size_t i = set_next(p, class, (size_t)p->last[class] + 1);
    return (uint32_t)(i ? i : set_next(p, class, 1));
}

/* ---- the pool ---- */

rv_status rv_pages_new(rv_pages **out, const size_t *page_bytes, size_t n_classes,
                       rv_budget_member *member, rv_fit fit, rv_err *err) {
    *out = NULL;
    const uint64_t budget = rv_budget_bytes(member);
    uint64_t one = 0;
    if (n_classes > RV_PAGE_CLASSES || fit < RV_FIT_FIRST || fit > RV_FIT_ROUND_ROBIN)
        return rv_fail(err, RV_EARG, "pages: %zu classes, fit %d: want at most %d, 0 .. 2",
                       n_classes, (int)fit, RV_PAGE_CLASSES);
    for (size_t c = 0; c < n_classes; c++)
        if (page_bytes[c] % 64 || !rv_add_u64(one, page_bytes[c], &one))
            return rv_fail(err, RV_EARG, "pages: size %zu, want a multiple of 64", page_bytes[c]);
    if (one > budget)
        return rv_fail(err, RV_EFULL,
                       "pages: the budget of %llu bytes does not hold one page of each class, "
                       "%llu bytes",
                       (unsigned long long)budget, (unsigned long long)one);
    rv_pages *p = rv_calloc(1, sizeof *p);
    if (!p) return rv_fail(err, RV_ENOMEM, "pages: out of memory");
    for (size_t c = 0; c < n_classes; c++) p->page_bytes[c] = page_bytes[c];
    p->member = member;
    p->fit = fit;
    *out = p;
    return RV_OK;
}

void rv_pages_free(rv_pages **pp) {
    rv_pages *p = *pp;
    *pp = NULL;
    if (!p) return;
    for (size_t i = 1; i < p->cap_slabs; i++) rv_free(p->slabs[i].mem);
    rv_budget_give(p->member, p->stats.held_bytes);
    rv_free(p->slabs);
    rv_free(p->words);
    rv_free(p);
}

rv_page rv_pages_alloc_beside(rv_pages *p, int class, const size_t need[RV_PAGE_CLASSES]) {
    uint64_t keep = 0;
    for (int c = 0; need && c < RV_PAGE_CLASSES; c++)
        if (c != class && need[c] > p->stats.n_free[c])
            keep += (need[c] - p->stats.n_free[c]) * p->page_bytes[c];
    p->starved = false;
    uint32_t i = choose(p, class);
    if (!i) i = new_slab(p, class, keep);
    if (!i) {
        p->stats.n_refused++;
        return 0;
    }
    slab *s = &p->slabs[i];
    leave(p, i);
    const uint32_t at = (uint32_t)__builtin_ctzll(s->free);
    s->free &= s->free - 1;
    s->refs[at] = 1;
    s->owner[at] = 0;
    enter(p, i);
    p->last[class] = i;
    p->stats.n_allocs++;
    return i << 6 | at;
}

rv_page rv_pages_alloc(rv_pages *p, int class) {
    return rv_pages_alloc_beside(p, class, NULL);
}

bool rv_pages_starved(const rv_pages *p) {
    return p->starved;
}

uint64_t rv_pages_lack(const rv_pages *p, const size_t need[RV_PAGE_CLASSES]) {
    const uint64_t stay = p->stats.held_bytes - p->stats.clear_bytes;
    const uint64_t most = rv_budget_left(p->member);
    uint64_t sum = 0, bytes;
    for (int c = 0; c < RV_PAGE_CLASSES; c++) {
        if (need[c] <= p->loose[c]) continue;
        if (!rv_mul_u64(need[c] - p->loose[c], p->page_bytes[c], &bytes) ||
            !rv_add_u64(sum, bytes, &sum))
            return UINT64_MAX;
    }
    if (sum == 0) return 0; /* free already, or in slabs that stay anyway */
    if (!rv_add_u64(sum, stay, &sum)) return UINT64_MAX;
    return sum > most ? sum - most : 0;
}

static slab *slab_of(const rv_pages *p, rv_page page) {
    return &p->slabs[page >> 6];
}

/* Whether a page is spare, after its references or its owner have changed. */
static void mark(rv_pages *p, rv_page page) {
    slab *s = slab_of(p, page);
    const uint64_t bit = UINT64_C(1) << (page & 63);
    const bool spare = s->refs[page & 63] == 1 && s->owner[page & 63];
    if (spare == ((s->spare & bit) != 0)) return;
    leave(p, page >> 6);
    s->spare ^= bit;
    enter(p, page >> 6);
}

void rv_pages_set_owner(rv_pages *p, rv_page page, uint32_t owner) {
    slab_of(p, page)->owner[page & 63] = owner;
    mark(p, page);
}

uint32_t rv_pages_owner(const rv_pages *p, rv_page page) {
    return slab_of(p, page)->owner[page & 63];
}

void rv_pages_ref(rv_pages *p, rv_page page) {
    slab_of(p, page)->refs[page & 63]++;
    mark(p, page);
}

uint32_t rv_pages_unref(rv_pages *p, rv_page page) {
    slab *s = slab_of(p, page);
    const uint32_t left = --s->refs[page & 63], i = page >> 6;
    mark(p, page);
    if (left) return left;
    leave(p, i);
    s->free |= UINT64_C(1) << (page & 63);
    if (n_free(s) < s->n_pages) {
        enter(p, i);
        return 0;
    }
    const uint64_t bytes = s->n_pages * p->page_bytes[s->class];
    rv_free(s->mem);
    s->mem = NULL;
    p->stats.held_bytes -= bytes;
    rv_budget_give(p->member, bytes);
    set_add(p, VACANT, i);
    return 0;
}

uint32_t rv_pages_n_refs(const rv_pages *p, rv_page page) {
    return slab_of(p, page)->refs[page & 63];
}

int rv_pages_class(const rv_pages *p, rv_page page) {
    return slab_of(p, page)->class;
}

void *rv_pages_at(const rv_pages *p, rv_page page) {
    const slab *s = slab_of(p, page);
    return s->mem + (page & 63) * p->page_bytes[s->class];
}

size_t rv_pages_bytes(const rv_pages *p, int class) {
    return p->page_bytes[class];
}

uint64_t rv_pages_slab_bytes(const rv_pages *p, int class) {
    return p->page_bytes[class] ? most_pages(p, class) * p->page_bytes[class] : 0;
}

void rv_pages_get_stats(const rv_pages *p, rv_pages_stats *out) {
    *out = p->stats;
    out->budget_bytes = rv_budget_bytes(p->member);
}
