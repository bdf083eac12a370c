// Numbers of one picture and head.
#pragma once

#include "attention.h"

namespace gsb::train {

// Where q (part 0), k (1) or v (2) of a picture and head begin, and how far apart tokens are.
struct Part {
    size_t begin, stride;
    const float* shift;  // (d) or nullptr
};

inline Part part_of(const Heads& heads, int picture, int head, int part) {
    const Shape& s = heads.shape;
    const size_t width = static_cast<size_t>(s.heads) * s.channels, stride = 3 * width;
    const size_t begin = static_cast<size_t>(picture) * s.tokens * stride + part * width + head * s.channels;
    return {begin, stride, heads.shifts[part] ? heads.shifts[part] + head * s.channels : nullptr};
}

template <class T>
GSB_TRAIN_INLINE Floats shifted(const Part& part, const T* data, int token, int channel) {
    const Floats x = load(data + part.begin + token * part.stride + channel, kAllLanes);
    return part.shift ? x + load(part.shift + channel, kAllLanes) : x;
}

GSB_TRAIN_INLINE Mask signs_of(Floats x) {
    return x >= floats(0.0f);
}

GSB_TRAIN_INLINE Floats with_sign(Floats size, Mask positive) {
    return select(positive, size, floats(0.0f) - size);
}

// A superposition's limits of one picture.
struct Limits {
    float upper[kMostGroups], lower[kMostGroups];
};

// extremes: 1 (upper only) or 2.
inline Limits limits_of(const Groups& groups, int extremes, int picture) {
    Limits limits{};
    const int at = groups.limit_batch == 1 ? 0 : picture;
    for (int g = 0; g + 1 < groups.count; ++g) {
        const float* from = groups.limits + static_cast<size_t>(g) * extremes * groups.limit_batch;
        limits.upper[g] = from[at];
        if (extremes == 2) limits.lower[g] = from[groups.limit_batch + at];
    }
    return limits;
}

GSB_TRAIN_INLINE Mask above(Floats x, float limit) {
    return x > floats(limit);
}

GSB_TRAIN_INLINE Mask value_member(Floats x, const Limits& limits, int group) {
    return above(x, limits.upper[group]) | (x < floats(limits.lower[group]));
}

// Sixteen entries of A from row `begin` + column; lanes beyond the row are 0.
GSB_TRAIN_INLINE Floats entries(const float* P, const float* E, int column, Lanes lanes) {
    const Floats p = load(P + column, lanes);
    return E ? p + load(E + column, lanes) : p;
}

GSB_TRAIN_INLINE Floats superposed(Floats A, const Groups& groups, const Limits& limits) {
    Floats out = keep(above(A, 0.5f * groups.scales[0]), floats(groups.scales[0]));
    for (int g = 1; g < groups.count; ++g) {
        out = add_where(above(A, limits.upper[g - 1]), out, floats(groups.scales[g]));
    }
    return out;
}

}  // namespace gsb::train
