// Portable kernels: extremes and planes of the Value, and what follows attention × Value.
//
// Contract: kernels/contract.h.
#include <cstring>
#include <limits>

#include "kernels/portable/isa.h"

namespace gsb::portable {

namespace {

// Sixteen channels of a plane: their rows of bits, the popcounts, and the bytes.
void value_piece(const ValuePlanes& v, int plane, int first) {
    const size_t stride = (static_cast<size_t>(v.tokens) + 63) / 64 * 2;
    const uint16_t* counts =
        v.counts + first / kCountGroup * static_cast<size_t>(v.tokens) * kCountGroup + first % kCountGroup;
    int8_t* bytes = v.bytes ? v.bytes + plane * (v.tokens * v.byte_stride) + first : nullptr;
    int16_t threshold[kPiece], low[kPiece], high[kPiece];
    for (int l = 0; l < kPiece; ++l) {
        // In plane 0 every count is in the group.
        threshold[l] = v.threshold[first + l];
        low[l] = plane > 0 ? v.low[(plane - 1) * v.channels + first + l] : std::numeric_limits<int16_t>::max();
        high[l] = plane > 0 ? v.high[(plane - 1) * v.channels + first + l] : 0;
    }
    int32_t ones[kPiece] = {};
    for (int j = 0; j < v.tokens; j += 32) {
        const int end = v.tokens - j < 32 ? v.tokens - j : 32;
        uint32_t words[kPiece] = {};
        for (int t = 0; t < end; ++t) {
            const uint16_t* of_token = counts + static_cast<size_t>(j + t) * kCountGroup;
            int8_t values[kPiece];
            for (int l = 0; l < kPiece; ++l) {
                const auto count = static_cast<int16_t>(of_token[l]);
                const int sign = count <= threshold[l], member = (count <= low[l]) | (count >= high[l]);
                words[l] |= static_cast<uint32_t>(sign == member) << t;
                values[l] = static_cast<int8_t>((2 * sign - 1) * member);
            }
            if (bytes) std::memcpy(bytes + (j + t) * v.byte_stride, values, sizeof(values));
        }
        for (int l = 0; l < kPiece; ++l) {
            v.bits[plane * v.plane_words + (first + l) * stride + j / 32] = words[l];
            ones[l] += __builtin_popcount(words[l]);
        }
    }
    std::memcpy(v.ones + plane * v.channels + first, ones, sizeof(ones));
}

// Σ over the listed tokens of one plane's bytes, added to y with its scale.
void add_listed(const Combine& c, const int32_t* columns, int count, int plane, float scale, int first, float* y) {
    int32_t sum[kPiece] = {};
    for (int n = 0; n < count; ++n) {
        const int8_t* bytes = c.bytes + plane * c.plane_bytes + columns[n] * c.byte_stride + first;
        for (int l = 0; l < kPiece; ++l) sum[l] += bytes[l];
    }
    for (int l = 0; l < kPiece; ++l) y[l] = y[l] + static_cast<float>(sum[l]) * scale;
}

// y of one row, sixteen channels from `first` on.
void combine_piece(const Combine& c, int row, int first, float* y) {
    const size_t plane_products = static_cast<size_t>(c.rows) * c.channels;
    const int32_t* product = c.products + static_cast<size_t>(row) * c.channels + first;
    const auto active = [&](int plane) { return c.active[(plane * c.channels + first) / kPiece] != 0; };
    for (int l = 0; l < kPiece; ++l) y[l] = static_cast<float>(product[l]) * c.scale[0];
    for (int plane = 1; plane < c.planes; ++plane) {
        if (!active(plane)) continue;
        const int32_t* other = product + plane * plane_products;
        for (int l = 0; l < kPiece; ++l) {
            y[l] = y[l] + static_cast<float>((product[l] + other[l]) / 2) * c.scale[plane];
        }
    }
    for (int group = 1; group < c.groups; ++group) {
        const size_t list = static_cast<size_t>(row) * (c.groups - 1) + group - 1;
        for (int plane = 0; plane < c.planes && c.list_count[list] > 0; ++plane) {
            if (!active(plane)) continue;
            add_listed(c, c.columns + c.list_begin[list], c.list_count[list], plane, c.scale[group * c.planes + plane],
                       first, y);
        }
    }
}

}  // namespace

void count_extremes(const uint16_t* counts, size_t group_stride, int channels, int first, int last, uint16_t* smallest,
                    uint16_t* largest) {
    for (int c = 0; c < channels; c += kCountGroup) {
        const uint16_t* group = counts + c / kCountGroup * group_stride;
        for (int l = 0; l < kCountGroup; ++l) smallest[c + l] = largest[c + l] = group[first * kCountGroup + l];
        for (int row = first + 1; row < last; ++row) {
            const uint16_t* values = group + static_cast<size_t>(row) * kCountGroup;
            for (int l = 0; l < kCountGroup; ++l) {
                smallest[c + l] = values[l] < smallest[c + l] ? values[l] : smallest[c + l];
                largest[c + l] = values[l] > largest[c + l] ? values[l] : largest[c + l];
            }
        }
    }
}

void value_planes(const ValuePlanes& v) {
    for (int plane = 0; plane < v.planes; ++plane) {
        const uint8_t* active = v.active + plane * (v.channels / kPiece);
        bool any = false;
        for (int piece = 0; piece < v.channels / kPiece; ++piece) any |= active[piece] != 0;
        for (int first = 0; any && first < v.channels; first += kPiece) value_piece(v, plane, first);
    }
}

void combine(const Combine& c) {
    for (int row = 0; row < c.rows; ++row) {
        for (int first = 0; first < c.channels; first += 32) {
            float y[32];
            combine_piece(c, row, first, y);
            combine_piece(c, row, first + kPiece, y + kPiece);
            uint32_t word = 0;
            for (int l = 0; l < 32; ++l) word |= static_cast<uint32_t>(y[l] + c.shift[first + l] >= 0) << l;
            c.out[row * c.out_stride + first / 32] = word;
        }
    }
}

}  // namespace gsb::portable
