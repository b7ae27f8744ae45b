/* Sequences in files: what the cache holds of one, written whole or not at all, and taken back only
 * when every byte of it is as it was written.
 *
 *   head      fixed fields, then tag, format, tokens, what each entry has, checksums of the rest
 *   pages     in the order of entries: HOT, then COLD           each on a multiple of ALIGN
 *   states    behind the last position; behind the last snapshot, if there is one
 *
 * A file is a cache: whatever is wrong with it, the sequence can be computed again from its tokens.
 * Numbers are little-endian. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kv/impl.h"
#include "rvk.h"

enum { HOT = RV_KEEP_HOT, COLD = RV_KEEP_COLD, STATE = RV_KEEP_STATE };
enum { VERSION = 1, FIXED = 64, ALIGN = 4096, MAX_HEAD = 1 << 28 };
static const char MAGIC[8] = {'R', 'V', 'K', 'V', 'P', 'A', 'G', 'E'};

/* FIXED bytes at the start of a file. */
typedef struct fixed {
    uint64_t head_bytes; /* all that stands before the pages, without what ALIGN adds */
    uint64_t file_bytes;
    uint64_t n_tag, n_format, n_tokens;
    uint64_t snapshot; /* position, or 0 */
    uint32_t head_crc; /* of the head with this field 0 */
} fixed;

