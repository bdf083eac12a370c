// WebAssembly kernels: extremes and planes of the Value, and what follows attention × Value.
//
// Contract: kernels/contract.h. Counts of eight channels a register, one a 16-bit lane; products one a 32-bit lane.
#include <cstring>

#include "kernels/contract.h"
#include "kernels/wasm/isa.h"

namespace gsb::wasm {

namespace {

// Eight channels of a plane.
struct PlanePiece {
    v128_t threshold, low, high;
    bool upper;

    v128_t negative(v128_t counts) const { return wasm_i16x8_gt(counts, threshold); }
    v128_t member(v128_t counts) const {
        if (!upper) return wasm_i16x8_const_splat(-1);
        return wasm_v128_or(wasm_i16x8_le(counts, low), wasm_i16x8_ge(counts, high));
    }
};

// One bit for each of up to 16 tokens in the 16-bit lanes of 8 channels, the first token lowest.
inline v128_t sixteen_tokens(const PlanePiece& g, const uint16_t* counts, int tokens, int8_t* bytes,
                             size_t byte_stride) {
    const v128_t top = wasm_u16x8_const_splat(0x8000);
    v128_t bits = wasm_i16x8_const_splat(0);
    for (int t = 0; t < 16; ++t) {
        bits = wasm_u16x8_shr(bits, 1);
        if (t >= tokens) continue;
        const v128_t count = wasm_v128_load(counts + t * kCountGroup);
        const v128_t negative = g.negative(count), member = g.member(count);
        // Sign and membership are equal: negative and member differ. The new bit on top, the others one down.
        bits = wasm_v128_or(bits, wasm_v128_and(wasm_v128_xor(negative, member), top));
        if (!bytes) continue;
        const v128_t value = wasm_v128_and(wasm_v128_or(negative, wasm_i16x8_const_splat(1)), member);
        wasm_v128_store64_lane(bytes + t * byte_stride, wasm_i8x16_narrow_i16x8(value, value), 0);
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
    const v128_t zero = wasm_i32x4_const_splat(0);
    PlanePiece g{wasm_v128_load(v.threshold + first), zero, zero, plane > 0};
    if (g.upper) {
        g.low = wasm_v128_load(v.low + (plane - 1) * v.channels + first);
        g.high = wasm_v128_load(v.high + (plane - 1) * v.channels + first);
    }
    v128_t ones[2] = {zero, zero}, before[2] = {zero, zero};
    for (int k = 0; k < depth; ++k) {
        v128_t half[2];
        for (int h = 0; h < 2; ++h) {
            const int token = 32 * k + 16 * h;
            half[h] = zero;
            if (token >= v.tokens) continue;
            half[h] = sixteen_tokens(g, counts + static_cast<size_t>(token) * kCountGroup, v.tokens - token,
                                     bytes ? bytes + token * v.byte_stride : nullptr, v.byte_stride);
        }
        v128_t word[2] = {wasm_i16x8_shuffle(half[0], half[1], 0, 8, 1, 9, 2, 10, 3, 11),
                          wasm_i16x8_shuffle(half[0], half[1], 4, 12, 5, 13, 6, 14, 7, 15)};
        const bool running = is_running(WeightLayout::triples, k, depth);
        for (int part = 0; part < 2; ++part) {
            ones[part] = wasm_i32x4_add(ones[part], sum_bytes(wasm_i8x16_popcnt(word[part])));
            if (running) word[part] = wasm_v128_xor(word[part], before[part]);
            before[part] = word[part];
            wasm_v128_store(bits + static_cast<size_t>(k) * lanes + 4 * part, word[part]);
        }
    }
    for (int part = 0; part < 2; ++part) {
        wasm_v128_store(v.ones + static_cast<size_t>(plane) * v.channels + first + 4 * part, ones[part]);
    }
}

void clear_bytes(const ValuePlanes& v, int plane, int first) {
    int8_t* bytes = v.bytes + plane * (v.tokens * v.byte_stride) + first;
    for (int j = 0; j < v.tokens; ++j) std::memset(bytes + j * v.byte_stride, 0, kPiece);
}

// y + sums · scale, one rounding each.
inline void add_scaled(Lanes16& y, const Lanes16& sums, float scale) {
    const v128_t factor = wasm_f32x4_splat(scale);
    for (int i = 0; i < 4; ++i) {
        y.part[i] = wasm_f32x4_add(y.part[i], wasm_f32x4_mul(wasm_f32x4_convert_i32x4(sums.part[i]), factor));
    }
}

// Σ over the listed tokens of one plane's bytes, sixteen channels. Bytes hold 127 entries, then they are widened.
inline Lanes16 listed_sums(const int8_t* bytes, size_t stride, const int32_t* columns, int count) {
    const v128_t zero = wasm_i32x4_const_splat(0);
    Lanes16 sums{{zero, zero, zero, zero}};
    for (int n = 0; n < count; n += 127) {
        const int end = count - n < 127 ? count : n + 127;
        v128_t acc = zero;
        for (int i = n; i < end; ++i) acc = wasm_i8x16_add(acc, wasm_v128_load(bytes + columns[i] * stride));
        const v128_t low = wasm_i16x8_extend_low_i8x16(acc), high = wasm_i16x8_extend_high_i8x16(acc);
        sums.part[0] = wasm_i32x4_add(sums.part[0], wasm_i32x4_extend_low_i16x8(low));
        sums.part[1] = wasm_i32x4_add(sums.part[1], wasm_i32x4_extend_high_i16x8(low));
        sums.part[2] = wasm_i32x4_add(sums.part[2], wasm_i32x4_extend_low_i16x8(high));
        sums.part[3] = wasm_i32x4_add(sums.part[3], wasm_i32x4_extend_high_i16x8(high));
    }
    return sums;
}

// Every row, sixteen channels from `first` on.
void combine_piece(const Combine& given, int first) {
    const Combine c = given;
    const size_t plane_products = static_cast<size_t>(c.rows) * c.channels, pieces = c.channels / kPiece;
    const uint8_t* active = c.active + first / kPiece;
    const Lanes16 shift = load16(c.shift + first);
    for (int row = 0; row < c.rows; ++row) {
        const int32_t* product = c.products + static_cast<size_t>(row) * c.channels + first;
        const Lanes16 dense = load16(product);
        Lanes16 y;
        for (int i = 0; i < 4; ++i) {
            y.part[i] = wasm_f32x4_mul(wasm_f32x4_convert_i32x4(dense.part[i]), wasm_f32x4_splat(c.scale[0]));
        }
        for (int plane = 1; plane < c.planes; ++plane) {
            if (!active[plane * pieces]) continue;
            Lanes16 sums = load16(product + plane * plane_products);
            for (int i = 0; i < 4; ++i) {
                sums.part[i] = wasm_i32x4_shr(wasm_i32x4_add(dense.part[i], sums.part[i]), 1);
            }
            add_scaled(y, sums, c.scale[plane]);
        }
        for (int group = 1; group < c.groups; ++group) {
            const size_t list = static_cast<size_t>(row) * (c.groups - 1) + group - 1;
            for (int plane = 0; plane < c.planes && c.list_count[list] > 0; ++plane) {
                if (!active[plane * pieces]) continue;
                const Lanes16 sums = listed_sums(c.bytes + plane * c.plane_bytes + first, c.byte_stride,
                                                 c.columns + c.list_begin[list], c.list_count[list]);
                add_scaled(y, sums, c.scale[group * c.planes + plane]);
            }
        }
        Lanes16 positive;
        for (int i = 0; i < 4; ++i) {
            positive.part[i] = wasm_f32x4_ge(wasm_f32x4_add(y.part[i], shift.part[i]), wasm_f32x4_const_splat(0));
        }
        store_bits(c.out + row * c.out_stride, first, bits16(positive));
    }
}

}  // namespace

void count_extremes(const uint16_t* counts, size_t group_stride, int channels, int first, int last, uint16_t* smallest,
                    uint16_t* largest) {
    for (int c = 0; c < channels; c += 8) {
        const uint16_t* group = counts + c / kCountGroup * group_stride + c % kCountGroup;
        v128_t low = wasm_v128_load(group + static_cast<size_t>(first) * kCountGroup), high = low;
        for (int row = first + 1; row < last; ++row) {
            const v128_t values = wasm_v128_load(group + static_cast<size_t>(row) * kCountGroup);
            low = wasm_u16x8_min(low, values);
            high = wasm_u16x8_max(high, values);
        }
        wasm_v128_store(smallest + c, low);
        wasm_v128_store(largest + c, high);
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

}  // namespace gsb::wasm
