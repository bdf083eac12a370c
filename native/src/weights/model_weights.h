// The packed model's tensors in the layouts a backend's kernels read, made once when a model is loaded.
#pragma once

#include <cstdint>
#include <vector>

#include "weights/block_weights.h"

namespace gsb {

struct HeadWeights {
    std::vector<float> shift, scale, bias;
    float input_scale;
    const int8_t* weight;  // (K, C), in the file
};

// A convolution of the tokenizer but the last: its three sums are those of the picture's colours, or of kernel rows.
// Of one-bit levels it has one sum: `binary`, and, where it gives one-bit levels, the counts that give 0.
struct Convolution {
    int area;    // numbers a sum is over, rounded up to 4
    int padded;  // output channels, rounded up to 16, or 32 where inputs are one-bit levels
    Buffer<uint8_t> weight;
    Buffer<float> scale;  // (3, padded)
    Buffer<float>
        offset;  // (width, padded) of a line; of the picture's convolution twice, the first line's and others'
    ResidualLayer binary;
    Buffer<int32_t> low;     // (padded): 0 where count − low, unsigned, is at most range
    Buffer<uint32_t> range;  // (padded)
};

struct ModelWeights {
    ModelWeights(const PackedModel& model, const Shape& shape, const Kernels& kernels);

    std::vector<Convolution> convolutions;
    ResidualLayer last_convolution;  // where its inputs are one-bit levels
    Buffer<uint8_t> patch_weight;    // of the patch embedding or the last convolution
    Buffer<float> patch_scale;       // (3, padded_width)
    Buffer<float> position;          // (Np, padded_width)
    std::vector<float> prefix_tokens, norm_weight, norm_bias;
    std::vector<HeadWeights> heads;
    std::vector<BlockWeights> blocks;

  private:
    void pack_patches(const PackedModel& model, const Shape& shape, const Kernels& kernels);
    void pack_tokenizer(const PackedModel& model, const Shape& shape, const Kernels& kernels);
};

}  // namespace gsb
