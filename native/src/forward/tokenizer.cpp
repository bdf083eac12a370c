#include "forward/tokenizer.h"

#include <cstring>

#include "forward/call.h"

namespace gsb {

void gather_pixels(const uint8_t* picture, int width, int line, int column, int area, uint8_t* out) {
    for (int row = 0; row < 3; ++row) {
        const int y = 2 * line + row - 1;
        for (int tap = 0; tap < 3; ++tap) {
            const int x = 2 * column + tap - 1;
            const bool inside = y >= 0 && x >= 0;
            const uint8_t* pixel = picture + (static_cast<size_t>(inside ? y : 0) * width + (inside ? x : 0)) * 3;
            for (int colour = 0; colour < 3; ++colour) out[colour * area + 3 * row + tap] = inside ? pixel[colour] : 0;
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
    // From 2^23 on floats are whole, so adding it rounds, half to even; the bounds are whole, so clamping may go first.
    constexpr float kWhole = 8388608.0f;
    for (int place = 0; place < width; ++place, y += stride, levels += channels) {
        for (int c = 0; c < channels; ++c) {
            float level = y[c] > 0.0f ? y[c] : 0.0f;  // NaN becomes 0
            level = level < 255.0f ? level : 255.0f;
            levels[c] = static_cast<uint8_t>(static_cast<int32_t>((level + kWhole) - kWhole));
        }
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
