/* Character tables and UTF-8.  The tables are data made by gen_unicode.py; the code that reads
 * them is checked against the generator by a digest over every code point. */
#include "tok/unicode.h"

typedef struct uc_run {
    uint32_t first, last, step, to;
} uc_run;

#include "tok/unicode.inc"

static uint32_t map(const uc_run *runs, size_t n, uint32_t cp) {
    size_t lo = 0, hi = n; /* the first run whose last is not below cp */
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (runs[mid].last < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == n || cp < runs[lo].first) return cp;
    const uc_run *r = &runs[lo];
    if (r->step == 0) return r->to;
    return (cp - r->first) % r->step == 0 ? r->to + (cp - r->first) : cp;
}

uint64_t rv_uc_digest(void) {
    return UC_DIGEST;
}

uint32_t rv_uc_lower(uint32_t cp) {
    if (cp < 0x80) return cp - 'A' < 26 ? cp + 32 : cp;
    return map(uc_lower, RV_COUNT(uc_lower), cp);
}

uint32_t rv_uc_nfd_first(uint32_t cp) {
    return cp < 0x80 ? cp : map(uc_nfd, RV_COUNT(uc_nfd), cp);
}

size_t rv_uc_decode_slow(const uint8_t *p, size_t n, uint32_t *cp) {
    uint8_t b = p[0];
    size_t len = b < 0xC2 ? 0 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : b < 0xF5 ? 4 : 0;
    *cp = UC_BAD;
    if (b < 0x80) {
        *cp = b;
        return 1;
    }
    if (len == 0 || len > n) return 1;
    uint32_t c = b & (0xFFu >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80) return 1;
        c = c << 6 | (p[i] & 0x3Fu);
    }
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (c < least[len] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 1;
    *cp = c;
    return len;
}

size_t rv_uc_encode(uint32_t cp, uint8_t out[4]) {
    if (cp < 0x80) {
        out[0] = (uint8_t)cp;
        return 1;
    }
    size_t len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = len; i-- > 1; cp >>= 6) out[i] = (uint8_t)(0x80 | (cp & 0x3F));
    out[0] = (uint8_t)((0xF00u >> len & 0xFF) | cp);
    return len;
}

size_t rv_uc_valid_prefix(const uint8_t *p, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint32_t cp;
        size_t len = rv_uc_decode(p + i, n - i, &cp);
        if (len == 1 && p[i] >= 0x80) break;
        i += len;
    }
    return i;
}

static bool own_char(uint32_t c) {
    return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
}

/* The bytes that are not their own character are, in order, 00-20, 7F-A0 and AD. */
uint32_t rv_uc_byte_char(uint8_t byte) {
    if (own_char(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;
    if (byte <= 0xA0) return 0x100u + 33 + (byte - 0x7Fu);
    return 0x100u + 67;
}

int rv_uc_char_byte(uint32_t cp) {
    if (own_char(cp)) return (int)cp;
    if (cp < 0x100 || cp > 0x100 + 67) return -1;
    uint32_t i = cp - 0x100;
    return i < 33 ? (int)i : i < 67 ? (int)(0x7F + i - 33) : 0xAD;
}
