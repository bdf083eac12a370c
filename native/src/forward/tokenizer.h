// Windows of the tokenizer's convolutions: 3 x 3, stride 2, one line and one column of zeros before the first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "weights/shape.h"

namespace gsb {

// Cuts the window of output (line, column) out of a picture (height, width, 3), colour by colour: 9 pixels each, zeros
// outside, `area` bytes apart.
void gather_pixels(const uint8_t* picture, int width, int line, int column, int area, uint8_t* out);

// Cuts the window of output (line, column) out of levels, which have their zeros before them (FeatureMap): kernel row
// by kernel row, 3 · channels levels each, `area` bytes apart.
void gather_levels(const FeatureMap& map, const uint8_t* levels, int line, int column, int area, uint8_t* out);

// Levels clamp(rint(y), 0, 255) of `width` outputs (width, stride), into a line of a map (width, channels).
void quantize_line(const float* y, size_t stride, int width, int channels, uint8_t* levels);

}  // namespace gsb
