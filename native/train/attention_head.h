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
GSB_TRAIN_INLINE __m512 shifted(const Part& part, const T* data, int token, int channel) {
    const __m512 x = load(data + part.begin + token * part.stride + channel, 0xFFFF);
    return part.shift ? _mm512_add_ps(x, load(part.shift + channel, 0xFFFF)) : x;
}

GSB_TRAIN_INLINE __mmask16 signs_of(__m512 x) {
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
}

GSB_TRAIN_INLINE __m512 with_sign(__m512 size, __mmask16 positive) {
    return _mm512_mask_sub_ps(size, static_cast<__mmask16>(~positive), _mm512_setzero_ps(), size);
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

GSB_TRAIN_INLINE __mmask16 above(__m512 x, float limit) {
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GT_OQ);
}

GSB_TRAIN_INLINE __mmask16 value_member(__m512 x, const Limits& limits, int group) {
    return above(x, limits.upper[group]) | _mm512_cmp_ps_mask(x, _mm512_set1_ps(limits.lower[group]), _CMP_LT_OQ);
}

// Sixteen entries of A from row `begin` + column; lanes beyond the row are 0.
GSB_TRAIN_INLINE __m512 entries(const float* P, const float* E, int column, __mmask16 lanes) {
    const __m512 p = load(P + column, lanes);
    return E ? _mm512_add_ps(p, load(E + column, lanes)) : p;
}

GSB_TRAIN_INLINE __m512 superposed(__m512 A, const Groups& groups, const Limits& limits) {
    __m512 out = _mm512_maskz_mov_ps(above(A, 0.5f * groups.scales[0]), _mm512_set1_ps(groups.scales[0]));
    for (int g = 1; g < groups.count; ++g) {
        const __mmask16 member = above(A, limits.upper[g - 1]);
        out = _mm512_mask_add_ps(out, member, out, _mm512_set1_ps(groups.scales[g]));
    }
    return out;
}

}  // namespace gsb::train
