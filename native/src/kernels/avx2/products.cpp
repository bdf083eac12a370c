// AVX2 kernels: products, norms, patch embedding, heads.
//
// Contract: kernels/contract.h. Layout: lane weights in triples, one output channel a 32-bit lane; see
// kernels_avx512.cpp for the carry-save sum. Counting the bits of a register takes seven operations here, so saving one
// of three counts pays. Cost of three words: three xors, three operations for the carry, two counts.
#include <cstring>

#include "kernels/avx2/isa.h"
#include "kernels/contract.h"
#include "kernels/dispatch.h"

namespace gsb {

namespace {

GSB_AVX2_INLINE __m256i broadcast(const uint32_t* from) {
    return _mm256_set1_epi32(static_cast<int>(*from));
}

// One row by W registers of eight channels; `lanes` is the width of the weights' block. Counts gather in bytes: a
// triple adds up to 24 to each, a single word 8.
template <int W, class Epilogue>
GSB_AVX2_INLINE void tile(const uint32_t* row, const uint32_t* weights, int lanes, int depth,
                          const Epilogue& epilogue) {
    constexpr int kTriples = 9;
    const ByteCounts once(1), twice(2);
    __m256i counts[W];
    for (int w = 0; w < W; ++w) counts[w] = _mm256_setzero_si256();
    int k = 0;
    while (k < depth) {
        __m256i bytes[W];
        for (int w = 0; w < W; ++w) bytes[w] = _mm256_setzero_si256();
        const int end = depth - k < 3 * kTriples ? depth : k + 3 * kTriples;
        for (; k + 3 <= end; k += 3) {
            const __m256i x0 = broadcast(row + k), x1 = broadcast(row + k + 1), x2 = broadcast(row + k + 2);
            const uint32_t* word = weights + static_cast<size_t>(k) * lanes;
            for (int w = 0; w < W; ++w) {
                const __m256i first = _mm256_xor_si256(x0, load256(word + 8 * w));
                const __m256i differ = _mm256_xor_si256(x1, load256(word + lanes + 8 * w));
                const __m256i sum = _mm256_xor_si256(x2, load256(word + 2 * lanes + 8 * w));
                // d ? ¬s : x0
                const __m256i carry =
                    _mm256_or_si256(_mm256_andnot_si256(sum, differ), _mm256_andnot_si256(differ, first));
                bytes[w] = twice.added(once.added(bytes[w], sum), carry);
            }
        }
        for (; k < end; ++k) {
            const __m256i x = broadcast(row + k);
            const uint32_t* word = weights + static_cast<size_t>(k) * lanes;
            for (int w = 0; w < W; ++w) bytes[w] = once.added(bytes[w], _mm256_xor_si256(x, load256(word + 8 * w)));
        }
        for (int w = 0; w < W; ++w) counts[w] = _mm256_add_epi32(counts[w], sum_bytes(bytes[w]));
    }
    for (int w = 0; w < W; ++w) epilogue(w, counts[w]);
}

// Every row by every channel; `make(row, first channel)` gives the epilogue of a tile.
template <class MakeEpilogue>
GSB_AVX2_INLINE void product(const Product& given, const MakeEpilogue& make) {
    const Product p = given;
    for (int block = 0; block < p.channels; block += kBlock) {
        const int lanes = p.channels - block < kBlock ? p.channels - block : kBlock;
        const uint32_t* weights = p.weights + static_cast<size_t>(block) * p.depth;
        for (int lane = 0; lane < lanes; lane += 32) {
            for (int row = 0; row < p.count; ++row) {
                const uint32_t* x = p.rows + row * p.stride;
                if (lanes - lane >= 32) {
                    tile<4>(x, weights + lane, lanes, p.depth, make(row, block + lane));
                } else {
                    tile<2>(x, weights + lane, lanes, p.depth, make(row, block + lane));
                }
            }
        }
    }
}

GSB_AVX2_INLINE uint8_t sign_bits(__m256i x) {
    return static_cast<uint8_t>(_mm256_movemask_ps(_mm256_castsi256_ps(x)));
}

struct ThresholdBits {
    const int32_t* threshold;
    uint32_t* out;
    size_t stride;

