// NEON kernels: extremes and planes of the Value, and what follows attention × Value.
//
// Contract: kernels/contract.h. Counts of eight channels a register, one a 16-bit lane; products one a 32-bit lane.
#include <cstring>

#include "kernels/contract.h"
#include "kernels/neon/isa.h"

namespace gsb::neon {

namespace {

// Eight channels of a plane.
struct PlanePiece {
    int16x8_t threshold, low, high;
    bool upper;

    uint16x8_t negative(int16x8_t counts) const { return vcgtq_s16(counts, threshold); }
    uint16x8_t member(int16x8_t counts) const {
        if (!upper) return vdupq_n_u16(0xFFFF);
        return vorrq_u16(vcleq_s16(counts, low), vcgeq_s16(counts, high));
    }
};

// One bit for each of up to 16 tokens in the 16-bit lanes of 8 channels, the first token lowest.
inline uint16x8_t sixteen_tokens(const PlanePiece& g, const uint16_t* counts, int tokens, int8_t* bytes,
                                 size_t byte_stride) {
    uint16x8_t bits = vdupq_n_u16(0);
    for (int t = 0; t < 16; ++t) {
        if (t >= tokens) {
            bits = vshrq_n_u16(bits, 1);
            continue;
        }
        const int16x8_t count = vreinterpretq_s16_u16(vld1q_u16(counts + t * kCountGroup));
        const uint16x8_t negative = g.negative(count), member = g.member(count);
        // Sign and membership are equal: negative and member differ. The new bit on top, the others one down.
        bits = vsriq_n_u16(veorq_u16(negative, member), bits, 1);
        if (!bytes) continue;
        const uint16x8_t value = vandq_u16(vorrq_u16(negative, vdupq_n_u16(1)), member);
        vst1_s8(bytes + t * byte_stride, vmovn_s16(vreinterpretq_s16_u16(value)));
    }
    return bits;
}

void value_piece(const ValuePlanes& v, int plane, int first) {
    const int block = plane == 0 ? first / kBlock * kBlock : first / kPiece * kPiece;
    const int lanes = plane > 0 ? kPiece : v.channels - block < kBlock ? v.channels - block : kBlock;
    const int depth = (v.tokens + 31) / 32;
    const uint16_t* counts =
        v.counts + static_cast<size_t>(first / kCountGroup * kCountGroup) * v.tokens + first % kCountGroup;
    uint32_t* bits = v.bits + plane * v.plane_words + static_cast<size_t>(block) * depth + (first - block);
    int8_t* bytes = v.bytes ? v.bytes + plane * (v.tokens * v.byte_stride) + first : nullptr;
    PlanePiece g{vld1q_s16(v.threshold + first), vdupq_n_s16(0), vdupq_n_s16(0), plane > 0};
    if (g.upper) {
        g.low = vld1q_s16(v.low + (plane - 1) * v.channels + first);
        g.high = vld1q_s16(v.high + (plane - 1) * v.channels + first);
    }
    uint32x4_t ones[2] = {vdupq_n_u32(0), vdupq_n_u32(0)};
    for (int k = 0; k < depth; ++k) {
        uint16x8_t half[2];
        for (int h = 0; h < 2; ++h) {
            const int token = 32 * k + 16 * h;
            half[h] = vdupq_n_u16(0);
            if (token >= v.tokens) continue;
            half[h] = sixteen_tokens(g, counts + static_cast<size_t>(token) * kCountGroup, v.tokens - token,
                                     bytes ? bytes + token * v.byte_stride : nullptr, v.byte_stride);
        }
        const uint16x8_t word[2] = {vzip1q_u16(half[0], half[1]), vzip2q_u16(half[0], half[1])};
        for (int part = 0; part < 2; ++part) {
            ones[part] = vaddq_u32(ones[part], sum_bytes(vcntq_u8(vreinterpretq_u8_u16(word[part]))));
            vst1q_u32(bits + static_cast<size_t>(k) * lanes + 4 * part, vreinterpretq_u32_u16(word[part]));
        }
    }
    for (int part = 0; part < 2; ++part) {
        vst1q_s32(v.ones + static_cast<size_t>(plane) * v.channels + first + 4 * part,
                  vreinterpretq_s32_u32(ones[part]));
    }
}

void clear_bytes(const ValuePlanes& v, int plane, int first) {
    int8_t* bytes = v.bytes + plane * (v.tokens * v.byte_stride) + first;
    for (int j = 0; j < v.tokens; ++j) std::memset(bytes + j * v.byte_stride, 0, kPiece);
}

struct Sums16 {
    int32x4_t part[4];
};

// y + sums · scale, one rounding each.
inline void add_scaled(Floats16& y, const Sums16& sums, float scale) {
    const float32x4_t factor = vdupq_n_f32(scale);
    for (int i = 0; i < 4; ++i) y.part[i] = vaddq_f32(y.part[i], vmulq_f32(vcvtq_f32_s32(sums.part[i]), factor));
}

// Σ over the listed tokens of one plane's bytes, sixteen channels. Bytes hold 127 entries, then they are widened.
inline Sums16 listed_sums(const int8_t* bytes, size_t stride, const int32_t* columns, int count) {
    Sums16 sums;
    for (int i = 0; i < 4; ++i) sums.part[i] = vdupq_n_s32(0);
    for (int n = 0; n < count; n += 127) {
        const int end = count - n < 127 ? count : n + 127;
        int8x16_t acc = vdupq_n_s8(0);
        for (int i = n; i < end; ++i) acc = vaddq_s8(acc, vld1q_s8(bytes + columns[i] * stride));
        const int16x8_t low = vmovl_s8(vget_low_s8(acc)), high = vmovl_high_s8(acc);
        sums.part[0] = vaddw_s16(sums.part[0], vget_low_s16(low));
        sums.part[1] = vaddw_high_s16(sums.part[1], low);
        sums.part[2] = vaddw_s16(sums.part[2], vget_low_s16(high));
        sums.part[3] = vaddw_high_s16(sums.part[3], high);
    }
    return sums;
}

// Every row, sixteen channels from `first` on.
void combine_piece(const Combine& given, int first) {
    const Combine c = given;
    const size_t plane_products = static_cast<size_t>(c.rows) * c.channels, pieces = c.channels / kPiece;
    const uint8_t* active = c.active + first / kPiece;
    const Floats16 shift = load16(c.shift + first);
    for (int row = 0; row < c.rows; ++row) {
        const int32_t* product = c.products + static_cast<size_t>(row) * c.channels + first;
        Sums16 dense, sums;
        Floats16 y;
        for (int i = 0; i < 4; ++i) {
            dense.part[i] = vld1q_s32(product + 4 * i);
            y.part[i] = vmulq_f32(vcvtq_f32_s32(dense.part[i]), vdupq_n_f32(c.scale[0]));
        }
        for (int plane = 1; plane < c.planes; ++plane) {
            if (!active[plane * pieces]) continue;
            const int32_t* other = product + plane * plane_products;
            for (int i = 0; i < 4; ++i) sums.part[i] = vhaddq_s32(dense.part[i], vld1q_s32(other + 4 * i));
            add_scaled(y, sums, c.scale[plane]);
        }
        for (int group = 1; group < c.groups; ++group) {
            const size_t list = static_cast<size_t>(row) * (c.groups - 1) + group - 1;
            for (int plane = 0; plane < c.planes && c.list_count[list] > 0; ++plane) {
                if (!active[plane * pieces]) continue;
                sums = listed_sums(c.bytes + plane * c.plane_bytes + first, c.byte_stride,
                                   c.columns + c.list_begin[list], c.list_count[list]);
                add_scaled(y, sums, c.scale[group * c.planes + plane]);
            }
        }
        uint32x4_t positive[4];
        for (int i = 0; i < 4; ++i) positive[i] = vcgezq_f32(vaddq_f32(y.part[i], shift.part[i]));
        store_bits(c.out + row * c.out_stride, first, bits16(positive));
    }
}

}  // namespace

void count_extremes(const uint16_t* counts, size_t group_stride, int channels, int first, int last, uint16_t* smallest,
                    uint16_t* largest) {
    for (int c = 0; c < channels; c += 8) {
        const uint16_t* group = counts + c / kCountGroup * group_stride + c % kCountGroup;
        uint16x8_t low = vld1q_u16(group + static_cast<size_t>(first) * kCountGroup), high = low;
        for (int row = first + 1; row < last; ++row) {
            const uint16x8_t values = vld1q_u16(group + static_cast<size_t>(row) * kCountGroup);
            low = vminq_u16(low, values);
            high = vmaxq_u16(high, values);
        }
        vst1q_u16(smallest + c, low);
        vst1q_u16(largest + c, high);
    }
}

void value_planes(const ValuePlanes& v) {
    for (int plane = 0; plane < v.planes; ++plane) {
        const uint8_t* active = v.active + plane * (v.channels / kPiece);
        bool any = false;
        for (int piece = 0; piece < v.channels / kPiece; ++piece) any |= active[piece] != 0;
        for (int first = 0; any && first < v.channels; first += kPiece) {
            if (active[first / kPiece]) {
                value_piece(v, plane, first);
                value_piece(v, plane, first + kPiece / 2);
            } else if (v.bytes) {
                clear_bytes(v, plane, first);
            }
        }
    }
}

void combine(const Combine& c) {
    for (int first = 0; first < c.channels; first += kPiece) combine_piece(c, first);
}

}  // namespace gsb::neon
