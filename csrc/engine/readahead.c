/* Reads the weights ahead, in a thread of its own, while the model is still being opened.
 *
 * Why not madvise(MADV_WILLNEED): it fills the page cache with single pages of 4 KiB, at most a few
 * MiB per call, and nothing is mapped yet.  A page fault in a mapping that asked for huge pages
 * brings 2 MiB at once, in one page where the file system has such, and maps it: decoding from such
 * pages is 1.14 times as fast (docs/performance.md). */
#include <unistd.h>

#include "engine/engine.h"

enum { STEP = 2 << 20 };

static void *work(void *arg) {
    rv_readahead *r = arg;
    for (uint64_t i = 0; i < rv_gguf_n_tensors(r->g); i++) {
        const rv_gguf_tensor *t = rv_gguf_tensor_at(r->g, i);
        for (uint64_t off = 0; off < t->n_bytes; off += STEP) {
            if (atomic_load_explicit(&r->stop, memory_order_relaxed)) return NULL;
            rv_map_populate((const uint8_t *)t->data + off,
                            (size_t)RV_MIN((uint64_t)STEP, t->n_bytes - off));
        }
    }
    return NULL;
}

void rv_readahead_start(rv_readahead *r, const rv_gguf *g) {
    r->g = g;
    r->pid = (long)getpid();
    atomic_store(&r->stop, false);
    r->runs = pthread_create(&r->thread, NULL, work, r) == 0;
}

void rv_readahead_stop(rv_readahead *r) {
    if (!r->runs) return;
    r->runs = false;
    if (r->pid != (long)getpid()) return; /* a forked child has no such thread */
    atomic_store(&r->stop, true);
    pthread_join(r->thread, NULL);
}
