// Windows of the tokenizer's convolutions: 3 x 3, stride 2, one line and one column of zeros before the first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "weights/shape.h"

namespace gsb {

// Takes the three lines of a picture (height, width, 3) that the outputs of `line` read apart: (line, colour, stride),
// in each a zero before the first pixel; zeros outside. A stride has room for three bytes more than the zero and the
// pixels.
void split_lines(const uint8_t* picture, int width, int line, size_t stride, uint8_t* planes);

// Cuts the window of an output out of them, colour by colour: 9 pixels each, `area` bytes apart, at least 10. What lies
// behind the 9 is no zero.
void gather_pixels(const uint8_t* planes, size_t stride, int column, int area, uint8_t* out);

// Cuts the window of output (line, column) out of levels, which have their zeros before them (FeatureMap): kernel row
// by kernel row, 3 · channels levels each, `area` bytes apart.
void gather_levels(const FeatureMap& map, const uint8_t* levels, int line, int column, int area, uint8_t* out);

// The same of one-bit levels: tap by tap, each in whole words, map.window_stride() words in all.
void gather_bits(const FeatureMap& map, const uint32_t* bits, int line, int column, uint32_t* out);

// Levels clamp(rint(y), 0, 255) of `width` outputs (width, stride), into a line of a map (width, channels).
void quantize_line(const float* y, size_t stride, int width, int channels, uint8_t* levels);

// One-bit levels clamp(rint(y), 0, 1) of them, into a line of a map (width, words); 0 behind the channels.
void binarize_line(const float* y, size_t stride, int width, int channels, uint32_t* bits);

}  // namespace gsb
