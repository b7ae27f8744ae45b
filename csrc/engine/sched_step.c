/* One step: who ends, who gets rows, who yields pages, who comes in, and what came of it.
 *
 * A running request has what it has reserved; what it will want is counted as if it were taken when
 * another one asks to come in (`promised`):
 *
 *   a request that may be preempted   all its tokens so far, and one page to grow
 *   one that may not (S2)             all the tokens it can ever have
 *
 * so protected ones never compete with each other, and whoever may be preempted yields to them:
 * requests do not wait for each other's pages.  Only sequences from outside of the scheduler, and
 * other members of the cache's budget, can take what was promised. */
#include "engine/sched_impl.h"

/* Requests that are passed over in a step because a running one computes their beginning. */
enum { MAX_HELD = 16 };

static size_t full_pages(size_t n) {
    return n / RV_PAGE_TOKENS * RV_PAGE_TOKENS;
}

size_t rv_sched_limit(const rv_sched *s, size_t tail) {
    return RV_MIN(s->o.n_ctx, rv_kv_cache_capacity(s->cache, tail));
}

static size_t limit_of(const rv_sched *s, const rv_req *r) {
    return r->scope.tail ? rv_sched_limit(s, r->scope.tail) : s->limit;
}

/* Rows that a running request can have in this step. */
static size_t rows_for(const rv_sched *s, const rv_req *r) {
    const size_t most = RV_MIN(s->o.max_chunk, rv_kv_most(r->kv));
    return RV_MIN(RV_MIN(rv_req_left(r), most), s->n_left);
}

void rv_req_free(rv_req *r) {
    rv_kv_free(&r->kv);
    rv_free((void *)(uintptr_t)r->scope.identity);
    rv_free(r->tok);
    rv_free(r);
}

/* ---- ends and events ---- */

/* What happened to a request waits in it; a token that nobody fetched yet goes out with the end. */
static void post(rv_sched *s, rv_req *r) {
    r->event.n_cached = r->n_cached;
    r->event.n_preempted = r->n_preempted;
    if (r->posted) return;
    r->posted = true;
    r->next_event = NULL;
    if (s->first_event)
        s->last_event->next_event = r;
    else
        s->first_event = r;
    s->last_event = r;
}

/* false: somebody asked for another end meanwhile, which is due when the next step begins (due:
 * this is that one).  What is not in the table any more nobody else can reach. */
static bool end(rv_sched *s, rv_req *r, rv_finish finish, rv_status status, bool due) {
    const bool running = r->state == RV_REQ_RUNNING;
    pthread_mutex_lock(&s->lock);
    const bool ends = due || r->ask == RV_FINISH_NONE;
    if (ends) {
        if (running)
            s->stats.n_running--;
        else
            rv_sched_dequeue(s, r);
        r->state = RV_REQ_ENDED;
        rv_table_take(&s->requests, &r->entry);
        rv_sched_forget_deadline(s, r);
        rv_sched_leave(s, r);
        s->stats.n_finished++;
        s->stats.n_cancelled += finish == RV_FINISH_CANCELLED;
    }
    pthread_mutex_unlock(&s->lock);
    if (!ends) return false;
    if (running) s->n_stay--;
    rv_kv_free(&r->kv);
    if (r->n_saved) s->b.swap_drop(s->b.ctx, r->entry.key);
    r->n_saved = 0;
    r->event.finish = finish;
    r->event.status = status;
    post(s, r);
    return true;
}

void rv_sched_compact(rv_sched *s) {
    size_t n = 0;
    for (size_t i = 0; i < s->n_run; i++)
        if (s->run[i]->state == RV_REQ_RUNNING) s->run[n++] = s->run[i];
    s->n_run = s->n_stay = n;
}

void rv_sched_begin(rv_sched *s, uint64_t now_ms) {
    s->now_ms = RV_MAX(s->now_ms, now_ms);
    pthread_mutex_lock(&s->lock);
    s->tick++;
    rv_req *list = s->asked, *r;
    s->asked = NULL;
    while ((r = rv_sched_next_deadline(s)) && r->deadline_ms <= s->now_ms) {
        rv_sched_forget_deadline(s, r);
        if (r->ask != RV_FINISH_NONE) continue; /* it is in the list */
        r->ask = RV_FINISH_DEADLINE;
        r->next_asked = list;
        list = r;
    }
    pthread_mutex_unlock(&s->lock);
    for (rv_req *next; list; list = next) {
        next = list->next_asked;
        end(s, list, list->ask, RV_OK, true);
    }
    rv_sched_compact(s);
    s->limit = rv_sched_limit(s, 0);
}

