// What the AVX-512 kernels share: the instruction sets they may use, loads, the fold of sixteen lanes, each other.
#pragma once

#include <immintrin.h>

#include "kernels/contract.h"

// Of each function, not of the file: nothing outside the kernels may use instructions the processor may lack.
#define GSB_AVX512         \
    __attribute__((target( \
        "avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vnni,prefer-vector-width=512")))
#define GSB_AVX512_APART GSB_AVX512 __attribute__((noinline))
#define GSB_AVX512_INLINE GSB_AVX512 __attribute__((always_inline)) inline

namespace gsb {

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

// kernels_avx512_products.cpp
void prepare_rows_avx512(const uint32_t* bits, size_t bit_stride, int count, int depth, uint32_t* rows, size_t stride);
void product_threshold_avx512(const Product&, const int32_t* threshold, uint32_t* out, size_t out_stride);
void product_interval_avx512(const Product&, const int32_t* low, const uint32_t* range, uint32_t* out,
                             size_t out_stride);
void product_count_avx512(const Product&, uint16_t* out, size_t group_stride);
void product_integers_avx512(const Product&, const int32_t* base, int32_t* out, size_t out_stride);
void product_residual_avx512(const Product&, const int32_t* base, int shift, const float* scale, const float* bias,
                             float* x, size_t x_stride);

// kernels_avx512_scores.cpp
void scores_avx512(const Scores&);

// kernels_avx512_values.cpp
void count_extremes_avx512(const uint16_t* counts, size_t group_stride, int channels, int first, int last,
                           uint16_t* smallest, uint16_t* largest);
void value_planes_avx512(const ValuePlanes&);
void combine_avx512(const Combine&);

}  // namespace gsb
