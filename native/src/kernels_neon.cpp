// NEON kernels (AArch64): the products and distances; the compiler vectorizes the rest of the portable code itself.
//
// Contract: kernels.h. Layout: weights row after row. Cost of 128 bits: one load, one xor, one byte popcount and one
// addition; bytes are summed across once for every 31 registers.
#include <arm_neon.h>

#include <cstring>

#include "dispatch.h"
#include "kernels.h"
#include "row_products.h"
#include "row_scores.h"

namespace gsb {

namespace {

constexpr int kRegisters = 31;  // as many byte counts of eight fit in a byte

uint8x16_t load16(const uint32_t* from) {
    return vreinterpretq_u8_u32(vld1q_u32(from));
}

// The last two words of a row whose length is no multiple of four words.
uint8x16_t load8(const uint32_t* from) {
    return vreinterpretq_u8_u32(vcombine_u32(vld1_u32(from), vdup_n_u32(0)));
}

// Sums the bytes of four registers: (Σa, Σb, Σc, Σd).
uint32x4_t sum_bytes(const uint8x16_t* x) {
    const uint16x8_t first = vpaddq_u16(vpaddlq_u8(x[0]), vpaddlq_u8(x[1]));
    const uint16x8_t second = vpaddq_u16(vpaddlq_u8(x[2]), vpaddlq_u8(x[3]));
    return vpaddlq_u16(vpaddq_u16(first, second));
}

struct NeonCounts {
    void operator()(const Product& p, int row, int first, int channels, int32_t* counts) const {
        const int words = (p.depth + 1) / 2 * 2;
        const uint32_t* x = p.rows + row * p.stride;
        for (int c = 0; c < channels; c += 4) {
            const uint32_t* w = p.weights + static_cast<size_t>(first + c) * words;
            uint32x4_t sum = vdupq_n_u32(0);
            int k = 0;
            while (k < words) {
                uint8x16_t bytes[4] = {vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0)};
                const int end = words - k < 4 * kRegisters ? words : k + 4 * kRegisters;
                for (; k + 4 <= end; k += 4) {
                    const uint8x16_t bits = load16(x + k);
                    for (int i = 0; i < 4; ++i) {
                        bytes[i] = vaddq_u8(bytes[i], vcntq_u8(veorq_u8(bits, load16(w + i * words + k))));
                    }
                }
                if (k < end) {
                    const uint8x16_t bits = load8(x + k);
                    for (int i = 0; i < 4; ++i) {
                        bytes[i] = vaddq_u8(bytes[i], vcntq_u8(veorq_u8(bits, load8(w + i * words + k))));
                    }
                    k = end;
                }
                sum = vaddq_u32(sum, sum_bytes(bytes));
            }
            vst1q_s32(counts + c, vreinterpretq_s32_u32(sum));
        }
    }
};

// Four keys a register, one a lane.
struct NeonDistances {
    void operator()(const Scores& s, const uint32_t* query, int32_t* z) const {
        for (int j = 0; j < s.tokens; j += 4) {
            uint32x4_t sum = vdupq_n_u32(0);
            for (int w = 0; w < s.words; ++w) {
                const uint8x16_t q = vreinterpretq_u8_u32(vdupq_n_u32(query[w]));
                const uint8x16_t differing = veorq_u8(q, load16(s.keys + w * s.key_stride + j));
                sum = vpadalq_u16(sum, vpaddlq_u8(vcntq_u8(differing)));
            }
            vst1q_s32(z + j, vreinterpretq_s32_u32(sum));
        }
    }
};

Kernels neon_kernels() {
    using Products = RowProducts<NeonCounts>;
    Kernels kernels = kPortableKernels;
    kernels.name = "neon";
    kernels.product_threshold = Products::threshold;
    kernels.product_interval = Products::interval;
    kernels.product_count = Products::count;
    kernels.product_integers = Products::integers;
    kernels.product_residual = Products::residual;
    kernels.scores = RowScores<NeonDistances>::run;
    return kernels;
}

}  // namespace

// Filled when the library is loaded, from a table that is a constant.
const Kernels kNeonKernels = neon_kernels();

}  // namespace gsb
