// What the WebAssembly kernels share: loads of four registers, bits from compare masks, and the fold of sixteen lanes.
// SIMD128 without its relaxed extension: every engine gives the same bits.
#pragma once

#include <wasm_simd128.h>

#include <cstring>

#include "kernels/contract.h"

namespace gsb::wasm {

constexpr int kWide = 16;  // lanes of four registers of 32 bits

struct Lanes16 {
    v128_t part[4];
};

inline Lanes16 load16(const void* from) {
    const auto* parts = static_cast<const v128_t*>(from);
    return {{wasm_v128_load(parts), wasm_v128_load(parts + 1), wasm_v128_load(parts + 2), wasm_v128_load(parts + 3)}};
}

inline void store16(void* to, const Lanes16& x) {
    for (int i = 0; i < 4; ++i) wasm_v128_store(static_cast<v128_t*>(to) + i, x.part[i]);
}

// Masks of the first n of sixteen lanes.
inline Lanes16 first_lanes(int n) {
    const v128_t order = wasm_i32x4_const(0, 1, 2, 3), end = wasm_i32x4_splat(n);
    Lanes16 mask;
    for (int i = 0; i < 4; ++i) mask.part[i] = wasm_i32x4_lt(wasm_i32x4_add(order, wasm_i32x4_splat(4 * i)), end);
    return mask;
}

// The bits of sixteen masks, the first lowest.
inline uint16_t bits16(const Lanes16& mask) {
    const v128_t low = wasm_i16x8_narrow_i32x4(mask.part[0], mask.part[1]);
    const v128_t high = wasm_i16x8_narrow_i32x4(mask.part[2], mask.part[3]);
    return static_cast<uint16_t>(wasm_i8x16_bitmask(wasm_i8x16_narrow_i16x8(low, high)));
}

// Writes bits first … first + 15 of a row; first a multiple of 16.
inline void store_bits(uint32_t* row, int first, uint16_t bits) {
    std::memcpy(reinterpret_cast<uint8_t*>(row) + first / 8, &bits, sizeof(bits));
}

// lane l += lane l + 8, then + 4, + 2, + 1 (docs/numerics.md).
inline float fold16(const Lanes16& x) {
    const v128_t four = wasm_f32x4_add(wasm_f32x4_add(x.part[0], x.part[2]), wasm_f32x4_add(x.part[1], x.part[3]));
    const v128_t two = wasm_f32x4_add(four, wasm_i32x4_shuffle(four, four, 2, 3, 2, 3));
    return wasm_f32x4_extract_lane(two, 0) + wasm_f32x4_extract_lane(two, 1);
}

// The sum of each 32-bit lane's four bytes.
inline v128_t sum_bytes(v128_t x) {
    return wasm_u32x4_extadd_pairwise_u16x8(wasm_u16x8_extadd_pairwise_u8x16(x));
}

// products.cpp
kernel::PrepareRows prepare_rows;
kernel::ProductThreshold product_threshold;
kernel::ProductInterval product_interval;
kernel::ProductCount product_count;
kernel::ProductIntegers product_integers;
kernel::ProductResidual product_residual;

// edges.cpp
kernel::NormBits norm_bits;
kernel::PatchesEmbed patches_embed;
kernel::DotBytes dot_bytes;

// scores.cpp
kernel::AttentionScores scores;

// values.cpp
kernel::CountExtremes count_extremes;
kernel::MakeValuePlanes value_planes;
kernel::CombineProducts combine;

// resize.cpp
kernel::SplitWeights split_weights;
kernel::ResizePictureRows resize_rows;
kernel::ResizePictureColumns resize_columns;

}  // namespace gsb::wasm
