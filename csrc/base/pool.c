/* The thread pool.
 *
 *   loop     = number of the current loop
 *   share[t] = (loop number << 32) | next unclaimed chunk of thread t's share, chunks
 *              t * n / n_threads .. (t + 1) * n / n_threads - 1        one 64-bit atomic each
 *   job[i]   = fn, arg, n_chunks of loop i mod N_JOBS
 *
 * P1  A chunk is claimed by moving its share on with compare-and-swap, so a claim succeeds only if
 *     the loop is still the current one; the job read before it was therefore the right one (it is
 *     overwritten N_JOBS loops later, which would have changed the share).
 * P2  A thread works through its own share, which keeps its reads in one stream and its counter in
 *     its own cache, and then helps with the others'.  It says once per loop how much it did; run()
 *     returns when n_done reaches n_chunks.  A worker that wakes late claims nothing and is not
 *     waited for; one that lost its core inside a chunk holds up that chunk only.
 * P3  A worker sleeps only after it has seen no new loop for SPIN_NS and has re-read its number
 *     under the lock; run() signals under the same lock, so no wake-up is lost.
 * P4  A straggler is a worker whose chunk keeps run() waiting far longer than chunks take: another
 *     program has its core, and the next barrier would wait for a time slice again.  run() then
 *     works alone for a while, doubled each time it happens soon after the last, so a neighbour
 *     costs one time slice per 10 .. 320 ms and not one per barrier.
 * P5  A loop that a chunk starts is run by that thread alone: the others have chunks of their own.
 * P6  A worker is woken on another core than run()'s.  Left to itself, Linux puts about half of
 *     those that have slept for milliseconds on the core of whoever wakes them, where they wait
 *     1 to 4 ms for its time slice to end while run() works alone.  They may go anywhere once
 *     they run.
 * P7  A forked child has the pool but not its threads: it runs every loop by itself, with the same
 *     result, and never touches a lock another thread may have held. */
#ifdef __linux__
#define _GNU_SOURCE /* sched_getaffinity and its like */
#endif
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>

enum { N_JOBS = 8, SPIN_NS = 50000 };

/* P4, in nanoseconds: how long a wait is too long beside the time of chunks, the shortest and the
 * longest spell of working alone, and after how long without a straggler the count starts anew. */
enum { PATIENCE = 200000, ALONE_MIN = 10000000, ALONE_MAX = 320000000, FORGIVEN = 1000000000 };

typedef struct job { /* atomic only because a late worker may read one that is being rewritten: P1
                      */
    _Atomic(rv_pool_fn) fn;
    _Atomic(void *) arg;
    atomic_size_t n_chunks;
} job;

typedef struct share {
    _Alignas(64) _Atomic uint64_t next;
} share;

typedef struct cores { /* of a worker */
#ifdef __linux__
    cpu_set_t all; /* that it may run on */
#endif
    bool known, narrowed;
} cores;

struct rv_pool {
    _Alignas(64) _Atomic uint32_t loop;
    _Alignas(64) atomic_size_t n_done;
    _Alignas(64) atomic_int n_asleep;
    atomic_bool stop;
    job jobs[N_JOBS];
    pthread_mutex_t turn;  /* one loop at a time */
    pthread_mutex_t sleep; /* guards the condition */
    pthread_cond_t wake;
    int n_threads;
    share *shares;                                  /* [n_threads] */
    uint64_t alone_until, alone_ns, last_straggler; /* P4; written under turn */
    int n_forks;        /* of this process when the threads were started */
    pthread_t *threads; /* [n_threads - 1] */
    struct worker {
        rv_pool *pool;
        int i_thread;
        bool asleep; /* guarded by sleep, as all of P6 */
        cores cores;
    } *workers;
};

/* ---- P6 ---- */

#ifdef __linux__
static void note_cores(cores *c) {
    c->known = sched_getaffinity(0, sizeof c->all, &c->all) == 0;
    c->narrowed = false;
}

/* The sleeping thread may not wake on this one's core. */
static void keep_off(cores *c, pthread_t thread) {
    const int here = sched_getcpu();
    if (!c->known || c->narrowed || here < 0 || here >= CPU_SETSIZE || !CPU_ISSET(here, &c->all) ||
        CPU_COUNT(&c->all) < 2)
        return;
    cpu_set_t others = c->all;
    CPU_CLR(here, &others);
    c->narrowed = pthread_setaffinity_np(thread, sizeof others, &others) == 0;
}

