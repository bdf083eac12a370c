// AVX-512 kernels (VPOPCNTDQ, VNNI: Ice Lake, Zen 4 and later): products, norms, patch embedding, heads.
//
// Contract: kernels.h. Layout: lane weights in triples, one output channel a 32-bit lane; operand rows in triples, too.
// With a triple of words (x0, x1, x2) stored as (x0, d = x0^x1, s = x0^x1^x2) in both operands, one xor each gives the
// same three functions of the products' differences: s is the sum bit of a carry-save adder, and its carry is
// d ? ¬s : x0. Cost of three words: three xors, one ternary operation, two popcounts, two additions.
#include <cstring>

#include "avx512.h"
#include "dispatch.h"
#include "kernels.h"

namespace gsb {

namespace {

constexpr int kCarry = 0x3A;  // d ? ¬s : x0, as the truth table of (d, s, x0)

GSB_AVX512_INLINE __m512i load(const void* from) {
    return _mm512_loadu_si512(from);
}
GSB_AVX512_INLINE __m512i broadcast(const uint32_t* from) {
    return _mm512_set1_epi32(static_cast<int>(*from));
}

// Accumulators change in place and weights stay in registers: left to itself GCC copies and spills the former and loads
// the latter once for each row.
GSB_AVX512_INLINE void accumulate(__m512i& acc, __m512i x) {
    asm("vpaddd %1, %0, %0" : "+v"(acc) : "v"(x));
}
GSB_AVX512_INLINE __m512i load_kept(const void* from) {
    __m512i x = load(from);
    asm("" : "+v"(x));
    return x;
}

// Adds three words of R rows by W registers to the sums, or, where FIRST, sets them.
template <int R, int W, bool FIRST>
GSB_AVX512_INLINE void triple(const uint32_t* rows, size_t stride, const uint32_t* weights, __m512i (&sums)[R][W],
                              __m512i (&carries)[R][W]) {
    constexpr int kLanes = 16 * W;
    __m512i x0[R], x1[R], x2[R];
    for (int r = 0; r < R; ++r) {
        x0[r] = broadcast(rows + r * stride);
        x1[r] = broadcast(rows + r * stride + 1);
        x2[r] = broadcast(rows + r * stride + 2);
    }
    for (int w = 0; w < W; ++w) {
        const __m512i w0 = load_kept(weights + 16 * w), w1 = load_kept(weights + kLanes + 16 * w);
        const __m512i w2 = load_kept(weights + 2 * kLanes + 16 * w);
        for (int r = 0; r < R; ++r) {
            const __m512i first = _mm512_xor_si512(x0[r], w0), sum = _mm512_xor_si512(x2[r], w2);
            __m512i carry = _mm512_xor_si512(x1[r], w1);
            carry = _mm512_ternarylogic_epi32(carry, sum, first, kCarry);
            if (FIRST) {
                sums[r][w] = _mm512_popcnt_epi32(sum);
                carries[r][w] = _mm512_popcnt_epi32(carry);
            } else {
                accumulate(sums[r][w], _mm512_popcnt_epi32(sum));
                accumulate(carries[r][w], _mm512_popcnt_epi32(carry));
            }
        }
    }
}

// R rows by W registers of sixteen channels. Calls epilogue(row, register, counts).
template <int R, int W, class Epilogue>
GSB_AVX512_INLINE void tile(const uint32_t* rows, size_t stride, const uint32_t* weights, int depth,
                            const Epilogue& epilogue) {
    constexpr int kLanes = 16 * W;
    __m512i sums[R][W], carries[R][W];
    int k = 0;
    if (depth >= 3) {
        triple<R, W, true>(rows, stride, weights, sums, carries);
        for (k = 3; k + 3 <= depth; k += 3) {
            triple<R, W, false>(rows + k, stride, weights + static_cast<size_t>(k) * kLanes, sums, carries);
        }
    } else {
        for (int r = 0; r < R; ++r) {
            for (int w = 0; w < W; ++w) sums[r][w] = carries[r][w] = _mm512_setzero_si512();
        }
    }
    for (; k < depth; ++k) {
        for (int w = 0; w < W; ++w) {
            const __m512i word = load_kept(weights + static_cast<size_t>(k) * kLanes + 16 * w);
            for (int r = 0; r < R; ++r) {
                const __m512i differing = _mm512_xor_si512(broadcast(rows + r * stride + k), word);
                accumulate(sums[r][w], _mm512_popcnt_epi32(differing));
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int w = 0; w < W; ++w) {
            epilogue(r, w, _mm512_add_epi32(sums[r][w], _mm512_add_epi32(carries[r][w], carries[r][w])));
        }
    }
}

template <int W, class MakeEpilogue>
GSB_AVX512_INLINE void block(const Product& p, int first, const MakeEpilogue& make) {
    constexpr int kRows = W > 2 ? 2 : W == 2 ? 4 : 8;
    const uint32_t* weights = p.weights + static_cast<size_t>(first) * p.depth;
    int row = 0;
    for (; row + kRows <= p.count; row += kRows) {
        tile<kRows, W>(p.rows + row * p.stride, p.stride, weights, p.depth, make(row, first));
    }
    for (; row < p.count; ++row) {
        tile<1, W>(p.rows + row * p.stride, p.stride, weights, p.depth, make(row, first));
    }
}

// Every row by every channel; `make(row, first channel)` gives the epilogue of a tile.
template <class MakeEpilogue>
GSB_AVX512_INLINE void product(const Product& p, const MakeEpilogue& make) {
    int first = 0;
    for (; first + 64 <= p.channels; first += 64) block<4>(p, first, make);
    switch ((p.channels - first) / 16) {
        case 1:
            return block<1>(p, first, make);
        case 2:
            return block<2>(p, first, make);
        case 3:
            return block<3>(p, first, make);
        default:
            return;
    }
}

GSB_AVX512_INLINE void store_mask(uint32_t* row, int channel, __mmask16 mask) {
    const auto bits = static_cast<uint16_t>(mask);
    std::memcpy(reinterpret_cast<char*>(row) + channel / 8, &bits, sizeof(bits));
}

struct ThresholdBits {
    const int32_t* threshold;
    uint32_t* out;
    size_t stride;

    struct Tile {
        const int32_t* threshold;
        uint32_t* out;
        size_t stride;
        int first;
        GSB_AVX512_INLINE void operator()(int r, int w, __m512i counts) const {
            store_mask(out + r * stride, first + 16 * w, _mm512_cmple_epi32_mask(counts, load(threshold + 16 * w)));
        }
    };
    GSB_AVX512_INLINE Tile operator()(int row, int first) const {
        return {threshold + first, out + row * stride, stride, first};
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
        uint32_t* out;
        size_t stride;
        int first;
        GSB_AVX512_INLINE void operator()(int r, int w, __m512i counts) const {
            const __m512i distance = _mm512_sub_epi32(counts, load(low + 16 * w));
            store_mask(out + r * stride, first + 16 * w, _mm512_cmpgt_epu32_mask(distance, load(range + 16 * w)));
        }
    };
    GSB_AVX512_INLINE Tile operator()(int row, int first) const {
        return {low + first, range + first, out + row * stride, stride, first};
    }
};

struct Counts {
    uint16_t* out;
    size_t group_stride;

    struct Tile {
        uint16_t* out;
        size_t group_stride;
        GSB_AVX512_INLINE void operator()(int r, int w, __m512i counts) const {
            uint16_t* to = out + w / 2 * group_stride + r * kCountGroup + w % 2 * 16;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(counts));
        }
    };
    GSB_AVX512_INLINE Tile operator()(int row, int first) const {
        return {out + first / kCountGroup * group_stride + static_cast<size_t>(row) * kCountGroup, group_stride};
    }
};

struct Integers {
    const int32_t* base;
    int32_t* out;
    size_t stride;