/* ---- rows for those that run ---- */

static void preempt(rv_sched *s, rv_req *r) {
    s->n_left += r->n_rows;
    r->n_rows = 0;
    const size_t len = rv_kv_len(r->kv);
    if (s->b.swap_out && len && s->b.swap_out(s->b.ctx, r->entry.key, r->kv, r->tok, NULL) == RV_OK)
        r->n_saved = len;
    rv_kv_free(&r->kv);
    r->n_preempted++;
    s->preempted = true;
    s->n_stay--;
    pthread_mutex_lock(&s->lock);
    s->stats.n_running--;
    s->stats.n_preempted++;
    rv_sched_enqueue(s, r);
    pthread_mutex_unlock(&s->lock);
}

static rv_req *worst(rv_sched *s) {
    for (; s->i_worst > 0; s->i_worst--) {
        rv_req *r = s->run[s->i_worst - 1];
        if (r->state == RV_REQ_RUNNING && !rv_req_protected(s, r)) return r;
    }
    return NULL;
}

/* n rows for r, if need be in pages of those behind it. */
static rv_status give(rv_sched *s, rv_req *r, size_t n, rv_err *err) {
    for (;;) {
        rv_err e = {0};
        const rv_status st = rv_kv_reserve(r->kv, n, s->b.pool, &e);
        if (st == RV_OK) {
            r->n_rows = n;
            s->n_left -= n;
            return RV_OK;
        }
        if (st != RV_EFULL) return rv_fail(err, st, "%s", e.msg);
        rv_req *victim = s->n_stay > 1 ? worst(s) : NULL;
        if (!victim) return RV_OK;
        preempt(s, victim);
        if (victim == r) return RV_OK;
    }
}

/* Those that generate, or those that do not yet.  One whose event nobody fetched has to wait. */
static rv_status give_rows(rv_sched *s, bool generating, rv_err *err) {
    rv_status st = RV_OK;
    for (size_t i = 0; st == RV_OK && s->n_left > 0 && i < s->n_run; i++) {
        rv_req *r = s->run[i];
        if (r->state != RV_REQ_RUNNING || r->posted) continue;
        if ((rv_req_left(r) == 1) != generating) continue;
        st = give(s, r, rows_for(s, r), err);
    }
    return st;
}

/* ---- those that come in ---- */

/* How long r may get before somebody else comes in. */
static size_t promised_len(const rv_sched *s, const rv_req *r) {
    const size_t most = RV_MIN(r->n_prompt + r->max_tokens, limit_of(s, r));
    const size_t n = r->n_tok + (r->kv ? RV_PAGE_TOKENS : 0);
    return RV_MAX(rv_req_protected(s, r) ? most : RV_MIN(n, most), r->n_tok);
}

static void promise(const rv_sched *s, const rv_req *r, rv_kv_need *sum) {
    rv_kv_need_add(s->cache, r->kv, r->scope.tail, promised_len(s, r), sum);
}

static bool same_scope(const rv_kv_scope *a, const rv_kv_scope *b) {
    return a->n == b->n && a->tail == b->tail && (!a->n || !memcmp(a->identity, b->identity, a->n));
}

/* A running request computes the next page that r would have to: r finds it if it waits. */
static bool in_the_making(const rv_sched *s, const rv_req *r) {
    for (size_t i = 0; s->o.await_prefix && i < s->n_run; i++) {
        const rv_req *q = s->run[i];
        const size_t page_end = (rv_kv_len(q->kv) / RV_PAGE_TOKENS + 1) * RV_PAGE_TOKENS;
        if (same_scope(&q->scope, &r->scope) && q->n_tok >= page_end && r->n_tok > page_end &&
            memcmp(q->tok, r->tok, page_end * sizeof *r->tok) == 0)
            return true;
    }
    return false;
}

/* A sequence for r with what there is of it; NULL: out of memory. */
static rv_kv *open_sequence(rv_sched *s, rv_req *r) {
    rv_kv *kv;
    if (rv_kv_new(&kv, s->cache, &r->scope, NULL) != RV_OK) return NULL;
    if (r->n_saved) {
        /* Pages that are still in the cache are shared; those brought back are its own. */
        const size_t kept = rv_kv_peek(s->cache, &r->scope, r->tok, r->n_tok);
        if (kept < full_pages(r->n_saved)) {
            s->b.swap_in(s->b.ctx, r->entry.key, kv, r->tok, r->n_saved);
            s->brought = true;
            if (rv_kv_len(kv) < kept) rv_kv_truncate(kv, 0, NULL); /* the cache has more of it */
        }
        s->b.swap_drop(s->b.ctx, r->entry.key);
        r->n_saved = 0;
    }
    if (rv_kv_len(kv) == 0) rv_kv_match(kv, r->tok, r->n_tok);
    return kv;
}

