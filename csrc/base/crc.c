/* CRC-32C (Castagnoli, RFC 3720 B.4), eight bytes at a time with eight tables (Kounavis and Berry
 * 2005): what files of ours carry to be told from damaged ones. */
#include <pthread.h>

#include "base/base.h"

static uint32_t g_table[8][256];

static void fill_tables(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0x82f63b78u ^ c >> 1 : c >> 1;
        g_table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int t = 1; t < 8; t++)
            g_table[t][i] = g_table[0][g_table[t - 1][i] & 255] ^ g_table[t - 1][i] >> 8;
}

uint32_t rv_crc32c(uint32_t crc, const void *p, size_t n) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_tables);
    const uint8_t *b = p;
    uint32_t c = ~crc;
    for (; n >= 8; n -= 8, b += 8) {
        const uint32_t lo = rv_le32(b) ^ c, hi = rv_le32(b + 4);
        c = g_table[7][lo & 255] ^ g_table[6][lo >> 8 & 255] ^ g_table[5][lo >> 16 & 255] ^
            g_table[4][lo >> 24] ^ g_table[3][hi & 255] ^ g_table[2][hi >> 8 & 255] ^
            g_table[1][hi >> 16 & 255] ^ g_table[0][hi >> 24];
    }
    for (; n; n--, b++) c = g_table[0][(c ^ *b) & 255] ^ c >> 8;
    return ~c;
}
