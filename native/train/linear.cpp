#include "linear.h"

#include <vector>

#include "tasks.h"

namespace gsb::train {
namespace {

constexpr int kBlocksPerTask = 4;

template <class Body>
void run_blocks(int threads, int channels, const Body& body) {
    const int blocks = (channels + kLanes - 1) / kLanes;
    run_tasks(threads, (blocks + kBlocksPerTask - 1) / kBlocksPerTask, [&](int task) {
        for (int block = task * kBlocksPerTask; block < std::min(blocks, (task + 1) * kBlocksPerTask); ++block) {
            body(block);
        }
    });
}

// B = 2p − 1 of a step's p: Σp·w = (Σw + ΣB·w)/2.
std::vector<int32_t> bases(const Inputs& in, const Layer& layer) {
    std::vector<int32_t> base((layer.channels + kLanes - 1) / kLanes * kLanes, in.width);
    for (size_t i = 0; in.step && i < base.size(); ++i) base[i] = (layer.sums[i] + in.width) / 2;
    return base;
}

}  // namespace

void pack_weight(const float* weight, int channels, int width, float mean, uint64_t* packed, int32_t* sums,
                 int threads) {
    run_blocks(threads, channels, [&](int block) { pack_block(weight, channels, width, mean, block, packed, sums); });
}

void expand_weight(const uint64_t* packed, int channels, int width, const float* scale, Tensor out, int threads) {
    with_type(out, [&](auto* to) {
        run_blocks(threads, channels, [&](int block) { expand_block(packed, channels, width, scale, block, to); });
    });
}

void linear_forward(const Inputs& in, Tensor x, const Layer& layer, Tensor y, int16_t* integers, uint8_t* code,
                    int threads) {
    const std::vector<int32_t> base = layer.packed ? bases(in, layer) : std::vector<int32_t>();
    const Product product{layer.packed, base.data(), in.step ? 1 : 2, layer.channels, in.width};
    const size_t words = words_of(in.width);
    std::vector<uint64_t> bits(words * in.rows);
    run_rows(threads, in.rows, [&](int, int first, int last) {
        with_type(x, [&](auto* from) { quantize(in, from, first, last, bits.data(), code); });
        if (integers) multiply_integers(product, bits.data(), first, last, integers);
        if (!y.data) return;
        with_type(y, [&](auto* to) { multiply(product, bits.data(), layer.scale, layer.bias, first, last, to); });
    });
}

void rescale_integers(const int16_t* integers, int rows, int channels, const float* scale, const float* bias, Tensor y,
                      int threads) {
    with_type(y, [&](auto* to) {
        run_rows(threads, rows,
                 [&](int, int first, int last) { rescale(integers, scale, bias, channels, first, last, to); });
    });
}

float inputs_backward(const Inputs& in, const uint8_t* code, Tensor grad, Tensor dequantized, float* shift_grad,
                      int threads) {
    const int tasks = row_tasks(in.rows);
    std::vector<float> scale_sums(tasks), shift_sums(shift_grad ? static_cast<size_t>(tasks) * in.width : 0);
    with_type(grad, [&](auto* g) {
        using T = std::remove_pointer_t<decltype(g)>;
        run_rows(threads, in.rows, [&](int task, int first, int last) {
            float* sums = shift_grad ? shift_sums.data() + static_cast<size_t>(task) * in.width : nullptr;
            scale_sums[task] = quantize_backward(in, code, g, static_cast<T*>(dequantized.data), first, last, sums);
        });
    });
    double scale_grad = 0;
    for (float sum : scale_sums) scale_grad += sum;
    if (shift_grad) std::fill_n(shift_grad, in.width, 0.0f);
    for (int task = 0; shift_grad && task < tasks; ++task) {
        for (int i = 0; i < in.width; ++i) shift_grad[i] += shift_sums[static_cast<size_t>(task) * in.width + i];
    }
    return static_cast<float>(scale_grad);
}

}  // namespace gsb::train
