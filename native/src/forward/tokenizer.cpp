#include "forward/tokenizer.h"

#include <cstring>

#include "forward/call.h"
#include "forward/colours.h"

namespace gsb {

namespace {

// Vectors of GCC and Clang: a compiler makes branches of these comparisons otherwise, which are hard to predict.
using Floats4 = float __attribute__((vector_size(16)));
using Words4 = int32_t __attribute__((vector_size(16)));
using Bits4 = uint32_t __attribute__((vector_size(16)));

constexpr int kLevels = 16;

inline Words4 levels_of(const float* y) {
    Floats4 level;
    std::memcpy(&level, y, sizeof level);
    const Floats4 most = Floats4{} + 255.0f, whole = Floats4{} + 8388608.0f;
    const Words4 positive = level > Floats4{};  // all ones where it holds; NaN is not above 0
    level = reinterpret_cast<Floats4>(reinterpret_cast<Words4>(level) & positive);
    const Words4 inside = level < most;
    level = reinterpret_cast<Floats4>((reinterpret_cast<Words4>(level) & inside) |
                                      (reinterpret_cast<Words4>(most) & ~inside));
    // From 2^23 on floats are whole, so adding it rounds, half to even, and the last bits of the sum are the level. The
    // bounds are whole, so clamping may go first.
    return reinterpret_cast<Words4>(level + whole) - reinterpret_cast<Words4>(whole);
}

inline void quantize(const float* y, uint8_t* levels) {
    int32_t words[kLevels];
    for (int i = 0; i < kLevels; i += 4) {
        const Words4 four = levels_of(y + i);
        std::memcpy(words + i, &four, sizeof four);
    }
    uint8_t bytes[kLevels];
    for (int i = 0; i < kLevels; ++i) bytes[i] = static_cast<uint8_t>(words[i]);
    std::memcpy(levels, bytes, sizeof bytes);
}

// Bit i is clamp(rint(y_i), 0, 1). Half to even: 0.5 is 0. NaN is not above it.
inline uint32_t bits_of(const float* y) {
    const Floats4 half = Floats4{} + 0.5f;
    Bits4 all = {};
    for (int i = 0; i < 32; i += 4) {
        Floats4 four;
        std::memcpy(&four, y + i, sizeof four);
        all |= reinterpret_cast<Bits4>(four > half) & (Bits4{1, 2, 4, 8} << i);
    }
    return all[0] | all[1] | all[2] | all[3];
}

}  // namespace

void split_lines(const uint8_t* picture, int width, int line, size_t stride, uint8_t* planes) {
    const size_t picture_line = static_cast<size_t>(3) * width;
    for (int row = 0; row < 3; ++row, planes += 3 * stride) {
        if (2 * line + row == 0) {
            std::memset(planes, 0, 3 * stride);
            continue;
        }
        for (int colour = 0; colour < 3; ++colour) planes[colour * stride] = 0;
        uint8_t* first = planes + 1;
        split_colours(picture + (2 * line + row - 1) * picture_line, width, first, first + stride, first + 2 * stride);
    }
}

void gather_pixels(const uint8_t* planes, size_t stride, int column, int area, uint8_t* out) {
    const uint8_t* from = planes + 2 * static_cast<size_t>(column);
    for (int row = 0; row < 3; ++row) {
        // Four bytes are one instruction. The fourth is overwritten by the next row's first; behind the last row it
        // meets a weight of 0.
        for (int colour = 0; colour < 3; ++colour, from += stride) {
            std::memcpy(out + colour * area + 3 * row, from, 4);
        }
    }
}

void gather_levels(const FeatureMap& map, const uint8_t* levels, int line, int column, int area, uint8_t* out) {
    const size_t count = static_cast<size_t>(3) * map.channels;
    for (int row = 0; row < 3; ++row) {
        std::memcpy(out + static_cast<size_t>(row) * area, levels + map.place(2 * line + row - 1, 2 * column - 1),
                    count);
    }
}

void gather_bits(const FeatureMap& map, const uint32_t* bits, int line, int column, uint32_t* out) {
    const size_t units = map.units();
    for (int row = 0; row < 3; ++row, out += 3 * units) {
        const uint32_t* from = bits + map.place(2 * line + row - 1, 2 * column - 1);
        switch (units) {  // constant counts: a copy of a few words is no call
            case 1:
                std::memcpy(out, from, 3 * sizeof(*out));
                break;
            case 2:
                std::memcpy(out, from, 6 * sizeof(*out));
                break;
            default:
                std::memcpy(out, from, 3 * units * sizeof(*out));
        }
    }
    if (units % 2 != 0) *out = 0;  // rows of operands have an even number of words
}

void quantize_line(const float* y, size_t stride, int width, int channels, uint8_t* levels) {
    for (int place = 0; place < width; ++place, y += stride, levels += channels) {
        const int rest = channels % kLevels, most = channels - rest;
        for (int c = 0; c < most; c += kLevels) quantize(y + c, levels + c);
        if (rest == 0) continue;
        uint8_t last[kLevels];
        quantize(y + most, last);  // the floats behind the channels are padding
        std::memcpy(levels + most, last, rest);
    }
}

void binarize_line(const float* y, size_t stride, int width, int channels, uint32_t* bits) {
    for (int place = 0; place < width; ++place, y += stride) {
        for (int first = 0; first < channels; first += 32, ++bits) {
            const uint32_t all = bits_of(y + first);  // floats behind the channels are readable
            *bits = channels - first < 32 ? all & ((1u << (channels - first)) - 1) : all;
        }
    }
}

// Windows of `count` outputs from `place` on, in rows, of one-bit levels.
Product Forward::window_product(Call& call, Scratch& scratch, int map_index, int place, int count,
                                const BinaryWeights& weights) const {
    const FeatureMap& map = shape_.maps[map_index];
    const uint32_t* bits = call.workspace.level_bits[map_index].data();
    const int columns = map.width / 2;
    const size_t stride = map.window_stride();
    int line = place / columns, column = place % columns;
    uint32_t* window = scratch.bit_windows.data();
    for (int i = 0; i < count; ++i, window += stride) {
        gather_bits(map, bits, line, column, window);
        if (++column == columns) column = 0, ++line;
    }
    return product(scratch, scratch.bit_windows.data(), stride, count, weights);
}

// One line of what a convolution of one-bit levels before the last gives, as levels.
void Forward::convolve_bits(Call& call, Scratch& scratch, int index, int line) const {
    const Convolution& convolution = weights_.convolutions[index];
    const FeatureMap& map = shape_.maps[index];
    const ResidualLayer& layer = convolution.binary;
    const Product p = window_product(call, scratch, index - 1, line * map.width, map.width, layer.weights);
    if (map.bits == 1) {
        const size_t units = map.units(), stride = round_up(units, 2);
        kernels_.product_interval(p, convolution.low.data(), convolution.range.data(), scratch.line_bits.data(),
                                  stride);
        uint32_t* out = call.workspace.level_bits[index].data() + map.place(line, 0);
        const uint32_t* from = scratch.line_bits.data();
        for (int column = 0; column < map.width; ++column, out += units, from += stride) {
            std::memcpy(out, from, units * sizeof(*out));
        }
        return;
    }
    std::memset(scratch.line.data(), 0, static_cast<size_t>(map.width) * convolution.padded * sizeof(float));
    kernels_.product_residual(p, layer.base.data(), layer.scale.data(), layer.bias.data(), scratch.line.data(),
                              convolution.padded);
    quantize_line(scratch.line.data(), convolution.padded, map.width, map.channels,
                  call.workspace.levels[index].data() + map.place(line, 0));
}

// One line of what a convolution before the last gives, as levels.
void Forward::convolve(Call& call, Scratch& scratch, int index, int line) const {
    StageTimer timer(call.seconds(scratch), Stage::patches);
    const Convolution& convolution = weights_.convolutions[index];
    const FeatureMap& map = shape_.maps[index];
    if (index > 0 && shape_.maps[index - 1].bits == 1) return convolve_bits(call, scratch, index, line);
    uint8_t* window = scratch.pixels.data();
    uint8_t* planes = scratch.planes.data();
    const size_t plane_stride = scratch.planes.size() / 9;
    if (index == 0) split_lines(call.picture, architecture_.image_width, line, plane_stride, planes);
    for (int column = 0; column < map.width; ++column, window += 3 * convolution.area) {
        if (index == 0) {
            gather_pixels(planes, plane_stride, column, convolution.area, window);
        } else {
            gather_levels(shape_.maps[index - 1], call.workspace.levels[index - 1].data(), line, column,
                          convolution.area, window);
        }
    }
    Patches patches{};
    patches.pixels = scratch.pixels.data();
    patches.weights = convolution.weight.data();
    patches.count = map.width;
    patches.area = convolution.area;
    patches.channels = convolution.padded;
    patches.scale = convolution.scale.data();
    patches.position = convolution.offset.data();
    if (line > 0 && index == 0) patches.position += static_cast<size_t>(map.width) * convolution.padded;
    patches.x = scratch.line.data();
    patches.stride = convolution.padded;
    kernels_.patches_embed(patches);
    if (map.bits == 1) {
        binarize_line(scratch.line.data(), convolution.padded, map.width, map.channels,
                      call.workspace.level_bits[index].data() + map.place(line, 0));
        return;
    }
    quantize_line(scratch.line.data(), convolution.padded, map.width, map.channels,
                  call.workspace.levels[index].data() + map.place(line, 0));
}

}  // namespace gsb
