/* The queue and the one thread that writes.
 *
 *   put ─► queue ─► batch in hand ─► BEGIN IMMEDIATE, rows, COMMIT ─► fsync if someone waits for it
 *
 * W1  A row is in the queue or in the writer's hand until it is settled: committed, refused by the
 *     table and counted, or given up on and counted.  Nothing else removes it.
 * W2  Rows settle in the order of their numbers, so committed_seq says it all.
 * W3  A row the table refuses undoes itself alone; any other failure undoes the batch, which is
 *     then tried again, for as long as the store is open.
 * W4  Whoever waits (flush, critical) hears of a failed commit after N_TRIES at the latest. */
#include <signal.h>
#include <unistd.h>

#include "store/store.h"

enum { N_TRIES = 4, FIRST_RETRY_MS = 20, RETRY_MS = 1000, NS_PER_MS = 1000000 };

/* ---- lists; s->mu is held where the list is the queue ---- */

static void append(rv_list *l, rv_entry *e) {
    e->next = NULL;
    if (l->tail)
        l->tail->next = e;
    else
        l->head = e;
    l->tail = e;
    l->n++;
}

static rv_entry *pop(rv_list *l) {
    rv_entry *e = l->head;
    if (!e) return NULL;
    l->head = e->next;
    if (!l->head) l->tail = NULL;
    l->n--;
    return e;
}

static void free_spent(rv_store *s) {
    for (rv_entry *e; (e = pop(&s->spent));) rv_free(e);
}

/* ---- put ---- */

static rv_entry *copy_row(rv_sql sql, const rv_value *v, size_t n) {
    size_t bytes = sizeof(rv_entry) + n * sizeof *v;
    for (size_t i = 0; i < n; i++)
        if (__builtin_add_overflow(bytes, v[i].s.n, &bytes)) return NULL;
    rv_entry *e = rv_malloc(bytes);
    if (!e) return NULL;
    *e = (rv_entry){.bytes = bytes, .sql = sql, .n = n, .born_ns = rv_now_ns()};
    if (n) memcpy(e->v, v, n * sizeof *v);
    char *to = (char *)(e->v + n);
    for (size_t i = 0; i < n; i++) {
        if (!v[i].s.n) continue;
        memcpy(to, v[i].s.p, v[i].s.n);
        e->v[i].s.p = to;
        to += v[i].s.n;
    }
    return e;
}

static rv_status check_room(rv_store *s, const rv_entry *e, rv_err *err) {
    rv_store_stats *st = &s->stats;
    if (s->stop) return rv_fail(err, RV_ESTATE, "%s: closed", s->path);
    if (e->waiter) return RV_OK; /* bounded by the threads that wait */
    if (st->queue_depth < (uint64_t)s->opts.queue_depth &&
        st->queue_bytes + e->bytes <= (uint64_t)s->opts.queue_bytes)
        return RV_OK;
    st->dropped++;
    return rv_fail(err, RV_EFULL,
                   "%s: the queue is full: %llu rows of %d, %llu bytes and %zu more of %lld",
                   s->path, (unsigned long long)st->queue_depth, s->opts.queue_depth,
                   (unsigned long long)st->queue_bytes, e->bytes, (long long)s->opts.queue_bytes);
}

rv_status rv_writer_put(rv_store *s, rv_sql sql, const rv_value *v, size_t n, bool critical,
                        rv_err *err) {
    rv_waiter w = {0};
    rv_entry *e = copy_row(sql, v, n);
    if (!e) return rv_fail(err, RV_ENOMEM, "%s: out of memory for a row", s->path);
    e->waiter = critical ? &w : NULL;
    pthread_mutex_lock(&s->mu);
    rv_status st = check_room(s, e, err);
    if (st != RV_OK) {
        pthread_mutex_unlock(&s->mu);
        rv_free(e);
        return st;
    }
    e->seq = ++s->stats.queued_seq;
    s->stats.queued++;
    s->stats.queue_bytes += e->bytes;
    uint64_t depth = ++s->stats.queue_depth;
    append(&s->queue, e);
    if (critical) s->urgent_seq = s->sync_seq = e->seq;
    /* An idle writer needs to know when the first row came; after that only a full batch. */
    if (critical || depth == 1 || s->queue.n == (size_t)s->opts.max_batch)
        pthread_cond_signal(&s->work);
    while (critical && !w.done) pthread_cond_wait(&s->progress, &s->mu);
    pthread_mutex_unlock(&s->mu);
    return w.err.code == RV_OK ? RV_OK : rv_fail(err, w.err.code, "%s", w.err.msg);
}

