#include "forward/tokenizer.h"

#include <cstring>

#include "forward/call.h"

namespace gsb {

namespace {

// Vectors of GCC and Clang: a compiler makes branches of these comparisons otherwise, which are hard to predict.
using Floats4 = float __attribute__((vector_size(16)));
using Words4 = int32_t __attribute__((vector_size(16)));

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

}  // namespace

void gather_pixels(const uint8_t* picture, int width, int line, int column, int area, uint8_t* out) {
    if (line == 0 || column == 0) {
        std::memset(out, 0, static_cast<size_t>(3) * area);
        for (int row = line == 0; row < 3; ++row) {
            for (int tap = column == 0; tap < 3; ++tap) {
                const size_t place = static_cast<size_t>(2 * line + row - 1) * width + (2 * column + tap - 1);
                for (int colour = 0; colour < 3; ++colour)
                    out[colour * area + 3 * row + tap] = picture[3 * place + colour];
            }
        }
        return;
    }
    const uint8_t* from = picture + (static_cast<size_t>(2 * line - 1) * width + (2 * column - 1)) * 3;
    for (int row = 0; row < 3; ++row, from += static_cast<size_t>(3) * width, out += 3) {
        for (int tap = 0; tap < 3; ++tap) {
            out[tap] = from[3 * tap];
            out[area + tap] = from[3 * tap + 1];
            out[2 * area + tap] = from[3 * tap + 2];
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

// One line of what a convolution before the last gives, as levels.
void Forward::convolve(Call& call, Scratch& scratch, int index, int line) const {
    StageTimer timer(call.seconds(scratch), Stage::patches);
    const Convolution& convolution = weights_.convolutions[index];
    const FeatureMap& map = shape_.maps[index];
    uint8_t* window = scratch.pixels.data();
    for (int column = 0; column < map.width; ++column, window += 3 * convolution.area) {
        if (index == 0) {
            gather_pixels(call.picture, architecture_.image_width, line, column, convolution.area, window);
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
    quantize_line(scratch.line.data(), convolution.padded, map.width, map.channels,
                  call.workspace.levels[index].data() + map.place(line, 0));
}

}  // namespace gsb
