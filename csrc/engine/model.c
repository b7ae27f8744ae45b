/* rv_model: an open file, its bound network, its tokenizer and its threads, behind one reference
 * count.  Read-only once open, so any number of callers share it; what a forward pass writes is in
 * a work area that each call borrows. */
#include <stdio.h>

#include "engine/engine.h"
#include "rvk.h"

/* Of a model with a store, where the options do not say. */
enum { KV_TAIL = 256, KV_BATCH = 64 };

static rv_status check_blocks(const char *name, int32_t n, int32_t def, rv_err *err) {
    if (n >= 0 && n % RV_KV_BLOCK == 0) return RV_OK;
    return rv_fail(err, RV_EARG, "%s: is %d, want a multiple of %d, or 0 for %d", name, n,
                   RV_KV_BLOCK, def);
}

static rv_status check_kv_opts(const rv_model_opts *o, rv_err *err) {
    if (o->kv_store != RV_KV_AUTO && o->kv_store != RV_KV_Q8_0 && o->kv_store != RV_KV_Q4_0 &&
        o->kv_store != RV_KV_K8V4)
        return rv_fail(err, RV_EARG,
                       "kv_store: is %d, want 0 (none), 3 (q8_0), 4 (q4_0) or 5 (k8v4)",
                       (int)o->kv_store);
    if (o->kv_store != RV_KV_AUTO && (o->kv_type == RV_KV_Q8_0 || o->kv_type == RV_KV_Q4_0))
        return rv_fail(err, RV_EARG,
                       "kv_type: is %d, want 0 (auto), 1 (f16) or 2 (f32) beside a "
                       "kv_store",
                       (int)o->kv_type);
    if (o->kv_fit != RV_FIT_FIRST && o->kv_fit != RV_FIT_BEST && o->kv_fit != RV_FIT_ROUND_ROBIN)
        return rv_fail(err, RV_EARG, "kv_fit: is %d, want 0 (first), 1 (best) or 2 (round robin)",
                       (int)o->kv_fit);
    if (o->memory && o->kv_budget)
        return rv_fail(err, RV_EARG, "kv_budget: is %llu beside memory, which has a budget",
                       (unsigned long long)o->kv_budget);
    rv_status st = check_blocks("kv_tail", o->kv_tail, KV_TAIL, err);
    return st == RV_OK ? check_blocks("kv_batch", o->kv_batch, KV_BATCH, err) : st;
}

static rv_status check_opts(const rv_model_opts *o, rv_err *err) {
    if (o->n_threads < 0 || o->n_threads > 256)
        return rv_fail(err, RV_EARG, "n_threads: is %d, want 1 .. 256, or 0 for one per core",
                       o->n_threads);
    if (o->n_batch < 0 || o->n_batch > 4096)
        return rv_fail(err, RV_EARG, "n_batch: is %d, want 1 .. 4096, or 0 for 128", o->n_batch);
    if (o->kv_type == RV_KV_K8V4 || (o->kv_type != RV_KV_AUTO && rv_kv_kernel_type(o->kv_type) < 0))
        return rv_fail(err, RV_EARG,
                       "kv_type: is %d, want 0 (auto), 1 (f16), 2 (f32), 3 (q8_0) or 4 (q4_0)",
                       (int)o->kv_type);
    if (o->repack != RV_REPACK_AUTO && o->repack != RV_REPACK_NEVER &&
        o->repack != RV_REPACK_ALWAYS)
        return rv_fail(err, RV_EARG, "repack: is %d, want 0 (auto), 1 (never) or 2 (always)",
                       (int)o->repack);
    if (o->numerics != RV_NUMERICS_EXACT && o->numerics != RV_NUMERICS_FAST)
        return rv_fail(err, RV_EARG, "numerics: is %d, want 0 (exact) or 1 (fast)",
                       (int)o->numerics);
    return check_kv_opts(o, err);
}

static void count_tensors(rv_model *m) {
    uint64_t bytes[RVK_N_TYPES] = {0}, most = 0;
    for (uint64_t i = 0; i < rv_gguf_n_tensors(m->g); i++) {
        const rv_gguf_tensor *t = rv_gguf_tensor_at(m->g, i);
        m->info.n_params += t->n_values;
        m->info.n_bytes += t->n_bytes;
        bytes[t->type] += t->n_bytes;
    }
    for (int i = 0; i < RVK_N_TYPES; i++) {
        if (bytes[i] <= most) continue;
        most = bytes[i];
        m->info.main_type = (rv_dtype)i;
    }
}

