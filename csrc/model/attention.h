/* Inside of attention: a few tokens and a key head at work, what attention.c (the parts, and whole
 * texts) and attention_cache.c (sequences in the cache) share. */
#ifndef RV_ATTENTION_H
#define RV_ATTENTION_H

#include "model/net.h"

enum { RV_ATTN_TILE = 8 }; /* tokens that share one walk over the keys */

/* How a kernel wants its queries. */
typedef struct rv_attn_form {
    int type;      /* of the keys and values */
    bool packed;   /* rounded to 8 bits */
    bool rotated;  /* as the keys are (Hadamard) */
    size_t w;      /* values of a query: as wide as the keys are stored */
    size_t stride; /* bytes of a query */
} rv_attn_form;

/* Neighbouring tokens of one sequence or text. */
typedef struct rv_tile {
    size_t row, n; /* the first one's row in the pass; how many, 1 .. RV_ATTN_TILE */
    /* of a sequence: */
    const rv_kv *kv;
    size_t pos;              /* of the first token */
    size_t tail[2];          /* where the tail begins for the first and for the last token */
    size_t first_seg, n_seg; /* segments of positions they see */
    size_t i_seg;            /* segments of the tiles before this one */
} rv_tile;

typedef struct rv_attn_loop {
    rv_run *r;
    const rv_attn_task *t;
    size_t group, d;      /* query heads per key head; values of a head */
    rv_attn_form form[2]; /* for the tail (or texts), for the store */
    size_t n_tiles, n_seg;
    size_t part_floats; /* of a tile's running softmax, when segments are shared out */
} rv_attn_loop;

/* A running softmax of some queries: [n][d] weighted values, maxima, sums. */
typedef struct rv_attn_state {
    float *acc, *top, *sum;
    size_t n, d;
} rv_attn_state;

static inline size_t rv_attn_state_floats(size_t n, size_t d) {
    return n * (d + 2);
}
static inline rv_attn_state rv_attn_state_at(float *at, size_t n, size_t d) {
    return (rv_attn_state){at, at + n * d, at + n * d + n, n, d};
}
void rv_attn_state_clear(const rv_attn_state *s);
/* s becomes the softmax over what both have seen; s first, then part, in the order of positions. */
void rv_attn_state_join(const rv_attn_state *s, const rv_attn_state *part);
/* The results of a tile and a key head into run->att. */
void rv_attn_state_result(const rv_attn_loop *l, const rv_tile *t, size_t g,
                          const rv_attn_state *s);

rv_attn_form rv_attn_form_of(int type, bool rotated, size_t d);
/* The queries [t->n][group] of a tile and a key head in the form of the tail or of the store, in
 * the scratch of the thread; each form has a place of its own there. */
uint8_t *rv_attn_queries(const rv_attn_loop *l, const rv_tile *t, size_t g, bool old, int i_thread);
/* Room for two states of a tile, in the same scratch. */
float *rv_attn_room(const rv_attn_loop *l, int i_thread);

/* Sequences: l->t->spans (attention_cache.c). */
void rv_attn_cached(rv_attn_loop *l);

#endif
