/* The store as a whole: opening, closing, which files this process has open.
 *
 * SQLite must not be carried over a fork: its tables of the files it has open would be copied, and
 * parent and child would share one lock.  So a handle belongs to the process that opened it, and a
 * child cannot open a file its parent had open at the fork: the list of open stores is how it
 * knows. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/store.h"

static rv_store *g_stores; /* every open one, the parent's too; guarded by the vfs lock */

/* ---- options and paths ---- */

static rv_status set_opt(int64_t *v, int64_t dflt, int64_t max, const char *name, rv_err *err) {
    if (*v == 0) *v = dflt;
    if (*v >= 1 && *v <= max) return RV_OK;
    return rv_fail(err, RV_EARG, "store: %s %lld, want 1 .. %lld", name, (long long)*v,
                   (long long)max);
}

static rv_status set_opts(rv_store_opts *o, const rv_store_opts *from, rv_err *err) {
    *o = from ? *from : (rv_store_opts){0};
    int64_t depth = o->queue_depth, batch = o->max_batch, wait = o->max_wait_ms;
    int64_t busy = o->busy_timeout_ms;
    rv_status st = set_opt(&depth, 10000, 1000000, "queue_depth", err);
    if (st == RV_OK)
        st = set_opt(&o->queue_bytes, (int64_t)256 << 20, (int64_t)1 << 40, "queue_bytes", err);
    if (st == RV_OK) st = set_opt(&batch, 100, 100000, "max_batch", err);
    if (st == RV_OK) st = set_opt(&wait, 1000, 3600000, "max_wait_ms", err);
    if (st == RV_OK) st = set_opt(&busy, 5000, 3600000, "busy_timeout_ms", err);
    o->queue_depth = (int32_t)depth;
    o->max_batch = (int32_t)batch;
    o->max_wait_ms = (int32_t)wait;
    o->busy_timeout_ms = (int32_t)busy;
    return st;
}

/* Make dir and its parents. */
static rv_status make_dir(const char *dir, rv_err *err) {
    char path[PATH_MAX];
    size_t n = strlen(dir);
    if (n == 0 || n >= sizeof path)
        return rv_fail(err, RV_EARG, "store: path of %zu bytes, want 1 .. %zu", n, sizeof path - 1);
    memcpy(path, dir, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != 0) continue;
        char was = path[i];
        path[i] = 0;
        struct stat sb;
        if (mkdir(path, 0700) != 0 && (stat(path, &sb) != 0 || !S_ISDIR(sb.st_mode)))
            return rv_fail(err, RV_EIO, "%s: cannot make the folder %s: %s", dir, path,
                           strerror(errno == ENOENT ? EACCES : errno));
        path[i] = was;
    }
    return RV_OK;
}

static rv_status make_path(rv_store *s, const char *dir, rv_err *err) {
    char real[PATH_MAX]; /* absolute, so that a later chdir does not matter */
    rv_status st = make_dir(dir, err);
    if (st != RV_OK) return st;
    if (!realpath(dir, real)) return rv_fail(err, RV_EIO, "%s: %s", dir, strerror(errno));
    size_t n = strlen(real) + sizeof "/memory.db";
    s->path = rv_malloc(n);
    if (!s->path) return rv_fail(err, RV_ENOMEM, "store: %s: out of memory", dir);
    snprintf(s->path, n, "%s/memory.db", real);
    return RV_OK;
}

/* ---- the list of open files ---- */

static rv_status check_forked(const rv_store *s, rv_err *err) {
    struct stat sb;
    if (stat(s->path, &sb) != 0) return RV_OK; /* not there yet */
    for (const rv_store *o = g_stores; o; o = o->next_open)
        if (o->pid != s->pid && o->dev == sb.st_dev && o->ino == sb.st_ino)
            return rv_fail(err, RV_ESTATE,
                           "%s: open in process %ld when process %ld was forked from it: close it "
                           "before the fork, or spawn",
                           s->path, (long)o->pid, (long)s->pid);
    return RV_OK;
}

static void unregister(rv_store *s) {
    rv_vfs_lock();
    for (rv_store **p = &g_stores; *p; p = &(*p)->next_open) {
        if (*p != s) continue;
        *p = s->next_open;
        break;
    }
    s->registered = false;
    rv_vfs_unlock();
}

rv_status rv_store_open_writer(rv_store *s, rv_err *err) {
    rv_vfs_lock();
    rv_status st = check_forked(s, err);
    if (st == RV_OK) st = rv_conn_open_writer(&s->writer, s->path, s->opts.busy_timeout_ms, err);
    struct stat sb;
    if (st == RV_OK && stat(s->path, &sb) == 0) {
        s->dev = sb.st_dev;
        s->ino = sb.st_ino;
        if (!s->registered) {
            s->next_open = g_stores;
            g_stores = s;
            s->registered = true;
        }
    }
    rv_vfs_unlock();
    return st;
}

/* ---- the handle ---- */

