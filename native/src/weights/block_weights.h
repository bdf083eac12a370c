// One block's tensors as its kernels read them.
#pragma once

#include <cstdint>
#include <vector>

#include "file/packed_model.h"
#include "kernels/contract.h"
#include "machine/buffer.h"
#include "weights/layout.h"
#include "weights/norm_signs.h"
#include "weights/shape.h"

namespace gsb {

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
    const uint16_t* half_bias = nullptr;  // full bias, in the mapping or in half_copy
    Buffer<uint16_t> half_copy;
    float half_scale;
    std::vector<float> attention_limits, value_limits;  // scope fixed
    std::vector<float> product_scale;
    BinaryWeights projection;        // (padded_width, inner)
    Buffer<float> projection_shift;  // (inner), −infinity in pad channels
    Buffer<int32_t> projection_base, fc2_base;
    Buffer<float> projection_scale, projection_bias, fc2_scale, fc2_bias;  // (padded_width)
    BinaryWeights fc1, fc2;
    Buffer<int32_t> fc1_low;
    Buffer<uint32_t> fc1_range;

  private:
    void pack_qkv(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block);
    void pack_attention(const PackedModel& model, const Shape& shape, int block);
    void pack_projection(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block);
    void pack_mlp(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block);
};

}  // namespace gsb
