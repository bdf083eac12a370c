// Single kernels of a backend, for tests. Operands are copied to addresses that are aligned to their element only, and
// everything around them is poisoned: a kernel that reads or writes where it must not gives wrong numbers or an error.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "arrays.h"
#include "error.h"
#include "kernels/dispatch.h"
#include "weights/layout.h"
#include "weights/norm_signs.h"

using namespace nb::literals;

namespace {

// An array one element behind a 64-byte boundary, in the middle of 0xAA bytes.
template <class T>
class Poisoned {
  public:
    explicit Poisoned(size_t size, const T* values = nullptr) : size_(size), memory_(size * sizeof(T) + 2 * kGuard) {
        std::memset(memory_.data(), 0xAA, memory_.size());
        if (values) {
            std::memcpy(data(), values, size * sizeof(T));
        } else {
            std::memset(static_cast<void*>(data()), 0, size * sizeof(T));
        }
    }
    T* data() { return reinterpret_cast<T*>(memory_.data() + kFront); }
    void check() {
        const uint8_t* front = memory_.data();
        const uint8_t* back = front + kFront + size_ * sizeof(T);
        bool clean = true;
        for (size_t i = 0; i < kFront; ++i) clean &= front[i] == 0xAA;
        for (size_t i = 0; i < 2 * kGuard - kFront; ++i) clean &= back[i] == 0xAA;
        if (!clean) throw gsb::Error("a kernel wrote outside its buffer");
    }

  private:
    static constexpr size_t kGuard = 256, kFront = 128 + sizeof(T);
    size_t size_;
    gsb::Buffer<uint8_t> memory_;
};

const gsb::Kernels& backend(const std::string& name) {
    return gsb::choose_kernels(name);
}

// The operands of a product, prepared as the model prepares them. Channels are padded with zeros to a multiple of 32.
struct Operands {
    Operands(const gsb::Kernels& kernels, Array<uint32_t, 2> x, Array<uint32_t, 2> w, int depth_bits)
        : count(x.shape(0)),
          channels(gsb::round_up(w.shape(0), 32)),
          stride(x.shape(1)),
          raw(count * stride, x.data()),
          prepared(count * stride),
          weights(gsb::weight_words(kernels.weights, channels, (depth_bits + 31) / 32)) {
        const int depth = (depth_bits + 31) / 32;
        if (stride % 2 || stride * 32 < static_cast<size_t>(depth_bits) || w.shape(1) != stride) {
            throw gsb::Error("rows must have an even number of words, as many as depth needs");
        }
        std::vector<uint32_t> padded(channels * stride);
        std::memcpy(padded.data(), w.data(), w.size() * sizeof(uint32_t));
        gsb::pack_weights(kernels.weights, padded.data(), stride, channels, depth, weights.data());
        const uint32_t* rows = raw.data();
        if (kernels.prepare_rows) {
            kernels.prepare_rows(rows, stride, count, depth, prepared.data(), stride);
            prepared.check();
            rows = prepared.data();
        }
        product = {rows,       stride, static_cast<int>(count), weights.data(), depth, static_cast<int>(channels),
                   gsb::kSigns};
    }

