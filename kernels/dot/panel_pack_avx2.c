/* Packing a panel with AVX2.
 *
 * The idea: four words of eight rows at a time, rows 0..3 in the lower lanes and 4..7 in the upper
 * ones, so that a four by four transpose within lanes puts the rows in order.  Blocks whose words
 * are not a multiple of four end in a step that overlaps the one before. */
#include <immintrin.h>
#include <string.h>

#include "dot/panel.h"

enum { WORD = 4 * RVK_PANEL_ROWS };

/* Sixteen bytes of a row in each lane. */
RVK_INLINE __m256i two_rows(const uint8_t *a, const uint8_t *b) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)a)),
        _mm_loadu_si128((const __m128i *)(const void *)b), 1);
}

/* Four words of the eight rows at p + off, to lines to[0 .. 3] of a panel. */
RVK_INLINE void transpose4(uint8_t *dst, const uint8_t *to, const uint8_t *const *p, size_t off) {
    const __m256i a = two_rows(p[0] + off, p[4] + off), b = two_rows(p[1] + off, p[5] + off);
    const __m256i c = two_rows(p[2] + off, p[6] + off), d = two_rows(p[3] + off, p[7] + off);
    const __m256i ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b);
    const __m256i cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d);
    const __m256i out[4] = {_mm256_unpacklo_epi64(ab0, cd0), _mm256_unpackhi_epi64(ab0, cd0),
                            _mm256_unpacklo_epi64(ab1, cd1), _mm256_unpackhi_epi64(ab1, cd1)};
    RVK_UNROLL
    for (int i = 0; i < 4; i++)
        _mm256_storeu_si256((__m256i *)(void *)(dst + WORD * (size_t)to[i]), out[i]);
}

void rvk_panel_pack_avx2(RVK_PACK_ARGS) {
    const rvk_panel_type *t = &rvk_panel_types[type];
    const size_t n_words = (size_t)t->n_words, bytes = rvk_dtypes[type].block_bytes;
    const size_t n_blocks = k / rvk_dtypes[type].block_values, first = t->d_at == 0 ? 2 : 0;
    const size_t per = n_words > 8 ? 1 : 4;
    const uint8_t *row[RVK_PANEL_ROWS];
    uint8_t *d = dst, *words = dst, to[RVK_QKK / 4];
    for (size_t i = 0; i < n_words; i++) to[i] = (uint8_t)rvk_panel_at(type, i);
    for (size_t r = 0; r < RVK_PANEL_ROWS; r++)
        row[r] = (const uint8_t *)w + (r < n_rows ? r : n_rows - 1) * w_stride;
    for (size_t b = 0; b < n_blocks; b++, words += n_words * WORD) {
        const size_t at = b * bytes;
        if (b % per == 0) {
            d = words;
            words += rvk_panel_d_bytes(*t);
        }
        for (size_t j = (at + 63) / 64 * 64; j < at + bytes; j += 64) { /* of the next sixteen */
            for (size_t r = 0; r < RVK_PANEL_ROWS; r++)
                __builtin_prefetch(
                    (const void *)((uintptr_t)row[r] + RVK_PANEL_ROWS * w_stride + j), 0, 2);
        }
        for (size_t i = 0; i < n_words; i += 4) {
            const size_t word = i + 4 <= n_words ? i : n_words - 4;
            transpose4(words, to + word, row, at + first + 4 * word);
            transpose4(words + 32, to + word, row + 8, at + first + 4 * word);
        }
        for (size_t r = 0; t->d_at >= 0 && r < RVK_PANEL_ROWS; r++)
            memcpy(d + (b % per * RVK_PANEL_ROWS + r) * 2, row[r] + at + (size_t)t->d_at, 2);
    }
}
