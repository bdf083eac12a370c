// NEON kernels: products of bits.
//
// Contract: kernels/contract.h. Layout: lane weights, one output channel a 32-bit lane. Cost of 128 bits: one xor, one
// count of bytes, one addition; loads and broadcasts are shared by rows and channels. Multiply and add stay apart: a
// fused one would round once instead of twice (the build forbids the compiler to fuse them, too).
#include "kernels/contract.h"
#include "kernels/neon/isa.h"

namespace gsb::neon {

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

// base − counts · factor, for channels first + 4·i ….
inline int32x4_t difference(const int32_t* base, int first, int i, const Counts16& counts, uint16x8_t factor) {
    const uint32x4_t from = vreinterpretq_u32_s32(vld1q_s32(base + first + 4 * i));
    const uint16x8_t half = counts[i / 2];
    return vreinterpretq_s32_u32(i % 2 ? vmlsl_high_u16(from, half, factor)
                                       : vmlsl_u16(from, vget_low_u16(half), vget_low_u16(factor)));
}

}  // namespace

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

void product_integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
    const uint16x8_t one = vdupq_n_u16(1);
    product(p, [=](int first) {
        return [=](int row, const Counts16& counts) {
            int32_t* to = out + row * out_stride + first;
            for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, difference(base, first, i, counts, one));
        };
    });
}

void product_residual(const Product& p, const int32_t* base, const float* scale, const float* bias, float* x,
                      size_t x_stride) {
    const uint16x8_t factor = vdupq_n_u16(static_cast<uint16_t>(1 << p.inputs.count_shift()));
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

}  // namespace gsb::neon
