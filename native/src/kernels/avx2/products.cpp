// AVX2 kernels: products of bits.
//
// Contract: kernels/contract.h. Layout: lane weights in triples, one output channel a 32-bit lane; see
// kernels/avx512/products.cpp for the carry-save sum. Counting the bits of a register takes seven operations here, so
// saving one of three counts pays. Cost of three words: three xors, three operations for the carry, two counts.
#include "kernels/avx2/isa.h"
#include "kernels/contract.h"
#include "kernels/triples.h"

namespace gsb::avx2 {

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

}  // namespace

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

GSB_AVX2 void product_residual(const Product& p, const int32_t* base, const float* scale, const float* bias, float* x,
                               size_t x_stride) {
    product(p, Residual{base, _mm_cvtsi32_si128(p.inputs.count_shift()), scale, bias, x, x_stride});
}

void prepare_rows(const uint32_t* bits, size_t bit_stride, int count, int depth, uint32_t* rows, size_t stride) {
    for (int row = 0; row < count; ++row) prepare_triples(bits + row * bit_stride, depth, rows + row * stride);
}

}  // namespace gsb::avx2
