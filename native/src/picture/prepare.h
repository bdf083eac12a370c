// From a picture to the pixels a model reads: docs/numerics.md, as gsb_vit.data.preprocess does it.
#pragma once

#include <cstdint>

#include "picture/resample.h"
#include "picture/source.h"

namespace gsb {

// As it is stored with a model.
struct Preprocessing {
    int height, width;
    bool crop;  // keep the largest centred part of the model's proportions; else the whole picture is squeezed
    double crop_ratio;
    Filter filter;
};

// The part of a picture of that size that is kept.
Box kept_part(const Preprocessing& preprocessing, int width, int height);

// out: (height, width, 3). Throws Error for what check_picture refuses, and where the picture between the two passes
// has more than max_pixels pixels and more than the result.
void prepare(const Preprocessing& preprocessing, const Picture& picture, const Kernels& kernels, size_t max_pixels,
             uint8_t* out);

}  // namespace gsb