    struct Tile {
        const int32_t* base;
        int32_t* out;
        size_t stride;
        GSB_AVX512_INLINE void operator()(int r, int w, __m512i counts) const {
            _mm512_storeu_si512(out + r * stride + 16 * w, _mm512_sub_epi32(load(base + 16 * w), counts));
        }
    };
    GSB_AVX512_INLINE Tile operator()(int row, int first) const {
        return {base + first, out + row * stride + first, stride};
    }
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
        size_t stride;
        GSB_AVX512_INLINE void operator()(int r, int w, __m512i counts) const {
            const __m512i dot = _mm512_sub_epi32(load(base + 16 * w), _mm512_sll_epi32(counts, shift));
            const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_loadu_ps(scale + 16 * w));
            const __m512 change = _mm512_add_ps(scaled, _mm512_loadu_ps(bias + 16 * w));
            float* to = x + r * stride + 16 * w;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), change));
        }
    };
    GSB_AVX512_INLINE Tile operator()(int row, int first) const {
        return {base + first, shift, scale + first, bias + first, x + row * stride + first, stride};
    }
};

GSB_AVX512 void product_threshold(const Product& p, const int32_t* threshold, uint32_t* out, size_t out_stride) {
    product(p, ThresholdBits{threshold, out, out_stride});
}

GSB_AVX512 void product_interval(const Product& p, const int32_t* low, const uint32_t* range, uint32_t* out,
                                 size_t out_stride) {
    product(p, IntervalBits{low, range, out, out_stride});
}

GSB_AVX512 void product_count(const Product& p, uint16_t* out, size_t group_stride) {
    product(p, Counts{out, group_stride});
}

