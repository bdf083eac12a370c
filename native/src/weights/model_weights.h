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

struct ModelWeights {
    ModelWeights(const PackedModel& model, const Shape& shape, const Kernels& kernels);

    Buffer<uint8_t> patch_weight;
    Buffer<float> patch_scale;  // (3, padded_width)
    Buffer<float> position;     // (Np, padded_width)
    std::vector<float> prefix_tokens, norm_weight, norm_bias;
    std::vector<HeadWeights> heads;
    std::vector<BlockWeights> blocks;
};

}  // namespace gsb
