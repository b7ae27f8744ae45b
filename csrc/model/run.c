/* The work area of a forward pass: buffers, matrix products over the pool, and the output head.
 *
 * Work is cut by rows of the weights (decode) or by tokens (elementwise parts).  A chunk writes
 * only its own outputs and a kernel's element depends on its own inputs only, so neither the cut
 * nor the number of threads shows in the result. */
#include "model/attention.h"
#include "rvk.h"

static size_t max_in(const rv_net *net) {
    const size_t att = (size_t)net->n_head * (size_t)net->head_dim;
    return RV_MAX((size_t)net->n_embd, RV_MAX(att, (size_t)net->n_ff));
}

/* Bytes of k values packed, and rounded to a type of weights (none of them is wider than F16). */
static size_t packed_bytes(size_t k) {
    return rvk_act_bytes((k + 31) / 32 * 32);
}
static size_t rounded_bytes(size_t k) {
    return (k * sizeof(uint16_t) + 63) / 64 * 64;
}

rv_status rv_run_new(rv_run **out, const rv_net *net, rv_pool *pool, rv_err *err) {
    *out = NULL;
    rv_run *r = rv_calloc(1, sizeof *r);
    if (!r) return rv_fail(err, RV_ENOMEM, "run: out of memory");
    r->net = net;
    r->pool = pool;
    r->scratch_floats = rv_attn_scratch_floats(net);
    r->scratch = rv_alloc_aligned((size_t)rv_pool_n_threads(pool) * r->scratch_floats * 4);
    if (!r->scratch) {
        rv_run_free(&r);
        return rv_fail(err, RV_ENOMEM, "run: out of memory");
    }
    *out = r;
    return RV_OK;
}

static void free_buffers(rv_run *r) {
    float **const all[] = {&r->x, &r->y, &r->q, &r->k, &r->v, &r->att, &r->gate, &r->up, &r->cs};
    for (size_t i = 0; i < RV_COUNT(all); i++) {
        rv_free(*all[i]);
        *all[i] = NULL;
    }
    rv_free(r->packed);
    rv_free(r->rounded);
    rv_free(r->at);
    rv_free(r->tiles);
    r->packed = NULL;
    r->rounded = NULL;
    r->at = NULL;
    r->tiles = NULL;
    r->cap = 0;
}

void rv_run_free(rv_run **pr) {
    rv_run *r = *pr;
    *pr = NULL;
    if (!r) return;
    free_buffers(r);
    rv_free(r->scratch);
    rv_free(r->parts);
    rv_free(r);
}

rv_status rv_run_reserve(rv_run *r, size_t n, rv_err *err) {
    if (n <= r->cap) return RV_OK;
    const rv_net *net = r->net;
    const size_t e = (size_t)net->n_embd, d = (size_t)net->head_dim;
    const size_t kv = (size_t)net->max_head_kv * d, f = (size_t)net->n_ff;
    const size_t gate = RV_MAX(f, net->n_conv_layers ? 2 * 3 * e : 0); /* for rv_run_mm_fine */
    const size_t pack = RV_MAX(packed_bytes(max_in(net)), 2 * packed_bytes(e));
    float **const all[] = {&r->x, &r->y, &r->q, &r->k, &r->v, &r->att, &r->gate, &r->up, &r->cs};
    const size_t width[] = {e,    e,  (size_t)net->n_head * d,
                            kv,   kv, RV_MAX((size_t)net->n_head * d, e),
                            gate, f,  (size_t)net->n_rot};
    free_buffers(r);
    bool ok = true;
    for (size_t i = 0; i < RV_COUNT(all); i++) {
        uint64_t bytes;
        ok = ok && rv_mul_u64(n, RV_MAX(width[i], (size_t)1) * 4, &bytes) &&
             (*all[i] = rv_alloc_aligned((size_t)bytes)) != NULL;
    }
    ok = ok && (r->packed = rv_alloc_aligned(n * pack)) != NULL &&
         (!net->fast || (r->rounded = rv_alloc_aligned(n * rounded_bytes(max_in(net)))) != NULL) &&
         (r->at = rv_calloc(n, sizeof *r->at)) != NULL &&
         (r->tiles = rv_calloc(n, sizeof *r->tiles)) != NULL;
    if (!ok) {
        free_buffers(r);
        return rv_fail(err, RV_ENOMEM, "run: no memory for a chunk of %zu tokens", n);
    }
    r->cap = n;
    return RV_OK;
}

