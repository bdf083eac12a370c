#include "weights/layout.h"

#include <algorithm>
#include <cstring>

namespace gsb {

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

}  // namespace gsb
