/* The options of an engine: ranges, defaults, and what the scheduler makes of them. */
#include "engine/batch_opts.h"

static rv_status check_range(const char *name, int64_t v, int64_t hi, rv_err *err) {
    if (v >= 0 && v <= hi) return RV_OK;
    return rv_fail(err, RV_EARG, "%s: is %lld, want 1 .. %lld, or 0 for the default", name,
                   (long long)v, (long long)hi);
}

rv_status rv_engine_read_opts(const rv_model *m, const rv_engine_opts *o, rv_sched_opts *s,
                              rv_err *err) {
    const struct {
        const char *name;
        int64_t value, most;
    } all[] = {
        {"n_ctx", o->n_ctx, m->info.n_ctx},
        {"max_rows", o->max_rows, 4096},
        {"max_chunk", o->max_chunk, 4096},
        {"max_running", o->max_running, 4096},
        {"max_queue", o->max_queue, 100000},
        {"max_queue_tokens", o->max_queue_tokens, (int64_t)1 << 40},
        {"age_steps", o->age_steps, INT32_MAX},
        {"max_preempt", o->max_preempt, 1000},
    };
    for (size_t i = 0; i < RV_COUNT(all); i++) {
        rv_status st = check_range(all[i].name, all[i].value, all[i].most, err);
        if (st != RV_OK) return st;
    }
    if ((int)o->policy < RV_POLICY_FCFS || (int)o->policy > RV_POLICY_FAIR)
        return rv_fail(err, RV_EARG, "policy: is %d, want 0 (fcfs), 1 (sjf) or 2 (fair)",
                       (int)o->policy);
    if (o->max_rows && o->max_running > o->max_rows)
        return rv_fail(err, RV_EARG, "max_rows: is %d, want at least max_running, %d", o->max_rows,
                       o->max_running);
    if (o->swap && !o->spill_dir)
        return rv_fail(err, RV_EARG, "swap: wants a spill_dir to write preempted requests to");
    *s = (rv_sched_opts){
        .policy = o->policy,
        .max_chunk = (size_t)(o->max_chunk ? o->max_chunk : m->info.n_batch),
        .max_running = (size_t)(o->max_running ? o->max_running : 64),
        .max_queue = (size_t)(o->max_queue ? o->max_queue : 1000),
        .max_queue_tokens = o->max_queue_tokens ? (uint64_t)o->max_queue_tokens : (uint64_t)1 << 22,
        .n_ctx = (size_t)(o->n_ctx ? o->n_ctx : m->info.n_ctx) + 1, /* the last is never computed */
        .age_steps = (uint64_t)(o->age_steps ? o->age_steps : 200),
        .max_preempt = o->max_preempt ? o->max_preempt : 3,
        .await_prefix = m->shares,
    };
    s->max_rows = o->max_rows ? (size_t)o->max_rows : RV_MIN(128 + s->max_running, (size_t)4096);
    s->max_running = RV_MIN(s->max_running, s->max_rows);
    return RV_OK;
}