size_t rv_run_bytes(const rv_run *r) {
    const void *const all[] = {r->x,       r->y,    r->q,     r->k,       r->v,
                               r->att,     r->gate, r->up,    r->cs,      r->packed,
                               r->rounded, r->at,   r->tiles, r->scratch, r->parts};
    size_t bytes = 0;
    for (size_t i = 0; i < RV_COUNT(all); i++) bytes += rv_alloc_bytes(all[i]);
    return bytes;
}

/* ---- matrix products ---- */

enum { MAX_JOBS = 3, PACK_ROWS = 64 };

typedef struct mm_loop {
    const rv_mm *jobs;
    const uint8_t *panels[MAX_JOBS]; /* or NULL: rows */
    uint8_t *fill[MAX_JOBS];         /* to be packed on the way, or NULL */
    size_t n, ldx, rows_per_chunk;
    const float *x;
    bool pack; /* for the matrices that want it */
    uint8_t *packed;
    int round_to; /* for the matrices of that type; -1: for none */
    uint8_t *rounded;
    size_t stride, rounded_stride; /* of packed and rounded */
} mm_loop;

static void pack_token(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const mm_loop *l = arg;
    const float *x = l->x + i * l->ldx;
    const size_t k = l->jobs[0].m->n_in;
    if (l->pack) rvk.act_pack(l->packed + i * l->stride, x, k);
    if (l->round_to >= 0) rvk.quant[l->round_to](l->rounded + i * l->rounded_stride, x, k);
}

/* Rows row .. row + rows - 1 of a matrix that has panels. */
static void mul_panels(const mm_loop *l, const rv_mm *j, const uint8_t *panels, size_t row,
                       size_t rows) {
    const rv_mat *m = j->m;
    rvk.mul_panels[m->type](j->y + row, j->ldy,
                            panels + row / RVK_PANEL_ROWS * rvk_panel_bytes(m->type, m->n_in), rows,
                            l->packed, l->stride, l->n, m->n_in);
}

/* The same of one that has none. */
static void mul_rows(const mm_loop *l, const rv_mm *j, size_t row, size_t rows) {
    const rv_mat *m = j->m;
    const uint8_t *w = m->w + row * m->stride;
    float *y = j->y + row;
    if (m->type == l->round_to)
        rvk.mul_rounded[m->type](y, j->ldy, w, m->stride, rows, l->rounded, l->rounded_stride, l->n,
                                 m->n_in);
    else if (rvk_dtypes[m->type].act_q8)
        rvk.mul[m->type](y, j->ldy, w, m->stride, rows, l->packed, l->stride, l->n, m->n_in);
    else
        rvk.mul[m->type](y, j->ldy, w, m->stride, rows, l->x, l->ldx * sizeof *l->x, l->n, m->n_in);
}

static void mm_chunk(void *arg, size_t i_chunk, int i_thread) {
    (void)i_thread;
    const mm_loop *l = arg;
    size_t i_job = 0, i = i_chunk, n;
    while (i >= (n = (l->jobs[i_job].m->n_out + l->rows_per_chunk - 1) / l->rows_per_chunk)) {
        i -= n;
        i_job++;
    }
    const rv_mm *j = &l->jobs[i_job];
    const rv_mat *m = j->m;
    const size_t row = i * l->rows_per_chunk, end = RV_MIN(row + l->rows_per_chunk, m->n_out);
    uint8_t *fill = l->fill[i_job];
    if (l->panels[i_job]) {
        mul_panels(l, j, l->panels[i_job], row, end - row);
    } else if (fill) {
        for (size_t r = row; r < end; r += PACK_ROWS) { /* so few that they are still in a cache */
            const size_t stop = RV_MIN(r + PACK_ROWS, end);
            for (size_t k = r; k < stop; k += RVK_PANEL_ROWS)
                rvk.panel_pack(fill + k / RVK_PANEL_ROWS * rvk_panel_bytes(m->type, m->n_in),
                               m->type, m->w + k * m->stride, m->stride,
                               RV_MIN((size_t)RVK_PANEL_ROWS, stop - k), m->n_in);
            mul_panels(l, j, fill, r, stop - r);
        }
    } else {
        mul_rows(l, j, row, end - row);
    }
}

/* A pass of so many tokens packs a matrix at first sight. */
enum { MANY_TOKENS = 32 };

