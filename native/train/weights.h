// One-bit weights of a linear layer and the product with one-bit inputs.
#pragma once

#include "lanes.h"

namespace gsb::train {

constexpr int kLanes = 16;  // channels a block of packed weights

// Packed weights: (blocks of 16 channels, words_of(width), 16) words; bits and channels beyond the matrix are zero.
inline size_t packed_words(int channels, int width) {
    return static_cast<size_t>((channels + kLanes - 1) / kLanes) * kLanes * words_of(width);
}

// bit = W − mean >= 0 of the channels of one block, and their sums ΣB (16).
void pack_block(const float* weight, int channels, int width, float mean, int block, uint64_t* packed, int32_t* sums);

// scale[channel]·B of the channels of one block, (channels, width).
template <class T>
void expand_block(const uint64_t* packed, int channels, int width, const float* scale, int block, T* out);

struct Product {
    const uint64_t* packed;
    const int32_t* base;  // (channels, padded to 16): the product is base − factor·popcount(x ^ w)
    int factor;
    int channels, width;
};

// Rows first … last − 1: y = product·scale + bias (rows, channels), each operation rounded; bias may be nullptr.
template <class T>
void multiply(const Product&, const uint64_t* bits, const float* scale, const float* bias, int first, int last, T* y);

// The products themselves, which int16 holds for widths to 32767.
void multiply_integers(const Product&, const uint64_t* bits, int first, int last, int16_t* out);

// y = integers·scale + bias.
template <class T>
void rescale(const int16_t* integers, const float* scale, const float* bias, int channels, int first, int last, T* y);

}  // namespace gsb::train
