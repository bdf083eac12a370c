// What the NEON kernels share: loads of four registers, bits from compare masks, and the fold of sixteen lanes.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "kernels/contract.h"

namespace gsb::neon {

constexpr int kWide = 16;  // lanes of four registers of 32 bits

struct Floats16 {
    float32x4_t part[4];
};

inline Floats16 load16(const float* from) {
    return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}

inline void store16(float* to, const Floats16& x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, x.part[i]);
}

// Masks of the first n of sixteen lanes.
struct Lanes16 {
    uint32x4_t part[4];

    explicit Lanes16(int n) {
        const uint32_t first[4] = {0, 1, 2, 3};
        const uint32x4_t end = vdupq_n_u32(n < 0 ? 0 : static_cast<uint32_t>(n));
        for (int i = 0; i < 4; ++i) {
            part[i] = vcltq_u32(vaddq_u32(vld1q_u32(first), vdupq_n_u32(4u * static_cast<uint32_t>(i))), end);
        }
    }
};

inline float32x4_t select_or_zero(uint32x4_t mask, float32x4_t x) {
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x)));
}

// Bytes of sixteen masks, in order.
inline uint8x16_t narrow16(const uint32x4_t (&mask)[4]) {
    const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(mask[0]), vreinterpretq_u16_u32(mask[1]));
    const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(mask[2]), vreinterpretq_u16_u32(mask[3]));
    return vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
}

// The bits of sixteen masks, the first lowest.
inline uint16_t bits16(uint8x16_t mask) {
    const uint8_t powers[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t bits = vandq_u8(mask, vld1q_u8(powers));
    for (int i = 0; i < 3; ++i) bits = vpaddq_u8(bits, bits);
    return vgetq_lane_u16(vreinterpretq_u16_u8(bits), 0);
}
inline uint16_t bits16(const uint32x4_t (&mask)[4]) {
    return bits16(narrow16(mask));
}

// Writes bits first … first + 15 of a row; first a multiple of 16.
inline void store_bits(uint32_t* row, int first, uint16_t bits) {
    std::memcpy(reinterpret_cast<uint8_t*>(row) + first / 8, &bits, sizeof(bits));
}

// lane l += lane l + 8, then + 4, + 2, + 1 (docs/numerics.md).
inline float fold16(const Floats16& x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.part[0], x.part[2]), vaddq_f32(x.part[1], x.part[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

// The sum of each 32-bit lane's four bytes.
inline uint32x4_t sum_bytes(uint8x16_t x) {
    return vpaddlq_u16(vpaddlq_u8(x));
}

// products.cpp
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
kernel::ResizePictureRows resize_rows;
kernel::ResizePictureColumns resize_columns;

}  // namespace gsb::neon
