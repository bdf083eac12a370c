// What the AVX2 kernels share: the instruction sets they may use, popcounts by table, and the fold of sixteen lanes.
#pragma once

#include <immintrin.h>

#include "kernels/contract.h"

// Of each function, not of the file: nothing outside the kernels may use instructions the processor may lack.
#define GSB_AVX2 __attribute__((target("avx2,f16c")))
#define GSB_AVX2_APART GSB_AVX2 __attribute__((noinline))
#define GSB_AVX2_INLINE GSB_AVX2 __attribute__((always_inline)) inline

namespace gsb::avx2 {

GSB_AVX2_INLINE __m256i load256(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
GSB_AVX2_INLINE void store256(void* to, __m256i x) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), x);
}

// Popcounts of the bytes, each times `weight`, from a table of nibbles.
struct ByteCounts {
    __m256i table, nibble;

    GSB_AVX2_INLINE explicit ByteCounts(char weight)
        : table(_mm256_mullo_epi16(_mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2,
                                                    3, 1, 2, 2, 3, 2, 3, 3, 4),
                                   _mm256_set1_epi16(weight))),
          nibble(_mm256_set1_epi8(15)) {}
    // acc + counts of x
    GSB_AVX2_INLINE __m256i added(__m256i acc, __m256i x) const {
        const __m256i low = _mm256_and_si256(x, nibble), high = _mm256_and_si256(_mm256_srli_epi32(x, 4), nibble);
        acc = _mm256_add_epi8(acc, _mm256_shuffle_epi8(table, low));
        return _mm256_add_epi8(acc, _mm256_shuffle_epi8(table, high));
    }
};

// The sum of each 32-bit lane's four bytes.
GSB_AVX2_INLINE __m256i sum_bytes(__m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(x, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}

// Lanes 0 … 7 and 8 … 15: lane l += lane l + 8, then + 4, + 2, + 1 (docs/numerics.md).
GSB_AVX2_INLINE float fold16(__m256 low, __m256 high) {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// A mask of the first n of eight lanes.
GSB_AVX2_INLINE __m256i lanes256(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// products.cpp
kernel::PrepareRows prepare_rows;
kernel::ProductThreshold product_threshold;
kernel::ProductInterval product_interval;
kernel::ProductCount product_count;
kernel::ProductIntegers product_integers;
kernel::ProductResidual product_residual;

// edges.cpp
kernel::NormBits norm_bits;
kernel::PatchesEmbed patches_embed;
kernel::DotBytes dot_bytes;

// scores.cpp
kernel::AttentionScores scores;

// values.cpp
kernel::CountExtremes count_extremes;
kernel::MakeValuePlanes value_planes;
kernel::CombineProducts combine;

// resize.cpp
kernel::SplitWeights split_weights;
kernel::ResizePictureRows resize_rows;
kernel::ResizePictureColumns resize_columns;

}  // namespace gsb::avx2
