// Kernels of training on raw addresses, for src/gsb_vit/fused/native.py; types, shapes and strides are checked before.
#include <nanobind/nanobind.h>

#include <cmath>

#include "attention.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace gsb::train;

namespace {

using Address = uintptr_t;
constexpr float kSmallestScale = 1e-5f;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

Tensor tensor(Address address, bool half) {
    return {at<void>(address), half ? Type::bfloat16 : Type::float32};
}

Inputs inputs(int rows, int width, Address shift, float clip, Address scale, bool step) {
    return {rows, width, at<const float>(shift), clip, std::fmax(*at<const float>(scale), kSmallestScale), step};
}

Groups groups(int count, Address scales, Address limits, int limit_batch) {
    return {count, at<const float>(scales), at<const float>(limits), limit_batch};
}

// What every attention kernel takes first: (B, N, h, d), qkv, whether it is bfloat16, and the three shifts.
struct HeadArguments {
    int batch, tokens, heads, channels;
    Address qkv;
    bool half;
    Address query_shift, key_shift, value_shift;

    Shape shape() const { return {batch, tokens, heads, channels}; }
    Heads get(float query_scale = 1, float key_scale = 1) const {
        return {shape(),
                tensor(qkv, half),
                {at<const float>(query_shift), at<const float>(key_shift), at<const float>(value_shift)},
                query_scale,
                key_scale};
    }
};

void bind_attention(nb::module_& m) {
    const auto free = nb::call_guard<nb::gil_scoped_release>();
    nb::class_<HeadArguments>(m, "Heads").def(nb::init<int, int, int, int, Address, bool, Address, Address, Address>());
    m.def(
        "scores",
        [](const HeadArguments& heads, Address factor, Address out, int threads) {
            scores(heads.get(), *at<const float>(factor), at<float>(out), threads);
        },
        free);
    m.def(
        "attention_extremes",
        [](const HeadArguments& heads, Address P, Address E, Address out, int threads) {
            attention_extremes(heads.shape(), at<const float>(P), at<const float>(E), at<float>(out), threads);
        },
        free);
    m.def(
        "value_extremes",
        [](const HeadArguments& heads, Address out, int threads) {
            value_extremes(heads.get(), at<float>(out), threads);
        },
        free);
    m.def(
        "superpose_values",
        [](const HeadArguments& heads, int count, Address scales, Address limits, int limit_batch, Address out,
           int threads) {
            superpose_values(heads.get(), groups(count, scales, limits, limit_batch), at<float>(out), threads);
        },
        free);
    m.def(
        "attend",
        [](const HeadArguments& heads, Address P, Address E, int count, Address scales, Address limits, int limit_batch,
           Address V, Address y, bool half, int threads) {
            attend(heads.shape(), at<const float>(P), at<const float>(E), groups(count, scales, limits, limit_batch),
                   at<const float>(V), tensor(y, half), threads);
        },
        free);
    m.def(
        "attend_backward",
        [](const HeadArguments& heads, Address query_scale, Address key_scale, Address P, Address E, int count,
           Address scales, Address limits, int limit_batch, int value_count, Address value_scales, Address value_limits,
           int value_limit_batch, bool aligned, Address V, Address grad, bool grad_half, Address grad_qkv, Address work,
           Address grad_bias, Address shifts, Address grad_scales, Address members, int threads) {
            attend_backward(heads.get(*at<const float>(query_scale), *at<const float>(key_scale)), at<const float>(P),
                            at<const float>(E), groups(count, scales, limits, limit_batch),
                            groups(value_count, value_scales, value_limits, value_limit_batch), aligned,
                            at<const float>(V), tensor(grad, grad_half),
                            {tensor(grad_qkv, heads.half), at<float>(work), at<float>(grad_bias), at<float>(shifts),
                             at<float>(grad_scales), at<int32_t>(members)},
                            threads);
        },
        free);
}

}  // namespace

NB_MODULE(GSB_TRAIN_MODULE, m) {
    const auto free = nb::call_guard<nb::gil_scoped_release>();
    bind_attention(m);
    m.def("supported", &supported);
    m.def("packed_words", &packed_words);
    m.def(
        "pack_weight",
        [](Address weight, int channels, int width, Address mean, Address packed, Address sums, int threads) {
            pack_weight(at<const float>(weight), channels, width, *at<const float>(mean), at<uint64_t>(packed),
                        at<int32_t>(sums), threads);
        },
        free);
    m.def(
        "expand_weight",
        [](Address packed, int channels, int width, Address scale, Address out, bool half, int threads) {
            expand_weight(at<const uint64_t>(packed), channels, width, at<const float>(scale), tensor(out, half),
                          threads);
        },
        free);
    m.def(
        "linear_forward",
        [](Address x, bool x_half, int rows, int width, Address shift, float clip, Address scale, bool step,
           Address packed, Address sums, int channels, Address out_scale, Address bias, Address y, bool y_half,
           Address integers, Address code, int threads) {
            linear_forward(inputs(rows, width, shift, clip, scale, step), tensor(x, x_half),
                           {at<const uint64_t>(packed), at<const int32_t>(sums), channels, at<const float>(out_scale),
                            at<const float>(bias)},
                           tensor(y, y_half), at<int16_t>(integers), at<uint8_t>(code), threads);
        },
        free);
    m.def(
        "rescale",
        [](Address integers, int rows, int channels, Address scale, Address bias, Address y, bool half, int threads) {
            rescale_integers(at<const int16_t>(integers), rows, channels, at<const float>(scale), at<const float>(bias),
                             tensor(y, half), threads);
        },
        free);
    m.def(
        "inputs_backward",
        [](Address code, int rows, int width, Address scale, bool step, Address grad, Address dequantized, bool half,
           Address shift_grad, int threads) {
            return inputs_backward(inputs(rows, width, 0, INFINITY, scale, step), at<const uint8_t>(code),
                                   tensor(grad, half), tensor(dequantized, half), at<float>(shift_grad), threads);
        },
        free);
}