static uint64_t aligned(uint64_t n) {
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static void put32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static void put64(uint8_t *p, uint64_t v) {
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

static void put_fixed(uint8_t *p, const fixed *f) {
    memcpy(p, MAGIC, sizeof MAGIC);
    put32(p + 8, VERSION);
    put32(p + 12, f->head_crc);
    const uint64_t v[] = {f->head_bytes, f->file_bytes, f->n_tag,
                          f->n_format,   f->n_tokens,   f->snapshot};
    for (size_t i = 0; i < RV_COUNT(v); i++) put64(p + 16 + 8 * i, v[i]);
}

/* ---- the format, as bytes that are compared whole ---- */

static size_t format_bytes(const rv_kv_cache *c) {
    return 4 * (9 + c->f.n_layers);
}

static void put_format(uint8_t *p, const rv_kv_cache *c, size_t tail) {
    const rv_kv_format *f = &c->f;
    const uint64_t v[] = {RV_PAGE_TOKENS,
                          (uint64_t)c->type[HOT],
                          (uint64_t)c->type[COLD],
                          f->rotate,
                          tail,
                          f->batch,
                          f->head_dim,
                          f->state_bytes,
                          f->n_layers};
    for (size_t i = 0; i < RV_COUNT(v); i++, p += 4) put32(p, (uint32_t)v[i]);
    for (size_t i = 0; i < f->n_layers; i++, p += 4) put32(p, (uint32_t)f->heads[i]);
}

/* ---- what of a sequence is in a file ---- */

/* Sections behind the head, in order. */
typedef struct section {
    const void *at; /* when saving */
    size_t bytes;
} section;

/* Pages of entry i that matter at the present length. */
static bool is_kept(const rv_kv *kv, size_t i, int k) {
    return kv->e[i].page[k] && (k == HOT ? i >= kv->hot_lo : i < kv->n_cold);
}

static size_t n_entries(const rv_kv *kv) {
    return rv_kv_pages_of(kv->len);
}

static size_t list_sections(const rv_kv *kv, section *out, uint8_t *has) {
    const rv_kv_cache *c = kv->c;
    size_t n = 0;
    for (size_t i = 0; i < n_entries(kv); i++) {
        has[i] = 0;
        for (int k = HOT; k <= COLD; k++) {
            if (!c->page_bytes[k] || !is_kept(kv, i, k)) continue;
            has[i] |= (uint8_t)(1 << k);
            out[n++] = (section){kv->e[i].at[k], c->page_bytes[k]};
        }
    }
    if (kv->state) out[n++] = (section){kv->state, c->f.state_bytes};
    return n;
}

/* ---- saving ---- */

struct rv_kv_writer {
    const rv_kv *kv;
    char *path, *temp; /* temp: its name until it is done */
    int fd;
    bool durable;
    section *s; /* [n]; i: the next to be written, at byte at */
    size_t n, i;
    uint64_t at;
    uint8_t *head, *crc; /* crc: in the head, of section i */
    fixed f;
};

static rv_status write_all(const rv_kv_writer *w, const void *p, size_t n, uint64_t at,
                           rv_err *err) {
    for (const char *from = p; n;) {
        const ssize_t done = pwrite(w->fd, from, RV_MIN(n, (size_t)1 << 30), (off_t)at);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return rv_fail(err, RV_EIO, "%s: %s", w->path, strerror(errno));
        from += done;
        at += (uint64_t)done;
        n -= (size_t)done;
    }
    return RV_OK;
}

/* The sections, and the head as far as it is known before they are read. */
static rv_status make_head(rv_kv_writer *w, rv_str tag, rv_err *err) {
    const rv_kv *kv = w->kv;
    const size_t n_has = n_entries(kv), n_most = 2 * n_has + 2; /* pages, two states */
    uint8_t *has = rv_calloc(n_has, 1), *p;
    w->s = rv_calloc(n_most, sizeof *w->s);
    w->f = (fixed){.n_tag = tag.n, .n_format = format_bytes(kv->c), .n_tokens = kv->len};
    if (has && w->s) w->n = list_sections(kv, w->s, has);
    if (has && w->s && kv->rolling && kv->rolling < kv->len) {
        const rv_page page = kv->e[kv->rolling / RV_PAGE_TOKENS - 1].page[STATE];
        w->s[w->n++] = (section){rv_kv_page_pin(kv->c, page), kv->c->f.state_bytes};
        rv_kv_page_unpin(kv->c, page); /* the sequence has a reference of its own */
        w->f.snapshot = kv->rolling;
    }
    w->f.head_bytes = FIXED + w->f.n_tag + w->f.n_format + 4 * kv->len + n_has + 4 * w->n;
    w->f.file_bytes = w->at = aligned(w->f.head_bytes);
    for (size_t i = 0; i < w->n; i++) w->f.file_bytes += aligned(w->s[i].bytes);
    w->head = p = rv_calloc(1, (size_t)w->f.head_bytes);
    if (has && w->s && p) {
        put_fixed(p, &w->f);
        p += FIXED;
        if (tag.n) memcpy(p, tag.p, tag.n);
        p += tag.n;
        put_format(p, kv->c, kv->tail);
        p += w->f.n_format;
        for (size_t i = 0; i < kv->len; i++, p += 4)
            put32(p, (uint32_t)kv->e[i / RV_PAGE_TOKENS].tok[i % RV_PAGE_TOKENS]);
        memcpy(p, has, n_has);
        w->crc = p + n_has;
    }
    rv_free(has);
    return w->crc ? RV_OK : rv_fail(err, RV_ENOMEM, "kv file: out of memory");
}

rv_status rv_kv_writer_new(rv_kv_writer **out, const rv_kv *kv, const char *path, rv_str tag,
                           bool durable, rv_err *err) {
    *out = NULL;
    if (kv->len == 0) return rv_fail(err, RV_EARG, "kv file: the sequence is empty");
    rv_kv_writer *w = rv_calloc(1, sizeof *w);
    if (!w) return rv_fail(err, RV_ENOMEM, "kv file: out of memory");
    const size_t len = strlen(path);
    *w = (rv_kv_writer){.kv = kv, .fd = -1, .durable = durable};
    w->path = rv_strndup(path, len);
    char *temp = rv_malloc(len + 8);
    rv_status st = w->path && temp ? RV_OK : rv_fail(err, RV_ENOMEM, "kv file: out of memory");
    if (st == RV_OK) st = make_head(w, tag, err);
    if (st == RV_OK) {
        memcpy(temp, path, len);
        memcpy(temp + len, ".XXXXXX", 8);
        w->fd = mkstemp(temp);
        if (w->fd < 0) st = rv_fail(err, RV_EIO, "%s: %s", path, strerror(errno));
    }
    if (st == RV_OK) {
        w->temp = temp;
        *out = w;
        return RV_OK;
    }
    rv_free(temp);
    rv_kv_writer_free(&w);
    return st;
}

void rv_kv_writer_free(rv_kv_writer **pw) {
    rv_kv_writer *w = *pw;
    *pw = NULL;
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    if (w->temp) unlink(w->temp);
    rv_free(w->path);
    rv_free(w->temp);
    rv_free(w->s);
    rv_free(w->head);
    rv_free(w);
}

uint64_t rv_kv_writer_bytes(const rv_kv_writer *w) {
    return w->f.file_bytes;
}

static rv_status sync_folder(const char *path, rv_err *err) {
    const char *slash = strrchr(path, '/');
    char *dir = slash ? rv_strndup(path, (size_t)RV_MAX(slash - path, 1)) : rv_strndup(".", 1);
    if (!dir) return rv_fail(err, RV_ENOMEM, "kv file: out of memory");
    const int fd = open(dir, O_RDONLY | O_CLOEXEC);
    const bool ok = fd >= 0 && fsync(fd) == 0;
    const int why = errno;
    if (fd >= 0) close(fd);
    rv_free(dir);
    return ok ? RV_OK : rv_fail(err, RV_EIO, "%s: its folder: %s", path, strerror(why));
}

/* The head, to the disk, and then under its name. */
static rv_status finish(rv_kv_writer *w, rv_err *err) {
    put32(w->head + 12, rv_crc32c(0, w->head, (size_t)w->f.head_bytes));
    const rv_status st = write_all(w, w->head, (size_t)w->f.head_bytes, 0, err);
    if (st != RV_OK) return st;
    bool ok = ftruncate(w->fd, (off_t)w->f.file_bytes) == 0 && (!w->durable || fsync(w->fd) == 0);
    const int fd = w->fd;
    w->fd = -1;
    if (!ok) { /* errno says why */
        const int why = errno;
        close(fd);
        errno = why;
    } else {
        ok = close(fd) == 0 && rename(w->temp, w->path) == 0;
    }
    if (!ok) return rv_fail(err, RV_EIO, "%s: %s", w->path, strerror(errno));
    rv_free(w->temp);
    w->temp = NULL;
    return w->durable ? sync_folder(w->path, err) : RV_OK;
}

rv_status rv_kv_writer_write(rv_kv_writer *w, uint64_t n, bool *done, rv_err *err) {
    *done = false;
    for (uint64_t from = w->at; w->i < w->n && w->at - from < n; w->i++, w->crc += 4) {
        const section *s = &w->s[w->i];
        put32(w->crc, rv_crc32c(0, s->at, s->bytes));
        const rv_status st = write_all(w, s->at, s->bytes, w->at, err);
        if (st != RV_OK) return st;
        w->at += aligned(s->bytes);
    }
    if (w->i < w->n) return RV_OK;
    const rv_status st = finish(w, err);
    *done = st == RV_OK;
    return st;
}

rv_status rv_kv_save(const rv_kv *kv, const char *path, rv_str tag, rv_err *err) {
    rv_kv_writer *w;
    bool done;
    rv_status st = rv_kv_writer_new(&w, kv, path, tag, true, err);
    if (st == RV_OK) st = rv_kv_writer_write(w, UINT64_MAX, &done, err);
    rv_kv_writer_free(&w);
    return st;
}

/* ---- loading ---- */

typedef struct file {
    int fd;
    const char *path;
    uint64_t bytes;
    fixed f;
    uint8_t *head; /* from FIXED on */
    const uint8_t *tag, *format, *tok, *has, *crc;
    size_t n_entries;
} file;

static rv_status damaged(const file *f, rv_err *err, const char *what) {
    return rv_fail(err, RV_EFORMAT, "%s: %s", f->path, what);
}

static rv_status read_all(const file *f, void *p, size_t n, uint64_t at, rv_err *err) {
    for (char *to = p; n;) {
        const ssize_t done = pread(f->fd, to, RV_MIN(n, (size_t)1 << 30), (off_t)at);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return rv_fail(err, RV_EIO, "%s: %s", f->path, strerror(errno));
        if (done == 0) return damaged(f, err, "ends too early");
        to += done;
        at += (uint64_t)done;
        n -= (size_t)done;
    }
    return RV_OK;
}

static rv_status read_fixed(file *f, uint8_t raw[FIXED], rv_err *err) {
    rv_status st = f->bytes < FIXED ? damaged(f, err, "is shorter than a head")
                                    : read_all(f, raw, FIXED, 0, err);
    if (st != RV_OK) return st;
    if (memcmp(raw, MAGIC, sizeof MAGIC) != 0) return damaged(f, err, "is not a kv file");
    if (rv_le32(raw + 8) != VERSION)
        return rv_fail(err, RV_EUNSUPPORTED, "%s: has version %u, want %d", f->path,
                       rv_le32(raw + 8), VERSION);
    f->f = (fixed){.head_crc = rv_le32(raw + 12),
                   .head_bytes = rv_le64(raw + 16),
                   .file_bytes = rv_le64(raw + 24),
                   .n_tag = rv_le64(raw + 32),
                   .n_format = rv_le64(raw + 40),
                   .n_tokens = rv_le64(raw + 48),
                   .snapshot = rv_le64(raw + 56)};
    if (f->f.file_bytes != f->bytes) return damaged(f, err, "has not the length it was written in");
    if (f->f.head_bytes < FIXED || f->f.head_bytes > RV_MIN(f->bytes, (uint64_t)MAX_HEAD))
        return damaged(f, err, "has a head of impossible length");
    put32(raw + 12, 0);
    return RV_OK;
}

/* The fields of the head; all of it has been read and its checksum is right, so this only guards
 * against files that somebody made. */
static rv_status split_head(file *f, rv_err *err) {
    rv_cursor c;
    rv_cur_init(&c, f->head, (size_t)f->f.head_bytes - FIXED);
    f->tag = rv_cur_bytes(&c, f->f.n_tag, "tag");
    f->format = rv_cur_bytes(&c, f->f.n_format, "format");
    if (f->f.n_tokens == 0 || f->f.n_tokens > rv_cur_left(&c) / 4)
        return damaged(f, err, "has an impossible number of tokens");
    f->tok = rv_cur_bytes(&c, 4 * f->f.n_tokens, "tokens");
    f->n_entries = rv_kv_pages_of((size_t)f->f.n_tokens);
    f->has = rv_cur_bytes(&c, f->n_entries, "entries");
    f->crc = c.p + c.off;
    if (c.err.code != RV_OK) return damaged(f, err, c.err.msg);
    return RV_OK;
}

static rv_status read_head(file *f, rv_err *err) {
    uint8_t raw[FIXED];
    rv_status st = read_fixed(f, raw, err);
    if (st != RV_OK) return st;
    const size_t n = (size_t)f->f.head_bytes - FIXED;
    f->head = rv_malloc(n + 1);
    if (!f->head) return rv_fail(err, RV_ENOMEM, "kv file: out of memory");
    st = read_all(f, f->head, n, FIXED, err);
    if (st != RV_OK) return st;
    if (rv_crc32c(rv_crc32c(0, raw, FIXED), f->head, n) != f->f.head_crc)
        return damaged(f, err, "has a damaged head");
    return split_head(f, err);
}

/* Whether it is of this cache and tag, and has the pages that a sequence of its length has. */
static rv_status check_head(const file *f, const rv_kv *kv, rv_str tag, rv_err *err) {
    const rv_kv_cache *c = kv->c;
    const size_t n = format_bytes(c);
    uint8_t *format = rv_malloc(n);
    if (!format) return rv_fail(err, RV_ENOMEM, "kv file: out of memory");
    put_format(format, c, kv->tail);
    const bool same = f->f.n_format == n && memcmp(format, f->format, n) == 0;
    rv_free(format);
    if (!same)
        return rv_fail(err, RV_EUNSUPPORTED, "%s: was written in another kv format", f->path);
    if (f->f.n_tag != tag.n || (tag.n && memcmp(f->tag, tag.p, tag.n) != 0))
        return rv_fail(err, RV_EUNSUPPORTED, "%s: belongs to another model, adapter or user",
                       f->path);
    const size_t len = (size_t)f->f.n_tokens,
                 m = rv_kv_bound(c, kv->tail, len + 1) / RV_PAGE_TOKENS;
    uint64_t bytes = aligned(f->f.head_bytes), n_crc = 0;
    for (size_t i = 0; i < f->n_entries; i++) {
        if (f->has[i] & ~3 || (c->page_bytes[HOT] && i >= m && !(f->has[i] & 1 << HOT)) ||
            (i < m && !(f->has[i] & 1 << COLD)))
            return damaged(f, err, "lacks pages");
        for (int k = HOT; k <= COLD; k++) {
            if (!(f->has[i] & 1 << k)) continue;
            if (!c->page_bytes[k]) return damaged(f, err, "has pages that its format has not");
            bytes += aligned(c->page_bytes[k]);
            n_crc++;
        }
    }
    if (f->f.snapshot &&
        (!c->f.state_bytes || f->f.snapshot >= f->f.n_tokens || f->f.snapshot % RV_PAGE_TOKENS))
        return damaged(f, err, "has a snapshot at an impossible place");
    const uint64_t states = c->f.state_bytes ? 1 + (f->f.snapshot != 0) : 0;
    bytes += states * aligned(c->f.state_bytes);
    n_crc += states;
    const uint64_t left = f->f.head_bytes - FIXED - (uint64_t)(f->crc - f->head);
    if (bytes != f->bytes || left != 4 * n_crc)
        return damaged(f, err, "has not the pages that its head names");
    return RV_OK;
}

/* Read the next section into p. */
static rv_status take_section(file *f, void *p, size_t n, uint64_t *at, rv_err *err) {
    rv_status st = read_all(f, p, n, *at, err);
    if (st == RV_OK && rv_crc32c(0, p, n) != rv_le32(f->crc))
        st = rv_fail(err, RV_EFORMAT, "%s: is damaged in the %zu bytes from %llu on", f->path, n,
                     (unsigned long long)*at);
    f->crc += 4;
    *at += aligned(n);
    return st;
}

/* Where the sequence will have a snapshot of its state: that of the file, or the last position if a
 * page ends there, as when it grew to there by itself; 0: nowhere. */
static size_t snapshot_at(const rv_kv_cache *c, const file *f) {
    if (f->f.snapshot || !c->f.state_bytes) return (size_t)f->f.snapshot;
    return f->f.n_tokens % RV_PAGE_TOKENS ? 0 : (size_t)f->f.n_tokens;
}

static rv_kv_need pages_of(const rv_kv_cache *c, const file *f) {
    rv_kv_need need = {0};
    for (size_t i = 0; i < f->n_entries; i++)
        for (int k = HOT; k <= COLD; k++) need.n[k] += f->has[i] >> k & 1;
    need.n[STATE] = snapshot_at(c, f) != 0;
    return need;
}

/* Pages for all of it, which nobody else can see yet. */
static rv_status take_pages(rv_kv *kv, const file *f, size_t need[RV_PAGE_CLASSES], rv_err *err) {
    rv_kv_cache *c = kv->c;
    const size_t snapshot = snapshot_at(c, f);
    rv_pages_stats s;
    bool ok = rv_pages_fits(c->pages, need);
    for (size_t i = 0; ok && i < f->n_entries; i++)
        for (int k = HOT; ok && k <= COLD; k++)
            if (f->has[i] >> k & 1) ok = (kv->e[i].page[k] = rv_kv_take(c, k, need)) != 0;
    if (ok && snapshot)
        ok = (kv->e[snapshot / RV_PAGE_TOKENS - 1].page[STATE] = rv_kv_take(c, STATE, need)) != 0;
    rv_pages_get_stats(c->pages, &s);
    if (ok) return RV_OK;
    return rv_fail(err, RV_EFULL, "%s: no room for its %zu positions, %llu of %llu bytes are held",
                   f->path, (size_t)f->f.n_tokens, (unsigned long long)s.held_bytes,
                   (unsigned long long)s.budget_bytes);
}

static void drop_pages(rv_kv *kv, size_t n) {
    for (size_t i = n; i-- > 0;) {
        for (int k = 0; k < RV_KEEP_N; k++) rv_kv_let_go(kv->c, kv->e[i].page[k]);
        memset(&kv->e[i], 0, sizeof kv->e[i]);
    }
}

/* Contents into the pages; state gets the recurrent state. */
static rv_status read_pages(rv_kv *kv, file *f, float *state, rv_err *err) {
    rv_kv_cache *c = kv->c;
    uint64_t at = aligned(f->f.head_bytes);
    rv_status st = RV_OK;
    for (size_t i = 0; st == RV_OK && i < f->n_entries; i++) {
        rv_kv_entry *e = &kv->e[i];
        for (int k = HOT; st == RV_OK && k <= COLD; k++) {
            if (!(f->has[i] >> k & 1)) continue;
            e->at[k] = rv_pages_at(c->pages, e->page[k]);
            st = take_section(f, e->at[k], c->page_bytes[k], &at, err);
        }
    }
    if (st == RV_OK && state) st = take_section(f, state, c->f.state_bytes, &at, err);
    const size_t snapshot = snapshot_at(c, f);
    if (st != RV_OK || !snapshot) return st;
    void *to = rv_pages_at(c->pages, kv->e[snapshot / RV_PAGE_TOKENS - 1].page[STATE]);
    if (f->f.snapshot) return take_section(f, to, c->f.state_bytes, &at, err);
    memcpy(to, state, c->f.state_bytes);
    return RV_OK;
}

/* The sequence has the pages: its counts, its tokens, and its place in the tree. */
static void settle(rv_kv *kv, const file *f) {
    const size_t n = f->n_entries;
    kv->len = (size_t)f->f.n_tokens;
    kv->n = n;
    for (size_t i = 0; i < kv->len; i++)
        kv->e[i / RV_PAGE_TOKENS].tok[i % RV_PAGE_TOKENS] = (int32_t)rv_le32(f->tok + 4 * i);
    kv->hot_lo = n;
    while (kv->hot_lo && (f->has[kv->hot_lo - 1] & 1 << HOT)) kv->hot_lo--;
    for (kv->n_cold = 0; kv->n_cold < n && (f->has[kv->n_cold] & 1 << COLD);) kv->n_cold++;
    if (!kv->c->page_bytes[HOT]) kv->hot_lo = 0;
    kv->rolling = snapshot_at(kv->c, f);
    rv_kv_publish(kv);
}

static rv_status load(rv_kv *kv, file *f, rv_str tag, rv_err *err) {
    rv_kv_cache *c = kv->c;
    rv_status st = read_head(f, err);
    if (st == RV_OK) st = check_head(f, kv, tag, err);
    if (st != RV_OK) return st;
    void *e = kv->e;
    float *state = c->f.state_bytes ? rv_alloc_aligned(c->f.state_bytes) : NULL;
    const bool ok = rv_grow(&e, &kv->cap, f->n_entries, sizeof *kv->e);
    kv->e = e;
    if (!ok || (c->f.state_bytes && !state)) {
        rv_free(state);
        return rv_fail(err, RV_ENOMEM, "kv file: out of memory");
    }
    memset(kv->e, 0, f->n_entries * sizeof *kv->e);
    rv_kv_need need = pages_of(kv->c, f);
    rv_kv_cache_fits(c, &need); /* where it does not, others of the budget make room */
    pthread_mutex_lock(&c->lock);
    st = take_pages(kv, f, need.n, err);
    pthread_mutex_unlock(&c->lock);
    if (st == RV_OK) st = read_pages(kv, f, state, err);
    pthread_mutex_lock(&c->lock);
    if (st == RV_OK)
        settle(kv, f);
    else
        drop_pages(kv, f->n_entries);
    pthread_mutex_unlock(&c->lock);
    if (st == RV_OK && state) memcpy(kv->state, state, c->f.state_bytes);
    rv_free(state);
    return st;
}

rv_status rv_kv_load(rv_kv *kv, const char *path, rv_str tag, const int32_t *tok, size_t n,
                     rv_err *err) {
    if (kv->len || !n) return rv_fail(err, RV_ESTATE, "kv file: want an empty sequence and tokens");
    rv_kv_truncate(kv, 0, NULL); /* of what was reserved */
    file f = {.fd = open(path, O_RDONLY | O_CLOEXEC), .path = path};
    if (f.fd < 0)
        return rv_fail(err, errno == ENOENT ? RV_ENOTFOUND : RV_EIO, "%s: %s", path,
                       strerror(errno));
    struct stat about;
    rv_status st = fstat(f.fd, &about) == 0 && S_ISREG(about.st_mode)
                       ? RV_OK
                       : rv_fail(err, RV_EIO, "%s: is not a regular file", path);
    f.bytes = st == RV_OK ? (uint64_t)about.st_size : 0;
    if (st == RV_OK) st = load(kv, &f, tag, err);
    close(f.fd);
    rv_free(f.head);
    if (st != RV_OK) return st;
    size_t same = rv_kv_same(kv, tok, n);
    same = RV_MIN(same, n - 1);
    if (same < kv->len && rv_kv_truncate(kv, same, NULL) != RV_OK) {
        const size_t back = kv->rolling <= same ? kv->rolling : 0;
        if (rv_kv_truncate(kv, back, NULL) != RV_OK) rv_kv_truncate(kv, 0, NULL);
    }
    return RV_OK;
}
