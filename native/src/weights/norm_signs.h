// What the kernels' norms compare with.
#pragma once

#include <cstdint>
#include <vector>

#include "machine/buffer.h"

namespace gsb {

// For t = (x − μ)·r the sign bit of t·γ + β is (t >= threshold) ^ flip.
struct NormSigns {
    Buffer<float> threshold;  // (width, padded to 16)
    Buffer<uint32_t> flip;    // bits
};
NormSigns norm_signs(const std::vector<float>& weight, const std::vector<float>& bias);

}  // namespace gsb
