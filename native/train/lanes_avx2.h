// Sixteen lanes in two registers of AVX2. What each function does: lanes.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

// Of each function, not of the file: nothing outside the kernels may use instructions the processor may lack.
#define GSB_TRAIN_TARGET __attribute__((target("avx2,fma,popcnt")))
#define GSB_TRAIN_INLINE GSB_TRAIN_TARGET __attribute__((always_inline)) inline

namespace gsb::train {

inline bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
}

constexpr int kCountRows = 1, kTileVectors = 1;

struct Lanes {
    int count;
};
struct Mask {
    __m256 low, high;  // all bits of a lane or none
};
struct Floats {
    __m256 low, high;
};
struct Ints {
    __m256i low, high;
};

constexpr Lanes kAllLanes{16};

GSB_TRAIN_INLINE Lanes lanes_from(int begin, int end) {
    return {end - begin >= 16 ? 16 : end - begin};
}

GSB_TRAIN_INLINE __m256i first_eight(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GSB_TRAIN_INLINE Mask mask_of(Lanes lanes) {
    return {_mm256_castsi256_ps(first_eight(lanes.count)), _mm256_castsi256_ps(first_eight(lanes.count - 8))};
}
GSB_TRAIN_INLINE Mask mask_of_bits(uint16_t bits) {
    const __m256i all = _mm256_set1_epi32(bits);
    const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low)),
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, high), high))};
}
GSB_TRAIN_INLINE uint16_t bits_of(Mask m) {
    return static_cast<uint16_t>(_mm256_movemask_ps(m.low) | _mm256_movemask_ps(m.high) << 8);
}
GSB_TRAIN_INLINE int count(Mask m) {
    return __builtin_popcount(bits_of(m));
}
GSB_TRAIN_INLINE Mask operator&(Mask a, Mask b) {
    return {_mm256_and_ps(a.low, b.low), _mm256_and_ps(a.high, b.high)};
}
GSB_TRAIN_INLINE Mask operator|(Mask a, Mask b) {
    return {_mm256_or_ps(a.low, b.low), _mm256_or_ps(a.high, b.high)};
}
GSB_TRAIN_INLINE Mask operator~(Mask a) {
    const __m256 ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return {_mm256_xor_ps(a.low, ones), _mm256_xor_ps(a.high, ones)};
}

GSB_TRAIN_INLINE Floats floats(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
GSB_TRAIN_INLINE Floats load(const float* from, Lanes lanes) {
    if (lanes.count == 16) return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
    return {_mm256_maskload_ps(from, first_eight(lanes.count)),
            _mm256_maskload_ps(from + 8, first_eight(lanes.count - 8))};
}
GSB_TRAIN_INLINE Floats load(const Half* from, Lanes lanes) {
    Half room[16] = {};
    if (lanes.count < 16) from = static_cast<Half*>(std::memcpy(room, from, sizeof(Half) * lanes.count));
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
GSB_TRAIN_INLINE void store(float* to, Lanes lanes, Floats x) {
    if (lanes.count == 16) {
        _mm256_storeu_ps(to, x.low);
        _mm256_storeu_ps(to + 8, x.high);
    } else {
        _mm256_maskstore_ps(to, first_eight(lanes.count), x.low);
        _mm256_maskstore_ps(to + 8, first_eight(lanes.count - 8), x.high);
    }
}
// Lanes of 0 … 65535 as sixteen halves.
GSB_TRAIN_INLINE void store_halves(void* to, Lanes lanes, __m256i low, __m256i high) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);
    if (lanes.count == 16) {
        _mm256_storeu_si256(static_cast<__m256i*>(to), packed);
    } else {
        alignas(32) uint16_t room[16];
        _mm256_store_si256(reinterpret_cast<__m256i*>(room), packed);
        std::memcpy(to, room, sizeof(uint16_t) * lanes.count);
    }
}
GSB_TRAIN_INLINE __m256i rounded_half(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
    return _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(near), quiet, nan)), 16);
}
GSB_TRAIN_INLINE void store(Half* to, Lanes lanes, Floats x) {
    store_halves(to, lanes, rounded_half(x.low), rounded_half(x.high));
}

