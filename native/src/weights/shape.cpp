#include "weights/shape.h"

#include "machine/buffer.h"

namespace gsb {

namespace {

std::vector<FeatureMap> maps_of(const Architecture& a) {
    std::vector<FeatureMap> maps;
    int height = a.image_height, width = a.image_width;
    for (size_t i = 0; i + 1 < a.channels.size(); ++i) {
        height /= 2;
        width /= 2;
        maps.push_back({height, width, a.channels[i], a.level_bits[i]});
    }
    return maps;
}

// Numbers that one of the three sums of a token is over.
int token_area(const Architecture& a) {
    return a.channels.empty() ? a.patch_height * a.patch_width : 3 * a.channels[a.channels.size() - 2];
}

}  // namespace

Shape::Shape(const Architecture& a)
    : tokens(a.num_tokens()),
      patches(a.num_patches()),
      prefix(a.prefix_tokens),
      width(a.embed_dim),
      padded_width(static_cast<int>(round_up(a.embed_dim, 16))),
      hidden(a.mlp_hidden),
      padded_hidden(static_cast<int>(round_up(a.mlp_hidden, 16))),
      heads(a.num_heads),
      head_dim(a.head_dim()),
      head_channels(static_cast<int>(round_up(a.head_dim(), 32))),
      head_words(head_channels / 32),
      inner(heads * head_channels),
      patch_area(static_cast<int>(round_up(token_area(a), 4))),
      maps(maps_of(a)),
      attention_groups(a.attention_groups()),
      value_groups(a.value_groups()),
      key_stride(round_up(tokens, 64)),
      width_format(kSigns),
      query_format(kSigns),
      inner_format(kSigns),
      hidden_format(kSteps),
      token_format(kSteps),
      width_words(width_format.row_words(padded_width)),
      query_words(query_format.row_words(inner)),
      inner_words(inner_format.row_words(inner)),
      hidden_words(hidden_format.row_words(padded_hidden)),
      token_words(token_format.row_words(tokens)) {}

}  // namespace gsb
