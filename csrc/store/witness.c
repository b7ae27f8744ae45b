/* Witness entries as rows: the table of fields, ids, and the public calls that queue rows.
 *
 * One table names every field, its type and its place in rv_witness; the row's values, the
 * binding's dictionary and the tests all follow it, so that a new column is one line here and one
 * word in sql.c. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/random.h>
#endif

#include "store/store.h"

#define FIELD(name, type) {#name, RV_FIELD_##type, offsetof(rv_witness, name)}

static const rv_witness_field FIELDS[] = {
    FIELD(id, TEXT),
    FIELD(request_id, TEXT),
    FIELD(session_id, TEXT),
    FIELD(ts_ms, INT),
    FIELD(kind, TEXT),
    FIELD(model_used, TEXT),
    FIELD(model_name, TEXT),
    FIELD(model_digest, TEXT),
    FIELD(model_path, TEXT),
    FIELD(adapter, TEXT),
    FIELD(routing, JSON),
    FIELD(propensity, REAL),
    FIELD(policy_version, TEXT),
    FIELD(query_embedding, BLOB),
    FIELD(response_embedding, BLOB),
    FIELD(quality_score, REAL),
    FIELD(quality_metrics, JSON),
    FIELD(embedding_ms, REAL),
    FIELD(retrieval_ms, REAL),
    FIELD(routing_ms, REAL),
    FIELD(attention_ms, REAL),
    FIELD(generation_ms, REAL),
    FIELD(total_ms, REAL),
    FIELD(prefill_ms, REAL),
    FIELD(queue_ms, REAL),
    FIELD(context_doc_ids, JSON),
    FIELD(error, JSON),
    FIELD(tags, JSON),
    FIELD(prompt_text, TEXT),
    FIELD(prompt_ids, BLOB),
    FIELD(output_text, TEXT),
    FIELD(output_ids, BLOB),
    FIELD(seed, U64),
    FIELD(params, JSON),
    FIELD(finish_reason, TEXT),
    FIELD(n_prompt, INT),
    FIELD(n_output, INT),
    FIELD(engine, JSON),
    FIELD(user_id, TEXT),
};

const rv_witness_field *rv_witness_fields(size_t *n) {
    *n = RV_COUNT(FIELDS);
    return FIELDS;
}

void rv_witness_init(rv_witness *w) {
    memset(w, 0, sizeof *w);
    for (size_t i = 0; i < RV_COUNT(FIELDS); i++) {
        char *p = (char *)w + FIELDS[i].offset;
        double null_real = NAN;
        int64_t null_int = INT64_MIN;
        if (FIELDS[i].type == RV_FIELD_REAL) memcpy(p, &null_real, sizeof null_real);
        if (FIELDS[i].type == RV_FIELD_INT) memcpy(p, &null_int, sizeof null_int);
    }
    w->kind = (rv_str){"generate", 8};
}

/* ---- ids ---- */

static rv_status random_bytes(rv_id_source *g, void *out, size_t n, rv_err *err) {
    if (g->n_random < n) {
        if (getentropy(g->random, sizeof g->random) != 0)
            return rv_fail(err, RV_EIO, "store: no random bytes: %s", strerror(errno));
        g->n_random = sizeof g->random;
    }
    memcpy(out, g->random + g->n_random - n, n);
    g->n_random -= n;
    return RV_OK;
}

/* RFC 9562, version 7, its method 1: 48 bits of milliseconds, 12 bits of counter, 62 random bits.
 * The clock may stand still or step back; the ids go on. */
static rv_status next_id(rv_id_source *g, uint8_t id[16], rv_err *err) {
    uint8_t r[10] = {0};
    rv_status st = random_bytes(g, r, sizeof r, err);
    if (st != RV_OK) return st;
    uint64_t now = (uint64_t)rv_utc_ms();
    if (now > g->last_ms || g->counter == 0xfff) {
        g->last_ms = RV_MAX(now, g->last_ms + 1);
        g->counter = (r[8] << 8 | r[9]) & 0x7ff; /* leaves room to count up */
    } else {
        g->counter++;
    }
    for (int i = 0; i < 6; i++) id[i] = (uint8_t)(g->last_ms >> (40 - 8 * i));
    id[6] = (uint8_t)(0x70 | g->counter >> 8);
    id[7] = (uint8_t)g->counter;
    memcpy(id + 8, r, 8);
    id[8] = (uint8_t)(0x80 | (id[8] & 0x3f));
    return RV_OK;
}

static rv_status make_id(rv_store *s, char out[37], rv_err *err) {
    uint8_t id[16];
    pthread_mutex_lock(&s->ids.mu);
    rv_status st = next_id(&s->ids, id, err);
    pthread_mutex_unlock(&s->ids.mu);
    if (st != RV_OK) return st;
    char *p = out;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *p++ = '-';
        *p++ = "0123456789abcdef"[id[i] >> 4];
        *p++ = "0123456789abcdef"[id[i] & 15];
    }
    *p = 0;
    return RV_OK;
}

rv_status rv_store_new_id(rv_store *s, char out[37], rv_err *err) {
    rv_err_clear(err);
    rv_status st = rv_store_check(s, err);
    return st == RV_OK ? make_id(s, out, err) : st;
}

