// Float steps shared by backends; each as docs/numerics.md writes it, one rounding an operation.
#pragma once

#include <cstdint>
#include <cstring>

namespace gsb {

constexpr int kLanes = 16;

// Folds sixteen lanes onto their first half, four times.
inline float fold16(float* lane) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
    }
    return lane[0];
}

inline float sum16(const float* x, int n) {
    float lane[kLanes] = {};
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int l = 0; l < kLanes; ++l) lane[l] = lane[l] + x[i + l];
    }
    for (int l = 0; i + l < n; ++l) lane[l] = lane[l] + x[i + l];
    return fold16(lane);
}

// IEEE half → float, exact.
inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7FFFu;
    // Shifted into place the exponent is 112 too small; a multiplication mends that, subnormals included.
    const uint32_t shifted = magnitude << 13;
    float value;
    std::memcpy(&value, &shifted, sizeof(value));
    value *= 0x1p112f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits |= sign;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// One row: y = ((x − μ)·r·γ) + β. y may be x. Says whether the norm holds (contract.h).
bool layer_norm(const float* x, int width, const float* weight, const float* bias, float eps, float* y);

}  // namespace gsb