    size_t count, channels, stride;
    Poisoned<uint32_t> raw, prepared, weights;
    gsb::Product product;
};

// Copies a parameter of each channel and pads it.
template <class T>
Poisoned<T> per_channel(Array<T, 1> values, size_t channels, T pad) {
    std::vector<T> padded(channels, pad);
    std::memcpy(padded.data(), values.data(), values.size() * sizeof(T));
    return Poisoned<T>(channels, padded.data());
}

Result<uint16_t> product_count(const std::string& name, Array<uint32_t, 2> x, Array<uint32_t, 2> w, int depth) {
    const gsb::Kernels& kernels = backend(name);
    Operands o(kernels, x, w, depth);
    Poisoned<uint16_t> out(o.count * o.channels);
    kernels.product_count(o.product, out.data(), o.count * gsb::kCountGroup);
    out.check();
    return result(out.data(), {o.channels / gsb::kCountGroup, o.count, gsb::kCountGroup});
}

Result<uint32_t> product_threshold(const std::string& name, Array<uint32_t, 2> x, Array<uint32_t, 2> w, int depth,
                                   Array<int32_t, 1> threshold) {
    const gsb::Kernels& kernels = backend(name);
    Operands o(kernels, x, w, depth);
    Poisoned<int32_t> limits = per_channel<int32_t>(threshold, o.channels, -1);
    const size_t words = gsb::round_up(o.channels / 32, 2);
    Poisoned<uint32_t> out(o.count * words);
    kernels.product_threshold(o.product, limits.data(), out.data(), words);
    out.check();
    return result(out.data(), {o.count, words});
}

Result<uint32_t> product_interval(const std::string& name, Array<uint32_t, 2> x, Array<uint32_t, 2> w, int depth,
                                  Array<int32_t, 1> low, Array<uint32_t, 1> range) {
    const gsb::Kernels& kernels = backend(name);
    Operands o(kernels, x, w, depth);
    Poisoned<int32_t> lows = per_channel<int32_t>(low, o.channels, 0);
    Poisoned<uint32_t> ranges = per_channel<uint32_t>(range, o.channels, UINT32_MAX);
    const size_t words = gsb::round_up(o.channels / 32, 2);
    Poisoned<uint32_t> out(o.count * words);
    kernels.product_interval(o.product, lows.data(), ranges.data(), out.data(), words);
    out.check();
    return result(out.data(), {o.count, words});
}

Result<int32_t> product_integers(const std::string& name, Array<uint32_t, 2> x, Array<uint32_t, 2> w, int depth,
                                 Array<int32_t, 1> base) {
    const gsb::Kernels& kernels = backend(name);
    Operands o(kernels, x, w, depth);
    Poisoned<int32_t> bases = per_channel<int32_t>(base, o.channels, 0);
    Poisoned<int32_t> out(o.count * o.channels);
    kernels.product_integers(o.product, bases.data(), out.data(), o.channels);
    out.check();
    return result(out.data(), {o.count, o.channels});
}

Result<float> product_residual(const std::string& name, Array<uint32_t, 2> x, Array<uint32_t, 2> w, int depth,
                               Array<int32_t, 1> base, int shift, Array<float, 1> scale, Array<float, 1> bias,
                               Array<float, 2> stream) {
    const gsb::Kernels& kernels = backend(name);
    Operands o(kernels, x, w, depth);
    Poisoned<int32_t> bases = per_channel<int32_t>(base, o.channels, 0);
    Poisoned<float> scales = per_channel<float>(scale, o.channels, 0), biases = per_channel<float>(bias, o.channels, 0);
    if (stream.shape(0) != o.count || stream.shape(1) != o.channels) throw gsb::Error("the stream must be padded");
    Poisoned<float> out(o.count * o.channels, stream.data());
    o.product.inputs = shift ? gsb::kSigns : gsb::kSteps;
    kernels.product_residual(o.product, bases.data(), scales.data(), biases.data(), out.data(), o.channels);
    out.check();
    return result(out.data(), {o.count, o.channels});
}

Result<uint32_t> norm_bits(const std::string& name, Array<float, 2> x, Array<float, 1> weight, Array<float, 1> bias,
                           float eps) {
    const size_t count = x.shape(0), width = x.shape(1), padded = gsb::round_up(width, 16);
    Poisoned<float> rows(count * padded);
    for (size_t row = 0; row < count; ++row) {
        std::memcpy(rows.data() + row * padded, x.data() + row * width, width * sizeof(float));
    }
    const gsb::NormSigns signs =
        gsb::norm_signs({weight.data(), weight.data() + width}, {bias.data(), bias.data() + width});
    Poisoned<float> thresholds(padded, signs.threshold.data());
    Poisoned<uint32_t> flips(signs.flip.size(), signs.flip.data());
    const size_t words = gsb::round_up((padded + 31) / 32, 2);
    Poisoned<uint32_t> out(count * words);
    backend(name).norm_bits(
        {rows.data(), padded, static_cast<int>(count), static_cast<int>(width), thresholds.data(), flips.data(), eps},
        out.data(), words);
    out.check();
    return result(out.data(), {count, words});
}

Result<float> patches_embed(const std::string& name, Array<uint8_t, 3> pixels, Array<int8_t, 3> weights,
                            Array<float, 2> scale, Array<float, 2> position) {
    const gsb::Kernels& kernels = backend(name);
    const size_t count = pixels.shape(0), area = pixels.shape(2), width = weights.shape(0), taps = weights.shape(2);
    const size_t channels = position.shape(1);
    if (area != gsb::round_up(taps, 4) || channels != gsb::round_up(width, 16) || scale.shape(1) != channels) {
        throw gsb::Error("pixels and channels must be padded");
    }
    const gsb::Buffer<uint8_t> packed =
        gsb::pack_patch_weights(kernels.patches, reinterpret_cast<const uint8_t*>(weights.data()),
                                static_cast<int>(width), static_cast<int>(taps));
    Poisoned<uint8_t> rows(count * 3 * area, pixels.data());
    Poisoned<float> scales(3 * channels, scale.data()), positions(count * channels, position.data());
    Poisoned<float> out(count * channels);
    kernels.patches_embed({rows.data(), packed.data(), static_cast<int>(count), static_cast<int>(area),
                           static_cast<int>(channels), scales.data(), positions.data(), out.data(), channels});
    out.check();
    return result(out.data(), {count, channels});
}

Result<int32_t> dot_bytes(const std::string& name, Array<int8_t, 1> x, Array<int8_t, 2> w) {
    const size_t depth = x.shape(0), rows = w.shape(0);
    Poisoned<int8_t> input(depth, x.data()), weights(rows * depth, w.data());
    Poisoned<int32_t> out(rows);
    backend(name).dot_bytes(input.data(), weights.data(), static_cast<int>(depth), static_cast<int>(rows), out.data());
    out.check();
    return result(out.data(), {rows});
}

// Masks, and for each row its candidates' columns and values (counts −1: run again).
nb::tuple scores(const std::string& name, Array<uint32_t, 2> queries, Array<uint32_t, 2> keys,
                 Array<float, 1> exp_tables, Array<uint16_t, 2> half_bias, float half_scale, float ratio,
                 size_t capacity) {
    const size_t tokens = queries.shape(0), words = queries.shape(1), stride = gsb::round_up(tokens, 64);
    const size_t mask_words = gsb::round_up((tokens + 31) / 32, 2);
    Poisoned<uint32_t> query_rows(tokens * words, queries.data()), key_columns(words * stride);
    for (size_t j = 0; j < tokens; ++j) {
        for (size_t w = 0; w < words; ++w) key_columns.data()[w * stride + j] = keys(j, w);
    }
    Poisoned<uint16_t> bias(tokens * tokens, half_bias.data());
    Poisoned<uint32_t> masks(tokens * mask_words);
    Poisoned<float> row(stride), values(capacity + 16), tables(exp_tables.size(), exp_tables.data());
    Poisoned<int32_t> distances(gsb::kScoreRows * stride), columns(capacity + 16), count(tokens);
    Poisoned<size_t> begin(tokens);
    gsb::Candidates candidates{ratio,         0,        false, -1e30f,       columns.data(),
                               values.data(), capacity, 0,     begin.data(), count.data()};
    gsb::Scores s{};
    s.queries = query_rows.data();
    s.query_stride = words;
    s.keys = key_columns.data();
    s.key_stride = stride;
    s.words = static_cast<int>(words);
    s.tokens = s.last = static_cast<int>(tokens);
    s.exp_tables = tables.data();
    s.head_dim = static_cast<int>(exp_tables.size()) - gsb::kExpTable - 1;
    s.half_bias = bias.data();
    s.half_scale = half_scale;
    s.masks = masks.data();
    s.mask_stride = mask_words;
    s.row = row.data();
    s.distances = distances.data();
    s.candidates = &candidates;
    backend(name).scores(s);
    masks.check();
    row.check();
    values.check();
    distances.check();
    columns.check();
    count.check();
    begin.check();
    return nb::make_tuple(result(masks.data(), {tokens, mask_words}), result(columns.data(), {candidates.used}),
                          result(values.data(), {candidates.used}), result(begin.data(), {tokens}),
                          result(count.data(), {tokens}), candidates.maximum);
}

}  // namespace

