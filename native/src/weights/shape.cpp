#include "weights/shape.h"

#include "machine/buffer.h"

namespace gsb {

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
      patch_area(static_cast<int>(round_up(a.patch_height * a.patch_width, 4))),
      attention_groups(a.attention_groups()),
      value_groups(a.value_groups()),
      key_stride(round_up(tokens, 64)),
      token_words(round_up(words_for(tokens), 2)),
      width_words(round_up(words_for(padded_width), 2)),
      inner_words(round_up(words_for(inner), 2)),
      hidden_words(round_up(words_for(padded_hidden), 2)) {}

}  // namespace gsb
