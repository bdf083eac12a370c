// Portable kernels: norms, patch embedding, heads.
//
// Contract: kernels/contract.h.
#include <cmath>

#include "kernels/float_ops.h"
#include "kernels/portable/isa.h"
#include "kernels/row_products.h"

namespace gsb::portable {

namespace {

int32_t dot_pixels(const uint8_t* pixels, const int8_t* weights, int count) {
    int32_t sum = 0;
    for (int k = 0; k < count; ++k) sum += static_cast<int32_t>(pixels[k]) * weights[k];
    return sum;
}

}  // namespace

bool norm_bits(const Norm& norm, uint32_t* out, size_t out_stride) {
    bool holds = true;
    const float share = 1.0f / static_cast<float>(norm.width);
    for (int row = 0; row < norm.count; ++row) {
        const float* x = norm.x + row * norm.stride;
        const float mean = sum16(x, norm.width) * share;
        float lane[kLanes] = {};
        for (int i = 0; i < norm.width; i += kLanes) {
            const int end = norm.width - i < kLanes ? norm.width - i : kLanes;
            for (int l = 0; l < end; ++l) {
                const float centred = x[i + l] - mean;
                lane[l] = lane[l] + centred * centred;
            }
        }
        const float variance = fold16(lane) * share;
        const float factor = 1.0f / std::sqrt(variance + norm.eps);
        holds &= norm_holds(factor);
        uint32_t* bits = out + row * out_stride;
        for (int i = 0; i < norm.width; i += 32) {
            const int end = norm.width - i < 32 ? norm.width - i : 32;
            uint8_t flags[32] = {};
            for (int l = 0; l < end; ++l) flags[l] = (x[i + l] - mean) * factor >= norm.threshold[i + l];
            bits[i / 32] = static_cast<uint32_t>(pack_flags(flags, 32)) ^ norm.flip[i / 32];
        }
    }
    return holds;
}

void patches_embed(const Patches& p) {
    const size_t area = p.area;
    const auto* weights = static_cast<const int8_t*>(p.weights);
    // Channels outside: a channel's weights and a patch stay in the first cache.
    for (int c = 0; c < p.channels; ++c) {
        const int8_t* w = weights + c * 3 * area;
        for (int row = 0; row < p.count; ++row) {
            const uint8_t* u = p.pixels + row * 3 * area;
            float part[3];
            for (int colour = 0; colour < 3; ++colour) {
                const int32_t sum = dot_pixels(u + colour * area, w + colour * area, p.area);
                part[colour] = static_cast<float>(sum) * p.scale[colour * p.channels + c];
            }
            p.x[row * p.stride + c] =
                ((part[0] + part[1]) + part[2]) + p.position[static_cast<size_t>(row) * p.channels + c];
        }
    }
}

void dot_bytes(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out) {
    for (int row = 0; row < rows; ++row) {
        const int8_t* w = weights + static_cast<size_t>(row) * depth;
        int32_t sum = 0;
        for (int k = 0; k < depth; ++k) sum += static_cast<int32_t>(x[k]) * w[k];
        out[row] = sum;
    }
}

}  // namespace gsb::portable
