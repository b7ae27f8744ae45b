/* The page pool: memory for keys, values and recurrent states in pages of a few sizes.
 *
 * A page is named by a number, counted by references, and belongs to one class; all pages of a
 * class have the same size.  Pages of a class lie in slabs of up to RV_SLAB_PAGES, which come from
 * the allocator when the class is full and go back when their last page is free, so memory moves
 * between classes, and between the pool and the other members of its budget, by whole slabs.
 *
 *   page number = slab << 6 | index in the slab         0 names no page
 *
 * G1  A slab is counted in the budget before it is allocated, and given back after it is freed.
 * G2  A page with two references is never written (copy on write is the caller's: kv.h).
 * G3  Nothing here waits or touches page contents.  Not thread-safe: rv_kv_cache locks. */
#ifndef RV_PAGES_H
#define RV_PAGES_H

#include "base/budget.h"

enum { RV_SLAB_PAGES = 64, RV_PAGE_CLASSES = 4 };

typedef uint32_t rv_page;
typedef struct rv_pages rv_pages;

/* rv_fit (ruvllm.h): in which slab the next page of a class is taken.
 *   first        the lowest-numbered slab with a free page: keeps the early slabs dense
 *   best         the slab with the fewest free pages: empties the others soonest
 *   round_robin  the next slab after the last one used: what was freed is overwritten last */
typedef struct rv_pages_stats {
    uint64_t budget_bytes; /* others may hold part of it */
    uint64_t held_bytes;   /* of slabs */
    uint64_t clear_bytes;  /* of them, what giving up spare pages would give back */
    uint64_t peak_bytes;   /* most that held_bytes ever was */
    uint64_t used_bytes;   /* of pages with a reference */
    uint64_t n_used[RV_PAGE_CLASSES], n_free[RV_PAGE_CLASSES]; /* pages; free: in held slabs */
    uint64_t
        n_spare[RV_PAGE_CLASSES]; /* of the used ones, those whose owner has the last reference */
    uint64_t n_allocs, n_refused;
} rv_pages_stats;

/* page_bytes [n_classes]: 64-byte multiples, 0: the class is not used.  A slab of a class has
 * between 8 and 64 pages, about 2 MiB, fewer pages where the budget is small.
 *   member  what slabs are counted for, in a budget of its own or with others; it outlives the pool
 * RV_EFULL the budget is smaller than one page of each class. */
rv_status rv_pages_new(rv_pages **out, const size_t *page_bytes, size_t n_classes,
                       rv_budget_member *member, rv_fit fit, rv_err *err);
void rv_pages_free(rv_pages **p); /* whatever references there are */
/* A page with one reference, contents undefined, 64-byte aligned; 0: no room.  O(1). */
rv_page rv_pages_alloc(rv_pages *p, int class);
/* The same, leaving the budget room for need[c] pages of each other class (NULL: none). */
rv_page rv_pages_alloc_beside(rv_pages *p, int class, const size_t need[RV_PAGE_CLASSES]);
/* Whether the last refusal was for lack of memory, not of budget. */
bool rv_pages_starved(const rv_pages *p);
/* How many bytes the other members of the budget hold that would have to be free for need[c] pages
 * of each class, were all spare pages given up; 0: there is room, UINT64_MAX: beyond all numbers.
 */
uint64_t rv_pages_lack(const rv_pages *p, const size_t need[RV_PAGE_CLASSES]);
/* Whether they could be had if all spare pages were given up. */
static inline bool rv_pages_fits(const rv_pages *p, const size_t need[RV_PAGE_CLASSES]) {
    return rv_pages_lack(p, need) == 0;
}
/* Of one reference to a page somebody says that it is only kept (0: nobody); the page is spare, and
 * counted so, while that is the last one. */
void rv_pages_set_owner(rv_pages *p, rv_page page, uint32_t owner);
uint32_t rv_pages_owner(const rv_pages *p, rv_page page);
void rv_pages_ref(rv_pages *p, rv_page page);
/* Drop a reference; how many are left. */
uint32_t rv_pages_unref(rv_pages *p, rv_page page);
uint32_t rv_pages_n_refs(const rv_pages *p, rv_page page);
int rv_pages_class(const rv_pages *p, rv_page page);
/* Stays where it is as long as there is a reference. */
void *rv_pages_at(const rv_pages *p, rv_page page);
size_t rv_pages_bytes(const rv_pages *p, int class);
uint64_t rv_pages_slab_bytes(const rv_pages *p, int class); /* of its largest slabs */
void rv_pages_get_stats(const rv_pages *p, rv_pages_stats *out);

#endif
