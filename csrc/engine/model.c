/* rv_model: an open file, its bound network, its tokenizer and its threads, behind one reference
 * count.  Read-only once open, so any number of callers share it; what a forward pass writes is in
 * a work area that each call borrows. */
#include "engine/engine.h"
#include "rvk.h"

static rv_status check_opts(const rv_model_opts *o, rv_err *err) {
    if (o->n_threads < 0 || o->n_threads > 256)
        return rv_fail(err, RV_EARG, "n_threads: is %d, want 1 .. 256, or 0 for one per core",
                       o->n_threads);
    if (o->n_batch < 0 || o->n_batch > 4096)
        return rv_fail(err, RV_EARG, "n_batch: is %d, want 1 .. 4096, or 0 for 128", o->n_batch);
    if (o->kv_type != RV_KV_AUTO && rv_kv_kernel_type(o->kv_type) < 0)
        return rv_fail(err, RV_EARG,
                       "kv_type: is %d, want 0 (auto), 1 (f16), 2 (f32), 3 (q8_0) or 4 (q4_0)",
                       (int)o->kv_type);
    if (o->repack != RV_REPACK_AUTO && o->repack != RV_REPACK_NEVER &&
        o->repack != RV_REPACK_ALWAYS)
        return rv_fail(err, RV_EARG, "repack: is %d, want 0 (auto), 1 (never) or 2 (always)",
                       (int)o->repack);
    return RV_OK;
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

/* Codes have a scale per 32 values of a head. */
static rv_status check_kv(const rv_model *m, rv_err *err) {
    if (!m->net->causal || rv_kv_head_bytes(m->info.kv_type, (size_t)m->net->head_dim))
        return RV_OK;
    return rv_fail(err, RV_EUNSUPPORTED,
                   "%s.attention.key_length: is %d, want a multiple of 32 for kv_type %s",
                   m->net->arch->name, m->net->head_dim,
                   rvk_dtypes[rv_kv_kernel_type(m->info.kv_type)].name);
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
    info->causal = net->causal;
    info->pooling = net->pooling;
    info->kv_type = o->kv_type;
    if (o->kv_type == RV_KV_AUTO) info->kv_type = info->main_type == RV_F32 ? RV_KV_F32 : RV_KV_F16;
    info->n_batch = o->n_batch ? o->n_batch : 128;
    info->n_threads = rv_pool_n_threads(m->pool);
    const uint64_t size = rv_kv_head_bytes(info->kv_type, (size_t)net->head_dim);
    for (int32_t i = 0; net->causal && i < net->n_layer; i++)
        info->kv_bytes_per_token += size * (uint64_t)net->layers[i].n_head_kv;
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
    if (st == RV_OK && opts->repack != RV_REPACK_NEVER)
        st = rv_panels_new(m->net, opts->repack == RV_REPACK_ALWAYS, err);
    if (st == RV_OK) st = open_tok(m, err);
    if (st == RV_OK)
        st = rv_pool_new(&m->pool, opts->n_threads ? opts->n_threads : rv_n_cores(), err);
    if (st == RV_OK) {
        fill_info(m, opts);
        st = check_kv(m, err);
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

rv_status rv_model_new_kv(const rv_model *m, rv_kv **out, rv_err *err) {
    const rv_net *net = m->net;
    int32_t *heads = rv_calloc((size_t)net->n_layer, sizeof *heads);
    *out = NULL;
    if (!heads) return rv_fail(err, RV_ENOMEM, "kv: out of memory");
    for (int32_t i = 0; i < net->n_layer; i++)
        if (net->layers[i].n_head_kv) heads[net->layers[i].i_kv] = net->layers[i].n_head_kv;
    rv_status st = rv_kv_new(out, (size_t)net->n_kv_layers, heads, (size_t)net->head_dim,
                             m->info.kv_type, err);
    rv_free(heads);
    return st;
}

size_t rv_model_state_floats(const rv_model *m) {
    const rv_net *net = m->net;
    if (net->conv_l < 2) return 0;
    return (size_t)net->n_conv_layers * (size_t)(net->conv_l - 1) * (size_t)net->n_embd;
}

rv_status rv_model_check_ids(const rv_model *m, const int32_t *tok, size_t n, rv_err *err) {
    for (size_t i = 0; i < n; i++)
        if (tok[i] < 0 || tok[i] >= m->net->n_vocab)
            return rv_fail(err, RV_EARG, "tokens[%zu]: is %d, want 0 .. %d", i, tok[i],
                           m->net->n_vocab - 1);
    return RV_OK;
}
