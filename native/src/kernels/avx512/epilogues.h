// What becomes of the counts of a product: for products.cpp alone.
#pragma once

#include <cstring>

#include "kernels/avx512/isa.h"

namespace gsb::avx512 {

GSB_AVX512_INLINE void store_mask(uint32_t* row, int channel, __mmask16 mask) {
    const auto bits = static_cast<uint16_t>(mask);
    std::memcpy(reinterpret_cast<char*>(row) + channel / 8, &bits, sizeof(bits));
}

// What becomes of counts. lanes(first)(row, counts) takes those of channels first … first + 15.
struct ThresholdBits {
    const int32_t* threshold;
    uint32_t* out;
    size_t stride;

    struct Lanes {
        __m512i threshold;
        uint32_t* out;
        size_t stride;
        int first;
        GSB_AVX512_INLINE void operator()(int row, __m512i counts) const {
            store_mask(out + row * stride, first, _mm512_cmple_epi32_mask(counts, threshold));
        }
    };
    GSB_AVX512_INLINE Lanes lanes(int first) const { return {load(threshold + first), out, stride, first}; }
};

struct IntervalBits {
    const int32_t* low;
    const uint32_t* range;
    uint32_t* out;
    size_t stride;

    struct Lanes {
        __m512i low, range;
        uint32_t* out;
        size_t stride;
        int first;
        GSB_AVX512_INLINE void operator()(int row, __m512i counts) const {
            store_mask(out + row * stride, first, _mm512_cmpgt_epu32_mask(_mm512_sub_epi32(counts, low), range));
        }
    };
    GSB_AVX512_INLINE Lanes lanes(int first) const {
        return {load(low + first), load(range + first), out, stride, first};
    }
};

struct Counts {
    uint16_t* out;
    size_t group_stride;

    struct Lanes {
        uint16_t* out;
        GSB_AVX512_INLINE void operator()(int row, __m512i counts) const {
            auto* to = reinterpret_cast<__m256i*>(out + static_cast<size_t>(row) * kCountGroup);
            _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(counts));
        }
    };
    GSB_AVX512_INLINE Lanes lanes(int first) const {
        return {out + first / kCountGroup * group_stride + first % kCountGroup};
    }
};

struct Integers {
    const int32_t* base;
    int32_t* out;
    size_t stride;

    struct Lanes {
        __m512i base;
        int32_t* out;
        size_t stride;
        GSB_AVX512_INLINE void operator()(int row, __m512i counts) const {
            _mm512_storeu_si512(out + row * stride, _mm512_sub_epi32(base, counts));
        }
    };
    GSB_AVX512_INLINE Lanes lanes(int first) const { return {load(base + first), out + first, stride}; }
};

struct Residual {
    const int32_t* base;
    __m128i shift;
    const float *scale, *bias;
    float* x;
    size_t stride;

    struct Lanes {
        __m512i base;
        __m128i shift;
        __m512 scale, bias;
        float* x;
        size_t stride;
        GSB_AVX512_INLINE void operator()(int row, __m512i counts) const {
            const __m512i dot = _mm512_sub_epi32(base, _mm512_sll_epi32(counts, shift));
            const __m512 change = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale), bias);
            float* to = x + row * stride;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), change));
        }
    };
    GSB_AVX512_INLINE Lanes lanes(int first) const {
        return {load(base + first), shift, _mm512_loadu_ps(scale + first), _mm512_loadu_ps(bias + first),
                x + first,          stride};
    }
};

}  // namespace gsb::avx512
