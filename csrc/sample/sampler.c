/* A sampler: the logits of one step to one token.
 *
 *   logits ─► bias ─► penalties ─► mask ─► top-k ─► typical ─► top-p ─► min-p ─► temperature ─►
 * draw └─► log-probabilities (of the logits as the model gave them)
 *
 * This is llama.cpp's default order, so parameters mean here what they mean there.  At temperature
 * 0 the token is the greatest logit after the mask, lowest id first; the filters are not asked.
 * Each filter leaves at least one token.
 *
 * The idea to hold: the result is a function of (parameters, history, logits, pos).  Candidates
 * stand in one canonical order (falling logit, ties by id), sums are in double in an order fixed
 * by the candidates, and the random number is the pos-th of the seed's stream.  Nothing is
 * allocated after rv_sampler_new. */
#include <float.h>
#include <math.h>

#include "base/base.h"
#include "sample/philox.h"
#include "sample/rank.h"
#include "sample/sampler.h"

enum { MAX_LOGPROBS = 100, MAX_LAST_N = 1 << 20 };

struct rv_sampler {
    rv_sample_params p; /* its bias arrays are ours */
    int32_t *bias_ids;
    float *bias;
    size_t n_vocab;
    rv_sample_area own; /* empty in a bare one */
    uint64_t *top;      /* [n_logprobs] */
    int32_t *top_ids;
    float *top_logprobs;
    int32_t *count; /* [n_vocab] occurrences in the window; NULL when penalties are off */
    int32_t *ring;  /* [penalty_last_n] the window, oldest at i_ring once full; NULL: all tokens */
    size_t n_ring, i_ring;
};

/* ---- parameters ---- */

void rv_sample_defaults(rv_sample_params *p) {
    *p = (rv_sample_params){
        .top_p = 1.0f,
        .typical_p = 1.0f,
        .repeat_penalty = 1.0f,
        .penalty_last_n = 64,
    };
}

/* A range check that NaN fails; "nan" because printf may write "-nan". */
static rv_status check_float(const char *name, float v, bool ok, const char *want, rv_err *err) {
    if (ok) return RV_OK;
    if (isnan(v)) return rv_fail(err, RV_EARG, "%s: is nan, want %s", name, want);
    return rv_fail(err, RV_EARG, "%s: is %g, want %s", name, (double)v, want);
}

static rv_status check_int(const char *name, int32_t v, int32_t low, int32_t high, rv_err *err) {
    if (v >= low && v <= high) return RV_OK;
    return rv_fail(err, RV_EARG, "%s: is %d, want %d to %d", name, v, low, high);
}

static rv_status check_params(const rv_sample_params *p, rv_err *err) {
    const float t = p->temperature, r = p->repeat_penalty;
    const float f = p->frequency_penalty, q = p->presence_penalty;
    const char *const unit = "> 0 and <= 1", *const hundred = "-100 to 100";
    rv_status st = check_float("temperature", t, t >= 0 && t < INFINITY, ">= 0 and finite", err);
    if (st == RV_OK) st = check_int("top_k", p->top_k, 0, INT32_MAX, err);
    if (st == RV_OK) st = check_float("top_p", p->top_p, p->top_p > 0 && p->top_p <= 1, unit, err);
    if (st == RV_OK)
        st = check_float("min_p", p->min_p, p->min_p >= 0 && p->min_p <= 1, "0 to 1", err);
    if (st == RV_OK)
        st = check_float("typical_p", p->typical_p, p->typical_p > 0 && p->typical_p <= 1, unit,
                         err);
    if (st == RV_OK)
        st = check_float("repeat_penalty", r, r > 0 && r < INFINITY, "> 0 and finite", err);
    if (st == RV_OK) st = check_float("frequency_penalty", f, f >= -100 && f <= 100, hundred, err);
    if (st == RV_OK) st = check_float("presence_penalty", q, q >= -100 && q <= 100, hundred, err);
    if (st == RV_OK) st = check_int("penalty_last_n", p->penalty_last_n, -1, MAX_LAST_N, err);
    if (st == RV_OK) st = check_int("n_logprobs", p->n_logprobs, -1, MAX_LOGPROBS, err);
    return st;
}

static rv_status check_id(const char *what, size_t i, int32_t id, size_t n_vocab, rv_err *err) {
    if (id >= 0 && (size_t)id < n_vocab) return RV_OK;
    return rv_fail(err, RV_EARG, "%s[%zu]: is %d, want 0 to %zu", what, i, id, n_vocab - 1);
}

