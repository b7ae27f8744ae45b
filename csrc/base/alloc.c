/* Allocation: malloc with a count of live bytes and a switch that makes the k-th call fail.
 *
 * Each block carries its size and the distance to where its memory begins in the 16 bytes before
 * it, so one rv_free serves plain and aligned blocks alike.
 *
 * Large blocks are mappings of their own.  Malloc would keep the memory of some that are freed, as
 * much as a third of a budget (base/budget.h), and the process would hold more than was counted. */
#include <stdlib.h>
#include <sys/mman.h>

#include "base/base.h"

#if defined(RV_SANITIZED) || !defined(MAP_ANONYMOUS)
enum { CAN_MAP = false }; /* a sanitizer watches what malloc gives */
#else
enum { CAN_MAP = true };
#endif

/* A page of 2 MiB needs one entry of the CPU's address cache where 4 KiB pages need 512. */
enum { MAP_FROM = 1 << 20, HUGE_PAGE = 2 << 20, HUGE_FROM = 4 << 20 };

typedef struct head {
    size_t size;
    size_t shift; /* user pointer - where its memory begins */
} head;

_Static_assert(sizeof(head) <= 16, "the head must fit before a 16-byte aligned pointer");

static atomic_size_t g_live;
static atomic_long g_fail_at = -1;

static bool must_fail(void) {
    long k = atomic_load_explicit(&g_fail_at, memory_order_relaxed);
    if (k < 0) return false;
    return atomic_fetch_sub(&g_fail_at, 1) == 0;
}

static head *head_of(void *p) {
    return (head *)((char *)p - sizeof(head));
}

size_t rv_alloc_bytes(const void *p) {
    return p ? ((const head *)((const char *)p - sizeof(head)))->size : 0;
}

static bool is_mapped(size_t n) {
    return CAN_MAP && n >= MAP_FROM;
}

static void *map(size_t n) {
#ifdef MAP_ANONYMOUS
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
#else
    (void)n;
    return NULL;
#endif
}

/* n bytes, zeros if they are mapped. */
static void *place(size_t n, size_t align) {
    if (must_fail() || n > PTRDIFF_MAX - align)
        return NULL; /* as malloc, without a word to stderr */
    char *raw = is_mapped(n) ? map(n + align) : malloc(n + align);
    if (!raw) return NULL;
    size_t shift = align - ((uintptr_t)raw & (align - 1));
    if (shift < sizeof(head)) shift += align; /* malloc is 16-byte aligned, so never for align 16 */
    char *p = raw + shift;
    head_of(p)->size = n;
    head_of(p)->shift = shift;
    atomic_fetch_add_explicit(&g_live, n, memory_order_relaxed);
    return p;
}

void *rv_malloc(size_t n) {
    return place(n, 16);
}

void *rv_alloc_aligned(size_t n) {
    if (n < HUGE_FROM) return place(n, 64);
    void *p = place(n, HUGE_PAGE);
#ifdef MADV_HUGEPAGE
    if (p) madvise(p, n / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return p;
}

void *rv_calloc(size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) return NULL;
    void *p = place(bytes, 16);
    if (p && !is_mapped(bytes)) memset(p, 0, bytes);
    return p;
}

void *rv_realloc(void *p, size_t n) {
    if (!p) return rv_malloc(n);
    void *q = place(n, 16);
    if (!q) return NULL;
    memcpy(q, p, RV_MIN(n, head_of(p)->size));
    rv_free(p);
    return q;
}

void rv_free(void *p) {
    if (!p) return;
    head *h = head_of(p);
    atomic_fetch_sub_explicit(&g_live, h->size, memory_order_relaxed);
    char *raw = (char *)p - h->shift;
    if (!is_mapped(h->size)) {
        free(raw);
        return;
    }
    /* place() maps from the start of a page, so that shift is the alignment unless that is more. */
    munmap(raw, h->size + (h->shift > 64 ? (size_t)HUGE_PAGE : h->shift));
}

char *rv_strndup(const char *p, size_t n) {
    char *s = n < SIZE_MAX ? rv_malloc(n + 1) : NULL;
    if (!s) return NULL;
    if (n) memcpy(s, p, n);
    s[n] = 0;
    return s;
}

bool rv_grow(void **p, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return true;
    size_t to = RV_MAX(need, *cap + *cap / 2), bytes;
    to = RV_MAX(to, (size_t)16);
    if (__builtin_mul_overflow(to, size, &bytes)) return false;
    void *q = rv_realloc(*p, bytes);
    if (!q) return false;
    *p = q;
    *cap = to;
    return true;
}

size_t rv_live_bytes(void) {
    return atomic_load_explicit(&g_live, memory_order_relaxed);
}

void rv_test_fail_alloc_at(long k) {
    atomic_store(&g_fail_at, k);
}
