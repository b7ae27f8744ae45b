/* Queries: reading connections, and the rows they give back.
 *
 * A query takes a connection from the store's idle ones or opens one, and puts it back; the
 * writer's is never used.  Rows are copied out whole, so nothing of SQLite outlives the call. */
#include <stdio.h>

#include "store/store.h"

struct rv_rows {
    size_t n, n_cols;
    char **names; /* [n_cols], one block with the texts */
    rv_value *v;  /* [n][n_cols] */
    size_t cap_v; /* in values */
    char *bytes;  /* texts and blobs, each text with a NUL after it */
    size_t n_bytes, cap_bytes;
};

void rv_rows_free(rv_rows **r) {
    if (!*r) return;
    rv_free((*r)->names);
    rv_free((*r)->v);
    rv_free((*r)->bytes);
    rv_free(*r);
    *r = NULL;
}

size_t rv_rows_n(const rv_rows *r) {
    return r->n;
}

size_t rv_rows_n_cols(const rv_rows *r) {
    return r->n_cols;
}

const char *rv_rows_name(const rv_rows *r, size_t i_col) {
    return r->names[i_col];
}

const rv_value *rv_rows_at(const rv_rows *r, size_t i_row, size_t i_col) {
    return &r->v[i_row * r->n_cols + i_col];
}

/* ---- copying out ---- */

static bool copy_names(rv_rows *r, sqlite3_stmt *st) {
    r->n_cols = (size_t)sqlite3_column_count(st);
    size_t bytes = r->n_cols * sizeof *r->names;
    for (size_t i = 0; i < r->n_cols; i++) {
        const char *name = sqlite3_column_name(st, (int)i);
        if (!name) return false;
        bytes += strlen(name) + 1;
    }
    r->names = rv_malloc(bytes);
    if (!r->names) return false;
    char *to = (char *)(r->names + r->n_cols);
    for (size_t i = 0; i < r->n_cols; i++) {
        const char *name = sqlite3_column_name(st, (int)i);
        size_t n = strlen(name) + 1;
        memcpy(to, name, n);
        r->names[i] = to;
        to += n;
    }
    return true;
}

/* Text and blob go to r->bytes, which may still move: until the end v->i is their place in it. */
static bool copy_bytes(rv_rows *r, rv_value *v, const void *p, size_t n) {
    if (!p && n) return false; /* SQLite is out of memory */
    void *bytes = r->bytes;
    if (!rv_grow(&bytes, &r->cap_bytes, r->n_bytes + n + 1, 1)) return false;
    r->bytes = bytes;
    if (n) memcpy(r->bytes + r->n_bytes, p, n);
    r->bytes[r->n_bytes + n] = 0;
    v->i = (int64_t)r->n_bytes;
    v->s.n = n;
    r->n_bytes += n + 1;
    return true;
}

static bool copy_row(rv_rows *r, sqlite3_stmt *st) {
    void *values = r->v;
    if (!rv_grow(&values, &r->cap_v, (r->n + 1) * r->n_cols, sizeof *r->v)) return false;
    r->v = values;
    rv_value *v = &r->v[r->n * r->n_cols];
    for (int i = 0; i < (int)r->n_cols; i++) {
        v[i] = (rv_value){0};
        const void *p;
        switch (sqlite3_column_type(st, i)) {
        case SQLITE_INTEGER:
            v[i].type = RV_VAL_INT;
            v[i].i = sqlite3_column_int64(st, i);
            break;
        case SQLITE_FLOAT:
            v[i].type = RV_VAL_REAL;
            v[i].f = sqlite3_column_double(st, i);
            break;
        case SQLITE_TEXT:
            v[i].type = RV_VAL_TEXT;
            p = sqlite3_column_text(st, i);
            if (!copy_bytes(r, &v[i], p, (size_t)sqlite3_column_bytes(st, i))) return false;
            break;
        case SQLITE_BLOB:
            v[i].type = RV_VAL_BLOB;
            p = sqlite3_column_blob(st, i);
            if (!copy_bytes(r, &v[i], p, (size_t)sqlite3_column_bytes(st, i))) return false;
            break;
        default: break;
        }
    }
    r->n++;
    return true;
}

static void place_bytes(rv_rows *r) {
    for (size_t k = 0; k < r->n * r->n_cols; k++) {
        rv_value *v = &r->v[k];
        if (v->type != RV_VAL_TEXT && v->type != RV_VAL_BLOB) continue;
        v->s.p = r->bytes + v->i;
        v->i = 0;
    }
}

static rv_status run(rv_conn *c, rv_sql sql, const rv_value *args, size_t n, rv_rows **out,
                     rv_err *err) {
    *out = NULL;
    sqlite3_stmt *st;
    rv_status status = rv_conn_stmt(c, sql, &st, err);
    if (status != RV_OK) return status;
    rv_rows *r = rv_calloc(1, sizeof *r);
    bool ok = r != NULL;
    int rc = SQLITE_OK;
    for (size_t i = 0; i < n && rc == SQLITE_OK; i++) rc = rv_conn_bind(st, i, &args[i]);
    if (ok) ok = copy_names(r, st);
    while (ok && (rc == SQLITE_OK || rc == SQLITE_ROW) && (rc = sqlite3_step(st)) == SQLITE_ROW)
        ok = copy_row(r, st);
    if (!ok)
        status = rv_fail(err, RV_ENOMEM, "%s: out of memory for rows", c->path);
    else if (rc != SQLITE_DONE)
        status = rv_conn_fail(c, rc, "query", err);
    sqlite3_reset(st);
    sqlite3_clear_bindings(st); /* they point into the caller's memory */
    if (status != RV_OK) {
        if (r) rv_rows_free(&r);
        return status;
    }
    place_bytes(r);
    *out = r;
    return RV_OK;
}

