// Sixteen lanes in four registers of NEON. What each function does: lanes.h.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define GSB_TRAIN_TARGET
#define GSB_TRAIN_INLINE __attribute__((always_inline)) inline

namespace gsb::train {

inline bool supported() {
    return true;
}

constexpr int kCountRows = 2, kTileVectors = 1;

struct Lanes {
    int count;
};
struct Mask {
    uint32x4_t v[4];  // all bits of a lane or none
};
struct Floats {
    float32x4_t v[4];
};
struct Ints {
    int32x4_t v[4];
};

constexpr Lanes kAllLanes{16};

GSB_TRAIN_INLINE Lanes lanes_from(int begin, int end) {
    return {end - begin >= 16 ? 16 : end - begin};
}

// of(i) for every register i.
template <class To, class Of>
GSB_TRAIN_INLINE To each(const Of& of) {
    return {{of(0), of(1), of(2), of(3)}};
}

GSB_TRAIN_INLINE Mask mask_of(Lanes lanes) {
    const int32_t first[4] = {0, 1, 2, 3};
    const int32x4_t lane = vld1q_s32(first);
    return each<Mask>([&](int i) { return vcltq_s32(lane, vdupq_n_s32(lanes.count - 4 * i)); });
}
GSB_TRAIN_INLINE Mask mask_of_bits(uint16_t bits) {
    const uint32_t powers[4] = {1, 2, 4, 8};
    const uint32x4_t bit = vld1q_u32(powers);
    return each<Mask>([&](int i) { return vtstq_u32(vdupq_n_u32(static_cast<uint32_t>(bits) >> (4 * i)), bit); });
}
GSB_TRAIN_INLINE uint16_t bits_of(Mask m) {
    const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(m.v[0]), vreinterpretq_u16_u32(m.v[1]));
    const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(m.v[2]), vreinterpretq_u16_u32(m.v[3]));
    const uint8x16_t bytes = vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
    const uint8_t powers[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t bits = vandq_u8(bytes, vld1q_u8(powers));
    for (int i = 0; i < 3; ++i) bits = vpaddq_u8(bits, bits);
    return vgetq_lane_u16(vreinterpretq_u16_u8(bits), 0);
}
GSB_TRAIN_INLINE int count(Mask m) {
    const uint32x4_t minus = vaddq_u32(vaddq_u32(m.v[0], m.v[1]), vaddq_u32(m.v[2], m.v[3]));
    return -static_cast<int>(vaddvq_u32(minus));
}
GSB_TRAIN_INLINE Mask operator&(Mask a, Mask b) {
    return each<Mask>([&](int i) { return vandq_u32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Mask operator|(Mask a, Mask b) {
    return each<Mask>([&](int i) { return vorrq_u32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Mask operator~(Mask a) {
    return each<Mask>([&](int i) { return vmvnq_u32(a.v[i]); });
}

GSB_TRAIN_INLINE Floats floats(float x) {
    return each<Floats>([&](int) { return vdupq_n_f32(x); });
}
GSB_TRAIN_INLINE Floats load(const float* from, Lanes lanes) {
    float room[16] = {};
    if (lanes.count < 16) from = static_cast<float*>(std::memcpy(room, from, sizeof(float) * lanes.count));
    return each<Floats>([&](int i) { return vld1q_f32(from + 4 * i); });
}
GSB_TRAIN_INLINE Floats load(const Half* from, Lanes lanes) {
    Half room[16] = {};
    if (lanes.count < 16) from = static_cast<Half*>(std::memcpy(room, from, sizeof(Half) * lanes.count));
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
    return each<Floats>([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(bits + 4 * i), 16)); });
}
GSB_TRAIN_INLINE void store(float* to, Lanes lanes, Floats x) {
    float room[16];
    float* out = lanes.count < 16 ? room : to;
    for (int i = 0; i < 4; ++i) vst1q_f32(out + 4 * i, x.v[i]);
    if (lanes.count < 16) std::memcpy(to, room, sizeof(float) * lanes.count);
}
GSB_TRAIN_INLINE uint16x4_t rounded_half(float32x4_t x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t near = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), near, vdupq_n_u32(0x7FC00000)), 16);
}
GSB_TRAIN_INLINE void store(Half* to, Lanes lanes, Floats x) {
    uint16_t room[16];
    uint16_t* out = lanes.count < 16 ? room : reinterpret_cast<uint16_t*>(to);
    for (int i = 0; i < 4; ++i) vst1_u16(out + 4 * i, rounded_half(x.v[i]));
    if (lanes.count < 16) std::memcpy(to, room, sizeof(Half) * lanes.count);
}

GSB_TRAIN_INLINE Floats operator+(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Floats operator-(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Floats operator*(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return each<Floats>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Floats min(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Floats max(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Floats magnitude(Floats x) {
    return each<Floats>([&](int i) { return vabsq_f32(x.v[i]); });
}

GSB_TRAIN_INLINE Mask operator<(Floats a, Floats b) {
    return each<Mask>([&](int i) { return vcltq_f32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Mask operator<=(Floats a, Floats b) {
    return each<Mask>([&](int i) { return vcleq_f32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Mask operator!=(Floats a, Floats b) {
    return each<Mask>([&](int i) { return vmvnq_u32(vceqq_f32(a.v[i], b.v[i])); });
}

GSB_TRAIN_INLINE Floats select(Mask m, Floats yes, Floats no) {
    return each<Floats>([&](int i) { return vbslq_f32(m.v[i], yes.v[i], no.v[i]); });
}
GSB_TRAIN_INLINE Floats keep(Mask m, Floats x) {
    return each<Floats>([&](int i) { return vreinterpretq_f32_u32(vandq_u32(m.v[i], vreinterpretq_u32_f32(x.v[i]))); });
}
GSB_TRAIN_INLINE Floats divide_where(Mask m, Floats a, Floats b) {
    return keep(m, each<Floats>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); }));
}

GSB_TRAIN_INLINE float sum(Floats x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
GSB_TRAIN_INLINE float largest(Floats x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3])));
}
GSB_TRAIN_INLINE float smallest(Floats x) {
    return vminvq_f32(vminq_f32(vminq_f32(x.v[0], x.v[1]), vminq_f32(x.v[2], x.v[3])));
}

GSB_TRAIN_INLINE Ints ints(int32_t x) {
    return each<Ints>([&](int) { return vdupq_n_s32(x); });
}
GSB_TRAIN_INLINE Ints load_int32(const int32_t* from) {
    return each<Ints>([&](int i) { return vld1q_s32(from + 4 * i); });
}
GSB_TRAIN_INLINE Ints load_int16(const void* from, Lanes lanes) {
    int16_t room[16] = {};
    std::memcpy(room, from, sizeof(int16_t) * lanes.count);
    return each<Ints>([&](int i) { return vmovl_s16(vld1_s16(room + 4 * i)); });
}
GSB_TRAIN_INLINE Ints load_uint8(const void* from, Lanes lanes) {
    uint8_t room[16] = {};
    std::memcpy(room, from, lanes.count);
    const uint8x16_t bytes = vld1q_u8(room);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)),
             vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_high_u16(high))}};
}
GSB_TRAIN_INLINE void store_int16(void* to, Lanes lanes, Ints x) {
    int16_t room[16];
    for (int i = 0; i < 4; ++i) vst1_s16(room + 4 * i, vmovn_s32(x.v[i]));
    std::memcpy(to, room, sizeof(int16_t) * lanes.count);
}
GSB_TRAIN_INLINE void store_uint8(void* to, Lanes lanes, Ints x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.v[0]), vmovn_s32(x.v[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.v[2]), vmovn_s32(x.v[3]));
    uint8_t room[16];
    vst1q_u8(room, vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high))));
    std::memcpy(to, room, lanes.count);
}
GSB_TRAIN_INLINE Ints rounded(Floats x) {
    return each<Ints>([&](int i) { return vcvtnq_s32_f32(x.v[i]); });
}
GSB_TRAIN_INLINE Floats floats(Ints x) {
    return each<Floats>([&](int i) { return vcvtq_f32_s32(x.v[i]); });
}
GSB_TRAIN_INLINE Ints operator+(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Ints operator-(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
template <int Bits>
GSB_TRAIN_INLINE Ints shift_left(Ints x) {
    return each<Ints>([&](int i) { return vshlq_n_s32(x.v[i], Bits); });
}
template <int Bits>
GSB_TRAIN_INLINE Ints shift_right(Ints x) {
    return each<Ints>([&](int i) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x.v[i]), Bits)); });
}
GSB_TRAIN_INLINE Ints min(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vminq_s32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Ints magnitude(Ints x) {
    return each<Ints>([&](int i) { return vabsq_s32(x.v[i]); });
}
GSB_TRAIN_INLINE Mask operator<(Ints a, Ints b) {
    return each<Mask>([&](int i) { return vcltq_s32(a.v[i], b.v[i]); });
}
GSB_TRAIN_INLINE Ints select(Mask m, Ints yes, Ints no) {
    return each<Ints>([&](int i) { return vbslq_s32(m.v[i], yes.v[i], no.v[i]); });
}
GSB_TRAIN_INLINE Ints keep(Mask m, Ints x) {
    return each<Ints>([&](int i) { return vandq_s32(vreinterpretq_s32_u32(m.v[i]), x.v[i]); });
}

// Counts gather in bytes, eight a word, and go into the words' sums before a byte can overflow.
class BitCounts {
  public:
    GSB_TRAIN_INLINE BitCounts() {
        for (int i = 0; i < 8; ++i) bytes_[i] = vdupq_n_u8(0);
        for (int i = 0; i < 4; ++i) sums_[i] = vdupq_n_u32(0);
    }
    GSB_TRAIN_INLINE void add(uint64_t word, const uint64_t* words) {
        const uint64x2_t x = vdupq_n_u64(word);
        for (int i = 0; i < 8; ++i) {
            const uint64x2_t bits = veorq_u64(x, vld1q_u64(words + 2 * i));
            bytes_[i] = vaddq_u8(bytes_[i], vcntq_u8(vreinterpretq_u8_u64(bits)));
        }
        if (++gathered_ == kMostGathered) gather();
    }
    GSB_TRAIN_INLINE Ints total() {
        gather();
        return each<Ints>([&](int i) { return vreinterpretq_s32_u32(sums_[i]); });
    }

  private:
    static constexpr int kMostGathered = 31;  // of 8 each, in a byte
    GSB_TRAIN_INLINE void gather() {
        for (int i = 0; i < 4; ++i) {
            const uint32x4_t low = vpaddlq_u16(vpaddlq_u8(bytes_[2 * i]));
            const uint32x4_t high = vpaddlq_u16(vpaddlq_u8(bytes_[2 * i + 1]));
            sums_[i] = vaddq_u32(sums_[i], vpaddq_u32(low, high));
        }
        for (int i = 0; i < 8; ++i) bytes_[i] = vdupq_n_u8(0);
        gathered_ = 0;
    }
    uint8x16_t bytes_[8];
    uint32x4_t sums_[4];
    int gathered_ = 0;
};

}  // namespace gsb::train
