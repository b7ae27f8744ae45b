/* Sequences that an engine keeps on disk: those of preempted requests, which go when the request
 * comes back or ends, and those of conversations, which the caller names.
 *
 * All of them are kv files (kv/file.c), so a damaged one is found out and computed again.  None
 * waits for the disk: after a loss of power there is nothing to go on with, or a checksum says so.
 *
 * A conversation holds no sequence between its turns; its pages are in the prefix tree.  So parking
 * it is: a sequence that matches its tokens, a writer over that, and in the end both are freed and
 * the tree lets go of what nobody else needs. */
#include <stdio.h>
#include <unistd.h>

#include "engine/engine.h"
#include "rvk.h"

struct rv_spill {
    rv_model *m; /* the engine's reference */
    char *dir, *digest;
    size_t n_digest;
    rv_kv *parked; /* what is being written, or NULL */
    rv_kv_writer *writer;
};

rv_status rv_spill_tag(const rv_model *m, rv_str digest, rv_str identity, char **tag, rv_str *out,
                       rv_err *err) {
    const char *isa[] = {rvk.isa_mul[RV_F32], rvk.isa_mul[RV_Q8_0],
                         rvk.isa_attn,        rvk.isa_act,
                         rvk.isa_norm,        m->net->fast ? "fast" : "exact"};
    size_t n = 4 + digest.n + identity.n;
    for (size_t i = 0; i < RV_COUNT(isa); i++) n += strlen(isa[i]) + 1;
    char *p = *tag = rv_calloc(n, 1);
    if (!p) return rv_fail(err, RV_ENOMEM, "kv file: out of memory");
    *out = (rv_str){p, n};
    for (int i = 0; i < 4; i++) *p++ = (char)(digest.n >> 8 * i);
    if (digest.n) memcpy(p, digest.p, digest.n);
    p += digest.n;
    for (size_t i = 0; i < RV_COUNT(isa); i++, p += strlen(p) + 1)
        memcpy(p, isa[i], strlen(isa[i]));
    if (identity.n) memcpy(p, identity.p, identity.n);
    return RV_OK;
}

rv_status rv_spill_new(rv_spill **out, rv_model *m, const char *dir, rv_str digest, rv_err *err) {
    *out = NULL;
    rv_spill *s = rv_calloc(1, sizeof *s);
    if (s) s->dir = rv_strndup(dir, strlen(dir));
    if (s) s->digest = rv_strndup(digest.p, digest.n);
    if (!s || !s->dir || !s->digest) {
        rv_spill_free(&s);
        return rv_fail(err, RV_ENOMEM, "engine: out of memory");
    }
    s->m = m;
    s->n_digest = digest.n;
    *out = s;
    return RV_OK;
}

static void stop_parking(rv_spill *s) {
    rv_kv_writer_free(&s->writer);
    rv_kv_free(&s->parked);
}

void rv_spill_free(rv_spill **ps) {
    rv_spill *s = *ps;
    *ps = NULL;
    if (!s) return;
    stop_parking(s);
    rv_free(s->dir);
    rv_free(s->digest);
    rv_free(s);
}

static rv_str digest_of(const rv_spill *s) {
    return (rv_str){s->digest, s->n_digest};
}

/* ---- preempted requests ---- */

/* From rv_malloc. */
static rv_status path_of(const rv_spill *s, uint64_t request, char **out, rv_err *err) {
    const size_t n = strlen(s->dir) + 32;
    *out = rv_malloc(n);
    if (!*out) return rv_fail(err, RV_ENOMEM, "kv file: out of memory");
    snprintf(*out, n, "%s/swap-%llu.kv", s->dir, (unsigned long long)request);
    return RV_OK;
}

static rv_status write_to(const rv_spill *s, const rv_kv *kv, const char *path, rv_str identity,
                          rv_kv_writer **out, rv_err *err) {
    char *tag = NULL;
    rv_str t;
    *out = NULL;
    rv_status st = rv_spill_tag(s->m, digest_of(s), identity, &tag, &t, err);
    if (st == RV_OK) st = rv_kv_writer_new(out, kv, path, t, false, err);
    rv_free(tag);
    return st;
}

rv_status rv_spill_out(const rv_spill *s, uint64_t request, const rv_kv *kv, rv_str identity,
                       rv_err *err) {
    char *path;
    rv_kv_writer *w = NULL;
    bool done;
    rv_status st = path_of(s, request, &path, err);
    if (st == RV_OK) st = write_to(s, kv, path, identity, &w, err);
    if (st == RV_OK) st = rv_kv_writer_write(w, UINT64_MAX, &done, err);
    rv_kv_writer_free(&w);
    rv_free(path);
    return st;
}

rv_status rv_spill_in(const rv_spill *s, const char *path, uint64_t request, rv_str identity,
                      rv_kv *kv, const int32_t *tok, size_t n, rv_err *err) {
    char *own = NULL, *tag = NULL;
    rv_str t;
    rv_status st = path ? RV_OK : path_of(s, request, &own, err);
    if (st == RV_OK) st = rv_spill_tag(s->m, digest_of(s), identity, &tag, &t, err);
    if (st == RV_OK) st = rv_kv_load(kv, path ? path : own, t, tok, n + 1, err);
    rv_free(tag);
    rv_free(own);
    return st;
}

void rv_spill_drop(const rv_spill *s, uint64_t request) {
    char *path;
    if (path_of(s, request, &path, NULL) != RV_OK) return; /* the next engine there removes it */
    unlink(path);
    rv_free(path);
}

/* ---- conversations ---- */

rv_status rv_spill_park(rv_spill *s, const char *path, const rv_kv_scope *scope, const int32_t *tok,
                        size_t n, size_t *n_kept, uint64_t *n_bytes, rv_err *err) {
    *n_kept = 0;
    *n_bytes = 0;
    if (s->parked) return rv_fail(err, RV_ESTATE, "engine: parks another sequence");
    rv_status st = rv_kv_new(&s->parked, s->m->kv, scope, err);
    if (st != RV_OK) return st;
    const size_t len = rv_kv_match(s->parked, tok, n);
    const rv_str identity = {scope->identity, scope->n};
    if (len) st = write_to(s, s->parked, path, identity, &s->writer, err);
    if (len && st == RV_OK) {
        *n_kept = len;
        *n_bytes = rv_kv_writer_bytes(s->writer);
    } else {
        stop_parking(s);
    }
    return st;
}

rv_status rv_spill_park_more(rv_spill *s, uint64_t n_bytes, bool *done, rv_err *err) {
    *done = true;
    if (!s->writer) return RV_OK;
    const rv_status st = rv_kv_writer_write(s->writer, n_bytes, done, err);
    if (st != RV_OK || *done) stop_parking(s);
    return st;
}
