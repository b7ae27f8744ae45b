/* Inside of rv_engine: its options as the scheduler wants them (batch_opts.c). */
#ifndef RV_BATCH_OPTS_H
#define RV_BATCH_OPTS_H

#include "engine/engine.h"
#include "engine/sched.h"

/* RV_EARG names the option. */
rv_status rv_engine_read_opts(const rv_model *m, const rv_engine_opts *o, rv_sched_opts *s,
                              rv_err *err);

#endif
