/* The inside of the store: connections, queue, writer.  The public part is in ruvllm.h.
 *
 *   caller threads                      writer thread                      file
 *   witness_put ─ copy ─► queue ──────► batch ─ BEGIN .. COMMIT ─► (fsync) memory.db
 *   query ─────────────── reading connection ────────────────────────────►
 *
 * Lock order: g_open (vfs.c) before rv_store.mu.  No lock is held while SQLite runs, but for g_open
 * while a writing connection is opened. */
#ifndef RV_STORE_H
#define RV_STORE_H

#include <pthread.h>
#include <sqlite3.h>
#include <sys/types.h>

#include "store/sql.h"

enum { RV_STORE_IDLE_READERS = 4 };

/* ---- connections (conn.c) ---- */

typedef struct rv_conn {
    sqlite3 *db;      /* NULL: closed */
    const char *path; /* the store's */
    sqlite3_stmt *st[RV_SQL_COUNT];
    struct rv_conn *next; /* of the idle readers */
} rv_conn;

/* Open for writing: makes the file, checks whose it is, turns WAL on, migrates. */
rv_status rv_conn_open_writer(rv_conn *c, const char *path, int busy_ms, rv_err *err);
rv_status rv_conn_open_reader(rv_conn *c, const char *path, int busy_ms, rv_err *err);
void rv_conn_close(rv_conn *c);
/* The prepared statement, made on first use; owned by c. */
rv_status rv_conn_stmt(rv_conn *c, rv_sql sql, sqlite3_stmt **out, rv_err *err);
rv_status rv_conn_exec(rv_conn *c, const char *sql, rv_err *err);
/* Bind value i_arg (from 0) without copying. */
int rv_conn_bind(sqlite3_stmt *st, size_t i_arg, const rv_value *v);
/* The file was moved or deleted since it was opened. */
bool rv_conn_moved(rv_conn *c);
/* fsync the write-ahead log: all that is committed survives the loss of power. */
rv_status rv_conn_sync(rv_conn *c, rv_err *err);
/* Fill err from SQLite's result code and message; c may be half open. */
rv_status rv_conn_fail(rv_conn *c, int rc, const char *what, rv_err *err);

/* ---- the process's copy of SQLite (vfs.c) ---- */

/* Once per process, before the first open: locks owned by open files, not by the process. */
rv_status rv_vfs_init(rv_err *err);
bool rv_vfs_ofd_locks(void);
/* Held while a writing connection is opened; survives fork. */
void rv_vfs_lock(void);
void rv_vfs_unlock(void);

/* ---- the queue and its thread (writer.c) ---- */

typedef struct rv_waiter { /* of a critical entry; on its caller's stack */
    bool done;
    rv_err err;
} rv_waiter;

typedef struct rv_entry { /* one allocation: the values, then the bytes they point to */
    struct rv_entry *next;
    uint64_t seq, born_ns;
    size_t bytes;
    rv_waiter *waiter; /* NULL unless critical */
    rv_sql sql;
    bool refused; /* by the table, in the present attempt */
    size_t n;
    rv_value v[];
} rv_entry;

typedef struct rv_list {
    rv_entry *head, *tail;
    size_t n;
} rv_list;

typedef struct rv_id_source {
    pthread_mutex_t mu;
    uint64_t last_ms;
    unsigned counter; /* 12 bits: ids of one millisecond stay in order */
    size_t n_random;
    uint8_t random[256];
} rv_id_source;

struct rv_store {
    char *path;
    rv_store_opts opts;
    pid_t pid;
    bool registered;
    dev_t dev; /* of the file; guarded by the vfs lock */
    ino_t ino;
    struct rv_store *next_open;

    pthread_mutex_t mu;
    pthread_cond_t work;     /* for the writer: something to do, or stop */
    pthread_cond_t progress; /* for callers: settled, failed, or a reader left */
    rv_list queue;           /* not yet taken; the batch in hand is the writer's */
    rv_list spent;           /* the writer's alone: settled, freed when mu is not held */
    uint64_t urgent_seq;     /* commit without waiting for more, up to here */
    uint64_t sync_seq;       /* someone waits for the fsync of these */
    uint64_t fail_epoch;     /* moves on with each report of a failed commit */
    uint64_t n_refused;      /* since the last flush */
    rv_err refused, failure; /* reasons */
    rv_store_stats stats;
    bool stop, closed;
    pthread_t thread;

    rv_conn writer; /* the writer thread's alone while it runs */
    rv_conn *idle;  /* reading connections not in use */
    size_t n_idle, n_reading;

    rv_id_source ids;
};

/* RV_ESTATE in a fork of the process that opened s. */
rv_status rv_store_check(const rv_store *s, rv_err *err);
rv_status rv_writer_start(rv_store *s, rv_err *err);
/* Copy and queue one row; with critical wait for the disk. */
rv_status rv_writer_put(rv_store *s, rv_sql sql, const rv_value *v, size_t n, bool critical,
                        rv_err *err);
/* Open the writing connection, and note which file it is (store.c). */
rv_status rv_store_open_writer(rv_store *s, rv_err *err);
/* The idle reading connections, no longer the store's (s->mu held); and their end (not held). */
rv_conn *rv_store_take_idle(rv_store *s);
void rv_store_close_idle(rv_conn *list);
/* Check arguments against a call's types (witness.c). */
rv_status rv_store_check_args(const rv_sql_call *call, const rv_value *v, size_t n, rv_err *err);

/* pthread_cond_timedwait until rv_now_ns() reaches until_ns (UINT64_MAX: no limit). */
void rv_store_wait(rv_store *s, pthread_cond_t *c, uint64_t until_ns);
bool rv_store_cond_init(pthread_cond_t *c);

#endif
