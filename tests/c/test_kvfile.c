/* kv: sequences in files.  Every byte counts: what comes back is what was written, or nothing. */
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kv/kv.h"
#include "rvk.h"
#include "test.h"

enum { D = 32, LAYERS = 2, MAX = 900 };

typedef struct env {
    rv_kv_cache *c;
    rv_kv_format f;
    char dir[40], path[64];
    int32_t tok[MAX];
} env;

static const int32_t HEADS[LAYERS] = {1, 2};

static void make_cache(env *e, bool store, bool state) {
    e->f = (rv_kv_format){.n_layers = LAYERS,
                          .heads = HEADS,
                          .head_dim = D,
                          .type = RV_KV_F32,
                          .store = store ? RV_KV_Q8_0 : RV_KV_AUTO,
                          .rotate = store,
                          .tail = store ? 128 : 0,
                          .batch = store ? 64 : 0,
                          .state_bytes = state ? 64 * 5 : 0};
    const rv_kv_cache_opts o = {.budget = 8 << 20, .share = true};
    CHECK(rv_kv_cache_new(&e->c, &e->f, &o, NULL) == RV_OK);
}

static void env_new(env *e, bool store, bool state) {
    strcpy(e->dir, "/tmp/rv_kvXXXXXX");
    CHECK(mkdtemp(e->dir));
    snprintf(e->path, sizeof e->path, "%s/s.kv", e->dir);
    for (int i = 0; i < MAX; i++) e->tok[i] = i * 7 % 1000;
    make_cache(e, store, state);
}

static void env_free(env *e) {
    rv_kv_cache_free(&e->c);
    unlink(e->path);
    CHECK(rmdir(e->dir) == 0); /* nothing else was left there */
}

/* Values that tell layer, head, position and dimension. */
static void fill(float *x, size_t layer, size_t head, size_t pos, bool value) {
    for (int i = 0; i < D; i++)
        x[i] = (float)((pos * 37 + layer * 11 + head * 5 + (size_t)i * 3 + value) % 101) - 50.0f;
}

/* Append tokens up to length n. */
static void extend(env *e, rv_kv *kv, size_t n) {
    while (rv_kv_len(kv) < n) {
        const size_t pos = rv_kv_len(kv), m = RV_MIN(n - pos, (size_t)100);
        float *snap = NULL;
        CHECK(rv_kv_reserve(kv, m, NULL, NULL) == RV_OK);
        const size_t at = rv_kv_snapshot(kv, m, &snap);
        for (size_t i = 0; i < m; i++) {
            for (size_t l = 0; l < LAYERS; l++)
                for (size_t h = 0; h < (size_t)HEADS[l]; h++) {
                    float k[D], v[D];
                    fill(k, l, h, pos + i, false), fill(v, l, h, pos + i, true);
                    rv_kv_write(kv, l, h, pos + i, 1, k, v, D);
                }
            if (rv_kv_state(kv)) rv_kv_state(kv)[(pos + i) % 80] += (float)(pos + i);
            if (at == i + 1) memcpy(snap, rv_kv_state(kv), e->f.state_bytes);
        }
        rv_kv_commit(kv, e->tok + pos, m);
    }
}

/* All that attention can see of two sequences is the same. */
static void same(env *e, rv_kv *a, rv_kv *b) {
    const size_t n = rv_kv_len(a), m = rv_kv_boundary(a, n + 1);
    CHECK(rv_kv_len(b) == n);
    for (size_t p = 0; p < n; p++)
        for (size_t l = 0; l < LAYERS; l++)
            for (size_t h = 0; h < (size_t)HEADS[l]; h++) {
                const void *ra[4], *rb[4];
                float x[4][D];
                const bool old = p < m;
                rv_kv_runs(a, old, l, h, p / 64, ra);
                rv_kv_runs(b, old, l, h, p / 64, rb);
                rvk_attn_get(rv_kv_type_of(a, old), ra[p % 64 / 16], p % 16, x[0], x[1], D);
                rvk_attn_get(rv_kv_type_of(b, old), rb[p % 64 / 16], p % 16, x[2], x[3], D);
                CHECK(memcmp(x[0], x[2], 2 * sizeof x[0]) == 0);
            }
    if (e->f.state_bytes) CHECK(memcmp(rv_kv_state(a), rv_kv_state(b), e->f.state_bytes) == 0);
}

static const rv_str TAG = {"a model", 7};

