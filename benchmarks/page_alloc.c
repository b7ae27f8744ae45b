/* How long one page of the pool takes: nanoseconds, median and 99th percentile, while the pool
 * grows and when pages are only handed on.
 *
 *   page_alloc PAGE_BYTES N_PAGES */
#include <stdio.h>
#include <stdlib.h>

#include "base/base.h"
#include "kv/pages.h"

static int by_size(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void say(const char *what, uint32_t *ns, size_t n) {
    qsort(ns, n, sizeof *ns, by_size);
    printf("%s %u %u\n", what, ns[n / 2], ns[n / 100 * 99]);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const size_t size = strtoull(argv[1], NULL, 10), n = strtoull(argv[2], NULL, 10);
    rv_pages *p;
    rv_page *page = calloc(n, sizeof *page);
    uint32_t *ns = calloc(n, sizeof *ns);
    if (!page || !ns || rv_pages_new(&p, &size, 1, size * n, RV_FIT_FIRST, NULL) != RV_OK) return 1;
    for (size_t i = 0; i < n; i++) {
        const uint64_t from = rv_now_ns();
        page[i] = rv_pages_alloc(p, 0);
        ns[i] = (uint32_t)(rv_now_ns() - from);
        if (!page[i]) return 1;
    }
    say("growing", ns, n);
    uint64_t x = 1;
    for (size_t i = 0; i < n; i++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        rv_page *at = &page[(x >> 33) % (n - 1)]; /* the last one stays */
        rv_pages_unref(p, *at);
        const uint64_t from = rv_now_ns();
        *at = rv_pages_alloc(p, 0);
        ns[i] = (uint32_t)(rv_now_ns() - from);
        if (!*at) return 1;
    }
    say("steady", ns, n);
    free(page);
    free(ns);
    rv_pages_free(&p);
    return 0;
}
