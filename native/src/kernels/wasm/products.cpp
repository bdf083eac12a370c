// WebAssembly kernels: products of bits.
//
// Contract: kernels/contract.h. Layout: lane weights in triples, one output channel a 32-bit lane; see
// kernels/avx512/products.cpp for the carry-save sum. An engine on x86-64 makes about seven instructions of one
// i8x16.popcnt, so saving one of three counts pays, as in kernels/avx2. Cost of three words: three xors, three
// operations for the carry, two counts and two additions.
#include "kernels/contract.h"
#include "kernels/triples.h"
#include "kernels/wasm/isa.h"

namespace gsb::wasm {

namespace {

// Counts of sixteen channels, one a 32-bit lane.
inline Lanes16 tile(const uint32_t* row, const uint32_t* weights, int lanes, int depth) {
    constexpr int kWords = 90;  // 30 triples add at most 240 to a byte of either sum
    Lanes16 counts{};
    for (v128_t& part : counts.part) part = wasm_i32x4_const_splat(0);
    int k = 0;
    while (k < depth) {
        v128_t ones[4], twos[4];
        for (int w = 0; w < 4; ++w) ones[w] = twos[w] = wasm_i8x16_const_splat(0);
        const int end = depth - k < kWords ? depth : k + kWords;
        for (; k + 3 <= end; k += 3) {
            const v128_t x0 = wasm_v128_load32_splat(row + k), x1 = wasm_v128_load32_splat(row + k + 1);
            const v128_t x2 = wasm_v128_load32_splat(row + k + 2);
            const uint32_t* word = weights + static_cast<size_t>(k) * lanes;
            for (int w = 0; w < 4; ++w) {
                const v128_t first = wasm_v128_xor(x0, wasm_v128_load(word + 4 * w));
                const v128_t differ = wasm_v128_xor(x1, wasm_v128_load(word + lanes + 4 * w));
                const v128_t sum = wasm_v128_xor(x2, wasm_v128_load(word + 2 * lanes + 4 * w));
                // d ? ¬s : x0
                const v128_t carry = wasm_v128_or(wasm_v128_andnot(differ, sum), wasm_v128_andnot(first, differ));
                ones[w] = wasm_i8x16_add(ones[w], wasm_i8x16_popcnt(sum));
                twos[w] = wasm_i8x16_add(twos[w], wasm_i8x16_popcnt(carry));
            }
        }
        for (; k < end; ++k) {
            const v128_t x = wasm_v128_load32_splat(row + k);
            const uint32_t* word = weights + static_cast<size_t>(k) * lanes;
            for (int w = 0; w < 4; ++w) {
                ones[w] = wasm_i8x16_add(ones[w], wasm_i8x16_popcnt(wasm_v128_xor(x, wasm_v128_load(word + 4 * w))));
            }
        }
        for (int w = 0; w < 4; ++w) {
            const v128_t pairs = wasm_i16x8_add(wasm_u16x8_extadd_pairwise_u8x16(ones[w]),
                                                wasm_i16x8_shl(wasm_u16x8_extadd_pairwise_u8x16(twos[w]), 1));
            counts.part[w] = wasm_i32x4_add(counts.part[w], wasm_u32x4_extadd_pairwise_u16x8(pairs));
        }
    }
    return counts;
}

// Every row by every channel. make(first channel) gives what sixteen channels share, its call (row, counts) uses them.
template <class Make>
inline void product(const Product& given, const Make& make) {
    const Product p = given;
    for (int block = 0; block < p.channels; block += kBlock) {
        const int lanes = p.channels - block < kBlock ? p.channels - block : kBlock;
        for (int lane = 0; lane < lanes; lane += kWide) {
            const uint32_t* weights = p.weights + static_cast<size_t>(block) * p.depth + lane;
            const auto sink = make(block + lane);
            for (int row = 0; row < p.count; ++row) sink(row, tile(p.rows + row * p.stride, weights, lanes, p.depth));
        }
    }
}

}  // namespace

void product_threshold(const Product& p, const int32_t* threshold, uint32_t* out, size_t out_stride) {
    product(p, [=](int first) {
        return [=, limit = load16(threshold + first)](int row, const Lanes16& counts) {
            Lanes16 below;
            for (int i = 0; i < 4; ++i) below.part[i] = wasm_i32x4_le(counts.part[i], limit.part[i]);
            store_bits(out + row * out_stride, first, bits16(below));
        };
    });
}

void product_interval(const Product& p, const int32_t* low, const uint32_t* range, uint32_t* out, size_t out_stride) {
    product(p, [=](int first) {
        return [=, begin = load16(low + first), limit = load16(range + first)](int row, const Lanes16& counts) {
            Lanes16 outside;
            for (int i = 0; i < 4; ++i) {
                outside.part[i] = wasm_u32x4_gt(wasm_i32x4_sub(counts.part[i], begin.part[i]), limit.part[i]);
            }
            store_bits(out + row * out_stride, first, bits16(outside));
        };
    });
}

void product_count(const Product& p, uint16_t* out, size_t group_stride) {
    product(p, [=](int first) {
        uint16_t* group = out + first / kCountGroup * group_stride + first % kCountGroup;
        return [=](int row, const Lanes16& counts) {
            uint16_t* to = group + static_cast<size_t>(row) * kCountGroup;
            wasm_v128_store(to, wasm_u16x8_narrow_i32x4(counts.part[0], counts.part[1]));
            wasm_v128_store(to + 8, wasm_u16x8_narrow_i32x4(counts.part[2], counts.part[3]));
        };
    });
}

void product_integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
    product(p, [=](int first) {
        return [=, from = load16(base + first)](int row, const Lanes16& counts) {
            Lanes16 y;
            for (int i = 0; i < 4; ++i) y.part[i] = wasm_i32x4_sub(from.part[i], counts.part[i]);
            store16(out + row * out_stride + first, y);
        };
    });
}

void product_residual(const Product& p, const int32_t* base, const float* scale, const float* bias, float* x,
                      size_t x_stride) {
    const auto shift = static_cast<uint32_t>(p.inputs.count_shift());
    product(p, [=](int first) {
        return [=](int row, const Lanes16& counts) {
            float* to = x + row * x_stride + first;
            const Lanes16 from = load16(base + first), factor = load16(scale + first), more = load16(bias + first);
            Lanes16 y = load16(to);
            for (int i = 0; i < 4; ++i) {
                const v128_t dot = wasm_i32x4_sub(from.part[i], wasm_i32x4_shl(counts.part[i], shift));
                const v128_t scaled = wasm_f32x4_mul(wasm_f32x4_convert_i32x4(dot), factor.part[i]);
                y.part[i] = wasm_f32x4_add(y.part[i], wasm_f32x4_add(scaled, more.part[i]));
            }
            store16(to, y);
        };
    });
}

void prepare_rows(const uint32_t* bits, size_t bit_stride, int count, int depth, uint32_t* rows, size_t stride) {
    for (int row = 0; row < count; ++row) prepare_triples(bits + row * bit_stride, depth, rows + row * stride);
}

}  // namespace gsb::wasm