void bind_kernels(nb::module_& module) {
    nb::module_ kernels = module.def_submodule("kernels", "Single kernels of a backend, for tests.");
    kernels.def("product_count", product_count, "backend"_a, "x"_a, "w"_a, "depth"_a);
    kernels.def("product_threshold", product_threshold, "backend"_a, "x"_a, "w"_a, "depth"_a, "threshold"_a);
    kernels.def("product_interval", product_interval, "backend"_a, "x"_a, "w"_a, "depth"_a, "low"_a, "range"_a);
    kernels.def("product_integers", product_integers, "backend"_a, "x"_a, "w"_a, "depth"_a, "base"_a);
    kernels.def("product_residual", product_residual, "backend"_a, "x"_a, "w"_a, "depth"_a, "base"_a, "shift"_a,
                "scale"_a, "bias"_a, "stream"_a);
    kernels.def("norm_bits", norm_bits, "backend"_a, "x"_a, "weight"_a, "bias"_a, "eps"_a);
    kernels.def("patches_embed", patches_embed, "backend"_a, "pixels"_a, "weights"_a, "scale"_a, "position"_a);
    kernels.def("dot_bytes", dot_bytes, "backend"_a, "x"_a, "w"_a);
    kernels.def("scores", scores, "backend"_a, "queries"_a, "keys"_a, "exp_tables"_a, "half_bias"_a, "half_scale"_a,
                "ratio"_a, "capacity"_a);
    kernels.attr("EXP_TABLE") = gsb::kExpTable;
}
