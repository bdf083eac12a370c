// Padded sizes: channel counts are rounded up to 16. Inside query, key, Value and the projection's input each head has
// its d channels rounded up to `head_channels`, a multiple of 32, so that heads begin at whole words.
#pragma once

#include <cstddef>

#include "file/packed_model.h"
#include "kernels/contract.h"

namespace gsb {

// Words of 32 bits.
constexpr int words_for(int bits) {
    return (bits + 31) / 32;
}

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
    size_t key_stride;  // tokens rounded up to 64
    // How activations are kept: behind a norm, queries and keys, what attention gives, behind GELU, attention masks.
    ActivationFormat width_format, query_format, inner_format, hidden_format, token_format;
    size_t width_words, query_words, inner_words, hidden_words, token_words;  // their row strides
};

}  // namespace gsb
