// Portable kernels: plain C++ on 64-bit words, the yardstick of the vector backends.
//
// Contract: kernels.h. Layout: weights row after row. Cost of a product: one load with xor, one popcount and one
// addition per 64 bits.
#include <cmath>
#include <cstring>
#include <limits>

#include "dispatch.h"
#include "float_ops.h"
#include "kernels.h"

namespace gsb {

namespace {

uint64_t load_word(const uint32_t* words) {
    uint64_t word;
    std::memcpy(&word, words, sizeof(word));
    return word;
}

void store_word(uint32_t* words, uint64_t word) {
    std::memcpy(words, &word, sizeof(word));
}

// Calls sink(row, first channel, channels, counts) for each row of each block of up to 64 channels.
template <class Sink>
void product(const Product& p, Sink sink) {
    const int words = (p.depth + 1) / 2;
    const size_t weight_stride = static_cast<size_t>(words) * 2;
    for (int first = 0; first < p.channels; first += kBlock) {
        const int channels = p.channels - first < kBlock ? p.channels - first : kBlock;
        for (int row = 0; row < p.count; ++row) {
            const uint32_t* x = p.rows + row * p.stride;
            int32_t counts[kBlock];
            for (int c = 0; c < channels; c += 4) {
                const uint32_t* w = p.weights + (first + c) * weight_stride;
                int32_t sum[4] = {};
                for (int k = 0; k < words; ++k) {
                    const uint64_t bits = load_word(x + 2 * k);
                    for (int i = 0; i < 4; ++i) {
                        sum[i] += __builtin_popcountll(bits ^ load_word(w + i * weight_stride + 2 * k));
                    }
                }
                for (int i = 0; i < 4; ++i) counts[c + i] = sum[i];
            }
            sink(row, first, channels, counts);
        }
    }
}

void product_threshold(const Product& p, const int32_t* threshold, uint32_t* out, size_t out_stride) {
    product(p, [=](int row, int first, int channels, const int32_t* counts) {
        uint64_t bits = 0;
        for (int c = 0; c < channels; ++c) bits |= static_cast<uint64_t>(counts[c] <= threshold[first + c]) << c;
        store_word(out + row * out_stride + first / 32, bits);
    });
}

void product_interval(const Product& p, const int32_t* low, const uint32_t* range, uint32_t* out, size_t out_stride) {
    product(p, [=](int row, int first, int channels, const int32_t* counts) {
        uint64_t bits = 0;
        for (int c = 0; c < channels; ++c) {
            const uint32_t distance = static_cast<uint32_t>(counts[c]) - static_cast<uint32_t>(low[first + c]);
            bits |= static_cast<uint64_t>(distance > range[first + c]) << c;
        }
        store_word(out + row * out_stride + first / 32, bits);
    });
}

void product_count(const Product& p, uint16_t* out, size_t group_stride) {
    product(p, [=](int row, int first, int channels, const int32_t* counts) {
        for (int c = 0; c < channels; ++c) {
            out[(first + c) / kCountGroup * group_stride + static_cast<size_t>(row) * kCountGroup + c % kCountGroup] =
                static_cast<uint16_t>(counts[c]);
        }
    });
}

void product_integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
    product(p, [=](int row, int first, int channels, const int32_t* counts) {
        int32_t* y = out + row * out_stride + first;
        for (int c = 0; c < channels; ++c) y[c] = base[first + c] - counts[c];
    });
}

void product_residual(const Product& p, const int32_t* base, int shift, const float* scale, const float* bias, float* x,
                      size_t x_stride) {
    product(p, [=](int row, int first, int channels, const int32_t* counts) {
        float* y = x + row * x_stride + first;
        for (int c = 0; c < channels; ++c) {
            const float dot = static_cast<float>(base[first + c] - (counts[c] << shift));
            const float scaled = dot * scale[first + c];
            y[c] = y[c] + (scaled + bias[first + c]);
        }
    });
}

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
            uint32_t word = 0;
            for (int l = 0; l < end; ++l) {
                const float t = (x[i + l] - mean) * factor;
                word |= static_cast<uint32_t>(t >= norm.threshold[i + l]) << l;
            }
            bits[i / 32] = word ^ norm.flip[i / 32];
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

// Adds the bias of row `row` to a (0 … tokens − 1).
void add_bias(const Scores& s, int row, float* a) {
    if (s.half_bias) {
        const uint16_t* bias = s.half_bias + static_cast<size_t>(row) * s.tokens;
        for (int j = 0; j < s.tokens; ++j) a[j] = a[j] + half_to_float(bias[j]);
        return;
    }
    const float* first = s.bias_first + kLanes * (row < s.prefix ? row : s.prefix);
    const float* bias = s.bias + s.bias_begin[row];
    for (int j = 0; j < s.prefix; ++j) a[j] = a[j] + first[j];
    for (int j = s.prefix; j < s.tokens; ++j) a[j] = a[j] + bias[j];
}

// Writes row `row` of A and returns its largest entry.
float attention_row(const Scores& s, int row, float* a, int32_t* z) {
    const uint32_t* q = s.queries + row * s.query_stride;
    int32_t smallest = s.head_dim;
    for (int j = 0; j < s.tokens; ++j) {
        int32_t count = 0;
        for (int w = 0; w < s.words; ++w) count += __builtin_popcount(q[w] ^ s.keys[w * s.key_stride + j]);
        z[j] = count;
        smallest = count < smallest ? count : smallest;
    }
    const float* table = s.exp_tables + kExpTable;
    for (int j = 0; j < s.tokens; ++j) a[j] = table[z[j] - smallest];
    const float factor = 1.0f / sum16(a, s.tokens);
    for (int j = 0; j < s.tokens; ++j) a[j] = a[j] * factor;
    add_bias(s, row, a);
    float largest = a[0];
    for (int j = 1; j < s.tokens; ++j) largest = a[j] > largest ? a[j] : largest;
    return largest;
}

void collect(Candidates& c, int row, const float* a, int tokens, float largest) {
    c.maximum = largest > c.maximum ? largest : c.maximum;
    const float limit = c.fixed ? c.limit : c.ratio * c.maximum;
    c.begin[row] = c.used;
    c.count[row] = 0;
    if (!(largest > limit)) return;
    if (c.capacity - c.used < static_cast<size_t>(tokens)) {
        c.count[row] = -1;
        return;
    }
    for (int j = 0; j < tokens; ++j) {
        if (a[j] > limit) {
            c.columns[c.used] = j;
            c.values[c.used++] = a[j];
        }
    }
    c.count[row] = static_cast<int32_t>(c.used - c.begin[row]);
}

void scores(const Scores& s) {
    float* a = s.row;
    for (int row = s.first; row < s.last; ++row) {
        const float largest = attention_row(s, row, a, s.distances);
        uint32_t* mask = s.masks + row * s.mask_stride;
        for (int j = 0; j < s.tokens; j += 32) {
            const int end = s.tokens - j < 32 ? s.tokens - j : 32;
            uint32_t word = 0;
            for (int l = 0; l < end; ++l) word |= static_cast<uint32_t>(a[j + l] > s.half_scale) << l;
            mask[j / 32] = word;
        }
        if (s.candidates) collect(*s.candidates, row - s.first, a, s.tokens, largest);
    }
}

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

// One channel of a plane: its row of bits, their popcount, and its bytes.
void value_channel(const ValuePlanes& v, int plane, int c) {
    const size_t stride = (static_cast<size_t>(v.tokens) + 63) / 64 * 2;
    const uint16_t* counts = v.counts + c / kCountGroup * static_cast<size_t>(v.tokens) * kCountGroup + c % kCountGroup;
    const int threshold = v.threshold[c];
    const int low = plane > 0 ? v.low[(plane - 1) * v.channels + c] : std::numeric_limits<int>::max();
    const int high = plane > 0 ? v.high[(plane - 1) * v.channels + c] : 0;
    int8_t* byte = v.bytes ? v.bytes + plane * (v.tokens * v.byte_stride) + c : nullptr;
    int32_t ones = 0;
    for (int j = 0; j < v.tokens; j += 32) {
        const int end = v.tokens - j < 32 ? v.tokens - j : 32;
        uint32_t word = 0;
        for (int l = 0; l < end; ++l) {
            const int count = counts[(j + l) * kCountGroup];
            const bool sign = count <= threshold, member = count <= low || count >= high;
            word |= static_cast<uint32_t>(sign == member) << l;
            if (byte) byte[(j + l) * v.byte_stride] = member ? (sign ? 1 : -1) : 0;
        }
        v.bits[plane * v.plane_words + c * stride + j / 32] = word;
        ones += __builtin_popcount(word);
    }
    v.ones[plane * v.channels + c] = ones;
}

void value_planes(const ValuePlanes& v) {
    for (int plane = 0; plane < v.planes; ++plane) {
        const uint8_t* active = v.active + plane * (v.channels / kPiece);
        bool any = false;
        for (int piece = 0; piece < v.channels / kPiece; ++piece) any |= active[piece] != 0;
        for (int c = 0; any && c < v.channels; ++c) value_channel(v, plane, c);
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
    "portable",     WeightLayout::rows, PatchLayout::rows, nullptr,   product_threshold, product_interval,
    product_count,  product_integers,   product_residual,  norm_bits, patches_embed,     scores,
    count_extremes, value_planes,       combine,           dot_bytes,
};

}  // namespace gsb
