// One block's tensors as its kernels read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "file/packed_model.h"
#include "kernels/contract.h"
#include "machine/buffer.h"
#include "weights/layout.h"
#include "weights/norm_signs.h"
#include "weights/shape.h"

namespace gsb {

// A linear layer whose output is added to the residual stream.
struct ResidualLayer {
    BinaryWeights weights;
    Buffer<int32_t> base;       // (padded_width): what counts are subtracted from
    Buffer<float> scale, bias;  // (padded_width)
};

// Packs the rows of the file's tensor tap by tap, each tap in whole words, as windows of one-bit levels are gathered
// (forward/tokenizer.h), with its scale and, where there is one, its bias. `channels` of the rows' product.
ResidualLayer pack_binary_convolution(const PackedModel& model, const Kernels& kernels, const std::string& name,
                                      const FeatureMap& inputs, int outputs, int channels, bool has_bias);

struct BlockWeights {
    BlockWeights(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block);

    NormSigns norm1, norm2;
    BinaryWeights query, key, value;                 // (inner, C)
    Buffer<int32_t> query_threshold, key_threshold;  // (inner)
    Buffer<int16_t> value_threshold;                 // (inner)
    std::vector<float> value_scale, value_bias;      // (C)
    Buffer<float> exp_tables;                        // see kExpTable
    // Relative bias: each head's table turned around on both axes, so that a row of patches reads it forwards; then
    // its prefix part as the file has it.
    std::vector<float> bias_patches, bias_prefix;
    const uint16_t* half_bias = nullptr;  // full bias, in the file or in half_copy
    Buffer<uint16_t> half_copy;
    float half_scale;
    std::vector<float> attention_limits, value_limits;  // scope fixed
    std::vector<float> product_scale;
    ResidualLayer projection, fc2;   // (padded_width, inner), (padded_width, M)
    Buffer<float> projection_shift;  // (inner), −infinity in pad channels
    BinaryWeights fc1;               // (padded_hidden, C)
    Buffer<int32_t> fc1_low;
    Buffer<uint32_t> fc1_range;

  private:
    void pack_qkv(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block);
    void pack_attention(const PackedModel& model, const Shape& shape, int block);
    void pack_projection(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block);
    void pack_mlp(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block);
};

}  // namespace gsb
