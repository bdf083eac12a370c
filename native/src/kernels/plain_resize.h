// Resampling without vector instructions of one's own: what compilers make of it is enough for some backends, and
// others take it for what their registers do not fit. And what backends with products of 16 bits have in common.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/contract.h"

namespace gsb {

// A sum in fixed point, which starts at kHalfWeight → the nearest grey level.
constexpr int32_t kHalfWeight = 1 << (kWeightBits - 1);
inline uint8_t grey_level(int32_t sum) {
    const int32_t level = sum >> kWeightBits;
    return static_cast<uint8_t>(level < 0 ? 0 : level > 255 ? 255 : level);
}

template <int channels>
inline void plain_resize_pixel(const uint8_t* in, const int32_t* weights, int taps, uint8_t* out) {
    int32_t sum[channels];
    for (int c = 0; c < channels; ++c) sum[c] = kHalfWeight;
    for (int i = 0; i < taps; ++i) {
        for (int c = 0; c < channels; ++c) sum[c] += in[i * channels + c] * weights[i];
    }
    for (int c = 0; c < channels; ++c) out[c] = grey_level(sum[c]);
}

template <int channels>
inline void plain_resize_rows(const ResizeRows& r) {
    for (int row = 0; row < r.rows; ++row) {
        const uint8_t* in = r.in + row * r.in_stride;
        uint8_t* out = r.out + row * r.out_stride;
        for (int o = 0; o < r.taps.outputs; ++o) {
            plain_resize_pixel<channels>(in + static_cast<size_t>(r.taps.first[o]) * channels,
                                         r.taps.weights + o * r.taps.stride, r.taps.taps[o], out + o * channels);
        }
    }
}

// Bytes first … of one output row.
inline void plain_resize_columns(const ResizeColumns& r, int first) {
    constexpr int kPart = 256;
    const int32_t* weights = r.taps.weights + r.output * r.taps.stride;
    const int taps = r.taps.taps[r.output];
    const uint8_t* in = r.in + static_cast<size_t>(r.taps.first[r.output]) * r.in_stride;
    for (int begin = first; begin < r.bytes; begin += kPart) {
        const int count = r.bytes - begin < kPart ? r.bytes - begin : kPart;
        int32_t sum[kPart];
        for (int i = 0; i < count; ++i) sum[i] = kHalfWeight;
        for (int tap = 0; tap < taps; ++tap) {
            const uint8_t* row = in + tap * r.in_stride + begin;
            const int32_t weight = weights[tap];
            for (int i = 0; i < count; ++i) sum[i] += row[i] * weight;
        }
        for (int i = 0; i < count; ++i) r.out[begin + i] = grey_level(sum[i]);
    }
}

// A weight of 23 bits and a sign is high·2^11 + low. Pieces of an output: low (stride), then high (stride), int16.
constexpr int kLowBits = 11;

inline void split_into_words(const int32_t* weights, size_t stride, uint8_t* pieces) {
    for (size_t i = 0; i < stride; ++i) {
        const auto low = static_cast<int16_t>(weights[i] & ((1 << kLowBits) - 1));
        const auto high = static_cast<int16_t>(weights[i] >> kLowBits);
        std::memcpy(pieces + 2 * i, &low, sizeof(low));
        std::memcpy(pieces + 2 * (stride + i), &high, sizeof(high));
    }
}

}  // namespace gsb
