// The packed model's tensors in the layouts a backend's kernels read, made once when a model is loaded.
//
// Padding: channel counts are rounded up to 16. Inside query, key, Value and the projection's input each head has its d
// channels rounded up to `head_channels`, a multiple of 32, so that heads begin at whole words.
#pragma once

#include <cstdint>
#include <vector>

#include "file/packed_model.h"
#include "kernels/contract.h"
#include "machine/buffer.h"

namespace gsb {

// A (channels, depth) matrix of bits.
struct BinaryWeights {
    Buffer<uint32_t> words;
    int channels = 0;  // padded
    int depth = 0;     // words
};

// Words of packed weights of that shape; `depth` in words.
size_t weight_words(WeightLayout layout, int channels, int depth);

// Lays out rows (channels, stride) of words as `layout` wants them; channels a multiple of 16.
void pack_weights(WeightLayout layout, const uint32_t* rows, size_t stride, int channels, int depth, uint32_t* out);

// Lays out int8 (width, 3, pixels) as the kernels' patches_embed reads it, zeros as padding.
Buffer<uint8_t> pack_patch_weights(PatchLayout layout, const uint8_t* weights, int width, int pixels);

// What Norm compares with: for t = (x − μ)·r the sign bit of t·γ + β is (t >= threshold) ^ flip.
struct NormSigns {
    Buffer<float> threshold;  // (width, padded to 16)
    Buffer<uint32_t> flip;    // bits
};
NormSigns norm_signs(const std::vector<float>& weight, const std::vector<float>& bias);

// Sizes that follow from the architecture.
struct Shape {
    explicit Shape(const Architecture& a);

    // Where channel c of C lies when heads are padded.
    int inner_channel(int c) const { return c / head_dim * head_channels + c % head_dim; }

    int tokens, patches, prefix;
    int width, padded_width;    // C, rounded up to 16
    int hidden, padded_hidden;  // M, rounded up to 16
    int heads, head_dim, head_channels, head_words;
    int inner;       // heads · head_channels
    int patch_area;  // pixels a colour of a patch, rounded up to 4
    int attention_groups, value_groups;
    size_t key_stride;                                           // tokens rounded up to 64
    size_t token_words, width_words, inner_words, hidden_words;  // row strides: even numbers of words
};

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

struct HeadWeights {
    std::vector<float> shift, scale, bias;
    float input_scale;
    const int8_t* weight;  // (K, C), in the mapping
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
