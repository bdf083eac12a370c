#include "picture/resample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>

#include "error.h"

namespace gsb {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr size_t kWeightsAtOnce = 1 << 20;
constexpr size_t kBandBytes = 1 << 18;  // of rows that are read at a time

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x = x * kPi;
    return std::sin(x) / x;
}

// The operations and their order are Pillow's.
double filter_at(Filter filter, double x) {
    constexpr double kA = -0.5;
    switch (filter) {
        case Filter::box:
            return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
        case Filter::bilinear:
            x = std::fabs(x);
            return x < 1.0 ? 1.0 - x : 0.0;
        case Filter::bicubic:
            x = std::fabs(x);
            if (x < 1.0) return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1;
            return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * kA : 0.0;
        case Filter::lanczos:
            return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
        case Filter::nearest:
            break;
    }
    return 0.0;
}

double support_of(Filter filter) {
    switch (filter) {
        case Filter::box:
            return 0.5;
        case Filter::bilinear:
            return 1.0;
        case Filter::bicubic:
            return 2.0;
        case Filter::lanczos:
            return 3.0;
        case Filter::nearest:
            break;
    }
    return 0.0;
}

int32_t fixed_point(double weight) {
    const double scaled = weight * (1 << kWeightBits);
    return static_cast<int32_t>(weight < 0 ? -0.5 + scaled : 0.5 + scaled);
}

}  // namespace

Filter filter_named(const std::string& name) {
    constexpr const char* kNames[] = {"nearest", "bilinear", "bicubic", "box", "lanczos"};  // as in Filter
    const auto found = std::find(std::begin(kNames), std::end(kNames), name);
    if (found == std::end(kNames)) {
        throw Error("filter '" + name + "' is unknown; use nearest, bilinear, bicubic, box or lanczos");
    }
    return static_cast<Filter>(found - kNames);
}

Axis::Axis(int pixels, float begin, float end, int outputs, Filter filter)
    : pixels_(pixels), begin_(begin), outputs_(outputs), filter_(filter) {
    scale_ = static_cast<double>(end - begin) / outputs;
    widening_ = scale_ < 1.0 ? 1.0 : scale_;
    support_ = support_of(filter) * widening_;
    identity_ = pixels == outputs && begin == 0 && end == static_cast<float>(outputs);
    stride_ = static_cast<size_t>(std::min(std::ceil(support_) * 2 + 1, static_cast<double>(pixels)));
    stride_ = (stride_ + 3) / 4 * 4;
}

int Axis::outputs_at_once() const {
    return static_cast<int>(std::clamp<size_t>(kWeightsAtOnce / stride_, 1, outputs_));
}

Axis::Window Axis::window(int output) const {
    const double centre = begin_ + (output + 0.5) * scale_;
    // A box of no width at the picture's end has no pixel: it gets the last one, with weight 0.
    const int first = std::clamp(static_cast<int>(centre - support_ + 0.5), 0, pixels_ - 1);
    const int end = std::min(static_cast<int>(centre + support_ + 0.5), pixels_);
    return {centre, first, end};
}

void Axis::set_weights(const Window& window, int32_t* weights) {
    const int count = window.end - window.first;
    const double factor = 1.0 / widening_;
    double sum = 0.0;
    exact_.resize(std::max(count, 0));
    for (int i = 0; i < count; ++i) {
        exact_[i] = filter_at(filter_, (i + window.first - window.centre + 0.5) * factor);
        sum += exact_[i];
    }
    for (int i = 0; i < count; ++i) weights[i] = fixed_point(sum != 0.0 ? exact_[i] / sum : exact_[i]);
}

Taps Axis::taps(int output, int count, int origin, int group, kernel::SplitWeights* split) {
    first_.resize(count);
    taps_.resize(count);
    weights_.assign(count * stride_, 0);
    for (int o = 0; o < count; ++o) {
        const Window w = window(output + o);
        int taps = std::max(w.end - w.first, 0), first = w.first;
        const int whole = (taps + group - 1) / group * group;
        if (whole <= pixels_) {  // weights of 0 in front where the picture ends, else behind
            first = std::min(first, pixels_ - whole);
            taps = whole;
        }
        first_[o] = first - origin;
        taps_[o] = taps;
        set_weights(w, weights_.data() + o * stride_ + (w.first - first));
    }
    if (split) {
        pieces_.resize(4 * weights_.size());
        for (int o = 0; o < count; ++o) {
            split(weights_.data() + o * stride_, stride_, pieces_.data() + 4 * o * stride_);
        }
    }
    return {count, stride_, first_.data(), taps_.data(), weights_.data(), split ? pieces_.data() : nullptr};
}

