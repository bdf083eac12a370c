// One-bit weights and the int8 weights of the patch embedding, laid out as a backend's kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/contract.h"
#include "machine/buffer.h"

namespace gsb {

// A (channels, depth) matrix of bits.
struct BinaryWeights {
    Buffer<uint32_t> words;
    int channels = 0;  // padded
    int depth = 0;     // words of a plane of inputs
    ActivationFormat inputs{};
};

// Words of packed weights of that shape; `depth` in words.
size_t weight_words(WeightLayout layout, int channels, int depth);

// Lays out rows (channels, stride) of words as `layout` wants them; channels a multiple of 16.
void pack_weights(WeightLayout layout, const uint32_t* rows, size_t stride, int channels, int depth, uint32_t* out);

// Lays out int8 (width, 3, pixels) as the kernels' patches_embed reads it, zeros as padding.
Buffer<uint8_t> pack_patch_weights(PatchLayout layout, const uint8_t* weights, int width, int pixels);

}  // namespace gsb