static void come_in(rv_sched *s, rv_req *r, rv_kv *kv) {
    const size_t found = RV_MIN(rv_kv_len(kv), r->n_prompt);
    r->kv = kv;
    r->n_rows = 0;
    s->run[s->n_run++] = r;
    s->n_stay++;
    if (!r->admitted) r->n_cached = r->n_charged = found;
    pthread_mutex_lock(&s->lock);
    rv_sched_dequeue(s, r);
    r->state = RV_REQ_RUNNING;
    s->stats.n_running++;
    if (!r->admitted) {
        s->stats.n_prompt += r->n_prompt;
        s->stats.n_cached += found;
    }
    pthread_mutex_unlock(&s->lock);
    r->admitted = true;
}

/* Whether r fits beside what others are promised, in kv or, NULL, in a new sequence. */
static bool fits(rv_sched *s, const rv_req *r, const rv_kv *kv, const rv_kv_need *promised) {
    rv_kv_need sum = *promised;
    rv_kv_need_add(s->cache, kv, r->scope.tail, promised_len(s, r), &sum);
    const bool ok = rv_kv_cache_fits(s->cache, &sum);
    s->stuck = !ok && s->n_stay == 0;
    return ok;
}

/* Lets r in if there is room for it; *in says so. */
static rv_status try_admit(rv_sched *s, rv_req *r, const rv_kv_need *promised, bool *in) {
    *in = false;
    if (r->n_tok > limit_of(s, r)) {
        end(s, r, RV_FINISH_ERROR, RV_EFULL, false);
        return RV_OK;
    }
    if (r->n_saved && s->brought) return RV_OK;
    /* Looking for its beginning takes time, bringing it back more. */
    if ((r->n_saved || r->found_nothing) && !fits(s, r, NULL, promised)) return RV_OK;
    rv_kv *kv = open_sequence(s, r);
    if (!kv) return RV_ENOMEM;
    const size_t len = rv_kv_len(kv);
    r->found_nothing = len == 0;
    bool ok = fits(s, r, kv, promised);
    /* Of a page that is found in part there will be two, and only one in a full cache. */
    if (!ok && len % RV_PAGE_TOKENS && rv_kv_truncate(kv, full_pages(len), NULL) == RV_OK)
        ok = fits(s, r, kv, promised);
    if (!ok) rv_kv_free(&kv);
    if (!ok && s->n_stay == 0 && fits(s, r, NULL, promised)) {
        /* What is found is in the way: alone it has room in any case. */
        ok = rv_kv_new(&kv, s->cache, &r->scope, NULL) == RV_OK;
        if (!ok) return RV_ENOMEM;
    }
    if (!ok) return RV_OK;
    come_in(s, r, kv);
    *in = true;
    return RV_OK;
}

static rv_req *next_waiting(rv_sched *s) {
    pthread_mutex_lock(&s->lock);
    rv_req *r = rv_sched_first(s);
    pthread_mutex_unlock(&s->lock);
    return r;
}

static void hold(rv_sched *s, rv_req *r, bool back) {
    pthread_mutex_lock(&s->lock);
    if (back)
        rv_sched_enqueue(s, r);
    else
        rv_sched_dequeue(s, r);
    pthread_mutex_unlock(&s->lock);
}

static rv_status admit(rv_sched *s, rv_err *err) {
    rv_req *held[MAX_HELD], *r;
    rv_kv_need promised = {0};
    for (size_t i = 0; i < s->n_run; i++) promise(s, s->run[i], &promised);
    size_t n_held = 0;
    rv_status st = RV_OK;
    bool in = true;
    while (st == RV_OK && in && s->n_run < s->o.max_running && s->n_left > 0 &&
           (r = next_waiting(s)) != NULL) {
        if (n_held < MAX_HELD && in_the_making(s, r)) {
            hold(s, r, false);
            held[n_held++] = r;
            continue;
        }
        st = try_admit(s, r, &promised, &in);
        if (st != RV_OK || !in) break;
        const size_t n = rows_for(s, r);
        if (!r->posted) st = rv_kv_reserve(r->kv, n, s->b.pool, NULL);
        if (st == RV_OK && !r->posted) {
            r->n_rows = n;
            s->n_left -= n;
        }
        promise(s, r, &promised);
    }
    while (n_held > 0) hold(s, held[--n_held], true);
    /* One that came in without rows tries again in the next step; without memory for another one
     * those that run go on. */
    if (st != RV_ENOMEM || s->n_left < s->o.max_rows) return RV_OK;
    return rv_fail(err, st, "scheduler: out of memory for a sequence");
}