static bool is_id(rv_str s) {
    if (s.n != 36) return false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? c != '-' : !((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
    }
    return true;
}

/* ---- entries ---- */

static bool is(rv_str s, const char *word) {
    return s.n == strlen(word) && memcmp(s.p, word, s.n) == 0;
}

static rv_status check_unit(double x, const char *name, rv_err *err) {
    if (isnan(x) || (x >= 0 && x <= 1)) return RV_OK;
    return rv_fail(err, RV_EARG, "witness: %s %g, want 0 .. 1", name, x);
}

static rv_status check_entry(const rv_witness *w, rv_err *err) {
    if (!is(w->kind, "generate") && !is(w->kind, "chat") && !is(w->kind, "embed"))
        return rv_fail(err, RV_EARG, "witness: kind \"%.*s\", want generate, chat or embed",
                       (int)RV_MIN(w->kind.n, (size_t)40), w->kind.p ? w->kind.p : "");
    if (w->id.p && !is_id(w->id))
        return rv_fail(err, RV_EARG, "witness: id \"%.*s\", want a UUID in lower case",
                       (int)RV_MIN(w->id.n, (size_t)40), w->id.p);
    rv_status st = check_unit(w->propensity, "propensity", err);
    return st == RV_OK ? check_unit(w->quality_score, "quality_score", err) : st;
}

static rv_value value_of(const rv_witness *w, const rv_witness_field *f) {
    const char *p = (const char *)w + f->offset;
    rv_value v = {0};
    rv_opt_u64 u;
    switch (f->type) {
    case RV_FIELD_TEXT:
    case RV_FIELD_JSON:
    case RV_FIELD_BLOB:
        memcpy(&v.s, p, sizeof v.s);
        if (v.s.p) v.type = f->type == RV_FIELD_BLOB ? RV_VAL_BLOB : RV_VAL_TEXT;
        break;
    case RV_FIELD_REAL:
        memcpy(&v.f, p, sizeof v.f);
        if (!isnan(v.f)) v.type = RV_VAL_REAL;
        break;
    case RV_FIELD_INT:
        memcpy(&v.i, p, sizeof v.i);
        if (v.i != INT64_MIN) v.type = RV_VAL_INT;
        break;
    case RV_FIELD_U64:
        memcpy(&u, p, sizeof u);
        if (u.set) v.type = RV_VAL_INT;
        memcpy(&v.i, &u.v, sizeof v.i);
        break;
    }
    return v;
}

rv_status rv_store_witness_put(rv_store *s, const rv_witness *w, bool critical, char id_out[37],
                               rv_err *err) {
    rv_err_clear(err);
    rv_status st = rv_store_check(s, err);
    if (st == RV_OK) st = check_entry(w, err);
    if (st != RV_OK) return st;
    rv_value v[RV_COUNT(FIELDS)];
    for (size_t i = 0; i < RV_COUNT(FIELDS); i++) v[i] = value_of(w, &FIELDS[i]);
    char id[37];
    if (!w->id.p) {
        st = make_id(s, id, err);
        if (st != RV_OK) return st;
        v[0] = (rv_value){.type = RV_VAL_TEXT, .s = {id, 36}};
    } else {
        memcpy(id, w->id.p, 36);
        id[36] = 0;
    }
    if (w->ts_ms == INT64_MIN) v[3] = (rv_value){.type = RV_VAL_INT, .i = rv_utc_ms()};
    st = rv_writer_put(s, RV_SQL_WITNESS_PUT, v, RV_COUNT(FIELDS), critical, err);
    if (st == RV_OK && id_out) memcpy(id_out, id, sizeof id);
    return st;
}

/* ---- other rows ---- */

static const char *type_name(char c) {
    switch (c) {
    case 'i': return "an integer";
    case 'I': return "an integer or null";
    case 't': return "text";
    default: return "text or null";
    }
}

rv_status rv_store_check_args(const rv_sql_call *call, const rv_value *v, size_t n, rv_err *err) {
    if (n != strlen(call->args))
        return rv_fail(err, RV_EARG, "store: %s: %zu arguments, want %zu", call->name, n,
                       strlen(call->args));
    for (size_t i = 0; i < n; i++) {
        char c = call->args[i];
        bool may_be_null = c == 'I' || c == 'T';
        rv_value_type want = c == 'i' || c == 'I' ? RV_VAL_INT : RV_VAL_TEXT;
        if (v[i].type != want && !(may_be_null && v[i].type == RV_VAL_NULL))
            return rv_fail(err, RV_EARG, "store: %s: argument %zu has type %d, want %s", call->name,
                           i + 1, (int)v[i].type, type_name(c));
    }
    return RV_OK;
}

rv_status rv_store_write(rv_store *s, rv_write which, const rv_value *args, size_t n, bool critical,
                         rv_err *err) {
    rv_err_clear(err);
    if ((size_t)which >= RV_COUNT(rv_sql_writes))
        return rv_fail(err, RV_EARG, "store: write %d, want 0 .. %zu", (int)which,
                       RV_COUNT(rv_sql_writes) - 1);
    const rv_sql_call *call = &rv_sql_writes[which];
    rv_status st = rv_store_check(s, err);
    if (st == RV_OK) st = rv_store_check_args(call, args, n, err);
    return st == RV_OK ? rv_writer_put(s, call->sql, args, n, critical, err) : st;
}

int rv_store_write_id(const char *name) {
    for (size_t i = 0; i < RV_COUNT(rv_sql_writes); i++)
        if (strcmp(rv_sql_writes[i].name, name) == 0) return (int)i;
    return -1;
}
