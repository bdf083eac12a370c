#include "weights/norm_signs.h"

#include <cstring>
#include <limits>

namespace gsb {

namespace {

// Floats as whole numbers in the same order; −0 before +0.
int64_t ordered(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits >= 0 ? bits : -1 - static_cast<int64_t>(bits & 0x7FFFFFFF);
}

float unordered(int64_t order) {
    const auto bits = static_cast<uint32_t>(order >= 0 ? order : (-1 - order) | 0x80000000LL);
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

}  // namespace

NormSigns norm_signs(const std::vector<float>& weight, const std::vector<float>& bias) {
    NormSigns signs{Buffer<float>(round_up(weight.size(), 16)), Buffer<uint32_t>(round_up(weight.size(), 32) / 32)};
    for (size_t c = 0; c < weight.size(); ++c) {
        const bool falling = weight[c] < 0;
        // t·γ rounded is monotonic in t: bisect the floats, in their order, for the first t whose bit is 1 (where it
        // falls: 0). −infinity and +infinity stand for all and none.
        int64_t low = ordered(-std::numeric_limits<float>::infinity());
        int64_t high = ordered(std::numeric_limits<float>::infinity());
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            const float t = unordered(middle), product = t * weight[c];
            if ((product + bias[c] >= 0) != falling) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        signs.threshold[c] = unordered(low);
        signs.flip[c / 32] |= static_cast<uint32_t>(falling) << (c % 32);
    }
    return signs;
}

}  // namespace gsb
