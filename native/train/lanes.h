// Sixteen float lanes of AVX-512, of tensors in float32 or bfloat16.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

// Of each function, not of the file: nothing outside the kernels may use instructions the processor may lack.
#define GSB_TRAIN_TARGET \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,prefer-vector-width=512")))
#define GSB_TRAIN_INLINE GSB_TRAIN_TARGET __attribute__((always_inline)) inline

namespace gsb::train {

// The bits of a bfloat16: the upper half of a float.
struct Half {
    uint16_t bits;
};

GSB_TRAIN_INLINE __m512 load(const float* from, __mmask16 lanes) {
    return _mm512_maskz_loadu_ps(lanes, from);
}

GSB_TRAIN_INLINE __m512 load(const Half* from, __mmask16 lanes) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

GSB_TRAIN_INLINE void store(float* to, __mmask16 lanes, __m512 x) {
    _mm512_mask_storeu_ps(to, lanes, x);
}

// Rounded to nearest even; a NaN stays one.
GSB_TRAIN_INLINE void store(Half* to, __mmask16 lanes, __m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC00000));
    _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

GSB_TRAIN_INLINE __mmask16 lanes_from(int begin, int end) {
    return end - begin >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (end - begin)) - 1);
}

GSB_TRAIN_INLINE __m512 magnitude(__m512 x) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
}

inline int words_of(int bits) {
    return (bits + 63) / 64;
}

}  // namespace gsb::train
