// Patches by the matrix products of i8mm (USMMLA), beside those of the backend neon_dot: equal results, and
// instructions.
//
//   N=native; aarch64-linux-gnu-g++ -std=c++17 -O3 -march=armv8.2-a+dotprod+i8mm -ffp-contract=off -I$N/src \
//       -I$N/include -static benchmarks/i8mm.cpp $N/src/kernels/neon_dot/edges.cpp -o i8mm
//   cc -shared -fPIC -O2 tests/helpers/count_instructions.c -o count.so
//   qemu-aarch64 -cpu max i8mm compare 1 256 96 64             # patches, taps of one of three sums, channels: "equal"
//   qemu-aarch64 -cpu max -plugin ./count.so i8mm dot 2 256 96 64   # less those of "dot 1": instructions of a call
//   qemu-aarch64 -cpu max -plugin ./count.so i8mm matrix 2 256 96 64
#include <arm_neon.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/contract.h"
#include "kernels/neon_dot/isa.h"
using gsb::Patches;
static constexpr int kB = gsb::kBlock;
// Two patches by two channels and eight taps an instruction, for pairs of patches and sixteen channels.
template <int PAIRS>
static inline __attribute__((always_inline)) void tile(const Patches& p, const int8_t* w, int first, int colour,
                                                       int row) {
    const size_t stride = 3 * (size_t)p.area;
    const uint8_t* px = p.pixels + row * stride + (size_t)colour * p.area;
    int32x4_t s[PAIRS][8];
    for (int r = 0; r < PAIRS; ++r)
        for (int i = 0; i < 8; ++i) s[r][i] = vdupq_n_s32(0);
    int k = 0;
    for (; k + 16 <= p.area; k += 16, w += 256) {
        uint8x16_t lo[PAIRS], hi[PAIRS];
        for (int r = 0; r < PAIRS; ++r) {
            const uint64x2_t a = vreinterpretq_u64_u8(vld1q_u8(px + 2 * r * stride + k));
            const uint64x2_t b = vreinterpretq_u64_u8(vld1q_u8(px + (2 * r + 1) * stride + k));
            lo[r] = vreinterpretq_u8_u64(vzip1q_u64(a, b));
            hi[r] = vreinterpretq_u8_u64(vzip2q_u64(a, b));
        }
        for (int i = 0; i < 8; ++i) {
            const int8x16_t v = vld1q_s8(w + 16 * i);
            for (int r = 0; r < PAIRS; ++r) s[r][i] = vusmmlaq_s32(s[r][i], lo[r], v);
        }
        for (int i = 0; i < 8; ++i) {
            const int8x16_t v = vld1q_s8(w + 128 + 16 * i);
            for (int r = 0; r < PAIRS; ++r) s[r][i] = vusmmlaq_s32(s[r][i], hi[r], v);
        }
    }
    for (; k < p.area; k += 8, w += 128) {
        uint8x16_t t[PAIRS];
        for (int r = 0; r < PAIRS; ++r)
            t[r] = vcombine_u8(vld1_u8(px + 2 * r * stride + k), vld1_u8(px + (2 * r + 1) * stride + k));
        for (int i = 0; i < 8; ++i) {
            const int8x16_t v = vld1q_s8(w + 16 * i);
            for (int r = 0; r < PAIRS; ++r) s[r][i] = vusmmlaq_s32(s[r][i], t[r], v);
        }
    }
    for (int r = 0; r < 2 * PAIRS; ++r)
        for (int i = 0; i < 4; ++i) {
            const int64x2_t a = vreinterpretq_s64_s32(s[r / 2][2 * i]), b = vreinterpretq_s64_s32(s[r / 2][2 * i + 1]);
            const int32x4_t sum = vreinterpretq_s32_s64(r % 2 ? vzip2q_s64(a, b) : vzip1q_s64(a, b));
            const int ch = first + 4 * i;
            float* x = p.x + (row + r) * p.stride + ch;
            float32x4_t y = vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(p.scale + (size_t)colour * p.channels + ch));
            if (colour > 0) y = vaddq_f32(vld1q_f32(x), y);
            if (colour == 2) y = vaddq_f32(y, vld1q_f32(p.position + (size_t)(row + r) * p.channels + ch));
            vst1q_f32(x, y);
        }
}
__attribute__((noinline)) void mmla(const Patches& given) {  // counts are even, channels whole sixteens
    const Patches p = given;
    for (int first = 0; first < p.channels; first += 16)
        for (int c = 0; c < 3; ++c) {
            const int8_t* w = (const int8_t*)p.weights + ((size_t)first * 3 + (size_t)c * 16) * p.area;
            int row = 0;
            for (; row + 4 <= p.count; row += 4) tile<2>(p, w, first, c, row);
            for (; row < p.count; row += 2) tile<1>(p, w, first, c, row);
        }
}
int main(int argc, char** argv) {
    if (argc < 6) return 1;
    const bool compare = strcmp(argv[1], "compare") == 0, matrix = strcmp(argv[1], "matrix") == 0;
    const int reps = atoi(argv[2]), count = atoi(argv[3]), real = atoi(argv[4]), ch = atoi(argv[5]);
    const int area4 = (real + 3) / 4 * 4, area8 = (real + 7) / 8 * 8;
    std::vector<uint8_t> p4((size_t)count * 3 * area4 + 16), p8((size_t)count * 3 * area8 + 16);
    std::vector<int8_t> w4((size_t)ch * 3 * area4), w8((size_t)ch * 3 * area8);
    srand(1);
    for (int i = 0; i < count * 3; ++i)
        for (int k = 0; k < real; ++k) p4[(size_t)i * area4 + k] = p8[(size_t)i * area8 + k] = rand();
    for (int o = 0; o < ch; ++o)
        for (int c = 0; c < 3; ++c)
            for (int k = 0; k < real; ++k) {
                const int8_t v = rand();
                const int block = o / kB * kB, lanes = ch - block < kB ? ch - block : kB;
                w4[(size_t)block * 3 * area4 + (size_t)c * area4 * lanes + (size_t)(k / 4) * 4 * lanes +
                   4 * (o - block) + k % 4] = v;
                w8[((size_t)(o / 16 * 16) * 3 + (size_t)c * 16) * area8 + (size_t)(k / 8) * 128 + (o % 16) * 8 +
                   k % 8] = v;
            }
    std::vector<float> scale(3 * ch, 0.01f), pos((size_t)count * ch, 0.5f), x((size_t)count * ch),
        y((size_t)count * ch);
    Patches a{p4.data(), w4.data(), count, area4, ch, scale.data(), pos.data(), x.data(), (size_t)ch};
    Patches b{p8.data(), w8.data(), count, area8, ch, scale.data(), pos.data(), y.data(), (size_t)ch};
    for (int i = 0; i < reps; ++i) {
        if (compare || !matrix) gsb::neon_dot::patches_embed(a);
        if (compare || matrix) mmla(b);
    }
    if (compare) puts(memcmp(x.data(), y.data(), x.size() * sizeof(float)) ? "DIFFER" : "equal");
}