/* ---- the plan ---- */

static rv_status make_rows(rv_sched *s, rv_err *err) {
    s->n_groups = 0;
    for (size_t i = 0; i < s->n_run; i++) {
        rv_req *r = s->run[i];
        if (r->state != RV_REQ_RUNNING || r->n_rows == 0) continue;
        const size_t len = rv_kv_len(r->kv);
        void *tok = r->tok;
        const bool room = rv_grow(&tok, &r->cap_tok, r->n_tok + 1, sizeof *r->tok);
        r->tok = tok;
        if (!room) return rv_fail(err, RV_ENOMEM, "scheduler: no memory for %zu tokens", r->n_tok);
        s->row_of[s->n_groups] = r;
        s->rows[s->n_groups++] = (rv_sched_rows){
            .kv = r->kv,
            .tok = r->tok + len,
            .n = r->n_rows,
            .request = r->entry.key,
            .user = r->user,
            .i_token = r->n_tok - r->n_prompt,
            .choose = len + r->n_rows == r->n_tok,
            .token = -1,
        };
    }
    return RV_OK;
}

/* Nobody found room, and nobody could be made to yield: whoever is last has to, so that the others
 * go on.  What is promised is promised in pages of the kinds of now, so this is for memory that
 * others (sequences from outside, other members of the budget) took, or that is cut into pages of
 * another kind. */
static void unblock(rv_sched *s) {
    for (size_t i = 0; i < s->n_run; i++)
        if (s->run[i]->posted) return; /* not for lack of room */
    if (s->n_run > 0) preempt(s, s->run[s->n_run - 1]);
    rv_sched_compact(s);
}

rv_status rv_sched_plan(rv_sched *s, rv_err *err) {
    rv_sched_rank_running(s);
    for (size_t i = 0; i < s->n_run; i++) s->run[i]->n_rows = 0;
    s->n_groups = 0;
    s->n_left = s->o.max_rows;
    s->i_worst = s->n_run;
    s->preempted = s->stuck = s->brought = false;
    rv_status st = give_rows(s, true, err);
    if (st == RV_OK) st = give_rows(s, false, err);
    rv_sched_compact(s);
    if (st == RV_OK && s->n_left == s->o.max_rows && !s->preempted) unblock(s);
    if (st == RV_OK && !s->preempted) st = admit(s, err);
    if (st == RV_OK) st = make_rows(s, err);
    if (st != RV_OK || s->n_groups > 0 || !s->stuck) return st;
    return rv_fail(err, RV_EFULL, "scheduler: no room to begin a request: others hold the memory");
}

/* ---- what came of it ---- */

static void settle(rv_sched *s, rv_req *r, const rv_sched_rows *row) {
    if (row->status != RV_OK) {
        end(s, r, RV_FINISH_ERROR, row->status, false);
        return;
    }
    rv_kv_commit(r->kv, row->tok, row->n);
    const size_t len = RV_MIN(rv_kv_len(r->kv), r->n_prompt);
    const size_t charge = len > r->n_charged ? len - r->n_charged : 0;
    r->n_charged += charge;
    pthread_mutex_lock(&s->lock);
    s->stats.n_rows += row->n;
    s->stats.n_tokens += row->choose;
    rv_sched_charge(s, r->tenant, charge + 2 * (uint64_t)row->choose);
    pthread_mutex_unlock(&s->lock);
    if (!row->choose) return;
    r->tok[r->n_tok++] = row->token;
    r->event.token = row->token;
    const bool full = r->n_tok - r->n_prompt >= r->max_tokens || r->n_tok >= limit_of(s, r);
    const rv_finish why = row->end ? RV_FINISH_STOP : RV_FINISH_LENGTH;
    if (!(row->end || full) || !end(s, r, why, RV_OK, false)) post(s, r);
}

rv_status rv_sched_compute(rv_sched *s, uint64_t *backend_ns, rv_err *err) {
    const uint64_t from = rv_now_ns();
    const rv_status st = s->b.step(s->b.ctx, s->rows, s->n_groups, err);
    *backend_ns = rv_now_ns() - from;
    if (st != RV_OK) return rv_fail(err, st, "scheduler: the backend failed");
    for (size_t i = 0; i < s->n_groups; i++) settle(s, s->row_of[i], &s->rows[i]);
    return RV_OK;
}
