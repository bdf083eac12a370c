// NEON kernels with dot products: patch embedding, heads.
//
// Contract: kernels/contract.h. An instruction adds four products of signed bytes to each of four channels. Pixels p
// are unsigned, so p − 128 is multiplied, and 128 times the sum of the weights is what a sum begins with.
#include <arm_neon.h>

#include <cstring>

#include "kernels/neon_dot/isa.h"

namespace gsb::neon_dot {

namespace {

constexpr int kWide = 16, kTaps = 4;  // channels of four registers, and taps of each of their lanes

using Sums16 = int32x4_t[4];

struct Weights16 {
    int8x16_t part[4];

    GSB_NEON_DOT_INLINE explicit Weights16(const int8_t* from) {
        for (int i = 0; i < 4; ++i) part[i] = vld1q_s8(from + 16 * i);
    }
};

// Sixteen taps, or the same four four times, minus 128.
GSB_NEON_DOT_INLINE int8x16_t sixteen_taps(const uint8_t* pixels) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(pixels), vdupq_n_u8(0x80)));
}
GSB_NEON_DOT_INLINE int8x16_t four_taps(const uint8_t* pixels) {
    uint32_t four;
    std::memcpy(&four, pixels, sizeof four);
    return vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), vdupq_n_u8(0x80)));
}

// Taps 4·QUAD … 4·QUAD + 3 of R patches by sixteen channels.
template <int QUAD, int R>
GSB_NEON_DOT_INLINE void add_quad(Sums16 (&sums)[R], const int8_t* weights, const int8x16_t (&taps)[R]) {
    const Weights16 w(weights);
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) sums[r][i] = vdotq_laneq_s32(sums[r][i], w.part[i], taps[r], QUAD);
    }
}

// What sixteen channels share over one colour: its weights, `step` bytes from four taps to the next.
struct Channels {
    const int8_t* weights;
    size_t step;
    int first, colour;
    Sums16 begin;

    GSB_NEON_DOT_INLINE Channels(const Patches& p, int channel, int c) : first(channel), colour(c) {
        const int block = channel / kBlock * kBlock;
        const int lanes = p.channels - block < kBlock ? p.channels - block : kBlock;
        step = static_cast<size_t>(kTaps) * lanes;
        weights = static_cast<const int8_t*>(p.weights) + static_cast<size_t>(block) * 3 * p.area +
                  static_cast<size_t>(c) * p.area * lanes + kTaps * (channel - block);
        for (int i = 0; i < 4; ++i) begin[i] = vdupq_n_s32(0);
        const int8_t* from = weights;
        for (int k = 0; k < p.area; k += kTaps, from += step) {
            const Weights16 w(from);
            for (int i = 0; i < 4; ++i) begin[i] = vdotq_s32(begin[i], w.part[i], vdupq_n_s8(1));
        }
        for (int i = 0; i < 4; ++i) begin[i] = vshlq_n_s32(begin[i], 7);
    }
};

template <int R>
GSB_NEON_DOT_INLINE void patch_tile(const Patches& p, const Channels& c, int row) {
    const size_t stride = 3 * static_cast<size_t>(p.area);
    const uint8_t* pixels = p.pixels + row * stride + static_cast<size_t>(c.colour) * p.area;
    const int8_t* weights = c.weights;
    Sums16 sums[R];
    int8x16_t taps[R];
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) sums[r][i] = c.begin[i];
    }
    int k = 0;
    for (; k + 4 * kTaps <= p.area; k += 4 * kTaps, weights += 4 * c.step) {
        for (int r = 0; r < R; ++r) taps[r] = sixteen_taps(pixels + r * stride + k);
        add_quad<0, R>(sums, weights, taps);
        add_quad<1, R>(sums, weights + c.step, taps);
        add_quad<2, R>(sums, weights + 2 * c.step, taps);
        add_quad<3, R>(sums, weights + 3 * c.step, taps);
    }
    for (; k < p.area; k += kTaps, weights += c.step) {
        for (int r = 0; r < R; ++r) taps[r] = four_taps(pixels + r * stride + k);
        add_quad<0, R>(sums, weights, taps);
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) {
            const int channel = c.first + 4 * i;
            float* x = p.x + (row + r) * p.stride + channel;
            const float32x4_t scale = vld1q_f32(p.scale + static_cast<size_t>(c.colour) * p.channels + channel);
            float32x4_t y = vmulq_f32(vcvtq_f32_s32(sums[r][i]), scale);
            if (c.colour > 0) y = vaddq_f32(vld1q_f32(x), y);
            const float* position = p.position + static_cast<size_t>(row + r) * p.channels + channel;
            if (c.colour == 2) y = vaddq_f32(y, vld1q_f32(position));
            vst1q_f32(x, y);
        }
    }
}

}  // namespace

GSB_NEON_DOT void patches_embed(const Patches& given) {
    constexpr int kRows = 4;
    const Patches p = given;
    for (int first = 0; first < p.channels; first += kWide) {
        for (int colour = 0; colour < 3; ++colour) {
            const Channels channels(p, first, colour);
            int row = 0;
            for (; row + kRows <= p.count; row += kRows) patch_tile<kRows>(p, channels, row);
            for (; row < p.count; ++row) patch_tile<1>(p, channels, row);
        }
    }
}

GSB_NEON_DOT void dot_bytes(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out) {
    for (int row = 0; row < rows; ++row) {
        const int8_t* w = weights + static_cast<size_t>(row) * depth;
        int32x4_t acc = vdupq_n_s32(0);
        int k = 0;
        for (; k + 16 <= depth; k += 16) acc = vdotq_s32(acc, vld1q_s8(x + k), vld1q_s8(w + k));
        int32_t sum = vaddvq_s32(acc);
        for (; k < depth; ++k) sum += static_cast<int32_t>(x[k]) * w[k];
        out[row] = sum;
    }
}

}  // namespace gsb::neon_dot
