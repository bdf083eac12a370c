#include "weights/model_weights.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace gsb {

namespace {

// Rows of the file's 64-bit words, read as 32-bit words: little-endian, so word i of a row is its elements 32·i ….
struct BitRows {
    const uint8_t* data;
    size_t words64;

    uint32_t word(size_t row, size_t i) const {
        uint32_t value;
        std::memcpy(&value, data + row * words64 * 8 + i * 4, 4);
        return value;
    }
};

BitRows bit_rows(const PackedModel& model, int block, const char* name, int depth_bits) {
    return {model.bytes(block, name), (static_cast<size_t>(depth_bits) + 63) / 64};
}

int words_for(int bits) {
    return (bits + 31) / 32;
}

// Packs the rows `source(channel)` of the file, −1 standing for a row of zeros.
template <class Source>
BinaryWeights pack_rows(const Kernels& kernels, const BitRows& rows, int channels, int depth_bits, Source source) {
    const int depth = words_for(depth_bits);
    const size_t stride = round_up(depth, 2);
    Buffer<uint32_t> matrix(channels * stride);
    for (int channel = 0; channel < channels; ++channel) {
        const int row = source(channel);
        for (int i = 0; row >= 0 && i < depth; ++i) matrix[channel * stride + i] = rows.word(row, i);
    }
    BinaryWeights packed{Buffer<uint32_t>(weight_words(kernels.weights, channels, depth)), channels, depth};
    pack_weights(kernels.weights, matrix.data(), stride, channels, depth, packed.words.data());
    return packed;
}

// Copies the float tensor and pads it with zeros.
Buffer<float> padded_floats(const PackedModel& model, int block, const char* name, size_t size) {
    const std::vector<float> values = model.copy<float>(block, name);
    Buffer<float> padded(size);
    std::copy(values.begin(), values.end(), padded.begin());
    return padded;
}

template <class T>
Buffer<T> filled(size_t size, T value) {
    Buffer<T> buffer(size);
    std::fill(buffer.begin(), buffer.end(), value);
    return buffer;
}

// Floats as whole numbers in the same order; −0 before +0.
int64_t ordered(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits >= 0 ? bits : -1 - static_cast<int64_t>(bits & 0x7FFFFFFF);
}

float unordered(int64_t order) {
    const auto bits = static_cast<uint32_t>(order >= 0 ? order : (-1 - order) | 0x80000000LL);
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

Buffer<float> exp_tables(const std::vector<float>& table) {
    Buffer<float> tables(kExpTable + table.size());
    const auto entry = [&](int i) { return i < static_cast<int>(table.size()) ? table[i] : 0.0f; };
    for (int i = 0; i < 64; ++i) tables[kExpCyclic32 + i] = entry(i % 32);
    for (int i = 0; i < 128; ++i) tables[kExpCyclic64 + i] = entry(i % 64);
    std::copy(table.begin(), table.end(), tables.begin() + kExpTable);
    return tables;
}

}  // namespace

size_t weight_words(WeightLayout layout, int channels, int depth) {
    const size_t stride = layout == WeightLayout::rows ? round_up(depth, 2) : depth;
    return channels * stride;
}

void pack_weights(WeightLayout layout, const uint32_t* rows, size_t stride, int channels, int depth, uint32_t* out) {
    if (layout == WeightLayout::rows) {
        const size_t row_words = round_up(depth, 2);
        for (int c = 0; c < channels; ++c) std::memcpy(out + c * row_words, rows + c * stride, depth * sizeof(*out));
        return;
    }
    for (int first = 0; first < channels; first += kBlock) {
        const int lanes = std::min(kBlock, channels - first);
        uint32_t* block = out + static_cast<size_t>(first) * depth;
        for (int lane = 0; lane < lanes; ++lane) {
            const uint32_t* row = rows + (first + lane) * stride;
            for (int k = 0; k < depth; ++k) {
                const bool running = is_running(layout, k, depth);
                block[static_cast<size_t>(k) * lanes + lane] =
                    row[k] ^ (running ? block[static_cast<size_t>(k - 1) * lanes + lane] : 0);
            }
        }
    }
}

Buffer<uint8_t> pack_patch_weights(PatchLayout layout, const uint8_t* weights, int width, int pixels) {
    const int channels = static_cast<int>(round_up(width, 16)), area = static_cast<int>(round_up(pixels, 4));
    const size_t values = static_cast<size_t>(channels) * 3 * area;
    Buffer<uint8_t> packed(layout == PatchLayout::pairs ? 2 * values : values);
    const size_t step = layout == PatchLayout::quads ? 4 : 2, block = layout == PatchLayout::quads ? kBlock : 16;
    for (int c = 0; c < width; ++c) {
        const size_t first = c / block * block, lanes = std::min<size_t>(block, channels - first);
        for (int colour = 0; colour < 3; ++colour) {
            for (int k = 0; k < pixels; ++k) {
                const uint8_t value = weights[(static_cast<size_t>(c) * 3 + colour) * pixels + k];
                if (layout == PatchLayout::rows) {
                    packed[(static_cast<size_t>(c) * 3 + colour) * area + k] = value;
                    continue;
                }
                // (block, colour, k / step, lane, k mod step)
                const size_t group = colour * (area / step) + k / step;
                const size_t at = first * 3 * area + (group * lanes + (c - first)) * step + k % step;
                if (layout == PatchLayout::quads) {
                    packed[at] = value;
                } else {
                    const int16_t wide = static_cast<int8_t>(value);
                    std::memcpy(packed.data() + 2 * at, &wide, sizeof(wide));
                }
            }
        }
    }
    return packed;
}

NormSigns norm_signs(const std::vector<float>& weight, const std::vector<float>& bias) {
    NormSigns signs{Buffer<float>(round_up(weight.size(), 16)), Buffer<uint32_t>(round_up(weight.size(), 32) / 32)};
    for (size_t c = 0; c < weight.size(); ++c) {
        const bool falling = weight[c] < 0;
        // t·γ rounded is monotonic in t: bisect the floats, in their order, for the first t whose bit is 1 (where it
        // falls: 0). −infinity and +infinity stand for all and none.
        int64_t low = ordered(-std::numeric_limits<float>::infinity());
        int64_t high = ordered(std::numeric_limits<float>::infinity());
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            const float t = unordered(middle), product = t * weight[c];
            if ((product + bias[c] >= 0) != falling) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        signs.threshold[c] = unordered(low);
        signs.flip[c / 32] |= static_cast<uint32_t>(falling) << (c % 32);
    }
    return signs;
}

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

BlockWeights::BlockWeights(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block) {
    norm1 = norm_signs(model.copy<float>(block, "norm1.weight"), model.copy<float>(block, "norm1.bias"));
    norm2 = norm_signs(model.copy<float>(block, "norm2.weight"), model.copy<float>(block, "norm2.bias"));
    pack_qkv(model, shape, kernels, block);
    pack_attention(model, shape, block);
    pack_projection(model, shape, kernels, block);
    pack_mlp(model, shape, kernels, block);
}

void BlockWeights::pack_qkv(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block) {
    const BitRows rows = bit_rows(model, block, "attn.qkv.weight", shape.width);
    const std::vector<int16_t> thresholds = model.copy<int16_t>(block, "attn.qkv.threshold");
    const auto source = [&](int part, int channel) {
        const int head = channel / shape.head_channels, in_head = channel % shape.head_channels;
        return in_head < shape.head_dim ? part * shape.width + head * shape.head_dim + in_head : -1;
    };
    BinaryWeights* const weights[] = {&query, &key, &value};
    for (int part = 0; part < 3; ++part) {
        *weights[part] =
            pack_rows(kernels, rows, shape.inner, shape.width, [&](int channel) { return source(part, channel); });
    }
    query_threshold = Buffer<int32_t>(shape.inner);
    key_threshold = Buffer<int32_t>(shape.inner);
    value_threshold = Buffer<int16_t>(shape.inner);
    for (int channel = 0; channel < shape.inner; ++channel) {
        const auto threshold = [&](int part) {
            const int row = source(part, channel);
            return row < 0 ? static_cast<int16_t>(-1) : thresholds[row];
        };
        query_threshold[channel] = threshold(0);
        key_threshold[channel] = threshold(1);
        value_threshold[channel] = threshold(2);
    }
    value_scale = model.copy<float>(block, "attn.v_scale");
    value_bias = model.copy<float>(block, "attn.v_bias");
}

void BlockWeights::pack_attention(const PackedModel& model, const Shape& shape, int block) {
    const Architecture& a = model.architecture();
    exp_tables = gsb::exp_tables(model.copy<float>(block, "attn.exp_table"));
    half_scale = model.copy<float>(block, "attn.attention_half_scale")[0];
    product_scale = model.copy<float>(block, "attn.product_scale");
    if (a.fixed_thresholds) {
        attention_limits = model.copy<float>(block, "attn.attention_limits");
        value_limits = model.copy<float>(block, "attn.value_limits");
    }
    if (a.attention_bias == Architecture::Bias::relative) {
        const std::vector<float> bias = model.copy<float>(block, "attn.bias");
        const size_t all = a.relative_bias_size(), prefix = shape.prefix * (shape.prefix + 2), patches = all - prefix;
        for (auto head = bias.begin(); head != bias.end(); head += all) {
            bias_patches.insert(bias_patches.end(), std::make_reverse_iterator(head + patches),
                                std::make_reverse_iterator(head));
            bias_prefix.insert(bias_prefix.end(), head + patches, head + all);
        }
        bias_patches.resize(bias_patches.size() + 16);  // readable behind the end, see expand_bias
    } else if (a.attention_bias == Architecture::Bias::full) {
        const uint8_t* bytes = model.bytes(block, "attn.bias");
        half_bias = reinterpret_cast<const uint16_t*>(bytes);
        if (reinterpret_cast<uintptr_t>(bytes) % alignof(uint16_t) != 0) {
            half_copy = Buffer<uint16_t>(static_cast<size_t>(shape.heads) * shape.tokens * shape.tokens);
            std::memcpy(half_copy.data(), bytes, half_copy.size() * sizeof(uint16_t));
            half_bias = half_copy.data();
        }
    }
}

void BlockWeights::pack_projection(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block) {
    const BitRows rows = bit_rows(model, block, "attn.proj.weight", shape.width);
    // The input of the projection has each head's channels padded: move the weights' bits to their places.
    const int depth = shape.inner / 32;
    const size_t stride = round_up(depth, 2);
    Buffer<uint32_t> matrix(shape.padded_width * stride);
    for (int row = 0; row < shape.width; ++row) {
        uint32_t* out = matrix.data() + row * stride;
        if (shape.inner == shape.width) {
            for (int i = 0; i < depth; ++i) out[i] = rows.word(row, i);
            continue;
        }
        for (int channel = 0; channel < shape.width; ++channel) {
            const int place = shape.inner_channel(channel);
            out[place / 32] |= (rows.word(row, channel / 32) >> (channel % 32) & 1u) << (place % 32);
        }
    }
    projection = {Buffer<uint32_t>(weight_words(kernels.weights, shape.padded_width, depth)), shape.padded_width,
                  depth};
    pack_weights(kernels.weights, matrix.data(), stride, shape.padded_width, depth, projection.words.data());
    const std::vector<float> shift = model.copy<float>(block, "attn.proj.shift");
    projection_shift = filled(shape.inner, -std::numeric_limits<float>::infinity());
    for (int channel = 0; channel < shape.width; ++channel) {
        projection_shift[shape.inner_channel(channel)] = shift[channel];
    }
    projection_base = filled<int32_t>(shape.padded_width, shape.width);
    projection_scale = padded_floats(model, block, "attn.proj.scale", shape.padded_width);
    projection_bias = padded_floats(model, block, "attn.proj.bias", shape.padded_width);
}

void BlockWeights::pack_mlp(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block) {
    const auto within = [](int limit) { return [limit](int channel) { return channel < limit ? channel : -1; }; };
    fc1 = pack_rows(kernels, bit_rows(model, block, "mlp.fc1.weight", shape.width), shape.padded_hidden, shape.width,
                    within(shape.hidden));
    const BitRows rows = bit_rows(model, block, "mlp.fc2.weight", shape.hidden);
    fc2 = pack_rows(kernels, rows, shape.padded_width, shape.hidden, within(shape.width));
    // {0, 1} · ±1: 2·pc(p & w) − pc(p) = pc(w) − pc(p ^ w).
    fc2_base = Buffer<int32_t>(shape.padded_width);
    for (int channel = 0; channel < shape.width; ++channel) {
        for (int i = 0; i < fc2.depth; ++i) fc2_base[channel] += __builtin_popcount(rows.word(channel, i));
    }
    fc2_scale = padded_floats(model, block, "mlp.fc2.scale", shape.padded_width);
    fc2_bias = padded_floats(model, block, "mlp.fc2.bias", shape.padded_width);
    const std::vector<int16_t> intervals = model.copy<int16_t>(block, "mlp.fc1.zero_interval");
    // Pad channels are zero whatever the count.
    fc1_low = Buffer<int32_t>(shape.padded_hidden);
    fc1_range = filled<uint32_t>(shape.padded_hidden, std::numeric_limits<uint32_t>::max());
    for (int channel = 0; channel < shape.hidden; ++channel) {
        const int low = intervals[2 * channel], high = intervals[2 * channel + 1];
        // An empty interval is never hit: no count is −1.
        fc1_low[channel] = low <= high ? low : -1;
        fc1_range[channel] = low <= high ? static_cast<uint32_t>(high - low) : 0;
    }
}

ModelWeights::ModelWeights(const PackedModel& model, const Shape& shape, const Kernels& kernels) {
    const Architecture& a = model.architecture();
    patch_weight = pack_patch_weights(kernels.patches, model.bytes(-1, "patch_embed.weight"), shape.width,
                                      a.patch_height * a.patch_width);
    const std::vector<float> scale = model.copy<float>(-1, "patch_embed.scale");
    const std::vector<float> flat = model.copy<float>(-1, "patch_embed.position");
    const size_t padded = shape.padded_width, width = shape.width;
    patch_scale = Buffer<float>(3 * padded);
    for (size_t c = 0; c < width; ++c) {
        for (size_t colour = 0; colour < 3; ++colour) patch_scale[colour * padded + c] = scale[3 * c + colour];
    }
    position = Buffer<float>(shape.patches * padded);
    for (int row = 0; row < shape.patches; ++row) {
        std::copy_n(flat.begin() + row * width, width, position.begin() + row * padded);
    }
    prefix_tokens = model.copy<float>(-1, "prefix_tokens");
    norm_weight = model.copy<float>(-1, "norm.weight");
    norm_bias = model.copy<float>(-1, "norm.bias");
    for (int head = 0; head < shape.prefix; ++head) {
        const std::string name = "heads." + std::to_string(head) + ".";
        const auto floats = [&](const char* part) { return model.copy<float>(-1, (name + part).c_str()); };
        heads.push_back({floats("shift"), floats("scale"), floats("bias"), floats("input_scale")[0],
                         reinterpret_cast<const int8_t*>(model.bytes(-1, (name + "weight").c_str()))});
    }
    blocks.reserve(a.depth);
    for (int block = 0; block < a.depth; ++block) blocks.emplace_back(model, shape, kernels, block);
}

}  // namespace gsb