    struct Tile {
        const int32_t* threshold;
        uint8_t* out;
        GSB_AVX2_INLINE void operator()(int w, __m256i counts) const {
            out[w] = static_cast<uint8_t>(~sign_bits(_mm256_cmpgt_epi32(counts, load256(threshold + 8 * w))));
        }
    };
    GSB_AVX2_INLINE Tile operator()(int row, int first) const {
        return {threshold + first, reinterpret_cast<uint8_t*>(out + row * stride) + first / 8};
    }
};

struct IntervalBits {
    const int32_t* low;
    const uint32_t* range;
    uint32_t* out;
    size_t stride;

    struct Tile {
        const int32_t* low;
        const uint32_t* range;
        uint8_t* out;
        GSB_AVX2_INLINE void operator()(int w, __m256i counts) const {
            const __m256i distance = _mm256_sub_epi32(counts, load256(low + 8 * w)), limit = load256(range + 8 * w);
            const __m256i inside = _mm256_cmpeq_epi32(_mm256_min_epu32(distance, limit), distance);
            out[w] = static_cast<uint8_t>(~sign_bits(inside));
        }
    };
    GSB_AVX2_INLINE Tile operator()(int row, int first) const {
        return {low + first, range + first, reinterpret_cast<uint8_t*>(out + row * stride) + first / 8};
    }
};

struct Counts {
    uint16_t* out;
    size_t group_stride;

    struct Tile {
        uint16_t* out;
        GSB_AVX2_INLINE void operator()(int w, __m256i counts) const {
            const __m128i low = _mm256_castsi256_si128(counts), high = _mm256_extracti128_si256(counts, 1);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8 * w), _mm_packus_epi32(low, high));
        }
    };
    GSB_AVX2_INLINE Tile operator()(int row, int first) const {
        return {out + first / kCountGroup * group_stride + static_cast<size_t>(row) * kCountGroup +
                first % kCountGroup};
    }
};

struct Integers {
    const int32_t* base;
    int32_t* out;
    size_t stride;

    struct Tile {
        const int32_t* base;
        int32_t* out;
        GSB_AVX2_INLINE void operator()(int w, __m256i counts) const {
            store256(out + 8 * w, _mm256_sub_epi32(load256(base + 8 * w), counts));
        }
    };
    GSB_AVX2_INLINE Tile operator()(int row, int first) const { return {base + first, out + row * stride + first}; }
};

struct Residual {
    const int32_t* base;
    __m128i shift;
    const float *scale, *bias;
    float* x;
    size_t stride;

    struct Tile {
        const int32_t* base;
        __m128i shift;
        const float *scale, *bias;
        float* x;
        GSB_AVX2_INLINE void operator()(int w, __m256i counts) const {
            const __m256i dot = _mm256_sub_epi32(load256(base + 8 * w), _mm256_sll_epi32(counts, shift));
            const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_loadu_ps(scale + 8 * w));
            const __m256 change = _mm256_add_ps(scaled, _mm256_loadu_ps(bias + 8 * w));
            _mm256_storeu_ps(x + 8 * w, _mm256_add_ps(_mm256_loadu_ps(x + 8 * w), change));
        }
    };
    GSB_AVX2_INLINE Tile operator()(int row, int first) const {
        return {base + first, shift, scale + first, bias + first, x + row * stride + first};
    }
};

GSB_AVX2 void product_threshold(const Product& p, const int32_t* threshold, uint32_t* out, size_t out_stride) {
    product(p, ThresholdBits{threshold, out, out_stride});
}

GSB_AVX2 void product_interval(const Product& p, const int32_t* low, const uint32_t* range, uint32_t* out,
                               size_t out_stride) {
    product(p, IntervalBits{low, range, out, out_stride});
}

GSB_AVX2 void product_count(const Product& p, uint16_t* out, size_t group_stride) {
    product(p, Counts{out, group_stride});
}

GSB_AVX2 void product_integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
    product(p, Integers{base, out, out_stride});
}

GSB_AVX2 void product_residual(const Product& p, const int32_t* base, int shift, const float* scale, const float* bias,
                               float* x, size_t x_stride) {
    product(p, Residual{base, _mm_cvtsi32_si128(shift), scale, bias, x, x_stride});
}