static rv_status take_one_bias(rv_sampler *s, const rv_sample_params *p, size_t i, bool *seen,
                               rv_err *err) {
    rv_status st = check_id("bias_ids", i, p->bias_ids[i], s->n_vocab, err);
    if (st != RV_OK) return st;
    float b = p->bias[i];
    if (isnan(b) || b == INFINITY)
        return rv_fail(err, RV_EARG, "bias[%zu]: is %s, want a finite number or -inf", i,
                       isnan(b) ? "nan" : "inf");
    if (seen[p->bias_ids[i]])
        return rv_fail(err, RV_EARG, "bias_ids[%zu]: %d is there twice, want distinct ids", i,
                       p->bias_ids[i]);
    seen[p->bias_ids[i]] = true;
    s->bias_ids[i] = p->bias_ids[i];
    s->bias[i] = b;
    return RV_OK;
}

static rv_status take_bias(rv_sampler *s, const rv_sample_params *p, rv_err *err) {
    if (p->n_bias == 0) return RV_OK;
    bool *seen = rv_calloc(s->n_vocab, sizeof *seen);
    if (!seen) return rv_fail(err, RV_ENOMEM, "sampler: out of memory");
    rv_status st = RV_OK;
    for (size_t i = 0; st == RV_OK && i < p->n_bias; i++) st = take_one_bias(s, p, i, seen, err);
    rv_free(seen);
    return st;
}

static bool has_penalties(const rv_sample_params *p) {
    bool neutral = p->repeat_penalty == 1 && p->frequency_penalty == 0 && p->presence_penalty == 0;
    return !neutral && p->penalty_last_n != 0;
}

/* How many of the most likely tokens each draw reports. */
static size_t n_reported(const rv_sample_params *p) {
    return p->n_logprobs > 0 ? (size_t)p->n_logprobs : 0;
}

bool rv_sample_area_init(rv_sample_area *a, size_t n_vocab, bool with_keys) {
    a->x = rv_malloc(n_vocab * sizeof *a->x);
    a->keys = with_keys ? rv_malloc(n_vocab * sizeof *a->keys) : NULL;
    return a->x && (a->keys || !with_keys);
}

void rv_sample_area_deinit(rv_sample_area *a) {
    rv_free(a->x);
    rv_free(a->keys);
    *a = (rv_sample_area){0};
}

static bool alloc_arrays(rv_sampler *s) {
    const rv_sample_params *p = &s->p;
    size_t n = s->n_vocab, n_top = n_reported(p), n_last = (size_t)p->penalty_last_n;
    bool ok = true;
    if (p->n_bias > 0) {
        ok = ok && (s->bias_ids = rv_malloc(p->n_bias * sizeof *s->bias_ids));
        ok = ok && (s->bias = rv_malloc(p->n_bias * sizeof *s->bias));
    }
    if (n_top > 0) {
        ok = ok && (s->top = rv_malloc(n_top * sizeof *s->top));
        ok = ok && (s->top_ids = rv_malloc(n_top * sizeof *s->top_ids));
        ok = ok && (s->top_logprobs = rv_malloc(n_top * sizeof *s->top_logprobs));
    }
    if (has_penalties(p)) {
        ok = ok && (s->count = rv_calloc(n, sizeof *s->count));
        if (p->penalty_last_n > 0) ok = ok && (s->ring = rv_malloc(n_last * sizeof *s->ring));
    }
    return ok;
}

rv_status rv_sampler_new_bare(rv_sampler **out, const rv_sample_params *p, int32_t n_vocab,
                              rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    rv_status st = check_params(p, err);
    if (st == RV_OK) st = check_int("n_vocab", n_vocab, 1, INT32_MAX, err);
    if (st != RV_OK) return st;
    if (p->n_bias > (size_t)n_vocab)
        return rv_fail(err, RV_EARG, "bias: has %zu entries, want at most one per token (%d)",
                       p->n_bias, n_vocab);
    rv_sampler *s = rv_calloc(1, sizeof *s);
    if (!s) return rv_fail(err, RV_ENOMEM, "sampler: out of memory");
    s->p = *p;
    s->n_vocab = (size_t)n_vocab;
    if (!alloc_arrays(s))
        st = rv_fail(err, RV_ENOMEM, "sampler: out of memory for a vocabulary of %d", n_vocab);
    if (st == RV_OK) st = take_bias(s, p, err);
    if (st != RV_OK) {
        rv_sampler_free(&s);
        return st;
    }
    s->p.bias_ids = s->bias_ids;
    s->p.bias = s->bias;
    *out = s;
    return RV_OK;
}

