/* rv_bench_pages [FILE]: what taking a page costs, and what sharing costs where nothing is shared.
 *
 * Prints a table, and writes FILE as the other benchmarks do: a list of {figure, value, unit, peer,
 * ratio, goal, holds}.  Times of single calls contain the clock's own, which is printed too. */
#include <stdio.h>
#include <stdlib.h>

#include "kv/kv.h"

/* ---- figures ---- */

typedef struct figure {
    char name[80];
    double value;
    const char *unit, *goal; /* goal: NULL: none */
    bool holds;
} figure;

static figure g_figures[64];
static size_t g_n;

static void add(double value, const char *unit, double below, const char *goal, const char *a,
                const char *b) {
    figure *f = &g_figures[g_n++];
    *f = (figure){.value = value, .unit = unit, .goal = goal, .holds = value < below};
    snprintf(f->name, sizeof f->name, "%s%s", a, b);
    printf("%-56s %10.1f %-8s", f->name, value, unit);
    if (goal) printf("  goal %s: %s", goal, f->holds ? "holds" : "MISSED");
    printf("\n");
}

static bool write_json(const char *path) {
    FILE *to = fopen(path, "w");
    if (!to) {
        perror(path);
        return false;
    }
    for (size_t i = 0; i < g_n; i++) {
        const figure *f = &g_figures[i];
        fprintf(to, "%s{\"figure\": \"%s\", \"value\": %.3f, \"unit\": \"%s\", ", i ? ",\n " : "[",
                f->name, f->value, f->unit);
        fprintf(to, "\"peer\": null, \"ratio\": null, ");
        if (f->goal)
            fprintf(to, "\"goal\": \"%s\", \"holds\": %s}", f->goal, f->holds ? "true" : "false");
        else
            fprintf(to, "\"goal\": null, \"holds\": null}");
    }
    fprintf(to, "]\n");
    return fclose(to) == 0;
}

static void check(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "rv_bench_pages: %s\n", what);
    exit(1);
}