static void roam(const cores *c) {
    if (c->narrowed) sched_setaffinity(0, sizeof c->all, &c->all);
}
#else
static void note_cores(cores *c) {
    (void)c;
}
static void keep_off(cores *c, pthread_t thread) {
    (void)c, (void)thread;
}
static void roam(const cores *c) {
    (void)c;
}
#endif

/* Whether this thread is inside a chunk: P5. */
static _Thread_local bool t_inside;

/* Forks between this process and the one that first made a pool. */
static atomic_int g_forks;

static void count_fork(void) {
    atomic_fetch_add(&g_forks, 1);
}

static void watch_forks(void) {
    pthread_atfork(NULL, NULL, count_fork);
}

static bool lost_threads(const rv_pool *p) {
    return p->n_forks != atomic_load_explicit(&g_forks, memory_order_relaxed);
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Work on loop number seq until it has no unclaimed chunk; how many this thread did. */
static size_t work(rv_pool *p, uint32_t seq, int i_thread) {
    const size_t n_threads = (size_t)p->n_threads;
    size_t n_own = 0;
    job *j = &p->jobs[seq % N_JOBS];
    const size_t n_chunks = atomic_load_explicit(&j->n_chunks, memory_order_relaxed);
    const rv_pool_fn fn = atomic_load_explicit(&j->fn, memory_order_relaxed);
    void *const arg = atomic_load_explicit(&j->arg, memory_order_relaxed);
    for (size_t k = 0; k < n_threads; k++) {
        const size_t i = ((size_t)i_thread + k) % n_threads;
        const size_t end = (i + 1) * n_chunks / n_threads;
        _Atomic uint64_t *next = &p->shares[i].next;
        uint64_t t = atomic_load_explicit(next, memory_order_acquire);
        while ((uint32_t)(t >> 32) == seq && (uint32_t)t < end) {
            if (!atomic_compare_exchange_weak_explicit(next, &t, t + 1, memory_order_acq_rel,
                                                       memory_order_acquire))
                continue;
            fn(arg, (uint32_t)t, i_thread);
            n_own++;
            t = atomic_load_explicit(next, memory_order_acquire);
        }
    }
    if (n_own) atomic_fetch_add_explicit(&p->n_done, n_own, memory_order_release);
    return n_own;
}

/* Until there is another loop than seen. */
static void doze(struct worker *w, uint32_t seen) {
    rv_pool *p = w->pool;
    pthread_mutex_lock(&p->sleep);
    note_cores(&w->cores);
    w->asleep = true;
    atomic_fetch_add(&p->n_asleep, 1);
    while (atomic_load(&p->loop) == seen && !atomic_load(&p->stop))
        pthread_cond_wait(&p->wake, &p->sleep);
    atomic_fetch_sub(&p->n_asleep, 1);
    w->asleep = false;
    const cores c = w->cores;
    pthread_mutex_unlock(&p->sleep);
    roam(&c);
}

static void wake_all(rv_pool *p) {
    pthread_mutex_lock(&p->sleep);
    for (int i = 0; i < p->n_threads - 1; i++)
        if (p->workers[i].asleep) keep_off(&p->workers[i].cores, p->threads[i]);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->sleep);
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    rv_pool *p = w->pool;
    uint32_t seen = 0;
    t_inside = true;
    for (;;) {
        uint64_t since = rv_now_ns();
        unsigned spins = 0;
        uint32_t seq;
        while ((seq = atomic_load_explicit(&p->loop, memory_order_acquire)) == seen) {
            if (atomic_load_explicit(&p->stop, memory_order_acquire)) return NULL;
            relax();
            if (++spins % 64 || rv_now_ns() - since < SPIN_NS) continue;
            doze(w, seen);
            since = rv_now_ns();
        }
        seen = seq;
        work(p, seq, w->i_thread);
    }
}