/* ---- reading connections ---- */

static rv_status take_reader(rv_store *s, rv_conn **out, rv_err *err) {
    pthread_mutex_lock(&s->mu);
    if (s->stop) {
        pthread_mutex_unlock(&s->mu);
        return rv_fail(err, RV_ESTATE, "%s: closed", s->path);
    }
    rv_conn *c = s->idle;
    if (c) {
        s->idle = c->next;
        s->n_idle--;
    }
    s->n_reading++; /* close waits for it */
    pthread_mutex_unlock(&s->mu);
    if (c && rv_conn_moved(c)) { /* a new file stands at the path: read that */
        rv_conn_close(c);
        rv_free(c);
        c = NULL;
    }
    rv_status st = RV_OK;
    if (!c) {
        c = rv_calloc(1, sizeof *c);
        st = c ? rv_conn_open_reader(c, s->path, s->opts.busy_timeout_ms, err)
               : rv_fail(err, RV_ENOMEM, "%s: out of memory for a connection", s->path);
    }
    if (st != RV_OK) {
        rv_free(c);
        c = NULL;
    }
    *out = c;
    return st;
}

static void give_reader_back(rv_store *s, rv_conn *c) { /* c may be NULL */
    pthread_mutex_lock(&s->mu);
    if (c && s->n_idle < RV_STORE_IDLE_READERS) {
        c->next = s->idle;
        s->idle = c;
        s->n_idle++;
        c = NULL;
    }
    pthread_mutex_unlock(&s->mu);
    if (c) {
        rv_conn_close(c);
        rv_free(c);
    }
    pthread_mutex_lock(&s->mu);
    s->n_reading--; /* after the closing above, so that the writer's connection is the last */
    pthread_cond_broadcast(&s->progress);
    pthread_mutex_unlock(&s->mu);
}

/* ---- queries ---- */

/* By the beginning of an id: exactly one entry, or an error that says how many. */
static rv_status get_witness(rv_conn *c, const rv_value *arg, rv_rows **out, rv_err *err) {
    char low[37];
    rv_value prefix = *arg;
    size_t n = prefix.s.n;
    if (n == 0 || n > 36)
        return rv_fail(err, RV_EARG, "witness: id of %zu characters, want 1 .. 36", n);
    for (size_t i = 0; i < n; i++) {
        char ch = arg->s.p[i];
        low[i] = (char)(ch >= 'A' && ch <= 'Z' ? ch - 'A' + 'a' : ch);
    }
    prefix.s.p = low;
    rv_rows *count;
    rv_status st = run(c, RV_SQL_WITNESS_GET_COUNT, &prefix, 1, &count, err);
    if (st != RV_OK) return st;
    long long found = rv_rows_at(count, 0, 0)->i;
    rv_rows_free(&count);
    if (found == 0)
        return rv_fail(err, RV_ENOTFOUND, "witness: no entry with id %.*s", (int)n, low);
    if (found > 1)
        return rv_fail(err, RV_EARG, "witness: id %.*s: %lld entries begin with it, want 1", (int)n,
                       low, found);
    return run(c, RV_SQL_WITNESS_GET, &prefix, 1, out, err);
}

rv_status rv_store_query(rv_store *s, rv_query which, const rv_value *args, size_t n, rv_rows **out,
                         rv_err *err) {
    rv_err_clear(err);
    *out = NULL;
    if ((size_t)which >= RV_COUNT(rv_sql_queries))
        return rv_fail(err, RV_EARG, "store: query %d, want 0 .. %zu", (int)which,
                       RV_COUNT(rv_sql_queries) - 1);
    const rv_sql_call *call = &rv_sql_queries[which];
    rv_status st = rv_store_check(s, err);
    if (st == RV_OK) st = rv_store_check_args(call, args, n, err);
    if (st != RV_OK) return st;
    rv_sql sql = call->sql;
    if (which == RV_QUERY_WITNESS_LIST && args[2].type != RV_VAL_NULL)
        sql = RV_SQL_WITNESS_LIST_SESSION; /* so that the index on sessions is used */
    if (which == RV_QUERY_WITNESS_COUNT && args[2].type != RV_VAL_NULL)
        sql = RV_SQL_WITNESS_COUNT_SESSION;
    rv_conn *c = NULL;
    st = take_reader(s, &c, err);
    if (st == RV_ESTATE) return st; /* closed: nothing was taken */
    if (st == RV_OK)
        st = which == RV_QUERY_WITNESS_GET ? get_witness(c, args, out, err)
                                           : run(c, sql, args, n, out, err);
    give_reader_back(s, c);
    return st;
}

int rv_store_query_id(const char *name) {
    for (size_t i = 0; i < RV_COUNT(rv_sql_queries); i++)
        if (strcmp(rv_sql_queries[i].name, name) == 0) return (int)i;
    return -1;
}