static void comes_back(bool store, bool state, size_t n) {
    env e;
    rv_kv *a, *b;
    rv_err err = {0};
    env_new(&e, store, state);
    CHECK(rv_kv_new(&a, e.c, &(rv_kv_scope){"x", 1, 0}, NULL) == RV_OK);
    extend(&e, a, n);
    CHECK(rv_kv_save(a, e.path, TAG, &err) == RV_OK);
    rv_kv_cache *old = e.c;
    make_cache(&e, store, state); /* as another process would */
    CHECK(rv_kv_new(&b, e.c, &(rv_kv_scope){"x", 1, 0}, NULL) == RV_OK);
    CHECK(rv_kv_load(b, e.path, TAG, e.tok, n + 1, &err) == RV_OK && rv_kv_len(b) == n);
    same(&e, a, b);
    extend(&e, a, n + 130); /* and both go on alike */
    extend(&e, b, n + 130);
    same(&e, a, b);
    rv_kv_free(&b);
    CHECK(rv_kv_new(&b, e.c, &(rv_kv_scope){"x", 1, 0}, NULL) ==
          RV_OK); /* what was loaded is shared */
    CHECK(rv_kv_match(b, e.tok, n + 130) > 0 || n < 16);
    rv_kv_free(&b);
    rv_kv_free(&a);
    rv_kv_cache_free(&old);
    env_free(&e);
}

static void kvfile_comes_back(void) {
    const size_t lengths[] = {1, 16, 17, 63, 200, 512, 700};
    for (size_t i = 0; i < RV_COUNT(lengths); i++)
        for (int k = 0; k < 4; k++) comes_back(k & 1, k & 2, lengths[i]);
}

/* Tokens that part from the file's: as much as can be resumed. */
static void kvfile_of_another_continuation(void) {
    for (int k = 0; k < 4; k++) {
        env e;
        rv_kv *a, *b;
        env_new(&e, k & 1, k & 2);
        CHECK(rv_kv_new(&a, e.c, NULL, NULL) == RV_OK);
        extend(&e, a, 400);
        CHECK(rv_kv_save(a, e.path, TAG, NULL) == RV_OK);
        rv_kv_cache *old = e.c;
        const size_t parts[] = {0, 5, 300, 395, 400};
        for (size_t i = 0; i < RV_COUNT(parts); i++) {
            const size_t at = parts[i];
            make_cache(&e, k & 1, k & 2);
            CHECK(rv_kv_new(&b, e.c, NULL, NULL) == RV_OK);
            int32_t tok[MAX];
            memcpy(tok, e.tok, sizeof tok);
            tok[at] = -5;
            CHECK(rv_kv_load(b, e.path, TAG, tok, 410, NULL) == RV_OK);
            const size_t got = rv_kv_len(b);
            CHECK(got <= at);
            if (!k) CHECK(got == at);
            if (at == 400) CHECK(got == 400);
            if (k == 1 && at == 395) CHECK(got == 395);
            extend(&e, b, 500);
            rv_kv_free(&a);
            CHECK(rv_kv_new(&a, old, NULL, NULL) == RV_OK);
            extend(&e, a, 500);
            same(&e, a, b);
            rv_kv_free(&b);
            rv_kv_cache_free(&e.c);
        }
        rv_kv_free(&a);
        e.c = old;
        env_free(&e);
    }
}

static uint8_t *slurp(const char *path, size_t *n) {
    struct stat s;
    const int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && fstat(fd, &s) == 0);
    uint8_t *p = malloc((size_t)s.st_size + 1);
    CHECK(p && read(fd, p, (size_t)s.st_size) == s.st_size);
    close(fd);
    *n = (size_t)s.st_size;
    return p;
}

static void spit(const char *path, const void *p, size_t n) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, p, n) == (ssize_t)n);
    close(fd);
}

/* A changed byte and a missing end are found, wherever they are; padding alone may change. */
static void kvfile_finds_damage(void) {
    env e;
    rv_kv *a, *b;
    size_t n;
    uint64_t seed = 5;
    env_new(&e, true, true);
    CHECK(rv_kv_new(&a, e.c, NULL, NULL) == RV_OK);
    extend(&e, a, 330);
    CHECK(rv_kv_save(a, e.path, TAG, NULL) == RV_OK);
    uint8_t *p = slurp(e.path, &n);
    for (size_t i = 0; i < 3000; i++) {
        const size_t at = i < 2200 ? i : (size_t)(rv_test_rand(&seed) % n);
        const uint8_t was = p[at];
        rv_err err = {0};
        p[at] ^= (uint8_t)(1 << rv_test_rand(&seed) % 8);
        spit(e.path, p, n);
        p[at] = was;
        CHECK(rv_kv_new(&b, e.c, &(rv_kv_scope){"other", 5, 0}, NULL) == RV_OK);
        const rv_status st = rv_kv_load(b, e.path, TAG, e.tok, 400, &err);
        if (st == RV_OK) {
            CHECK(at > 1500 && rv_kv_len(b) == 330); /* what fills up to whole sectors */
            same(&e, a, b);
        } else {
            CHECK((st == RV_EFORMAT || st == RV_EUNSUPPORTED) && rv_kv_len(b) == 0 && err.msg[0]);
        }
        rv_kv_free(&b);
    }
    for (size_t cut = 0; cut < n; cut += cut < 2048 ? 13 : 4096) {
        spit(e.path, p, cut);
        CHECK(rv_kv_new(&b, e.c, NULL, NULL) == RV_OK);
        CHECK(rv_kv_load(b, e.path, TAG, e.tok, 400, NULL) == RV_EFORMAT && rv_kv_len(b) == 0);
        rv_kv_free(&b);
    }
    free(p);
    rv_kv_free(&a);
    env_free(&e);
}

