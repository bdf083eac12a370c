// Portable kernels: plain C++ on 64-bit words, the yardstick of the vector backends.
//
// Contract: kernels/contract.h. Layout: weights row after row. Cost of a product: one load with xor, one popcount and
// one addition per 64 bits.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/contract.h"
#include "kernels/dispatch.h"
#include "kernels/float_ops.h"
#include "kernels/row_products.h"
#include "kernels/row_scores.h"

namespace gsb {

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

void norm_bits(const Norm& norm, uint32_t* out, size_t out_stride) {
    const float share = 1.0f / static_cast<float>(norm.width);
    for (int row = 0; row < norm.count; ++row) {
        const float* x = norm.x + row * norm.stride;
        const float mean = sum16(x, norm.width) * share;
        float lane[kLanes] = {};
        for (int i = 0; i < norm.width; i += kLanes) {
            const int end = norm.width - i < kLanes ? norm.width - i : kLanes;
            for (int l = 0; l < end; ++l) {
                const float centred = x[i + l] - mean;
                lane[l] = lane[l] + centred * centred;
            }
        }
        const float variance = fold16(lane) * share;
        const float factor = 1.0f / std::sqrt(variance + norm.eps);
        uint32_t* bits = out + row * out_stride;
        for (int i = 0; i < norm.width; i += 32) {
            const int end = norm.width - i < 32 ? norm.width - i : 32;
            uint8_t flags[32] = {};
            for (int l = 0; l < end; ++l) flags[l] = (x[i + l] - mean) * factor >= norm.threshold[i + l];
            bits[i / 32] = static_cast<uint32_t>(pack_flags(flags, 32)) ^ norm.flip[i / 32];
        }
    }
}

int32_t dot_pixels(const uint8_t* pixels, const int8_t* weights, int count) {
    int32_t sum = 0;
    for (int k = 0; k < count; ++k) sum += static_cast<int32_t>(pixels[k]) * weights[k];
    return sum;
}

void patches_embed(const Patches& p) {
    const size_t area = p.area;
    const auto* weights = static_cast<const int8_t*>(p.weights);
    // Channels outside: a channel's weights and a patch stay in the first cache.
    for (int c = 0; c < p.channels; ++c) {
        const int8_t* w = weights + c * 3 * area;
        for (int row = 0; row < p.count; ++row) {
            const uint8_t* u = p.pixels + row * 3 * area;
            float part[3];
            for (int colour = 0; colour < 3; ++colour) {
                const int32_t sum = dot_pixels(u + colour * area, w + colour * area, p.area);
                part[colour] = static_cast<float>(sum) * p.scale[colour * p.channels + c];
            }
            p.x[row * p.stride + c] =
                ((part[0] + part[1]) + part[2]) + p.position[static_cast<size_t>(row) * p.channels + c];
        }
    }
}

// Distances of one query to all keys, two words at a time.
struct WordDistances {
    void operator()(const Scores& s, const uint32_t* query, int32_t* z) const {
        for (int w = 0; w < s.words; w += 2) {
            const bool pair = w + 1 < s.words;
            const uint32_t *low = s.keys + w * s.key_stride, *high = pair ? low + s.key_stride : low;
            const uint64_t upper = pair ? ~uint64_t{0} << 32 : 0;
            const uint64_t bits = query[w] | (pair ? static_cast<uint64_t>(query[w + 1]) << 32 : 0);
            for (int j = 0; j < s.tokens; ++j) {
                const uint64_t key = low[j] | (static_cast<uint64_t>(high[j]) << 32 & upper);
                z[j] = (w == 0 ? 0 : z[j]) + __builtin_popcountll(bits ^ key);
            }
        }
    }
};

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

void value_planes(const ValuePlanes& v) {
    for (int plane = 0; plane < v.planes; ++plane) {
        const uint8_t* active = v.active + plane * (v.channels / kPiece);
        bool any = false;
        for (int piece = 0; piece < v.channels / kPiece; ++piece) any |= active[piece] != 0;
        for (int first = 0; any && first < v.channels; first += kPiece) value_piece(v, plane, first);
    }
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

void dot_bytes(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out) {
    for (int row = 0; row < rows; ++row) {
        const int8_t* w = weights + static_cast<size_t>(row) * depth;
        int32_t sum = 0;
        for (int k = 0; k < depth; ++k) sum += static_cast<int32_t>(x[k]) * w[k];
        out[row] = sum;
    }
}

}  // namespace

const Kernels kPortableKernels = {
    "portable",          WeightLayout::rows, PatchLayout::rows, nullptr,
    Products::threshold, Products::interval, Products::count,   Products::integers,
    Products::residual,  norm_bits,          patches_embed,     RowScores<WordDistances>::run,
    count_extremes,      value_planes,       combine,           dot_bytes,
};

}  // namespace gsb
