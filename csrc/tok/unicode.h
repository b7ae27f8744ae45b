/* Characters: UTF-8, general category, lower case, decomposition.
 *
 * Decoding is strict (RFC 3629): overlong forms, surrogates and values above U+10FFFF are not
 * characters, so no byte sequence can stand for a character that a filter before us did not see. */
#ifndef RV_TOK_UNICODE_H
#define RV_TOK_UNICODE_H

#include "base/base.h"

/* The class of a code point: at most one of the first seven, and UC_SPACE for White_Space.
 * 0: not assigned. */
enum {
    UC_L = 0x01, /* letter */
    UC_N = 0x02, /* number */
    UC_P = 0x04, /* punctuation */
    UC_S = 0x08, /* symbol */
    UC_M = 0x10, /* mark */
    UC_Z = 0x20, /* separator */
    UC_C = 0x40, /* control, format, surrogate, private use */
    UC_SPACE = 0x80,
};

#define UC_BAD 0xFFFDu /* what a byte that is not UTF-8 decodes to */

extern const uint8_t rv_uc_stage1[], rv_uc_stage2[];

/* cp: 0 .. 0x10FFFF */
static inline unsigned rv_uc_class(uint32_t cp) {
    return rv_uc_stage2[((size_t)rv_uc_stage1[cp >> 7] << 7) | (cp & 127)];
}

uint64_t rv_uc_digest(void);           /* what gen_unicode.py says the tables hold */
uint32_t rv_uc_lower(uint32_t cp);     /* first code point of the lower case, or cp */
uint32_t rv_uc_nfd_first(uint32_t cp); /* first code point of the decomposition, or cp */

size_t rv_uc_decode_slow(const uint8_t *p, size_t n, uint32_t *cp);

/* The character at p, n > 0 bytes left: its length 1..4.  A byte that starts no character gives
 * UC_BAD and 1. */
static inline size_t rv_uc_decode(const uint8_t *p, size_t n, uint32_t *cp) {
    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    return rv_uc_decode_slow(p, n, cp);
}
/* Bytes of cp written to out: 1..4.  cp: 0 .. 0x10FFFF */
size_t rv_uc_encode(uint32_t cp, uint8_t out[4]);
/* Bytes at the start of p that are valid UTF-8. */
size_t rv_uc_valid_prefix(const uint8_t *p, size_t n);

/* Byte-level vocabularies spell each byte as one printable character: printable Latin-1 bytes as
 * themselves, the others as U+0100 and on. */
uint32_t rv_uc_byte_char(uint8_t byte);
int rv_uc_char_byte(uint32_t cp); /* -1: stands for no byte */

#endif
