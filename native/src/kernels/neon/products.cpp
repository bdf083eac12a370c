// NEON kernels: products, norms, patch embedding, heads.
//
// Contract: kernels/contract.h. Layout: lane weights, one output channel a 32-bit lane. Cost of 128 bits: one xor, one
// count of bytes, one addition; loads and broadcasts are shared by rows and channels. Multiply and add stay apart: a
// fused one would round once instead of twice (the build forbids the compiler to fuse them, too).
#include "kernels/contract.h"
#include "kernels/dispatch.h"
#include "kernels/neon/isa.h"

namespace gsb {

namespace {

constexpr int kByteWords = 31;  // as many counts of eight fit in a byte

template <int R>
using Bytes = uint8x16_t[R][4];

// Adds the counts of one word, x[r] ^ weights, to the bytes.
template <int R>
inline void add_word(const uint8x16_t (&x)[R], const uint32_t* weights, Bytes<R>& bytes) {
    uint8x16_t w[4];
    for (int i = 0; i < 4; ++i) w[i] = vreinterpretq_u8_u32(vld1q_u32(weights + 4 * i));
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) bytes[r][i] = vaddq_u8(bytes[r][i], vcntq_u8(veorq_u8(x[r], w[i])));
    }
}

template <int LANE, int R>
inline void add_lane(const uint32x4_t (&x)[R], const uint32_t* weights, Bytes<R>& bytes) {
    uint8x16_t word[R];
    for (int r = 0; r < R; ++r) word[r] = vreinterpretq_u8_u32(vdupq_laneq_u32(x[r], LANE));
    add_word<R>(word, weights, bytes);
}

// Counts of words 0 … depth − 1, at most kByteWords, of R rows and sixteen channels.
template <int R>
inline void count_bytes(const uint32_t* rows, size_t stride, const uint32_t* weights, int lanes, int depth,
                        Bytes<R>& bytes) {
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) bytes[r][i] = vdupq_n_u8(0);
    }
    int k = 0;
    for (; k + 4 <= depth; k += 4, weights += 4 * lanes) {
        uint32x4_t x[R];
        for (int r = 0; r < R; ++r) x[r] = vld1q_u32(rows + r * stride + k);
        add_lane<0, R>(x, weights, bytes);
        add_lane<1, R>(x, weights + lanes, bytes);
        add_lane<2, R>(x, weights + 2 * lanes, bytes);
        add_lane<3, R>(x, weights + 3 * lanes, bytes);
    }
    for (; k < depth; ++k, weights += lanes) {
        uint8x16_t word[R];
        for (int r = 0; r < R; ++r) word[r] = vreinterpretq_u8_u32(vld1q_dup_u32(rows + r * stride + k));
        add_word<R>(word, weights, bytes);
    }
}

using Counts16 = uint16x8_t[2];  // of sixteen channels

inline void sum_words(const uint8x16_t (&bytes)[4], Counts16& counts) {
    for (int i = 0; i < 2; ++i) counts[i] = vpaddq_u16(vpaddlq_u8(bytes[2 * i]), vpaddlq_u8(bytes[2 * i + 1]));
}

// R rows by sixteen channels; `lanes` is the width of the weights' block. sink(row, counts).
template <int R, class Sink>
inline void tile(const uint32_t* rows, size_t stride, const uint32_t* weights, int lanes, int depth, const Sink& sink) {
    constexpr int kStretch = kByteWords / 4 * 4;
    Bytes<R> bytes;
    Counts16 counts[R];
    int k = depth <= kByteWords ? depth : kStretch;
    count_bytes<R>(rows, stride, weights, lanes, k, bytes);
    for (int r = 0; r < R; ++r) sum_words(bytes[r], counts[r]);
    for (; k < depth; k += kStretch) {
        const int words = depth - k < kStretch ? depth - k : kStretch;
        count_bytes<R>(rows + k, stride, weights + static_cast<size_t>(k) * lanes, lanes, words, bytes);
        for (int r = 0; r < R; ++r) {
            Counts16 more;
            sum_words(bytes[r], more);
            for (int i = 0; i < 2; ++i) counts[r][i] = vaddq_u16(counts[r][i], more[i]);
        }
    }
    for (int r = 0; r < R; ++r) sink(r, counts[r]);
}

// Every row by every channel. make(first channel) gives what sixteen channels share, its call (row, counts) uses them.
template <class Make>
inline void product(const Product& given, const Make& make) {
    constexpr int kRows = 4;
    const Product p = given;
    for (int block = 0; block < p.channels; block += kBlock) {
        const int lanes = p.channels - block < kBlock ? p.channels - block : kBlock;
        for (int lane = 0; lane < lanes; lane += kWide) {
            const uint32_t* weights = p.weights + static_cast<size_t>(block) * p.depth + lane;
            const auto sink = make(block + lane);
            int row = 0;
            const auto store = [&](int r, const Counts16& counts) { sink(row + r, counts); };
            for (; row + kRows <= p.count; row += kRows) {
                tile<kRows>(p.rows + row * p.stride, p.stride, weights, lanes, p.depth, store);
            }
            for (; row < p.count; ++row) {
                tile<1>(p.rows + row * p.stride, p.stride, weights, lanes, p.depth, store);
            }
        }
    }
}