/* Recurrent state of a sequence: what each convolution has seen last. */
static size_t state_bytes(const rv_net *net) {
    if (net->conv_l < 2) return 0;
    return (size_t)net->n_conv_layers * (size_t)(net->conv_l - 1) * (size_t)net->n_embd *
           sizeof(float);
}

static rv_kv_format kv_format(const rv_model *m, const rv_model_opts *o, const int32_t *heads) {
    const size_t d = (size_t)m->net->head_dim;
    const bool store = o->kv_store != RV_KV_AUTO;
    rv_kv_format f = {.n_layers = (size_t)m->net->n_kv_layers,
                      .heads = heads,
                      .head_dim = d,
                      .type = m->info.kv_type,
                      .store = o->kv_store,
                      .state_bytes = state_bytes(m->net)};
    if (!store) return f;
    f.rotate = !o->kv_no_rotate;
    f.tail = (size_t)(o->kv_tail ? o->kv_tail : KV_TAIL);
    f.batch = (size_t)(o->kv_batch ? o->kv_batch : KV_BATCH);
    return f;
}

/* Half of the memory that is available, and a block of one sequence at least. */
static uint64_t default_budget(const rv_kv_format *f) {
    uint64_t heads = 0;
    for (size_t i = 0; i < f->n_layers; i++) heads += (uint64_t)f->heads[i];
    const uint64_t size = rv_kv_head_bytes(f->type, f->head_dim) +
                          (f->store == RV_KV_AUTO ? 0 : rv_kv_head_bytes(f->store, f->head_dim));
    const uint64_t block = RV_KV_BLOCK * heads * size + f->state_bytes + 1024; /* pages: 64s */
    return RV_MAX(rv_memory_available() / 2, block);
}

static rv_status open_kv(rv_model *m, const rv_model_opts *o, rv_err *err) {
    const rv_net *net = m->net;
    const rv_str about = m->info.name.n ? m->info.name : m->info.arch;
    char name[64];
    if (!net->causal) return RV_OK;
    snprintf(name, sizeof name, "keys and values of %.*s", (int)RV_MIN(about.n, (size_t)40),
             about.p);
    int32_t *heads = rv_calloc((size_t)net->n_layer, sizeof *heads);
    if (!heads) return rv_fail(err, RV_ENOMEM, "kv: out of memory");
    for (int32_t i = 0; i < net->n_layer; i++)
        if (net->layers[i].n_head_kv) heads[net->layers[i].i_kv] = net->layers[i].n_head_kv;
    const rv_kv_format f = kv_format(m, o, heads);
    const rv_kv_cache_opts c = {.budget = o->kv_budget ? o->kv_budget : default_budget(&f),
                                .memory = o->memory,
                                .name = name,
                                .fit = o->kv_fit,
                                .share = !o->no_sharing};
    m->shares = c.share;
    const rv_status st = rv_kv_cache_new(&m->kv, &f, &c, err);
    rv_free(heads);
    return st;
}

static void fill_info(rv_model *m, const rv_model_opts *o) {
    const rv_net *net = m->net;
    rv_model_info *info = &m->info;
    const rv_gguf_kv *name = rv_gguf_find_kv(m->g, "general.name");
    count_tensors(m);
    info->arch = (rv_str){net->arch->name, strlen(net->arch->name)};
    if (name && name->type == RV_GGUF_STR) info->name = name->s;
    info->n_vocab = net->n_vocab;
    info->n_embd = net->n_embd;
    info->n_layer = net->n_layer;
    info->n_head = net->n_head;
    info->n_head_kv = net->max_head_kv;
    info->head_dim = net->head_dim;
    info->n_ff = net->n_ff;
    info->n_ctx = net->n_ctx;
    info->n_swa = net->n_swa;
    info->n_kv_layers = net->causal ? net->n_kv_layers : 0;
    info->causal = net->causal;
    info->pooling = net->pooling;
    info->kv_type = o->kv_type;
    if (o->kv_type == RV_KV_AUTO) info->kv_type = info->main_type == RV_F32 ? RV_KV_F32 : RV_KV_F16;
    info->kv_store = net->causal ? o->kv_store : RV_KV_AUTO;
    info->numerics = net->fast ? RV_NUMERICS_FAST : RV_NUMERICS_EXACT;
    info->n_batch = o->n_batch ? o->n_batch : 128;
    info->n_threads = rv_pool_n_threads(m->pool);
    const bool store = info->kv_store != RV_KV_AUTO;
    const uint64_t size = rv_kv_head_bytes(info->kv_type, (size_t)net->head_dim);
    const uint64_t old = store ? rv_kv_head_bytes(info->kv_store, (size_t)net->head_dim) : 0;
    for (int32_t i = 0; net->causal && i < net->n_layer; i++) {
        info->kv_bytes_per_token += size * (uint64_t)net->layers[i].n_head_kv;
        info->kv_store_bytes_per_token += old * (uint64_t)net->layers[i].n_head_kv;
    }
}

