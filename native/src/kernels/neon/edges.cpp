// NEON kernels: norms, patch embedding, heads.
//
// Contract: kernels/contract.h. Multiply and add stay apart, as in products.cpp.
#include "kernels/contract.h"
#include "kernels/neon/isa.h"

namespace gsb::neon {

namespace {

// Sixteen floats minus `mean`, those from `lanes` on as zeros.
inline Floats16 centred(const float* from, int lanes, float32x4_t mean) {
    Floats16 x = load16(from);
    for (int i = 0; i < 4; ++i) x.part[i] = vsubq_f32(x.part[i], mean);
    if (lanes >= kWide) return x;
    const Lanes16 real(lanes);
    for (int i = 0; i < 4; ++i) x.part[i] = select_or_zero(real.part[i], x.part[i]);
    return x;
}

// Sixteen channels' sums += weights · tap TAP of eight.
template <int TAP>
inline void add_tap(int32x4_t (&sums)[4], int16x8_t low, int16x8_t high, int16x8_t taps) {
    sums[0] = vmlal_laneq_s16(sums[0], vget_low_s16(low), taps, TAP);
    sums[1] = vmlal_high_laneq_s16(sums[1], low, taps, TAP);
    sums[2] = vmlal_laneq_s16(sums[2], vget_low_s16(high), taps, TAP);
    sums[3] = vmlal_high_laneq_s16(sums[3], high, taps, TAP);
}

// Taps TAP and TAP + 1; weights: (channel, tap of the pair).
template <int TAP, int R>
inline void add_pair(int32x4_t (&sums)[R][4], const int16_t* weights, const int16x8_t (&taps)[R]) {
    const int16x8x2_t low = vld2q_s16(weights), high = vld2q_s16(weights + kWide);
    for (int r = 0; r < R; ++r) add_tap<TAP>(sums[r], low.val[0], high.val[0], taps[r]);
    for (int r = 0; r < R; ++r) add_tap<TAP + 1>(sums[r], low.val[1], high.val[1], taps[r]);
}

// Sums of R patches and sixteen channels over one colour.
template <int R>
inline void patch_sums(const uint8_t* pixels, size_t stride, const int16_t* weights, int area,
                       int32x4_t (&sums)[R][4]) {
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) sums[r][i] = vdupq_n_s32(0);
    }
    int16x8_t taps[R];
    int k = 0;
    for (; k + 8 <= area; k += 8, weights += 8 * kWide) {
        for (int r = 0; r < R; ++r) taps[r] = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(pixels + r * stride + k)));
        add_pair<0, R>(sums, weights, taps);
        add_pair<2, R>(sums, weights + 2 * kWide, taps);
        add_pair<4, R>(sums, weights + 4 * kWide, taps);
        add_pair<6, R>(sums, weights + 6 * kWide, taps);
    }
    if (k == area) return;
    for (int r = 0; r < R; ++r) {
        uint32_t four;
        std::memcpy(&four, pixels + r * stride + k, sizeof(four));
        taps[r] = vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(four)));
    }
    add_pair<0, R>(sums, weights, taps);
    add_pair<2, R>(sums, weights + 2 * kWide, taps);
}

template <int R>
inline void patch_tile(const Patches& p, const int16_t* weights, int row, int first, int colour) {
    int32x4_t sums[R][4];
    const size_t stride = 3 * static_cast<size_t>(p.area);
    patch_sums<R>(p.pixels + row * stride + static_cast<size_t>(colour) * p.area, stride, weights, p.area, sums);
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) {
            const int channel = first + 4 * i;
            float* x = p.x + (row + r) * p.stride + channel;
            const float32x4_t scale = vld1q_f32(p.scale + static_cast<size_t>(colour) * p.channels + channel);
            float32x4_t y = vmulq_f32(vcvtq_f32_s32(sums[r][i]), scale);
            if (colour > 0) y = vaddq_f32(vld1q_f32(x), y);
            const float* position = p.position + static_cast<size_t>(row + r) * p.channels + channel;
            if (colour == 2) y = vaddq_f32(y, vld1q_f32(position));
            vst1q_f32(x, y);
        }
    }
}

}  // namespace

bool norm_bits(const Norm& given, uint32_t* out, size_t out_stride) {
    const Norm norm = given;
    bool holds = true;
    const float share = 1.0f / static_cast<float>(norm.width);
    const float32x4_t zero = vdupq_n_f32(0);
    for (int row = 0; row < norm.count; ++row) {
        const float* x = norm.x + row * norm.stride;
        Floats16 sum{{zero, zero, zero, zero}}, squares = sum;
        for (int i = 0; i < norm.width; i += kWide) {
            const Floats16 v = centred(x + i, norm.width - i, zero);
            for (int part = 0; part < 4; ++part) sum.part[part] = vaddq_f32(sum.part[part], v.part[part]);
        }
        const float32x4_t mean = vdupq_n_f32(fold16(sum) * share);
        for (int i = 0; i < norm.width; i += kWide) {
            const Floats16 e = centred(x + i, norm.width - i, mean);
            for (int part = 0; part < 4; ++part) {
                squares.part[part] = vaddq_f32(squares.part[part], vmulq_f32(e.part[part], e.part[part]));
            }
        }
        const float variance = fold16(squares) * share;
        const float scalar = 1.0f / __builtin_sqrtf(variance + norm.eps);
        const float32x4_t factor = vdupq_n_f32(scalar);
        holds &= norm_holds(scalar);
        for (int i = 0; i < norm.width; i += kWide) {
            const Floats16 e = centred(x + i, norm.width - i, mean);
            uint32x4_t above[4];
            for (int part = 0; part < 4; ++part) {
                above[part] = vcgeq_f32(vmulq_f32(e.part[part], factor), vld1q_f32(norm.threshold + i + 4 * part));
            }
            unsigned bits = bits16(above) ^ (norm.flip[i / 32] >> (i % 32));
            if (norm.width - i < kWide) bits &= (1u << (norm.width - i)) - 1;
            store_bits(out + row * out_stride, i, static_cast<uint16_t>(bits));
        }
    }
    return holds;
}

void patches_embed(const Patches& given) {
    constexpr int kRows = 4;
    const Patches p = given;
    for (int first = 0; first < p.channels; first += kWide) {
        for (int colour = 0; colour < 3; ++colour) {
            const int16_t* weights =
                static_cast<const int16_t*>(p.weights) + (static_cast<size_t>(first) * 3 + kWide * colour) * p.area;
            int row = 0;
            for (; row + kRows <= p.count; row += kRows) patch_tile<kRows>(p, weights, row, first, colour);
            for (; row < p.count; ++row) patch_tile<1>(p, weights, row, first, colour);
        }
    }
}

void dot_bytes(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out) {
    for (int row = 0; row < rows; ++row) {
        const int8_t* w = weights + static_cast<size_t>(row) * depth;
        int32x4_t acc = vdupq_n_s32(0);
        int k = 0;
        for (; k + 16 <= depth; k += 16) {
            const int8x16_t a = vld1q_s8(x + k), b = vld1q_s8(w + k);
            acc = vpadalq_s16(acc, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
            acc = vpadalq_s16(acc, vmull_high_s8(a, b));
        }
        int32_t sum = vaddvq_s32(acc);
        for (; k < depth; ++k) sum += static_cast<int32_t>(x[k]) * w[k];
        out[row] = sum;
    }
}

}  // namespace gsb::neon
