/* The sticky, bounds-checked reader of bytes from outside. */
#include "base/base.h"

void rv_cur_init(rv_cursor *c, const void *p, size_t n) {
    *c = (rv_cursor){.p = p, .len = n};
}

const uint8_t *rv_cur_bytes(rv_cursor *c, uint64_t n, const char *what) {
    if (c->err.code != RV_OK) return NULL;
    if (n > c->len - c->off) { /* off + n could wrap */
        rv_fail(&c->err, RV_EFORMAT, "%s: need %llu bytes at offset %zu, have %zu", what,
                (unsigned long long)n, c->off, c->len - c->off);
        return NULL;
    }
    const uint8_t *p = c->p + c->off;
    c->off += (size_t)n;
    return p;
}

uint8_t rv_cur_u8(rv_cursor *c, const char *what) {
    const uint8_t *p = rv_cur_bytes(c, 1, what);
    return p ? *p : 0;
}

uint16_t rv_cur_u16(rv_cursor *c, const char *what) {
    const uint8_t *p = rv_cur_bytes(c, 2, what);
    return p ? rv_le16(p) : 0;
}

uint32_t rv_cur_u32(rv_cursor *c, const char *what) {
    const uint8_t *p = rv_cur_bytes(c, 4, what);
    return p ? rv_le32(p) : 0;
}

uint64_t rv_cur_u64(rv_cursor *c, const char *what) {
    const uint8_t *p = rv_cur_bytes(c, 8, what);
    return p ? rv_le64(p) : 0;
}
