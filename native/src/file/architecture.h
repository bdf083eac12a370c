// What a packed file's metadata says of the model's shape.
#pragma once

#include <string>
#include <vector>

#include "file/json.h"
#include "file/relative_bias.h"
#include "file/schema.h"
#include "picture/prepare.h"

namespace gsb {

// Tokens first … first + count − 1.
struct TokenRange {
    int first, count;

    int end() const { return first + count; }
};

// A classifier behind the last block.
struct Head {
    TokenRange reads;
};

struct Architecture {
    using Bias = schema::AttentionBias;
    using Pool = schema::GlobalPool;

    std::string name;
    int image_height, image_width, patch_height, patch_width;
    int embed_dim, depth, num_heads, mlp_hidden, prefix_tokens, num_classes;
    std::vector<Head> heads;  // one or two: their logits are averaged
    float layer_norm_eps;
    std::vector<float> attention_thresholds, value_thresholds;
    bool fixed_thresholds;
    Bias attention_bias;
    Pool global_pool;
    bool norm_before_pool;        // each token is normalised, then their mean is taken
    std::vector<int> channels;    // outputs of the tokenizer's convolutions; empty: patches
    std::vector<int> level_bits;  // 1 or 8, of the inputs of each convolution but the first

    int grid_height() const { return image_height / patch_height; }
    int grid_width() const { return image_width / patch_width; }
    int num_patches() const { return grid_height() * grid_width(); }
    int num_tokens() const { return prefix_tokens + num_patches(); }
    int head_dim() const { return embed_dim / num_heads; }
    int attention_groups() const { return static_cast<int>(attention_thresholds.size()) + 1; }
    int value_groups() const { return static_cast<int>(value_thresholds.size()) + 1; }
    // All that some head reads.
    TokenRange tokens_read() const;
    RelativeBias relative_bias() const { return {grid_height(), grid_width(), prefix_tokens}; }

    // Multiply-adds of the patch embedding or the tokenizer on numbers of so many bits, 8 or 1.
    double token_macs(int bits) const;

    // What the tables of schema.h ask for.
    size_t measure(const schema::Size& size, size_t convolution = 0) const;
    bool has(schema::When when) const;
};

// Reads the metadata's `architecture`, an object. `optional`: may optional keys be there? Throws Error.
Architecture read_architecture(const Json& json, bool optional);

// Reads the metadata's `preprocessing`, whose size has to be the architecture's. Throws Error.
Preprocessing read_preprocessing(const Json& json, const Architecture& architecture);

}  // namespace gsb