/* Another tail is another format. */
static void kvfile_is_of_one_tail(void) {
    env e;
    rv_kv *a, *b;
    const rv_kv_scope scope = {NULL, 0, 192}, same_scope = {"y", 1, 192};
    env_new(&e, true, false);
    CHECK(rv_kv_new(&a, e.c, &scope, NULL) == RV_OK);
    extend(&e, a, 330);
    CHECK(rv_kv_save(a, e.path, TAG, NULL) == RV_OK);
    CHECK(rv_kv_new(&b, e.c, NULL, NULL) == RV_OK);
    CHECK(rv_kv_load(b, e.path, TAG, e.tok, 400, NULL) == RV_EUNSUPPORTED && rv_kv_len(b) == 0);
    rv_kv_free(&b);
    CHECK(rv_kv_new(&b, e.c, &same_scope, NULL) == RV_OK);
    CHECK(rv_kv_load(b, e.path, TAG, e.tok, 400, NULL) == RV_OK && rv_kv_len(b) == 330);
    same(&e, a, b);
    rv_kv_free(&b);
    rv_kv_free(&a);
    env_free(&e);
}

/* Files of other models, formats, users; what is no file. */
static void kvfile_refuses_what_is_foreign(void) {
    env e;
    rv_kv *a, *b;
    rv_err err = {0};
    env_new(&e, false, false);
    CHECK(rv_kv_new(&a, e.c, NULL, NULL) == RV_OK);
    CHECK(rv_kv_save(a, e.path, TAG, NULL) == RV_EARG);
    CHECK(rv_kv_load(a, e.path, TAG, e.tok, 9, NULL) == RV_ENOTFOUND);
    CHECK(rv_kv_load(a, e.dir, TAG, e.tok, 9, NULL) == RV_EIO);
    extend(&e, a, 100);
    CHECK(rv_kv_load(a, e.path, TAG, e.tok, 9, NULL) == RV_ESTATE);
    CHECK(rv_kv_save(a, e.path, TAG, NULL) == RV_OK);
    CHECK(rv_kv_new(&b, e.c, NULL, NULL) == RV_OK);
    CHECK(rv_kv_load(b, e.path, (rv_str){"a modem", 7}, e.tok, 101, &err) == RV_EUNSUPPORTED);
    CHECK(strstr(err.msg, "another model") && rv_kv_len(b) == 0);
    CHECK(rv_kv_load(b, e.path, (rv_str){"a mode", 6}, e.tok, 101, NULL) == RV_EUNSUPPORTED);
    rv_kv_free(&b);
    env other = e;
    make_cache(&other, true, false);
    CHECK(rv_kv_new(&b, other.c, NULL, NULL) == RV_OK);
    CHECK(rv_kv_load(b, e.path, TAG, e.tok, 101, NULL) == RV_EUNSUPPORTED && rv_kv_len(b) == 0);
    rv_kv_free(&b);
    rv_kv_cache_free(&other.c);
    rv_kv_free(&a);
    env_free(&e);
}

/* When the disk is full the file that was there stands, and nothing else is left. */
static void kvfile_survives_a_full_disk(void) {
    env e;
    rv_kv *a;
    rv_err err = {0};
    size_t n, m;
    struct rlimit was, small;
    env_new(&e, false, true);
    CHECK(rv_kv_new(&a, e.c, NULL, NULL) == RV_OK);
    extend(&e, a, 100);
    CHECK(rv_kv_save(a, e.path, TAG, NULL) == RV_OK);
    uint8_t *p = slurp(e.path, &n);
    extend(&e, a, 500);
    signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &was) == 0);
    small = was;
    for (small.rlim_cur = 0; small.rlim_cur < 3 * n; small.rlim_cur += n / 2 + 1) {
        CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
        rv_err_clear(&err);
        const rv_status st = rv_kv_save(a, e.path, TAG, &err);
        CHECK(setrlimit(RLIMIT_FSIZE, &was) == 0);
        CHECK(st == RV_EIO && strstr(err.msg, e.path));
        uint8_t *q = slurp(e.path, &m);
        CHECK(m == n && memcmp(p, q, n) == 0);
        free(q);
    }
    signal(SIGXFSZ, SIG_DFL);
    CHECK(rv_kv_save(a, e.path, TAG, NULL) == RV_OK);
    free(p);
    rv_kv_free(&a);
    env_free(&e);
}

