#include "picture/prepare.h"

#include <algorithm>

namespace gsb {

Box kept_part(const Preprocessing& p, int width, int height) {
    if (!p.crop) return {0, 0, static_cast<float>(width), static_cast<float>(height)};
    const double w = width, h = height;
    const double factor = std::max(p.height / h, p.width / w) / p.crop_ratio;
    const double kept_height = std::min(p.height / factor, h), kept_width = std::min(p.width / factor, w);
    const double left = (w - kept_width) / 2, top = (h - kept_height) / 2;
    return {static_cast<float>(left), static_cast<float>(top), static_cast<float>(std::min(left + kept_width, w)),
            static_cast<float>(std::min(top + kept_height, h))};
}

void prepare(const Preprocessing& p, const Picture& picture, const Kernels& kernels, size_t max_pixels, uint8_t* out) {
    check_picture(picture, max_pixels);
    const RowSource source = rows_of(picture);
    const size_t pixels = static_cast<size_t>(p.width) * static_cast<size_t>(p.height);
    resample(source, kept_part(p, source.width, source.height), p.width, p.height, p.filter, kernels,
             std::max(max_pixels, pixels), out);
    if (source.channels == 3) return;
    for (size_t i = pixels; i-- > 0;) out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = out[i];
}

}  // namespace gsb