// The low halves of sixteen numbers.
struct Halves16 {
    uint16x8_t part[2];

    explicit Halves16(const uint32_t* from) {
        for (int i = 0; i < 2; ++i) {
            const uint16x8_t low = vreinterpretq_u16_u32(vld1q_u32(from + 8 * i));
            part[i] = vuzp1q_u16(low, vreinterpretq_u16_u32(vld1q_u32(from + 8 * i + 4)));
        }
    }
    explicit Halves16(const int32_t* from) : Halves16(reinterpret_cast<const uint32_t*>(from)) {}
};

void product_threshold(const Product& p, const int32_t* threshold, uint32_t* out, size_t out_stride) {
    product(p, [=](int first) {
        // −1 … C fits in sixteen bits, and so does a count.
        return [=, limit = Halves16(threshold + first)](int row, const Counts16& counts) {
            uint16x8_t below[2];
            for (int i = 0; i < 2; ++i) {
                below[i] = vcleq_s16(vreinterpretq_s16_u16(counts[i]), vreinterpretq_s16_u16(limit.part[i]));
            }
            store_bits(out + row * out_stride, first,
                       bits16(vuzp1q_u8(vreinterpretq_u8_u16(below[0]), vreinterpretq_u8_u16(below[1]))));
        };
    });
}

void product_interval(const Product& p, const int32_t* low, const uint32_t* range, uint32_t* out, size_t out_stride) {
    product(p, [=](int first) {
        return [=](int row, const Counts16& counts) {
            uint32x4_t outside[4];
            for (int i = 0; i < 4; ++i) {
                const uint32x4_t begin = vreinterpretq_u32_s32(vld1q_s32(low + first + 4 * i));
                const uint16x8_t half = counts[i / 2];
                const uint32x4_t count = i % 2 ? vmovl_high_u16(half) : vmovl_u16(vget_low_u16(half));
                outside[i] = vcgtq_u32(vsubq_u32(count, begin), vld1q_u32(range + first + 4 * i));
            }
            store_bits(out + row * out_stride, first, bits16(outside));
        };
    });
}

void product_count(const Product& p, uint16_t* out, size_t group_stride) {
    product(p, [=](int first) {
        uint16_t* group = out + first / kCountGroup * group_stride + first % kCountGroup;
        return [=](int row, const Counts16& counts) {
            for (int i = 0; i < 2; ++i) vst1q_u16(group + static_cast<size_t>(row) * kCountGroup + 8 * i, counts[i]);
        };
    });
}

// base − counts · factor, for channels first + 4·i ….
inline int32x4_t difference(const int32_t* base, int first, int i, const Counts16& counts, uint16x8_t factor) {
    const uint32x4_t from = vreinterpretq_u32_s32(vld1q_s32(base + first + 4 * i));
    const uint16x8_t half = counts[i / 2];
    return vreinterpretq_s32_u32(i % 2 ? vmlsl_high_u16(from, half, factor)
                                       : vmlsl_u16(from, vget_low_u16(half), vget_low_u16(factor)));
}

void product_integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
    const uint16x8_t one = vdupq_n_u16(1);
    product(p, [=](int first) {
        return [=](int row, const Counts16& counts) {
            int32_t* to = out + row * out_stride + first;
            for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, difference(base, first, i, counts, one));
        };
    });
}

void product_residual(const Product& p, const int32_t* base, int shift, const float* scale, const float* bias, float* x,
                      size_t x_stride) {
    const uint16x8_t factor = vdupq_n_u16(static_cast<uint16_t>(1 << shift));
    product(p, [=](int first) {
        return [=](int row, const Counts16& counts) {
            float* y = x + row * x_stride + first;
            for (int i = 0; i < 4; ++i) {
                const float32x4_t dot = vcvtq_f32_s32(difference(base, first, i, counts, factor));
                const float32x4_t scaled = vmulq_f32(dot, vld1q_f32(scale + first + 4 * i));
                const float32x4_t change = vaddq_f32(scaled, vld1q_f32(bias + first + 4 * i));
                vst1q_f32(y + 4 * i, vaddq_f32(vld1q_f32(y + 4 * i), change));
            }
        };
    });
}

// Sixteen floats minus `mean`, those from `lanes` on as zeros.
inline Floats16 centred(const float* from, int lanes, float32x4_t mean) {
    Floats16 x = load16(from);
    for (int i = 0; i < 4; ++i) x.part[i] = vsubq_f32(x.part[i], mean);
    if (lanes >= kWide) return x;
    const Lanes16 real(lanes);
    for (int i = 0; i < 4; ++i) x.part[i] = select_or_zero(real.part[i], x.part[i]);
    return x;
}

void norm_bits(const Norm& given, uint32_t* out, size_t out_stride) {
    const Norm norm = given;
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
        const float32x4_t factor = vdupq_n_f32(1.0f / __builtin_sqrtf(variance + norm.eps));
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

}  // namespace

const Kernels kNeonKernels = {
    "neon",           WeightLayout::lanes, PatchLayout::pairs,  nullptr,           product_threshold,
    product_interval, product_count,       product_integers,    product_residual,  norm_bits,
    patches_embed,    scores_neon,         count_extremes_neon, value_planes_neon, combine_neon,
    dot_bytes,
};

}  // namespace gsb
