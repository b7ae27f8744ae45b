/* Inside of rv_sampler: samplers that have no work area of their own.  A draw writes some 12 bytes
 * per token of the vocabulary that nobody reads afterwards; where many samplers take turns, a work
 * area per thread serves them all. */
#ifndef RV_SAMPLER_H
#define RV_SAMPLER_H

#include "base/base.h"

typedef struct rv_sample_area {
    float *x;       /* [n_vocab] logits after bias, penalties and mask */
    uint64_t *keys; /* [n_vocab] candidates; NULL serves greedy samplers only */
} rv_sample_area;

bool rv_sample_area_init(rv_sample_area *a, size_t n_vocab, bool with_keys); /* false: no memory */
void rv_sample_area_deinit(rv_sample_area *a); /* copes with a half-built one, and with zeros */

/* As rv_sampler_new, without a work area: only rv_sampler_sample_in may draw. */
rv_status rv_sampler_new_bare(rv_sampler **out, const rv_sample_params *p, int32_t n_vocab,
                              rv_err *err);
/* As rv_sampler_sample, in a work area of the same n_vocab; what is in it before does not matter.
 */
rv_status rv_sampler_sample_in(rv_sampler *s, const rv_sample_area *a, const float *logits,
                               uint64_t pos, const uint32_t *allow, rv_sampled *out, rv_err *err);

#endif