static uint64_t next_random(uint64_t *s) { /* splitmix64 */
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value at a part of them, which are sorted for it. */
static double part_of(double *t, size_t n, double part) {
    qsort(t, n, sizeof *t, by_size);
    return t[(size_t)((double)(n - 1) * part)];
}

/* ---- taking pages ---- */

enum { PAGE_BYTES = 6528 * 16, BUDGET_PAGES = 20000, N_TAKEN = 400000 };

static double g_times[N_TAKEN];

static void show_times(const char *fit, const char *what, size_t n, bool goal) {
    char name[64];
    snprintf(name, sizeof name, "%s fit, %s", fit, what);
    add(part_of(g_times, n, 0.5), "ns", 0, NULL, name, ": p50");
    add(part_of(g_times, n, 0.99), "ns", 1000, goal ? "< 1 us" : NULL, name, ": p99");
}

static void time_clock(void) {
    for (size_t i = 0; i < N_TAKEN; i++) {
        const uint64_t from = rv_now_ns();
        g_times[i] = (double)(rv_now_ns() - from);
    }
    add(part_of(g_times, N_TAKEN, 0.5), "ns", 0, NULL, "the clock", "");
}

/* While the pool grows, and where it is nearly full and pages come and go: pages of a LFM2-350M in
 * Q8_0. */
static void time_pages(rv_fit fit, const char *name) {
    static rv_page held[BUDGET_PAGES + 1];
    const size_t sizes[] = {PAGE_BYTES};
    rv_budget *b;
    rv_budget_member *m;
    rv_pages *p;
    rv_page page;
    size_t n = 0;
    uint64_t r = 1;
    const uint64_t budget = (uint64_t)PAGE_BYTES * BUDGET_PAGES;
    check(rv_budget_new(&b, budget, NULL) == RV_OK &&
              rv_budget_join(&m, b, "pages", 0, NULL, NULL, NULL) == RV_OK &&
              rv_pages_new(&p, sizes, 1, m, fit, NULL) == RV_OK,
          "no pool");
    for (;;) {
        const uint64_t from = rv_now_ns();
        page = rv_pages_alloc(p, 0);
        g_times[n] = (double)(rv_now_ns() - from);
        if (!page) break;
        held[n++] = page;
    }
    check(n > BUDGET_PAGES / 2, "no memory");
    show_times(name, "while memory is asked for", n, false);
    for (size_t i = 0; i < n / 10; i++) rv_pages_unref(p, held[--n]);
    for (size_t i = 0; i < N_TAKEN; i++) {
        rv_page *at = &held[next_random(&r) % n];
        rv_pages_unref(p, *at);
        const uint64_t from = rv_now_ns();
        *at = rv_pages_alloc(p, 0);
        g_times[i] = (double)(rv_now_ns() - from);
        check(*at != 0, "a page is lost");
    }
    show_times(name, "90 % full", N_TAKEN, true);
    rv_pages_free(&p);
    rv_budget_leave(&m);
    rv_budget_free(&b);
}

/* ---- sharing ---- */

enum { PROMPT = 1024, CHUNK = 128, CACHE_PAGES = 4096, N_SEQUENCES = 100, ROUNDS = 15 };

static rv_kv_cache *open_cache(bool share) {
    static const int32_t heads[] = {1};
    const rv_kv_format f = {.n_layers = 1, .heads = heads, .head_dim = 32, .type = RV_KV_F16};
    const rv_kv_cache_opts o = {.budget = (uint64_t)CACHE_PAGES * RV_PAGE_TOKENS *
                                          rv_kv_head_bytes(RV_KV_F16, 32),
                                .share = share};
    rv_kv_cache *c;
    check(rv_kv_cache_new(&c, &f, &o, NULL) == RV_OK, "no cache");
    return c;
}

/* Nanoseconds per token of sequences that nobody has seen before, step tokens at a time, with
 * nothing computed. */
static double ns_per_token(rv_kv_cache *c, size_t step, uint64_t *r) {
    static int32_t tok[PROMPT];
    double ns = 0;
    for (size_t i = 0; i < N_SEQUENCES; i++) {
        for (size_t k = 0; k < PROMPT; k++) tok[k] = (int32_t)(next_random(r) & 0xffff);
        rv_kv *kv;
        const uint64_t from = rv_now_ns();
        check(rv_kv_new(&kv, c, NULL, NULL) == RV_OK, "no sequence");
        rv_kv_match(kv, tok, PROMPT);
        while (rv_kv_len(kv) < PROMPT) {
            check(rv_kv_reserve(kv, step, NULL, NULL) == RV_OK, "no room");
            rv_kv_commit(kv, tok + rv_kv_len(kv), step);
        }
        rv_kv_free(&kv);
        ns += (double)(rv_now_ns() - from);
    }
    return ns / N_SEQUENCES / PROMPT;
}

static void time_sharing(size_t step, const char *name) {
    rv_kv_cache *c[2] = {open_cache(false), open_cache(true)};
    double t[2][ROUNDS], more[ROUNDS];
    uint64_t r = 1;
    for (int k = 0; k < 2; k++) ns_per_token(c[k], step, &r); /* fill it: from now on pages go */
    for (size_t i = 0; i < ROUNDS; i++) {
        for (int k = 0; k < 2; k++) t[k][i] = ns_per_token(c[k], step, &r);
        more[i] = t[1][i] - t[0][i];
    }
    add(part_of(t[0], ROUNDS, 0.5), "ns/token", 0, NULL, name, ", without sharing");
    add(part_of(more, ROUNDS, 0.5), "ns/token", 0, NULL, name, ", looking up and publishing");
    for (int k = 0; k < 2; k++) rv_kv_cache_free(&c[k]);
}

int main(int argc, char **argv) {
    rv_init();
    time_clock();
    time_pages(RV_FIT_FIRST, "first");
    time_pages(RV_FIT_BEST, "best");
    time_pages(RV_FIT_ROUND_ROBIN, "round robin");
    time_sharing(CHUNK, "bookkeeping of a prompt");
    time_sharing(1, "bookkeeping of single tokens");
    return argc < 2 || write_json(argv[1]) ? 0 : 1;
}
