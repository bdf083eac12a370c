// Sixteen lanes in one register of AVX-512. What each function does: lanes.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

// Of each function, not of the file: nothing outside the kernels may use instructions the processor may lack. GCC keeps
// to 256 bits where it vectorizes unless told otherwise; Clang knows no such word.
#define GSB_TRAIN_FEATURES "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq"
#if defined(__clang__)
#define GSB_TRAIN_TARGET __attribute__((target(GSB_TRAIN_FEATURES)))
#else
#define GSB_TRAIN_TARGET __attribute__((target(GSB_TRAIN_FEATURES ",prefer-vector-width=512")))
#endif
#define GSB_TRAIN_INLINE GSB_TRAIN_TARGET __attribute__((always_inline)) inline

namespace gsb::train {

inline bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("fma");
}

constexpr int kCountRows = 4, kTileVectors = 4;

struct Lanes {
    __mmask16 bits;
};
struct Mask {
    __mmask16 bits;
};
struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};

constexpr Lanes kAllLanes{0xFFFF};

GSB_TRAIN_INLINE Lanes lanes_from(int begin, int end) {
    return end - begin >= 16 ? kAllLanes : Lanes{static_cast<__mmask16>((1u << (end - begin)) - 1)};
}

GSB_TRAIN_INLINE Mask mask_of(Lanes lanes) {
    return {lanes.bits};
}
GSB_TRAIN_INLINE Mask mask_of_bits(uint16_t bits) {
    return {bits};
}
GSB_TRAIN_INLINE uint16_t bits_of(Mask m) {
    return m.bits;
}
GSB_TRAIN_INLINE int count(Mask m) {
    return __builtin_popcount(m.bits);
}
GSB_TRAIN_INLINE Mask operator&(Mask a, Mask b) {
    return {static_cast<__mmask16>(a.bits & b.bits)};
}
GSB_TRAIN_INLINE Mask operator|(Mask a, Mask b) {
    return {static_cast<__mmask16>(a.bits | b.bits)};
}
GSB_TRAIN_INLINE Mask operator~(Mask a) {
    return {static_cast<__mmask16>(~a.bits)};
}

GSB_TRAIN_INLINE Floats floats(float x) {
    return {_mm512_set1_ps(x)};
}
GSB_TRAIN_INLINE Floats load(const float* from, Lanes lanes) {
    return {_mm512_maskz_loadu_ps(lanes.bits, from)};
}
GSB_TRAIN_INLINE Floats load(const Half* from, Lanes lanes) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes.bits, from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
GSB_TRAIN_INLINE void store(float* to, Lanes lanes, Floats x) {
    _mm512_mask_storeu_ps(to, lanes.bits, x.v);
}
GSB_TRAIN_INLINE void store(Half* to, Lanes lanes, Floats x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC00000));
    _mm256_mask_storeu_epi16(to, lanes.bits, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

GSB_TRAIN_INLINE Floats operator+(Floats a, Floats b) {
    return {_mm512_add_ps(a.v, b.v)};
}
GSB_TRAIN_INLINE Floats operator-(Floats a, Floats b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
GSB_TRAIN_INLINE Floats operator*(Floats a, Floats b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
GSB_TRAIN_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
GSB_TRAIN_INLINE Floats min(Floats a, Floats b) {
    return {_mm512_min_ps(a.v, b.v)};
}
GSB_TRAIN_INLINE Floats max(Floats a, Floats b) {
    return {_mm512_max_ps(a.v, b.v)};
}
GSB_TRAIN_INLINE Floats magnitude(Floats x) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7FFFFFFF)))};
}

GSB_TRAIN_INLINE Mask operator<(Floats a, Floats b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
GSB_TRAIN_INLINE Mask operator<=(Floats a, Floats b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}
GSB_TRAIN_INLINE Mask operator!=(Floats a, Floats b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)};
}

GSB_TRAIN_INLINE Floats select(Mask m, Floats yes, Floats no) {
    return {_mm512_mask_mov_ps(no.v, m.bits, yes.v)};
}
GSB_TRAIN_INLINE Floats keep(Mask m, Floats x) {
    return {_mm512_maskz_mov_ps(m.bits, x.v)};
}
GSB_TRAIN_INLINE Floats add_where(Mask m, Floats a, Floats b) {
    return {_mm512_mask_add_ps(a.v, m.bits, a.v, b.v)};
}
GSB_TRAIN_INLINE Floats fma_where(Mask m, Floats a, Floats b, Floats c) {
    return {_mm512_mask3_fmadd_ps(a.v, b.v, c.v, m.bits)};
}
GSB_TRAIN_INLINE Floats divide_where(Mask m, Floats a, Floats b) {
    return {_mm512_maskz_div_ps(m.bits, a.v, b.v)};
}