/* ---- one attempt at a batch: no lock held ---- */

/* Faults of one row, after which the transaction goes on. */
static bool row_fault(int rc) {
    switch (rc & 0xff) {
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
    case SQLITE_TOOBIG:
    case SQLITE_RANGE:
    case SQLITE_ERROR: return true;
    default: return false;
    }
}

static rv_status write_row(rv_store *s, rv_entry *e, rv_err *refused, rv_err *err) {
    sqlite3_stmt *st;
    rv_status status = rv_conn_stmt(&s->writer, e->sql, &st, err);
    if (status != RV_OK) return status;
    int rc = SQLITE_OK;
    for (size_t i = 0; i < e->n && rc == SQLITE_OK; i++) rc = rv_conn_bind(st, i, &e->v[i]);
    if (rc == SQLITE_OK) rc = sqlite3_step(st);
    e->refused = false;
    if (rc != SQLITE_DONE && row_fault(rc) && !sqlite3_get_autocommit(s->writer.db)) {
        e->refused = true;
        rv_err *why = e->waiter ? &e->waiter->err : refused;
        rv_err_clear(why);
        rv_conn_fail(&s->writer, rc, "row refused", why);
    } else if (rc != SQLITE_DONE) {
        status = rv_conn_fail(&s->writer, rc, "row", err);
    }
    sqlite3_reset(st);
    return status;
}

/* The file is gone from its path: what is committed to it would be lost, so begin a new one.
 * Everything of the old one is closed first, because its log and index may still be there and hold
 * our locks. */
static rv_status follow_file(rv_store *s, rv_err *err) {
    if (s->writer.db && !rv_conn_moved(&s->writer)) return RV_OK;
    pthread_mutex_lock(&s->mu);
    rv_conn *idle = rv_store_take_idle(s);
    pthread_mutex_unlock(&s->mu);
    rv_store_close_idle(idle);
    rv_conn_close(&s->writer);
    return rv_store_open_writer(s, err);
}

static rv_status try_batch(rv_store *s, rv_list *batch, rv_err *refused, rv_err *err) {
    rv_err_clear(err);
    rv_status st = follow_file(s, err);
    if (st == RV_OK) st = rv_conn_exec(&s->writer, rv_sql_begin, err);
    if (st != RV_OK) return st;
    for (rv_entry *e = batch->head; e && st == RV_OK; e = e->next)
        st = write_row(s, e, refused, err);
    if (st == RV_OK) st = rv_conn_exec(&s->writer, rv_sql_commit, err);
    if (!sqlite3_get_autocommit(s->writer.db)) rv_conn_exec(&s->writer, rv_sql_rollback, NULL);
    return st;
}

/* ---- the thread: s->mu is held unless a line says so ---- */

static void finish(rv_waiter *w, const rv_err *err) {
    if (w->err.code == RV_OK) w->err = *err;
    w->done = true;
}

static void forget(rv_store *s, rv_entry *e) {
    s->stats.queue_depth--;
    s->stats.queue_bytes -= e->bytes;
    append(&s->spent, e);
}

/* The rows whose callers wait, or all: each is counted, and its caller is told why. */
static void give_up(rv_store *s, rv_list *l, bool all, const rv_err *why) {
    rv_list keep = {0};
    for (rv_entry *e; (e = pop(l));) {
        if (!e->waiter && !all) {
            append(&keep, e);
            continue;
        }
        if (e->waiter) finish(e->waiter, why);
        s->stats.dropped++;
        forget(s, e);
    }
    *l = keep;
}

