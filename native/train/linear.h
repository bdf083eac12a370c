// A whole one-bit linear layer: the passes of inputs.h and weights.h over all rows, on several threads.
#pragma once

#include "inputs.h"
#include "weights.h"

namespace gsb::train {

enum class Type { float32, bfloat16 };

struct Tensor {
    void* data;
    Type type;
};

// body(pointer to the numbers of their type).
template <class Body>
void with_type(Tensor tensor, const Body& body) {
    if (tensor.type == Type::float32) {
        body(static_cast<float*>(tensor.data));
    } else {
        body(static_cast<Half*>(tensor.data));
    }
}

// Packs weight (channels, width): packed (packed_words), sums (channels, padded to 16).
void pack_weight(const float* weight, int channels, int width, float mean, uint64_t* packed, int32_t* sums,
                 int threads);

// scale[channel]·B (channels, width).
void expand_weight(const uint64_t* packed, int channels, int width, const float* scale, Tensor out, int threads);

struct Layer {
    const uint64_t* packed;
    const int32_t* sums;
    int channels;
    const float *scale, *bias;
};

// Quantizes x and multiplies: y (rows, channels) where given, the integers where given, code where given.
void linear_forward(const Inputs&, Tensor x, const Layer&, Tensor y, int16_t* integers, uint8_t* code, int threads);

// y = integers·scale + bias (rows, channels).
void rescale_integers(const int16_t* integers, int rows, int channels, const float* scale, const float* bias, Tensor y,
                      int threads);

// See quantize_backward; shift_grad (width) is overwritten. Sums are added in the order of the rows' blocks.
float inputs_backward(const Inputs&, const uint8_t* code, Tensor grad, Tensor dequantized, float* shift_grad,
                      int threads);

}  // namespace gsb::train
