#include "weights/model_weights.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace gsb {

namespace {

// A factor for each of an output's three sums, (width, 3), or one for all three, (width): → (3, padded).
Buffer<float> scale_rows(const std::vector<float>& scale, size_t width) {
    const size_t padded = round_up(width, 16), each = scale.size() / width;
    Buffer<float> rows(3 * padded);
    for (size_t c = 0; c < width; ++c) {
        for (size_t part = 0; part < 3; ++part) rows[part * padded + c] = scale[each == 3 ? 3 * c + part : c];
    }
    return rows;
}

// What is added to each output of a line, (width, padded): the channels' bias, or, of the picture's convolution, its
// offsets (4, channels): a first line, then the others.
Buffer<float> line_offsets(const std::vector<float>& values, int width, int channels, bool of_picture) {
    const size_t padded = round_up(channels, 16);
    const int lines = of_picture ? 2 : 1;
    Buffer<float> offsets(lines * width * padded);
    for (int line = 0; line < lines; ++line) {
        for (int column = 0; column < width; ++column) {
            const int edge = of_picture ? 2 * (line == 0) + (column == 0) : 0;
            std::copy_n(values.begin() + static_cast<size_t>(edge) * channels, channels,
                        offsets.begin() + (static_cast<size_t>(line) * width + column) * padded);
        }
    }
    return offsets;
}

// The counts of a channel, 0 … most, that give level 0: f(base − count)·scale + bias, rounded, is monotonic in them.
std::pair<int, int> zero_counts(int base, int most, float scale, float bias) {
    const auto is_zero = [=](int count) {
        const float scaled = static_cast<float>(base - count) * scale;
        return !(scaled + bias > 0.5f);
    };
    const bool rising = scale < 0;  // with the count
    int low = 0, high = most + 1;   // the first count that is zero, or, where it rises, that is not
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (is_zero(middle) != rising) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return rising ? std::make_pair(0, low - 1) : std::make_pair(low, most);
}

// What gives zero as kernels compare it. Pad channels give it whatever the count.
void pack_zero_counts(int outputs, int most, Convolution& convolution) {
    const ResidualLayer& layer = convolution.binary;
    convolution.low = Buffer<int32_t>(convolution.padded);
    convolution.range = Buffer<uint32_t>(convolution.padded);
    std::fill(convolution.range.begin(), convolution.range.end(), std::numeric_limits<uint32_t>::max());
    for (int channel = 0; channel < outputs; ++channel) {
        const auto [first, last] = zero_counts(layer.base[channel], most, layer.scale[channel], layer.bias[channel]);
        // An empty interval is never hit: no count is −1.
        convolution.low[channel] = first <= last ? first : -1;
        convolution.range[channel] = first <= last ? static_cast<uint32_t>(last - first) : 0;
    }
}

}  // namespace

void ModelWeights::pack_patches(const PackedModel& model, const Shape& shape, const Kernels& kernels) {
    const Architecture& a = model.architecture();
    patch_weight = pack_patch_weights(kernels.patches, model.bytes(-1, "patch_embed.weight"), shape.width,
                                      a.patch_height * a.patch_width);
    patch_scale = scale_rows(model.copy<float>(-1, "patch_embed.scale"), shape.width);
}

void ModelWeights::pack_tokenizer(const PackedModel& model, const Shape& shape, const Kernels& kernels) {
    int inputs = 3;  // 9 pixels a colour: as many as 3 channels of a kernel row
    for (size_t i = 0; i <= shape.maps.size(); ++i) {
        const bool last = i == shape.maps.size();
        const int outputs = last ? shape.width : shape.maps[i].channels;
        const std::string name = "tokenizer." + std::to_string(i) + ".";
        if (i > 0 && shape.maps[i - 1].bits == 1) {
            const FeatureMap& map = shape.maps[i - 1];
            const int padded = static_cast<int>(round_up(outputs, last ? 16 : 32));
            ResidualLayer layer = pack_binary_convolution(model, kernels, name, map, outputs, padded, !last);
            if (last) {
                last_convolution = std::move(layer);
                return;
            }
            Convolution convolution{};
            convolution.padded = padded;
            convolution.binary = std::move(layer);
            if (shape.maps[i].bits == 1) pack_zero_counts(outputs, 9 * map.channels, convolution);
            convolutions.push_back(std::move(convolution));
            inputs = outputs;
            continue;
        }
        const auto floats = [&](const char* part) { return model.copy<float>(-1, (name + part).c_str()); };
        Buffer<uint8_t> weight =
            pack_patch_weights(kernels.patches, model.bytes(-1, (name + "weight").c_str()), outputs, 3 * inputs);
        Buffer<float> scale = scale_rows(floats("scale"), outputs);
        if (last) {
            patch_weight = std::move(weight);
            patch_scale = std::move(scale);
            return;
        }
        convolutions.push_back({static_cast<int>(round_up(3 * inputs, 4)),
                                static_cast<int>(round_up(outputs, 16)),
                                std::move(weight),
                                std::move(scale),
                                line_offsets(floats(i == 0 ? "offset" : "bias"), shape.maps[i].width, outputs, i == 0),
                                {},
                                {},
                                {}});
        inputs = outputs;
    }
}

ModelWeights::ModelWeights(const PackedModel& model, const Shape& shape, const Kernels& kernels) {
    const Architecture& a = model.architecture();
    if (a.channels.empty()) {
        pack_patches(model, shape, kernels);
    } else {
        pack_tokenizer(model, shape, kernels);
    }
    const std::vector<float> flat = model.copy<float>(-1, "patch_embed.position");
    const size_t padded = shape.padded_width, width = shape.width;
    position = Buffer<float>(shape.patches * padded);
    for (int row = 0; row < shape.patches; ++row) {
        std::copy_n(flat.begin() + row * width, width, position.begin() + row * padded);
    }
    prefix_tokens = model.copy<float>(-1, "prefix_tokens");
    norm_weight = model.copy<float>(-1, "norm.weight");
    norm_bias = model.copy<float>(-1, "norm.bias");
    for (size_t head = 0; head < a.heads.size(); ++head) {
        const std::string name = "heads." + std::to_string(head) + ".";
        const auto floats = [&](const char* part) { return model.copy<float>(-1, (name + part).c_str()); };
        heads.push_back({floats("shift"), floats("scale"), floats("bias"), floats("input_scale")[0],
                         reinterpret_cast<const int8_t*>(model.bytes(-1, (name + "weight").c_str()))});
    }
    blocks.reserve(a.depth);
    for (int block = 0; block < a.depth; ++block) blocks.emplace_back(model, shape, kernels, block);
}

}  // namespace gsb