static void update_seq(rv_store *s, const rv_list *batch) {
    const rv_entry *e = batch->head ? batch->head : s->queue.head;
    s->stats.committed_seq = e ? e->seq - 1 : s->stats.queued_seq;
}

static void report_failure(rv_store *s, const rv_err *err) {
    s->failure = s->stats.last_error = *err;
    s->fail_epoch++;
    pthread_cond_broadcast(&s->progress);
}

/* The n-th attempt since t0_ns failed; wait before the next one.  false: there is none. */
static bool after_failure(rv_store *s, rv_list *batch, int n, uint64_t t0_ns, const rv_err *err) {
    s->stats.retries++;
    s->stats.last_error = *err;
    uint64_t tried_ms = (rv_now_ns() - t0_ns) / NS_PER_MS;
    if (n >= N_TRIES || s->stats.failing || tried_ms >= (uint64_t)s->opts.busy_timeout_ms) {
        s->stats.failing = true;
        if (s->stop) return false;
        give_up(s, batch, false, err);
        give_up(s, &s->queue, false, err);
        update_seq(s, batch);
        report_failure(s, err);
    }
    uint64_t ms = s->stats.failing ? RETRY_MS : (uint64_t)FIRST_RETRY_MS << n;
    uint64_t until = rv_now_ns() + ms * NS_PER_MS;
    while (!s->stop && rv_now_ns() < until) rv_store_wait(s, &s->work, until);
    return true;
}

/* The store closes and the disk still refuses. */
static void lose_rest(rv_store *s, rv_list *batch, const rv_err *err) {
    uint64_t dropped0 = s->stats.dropped;
    give_up(s, batch, true, err);
    give_up(s, &s->queue, true, err);
    rv_err lost = {0};
    rv_fail(&lost, RV_EIO, "%s: %llu rows are lost: %.300s", s->path,
            (unsigned long long)(s->stats.dropped - dropped0), err->msg);
    report_failure(s, &lost); /* committed_seq stays: who waits must not take them for written */
}

/* The batch is committed. */
static void settle(rv_store *s, rv_list *batch, const rv_err *refused, const rv_err *sync_err) {
    s->stats.batches++;
    s->stats.failing = false;
    if (sync_err->code == RV_OK) rv_err_clear(&s->failure);
    for (rv_entry *e; (e = pop(batch));) {
        s->stats.written += !e->refused;
        s->stats.failed += e->refused;
        if (e->refused) s->stats.last_error = e->waiter ? e->waiter->err : *refused;
        if (e->refused && !e->waiter) { /* a waiter is told by itself */
            s->n_refused++;
            s->refused = *refused;
        }
        if (e->waiter) finish(e->waiter, sync_err);
        forget(s, e);
    }
}

/* Everything up to last is committed: have it on the disk, if someone waits for that. */
static void sync_log(rv_store *s, uint64_t last, rv_err *err) {
    if (s->sync_seq <= s->stats.durable_seq || s->sync_seq > last) return;
    pthread_mutex_unlock(&s->mu);
    rv_status st = rv_conn_sync(&s->writer, err);
    pthread_mutex_lock(&s->mu);
    if (st == RV_OK) {
        s->stats.durable_seq = last;
        return;
    }
    if (s->sync_seq <= last) s->sync_seq = s->stats.durable_seq; /* all who wait are told now */
    report_failure(s, err);
}

static bool ready(const rv_store *s) {
    const rv_entry *e = s->queue.head;
    if (s->stop || s->sync_seq > s->stats.durable_seq) return true;
    if (!e) return false;
    return s->queue.n >= (size_t)s->opts.max_batch || s->urgent_seq >= e->seq ||
           rv_now_ns() >= e->born_ns + (uint64_t)s->opts.max_wait_ms * NS_PER_MS;
}