rv_status rv_pool_new(rv_pool **out, int n_threads, rv_err *err) {
    *out = NULL;
    if (n_threads < 1 || n_threads > 256)
        return rv_fail(err, RV_EARG, "n_threads: is %d, want 1 .. 256", n_threads);
    rv_pool *p = rv_alloc_aligned(sizeof *p);
    if (!p) return rv_fail(err, RV_ENOMEM, "thread pool: out of memory");
    memset(p, 0, sizeof *p);
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    p->n_forks = atomic_load(&g_forks);
    pthread_mutex_init(&p->turn, NULL);
    pthread_mutex_init(&p->sleep, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->n_threads = 1;
    p->threads = rv_calloc((size_t)n_threads, sizeof *p->threads);
    p->workers = rv_calloc((size_t)n_threads, sizeof *p->workers);
    p->shares = rv_alloc_aligned((size_t)n_threads * sizeof *p->shares);
    if (p->shares) memset(p->shares, 0, (size_t)n_threads * sizeof *p->shares);
    if (!p->threads || !p->workers || !p->shares) {
        rv_pool_free(&p);
        return rv_fail(err, RV_ENOMEM, "thread pool: out of memory");
    }
    for (int i = 1; i < n_threads; i++) {
        p->workers[i - 1] = (struct worker){.pool = p, .i_thread = i};
        int rc = pthread_create(&p->threads[i - 1], NULL, worker_main, &p->workers[i - 1]);
        if (rc != 0) {
            rv_pool_free(&p);
            return rv_fail(err, RV_EIO, "thread pool: cannot start thread %d of %d: %s", i + 1,
                           n_threads, strerror(rc));
        }
        p->n_threads = i + 1;
    }
    *out = p;
    return RV_OK;
}

void rv_pool_free(rv_pool **pp) {
    rv_pool *p = *pp;
    *pp = NULL;
    if (!p) return;
    if (!lost_threads(p)) {
        pthread_mutex_lock(&p->sleep);
        atomic_store(&p->stop, true);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->sleep);
        for (int i = 1; i < p->n_threads; i++) pthread_join(p->threads[i - 1], NULL);
        pthread_cond_destroy(&p->wake);
        pthread_mutex_destroy(&p->sleep);
        pthread_mutex_destroy(&p->turn);
    }
    rv_free(p->shares);
    rv_free(p->threads);
    rv_free(p->workers);
    rv_free(p);
}

int rv_pool_n_threads(const rv_pool *p) {
    return p->n_threads;
}

/* Wait for the chunks of others; start is when this thread began, n_own what it did itself. */
static void wait_for_others(rv_pool *p, size_t n_chunks, uint64_t start, size_t n_own) {
    if (atomic_load_explicit(&p->n_done, memory_order_acquire) == n_chunks) return;
    const uint64_t since = rv_now_ns();
    for (unsigned spins = 0; atomic_load_explicit(&p->n_done, memory_order_acquire) < n_chunks;) {
        relax();
        if (++spins > 2000) sched_yield(); /* the holder of the last chunk may need this core */
    }
    const uint64_t now = rv_now_ns(), chunk = (since - start) / RV_MAX(n_own, (size_t)1);
    if (now - since < PATIENCE + 3 * chunk) return;
    p->alone_ns = now - p->last_straggler > FORGIVEN ? ALONE_MIN
                                                     : RV_MIN(2 * p->alone_ns, (uint64_t)ALONE_MAX);
    p->last_straggler = now;
    p->alone_until = now + p->alone_ns;
}

static void run_shared(rv_pool *p, size_t n_chunks, rv_pool_fn fn, void *arg) {
    const uint64_t start = rv_now_ns();
    if (start < p->alone_until) {
        for (size_t i = 0; i < n_chunks; i++) fn(arg, i, 0);
        return;
    }
    const uint32_t seq = atomic_load(&p->loop) + 1;
    const size_t n_threads = (size_t)p->n_threads;
    job *j = &p->jobs[seq % N_JOBS];
    atomic_store_explicit(&j->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&j->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&j->n_chunks, n_chunks, memory_order_relaxed);
    atomic_store_explicit(&p->n_done, 0, memory_order_relaxed);
    for (size_t i = 0; i < n_threads; i++)
        atomic_store_explicit(&p->shares[i].next, (uint64_t)seq << 32 | i * n_chunks / n_threads,
                              memory_order_release);
    atomic_store(&p->loop, seq);
    if (atomic_load(&p->n_asleep) > 0) wake_all(p);
    wait_for_others(p, n_chunks, start, work(p, seq, 0));
}

void rv_pool_run(rv_pool *p, size_t n_chunks, rv_pool_fn fn, void *arg) {
    if (n_chunks == 0) return;
    if (p->n_threads == 1 || n_chunks == 1 || n_chunks > UINT32_MAX || t_inside ||
        lost_threads(p)) {
        for (size_t i = 0; i < n_chunks; i++) fn(arg, i, 0);
        return;
    }
    pthread_mutex_lock(&p->turn);
    t_inside = true;
    run_shared(p, n_chunks, fn, arg);
    t_inside = false;
    pthread_mutex_unlock(&p->turn);
}
