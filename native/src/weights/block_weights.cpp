#include "weights/block_weights.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <string>

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

// Packs the rows `source(channel)` of the file, −1 standing for a row of zeros.
template <class Source>
BinaryWeights pack_rows(const Kernels& kernels, const BitRows& rows, ActivationFormat inputs, int channels,
                        int depth_bits, Source source) {
    const int depth = words_for(depth_bits);
    const size_t stride = round_up(depth, 2);
    BinaryWeights packed{Buffer<uint32_t>(weight_words(kernels.weights, channels, depth)), channels, depth, inputs};
    std::vector<uint32_t> matrix(channels * stride);
    for (int channel = 0; channel < channels; ++channel) {
        const int row = source(channel);
        for (int i = 0; row >= 0 && i < depth; ++i) matrix[channel * stride + i] = rows.word(row, i);
    }
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

// Fills what follows from the bits of a layer's rows (width, depth_bits) and from its tensors.
void finish_residual(const PackedModel& model, int block, const std::string& name, const BitRows& rows, int depth_bits,
                     const Shape& shape, ResidualLayer& layer) {
    layer.base = Buffer<int32_t>(shape.padded_width);
    for (int channel = 0; channel < shape.width; ++channel) {
        int ones = 0;
        for (int i = 0; i < words_for(depth_bits); ++i) ones += __builtin_popcount(rows.word(channel, i));
        layer.base[channel] = layer.weights.inputs.is_signed ? depth_bits : ones;
    }
    layer.scale = padded_floats(model, block, (name + ".scale").c_str(), shape.padded_width);
    layer.bias = padded_floats(model, block, (name + ".bias").c_str(), shape.padded_width);
}

template <class T>
Buffer<T> filled(size_t size, T value) {
    Buffer<T> buffer(size);
    std::fill(buffer.begin(), buffer.end(), value);
    return buffer;
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

ResidualLayer pack_binary_convolution(const PackedModel& model, const Kernels& kernels, const std::string& name,
                                      const FeatureMap& inputs, int outputs, int channels, bool has_bias) {
    const int taps = 9, depth = inputs.window_words();
    const BitRows rows = bit_rows(model, -1, (name + "weight").c_str(), taps * inputs.channels);
    const size_t stride = inputs.window_stride();
    ResidualLayer layer;
    layer.weights = {Buffer<uint32_t>(weight_words(kernels.weights, channels, depth)), channels, depth, kSteps};
    layer.base = Buffer<int32_t>(channels);
    std::vector<uint32_t> matrix(channels * stride);
    for (int row = 0; row < outputs; ++row) {
        uint32_t* out = matrix.data() + row * stride;
        for (int bit = 0; bit < taps * inputs.channels; ++bit) {
            const uint32_t set = rows.word(row, bit / 32) >> (bit % 32) & 1u;
            const int tap = bit / inputs.channels, channel = bit % inputs.channels;
            out[tap * inputs.units() + channel / 32] |= set << (channel % 32);
            layer.base[row] += static_cast<int32_t>(set);
        }
    }
    pack_weights(kernels.weights, matrix.data(), stride, channels, depth, layer.weights.words.data());
    layer.scale = padded_floats(model, -1, (name + "scale").c_str(), channels);
    layer.bias = has_bias ? padded_floats(model, -1, (name + "bias").c_str(), channels) : Buffer<float>(channels);
    return layer;
}

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
        *weights[part] = pack_rows(kernels, rows, shape.width_format, shape.inner, shape.width,
                                   [&](int channel) { return source(part, channel); });
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
        const size_t all = a.relative_bias().size(), patches = a.relative_bias().patches();
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
    projection.weights = {Buffer<uint32_t>(weight_words(kernels.weights, shape.padded_width, depth)),
                          shape.padded_width, depth, shape.inner_format};
    std::vector<uint32_t> matrix(shape.padded_width * stride);
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
    pack_weights(kernels.weights, matrix.data(), stride, shape.padded_width, depth, projection.weights.words.data());
    finish_residual(model, block, "attn.proj", rows, shape.width, shape, projection);
    const std::vector<float> shift = model.copy<float>(block, "attn.proj.shift");
    projection_shift = filled(shape.inner, -std::numeric_limits<float>::infinity());
    for (int channel = 0; channel < shape.width; ++channel) {
        projection_shift[shape.inner_channel(channel)] = shift[channel];
    }
}

void BlockWeights::pack_mlp(const PackedModel& model, const Shape& shape, const Kernels& kernels, int block) {
    const auto within = [](int limit) { return [limit](int channel) { return channel < limit ? channel : -1; }; };
    fc1 = pack_rows(kernels, bit_rows(model, block, "mlp.fc1.weight", shape.width), shape.width_format,
                    shape.padded_hidden, shape.width, within(shape.hidden));
    const BitRows rows = bit_rows(model, block, "mlp.fc2.weight", shape.hidden);
    fc2.weights = pack_rows(kernels, rows, shape.hidden_format, shape.padded_width, shape.hidden, within(shape.width));
    finish_residual(model, block, "mlp.fc2", rows, shape.hidden, shape, fc2);
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

}  // namespace gsb
