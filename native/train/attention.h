// Attention on one-bit queries and keys with superposed attention and Value matrices, forward and backward: the
// gradients are those of src/gsb_vit/nn/superpose.py and quantize.py. The softmax itself is PyTorch's.
#pragma once

#include "linear.h"

namespace gsb::train {

constexpr int kMostGroups = 8;

// B pictures, N tokens, h heads of d channels, a multiple of 16.
struct Shape {
    int batch, tokens, heads, channels;
};

// Groups of a superposition: scales (groups), in use; limits (groups − 1, extremes, batch or 1).
struct Groups {
    int count;
    const float *scales, *limits;
    int limit_batch;
};

struct Heads {
    Shape shape;
    Tensor qkv;              // (B, N, 3, h, d)
    const float* shifts[3];  // (h, d) of queries, keys, Values; or nullptr
    float query_scale, key_scale;
};

// S (B, h, N, N) = (B_q·B_kᵀ)·factor.
void scores(const Heads&, float factor, float* out, int threads);

// Largest entries of A = P + E of each picture, (B); E (h, N, N) or nullptr.
void attention_extremes(const Shape&, const float* P, const float* E, float* largest, int threads);

// Largest and smallest Value of each picture, (2, B).
void value_extremes(const Heads&, float* extremes, int threads);

// V_b (B, h, N, d).
void superpose_values(const Heads&, const Groups& values, float* out, int threads);

// y (B, N, h·d) = A_b·V_b; what A_b leaves out, most of it, is not multiplied.
void attend(const Shape&, const float* P, const float* E, const Groups& attention, const float* V, Tensor y,
            int threads);

struct AttentionGradients {
    Tensor qkv;     // (B, N, 3, h, d); may lie where the heads' qkv does, which is then overwritten
    float* work;    // (B, h, N, N)
    float* bias;    // (h, N, N) or nullptr
    float* shifts;  // (B, h, 3, d)
    float* scales;  // (B, h, 2 + attention groups + Value groups): queries, keys, attention, Value; without factors k
    int32_t* members;  // (B, h, attention groups + Value groups): how many entries a group has
};

void attend_backward(const Heads&, const float* P, const float* E, const Groups& attention, const Groups& values,
                     bool aligned, const float* V, Tensor grad, const AttentionGradients&, int threads);

}  // namespace gsb::train