void prepare_rows(const uint32_t* bits, size_t bit_stride, int count, int depth, uint32_t* rows, size_t stride) {
    for (int row = 0; row < count; ++row) {
        const uint32_t* from = bits + row * bit_stride;
        uint32_t* to = rows + row * stride;
        int k = 0;
        for (; k + 3 <= depth; k += 3) {
            to[k] = from[k];
            to[k + 1] = from[k] ^ from[k + 1];
            to[k + 2] = to[k + 1] ^ from[k + 2];
        }
        for (; k < depth; ++k) to[k] = from[k];
    }
}

// Sixteen floats, those from `lanes` on as zeros.
struct Lanes {
    __m256 low, high;
};

GSB_AVX2_INLINE Lanes load_lanes(const float* from, int lanes) {
    if (lanes >= 16) return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
    return {_mm256_maskload_ps(from, lanes256(lanes)), _mm256_maskload_ps(from + 8, lanes256(lanes - 8))};
}

// R rows at a time, because one alone waits for its own sums.
template <int R>
GSB_AVX2_INLINE void norm_rows(const Norm& norm, int row, uint32_t* out, size_t out_stride) {
    const float* x = norm.x + row * norm.stride;
    const float share = 1.0f / static_cast<float>(norm.width);
    __m256 low[R], high[R], mean[R], factor[R];
    for (int r = 0; r < R; ++r) low[r] = high[r] = _mm256_setzero_ps();
    for (int i = 0; i < norm.width; i += 16) {
        for (int r = 0; r < R; ++r) {
            const Lanes v = load_lanes(x + r * norm.stride + i, norm.width - i);
            low[r] = _mm256_add_ps(low[r], v.low);
            high[r] = _mm256_add_ps(high[r], v.high);
        }
    }
    for (int r = 0; r < R; ++r) {
        mean[r] = _mm256_set1_ps(fold16(low[r], high[r]) * share);
        low[r] = high[r] = _mm256_setzero_ps();
    }
    for (int i = 0; i < norm.width; i += 16) {
        const int lanes = norm.width - i;
        for (int r = 0; r < R; ++r) {
            const Lanes v = load_lanes(x + r * norm.stride + i, lanes);
            __m256 a = _mm256_sub_ps(v.low, mean[r]), b = _mm256_sub_ps(v.high, mean[r]);
            if (lanes < 16) {
                a = _mm256_and_ps(a, _mm256_castsi256_ps(lanes256(lanes)));
                b = _mm256_and_ps(b, _mm256_castsi256_ps(lanes256(lanes - 8)));
            }
            low[r] = _mm256_add_ps(low[r], _mm256_mul_ps(a, a));
            high[r] = _mm256_add_ps(high[r], _mm256_mul_ps(b, b));
        }
    }
    for (int r = 0; r < R; ++r) {
        const float variance = fold16(low[r], high[r]) * share;
        factor[r] = _mm256_set1_ps(1.0f / __builtin_sqrtf(variance + norm.eps));
    }
    for (int i = 0; i < norm.width; i += 16) {
        const int lanes = norm.width - i;
        uint16_t flip;
        std::memcpy(&flip, reinterpret_cast<const char*>(norm.flip) + i / 8, sizeof(flip));
        const __m256 low_limit = _mm256_loadu_ps(norm.threshold + i),
                     high_limit = _mm256_loadu_ps(norm.threshold + i + 8);
        for (int r = 0; r < R; ++r) {
            const Lanes v = load_lanes(x + r * norm.stride + i, lanes);
            const __m256 a = _mm256_mul_ps(_mm256_sub_ps(v.low, mean[r]), factor[r]);
            const __m256 b = _mm256_mul_ps(_mm256_sub_ps(v.high, mean[r]), factor[r]);
            unsigned bits = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, low_limit, _CMP_GE_OQ))) |
                            static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(b, high_limit, _CMP_GE_OQ))) << 8;
            bits ^= flip;
            if (lanes < 16) bits &= (1u << lanes) - 1;
            const auto stored = static_cast<uint16_t>(bits);
            std::memcpy(reinterpret_cast<char*>(out + (row + r) * out_stride) + i / 8, &stored, sizeof(stored));
        }
    }
}

