// The products of backends that keep weights row after row, for any way of counting.
//
// COUNTS()(product, row, first, channels, counts) writes the counts of up to 64 channels (a multiple of 16) of one row.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/contract.h"

namespace gsb {

// Bit i of the result is flag i, 0 or 1. Eight at a time: the product moves the flags of eight bytes into its top byte.
inline uint64_t pack_flags(const uint8_t* flags, int count) {
    uint64_t bits = 0;
    for (int i = 0; i < count; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, flags + i, sizeof(eight));
        bits |= (eight * 0x0102040810204080u >> 56) << i;
    }
    return bits;
}

template <class COUNTS>
struct RowProducts {
    static void threshold(const Product& p, const int32_t* threshold, uint32_t* out, size_t out_stride) {
        each_block(p, [=](int row, int first, int channels, const int32_t* counts) {
            uint8_t flags[kBlock];
            for (int c = 0; c < channels; ++c) flags[c] = counts[c] <= threshold[first + c];
            store(out + row * out_stride + first / 32, pack_flags(flags, channels));
        });
    }

    static void interval(const Product& p, const int32_t* low, const uint32_t* range, uint32_t* out,
                         size_t out_stride) {
        each_block(p, [=](int row, int first, int channels, const int32_t* counts) {
            uint8_t flags[kBlock];
            for (int c = 0; c < channels; ++c) {
                const uint32_t distance = static_cast<uint32_t>(counts[c]) - static_cast<uint32_t>(low[first + c]);
                flags[c] = distance > range[first + c];
            }
            store(out + row * out_stride + first / 32, pack_flags(flags, channels));
        });
    }

    static void count(const Product& p, uint16_t* out, size_t group_stride) {
        each_block(p, [=](int row, int first, int channels, const int32_t* counts) {
            for (int c = 0; c < channels; ++c) {
                const size_t group = static_cast<size_t>((first + c) / kCountGroup);
                out[group * group_stride + static_cast<size_t>(row) * kCountGroup + c % kCountGroup] =
                    static_cast<uint16_t>(counts[c]);
            }
        });
    }

    static void integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
        each_block(p, [=](int row, int first, int channels, const int32_t* counts) {
            int32_t* y = out + row * out_stride + first;
            for (int c = 0; c < channels; ++c) y[c] = base[first + c] - counts[c];
        });
    }

    static void residual(const Product& p, const int32_t* base, const float* scale, const float* bias, float* x,
                         size_t x_stride) {
        const int shift = p.inputs.count_shift();
        each_block(p, [=](int row, int first, int channels, const int32_t* counts) {
            float* y = x + row * x_stride + first;
            for (int c = 0; c < channels; ++c) {
                const float dot = static_cast<float>(base[first + c] - (counts[c] << shift));
                const float scaled = dot * scale[first + c];
                y[c] = y[c] + (scaled + bias[first + c]);
            }
        });
    }

  private:
    static void store(uint32_t* words, uint64_t bits) { std::memcpy(words, &bits, sizeof(bits)); }

    template <class Sink>
    static void each_block(const Product& p, Sink sink) {
        for (int first = 0; first < p.channels; first += kBlock) {
            const int channels = p.channels - first < kBlock ? p.channels - first : kBlock;
            for (int row = 0; row < p.count; ++row) {
                int32_t counts[kBlock];
                COUNTS()(p, row, first, channels, counts);
                sink(row, first, channels, counts);
            }
        }
    }
};

}  // namespace gsb
