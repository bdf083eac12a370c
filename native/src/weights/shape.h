// Padded sizes: channel counts are rounded up to 16. Inside query, key, Value and the projection's input each head has
// its d channels rounded up to `head_channels`, a multiple of 32, so that heads begin at whole words.
#pragma once

#include <cstddef>
#include <vector>

#include "file/packed_model.h"
#include "kernels/contract.h"

namespace gsb {

// Words of 32 bits.
constexpr int words_for(int bits) {
    return (bits + 31) / 32;
}

// Levels that a convolution of the tokenizer gives: (height + 1, width + 1, units), zeros in the first line and the
// first column, which the next one's windows reach over the edge. A unit is a byte, or a word of one-bit levels.
struct FeatureMap {
    int height, width, channels, bits;

    int units() const { return bits == 1 ? words_for(channels) : channels; }
    size_t size() const { return static_cast<size_t>(height + 1) * (width + 1) * units(); }
    // Where (y, x) lies; both begin at −1.
    size_t place(int y, int x) const { return (static_cast<size_t>(y + 1) * (width + 1) + (x + 1)) * units(); }
    // Words of a window of one-bit levels: tap after tap.
    int window_words() const { return 9 * units(); }
    size_t window_stride() const { return kSteps.row_words(32 * window_words()); }
};

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
    int patch_area;  // pixels a colour of a patch, or levels a row of the last convolution's window, rounded up to 4
    std::vector<FeatureMap> maps;  // of the tokenizer's convolutions but the last
    int attention_groups, value_groups;
    size_t key_stride;  // tokens rounded up to 64
    // How activations are kept: behind a norm, queries and keys, what attention gives, behind GELU, attention masks.
    ActivationFormat width_format, query_format, inner_format, hidden_format, token_format;
    size_t width_words, query_words, inner_words, hidden_words, token_words;  // their row strides
};

}  // namespace gsb