GSB_AVX2 void norm_bits(const Norm& given, uint32_t* out, size_t out_stride) {
    const Norm norm = given;
    int row = 0;
    for (; row + 3 <= norm.count; row += 3) norm_rows<3>(norm, row, out, out_stride);
    for (; row < norm.count; ++row) norm_rows<1>(norm, row, out, out_stride);
}

// R patches by sixteen channels, one colour. Pixels are widened to 16 bits a stretch at a time: u8 · s8 summed in 16
// bits would saturate.
template <int R>
GSB_AVX2_INLINE void patch_tile(const Patches& p, const int16_t* weights, int row, int first, int colour) {
    constexpr int kStretch = 256;
    const uint8_t* pixels = p.pixels + (static_cast<size_t>(row) * 3 + colour) * p.area;
    __m256i acc[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int start = 0; start < p.area; start += kStretch) {
        const int taps = p.area - start < kStretch ? p.area - start : kStretch;
        alignas(32) int16_t wide[R][kStretch];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const uint8_t* from = pixels + static_cast<size_t>(r) * 3 * p.area + start;
            for (int k = 0; k < taps; k += 4) {
                const __m128i four = _mm_cvtepu8_epi16(_mm_loadu_si32(from + k));
                _mm_storel_epi64(reinterpret_cast<__m128i*>(wide[r] + k), four);
            }
        }
        for (int k = 0; k < taps; k += 2) {
            const int16_t* pair = weights + static_cast<size_t>(start + k) * 16;
            const __m256i w0 = load256(pair), w1 = load256(pair + 16);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const __m256i u = _mm256_broadcastd_epi32(_mm_loadu_si32(wide[r] + k));
                acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(u, w0));
                acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(u, w1));
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int part = 0; part < 2; ++part) {
            const int channel = first + 8 * part;
            float* x = p.x + (row + r) * p.stride + channel;
            const __m256 scale = _mm256_loadu_ps(p.scale + static_cast<size_t>(colour) * p.channels + channel);
            __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r][part]), scale);
            if (colour > 0) y = _mm256_add_ps(_mm256_loadu_ps(x), y);
            const float* position = p.position + static_cast<size_t>(row + r) * p.channels + channel;
            if (colour == 2) y = _mm256_add_ps(y, _mm256_loadu_ps(position));
            _mm256_storeu_ps(x, y);
        }
    }
}

GSB_AVX2 void patches_embed(const Patches& given) {
    constexpr int kRows = 4;
    const Patches p = given;
    for (int first = 0; first < p.channels; first += 16) {
        for (int colour = 0; colour < 3; ++colour) {
            const int16_t* weights =
                static_cast<const int16_t*>(p.weights) + (static_cast<size_t>(first) * 3 + 16 * colour) * p.area;
            int row = 0;
            for (; row + kRows <= p.count; row += kRows) patch_tile<kRows>(p, weights, row, first, colour);
            for (; row < p.count; ++row) patch_tile<1>(p, weights, row, first, colour);
        }
    }
}

GSB_AVX2 void dot_bytes(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out) {
    for (int row = 0; row < rows; ++row) {
        const int8_t* w = weights + static_cast<size_t>(row) * depth;
        __m256i acc = _mm256_setzero_si256();
        int k = 0;
        for (; k + 16 <= depth; k += 16) {
            const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + k)));
            const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + k)));
            acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
        }
        int32_t parts[8], sum = 0;
        store256(parts, acc);
        for (int32_t part : parts) sum += part;
        for (; k < depth; ++k) sum += static_cast<int32_t>(x[k]) * w[k];
        out[row] = sum;
    }
}

}  // namespace

const Kernels kAvx2Kernels = {
    "avx2",           WeightLayout::triples, PatchLayout::pairs,  prepare_rows,      product_threshold,
    product_interval, product_count,         product_integers,    product_residual,  norm_bits,
    patches_embed,    scores_avx2,           count_extremes_avx2, value_planes_avx2, combine_avx2,
    dot_bytes,
};

}  // namespace gsb