std::vector<int> Axis::nearest() const {
    std::vector<int> taken(outputs_);
    double at = begin_ + scale_ * 0.5;
    for (int& pixel : taken) {
        pixel = at < pixels_ ? static_cast<int>(at) : -1;
        at += scale_;
    }
    return taken;
}

namespace {

int band_of(const RowSource& source) {
    const size_t bytes = static_cast<size_t>(source.width) * source.channels;
    return static_cast<int>(std::clamp<size_t>(kBandBytes / bytes, 1, 64));
}

void take_nearest(const RowSource& source, const Axis& across, const Axis& down, uint8_t* out) {
    const std::vector<int> columns = across.nearest(), rows = down.nearest();
    const int channels = source.channels;
    std::vector<uint8_t> buffer(static_cast<size_t>(source.width) * channels);
    for (int row : rows) {
        size_t stride = 0;
        const uint8_t* in = row < 0 ? nullptr : source.rows(row, 1, buffer.data(), stride);
        for (int column : columns) {
            for (int c = 0; c < channels; ++c) {
                *out++ = in && column >= 0 ? in[static_cast<size_t>(column) * channels + c] : 0;
            }
        }
    }
}

// Rows first … end − 1 along the horizontal axis → out (end − first, width · channels).
void resample_rows(const RowSource& source, Axis& axis, int first, int end, const Kernels& kernels, uint8_t* out) {
    const size_t in_bytes = static_cast<size_t>(source.width) * source.channels;
    const size_t out_bytes = static_cast<size_t>(axis.outputs()) * source.channels;
    const int band = std::min(band_of(source), end - first), at_once = axis.outputs_at_once();
    std::vector<uint8_t> buffer(band * in_bytes);
    for (int output = 0; output < axis.outputs(); output += at_once) {
        const int outputs = std::min(at_once, axis.outputs() - output);
        Taps taps{};
        if (!axis.is_identity()) taps = axis.taps(output, outputs, 0, kernels.tap_group, kernels.split_weights);
        for (int row = first; row < end; row += band) {
            const int count = std::min(band, end - row);
            size_t stride = in_bytes;
            const uint8_t* in = source.rows(row, count, buffer.data(), stride);
            uint8_t* to = out + (row - first) * out_bytes;
            if (axis.is_identity()) {
                for (int i = 0; i < count; ++i) std::memcpy(to + i * out_bytes, in + i * stride, in_bytes);
                continue;
            }
            kernels.resize_rows({in, stride, count, source.channels, taps,
                                 to + static_cast<size_t>(output) * source.channels, out_bytes});
        }
        if (axis.is_identity()) return;
    }
}

}  // namespace

void resample(const RowSource& source, const Box& box, int width, int height, Filter filter, const Kernels& kernels,
              size_t most, uint8_t* out) {
    Axis across(source.width, box.left, box.right, width, filter);
    Axis down(source.height, box.top, box.bottom, height, filter);
    if (filter == Filter::nearest) return take_nearest(source, across, down, out);
    if (down.is_identity()) return resample_rows(source, across, 0, height, kernels, out);
    const int first = down.first_pixel(), end = down.end_pixel();
    const size_t bytes = static_cast<size_t>(width) * source.channels;
    // Three bytes each have to be counted in a size_t, which may have 32 bits.
    most = std::min(most, static_cast<size_t>(PTRDIFF_MAX / 4));
    if (static_cast<uint64_t>(width) * static_cast<uint64_t>(end - first) > most) {
        throw Error("a picture of " + std::to_string(source.width) + " x " + std::to_string(source.height) +
                    " pixels is too long: " + std::to_string(end - first) + " rows of " + std::to_string(width) +
                    " are more than " + std::to_string(most) + " pixels; cut it, or raise the limit");
    }
    std::vector<uint8_t> between(bytes * (end - first));
    resample_rows(source, across, first, end, kernels, between.data());
    const int at_once = down.outputs_at_once();
    for (int output = 0; output < height; output += at_once) {
        const int count = std::min(at_once, height - output);
        const Taps taps = down.taps(output, count, first, 1, kernels.split_weights);
        for (int o = 0; o < count; ++o) {
            kernels.resize_columns(
                {between.data(), bytes, static_cast<int>(bytes), taps, o, out + (output + o) * bytes});
        }
    }
}

}  // namespace gsb