GSB_TRAIN_INLINE Floats operator+(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
GSB_TRAIN_INLINE Floats operator-(Floats a, Floats b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
GSB_TRAIN_INLINE Floats operator*(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
GSB_TRAIN_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
GSB_TRAIN_INLINE Floats min(Floats a, Floats b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
GSB_TRAIN_INLINE Floats max(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
GSB_TRAIN_INLINE Floats magnitude(Floats x) {
    const __m256 size = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    return {_mm256_and_ps(x.low, size), _mm256_and_ps(x.high, size)};
}

template <int Kind>
GSB_TRAIN_INLINE Mask compare(Floats a, Floats b) {
    return {_mm256_cmp_ps(a.low, b.low, Kind), _mm256_cmp_ps(a.high, b.high, Kind)};
}
GSB_TRAIN_INLINE Mask operator<(Floats a, Floats b) {
    return compare<_CMP_LT_OQ>(a, b);
}
GSB_TRAIN_INLINE Mask operator<=(Floats a, Floats b) {
    return compare<_CMP_LE_OQ>(a, b);
}
GSB_TRAIN_INLINE Mask operator!=(Floats a, Floats b) {
    return compare<_CMP_NEQ_UQ>(a, b);
}

GSB_TRAIN_INLINE Floats select(Mask m, Floats yes, Floats no) {
    return {_mm256_blendv_ps(no.low, yes.low, m.low), _mm256_blendv_ps(no.high, yes.high, m.high)};
}
GSB_TRAIN_INLINE Floats keep(Mask m, Floats x) {
    return {_mm256_and_ps(m.low, x.low), _mm256_and_ps(m.high, x.high)};
}
GSB_TRAIN_INLINE Floats divide_where(Mask m, Floats a, Floats b) {
    return keep(m, {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)});
}

GSB_TRAIN_INLINE float sum(Floats x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
GSB_TRAIN_INLINE float largest(Floats x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
GSB_TRAIN_INLINE float smallest(Floats x) {
    const __m256 eight = _mm256_min_ps(x.low, x.high);
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

GSB_TRAIN_INLINE Ints ints(int32_t x) {
    return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
GSB_TRAIN_INLINE Ints load_int32(const int32_t* from) {
    const __m256i* eights = reinterpret_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(eights), _mm256_loadu_si256(eights + 1)};
}
GSB_TRAIN_INLINE Ints load_int16(const void* from, Lanes lanes) {
    int16_t room[16] = {};
    if (lanes.count < 16) from = std::memcpy(room, from, sizeof(int16_t) * lanes.count);
    const __m128i* eights = static_cast<const __m128i*>(from);
    return {_mm256_cvtepi16_epi32(_mm_loadu_si128(eights)), _mm256_cvtepi16_epi32(_mm_loadu_si128(eights + 1))};
}
GSB_TRAIN_INLINE Ints load_uint8(const void* from, Lanes lanes) {
    uint8_t room[16] = {};
    if (lanes.count < 16) from = std::memcpy(room, from, lanes.count);
    const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(from));
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
GSB_TRAIN_INLINE void store_int16(void* to, Lanes lanes, Ints x) {
    const __m256i low_half = _mm256_set1_epi32(0xFFFF);
    store_halves(to, lanes, _mm256_and_si256(x.low, low_half), _mm256_and_si256(x.high, low_half));
}
GSB_TRAIN_INLINE void store_uint8(void* to, Lanes lanes, Ints x) {
    const __m256i low_byte = _mm256_set1_epi32(0xFF);
    const __m256i pairs = _mm256_packus_epi32(_mm256_and_si256(x.low, low_byte), _mm256_and_si256(x.high, low_byte));
    const __m256i halves = _mm256_permute4x64_epi64(pairs, 0xD8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    if (lanes.count == 16) {
        _mm_storeu_si128(static_cast<__m128i*>(to), bytes);
    } else {
        alignas(16) uint8_t room[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(room), bytes);
        std::memcpy(to, room, lanes.count);
    }
}
GSB_TRAIN_INLINE Ints rounded(Floats x) {
    return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)};
}
GSB_TRAIN_INLINE Floats floats(Ints x) {
    return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}
GSB_TRAIN_INLINE Ints operator+(Ints a, Ints b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
GSB_TRAIN_INLINE Ints operator-(Ints a, Ints b) {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
template <int Bits>
GSB_TRAIN_INLINE Ints shift_left(Ints x) {
    return {_mm256_slli_epi32(x.low, Bits), _mm256_slli_epi32(x.high, Bits)};
}
template <int Bits>
GSB_TRAIN_INLINE Ints shift_right(Ints x) {
    return {_mm256_srli_epi32(x.low, Bits), _mm256_srli_epi32(x.high, Bits)};
}
GSB_TRAIN_INLINE Ints min(Ints a, Ints b) {
    return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)};
}
GSB_TRAIN_INLINE Ints magnitude(Ints x) {
    return {_mm256_abs_epi32(x.low), _mm256_abs_epi32(x.high)};
}
GSB_TRAIN_INLINE Mask operator<(Ints a, Ints b) {
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.low, a.low)),
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.high, a.high))};
}
GSB_TRAIN_INLINE Ints select(Mask m, Ints yes, Ints no) {
    return {_mm256_blendv_epi8(no.low, yes.low, _mm256_castps_si256(m.low)),
            _mm256_blendv_epi8(no.high, yes.high, _mm256_castps_si256(m.high))};
}
GSB_TRAIN_INLINE Ints keep(Mask m, Ints x) {
    return {_mm256_and_si256(_mm256_castps_si256(m.low), x.low), _mm256_and_si256(_mm256_castps_si256(m.high), x.high)};
}

// Counts gather in bytes, eight a word, and go into the words' sums before a byte can overflow.
class BitCounts {
  public:
    GSB_TRAIN_INLINE BitCounts() {
        for (int i = 0; i < 4; ++i) bytes_[i] = sums_[i] = _mm256_setzero_si256();
    }
    GSB_TRAIN_INLINE void add(uint64_t word, const uint64_t* words) {
        const __m256i x = _mm256_set1_epi64x(static_cast<long long>(word)), nibble = _mm256_set1_epi8(15);
        const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3,
                                               1, 2, 2, 3, 2, 3, 3, 4);
        for (int i = 0; i < 4; ++i) {
            const __m256i bits =
                _mm256_xor_si256(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 4 * i)));
            const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(bits, nibble));
            const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(bits, 4), nibble));
            bytes_[i] = _mm256_add_epi8(bytes_[i], _mm256_add_epi8(low, high));
        }
        if (++gathered_ == kMostGathered) gather();
    }
    GSB_TRAIN_INLINE Ints total() {
        gather();
        return {narrow(sums_[0], sums_[1]), narrow(sums_[2], sums_[3])};
    }

  private:
    static constexpr int kMostGathered = 31;  // of 8 each, in a byte
    GSB_TRAIN_INLINE void gather() {
        for (int i = 0; i < 4; ++i) {
            sums_[i] = _mm256_add_epi64(sums_[i], _mm256_sad_epu8(bytes_[i], _mm256_setzero_si256()));
            bytes_[i] = _mm256_setzero_si256();
        }
        gathered_ = 0;
    }
    GSB_TRAIN_INLINE static __m256i narrow(__m256i first, __m256i second) {
        const __m256 both = _mm256_shuffle_ps(_mm256_castsi256_ps(first), _mm256_castsi256_ps(second), 0x88);
        return _mm256_permute4x64_epi64(_mm256_castps_si256(both), 0xD8);
    }
    __m256i bytes_[4], sums_[4];
    int gathered_ = 0;
};

}  // namespace gsb::train
