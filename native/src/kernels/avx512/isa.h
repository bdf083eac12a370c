// What the AVX-512 kernels share: the instruction sets they may use, loads, the fold of sixteen lanes, each other.
#pragma once

#include <immintrin.h>

#include "kernels/contract.h"

// Of each function, not of the file: nothing outside the kernels may use instructions the processor may lack. GCC keeps
// to 256 bits where it vectorizes unless told otherwise; Clang knows no such word.
#define GSB_AVX512_FEATURES "avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vnni"
#if defined(__clang__)
#define GSB_AVX512 __attribute__((target(GSB_AVX512_FEATURES)))
#else
#define GSB_AVX512 __attribute__((target(GSB_AVX512_FEATURES ",prefer-vector-width=512")))
#endif
#define GSB_AVX512_APART GSB_AVX512 __attribute__((noinline))
#define GSB_AVX512_INLINE GSB_AVX512 __attribute__((always_inline)) inline

namespace gsb::avx512 {

GSB_AVX512_INLINE __m512i load(const void* from) {
    return _mm512_loadu_si512(from);
}

GSB_AVX512_INLINE __m512i broadcast(const uint32_t* from) {
    return _mm512_set1_epi32(static_cast<int>(*from));
}

// lane l += lane l + 8, then + 4, + 2, + 1 (docs/numerics.md).
GSB_AVX512_INLINE float fold16(__m512 lanes) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The first n of sixteen lanes.
GSB_AVX512_INLINE __mmask16 first_lanes(int n) {
    return static_cast<__mmask16>((1u << n) - 1);
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

}  // namespace gsb::avx512