bool rv_store_cond_init(pthread_cond_t *c) {
    pthread_condattr_t a;
    if (pthread_condattr_init(&a) != 0) return false;
#if !defined(__APPLE__)
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
#endif
    bool ok = pthread_cond_init(c, &a) == 0;
    pthread_condattr_destroy(&a);
    return ok;
}

void rv_store_wait(rv_store *s, pthread_cond_t *c, uint64_t until_ns) {
    if (until_ns == UINT64_MAX) {
        pthread_cond_wait(c, &s->mu);
        return;
    }
    uint64_t now = rv_now_ns(), left = until_ns > now ? until_ns - now : 0;
#if defined(__APPLE__)
    struct timespec t = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
    pthread_cond_timedwait_relative_np(c, &s->mu, &t);
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t at = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec + left;
    t = (struct timespec){(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
    pthread_cond_timedwait(c, &s->mu, &t);
#endif
}

static void destroy(rv_store *s) {
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->progress);
    pthread_mutex_destroy(&s->mu);
    pthread_mutex_destroy(&s->ids.mu);
    rv_free(s->path);
    rv_free(s);
}

rv_status rv_store_open(rv_store **out, const char *dir, const rv_store_opts *opts, rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    rv_status st = rv_vfs_init(err);
    if (st != RV_OK) return st;
    rv_store *s = rv_calloc(1, sizeof *s);
    if (!s) return rv_fail(err, RV_ENOMEM, "store: %s: out of memory", dir);
    pthread_mutex_init(&s->mu, NULL);
    pthread_mutex_init(&s->ids.mu, NULL);
    rv_store_cond_init(&s->work);
    rv_store_cond_init(&s->progress);
    s->pid = getpid();
    st = set_opts(&s->opts, opts, err);
    if (st == RV_OK) st = make_path(s, dir, err);
    if (st == RV_OK) st = rv_store_open_writer(s, err);
    if (st == RV_OK) st = rv_writer_start(s, err);
    if (st != RV_OK) {
        if (s->registered) unregister(s);
        rv_conn_close(&s->writer);
        destroy(s);
        return st;
    }
    *out = s;
    return RV_OK;
}

rv_status rv_store_check(const rv_store *s, rv_err *err) {
    if (s->pid == getpid()) return RV_OK;
    return rv_fail(err, RV_ESTATE, "%s: opened by process %ld, used in its fork %ld: open it anew",
                   s->path, (long)s->pid, (long)getpid());
}

rv_conn *rv_store_take_idle(rv_store *s) {
    rv_conn *list = s->idle;
    s->idle = NULL;
    s->n_idle = 0;
    return list;
}

void rv_store_close_idle(rv_conn *list) {
    while (list) {
        rv_conn *c = list;
        list = c->next;
        rv_conn_close(c);
        rv_free(c);
    }
}

rv_status rv_store_close(rv_store *s, rv_err *err) {
    rv_err_clear(err);
    rv_status st = rv_store_check(s, err);
    if (st != RV_OK) return st;
    pthread_mutex_lock(&s->mu);
    if (s->stop) { /* another call closes, or has closed: be done when it is */
        while (!s->closed) pthread_cond_wait(&s->progress, &s->mu);
        pthread_mutex_unlock(&s->mu);
        return RV_OK;
    }
    s->stop = true;
    s->sync_seq = s->stats.queued_seq;
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->mu);
    pthread_join(s->thread, NULL);

    pthread_mutex_lock(&s->mu);
    while (s->n_reading) pthread_cond_wait(&s->progress, &s->mu);
    rv_conn *idle = rv_store_take_idle(s);
    pthread_mutex_unlock(&s->mu);
    rv_store_close_idle(idle);
    rv_conn_close(&s->writer); /* last: the one that took the file's lock gives it back */
    unregister(s);

    pthread_mutex_lock(&s->mu);
    if (s->failure.code != RV_OK)
        st = rv_fail(err, s->failure.code, "%s", s->failure.msg);
    else if (s->n_refused)
        st = rv_fail(err, RV_EFORMAT, "%s: %llu rows refused, the last: %s", s->path,
                     (unsigned long long)s->n_refused, s->refused.msg);
    s->closed = true;
    pthread_cond_broadcast(&s->progress);
    pthread_mutex_unlock(&s->mu);
    return st;
}

void rv_store_free(rv_store **s) {
    if (!*s) return;
    if (rv_store_check(*s, NULL) == RV_OK) {
        rv_store_close(*s, NULL);
        destroy(*s);
    } /* in a fork its memory stays: the list of open files names it */
    *s = NULL;
}

const char *rv_store_path(const rv_store *s) {
    return s->path;
}

rv_status rv_store_get_stats(rv_store *s, rv_store_stats *out, rv_err *err) {
    rv_err_clear(err);
    rv_status st = rv_store_check(s, err);
    if (st != RV_OK) return st;
    pthread_mutex_lock(&s->mu);
    *out = s->stats;
    pthread_mutex_unlock(&s->mu);
    out->ofd_locks = rv_vfs_ofd_locks();
    return RV_OK;
}