/* Bring every page in, in file order, with a report every 16 MiB. */
static rv_status prefault(const rv_model *m, const rv_model_opts *o, rv_err *err) {
    enum { PAGE = 4096, STEP = 16 << 20 };
    uint64_t done = 0;
    for (uint64_t i = 0; i < rv_gguf_n_tensors(m->g); i++) {
        const rv_gguf_tensor *t = rv_gguf_tensor_at(m->g, i);
        for (uint64_t off = 0; off < t->n_bytes; off += STEP) {
            const uint64_t n = RV_MIN((uint64_t)STEP, t->n_bytes - off);
            const volatile uint8_t *p = (const uint8_t *)t->data + off;
            for (uint64_t k = 0; k < n; k += PAGE) (void)p[k];
            done += n;
            if (o->progress &&
                !o->progress(o->progress_ctx, (double)done / (double)m->info.n_bytes))
                return rv_fail(err, RV_ECANCEL, "loading: cancelled at %llu of %llu bytes",
                               (unsigned long long)done, (unsigned long long)m->info.n_bytes);
        }
    }
    return RV_OK;
}

static rv_status open_tok(rv_model *m, rv_err *err) {
    if (!rv_gguf_find_kv(m->g, "tokenizer.ggml.model")) return RV_OK;
    rv_status st = rv_tok_open(&m->tok, m->g, err);
    if (st != RV_OK) return st;
    const int32_t n = rv_tok_get_info(m->tok)->n_vocab;
    if (n > m->net->n_vocab)
        return rv_fail(err, RV_EFORMAT,
                       "tokenizer.ggml.tokens: has %d tokens, want at most the %d rows of "
                       "token_embd.weight",
                       n, m->net->n_vocab);
    return RV_OK;
}

rv_status rv_model_open(rv_model **out, const char *path, const rv_model_opts *opts, rv_err *err) {
    static const rv_model_opts defaults = {0};
    rv_err_clear(err);
    *out = NULL;
    if (!opts) opts = &defaults;
    rv_status st = check_opts(opts, err);
    if (st != RV_OK) return st;
    rv_init();
    rv_model *m = rv_calloc(1, sizeof *m);
    if (!m) return rv_fail(err, RV_ENOMEM, "model: out of memory");
    atomic_store(&m->refs, 1);
    pthread_mutex_init(&m->lock, NULL);
    st = rv_gguf_open(&m->g, path, err);
    if (st == RV_OK) rv_readahead_start(&m->readahead, m->g);
    if (st == RV_OK) st = rv_net_new(&m->net, m->g, err);
    if (st == RV_OK && opts->numerics == RV_NUMERICS_FAST) rv_net_set_fast(m->net);
    if (st == RV_OK && opts->repack != RV_REPACK_NEVER)
        st = rv_panels_new(m->net, opts->repack == RV_REPACK_ALWAYS, err);
    if (st == RV_OK) st = open_tok(m, err);
    if (st == RV_OK)
        st = rv_pool_new(&m->pool, opts->n_threads ? opts->n_threads : rv_n_cores(), err);
    if (st == RV_OK) {
        fill_info(m, opts);
        st = open_kv(m, opts, err);
    }
    if (st == RV_OK && opts->prefault) st = prefault(m, opts, err);
    if (st != RV_OK) {
        rv_model_free(&m);
        return st;
    }
    *out = m;
    return RV_OK;
}

