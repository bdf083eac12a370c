// Kernels of training on raw addresses, for src/gsb_vit/nn/fused/native.py; types and strides are checked before.
//
// What belongs together is a struct, which Python makes by naming its fields; nullptr is address 0.
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

void bind_structs(nb::module_& m) {
    nb::class_<Tensor>(m, "Tensor")
        .def(
            "__init__",
            [](Tensor* self, Address data, bool half) {
                new (self) Tensor{at<void>(data), half ? Type::bfloat16 : Type::float32};
            },
            nb::kw_only(), "data"_a, "half"_a);
    nb::class_<Inputs>(m, "Inputs", "One-bit inputs of a linear layer; the scale is read from its address.")
        .def(
            "__init__",
            [](Inputs* self, int rows, int width, Address shift, float clip, Address scale, bool step) {
                new (self) Inputs{
                    rows, width, at<const float>(shift), clip, std::fmax(*at<const float>(scale), kSmallestScale),
                    step};
            },
            nb::kw_only(), "rows"_a, "width"_a, "shift"_a, "clip"_a, "scale"_a, "step"_a);
    nb::class_<Layer>(m, "Layer", "Packed weights, and what becomes of their products.")
        .def(
            "__init__",
            [](Layer* self, Address packed, Address sums, int channels, Address scale, Address bias) {
                new (self) Layer{at<const uint64_t>(packed), at<const int32_t>(sums), channels, at<const float>(scale),
                                 at<const float>(bias)};
            },
            nb::kw_only(), "packed"_a, "sums"_a, "channels"_a, "scale"_a, "bias"_a);
    nb::class_<Heads>(m, "Heads", "Queries, keys and Values of all heads; the scales are read from their addresses.")
        .def(
            "__init__",
            [](Heads* self, int batch, int tokens, int heads, int channels, Tensor qkv, Address query_shift,
               Address key_shift, Address value_shift, Address query_scale, Address key_scale) {
                new (self)
                    Heads{{batch, tokens, heads, channels},
                          qkv,
                          {at<const float>(query_shift), at<const float>(key_shift), at<const float>(value_shift)},
                          *at<const float>(query_scale),
                          *at<const float>(key_scale)};
            },
            nb::kw_only(), "batch"_a, "tokens"_a, "heads"_a, "channels"_a, "qkv"_a, "query_shift"_a, "key_shift"_a,
            "value_shift"_a, "query_scale"_a, "key_scale"_a);
    nb::class_<Groups>(m, "Groups", "Groups of a superposition.")
        .def(
            "__init__",
            [](Groups* self, int count, Address scales, Address limits, int limit_batch) {
                new (self) Groups{count, at<const float>(scales), at<const float>(limits), limit_batch};
            },
            nb::kw_only(), "count"_a, "scales"_a, "limits"_a, "limit_batch"_a);
    nb::class_<AttentionGradients>(m, "AttentionGradients", "Where attend_backward writes.")
        .def(
            "__init__",
            [](AttentionGradients* self, Tensor qkv, Address work, Address bias, Address shifts, Address scales,
               Address members) {
                new (self) AttentionGradients{
                    qkv, at<float>(work), at<float>(bias), at<float>(shifts), at<float>(scales), at<int32_t>(members)};
            },
            nb::kw_only(), "qkv"_a, "work"_a, "bias"_a, "shifts"_a, "scales"_a, "members"_a);
}

