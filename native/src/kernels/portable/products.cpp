// Portable kernels, plain C++ on 64-bit words and the yardstick of the vector backends: products of bits.
//
// Contract: kernels/contract.h. Layout: weights row after row. Cost: one load with xor, one popcount and one addition
// per 64 bits.
#include <cstring>

#include "kernels/portable/isa.h"
#include "kernels/row_products.h"

namespace gsb::portable {

namespace {

uint64_t load_word(const uint32_t* words) {
    uint64_t word;
    std::memcpy(&word, words, sizeof(word));
    return word;
}

// counts[c] = popcount(row ^ weights[first + c]), four channels at a time.
struct WordCounts {
    void operator()(const Product& p, int row, int first, int channels, int32_t* counts) const {
        const int words = (p.depth + 1) / 2;
        const size_t stride = static_cast<size_t>(words) * 2;
        const uint32_t* x = p.rows + row * p.stride;
        for (int c = 0; c < channels; c += 4) {
            const uint32_t* w = p.weights + (first + c) * stride;
            int32_t sum[4] = {};
            for (int k = 0; k < words; ++k) {
                const uint64_t bits = load_word(x + 2 * k);
                for (int i = 0; i < 4; ++i) sum[i] += __builtin_popcountll(bits ^ load_word(w + i * stride + 2 * k));
            }
            for (int i = 0; i < 4; ++i) counts[c + i] = sum[i];
        }
    }
};

using Products = RowProducts<WordCounts>;

}  // namespace

void product_threshold(const Product& p, const int32_t* threshold, uint32_t* out, size_t out_stride) {
    Products::threshold(p, threshold, out, out_stride);
}

void product_interval(const Product& p, const int32_t* low, const uint32_t* range, uint32_t* out, size_t out_stride) {
    Products::interval(p, low, range, out, out_stride);
}

void product_count(const Product& p, uint16_t* out, size_t group_stride) {
    Products::count(p, out, group_stride);
}

void product_integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
    Products::integers(p, base, out, out_stride);
}

void product_residual(const Product& p, const int32_t* base, const float* scale, const float* bias, float* x,
                      size_t x_stride) {
    Products::residual(p, base, scale, bias, x, x_stride);
}

}  // namespace gsb::portable