/* In pieces it is the same file; one that is given up leaves nothing. */
static void kvfile_is_written_in_pieces(void) {
    env e;
    rv_kv *a;
    rv_kv_writer *w;
    size_t n, m, n_pieces = 0;
    bool done = false;
    env_new(&e, true, true);
    CHECK(rv_kv_new(&a, e.c, NULL, NULL) == RV_OK);
    CHECK(rv_kv_writer_new(&w, a, e.path, TAG, false, NULL) == RV_EARG && !w);
    extend(&e, a, 330);
    CHECK(rv_kv_save(a, e.path, TAG, NULL) == RV_OK);
    uint8_t *p = slurp(e.path, &n);
    CHECK(unlink(e.path) == 0);
    CHECK(rv_kv_writer_new(&w, a, e.path, TAG, false, NULL) == RV_OK);
    CHECK(rv_kv_writer_bytes(w) == n);
    for (; !done; n_pieces++) {
        CHECK(access(e.path, F_OK) != 0);
        CHECK(rv_kv_writer_write(w, 1, &done, NULL) == RV_OK);
    }
    rv_kv_writer_free(&w);
    uint8_t *q = slurp(e.path, &m);
    CHECK(n_pieces > 20 && m == n && memcmp(p, q, n) == 0);
    CHECK(rv_kv_writer_new(&w, a, e.path, TAG, false, NULL) == RV_OK);
    CHECK(rv_kv_writer_write(w, 10000, &done, NULL) == RV_OK && !done);
    rv_kv_writer_free(&w);
    free(p), free(q);
    rv_kv_free(&a);
    env_free(&e);
}

/* Every allocation fails once, in saving and in loading; a small cache has no room. */
static void kvfile_without_memory(void) {
    env e;
    rv_kv *a, *b;
    env_new(&e, true, true);
    CHECK(rv_kv_new(&a, e.c, NULL, NULL) == RV_OK);
    extend(&e, a, 300);
    rv_status st = RV_ENOMEM;
    for (long k = 0; st != RV_OK; k++) {
        rv_test_fail_alloc_at(k);
        st = rv_kv_save(a, e.path, TAG, NULL);
        rv_test_fail_alloc_at(-1);
        CHECK(st == RV_OK || st == RV_ENOMEM);
    }
    rv_kv_free(&a);
    rv_kv_cache_free(&e.c);
    make_cache(&e, true, true);
    st = RV_ENOMEM;
    for (long k = 0; st != RV_OK; k++) {
        CHECK(rv_kv_new(&b, e.c, NULL, NULL) == RV_OK);
        rv_test_fail_alloc_at(k);
        st = rv_kv_load(b, e.path, TAG, e.tok, 301, NULL);
        rv_test_fail_alloc_at(-1);
        CHECK(rv_kv_len(b) == (st == RV_OK ? 300 : 0));
        CHECK(st == RV_OK || st == RV_ENOMEM || st == RV_EFULL);
        rv_kv_free(&b);
    }
    rv_kv_cache_free(&e.c);
    const rv_kv_cache_opts o = {.budget = 100000, .share = true};
    CHECK(rv_kv_cache_new(&e.c, &e.f, &o, NULL) == RV_OK);
    CHECK(rv_kv_new(&b, e.c, NULL, NULL) == RV_OK);
    CHECK(rv_kv_load(b, e.path, TAG, e.tok, 301, NULL) == RV_EFULL && rv_kv_len(b) == 0);
    extend(&e, b, 20); /* and it is whole */
    rv_kv_free(&b);
    env_free(&e);
}

const rv_test tests_kvfile[] = {
    {"kvfile_comes_back", kvfile_comes_back},
    {"kvfile_of_another_continuation", kvfile_of_another_continuation},
    {"kvfile_finds_damage", kvfile_finds_damage},
    {"kvfile_is_of_one_tail", kvfile_is_of_one_tail},
    {"kvfile_refuses_what_is_foreign", kvfile_refuses_what_is_foreign},
    {"kvfile_survives_a_full_disk", kvfile_survives_a_full_disk},
    {"kvfile_is_written_in_pieces", kvfile_is_written_in_pieces},
    {"kvfile_without_memory", kvfile_without_memory},
    {NULL, NULL},
};
