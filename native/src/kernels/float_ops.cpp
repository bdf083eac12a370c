#include "kernels/float_ops.h"

#include <cmath>

#include "kernels/contract.h"

namespace gsb {

bool layer_norm(const float* x, int width, const float* weight, const float* bias, float eps, float* y) {
    const float share = 1.0f / static_cast<float>(width);
    const float mean = sum16(x, width) * share;
    float lane[kLanes] = {};
    for (int i = 0; i < width; i += kLanes) {
        const int end = width - i < kLanes ? width - i : kLanes;
        for (int l = 0; l < end; ++l) {
            const float centred = x[i + l] - mean;
            y[i + l] = centred;
            lane[l] = lane[l] + centred * centred;
        }
    }
    const float variance = fold16(lane) * share;
    const float factor = 1.0f / std::sqrt(variance + eps);
    for (int i = 0; i < width; ++i) y[i] = ((y[i] * factor) * weight[i]) + bias[i];
    return norm_holds(factor);
}

}  // namespace gsb