GSB_AVX512 void product_integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
    product(p, Integers{base, out, out_stride});
}

GSB_AVX512 void product_residual(const Product& p, const int32_t* base, int shift, const float* scale,
                                 const float* bias, float* x, size_t x_stride) {
    product(p, Residual{base, _mm_cvtsi32_si128(shift), scale, bias, x, x_stride});
}

// Words k … k + 11 of a row: each whole triple (x0, x1, x2) becomes (x0, x0^x1, x0^x1^x2).
GSB_AVX512 void prepare_rows(const uint32_t* bits, size_t bit_stride, int count, int depth, uint32_t* rows,
                             size_t stride) {
    constexpr int kStep = 12;
    const __m512i one_back = _mm512_setr_epi32(0, 0, 1, 0, 3, 4, 0, 6, 7, 0, 9, 10, 0, 0, 0, 0);
    const __m512i two_back = _mm512_setr_epi32(0, 0, 0, 0, 0, 3, 0, 0, 6, 0, 0, 9, 0, 0, 0, 0);
    const int whole = depth / 3 * 3, words = (depth + 1) / 2 * 2;
    for (int row = 0; row < count; ++row) {
        const uint32_t* from = bits + row * bit_stride;
        uint32_t* to = rows + row * stride;
        for (int k = 0; k < words; k += kStep) {
            const int here = words - k < kStep ? words - k : kStep, inside = whole - k < 0 ? 0 : whole - k;
            const __mmask16 mask = first_lanes(here), triples = first_lanes(inside < kStep ? inside : kStep);
            const __m512i x = _mm512_maskz_loadu_epi32(mask, from + k);
            const __m512i first = _mm512_maskz_permutexvar_epi32(triples & 0x0DB6, one_back, x);
            const __m512i second = _mm512_maskz_permutexvar_epi32(triples & 0x0924, two_back, x);
            _mm512_mask_storeu_epi32(to + k, mask, _mm512_ternarylogic_epi32(x, first, second, 0x96));
        }
    }
}

// R rows at a time, because one alone waits for its own sums.
template <int R>
GSB_AVX512_INLINE void norm_rows(const Norm& norm, int row, uint32_t* out, size_t out_stride) {
    const float* x = norm.x + row * norm.stride;
    const float share = 1.0f / static_cast<float>(norm.width);
    const int whole = norm.width / 16 * 16;
    const __mmask16 tail = first_lanes(norm.width - whole);
    __m512 sum[R], mean[R], factor[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] = _mm512_setzero_ps();
    for (int i = 0; i < whole; i += 16) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r] = _mm512_add_ps(sum[r], _mm512_loadu_ps(x + r * norm.stride + i));
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        sum[r] = _mm512_add_ps(sum[r], _mm512_maskz_loadu_ps(tail, x + r * norm.stride + whole));
        mean[r] = _mm512_set1_ps(fold16(sum[r]) * share);
        sum[r] = _mm512_setzero_ps();
    }
    for (int i = 0; i < whole; i += 16) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + r * norm.stride + i), mean[r]);
            sum[r] = _mm512_add_ps(sum[r], _mm512_mul_ps(centred, centred));
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const __m512 rest = _mm512_maskz_loadu_ps(tail, x + r * norm.stride + whole);
        const __m512 centred = _mm512_maskz_sub_ps(tail, rest, mean[r]);
        sum[r] = _mm512_add_ps(sum[r], _mm512_mul_ps(centred, centred));
        const float variance = fold16(sum[r]) * share;
        factor[r] = _mm512_set1_ps(1.0f / __builtin_sqrtf(variance + norm.eps));
    }
    for (int i = 0; i < norm.width; i += 16) {
        const __mmask16 lanes = i < whole ? static_cast<__mmask16>(0xFFFF) : tail;
        char* to = reinterpret_cast<char*>(out + row * out_stride) + i / 8;
        const __m512 threshold = _mm512_loadu_ps(norm.threshold + i);
        uint16_t flip;
        std::memcpy(&flip, reinterpret_cast<const char*>(norm.flip) + i / 8, sizeof(flip));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512 values = _mm512_maskz_loadu_ps(lanes, x + r * norm.stride + i);
            // values·1 − μ, rounded once like the subtraction, but done where there is room: beside the additions.
            const __m512 t = _mm512_mul_ps(_mm512_fmsub_ps(values, _mm512_set1_ps(1.0f), mean[r]), factor[r]);
            const uint16_t bits = _mm512_mask_cmp_ps_mask(lanes, t, threshold, _CMP_GE_OQ) ^ flip;
            std::memcpy(to + r * out_stride * sizeof(*out), &bits, sizeof(bits));
        }
    }
}

