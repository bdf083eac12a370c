// WebAssembly kernels: resampling of pictures. A weight is two words of 16 bits, and two products and their sum are one
// instruction (i32x4.dot_i16x8_s). Four taps of an RGB pixel are four of them, and two shuffles.
//
// Contract: kernels/contract.h. Pieces of an output: kernels/plain_resize.h.
#include "kernels/plain_resize.h"
#include "kernels/wasm/isa.h"

namespace gsb::wasm {

namespace {

constexpr int kRows = 4;  // at a time

// The pair of weights from `tap` on, in every lane.
inline v128_t pair_at(const uint8_t* pieces, int tap) {
    return wasm_v128_load32_splat(pieces + 2 * static_cast<size_t>(tap));
}

inline v128_t add_pairs(v128_t sum, v128_t pixels, v128_t weights) {
    return wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(pixels, weights));
}

inline v128_t level(v128_t low, v128_t high) {
    const v128_t sum =
        wasm_i32x4_add(wasm_i32x4_add(wasm_i32x4_shl(high, kLowBits), low), wasm_i32x4_splat(kHalfWeight));
    return wasm_i32x4_shr(sum, kWeightBits);
}

// Four RGB pixels.
inline v128_t load_pixels(const uint8_t* from) {
    return wasm_v128_load32_lane(from + 8, wasm_v128_load64_zero(from), 2);
}

// Of four RGB pixels the first two as pairs of 16 bits a colour, and the last two. Byte 12 is 0.
inline v128_t front_pairs(v128_t four) {
    return wasm_i8x16_shuffle(four, four, 0, 12, 3, 12, 1, 12, 4, 12, 2, 12, 5, 12, 12, 12, 12, 12);
}

inline v128_t back_pairs(v128_t four) {
    return wasm_i8x16_shuffle(four, four, 6, 12, 9, 12, 7, 12, 10, 12, 8, 12, 11, 12, 12, 12, 12, 12);
}

// `rows` rows of RGB; taps are a multiple of four.
template <int rows>
inline void resize_pixel(const ResizeRows& r, int first_row, int o) {
    const uint8_t* low_weights = r.taps.pieces + 4 * r.taps.stride * o;
    const uint8_t* high_weights = low_weights + 2 * r.taps.stride;
    const uint8_t* in = r.in + first_row * r.in_stride + 3 * static_cast<size_t>(r.taps.first[o]);
    v128_t low[rows], high[rows];
#pragma clang loop unroll(full)
    for (int i = 0; i < rows; ++i) low[i] = high[i] = wasm_i32x4_splat(0);
    for (int tap = 0; tap < r.taps.taps[o]; tap += 4, in += 12) {
        const v128_t low_front = pair_at(low_weights, tap), low_back = pair_at(low_weights, tap + 2);
        const v128_t high_front = pair_at(high_weights, tap), high_back = pair_at(high_weights, tap + 2);
#pragma clang loop unroll(full)
        for (int i = 0; i < rows; ++i) {
            const v128_t four = load_pixels(in + i * r.in_stride);
            const v128_t front = front_pairs(four), back = back_pairs(four);
            low[i] = add_pairs(add_pairs(low[i], front, low_front), back, low_back);
            high[i] = add_pairs(add_pairs(high[i], front, high_front), back, high_back);
        }
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < rows; ++i) {
        const v128_t words = wasm_i16x8_narrow_i32x4(level(low[i], high[i]), wasm_i32x4_splat(0));
        const v128_t bytes = wasm_u8x16_narrow_i16x8(words, words);
        uint8_t* out = r.out + (first_row + i) * r.out_stride + 3 * o;
        wasm_v128_store16_lane(out, bytes, 0);
        wasm_v128_store8_lane(out + 2, bytes, 2);
    }
}

template <int rows>
inline void resize_some_rows(const ResizeRows& r, int first_row) {
    for (int o = 0; o < r.taps.outputs; ++o) {
        if (r.taps.taps[o] % 4 == 0) {
            resize_pixel<rows>(r, first_row, o);
            continue;
        }
        for (int row = first_row; row < first_row + rows; ++row) {
            plain_resize_pixel<3>(r.in + row * r.in_stride + 3 * static_cast<size_t>(r.taps.first[o]),
                                  r.taps.weights + o * r.taps.stride, r.taps.taps[o],
                                  r.out + row * r.out_stride + 3 * o);
        }
    }
}

}  // namespace

void split_weights(const int32_t* weights, size_t stride, uint8_t* pieces) {
    split_into_words(weights, stride, pieces);
}

void resize_rows(const ResizeRows& r) {
    if (r.channels == 1) return plain_resize_rows<1>(r);
    int row = 0;
    for (; row + kRows <= r.rows; row += kRows) resize_some_rows<kRows>(r, row);
    for (; row < r.rows; ++row) resize_some_rows<1>(r, row);
}

void resize_columns(const ResizeColumns& r) {
    const uint8_t* low_weights = r.taps.pieces + 4 * r.taps.stride * r.output;
    const uint8_t* high_weights = low_weights + 2 * r.taps.stride;
    const int taps = r.taps.taps[r.output];
    const uint8_t* in = r.in + static_cast<size_t>(r.taps.first[r.output]) * r.in_stride;
    int begin = 0;
    for (; begin + 16 <= r.bytes; begin += 16) {
        v128_t low[4], high[4];
#pragma clang loop unroll(full)
        for (int i = 0; i < 4; ++i) low[i] = high[i] = wasm_i32x4_splat(0);
        for (int tap = 0; tap < taps; tap += 2) {
            const uint8_t* from = in + tap * r.in_stride + begin;
            const v128_t upper = wasm_v128_load(from);
            const v128_t lower = tap + 1 < taps ? wasm_v128_load(from + r.in_stride) : upper;  // else its weight is 0
            const v128_t front =
                wasm_i8x16_shuffle(upper, lower, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            const v128_t back =
                wasm_i8x16_shuffle(upper, lower, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            const v128_t pairs[4] = {wasm_u16x8_extend_low_u8x16(front), wasm_u16x8_extend_high_u8x16(front),
                                     wasm_u16x8_extend_low_u8x16(back), wasm_u16x8_extend_high_u8x16(back)};
            const v128_t low_pair = pair_at(low_weights, tap), high_pair = pair_at(high_weights, tap);
#pragma clang loop unroll(full)
            for (int i = 0; i < 4; ++i) {
                low[i] = add_pairs(low[i], pairs[i], low_pair);
                high[i] = add_pairs(high[i], pairs[i], high_pair);
            }
        }
        const v128_t a = wasm_i16x8_narrow_i32x4(level(low[0], high[0]), level(low[1], high[1]));
        const v128_t b = wasm_i16x8_narrow_i32x4(level(low[2], high[2]), level(low[3], high[3]));
        wasm_v128_store(r.out + begin, wasm_u8x16_narrow_i16x8(a, b));
    }
    plain_resize_columns(r, begin);
}

}  // namespace gsb::wasm