/* Write one batch, or nothing but the fsync that someone waits for. false: the thread ends. */
static bool step(rv_store *s) {
    rv_list batch = {0};
    rv_err refused = {0}, err = {0}, sync_err = {0};
    while (batch.n < (size_t)s->opts.max_batch && s->queue.head) append(&batch, pop(&s->queue));
    const uint64_t t0 = rv_now_ns();
    for (int n = 1; batch.head; n++) {
        pthread_mutex_unlock(&s->mu);
        rv_status st = try_batch(s, &batch, &refused, &err);
        pthread_mutex_lock(&s->mu);
        if (st == RV_OK) break;
        if (after_failure(s, &batch, n, t0, &err)) continue;
        lose_rest(s, &batch, &err);
        return false;
    }
    sync_log(s, s->queue.head ? s->queue.head->seq - 1 : s->stats.queued_seq, &sync_err);
    if (batch.head) settle(s, &batch, &refused, &sync_err);
    update_seq(s, &batch);
    pthread_cond_broadcast(&s->progress);
    pthread_mutex_unlock(&s->mu);
    free_spent(s);
    pthread_mutex_lock(&s->mu);
    return true;
}

static void *writer_main(void *arg) {
    rv_store *s = arg;
    pthread_mutex_lock(&s->mu);
    for (bool go = true; go;) {
        while (!ready(s)) {
            const rv_entry *e = s->queue.head;
            uint64_t until =
                e ? e->born_ns + (uint64_t)s->opts.max_wait_ms * NS_PER_MS : UINT64_MAX;
            rv_store_wait(s, &s->work, until);
        }
        if (s->stop && !s->queue.head && s->sync_seq <= s->stats.durable_seq) break;
        go = step(s);
    }
    pthread_mutex_unlock(&s->mu);
    free_spent(s);
    return NULL;
}

rv_status rv_writer_start(rv_store *s, rv_err *err) {
    sigset_t all, before; /* signals are for the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&s->thread, NULL, writer_main, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0) return RV_OK;
    return rv_fail(err, RV_EIO, "store: cannot start a thread: %s", strerror(rc));
}

/* ---- flush ---- */

static rv_status flush_result(rv_store *s, bool durable, uint64_t target, uint64_t epoch,
                              rv_err *err) {
    const bool done = (durable ? s->stats.durable_seq : s->stats.committed_seq) >= target;
    if (!done && s->fail_epoch != epoch)
        return rv_fail(err, RV_EIO, "%.460s (%llu rows wait)", s->stats.last_error.msg,
                       (unsigned long long)s->stats.queue_depth);
    if (!done)
        return rv_fail(err, RV_ESTATE, "%s: %llu rows still wait after the time given", s->path,
                       (unsigned long long)s->stats.queue_depth);
    if (!durable || !s->n_refused) return RV_OK;
    rv_fail(err, RV_EFORMAT, "%s: %llu rows refused, the last: %.300s", s->path,
            (unsigned long long)s->n_refused, s->refused.msg);
    s->n_refused = 0;
    return RV_EFORMAT;
}

rv_status rv_store_flush(rv_store *s, int64_t timeout_ms, bool durable, rv_err *err) {
    rv_err_clear(err);
    rv_status st = rv_store_check(s, err);
    if (st != RV_OK) return st;
    uint64_t until = UINT64_MAX, ns;
    if (timeout_ms >= 0 && rv_mul_u64((uint64_t)timeout_ms, NS_PER_MS, &ns) &&
        rv_add_u64(rv_now_ns(), ns, &ns))
        until = ns;
    pthread_mutex_lock(&s->mu);
    if (s->stop) {
        st = rv_fail(err, RV_ESTATE, "%s: closed", s->path);
    } else {
        const uint64_t target = s->stats.queued_seq, epoch = s->fail_epoch;
        const uint64_t *seq = durable ? &s->stats.durable_seq : &s->stats.committed_seq;
        s->urgent_seq = RV_MAX(s->urgent_seq, target);
        if (durable) s->sync_seq = RV_MAX(s->sync_seq, target);
        pthread_cond_signal(&s->work);
        while (*seq < target && s->fail_epoch == epoch && rv_now_ns() < until)
            rv_store_wait(s, &s->progress, until);
        st = flush_result(s, durable, target, epoch, err);
    }
    pthread_mutex_unlock(&s->mu);
    return st;
}