GSB_AVX512 void norm_bits(const Norm& given, uint32_t* out, size_t out_stride) {
    const Norm norm = given;  // a copy of its own, which the stores below cannot be thought to change
    int row = 0;
    for (; row + 8 <= norm.count; row += 8) norm_rows<8>(norm, row, out, out_stride);
    for (; row + 2 <= norm.count; row += 2) norm_rows<2>(norm, row, out, out_stride);
    for (; row < norm.count; ++row) norm_rows<1>(norm, row, out, out_stride);
}

// acc += Σ of four u8 · s8. As assembly, because GCC copies the accumulators of the intrinsic.
GSB_AVX512_INLINE void dot4(__m512i& acc, __m512i pixels, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(pixels), "v"(weights));
}

// R patches by W registers of sixteen channels, one colour. The loops over r and w must unroll, or the accumulators
// live in memory.
template <int R, int W>
GSB_AVX512_INLINE void patch_tile(const Patches& p, const int8_t* weights, int row, int first, int colour) {
    const uint8_t* pixels = p.pixels + (static_cast<size_t>(row) * 3 + colour) * p.area;
    __m512i acc[R][W];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) acc[r][w] = _mm512_setzero_si512();
    }
    for (int k = 0; k < p.area; k += 4, weights += 64 * W) {
        __m512i taps[W];
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) taps[w] = load(weights + 64 * w);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i u = _mm512_broadcastd_epi32(_mm_loadu_si32(pixels + static_cast<size_t>(r) * 3 * p.area + k));
#pragma GCC unroll 8
            for (int w = 0; w < W; ++w) dot4(acc[r][w], u, taps[w]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) {
            const int channel = first + 16 * w;
            float* x = p.x + (row + r) * p.stride + channel;
            const __m512 scale = _mm512_loadu_ps(p.scale + static_cast<size_t>(colour) * p.channels + channel);
            __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][w]), scale);
            if (colour > 0) y = _mm512_add_ps(_mm512_loadu_ps(x), y);
            const float* position = p.position + static_cast<size_t>(row + r) * p.channels + channel;
            if (colour == 2) y = _mm512_add_ps(y, _mm512_loadu_ps(position));
            _mm512_storeu_ps(x, y);
        }
    }
}

template <int W>
GSB_AVX512_INLINE void patch_block(const Patches& p, int first) {
    constexpr int kRows = 6;
    for (int colour = 0; colour < 3; ++colour) {
        const int8_t* weights = static_cast<const int8_t*>(p.weights) + static_cast<size_t>(first) * 3 * p.area +
                                static_cast<size_t>(colour) * p.area * 16 * W;
        int row = 0;
        for (; row + kRows <= p.count; row += kRows) patch_tile<kRows, W>(p, weights, row, first, colour);
        for (; row < p.count; ++row) patch_tile<1, W>(p, weights, row, first, colour);
    }
}

GSB_AVX512 void patches_embed(const Patches& p) {
    int first = 0;
    for (; first + 64 <= p.channels; first += 64) patch_block<4>(p, first);
    switch ((p.channels - first) / 16) {
        case 1:
            return patch_block<1>(p, first);
        case 2:
            return patch_block<2>(p, first);
        case 3:
            return patch_block<3>(p, first);
        default:
            return;
    }
}

template <int R>
GSB_AVX512_INLINE void dot_rows(const int8_t* x, const int8_t* weights, int depth, int32_t* out) {
    __m512i acc[R];
    for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_si512();
    for (int k = 0; k < depth; k += 32) {
        const __mmask32 mask = depth - k < 32 ? (1u << (depth - k)) - 1 : ~0u;
        const __m512i input = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, x + k));
        for (int r = 0; r < R; ++r) {
            const __m256i row = _mm256_maskz_loadu_epi8(mask, weights + static_cast<size_t>(r) * depth + k);
            acc[r] = _mm512_add_epi32(acc[r], _mm512_madd_epi16(input, _mm512_cvtepi8_epi16(row)));
        }
    }
    for (int r = 0; r < R; ++r) out[r] = _mm512_reduce_add_epi32(acc[r]);
}

GSB_AVX512 void dot_bytes(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out) {
    int row = 0;
    for (; row + 4 <= rows; row += 4) dot_rows<4>(x, weights + static_cast<size_t>(row) * depth, depth, out + row);
    for (; row < rows; ++row) dot_rows<1>(x, weights + static_cast<size_t>(row) * depth, depth, out + row);
}

}  // namespace

const Kernels kAvx512Kernels = {
    "avx512",         WeightLayout::triples, PatchLayout::quads,    prepare_rows,        product_threshold,
    product_interval, product_count,         product_integers,      product_residual,    norm_bits,
    patches_embed,    scores_avx512,         count_extremes_avx512, value_planes_avx512, combine_avx512,
    dot_bytes,
};

}  // namespace gsb