void bind_attention(nb::module_& m) {
    const auto free = nb::call_guard<nb::gil_scoped_release>();
    m.def(
        "scores",
        [](const Heads& heads, Address factor, Address out, int threads) {
            scores(heads, *at<const float>(factor), at<float>(out), threads);
        },
        free, "heads"_a, nb::kw_only(), "factor"_a, "out"_a, "threads"_a);
    m.def(
        "attention_extremes",
        [](const Heads& heads, Address P, Address E, Address out, int threads) {
            attention_extremes(heads.shape, at<const float>(P), at<const float>(E), at<float>(out), threads);
        },
        free, "heads"_a, nb::kw_only(), "P"_a, "E"_a, "out"_a, "threads"_a);
    m.def(
        "value_extremes",
        [](const Heads& heads, Address out, int threads) { value_extremes(heads, at<float>(out), threads); }, free,
        "heads"_a, nb::kw_only(), "out"_a, "threads"_a);
    m.def(
        "superpose_values",
        [](const Heads& heads, const Groups& groups, Address out, int threads) {
            superpose_values(heads, groups, at<float>(out), threads);
        },
        free, "heads"_a, nb::kw_only(), "groups"_a, "out"_a, "threads"_a);
    m.def(
        "attend",
        [](const Heads& heads, Address P, Address E, const Groups& groups, Address V, Tensor y, int threads) {
            attend(heads.shape, at<const float>(P), at<const float>(E), groups, at<const float>(V), y, threads);
        },
        free, "heads"_a, nb::kw_only(), "P"_a, "E"_a, "groups"_a, "V"_a, "y"_a, "threads"_a);
    m.def(
        "attend_backward",
        [](const Heads& heads, Address P, Address E, const Groups& groups, const Groups& value_groups, bool aligned,
           Address V, Tensor grad, const AttentionGradients& out, int threads) {
            attend_backward(heads, at<const float>(P), at<const float>(E), groups, value_groups, aligned,
                            at<const float>(V), grad, out, threads);
        },
        free, "heads"_a, nb::kw_only(), "P"_a, "E"_a, "groups"_a, "value_groups"_a, "aligned"_a, "V"_a, "grad"_a,
        "out"_a, "threads"_a);
}

void bind_linear(nb::module_& m) {
    const auto free = nb::call_guard<nb::gil_scoped_release>();
    m.def("packed_words", &packed_words, "channels"_a, "width"_a);
    m.def(
        "pack_weight",
        [](Address weight, int channels, int width, Address mean, Address packed, Address sums, int threads) {
            pack_weight(at<const float>(weight), channels, width, *at<const float>(mean), at<uint64_t>(packed),
                        at<int32_t>(sums), threads);
        },
        free, nb::kw_only(), "weight"_a, "channels"_a, "width"_a, "mean"_a, "packed"_a, "sums"_a, "threads"_a);
    m.def(
        "expand_weight",
        [](Address packed, int channels, int width, Address scale, Tensor out, int threads) {
            expand_weight(at<const uint64_t>(packed), channels, width, at<const float>(scale), out, threads);
        },
        free, nb::kw_only(), "packed"_a, "channels"_a, "width"_a, "scale"_a, "out"_a, "threads"_a);
    m.def(
        "linear_forward",
        [](const Inputs& inputs, Tensor x, const Layer& layer, Tensor y, Address integers, Address code, int threads) {
            linear_forward(inputs, x, layer, y, at<int16_t>(integers), at<uint8_t>(code), threads);
        },
        free, nb::kw_only(), "inputs"_a, "x"_a, "layer"_a, "y"_a, "integers"_a, "code"_a, "threads"_a);
    m.def(
        "rescale",
        [](Address integers, int rows, int channels, Address scale, Address bias, Tensor y, int threads) {
            rescale_integers(at<const int16_t>(integers), rows, channels, at<const float>(scale), at<const float>(bias),
                             y, threads);
        },
        free, nb::kw_only(), "integers"_a, "rows"_a, "channels"_a, "scale"_a, "bias"_a, "y"_a, "threads"_a);
    m.def(
        "inputs_backward",
        [](const Inputs& inputs, Address code, Tensor grad, Tensor dequantized, Address shift_grad, int threads) {
            return inputs_backward(inputs, at<const uint8_t>(code), grad, dequantized, at<float>(shift_grad), threads);
        },
        free, nb::kw_only(), "inputs"_a, "code"_a, "grad"_a, "dequantized"_a, "shift_grad"_a, "threads"_a);
}

}  // namespace

NB_MODULE(GSB_TRAIN_MODULE, m) {
    m.def("supported", &supported);
    bind_structs(m);
    bind_linear(m);
    bind_attention(m);
}