rv_status rv_sampler_new(rv_sampler **out, const rv_sample_params *p, int32_t n_vocab,
                         rv_err *err) {
    rv_status st = rv_sampler_new_bare(out, p, n_vocab, err);
    if (st != RV_OK || rv_sample_area_init(&(*out)->own, (size_t)n_vocab, p->temperature > 0))
        return st;
    rv_sampler_free(out);
    return rv_fail(err, RV_ENOMEM, "sampler: out of memory for a vocabulary of %d", n_vocab);
}

void rv_sampler_free(rv_sampler **s) {
    if (!s || !*s) return;
    void *const own[] = {(*s)->bias_ids,     (*s)->bias,  (*s)->top, (*s)->top_ids,
                         (*s)->top_logprobs, (*s)->count, (*s)->ring};
    for (size_t i = 0; i < RV_COUNT(own); i++) rv_free(own[i]);
    rv_sample_area_deinit(&(*s)->own);
    rv_free(*s);
    *s = NULL;
}

/* ---- history ---- */

static void remember(rv_sampler *s, int32_t id) {
    if (!s->count) return;
    if (s->ring) {
        if (s->n_ring == (size_t)s->p.penalty_last_n) {
            s->count[s->ring[s->i_ring]]--;
        } else {
            s->n_ring++;
        }
        s->ring[s->i_ring] = id;
        s->i_ring = (s->i_ring + 1) % (size_t)s->p.penalty_last_n;
    }
    s->count[id]++;
}

rv_status rv_sampler_accept(rv_sampler *s, const int32_t *ids, size_t n, rv_err *err) {
    rv_err_clear(err);
    for (size_t i = 0; i < n; i++) {
        rv_status st = check_id("ids", i, ids[i], s->n_vocab, err);
        if (st != RV_OK) return st; /* before any is remembered */
    }
    for (size_t i = 0; i < n; i++) remember(s, ids[i]);
    return RV_OK;
}

/* ---- the model's own distribution ---- */

/* The greatest value, and whether there is a NaN; written in lanes so that it vectorises. */
static float scan(const float *x, size_t n, bool *has_nan) {
    float max[8];
    uint32_t nan[8] = {0};
    for (size_t j = 0; j < 8; j++) max[j] = -INFINITY;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (size_t j = 0; j < 8; j++) {
            float v = x[i + j];
            max[j] = v > max[j] ? v : max[j];
            nan[j] |= v != v;
        }
    }
    for (size_t j = 0; i < n; i++, j++) {
        max[j] = x[i] > max[j] ? x[i] : max[j];
        nan[j] |= x[i] != x[i];
    }
    *has_nan = false;
    for (size_t j = 0; j < 8; j++) {
        max[0] = max[j] > max[0] ? max[j] : max[0];
        *has_nan |= nan[j] != 0;
    }
    return max[0];
}

/* log of the softmax's denominator; an infinite logit leaves only the infinite ones. */
static double log_sum_exp(const float *x, size_t n, float max) {
    if (max < INFINITY) return (double)max + log(rv_exp_sum(x, n, max));
    size_t n_inf = 0;
    for (size_t i = 0; i < n; i++) n_inf += x[i] == INFINITY;
    return log((double)n_inf); /* beside which an infinite logit counts as 0 */
}

static float logprob(float x, float max, double lse) {
    if (max == INFINITY) return x == INFINITY ? (float)-lse : -INFINITY;
    return (float)((double)x - lse);
}

/* ---- bias, penalties, mask ---- */

/* A finite logit stays finite: only a mask, a ban or the model excludes a token. */
static float bounded(float before, float after) {
    if (!isinf(after) || isinf(before)) return after;
    return after > 0 ? FLT_MAX : -FLT_MAX;
}

static void apply_penalties(const rv_sampler *s, float *all) {
    const rv_sample_params *p = &s->p;
    for (size_t i = 0; i < s->n_vocab; i++) {
        if (s->count[i] == 0) continue;
        const float x = all[i];
        float v = x > 0 ? x / p->repeat_penalty : x * p->repeat_penalty;
        v -= (float)s->count[i] * p->frequency_penalty + p->presence_penalty;
        all[i] = bounded(x, v);
    }
}

