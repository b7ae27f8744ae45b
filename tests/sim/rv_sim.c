/* rv_sim SEED STEPS: the scheduler's world for a long time, and how much of prompts it found. */
#include "../c/sim.h"

enum { EPISODE = 2000 };

static void episodes(uint64_t seed, uint64_t n_steps) {
    uint64_t n_ended = 0, n_preempted = 0, n_evicted = 0, n_over = 0, n_swapped = 0, max_wait = 0;
    uint64_t by_finish[RV_FINISH_ERROR + 1] = {0};
    for (uint64_t done = 0; done < n_steps; done += EPISODE, seed++) {
        const sim_opts o = sim_random(seed);
        const uint64_t n = RV_MIN(n_steps - done, (uint64_t)EPISODE);
        rv_kv_cache_stats c;
        rv_sched_stats t;
        sim s;
        sim_open(&s, &o, seed);
        sim_run(&s, n);
        rv_kv_cache_get_stats(s.cache, &c);
        rv_sched_get_stats(s.sched, &t);
        n_ended += s.n_ended;
        n_preempted += t.n_preempted;
        n_evicted += c.prefix.n_evicted;
        n_over += s.n_over_preempted;
        n_swapped += s.n_swapped_in;
        max_wait = RV_MAX(max_wait, s.max_wait);
        for (int i = 0; i <= RV_FINISH_ERROR; i++) by_finish[i] += s.n_by_finish[i];
        sim_close(&s);
    }
    printf(
        "%llu requests ended: stop %llu, length %llu, cancelled %llu, deadline %llu, error %llu\n",
        (unsigned long long)n_ended, (unsigned long long)by_finish[RV_FINISH_STOP],
        (unsigned long long)by_finish[RV_FINISH_LENGTH],
        (unsigned long long)by_finish[RV_FINISH_CANCELLED],
        (unsigned long long)by_finish[RV_FINISH_DEADLINE],
        (unsigned long long)by_finish[RV_FINISH_ERROR]);
    printf("%llu preemptions (%llu requests more often than wanted), %llu brought back, %llu pages "
           "evicted, longest stay %llu steps\n",
           (unsigned long long)n_preempted, (unsigned long long)n_over,
           (unsigned long long)n_swapped, (unsigned long long)n_evicted,
           (unsigned long long)max_wait);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: rv_sim SEED STEPS\n");
        return 2;
    }
    const uint64_t seed = strtoull(argv[1], NULL, 10);
    rv_init();
    episodes(seed, strtoull(argv[2], NULL, 10));
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
    return 0;
}