rv_model *rv_model_ref(rv_model *m) {
    atomic_fetch_add(&m->refs, 1);
    return m;
}

void rv_model_free(rv_model **pm) {
    rv_model *m = *pm;
    *pm = NULL;
    if (!m || atomic_fetch_sub(&m->refs, 1) != 1) return;
    rv_readahead_stop(&m->readahead);
    while (m->n_idle) rv_run_free(&m->idle[--m->n_idle]);
    rv_kv_cache_free(&m->kv);
    rv_pool_free(&m->pool);
    rv_tok_free(&m->tok);
    rv_net_free(&m->net);
    rv_gguf_free(&m->g);
    pthread_mutex_destroy(&m->lock);
    rv_free(m);
}

const rv_model_info *rv_model_get_info(const rv_model *m) {
    return &m->info;
}

size_t rv_model_repacked_bytes(const rv_model *m) {
    return rv_panels_bytes(m->net->panels);
}

size_t rv_model_work_bytes(rv_model *m) {
    size_t bytes = 0;
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < m->n_idle; i++) bytes += rv_run_bytes(m->idle[i]);
    pthread_mutex_unlock(&m->lock);
    return bytes;
}

rv_budget *rv_model_memory(const rv_model *m) {
    return m->kv ? rv_kv_cache_budget(m->kv) : NULL;
}

rv_tok *rv_model_tok(const rv_model *m) {
    return m->tok;
}

const rv_gguf *rv_model_gguf(const rv_model *m) {
    return m->g;
}

rv_status rv_model_take_run(rv_model *m, size_t n, rv_run **out, rv_err *err) {
    rv_run *run = NULL;
    pthread_mutex_lock(&m->lock);
    if (m->n_idle) run = m->idle[--m->n_idle];
    pthread_mutex_unlock(&m->lock);
    rv_status st = run ? RV_OK : rv_run_new(&run, m->net, m->pool, err);
    if (st == RV_OK) st = rv_run_reserve(run, n, err);
    if (st != RV_OK) rv_run_free(&run);
    *out = run;
    return st;
}

void rv_model_give_run(rv_model *m, rv_run *run) {
    pthread_mutex_lock(&m->lock);
    if (m->n_idle < RV_IDLE_RUNS) {
        m->idle[m->n_idle++] = run;
        run = NULL;
    }
    pthread_mutex_unlock(&m->lock);
    rv_run_free(&run);
}

size_t rv_model_max_rows(const rv_model *m) {
    const rv_kv_format *f = rv_kv_cache_format(m->kv);
    const size_t n = (size_t)m->info.n_batch;
    return f->store == RV_KV_AUTO ? n : RV_MIN(n, f->tail);
}

void rv_model_get_kv_stats(const rv_model *m, rv_kv_stats *out) {
    *out = (rv_kv_stats){0};
    if (!m->kv) return;
    rv_kv_cache_stats s;
    rv_kv_cache_get_stats(m->kv, &s);
    out->budget_bytes = s.pages.budget_bytes;
    out->held_bytes = s.pages.held_bytes;
    out->peak_bytes = s.pages.peak_bytes;
    out->used_bytes = s.pages.used_bytes;
    for (int i = 0; i < RV_PAGE_CLASSES; i++) {
        out->n_pages += s.pages.n_used[i];
        out->n_pages_free += s.pages.n_free[i];
    }
    out->n_evictable = s.prefix.n_evictable;
    for (int k = 0; k < RV_KEEP_N; k++)
        out->evictable_bytes += s.pages.n_spare[k] * rv_kv_cache_page_bytes(m->kv, k);
    out->n_evicted = s.prefix.n_evicted;
    out->n_nodes = s.prefix.n_nodes;
    out->n_sequences = s.n_sequences;
    out->n_looked_up = s.n_looked_up;
    out->n_hit = s.n_hit;
    out->n_migrated = s.n_migrated;
    out->n_copied = s.n_copied;
}

rv_status rv_model_check_ids(const rv_model *m, const int32_t *tok, size_t n, rv_err *err) {
    for (size_t i = 0; i < n; i++)
        if (tok[i] < 0 || tok[i] >= m->net->n_vocab)
            return rv_fail(err, RV_EARG, "tokens[%zu]: is %d, want 0 .. %d", i, tok[i],
                           m->net->n_vocab - 1);
    return RV_OK;
}