static void apply_mask(float *x, size_t n, const uint32_t *allow) {
    for (size_t i = 0; i < n; i++)
        if (!(allow[i / 32] >> (i % 32) & 1)) x[i] = -INFINITY;
}

/* The logits to choose from: the caller's own array when nothing changes them. */
static const float *adjust(const rv_sampler *s, float *x, const float *logits,
                           const uint32_t *allow) {
    const rv_sample_params *p = &s->p;
    if (!p->n_bias && !s->count && !allow) return logits;
    memcpy(x, logits, s->n_vocab * sizeof *x);
    for (size_t i = 0; i < p->n_bias; i++) {
        float *v = &x[p->bias_ids[i]];
        /* A ban beats +inf. */
        *v = p->bias[i] == -INFINITY ? -INFINITY : bounded(*v, *v + p->bias[i]);
    }
    if (s->count) apply_penalties(s, x);
    if (allow) apply_mask(x, s->n_vocab, allow);
    return x;
}

/* ---- the chain ---- */

/* Candidates: sorted, or in the order of ids with the best n_taken read off lazily (rank.h). */
typedef struct chain {
    uint64_t *keys;
    size_t n, n_taken;
    bool sorted;
    float max; /* the greatest value among them */
} chain;

static double weight(const chain *c, uint64_t key, double t) {
    float v = rv_rank_value(key);
    return v == c->max ? 1.0 : rv_exp_neg(((double)v - c->max) / t); /* inf - inf is no number */
}

static double weight_sum(const chain *c, double t) {
    return c->max == INFINITY ? (double)c->n : rv_rank_exp_sum(c->keys, c->n, c->max, t);
}

/* The i-th most likely; i may not skip. */
static uint64_t chain_get(chain *c, size_t i) {
    if (c->sorted) return c->keys[i];
    if (c->n_taken == 0) rv_rank_begin(c->keys, c->n);
    if (i == c->n_taken) {
        rv_rank_take(c->keys, c->n - c->n_taken);
        c->n_taken++;
    }
    return c->keys[c->n - 1 - i];
}

/* Keep the m most likely, all of which have been got. */
static void chain_cut(chain *c, size_t m) {
    if (!c->sorted) {
        for (size_t i = 0, j = c->n; i + 1 < j; i++) {
            uint64_t key = c->keys[i];
            c->keys[i] = c->keys[--j];
            c->keys[j] = key;
        }
        c->sorted = true;
    }
    c->n = m;
}

/* Keep those whose probability is at least min_weight times the greatest. */
static void keep_likely(chain *c, double min_weight) {
    const double cut = log(min_weight) - 1e-6; /* below it no exponential is needed to tell */
    size_t m = 0;
    for (size_t i = 0; i < c->n; i++) {
        uint64_t key = c->keys[i];
        if ((double)rv_rank_value(key) - c->max < cut) continue; /* false for inf - inf */
        if (weight(c, key, 1.0) >= min_weight) c->keys[m++] = key;
    }
    c->n = m;
}

/* Locally typical: the candidates whose surprise is nearest the entropy, up to probability p.
 * Meister, Pimentel, Wiher, Cotterell: "Locally typical sampling", TACL 2023. */
static void keep_typical(chain *c, const float *x, double p) {
    double total = weight_sum(c, 1.0), mean = 0;
    for (size_t i = 0; i < c->n; i++) {
        double w = weight(c, c->keys[i], 1.0);
        if (w > 0 && w < 1) mean += w * ((double)rv_rank_value(c->keys[i]) - c->max);
    }
    mean /= total; /* of value - max; the entropy is log(total) - mean */
    for (size_t i = 0; i < c->n; i++) {
        float v = rv_rank_value(c->keys[i]);
        double below = v == c->max ? 0.0 : (double)v - c->max;
        c->keys[i] = rv_rank_key((float)-fabs(below - mean), rv_rank_id(c->keys[i]));
    }
    chain by_surprise = {.keys = c->keys, .n = c->n};
    size_t m = 0;
    double sum = 0;
    do {
        int32_t id = rv_rank_id(chain_get(&by_surprise, m++));
        sum += weight(c, rv_rank_key(x[id], id), 1.0);
    } while (m < c->n && sum < p * total);
    chain_cut(&by_surprise, m);
    c->max = -INFINITY;
    for (size_t i = 0; i < m; i++) {
        int32_t id = rv_rank_id(c->keys[i]);
        c->keys[i] = rv_rank_key(x[id], id);
        c->max = RV_MAX(c->max, x[id]);
    }
    c->n = m;
    c->sorted = false;
}

