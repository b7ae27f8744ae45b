/* Drives a fuzz target without libFuzzer: over files as they are, then over mutations of them.
 *
 *   fuzz_x FILE_OR_FOLDER...                     every file once
 *   fuzz_x --mutate N SEED FILE_OR_FOLDER...     and N mutations, the same for the same seed
 *
 * When a signal or a sanitizer ends the program, the input that ran is written to crash.bin, so
 * that the failure can be replayed: fuzz_x crash.bin. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

enum { MAX_BYTES = 1 << 16 };

__attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                                                     unsigned seed);

typedef struct input {
    uint8_t *p;
    size_t n;
} input;

static input *g_corpus;
static size_t g_n, g_cap;
static uint64_t g_rand;
static const uint8_t *volatile g_now; /* the input that runs, for the crash handler */
static volatile size_t g_now_bytes;

static uint64_t next_rand(void) { /* splitmix64 */
    uint64_t z = (g_rand += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static size_t below(size_t n) {
    return n ? (size_t)(next_rand() % n) : 0;
}

/* Sanitizers ask for these: they are to end the program by a signal, which saves the input. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
__attribute__((visibility("default"))) const char *__ubsan_default_options(void);
const char *__asan_default_options(void) {
    return "abort_on_error=1";
}
const char *__ubsan_default_options(void) {
    return "abort_on_error=1:print_stacktrace=1";
}

static void on_crash(int sig) {
    int fd = open("crash.bin", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0) {
        ssize_t n = write(fd, g_now, g_now_bytes);
        (void)n;
        close(fd);
        fprintf(stderr, "the input is in crash.bin\n");
    }
    signal(sig, SIG_DFL);
    raise(sig);
}

static void run(const uint8_t *data, size_t n) {
    uint8_t *exact = malloc(n ? n : 1); /* exactly n bytes: a sanitizer sees a read past them */
    if (!exact) exit(2);
    memcpy(exact, data, n);
    g_now = exact;
    g_now_bytes = n;
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
}

static void add_file(const char *path, size_t n) {
    FILE *f = fopen(path, "rb");
    uint8_t *p = malloc(n ? n : 1);
    if (!f || !p || fread(p, 1, n, f) != n) {
        fprintf(stderr, "%s: cannot read %zu bytes\n", path, n);
        exit(2);
    }
    fclose(f);
    if (g_n == g_cap) {
        g_cap = g_cap ? 2 * g_cap : 64;
        g_corpus = realloc(g_corpus, g_cap * sizeof *g_corpus);
        if (!g_corpus) exit(2);
    }
    g_corpus[g_n++] = (input){p, n};
}

static void add_path(const char *path, bool named) {
    struct stat sb;
    if (stat(path, &sb) != 0) {
        fprintf(stderr, "%s: no such file\n", path);
        exit(2);
    }
    if (S_ISREG(sb.st_mode)) {
        if (named || sb.st_size <= MAX_BYTES) add_file(path, (size_t)sb.st_size);
        return;
    }
    struct dirent **list;
    int n = scandir(path, &list, NULL, alphasort);
    if (n < 0) exit(2);
    for (int i = 0; i < n; i++) {
        char child[4096];
        if (list[i]->d_name[0] != '.' &&
            snprintf(child, sizeof child, "%s/%s", path, list[i]->d_name) < (int)sizeof child)
            add_path(child, false);
        free(list[i]);
    }
    free(list);
}

static void put_interesting(uint8_t *p, size_t room) {
    static const uint64_t NUMBERS[] = {0,          1,          2,          3,         4,
                                       7,          8,          31,         32,        127,
                                       255,        256,        4095,       65535,     65536,
                                       1 << 20,    1 << 30,    0x7fffffff, 1u << 31,  1ull << 32,
                                       1ull << 60, 1ull << 61, 1ull << 62, INT64_MAX, UINT64_MAX};
    size_t width = (size_t)1 << below(4);
    uint64_t x = NUMBERS[below(sizeof NUMBERS / sizeof NUMBERS[0])] + below(5) - 2;
    for (size_t i = 0; i < width && i < room; i++, x >>= 8) p[i] = (uint8_t)x;
}

static size_t delete_range(uint8_t *data, size_t size) {
    size_t at = below(size), n = 1 + below(size - at < 64 ? size - at : 64);
    if (n > size - at) n = size - at;
    memmove(data + at, data + at + n, size - at - n);
    return size - n;
}

static size_t copy_range(uint8_t *data, size_t size, size_t max_size, const input *from) {
    if (from->n == 0) return size;
    size_t src = below(from->n), n = 1 + below(from->n - src < 256 ? from->n - src : 256);
    size_t at = below(size + 1);
    if (n > from->n - src) n = from->n - src;
    if (n > max_size - size) return size;
    uint8_t *tmp = malloc(n); /* from may be data itself */
    if (!tmp) exit(2);
    memcpy(tmp, from->p + src, n);
    memmove(data + at + n, data + at, size - at);
    memcpy(data + at, tmp, n);
    free(tmp);
    return size + n;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
    if (size == 0) return copy_range(data, size, max_size, &g_corpus[below(g_n)]);
    size_t at = below(size);
    switch (below(7)) {
    case 0: data[at] ^= (uint8_t)(1u << below(8)); return size;
    case 1: data[at] = (uint8_t)next_rand(); return size;
    case 2:
    case 3: put_interesting(data + at, size - at); return size;
    case 4: return delete_range(data, size);
    case 5: return copy_range(data, size, max_size, &(input){data, size});
    default: return copy_range(data, size, max_size, &g_corpus[below(g_n)]);
    }
}

static void mutate_all(unsigned long n, uint64_t seed) {
    g_rand = seed;
    static uint8_t data[MAX_BYTES];
    for (unsigned long i = 0; i < n; i++) {
        const input *from = &g_corpus[below(g_n)];
        size_t size = from->n < MAX_BYTES ? from->n : MAX_BYTES;
        memcpy(data, from->p, size);
        for (size_t k = 1 + below(4); k; k--) {
            if (LLVMFuzzerCustomMutator)
                size = LLVMFuzzerCustomMutator(data, size, MAX_BYTES, (unsigned)next_rand());
            else
                size = LLVMFuzzerMutate(data, size, MAX_BYTES);
        }
        run(data, size);
    }
}

int main(int argc, char **argv) {
    int first = 1;
    unsigned long n_mutations = 0;
    uint64_t seed = 0;
    if (argc > 4 && strcmp(argv[1], "--mutate") == 0) {
        n_mutations = strtoul(argv[2], NULL, 10);
        seed = strtoull(argv[3], NULL, 10);
        first = 4;
    }
    for (int i = first; i < argc; i++) add_path(argv[i], true);
    if (g_n == 0) {
        fprintf(stderr, "usage: %s [--mutate N SEED] FILE_OR_FOLDER...\n", argv[0]);
        return 2;
    }
#ifdef __SANITIZE_ADDRESS__
    const int fatal[] = {SIGABRT, SIGILL, SIGTRAP}; /* the others it reports itself, then aborts */
#else
    const int fatal[] = {SIGABRT, SIGILL, SIGTRAP, SIGSEGV, SIGBUS, SIGFPE};
#endif
    for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++) signal(fatal[i], on_crash);
    for (size_t i = 0; i < g_n; i++) run(g_corpus[i].p, g_corpus[i].n);
    mutate_all(n_mutations, seed);
    printf("%zu files, %lu mutations, no failure\n", g_n, n_mutations);
    for (size_t i = 0; i < g_n; i++) free(g_corpus[i].p);
    free(g_corpus);
    return 0;
}