GSB_TRAIN_INLINE float fold(__m256 eight) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
GSB_TRAIN_INLINE float sum(Floats x) {
    return fold(_mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1)));
}
GSB_TRAIN_INLINE float largest(Floats x) {
    return _mm512_reduce_max_ps(x.v);
}
GSB_TRAIN_INLINE float smallest(Floats x) {
    return _mm512_reduce_min_ps(x.v);
}

GSB_TRAIN_INLINE Ints ints(int32_t x) {
    return {_mm512_set1_epi32(x)};
}
GSB_TRAIN_INLINE Ints load_int32(const int32_t* from) {
    return {_mm512_loadu_si512(from)};
}
GSB_TRAIN_INLINE Ints load_int16(const void* from, Lanes lanes) {
    return {_mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(lanes.bits, from))};
}
GSB_TRAIN_INLINE Ints load_uint8(const void* from, Lanes lanes) {
    return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes.bits, from))};
}
GSB_TRAIN_INLINE void store_int16(void* to, Lanes lanes, Ints x) {
    _mm256_mask_storeu_epi16(to, lanes.bits, _mm512_cvtepi32_epi16(x.v));
}
GSB_TRAIN_INLINE void store_uint8(void* to, Lanes lanes, Ints x) {
    _mm_mask_storeu_epi8(to, lanes.bits, _mm512_cvtepi32_epi8(x.v));
}
GSB_TRAIN_INLINE Ints rounded(Floats x) {
    return {_mm512_cvtps_epi32(x.v)};
}
GSB_TRAIN_INLINE Floats floats(Ints x) {
    return {_mm512_cvtepi32_ps(x.v)};
}
GSB_TRAIN_INLINE Ints operator+(Ints a, Ints b) {
    return {_mm512_add_epi32(a.v, b.v)};
}
GSB_TRAIN_INLINE Ints operator-(Ints a, Ints b) {
    return {_mm512_sub_epi32(a.v, b.v)};
}
template <int Bits>
GSB_TRAIN_INLINE Ints shift_left(Ints x) {
    return {_mm512_slli_epi32(x.v, Bits)};
}
template <int Bits>
GSB_TRAIN_INLINE Ints shift_right(Ints x) {
    return {_mm512_srli_epi32(x.v, Bits)};
}
GSB_TRAIN_INLINE Ints min(Ints a, Ints b) {
    return {_mm512_min_epi32(a.v, b.v)};
}
GSB_TRAIN_INLINE Ints magnitude(Ints x) {
    return {_mm512_abs_epi32(x.v)};
}
GSB_TRAIN_INLINE Mask operator<(Ints a, Ints b) {
    return {_mm512_cmp_epi32_mask(a.v, b.v, _MM_CMPINT_LT)};
}
GSB_TRAIN_INLINE Ints select(Mask m, Ints yes, Ints no) {
    return {_mm512_mask_mov_epi32(no.v, m.bits, yes.v)};
}
GSB_TRAIN_INLINE Ints keep(Mask m, Ints x) {
    return {_mm512_maskz_mov_epi32(m.bits, x.v)};
}

GSB_TRAIN_INLINE int append(Mask m, Floats x, int column, float* values, int32_t* columns) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_mask_compressstoreu_ps(values, m.bits, x.v);
    _mm512_mask_compressstoreu_epi32(columns, m.bits, _mm512_add_epi32(lane, _mm512_set1_epi32(column)));
    return count(m);
}

class BitCounts {
  public:
    GSB_TRAIN_INLINE BitCounts() : low_(_mm512_setzero_si512()), high_(_mm512_setzero_si512()) {}
    GSB_TRAIN_INLINE void add(uint64_t word, const uint64_t* words) {
        const __m512i x = _mm512_set1_epi64(static_cast<long long>(word));
        low_ = _mm512_add_epi64(low_, _mm512_popcnt_epi64(_mm512_xor_si512(x, _mm512_loadu_si512(words))));
        high_ = _mm512_add_epi64(high_, _mm512_popcnt_epi64(_mm512_xor_si512(x, _mm512_loadu_si512(words + 8))));
    }
    GSB_TRAIN_INLINE Ints total() const {
        return {
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(low_)), _mm512_cvtepi64_epi32(high_), 1)};
    }

  private:
    __m512i low_, high_;
};

}  // namespace gsb::train
