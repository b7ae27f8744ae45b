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

/* Four words of the eight rows at p + off, to four lines of a panel. */
RVK_INLINE void transpose4(uint8_t *dst, const uint8_t *const *p, size_t off) {
    const __m256i a = two_rows(p[0] + off, p[4] + off), b = two_rows(p[1] + off, p[5] + off);
    const __m256i c = two_rows(p[2] + off, p[6] + off), d = two_rows(p[3] + off, p[7] + off);
    const __m256i ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b);
    const __m256i cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d);
    __m256i *out = (__m256i *)(void *)dst;
    _mm256_storeu_si256(out, _mm256_unpacklo_epi64(ab0, cd0));
    _mm256_storeu_si256(out + 2, _mm256_unpackhi_epi64(ab0, cd0));
    _mm256_storeu_si256(out + 4, _mm256_unpacklo_epi64(ab1, cd1));
    _mm256_storeu_si256(out + 6, _mm256_unpackhi_epi64(ab1, cd1));
}

void rvk_panel_pack_avx2(RVK_PACK_ARGS) {
    const rvk_panel_type *t = &rvk_panel_types[type];
    const size_t n_words = (size_t)t->n_words, bytes = rvk_dtypes[type].block_bytes;
    const size_t n_blocks = k / rvk_dtypes[type].block_values, first = t->d_at == 0 ? 2 : 0;
    uint8_t *words = dst, *d = words + n_blocks * n_words * WORD;
    const uint8_t *row[RVK_PANEL_ROWS];
    for (size_t r = 0; r < RVK_PANEL_ROWS; r++)
        row[r] = (const uint8_t *)w + (r < n_rows ? r : n_rows - 1) * w_stride;
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t at = b * bytes;
        for (size_t j = (at + 63) / 64 * 64; j < at + bytes; j += 64) { /* of the next sixteen */
            for (size_t r = 0; r < RVK_PANEL_ROWS; r++)
                __builtin_prefetch(
                    (const void *)((uintptr_t)row[r] + RVK_PANEL_ROWS * w_stride + j), 0, 2);
        }
        for (size_t i = 0; i < n_words; i += 4) {
            const size_t word = i + 4 <= n_words ? i : n_words - 4;
            transpose4(words + word * WORD, row, at + first + 4 * word);
            transpose4(words + word * WORD + 32, row + 8, at + first + 4 * word);
        }
        words += n_words * WORD;
        if (t->d_at < 0) continue;
        for (size_t r = 0; r < RVK_PANEL_ROWS; r++)
            memcpy(d + 2 * r, row[r] + at + (size_t)t->d_at, 2);
        d += 2 * RVK_PANEL_ROWS;
    }
}
