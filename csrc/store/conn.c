/* Connections to memory.db: opening, whose file it is, migrations, statements, errors.
 *
 * A file is looked at before anything is written to it: an unknown application id, a newer schema
 * or bytes that are no database end the opening with the file as it was.  Only a writing connection
 * makes, converts or migrates; it may then be handed to the writer thread. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "store/store.h"

static rv_status status_of(int rc) {
    switch (rc & 0xff) {
    case SQLITE_OK: return RV_OK;
    case SQLITE_NOMEM: return RV_ENOMEM;
    case SQLITE_ERROR: /* our SQL is fixed, so a table or format is not as it should be */
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
    case SQLITE_TOOBIG: return RV_EFORMAT;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_IOERR:
    case SQLITE_FULL:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PROTOCOL:
    case SQLITE_NOLFS:
    case SQLITE_PERM: return RV_EIO;
    case SQLITE_INTERRUPT: return RV_ECANCEL;
    default: return RV_EINTERNAL;
    }
}

rv_status rv_conn_fail(rv_conn *c, int rc, const char *what, rv_err *err) {
    rv_status st = status_of(rc);
    const char *msg = c->db ? sqlite3_errmsg(c->db) : sqlite3_errstr(rc);
    int os = c->db ? sqlite3_system_errno(c->db) : 0;
    bool say_os = st == RV_EIO && os && (rc & 0xff) != SQLITE_BUSY;
    return rv_fail(err, st, "%s: %s: %s%s%s", c->path, what, msg, say_os ? ": " : "",
                   say_os ? strerror(os) : "");
}

rv_status rv_conn_exec(rv_conn *c, const char *sql, rv_err *err) {
    int rc = sqlite3_exec(c->db, sql, NULL, NULL, NULL);
    if (rc == SQLITE_OK) return RV_OK;
    char what[60];
    snprintf(what, sizeof what, "%.50s", sql);
    return rv_conn_fail(c, rc, what, err);
}

static rv_status get_int(rv_conn *c, const char *sql, int64_t *out, rv_err *err) {
    sqlite3_stmt *st = NULL;
    int rc = sqlite3_prepare_v2(c->db, sql, -1, &st, NULL);
    if (rc == SQLITE_OK && (rc = sqlite3_step(st)) == SQLITE_ROW) {
        *out = sqlite3_column_int64(st, 0);
        rc = SQLITE_OK;
    }
    if (rc == SQLITE_DONE) rc = SQLITE_CORRUPT; /* a pragma that answers nothing */
    rv_status status = rc == SQLITE_OK ? RV_OK : rv_conn_fail(c, rc, sql, err);
    sqlite3_finalize(st);
    return status;
}

rv_status rv_conn_stmt(rv_conn *c, rv_sql sql, sqlite3_stmt **out, rv_err *err) {
    if (!c->st[sql]) {
        int rc = sqlite3_prepare_v3(c->db, rv_sql_text[sql], -1, SQLITE_PREPARE_PERSISTENT,
                                    &c->st[sql], NULL);
        if (rc != SQLITE_OK) return rv_conn_fail(c, rc, "prepare", err);
    }
    *out = c->st[sql];
    return RV_OK;
}

int rv_conn_bind(sqlite3_stmt *st, size_t i_arg, const rv_value *v) {
    int i = (int)i_arg + 1;
    switch (v->type) {
    case RV_VAL_INT: return sqlite3_bind_int64(st, i, v->i);
    case RV_VAL_REAL: return sqlite3_bind_double(st, i, v->f);
    case RV_VAL_TEXT:
        return sqlite3_bind_text64(st, i, v->s.p ? v->s.p : "", v->s.n, SQLITE_STATIC, SQLITE_UTF8);
    case RV_VAL_BLOB:
        return sqlite3_bind_blob64(st, i, v->s.p ? v->s.p : "", v->s.n, SQLITE_STATIC);
    case RV_VAL_NULL: break;
    }
    return sqlite3_bind_null(st, i);
}

void rv_conn_close(rv_conn *c) {
    for (size_t i = 0; i < RV_SQL_COUNT; i++) sqlite3_finalize(c->st[i]);
    sqlite3_close(c->db); /* all statements are gone, so it cannot be refused */
    memset(c->st, 0, sizeof c->st);
    c->db = NULL;
}

bool rv_conn_moved(rv_conn *c) {
    int moved = 0;
    sqlite3_file_control(c->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved);
    return moved != 0;
}

rv_status rv_conn_sync(rv_conn *c, rv_err *err) {
    if (!c->db) return rv_fail(err, RV_EIO, "%s: fsync: the file is not open", c->path);
    sqlite3_file *log = NULL; /* in WAL mode the "journal" is the log */
    int rc = sqlite3_file_control(c->db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log);
    if (rc == SQLITE_OK && log && log->pMethods) rc = log->pMethods->xSync(log, SQLITE_SYNC_NORMAL);
    return rc == SQLITE_OK ? RV_OK : rv_conn_fail(c, rc, "fsync", err);
}

/* ---- opening ---- */

static rv_status open_db(rv_conn *c, const char *path, int flags, int busy_ms, rv_err *err) {
    *c = (rv_conn){.path = path};
    int rc =
        sqlite3_open_v2(path, &c->db, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_busy_timeout(c->db, busy_ms);
    if (rc == SQLITE_OK) rc = sqlite3_db_config(c->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    if (rc != SQLITE_OK) return rv_conn_fail(c, rc, "open", err);
    return rv_conn_exec(c, rv_sql_connection, err);
}

/* SQLite would give the file the process's umask; the log and its index copy the file's mode. */
static rv_status make_file(const char *path, rv_err *err) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) {
        close(fd); /* new, so nobody's locks are lost */
        return RV_OK;
    }
    if (errno == EEXIST) return RV_OK;
    return rv_fail(err, RV_EIO, "%s: cannot create: %s", path, strerror(errno));
}

