/* What every layer of the core stands on: errors, allocation, bounds-checked reading, mappings,
 * time.  Knows no model, no file format, no Python. */
#ifndef RV_BASE_H
#define RV_BASE_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "include/ruvllm.h"

#if defined(__GNUC__)
#define RV_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define RV_PRINTF(fmt, args)
#endif

#define RV_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define RV_MIN(a, b) ((a) < (b) ? (a) : (b))
#define RV_MAX(a, b) ((a) > (b) ? (a) : (b))

/* ---- errors (err.c): the first message wins, because the deepest frame knows most ---- */

/* Fill err (if not NULL and still RV_OK) and return code. */
rv_status rv_fail(rv_err *err, rv_status code, const char *fmt, ...) RV_PRINTF(3, 4);
static inline void rv_err_clear(rv_err *err) {
    if (err) {
        err->code = RV_OK;
        err->msg[0] = 0;
    }
}

/* ---- allocation (alloc.c): counted, and able to fail on demand in tests ---- */

void *rv_malloc(size_t n);
void *rv_calloc(size_t n, size_t size); /* NULL also when n * size overflows */
void *rv_realloc(void *p, size_t n);    /* p from rv_malloc / rv_calloc / rv_realloc */
/* 64-byte aligned; from 4 MiB on 2 MiB aligned, in huge pages where the system lets a program ask
 * for them.  Freed by rv_free. */
void *rv_alloc_aligned(size_t n);
char *rv_strndup(const char *p, size_t n); /* n bytes and a NUL */
size_t rv_alloc_bytes(const void *p);      /* what was asked for; 0 for NULL */
/* Grow *p (element size size) so that it holds at least need elements; *cap is updated.
 * false and nothing changed when it cannot. */
bool rv_grow(void **p, size_t *cap, size_t need, size_t size);
/* Fail the k-th allocation from now on (0: the next); negative: never.  Tests only. */
void rv_test_fail_alloc_at(long k);

/* ---- cursor (cursor.c): reads little-endian values from bytes that nobody checked ---- */

/* Sticky: after the first failure every read yields zeros, so a parser reads straight down and
 * checks err once. */
typedef struct rv_cursor {
    const uint8_t *p;
    size_t len, off;
    rv_err err;
} rv_cursor;

void rv_cur_init(rv_cursor *c, const void *p, size_t n);
const uint8_t *rv_cur_bytes(rv_cursor *c, uint64_t n, const char *what);
uint8_t rv_cur_u8(rv_cursor *c, const char *what);
uint16_t rv_cur_u16(rv_cursor *c, const char *what);
uint32_t rv_cur_u32(rv_cursor *c, const char *what);
uint64_t rv_cur_u64(rv_cursor *c, const char *what);
static inline size_t rv_cur_left(const rv_cursor *c) {
    return c->len - c->off;
}

static inline uint16_t rv_le16(const void *p) {
    const uint8_t *b = p;
    return (uint16_t)(b[0] | b[1] << 8);
}
static inline uint32_t rv_le32(const void *p) {
    const uint8_t *b = p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
static inline uint64_t rv_le64(const void *p) {
    return (uint64_t)rv_le32(p) | (uint64_t)rv_le32((const uint8_t *)p + 4) << 32;
}
static inline float rv_lef32(const void *p) {
    uint32_t u = rv_le32(p);
    float f;
    memcpy(&f, &u, 4);
    return f;
}
/* *out = a * b; false when it does not fit. */
static inline bool rv_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool rv_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

/* Bytes the system can still give without swapping; UINT64_MAX where it does not say. */
uint64_t rv_memory_available(void);

/* ---- mapping (map.c) ---- */

typedef struct rv_map {
    const uint8_t *p; /* NULL for an empty file */
    size_t n;
} rv_map;

/* Map a whole regular file read-only.  RV_ENOTFOUND, RV_EIO (a directory, no permission, ...). */
rv_status rv_map_open(rv_map *m, const char *path, rv_err *err);
void rv_map_close(rv_map *m);
/* Bring n bytes of a mapping into memory and map their pages, as reading them would; nothing
 * happens to what cannot be read. */
void rv_map_populate(const void *p, size_t n);
/* Let the kernel have back what it keeps of n bytes of a mapping for us; they stay readable. */
void rv_map_forget(const void *p, size_t n);

/* ---- checksums (crc.c) ---- */

/* CRC-32C of n bytes, going on from crc (0 at first). */
uint32_t rv_crc32c(uint32_t crc, const void *p, size_t n);

/* ---- time (clock.c) ---- */

uint64_t rv_now_ns(void); /* monotonic */
int64_t rv_utc_ms(void);  /* milliseconds since 1970, UTC */

#endif