/* The products of rows that are packed and rounded as their matrices want. */
static void multiply(rv_run *r, mm_loop *l, size_t n_jobs) {
    const size_t threads = (size_t)rv_pool_n_threads(r->pool);
    size_t rows = 0, chunks = 0;
    for (size_t i = 0; i < n_jobs; i++) {
        const rv_mat *m = l->jobs[i].m;
        rows += m->n_out;
        l->panels[i] = rv_panels_get(r->net->panels, m, l->n >= MANY_TOKENS, &l->fill[i]);
    }
    /* A few chunks per thread even out a lost core; 16 rows keep a claim cheap beside its work. */
    l->rows_per_chunk = threads == 1 ? (rows + 15) / 16 * 16
                                     : RV_MAX((size_t)16, (rows / (threads * 8) + 15) / 16 * 16);
    for (size_t i = 0; i < n_jobs; i++)
        chunks += (l->jobs[i].m->n_out + l->rows_per_chunk - 1) / l->rows_per_chunk;
    rv_pool_run(r->pool, chunks, mm_chunk, l);
    for (size_t i = 0; i < n_jobs; i++)
        if (l->fill[i]) rv_panels_ready(r->net->panels, l->jobs[i].m);
}

void rv_run_mm(rv_run *r, const rv_mm *jobs, size_t n_jobs, const float *x, size_t ldx, size_t n) {
    mm_loop l = {.jobs = jobs,
                 .n = n,
                 .ldx = ldx,
                 .x = x,
                 .packed = r->packed,
                 .round_to = -1,
                 .rounded = r->rounded};
    for (size_t i = 0; i < n_jobs; i++) {
        const int type = jobs[i].m->type;
        l.pack |= rvk_dtypes[type].act_q8;
        if (r->net->fast && rvk.mul_rounded[type]) l.round_to = type;
    }
    if (l.pack || l.round_to >= 0) {
        l.stride = rvk_act_bytes(jobs[0].m->n_in);
        l.rounded_stride = rounded_bytes(jobs[0].m->n_in);
        rv_run_tokens(r, n, pack_token, &l);
    }
    multiply(r, &l, n_jobs);
}

typedef struct fine_loop {
    const rv_mm *job;
    float *x;
    size_t n, ldx, stride;
    uint8_t *packed;
} fine_loop;

/* Row i, and as row n + i what its rounding left. */
static void pack_twice(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const fine_loop *l = arg;
    const size_t k = l->job->m->n_in;
    float *x = l->x + i * l->ldx;
    uint8_t *p = l->packed + i * l->stride;
    rvk.act_pack(p, x, k);
    const int8_t *q = (const int8_t *)p;
    const float *d = (const float *)(const void *)(p + rvk_act_off_d(k));
    for (size_t b = 0; b < k / 32; b++)
        for (size_t j = b * 32; j < b * 32 + 32; j++) x[j] -= d[b] * (float)q[j];
    rvk.act_pack(p + l->n * l->stride, x, k);
}

static void add_rest(void *arg, size_t i, int i_thread) {
    (void)i_thread;
    const fine_loop *l = arg;
    float *y = l->job->y + i * l->job->ldy;
    rvk.add(y, y, y + l->n * l->job->ldy, l->job->m->n_out);
}

void rv_run_mm_fine(rv_run *r, const rv_mm *job, float *x, size_t ldx, size_t n) {
    if (!rvk_dtypes[job->m->type].act_q8) {
        rv_run_mm(r, job, 1, x, ldx, n);
        return;
    }
    fine_loop f = {job, x, n, ldx, rvk_act_bytes(job->m->n_in), r->packed};
    rv_run_tokens(r, n, pack_twice, &f);
    mm_loop l = {.jobs = job, .n = 2 * n, .packed = r->packed, .stride = f.stride, .round_to = -1};
    multiply(r, &l, 1);
    rv_run_tokens(r, n, add_rest, &f);
}

void rv_run_tokens(rv_run *r, size_t n, rv_pool_fn fn, void *arg) {
    if (n >= 4) {
        rv_pool_run(r->pool, n, fn, arg);
        return;
    }
    for (size_t i = 0; i < n; i++) fn(arg, i, 0);
}

void rv_net_head(rv_run *r, const float *x, size_t n, float *logits) {
    const rv_net *net = r->net;
    const size_t v = (size_t)net->n_vocab;
    const rv_mm job = {&net->output, logits, v};
    rv_run_mm(r, &job, 1, x, (size_t)net->n_embd, n);
    if (net->output_b)
        for (size_t i = 0; i < n; i++) rvk.add(logits + i * v, logits + i * v, net->output_b, v);
}