/* Whose file, and which schema?  Writes nothing.  The caller holds a transaction: between two
 * separate reads another process may finish making the file. */
static rv_status inspect(rv_conn *c, int64_t *schema, rv_err *err) {
    int64_t app = 0, n_objects = 0;
    rv_status st = get_int(c, rv_sql_get_application_id, &app, err);
    if (st == RV_OK) st = get_int(c, rv_sql_get_schema, schema, err);
    if (st == RV_OK) st = get_int(c, rv_sql_n_objects, &n_objects, err);
    if (st != RV_OK) return st;
    if (app == 0 && *schema == 0 && n_objects == 0) return RV_OK; /* new */
    if (app != RV_SQL_APPLICATION_ID)
        return rv_fail(err, RV_EFORMAT,
                       "%s: a database of another program: application id 0x%08x, want 0x%08x",
                       c->path, (unsigned)app, (unsigned)RV_SQL_APPLICATION_ID);
    if (*schema > RV_SQL_SCHEMA)
        return rv_fail(err, RV_EUNSUPPORTED,
                       "%s: schema version %lld, want at most %d: a newer ruvllm made it", c->path,
                       (long long)*schema, RV_SQL_SCHEMA);
    if (*schema < 1)
        return rv_fail(err, RV_EFORMAT, "%s: schema version %lld, want 1 .. %d", c->path,
                       (long long)*schema, RV_SQL_SCHEMA);
    return RV_OK;
}

static rv_status inspect_alone(rv_conn *c, int64_t *schema, rv_err *err) {
    rv_status st = rv_conn_exec(c, rv_sql_begin_read, err);
    if (st != RV_OK) return st;
    st = inspect(c, schema, err);
    rv_status end = rv_conn_exec(c, rv_sql_rollback, st == RV_OK ? err : NULL);
    return st == RV_OK ? end : st;
}

static int set_wal(rv_conn *c, char *mode, size_t n) {
    sqlite3_stmt *st = NULL;
    int rc = sqlite3_prepare_v2(c->db, rv_sql_wal, -1, &st, NULL);
    if (rc == SQLITE_OK && (rc = sqlite3_step(st)) == SQLITE_ROW) {
        const unsigned char *t = sqlite3_column_text(st, 0);
        snprintf(mode, n, "%s", t ? (const char *)t : "");
    }
    int rc_end = sqlite3_finalize(st);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? rc_end : rc;
}

/* SQLite does not wait for other openers while it changes the mode, so we do. */
static rv_status turn_wal_on(rv_conn *c, int busy_ms, rv_err *err) {
    const uint64_t until = rv_now_ns() + (uint64_t)busy_ms * 1000000u;
    char mode[16] = "";
    int rc;
    while (((rc = set_wal(c, mode, sizeof mode)) & 0xff) == SQLITE_BUSY && rv_now_ns() < until)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    if (rc != SQLITE_OK) return rv_conn_fail(c, rc, rv_sql_wal, err);
    if (strcmp(mode, "wal") == 0) return RV_OK;
    return rv_fail(err, RV_EUNSUPPORTED,
                   "%s: journal mode %s, want wal: this file system cannot share memory", c->path,
                   mode);
}

static rv_status migrate(rv_conn *c, rv_err *err) {
    rv_status st = rv_conn_exec(c, rv_sql_begin, err);
    if (st != RV_OK) return st;
    int64_t schema = 0; /* again, now that nobody else can change it */
    st = inspect(c, &schema, err);
    if (st == RV_OK && schema < RV_SQL_SCHEMA) {
        for (int64_t i = schema; i < RV_SQL_SCHEMA && st == RV_OK; i++)
            st = rv_conn_exec(c, rv_sql_migrations[i], err);
        if (st == RV_OK) st = rv_conn_exec(c, rv_sql_set_application_id, err);
        if (st == RV_OK) st = rv_conn_exec(c, rv_sql_set_schema, err);
    }
    if (st == RV_OK) st = rv_conn_exec(c, rv_sql_commit, err);
    if (!sqlite3_get_autocommit(c->db)) rv_conn_exec(c, rv_sql_rollback, NULL);
    return st;
}

rv_status rv_conn_open_writer(rv_conn *c, const char *path, int busy_ms, rv_err *err) {
    *c = (rv_conn){.path = path};
    rv_status st = make_file(path, err);
    if (st == RV_OK)
        st = open_db(c, path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, busy_ms, err);
    if (st == RV_OK) sqlite3_db_config(c->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    int64_t schema = 0;
    if (st == RV_OK) st = inspect_alone(c, &schema, err);
    if (st == RV_OK) st = turn_wal_on(c, busy_ms, err);
    if (st == RV_OK && schema < RV_SQL_SCHEMA) st = migrate(c, err);
    if (st == RV_OK) st = rv_conn_exec(c, rv_sql_writer, err);
    sqlite3_stmt *stmt;
    for (int i = 0; i < RV_SQL_N_WRITES && st == RV_OK; i++) /* a missing column shows here */
        st = rv_conn_stmt(c, (rv_sql)i, &stmt, err);
    if (st == RV_OK) sqlite3_db_config(c->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
    if (st != RV_OK) rv_conn_close(c);
    return st;
}

rv_status rv_conn_open_reader(rv_conn *c, const char *path, int busy_ms, rv_err *err) {
    rv_status st = open_db(c, path, SQLITE_OPEN_READONLY, busy_ms, err);
    if (st == RV_OK) st = rv_conn_exec(c, rv_sql_reader, err);
    if (st != RV_OK) rv_conn_close(c);
    return st;
}