static void keep_top_p(chain *c, double p) {
    double limit = p * weight_sum(c, 1.0), sum = 0;
    size_t m = 0;
    do sum += weight(c, chain_get(c, m++), 1.0);
    while (m < c->n && sum < limit);
    chain_cut(c, m);
}

/* Inverse of the distribution function, in the canonical order. */
static int32_t draw(chain *c, double t, double u) {
    double limit = u * weight_sum(c, t), sum = 0;
    int32_t id = rv_rank_id(chain_get(c, 0));
    for (size_t i = 0; i < c->n; i++) {
        uint64_t key = chain_get(c, i);
        double w = weight(c, key, t);
        if (w == 0) break; /* rounding left sum below limit: the last possible token */
        id = rv_rank_id(key);
        sum += w;
        if (sum > limit) break;
    }
    return id;
}

static int32_t choose(const rv_sampler *s, uint64_t *keys, const float *x, float max,
                      uint64_t pos) {
    const rv_sample_params *p = &s->p;
    if (p->temperature == 0) {
        size_t i = 0;
        while (x[i] != max) i++;
        return (int32_t)i;
    }
    chain c = {.keys = keys, .max = max};
    if (p->top_k > 0 && (size_t)p->top_k < s->n_vocab) {
        c.n = rv_rank_best(c.keys, (size_t)p->top_k, x, s->n_vocab);
        c.sorted = true;
    } else {
        for (size_t i = 0; i < s->n_vocab; i++)
            if (x[i] > -INFINITY) c.keys[c.n++] = rv_rank_key(x[i], (int32_t)i);
    }
    if (max == INFINITY) keep_likely(&c, 1.0); /* nothing else has a probability */
    if (p->typical_p < 1) keep_typical(&c, x, p->typical_p);
    if (p->top_p < 1) keep_top_p(&c, p->top_p);
    if (p->min_p > 0) keep_likely(&c, p->min_p);
    return draw(&c, p->temperature, rv_philox_uniform(p->seed, pos));
}

rv_status rv_sampler_sample_in(rv_sampler *s, const rv_sample_area *a, const float *logits,
                               uint64_t pos, const uint32_t *allow, rv_sampled *out, rv_err *err) {
    rv_err_clear(err);
    bool has_nan;
    float raw_max = scan(logits, s->n_vocab, &has_nan);
    if (has_nan) {
        size_t i = 0;
        while (!isnan(logits[i])) i++;
        return rv_fail(err, RV_EARG, "logits[%zu]: is nan, want a number", i);
    }
    const float *x = adjust(s, a->x, logits, allow);
    float max = x == logits ? raw_max : scan(x, s->n_vocab, &has_nan);
    if (max == -INFINITY)
        return rv_fail(err, RV_ESTATE,
                       "sampler: all %zu tokens are masked, banned or have a logit of -inf, "
                       "want at least one to choose from",
                       s->n_vocab);
    /* The sum over the vocabulary is most of a greedy draw, so those who want none pay for none. */
    double lse = s->p.n_logprobs < 0 ? (double)NAN : log_sum_exp(logits, s->n_vocab, raw_max);
    size_t n_top = rv_rank_best(s->top, n_reported(&s->p), logits, s->n_vocab);
    for (size_t i = 0; i < n_top; i++) {
        s->top_ids[i] = rv_rank_id(s->top[i]);
        s->top_logprobs[i] = logprob(rv_rank_value(s->top[i]), raw_max, lse);
    }
    int32_t id = choose(s, a->keys, x, max, pos);
    remember(s, id);
    *out = (rv_sampled){.id = id,
                        .logprob = logprob(logits[id], raw_max, lse),
                        .top_ids = s->top_ids,
                        .top_logprobs = s->top_logprobs,
                        .n_top = n_top};
    return RV_OK;
}

rv_status rv_sampler_sample(rv_sampler *s, const float *logits, uint64_t pos, const uint32_t *allow,
                            rv_sampled *out, rv_err *err) {
    return rv_sampler_sample_in(s, &s->own, logits, pos, allow, out, err);
}
