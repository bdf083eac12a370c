// The Value's part of Forward: which counts belong to which group, and the planes.
#include <algorithm>
#include <limits>

#include "forward/call.h"

namespace gsb {

namespace {

// One channel of the Value: a monotonic function of the count.
struct Channel {
    float width, scale, bias;

    float value(int count) const {
        const float scaled = (width - 2.0f * static_cast<float>(count)) * scale;
        return scaled + bias;
    }
    // About the count that has this value.
    float count(float wanted) const { return (width - (wanted - bias) / scale) * 0.5f; }
    // Does count lie in the group on the side of the small counts (of the large ones)?
    bool low_side(int count, float upper, float lower) const {
        return scale >= 0 ? value(count) > upper : value(count) < lower;
    }
    bool high_side(int count, float upper, float lower) const {
        return scale >= 0 ? value(count) < lower : value(count) > upper;
    }
};

// The first count in first … last + 1 for which `holds` is false, where it is true up to one count and false behind it:
// found from any guess.
template <class Predicate>
int partition(int first, int last, float guess, Predicate holds) {
    int count =
        guess > static_cast<float>(first) ? guess < static_cast<float>(last) ? static_cast<int>(guess) : last : first;
    while (count <= last && holds(count)) ++count;
    while (count > first && !holds(count - 1)) --count;
    return count;
}

}  // namespace

// Turns the limits on the Value into limits on the counts: per group and channel the entries with count <= low or
// count >= high.
void Forward::value_limits(Call& call, Scratch& scratch, int block) const {
    StageTimer timer(call.seconds(scratch), Stage::values);
    Workspace& w = call.workspace;
    const BlockWeights& weights = weights_.blocks[block];
    const int planes = shape_.value_groups;
    const size_t pieces = shape_.head_channels / kPiece;
    for (int head = 0; head < shape_.heads; ++head) {
        uint8_t* active = w.plane_active.data() + head * planes * pieces;
        std::fill_n(active, pieces, uint8_t{1});
        std::fill_n(active + pieces, (planes - 1) * pieces, uint8_t{0});
    }
    if (planes == 1) return;
    std::fill(w.value_low.begin(), w.value_low.end(), int16_t{-1});
    std::fill(w.value_high.begin(), w.value_high.end(), std::numeric_limits<int16_t>::max());
    for (int chunk = 1; chunk < w.row_chunks; ++chunk) {
        const uint16_t* smaller = w.smallest.data() + static_cast<size_t>(chunk) * shape_.inner;
        const uint16_t* larger = w.largest.data() + static_cast<size_t>(chunk) * shape_.inner;
        for (int i = 0; i < shape_.inner; ++i) {
            w.smallest[i] = std::min(w.smallest[i], smaller[i]);
            w.largest[i] = std::max(w.largest[i], larger[i]);
        }
    }
    // Each channel's extremes are the values of its extreme counts.
    float* low_values = scratch.value_extremes.data();
    float* high_values = low_values + shape_.width;
    float largest = -std::numeric_limits<float>::infinity(), smallest = -largest;
    for (int head = 0; head < shape_.heads; ++head) {
        const uint16_t* first = w.smallest.data() + static_cast<size_t>(head) * shape_.head_channels;
        const uint16_t* last = w.largest.data() + static_cast<size_t>(head) * shape_.head_channels;
        for (int i = 0, c = head * shape_.head_dim; i < shape_.head_dim; ++i, ++c) {
            const Channel channel{static_cast<float>(shape_.width), weights.value_scale[c], weights.value_bias[c]};
            const float a = channel.value(first[i]), b = channel.value(last[i]);
            low_values[c] = std::min(a, b);
            high_values[c] = std::max(a, b);
            largest = std::max(largest, high_values[c]);
            smallest = std::min(smallest, low_values[c]);
        }
    }
    for (int group = 1; group < planes; ++group) {
        const float ratio = architecture_.value_thresholds[group - 1];
        const bool fixed = architecture_.fixed_thresholds;
        const float upper = fixed ? weights.value_limits[2 * (group - 1)] : ratio * largest;
        const float lower = fixed ? weights.value_limits[2 * (group - 1) + 1] : ratio * smallest;
        for (int c = 0; c < shape_.width; ++c) {
            if (high_values[c] > upper || low_values[c] < lower) limit_counts(w, weights, group, c, upper, lower);
        }
    }
}

// One channel that has entries in a group.
void Forward::limit_counts(Workspace& w, const BlockWeights& weights, int group, int c, float upper,
                           float lower) const {
    const int inner = shape_.inner_channel(c), head = c / shape_.head_dim, planes = shape_.value_groups;
    const size_t pieces = shape_.head_channels / kPiece, at = c % shape_.head_dim;
    w.plane_active[(static_cast<size_t>(head) * planes + group) * pieces + at / kPiece] = 1;
    const size_t entry = (static_cast<size_t>(head) * (planes - 1) + group - 1) * shape_.head_channels + at;
    const Channel channel{static_cast<float>(shape_.width), weights.value_scale[c], weights.value_bias[c]};
    const int first = w.smallest[inner], last = w.largest[inner];
    const float low_limit = channel.scale >= 0 ? upper : lower, high_limit = channel.scale >= 0 ? lower : upper;
    if (channel.low_side(first, upper, lower)) {
        w.value_low[entry] = static_cast<int16_t>(
            partition(first, last, channel.count(low_limit), [&](int n) { return channel.low_side(n, upper, lower); }) -
            1);
    }
    if (channel.high_side(last, upper, lower)) {
        w.value_high[entry] = static_cast<int16_t>(partition(
            first, last, channel.count(high_limit), [&](int n) { return !channel.high_side(n, upper, lower); }));
    }
}

void Forward::value_task(Call& call, Scratch& scratch, int block, int head) const {
    StageTimer timer(call.seconds(scratch), Stage::values);
    Workspace& w = call.workspace;
    const size_t channels = shape_.head_channels, planes = shape_.value_groups;
    ValuePlanes v{};
    v.counts = w.counts.data() + head * channels * shape_.tokens;
    v.tokens = shape_.tokens;
    v.channels = shape_.head_channels;
    v.planes = shape_.value_groups;
    v.threshold = weights_.blocks[block].value_threshold.data() + head * channels;
    v.low = w.value_low.data() + head * (planes - 1) * channels;
    v.high = w.value_high.data() + head * (planes - 1) * channels;
    v.active = w.plane_active.data() + head * planes * channels / kPiece;
    v.bits = w.plane_bits.data() + head * planes * w.plane_words;
    v.plane_words = w.plane_words;
    v.ones = w.plane_ones.data() + head * planes * channels;
    v.bytes =
        shape_.attention_groups == 1 ? nullptr : w.plane_bytes.data() + head * planes * shape_.tokens * w.byte_stride;
    v.byte_stride = w.byte_stride;
    kernels_.value_planes(v);
}

}  // namespace gsb
