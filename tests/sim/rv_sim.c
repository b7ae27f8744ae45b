/* rv_sim FIRST STEPS [SEEDS [PROCESSES]]: the scheduler's world for a long time.
 *
 * A seed is STEPS steps in worlds of EPISODE steps each, every world with options of its own.  Of
 * one seed it says what happened, and how much of prompts was found; of several, each runs in a
 * process of its own, PROCESSES of them at once (as many as there are CPUs), until one fails. */
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../c/sim.h"

enum { EPISODE = 2000, MAX_PROCESSES = 256 };

typedef struct totals {
    uint64_t n_steps, n_ended, n_preempted, n_evicted, n_over, n_swapped, n_budgets, n_guests;
    uint64_t max_wait, by_finish[RV_FINISH_ERROR + 1];
} totals;

static void add_world(totals *t, const sim *s) {
    rv_kv_cache_stats c;
    rv_sched_stats q;
    rv_kv_cache_get_stats(s->cache, &c);
    rv_sched_get_stats(s->sched, &q);
    t->n_steps += s->i_step;
    t->n_ended += s->n_ended;
    t->n_preempted += q.n_preempted;
    t->n_evicted += c.prefix.n_evicted;
    t->n_over += s->n_over_preempted;
    t->n_swapped += s->n_swapped_in;
    t->n_budgets += s->n_budgets;
    t->n_guests += s->n_guests;
    t->max_wait = RV_MAX(t->max_wait, s->max_wait);
    for (int i = 0; i <= RV_FINISH_ERROR; i++) t->by_finish[i] += s->n_by_finish[i];
}

static void add_totals(totals *t, const totals *u) {
    t->n_steps += u->n_steps;
    t->n_ended += u->n_ended;
    t->n_preempted += u->n_preempted;
    t->n_evicted += u->n_evicted;
    t->n_over += u->n_over;
    t->n_swapped += u->n_swapped;
    t->n_budgets += u->n_budgets;
    t->n_guests += u->n_guests;
    t->max_wait = RV_MAX(t->max_wait, u->max_wait);
    for (int i = 0; i <= RV_FINISH_ERROR; i++) t->by_finish[i] += u->by_finish[i];
}

/* Worlds of a seed share none with those of another. */
static void run_seed(uint64_t seed, uint64_t n_steps, totals *t) {
    uint64_t world = seed << 20;
    for (uint64_t done = 0; done < n_steps; world++) {
        const sim_opts o = sim_random(world);
        sim s;
        sim_open(&s, &o, world);
        sim_run(&s, RV_MIN(n_steps - done, (uint64_t)EPISODE));
        done += s.i_step;
        add_world(t, &s);
        sim_close(&s);
    }
}

static void show(const totals *t) {
    const uint64_t *by = t->by_finish;
    printf(
        "%llu steps, %llu requests ended: stop %llu, length %llu, cancelled %llu, deadline %llu, "
        "error %llu\n",
        (unsigned long long)t->n_steps, (unsigned long long)t->n_ended,
        (unsigned long long)by[RV_FINISH_STOP], (unsigned long long)by[RV_FINISH_LENGTH],
        (unsigned long long)by[RV_FINISH_CANCELLED], (unsigned long long)by[RV_FINISH_DEADLINE],
        (unsigned long long)by[RV_FINISH_ERROR]);
    printf("%llu preemptions (%llu requests more often than wanted), %llu brought back, %llu pages "
           "evicted, %llu other budgets, %llu sequences from outside, longest stay %llu steps\n",
           (unsigned long long)t->n_preempted, (unsigned long long)t->n_over,
           (unsigned long long)t->n_swapped, (unsigned long long)t->n_evicted,
           (unsigned long long)t->n_budgets, (unsigned long long)t->n_guests,
           (unsigned long long)t->max_wait);
}

