// AVX2 kernels: norms, patch embedding, heads.
//
// Contract: kernels/contract.h.
#include <cstring>

#include "kernels/avx2/isa.h"
#include "kernels/contract.h"

namespace gsb::avx2 {

namespace {

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
GSB_AVX2_INLINE bool norm_rows(const Norm& norm, int row, uint32_t* out, size_t out_stride) {
    const float* x = norm.x + row * norm.stride;
    const float share = 1.0f / static_cast<float>(norm.width);
    __m256 low[R], high[R], mean[R], factor[R];
    bool holds = true;
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
        const float scalar = 1.0f / __builtin_sqrtf(variance + norm.eps);
        factor[r] = _mm256_set1_ps(scalar);
        holds &= norm_holds(scalar);
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
    return holds;
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

}  // namespace

GSB_AVX2 bool norm_bits(const Norm& given, uint32_t* out, size_t out_stride) {
    const Norm norm = given;
    int row = 0;
    bool holds = true;
    for (; row + 3 <= norm.count; row += 3) holds &= norm_rows<3>(norm, row, out, out_stride);
    for (; row < norm.count; ++row) holds &= norm_rows<1>(norm, row, out, out_stride);
    return holds;
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

}  // namespace gsb::avx2
