/* The weights once more, as panels (rvk.h): what makes a decoding step wait for memory alone.
 *
 * P1  Lazy: the first pass through a matrix reads the file, so that the first token does not wait;
 *     the second packs it, sixteen rows at a time, and multiplies what it packed.  A pass of many
 *     tokens packs at once, as packing is little beside it.
 * P2  The panels of all matrices are one allocation, asked for when the first is packed; pages that
 *     are never packed are never touched.  Where there is no memory, nothing changes: rows and
 *     panels give the same bits.
 * P3  One thread claims a matrix and publishes it when it is whole; others read the rows until
 * then. The file's pages of a packed matrix are given back to the system. */
#include <pthread.h>

#include "model/net.h"
#include "rvk.h"

enum { NEW, SEEN, CLAIMED, READY };

struct rv_panels {
    pthread_mutex_t lock; /* of the allocation */
    _Atomic(uint8_t *) base;
    size_t bytes;
    bool always; /* even where less than half of the available memory stays free */
    atomic_bool refused;
    size_t n;
    atomic_int state[]; /* [n] */
};

typedef struct plan {
    size_t n, bytes;
} plan;

static void place(rv_mat *m, void *arg) {
    plan *p = arg;
    m->i_panels = -1;
    if (!rvk.mul_panels[m->type]) return;
    const size_t n = (m->n_out + RVK_PANEL_ROWS - 1) / RVK_PANEL_ROWS;
    m->i_panels = (int32_t)p->n++;
    m->panels_at = p->bytes;
    p->bytes += n * rvk_panel_bytes(m->type, m->n_in);
}

rv_status rv_panels_new(rv_net *net, bool always, rv_err *err) {
    plan p = {0};
    rv_net_each_mat(net, place, &p);
    if (p.n == 0) return RV_OK;
    rv_panels *s = rv_calloc(1, sizeof *s + p.n * sizeof *s->state);
    if (!s) return rv_fail(err, RV_ENOMEM, "model: out of memory");
    pthread_mutex_init(&s->lock, NULL);
    s->n = p.n;
    s->bytes = p.bytes;
    s->always = always;
    net->panels = s;
    return RV_OK;
}

void rv_panels_free(rv_panels **ps) {
    rv_panels *s = *ps;
    *ps = NULL;
    if (!s) return;
    rv_free(atomic_load(&s->base));
    pthread_mutex_destroy(&s->lock);
    rv_free(s);
}

size_t rv_panels_bytes(const rv_panels *s) {
    return s && atomic_load(&s->base) ? s->bytes : 0;
}

static uint8_t *base_of(rv_panels *s) {
    uint8_t *p = atomic_load_explicit(&s->base, memory_order_acquire);
    if (p || atomic_load(&s->refused)) return p;
    pthread_mutex_lock(&s->lock);
    p = atomic_load(&s->base);
    if (!p && (s->always || s->bytes <= rv_memory_available() / 2)) p = rv_alloc_aligned(s->bytes);
    if (!p) atomic_store(&s->refused, true);
    atomic_store_explicit(&s->base, p, memory_order_release);
    pthread_mutex_unlock(&s->lock);
    return p;
}

const uint8_t *rv_panels_get(rv_panels *s, const rv_mat *m, bool many, uint8_t **fill) {
    *fill = NULL;
    if (!s || m->i_panels < 0 || !rvk.mul_panels[m->type]) return NULL;
    atomic_int *state = &s->state[m->i_panels];
    int now = atomic_load_explicit(state, memory_order_acquire);
    if (now == READY) return atomic_load_explicit(&s->base, memory_order_relaxed) + m->panels_at;
    if (now == CLAIMED) return NULL;
    if (now == NEW && !many) {
        atomic_compare_exchange_strong(state, &now, SEEN);
        return NULL;
    }
    uint8_t *base = base_of(s);
    if (base && atomic_compare_exchange_strong(state, &now, CLAIMED)) *fill = base + m->panels_at;
    return NULL;
}

void rv_panels_ready(rv_panels *s, const rv_mat *m) {
    atomic_store_explicit(&s->state[m->i_panels], READY, memory_order_release);
    rv_map_forget(m->w, m->n_out * m->stride);
}