static void show_hit_rates(uint64_t seed) {
    static const size_t sizes[] = {100000, 1000, 300};
    for (size_t i = 0; i < RV_COUNT(sizes); i++) {
        for (int await = 0; await < 2; await++) {
            uint64_t n, cached, best;
            sim_hit_rate(seed, sizes[i], await, &n, &cached, &best);
            printf("cache of %zu pages%s: found %.2f %% of prompt tokens, at best %.2f %%\n",
                   sizes[i], await ? ", prefixes awaited" : "", 100.0 * (double)cached / (double)n,
                   100.0 * (double)best / (double)n);
        }
    }
}

/* ---- many seeds ---- */

typedef struct worker {
    pid_t pid; /* 0: none */
    uint64_t seed;
} worker;

static bool start(worker *w, uint64_t seed, uint64_t n_steps, totals *t) {
    fflush(stdout);
    *w = (worker){.pid = fork(), .seed = seed};
    if (w->pid < 0) {
        perror("rv_sim: fork");
        w->pid = 0;
        return false;
    }
    if (w->pid > 0) return true;
    run_seed(seed, n_steps, t);
    _exit(0);
}

/* The worker that ends next is over; false: it had failed. */
static bool reap(worker *w, size_t n, uint64_t n_steps) {
    int status;
    const pid_t pid = wait(&status);
    for (size_t i = 0; i < n; i++) {
        if (w[i].pid != pid) continue;
        w[i].pid = 0;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
        fprintf(stderr, "seed %llu failed: rv_sim %llu %llu\n", (unsigned long long)w[i].seed,
                (unsigned long long)w[i].seed, (unsigned long long)n_steps);
        return false;
    }
    return false; /* wait failed */
}

static worker *idle_of(worker *w, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!w[i].pid) return &w[i];
    return NULL;
}

static int run_seeds(uint64_t first, uint64_t n_steps, uint64_t n_seeds, size_t n_processes) {
    static worker w[MAX_PROCESSES];
    totals *t = mmap(NULL, n_processes * sizeof *t, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0); /* of each place */
    if (t == MAP_FAILED) {
        perror("rv_sim: mmap");
        return 1;
    }
    const uint64_t from = rv_now_ns();
    uint64_t n_started = 0, n_over = 0;
    bool ok = true;
    while (n_over < n_started || (ok && n_started < n_seeds)) {
        worker *to = ok && n_started < n_seeds ? idle_of(w, n_processes) : NULL;
        if (to) {
            ok = start(to, first + n_started, n_steps, &t[to - w]);
            n_started += ok;
            continue;
        }
        ok &= reap(w, n_processes, n_steps);
        n_over++;
    }
    totals sum = {0};
    for (size_t i = 0; i < n_processes; i++) add_totals(&sum, &t[i]);
    show(&sum);
    printf("%llu seeds from %llu, %llu steps each, %.0f s: %s\n", (unsigned long long)n_over,
           (unsigned long long)first, (unsigned long long)n_steps,
           (double)(rv_now_ns() - from) / 1e9, ok ? "no invariant broken" : "FAILED");
    munmap(t, n_processes * sizeof *t);
    return ok ? 0 : 1;
}

int main(int argc, char **argv) {
    uint64_t a[4] = {0, 0, 1, (uint64_t)RV_MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L)};
    bool ok = argc >= 3 && argc <= 5;
    for (int i = 1; ok && i < argc; i++) {
        char *end;
        a[i - 1] = strtoull(argv[i], &end, 10);
        ok = *argv[i] && !*end;
    }
    if (!ok || !a[2] || !a[3]) {
        fprintf(stderr, "usage: rv_sim FIRST STEPS [SEEDS [PROCESSES]]\n");
        return 2;
    }
    rv_init();
    if (argc > 3) return run_seeds(a[0], a[1], a[2], RV_MIN(a[3], (size_t)MAX_PROCESSES));
    totals t = {0};
    run_seed(a[0], a[1], &t);
    show(&t);
    show_hit_rates(a[0]);
    return 0;
}
