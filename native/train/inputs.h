// One-bit inputs of a linear layer, forward and backward. See the gradients in src/gsb_vit/nn/quantize.py.
#pragma once

#include "lanes.h"

namespace gsb::train {

// A row's inputs become t = clamp(x, ±clip) + shift, the plane B (sign: t >= 0 is +1; step: t > s/2 is 1) and, for the
// backward pass, three bytes each, which say where the gradient passes, what B is, and t/s to 1e-7 where |t| <= s (of a
// step: 0 <= t <= s): see encode() in inputs.cpp.
struct Inputs {
    int rows, width;
    const float* shift;  // (width) or nullptr
    float clip;          // infinity: none
    float scale;
    bool step;
};

// Three bytes an input, row behind row; in a row all coarse parts, two bytes each, then all fine ones.
constexpr int kCodeBytes = 3;

// Rows first … last − 1: bits (rows, words_of(width)), set where B is +1 or 1; pad bits are zero. code: or nullptr.
template <class T>
void quantize(const Inputs&, const T* x, int first, int last, uint64_t* bits, uint8_t* code);

// From the gradient G of s·B, in place, to that of x. Adds ΣG·1[inside] to shift_grad (width) and returns
// ΣG·(B − 1[inside]·t/s). Writes s·B to dequantized (rows, width).
template <class T>
float quantize_backward(const Inputs&, const uint8_t* code, T* grad, T* dequantized, int first, int last,
                        float* shift_grad);

}  // namespace gsb::train
