// AVX-512 kernels: norms, patch embedding, heads.
//
// Contract: kernels/contract.h.
#include <cstring>

#include "kernels/avx512/isa.h"
#include "kernels/contract.h"

namespace gsb::avx512 {

namespace {

// R rows at a time, because one alone waits for its own sums.
template <int R>
GSB_AVX512_INLINE bool norm_rows(const Norm& norm, int row, uint32_t* out, size_t out_stride) {
    const float* x = norm.x + row * norm.stride;
    const float share = 1.0f / static_cast<float>(norm.width);
    const int whole = norm.width / 16 * 16;
    const __mmask16 tail = first_lanes(norm.width - whole);
    __m512 sum[R], mean[R], factor[R];
    bool holds = true;
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
        const float scalar = 1.0f / __builtin_sqrtf(variance + norm.eps);
        factor[r] = _mm512_set1_ps(scalar);
        holds &= norm_holds(scalar);
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
    return holds;
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

}  // namespace

GSB_AVX512 bool norm_bits(const Norm& given, uint32_t* out, size_t out_stride) {
    const Norm norm = given;  // a copy of its own, which the stores below cannot be thought to change
    int row = 0;
    bool holds = true;
    for (; row + 8 <= norm.count; row += 8) holds &= norm_rows<8>(norm, row, out, out_stride);
    for (; row + 2 <= norm.count; row += 2) holds &= norm_rows<2>(norm, row, out, out_stride);
    for (; row < norm.count; ++row) holds &= norm_rows<1>(norm, row, out, out_stride);
    return holds;
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

GSB_AVX512 void dot_bytes(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out) {
    int row = 0;
    for (; row + 4 <= rows; row += 4) dot_rows<4>(x, weights + static_cast<size_t>(row) * depth, depth, out + row);
    for (; row < rows; ++row) dot_rows<1>(x, weights + static_cast<size_t>(row) * depth, depth, out + row);
}

}  // namespace gsb::avx512
