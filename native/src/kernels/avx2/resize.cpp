// AVX2 kernels: resampling of pictures. A weight is two words of 16 bits, and two products and their sum are one
// instruction.
//
// Contract: kernels/contract.h. Pieces of an output: kernels/plain_resize.h.
#include <cstring>

#include "kernels/avx2/isa.h"
#include "kernels/plain_resize.h"

namespace gsb::avx2 {

namespace {

// The pair of weights from `tap` on, in every lane.
GSB_AVX2_INLINE __m256i pair_at(const uint8_t* pieces, int tap) {
    int32_t pair;
    std::memcpy(&pair, pieces + 2 * static_cast<size_t>(tap), sizeof(pair));
    return _mm256_set1_epi32(pair);
}

GSB_AVX2_INLINE __m256i add_pairs(__m256i sum, __m256i pixels, __m256i weights) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pixels, weights));
}

GSB_AVX2_INLINE __m256i level(__m256i low, __m256i high) {
    const __m256i sum =
        _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low), _mm256_set1_epi32(kHalfWeight));
    return _mm256_srai_epi32(sum, kWeightBits);
}

// Four RGB pixels.
GSB_AVX2_INLINE __m128i load_pixels(const uint8_t* from) {
    int32_t last;
    std::memcpy(&last, from + 8, sizeof(last));
    return _mm_insert_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), last, 2);
}

GSB_AVX2_INLINE __m256i load_two_rows(const uint8_t* upper, const uint8_t* lower) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_pixels(upper)), load_pixels(lower), 1);
}

GSB_AVX2_INLINE void store_pixel(uint8_t* to, uint32_t rgb) {
    std::memcpy(to, &rgb, 2);
    to[2] = static_cast<uint8_t>(rgb >> 16);
}

// Rows of RGB, `pairs` times two; taps are a multiple of four.
template <int pairs>
GSB_AVX2_INLINE void resize_pixel(const ResizeRows& r, int first_row, int o) {
    const __m256i front =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i back =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const uint8_t* low_weights = r.taps.pieces + 4 * r.taps.stride * o;
    const uint8_t* high_weights = low_weights + 2 * r.taps.stride;
    const uint8_t* in = r.in + first_row * r.in_stride + 3 * static_cast<size_t>(r.taps.first[o]);
    __m256i low[pairs], high[pairs];
    for (int i = 0; i < pairs; ++i) low[i] = high[i] = _mm256_setzero_si256();
    for (int tap = 0; tap < r.taps.taps[o]; tap += 4, in += 12) {
        const __m256i low_front = pair_at(low_weights, tap), low_back = pair_at(low_weights, tap + 2);
        const __m256i high_front = pair_at(high_weights, tap), high_back = pair_at(high_weights, tap + 2);
        for (int i = 0; i < pairs; ++i) {
            const __m256i four = load_two_rows(in + 2 * i * r.in_stride, in + (2 * i + 1) * r.in_stride);
            const __m256i a = _mm256_shuffle_epi8(four, front), b = _mm256_shuffle_epi8(four, back);
            low[i] = add_pairs(add_pairs(low[i], a, low_front), b, low_back);
            high[i] = add_pairs(add_pairs(high[i], a, high_front), b, high_back);
        }
    }
    for (int i = 0; i < pairs; ++i) {
        const __m256i words = _mm256_packs_epi32(level(low[i], high[i]), _mm256_setzero_si256());
        const __m256i bytes = _mm256_packus_epi16(words, words);
        uint8_t* out = r.out + (first_row + 2 * i) * r.out_stride + 3 * o;
        store_pixel(out, static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(bytes))));
        store_pixel(out + r.out_stride, static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1))));
    }
}

template <int pairs>
GSB_AVX2_INLINE void resize_some_rows(const ResizeRows& r, int first_row) {
    for (int o = 0; o < r.taps.outputs; ++o) {
        if (r.taps.taps[o] % 4 == 0) {
            resize_pixel<pairs>(r, first_row, o);
            continue;
        }
        for (int row = first_row; row < first_row + 2 * pairs; ++row) {
            plain_resize_pixel<3>(r.in + row * r.in_stride + 3 * static_cast<size_t>(r.taps.first[o]),
                                  r.taps.weights + o * r.taps.stride, r.taps.taps[o],
                                  r.out + row * r.out_stride + 3 * o);
        }
    }
}

// Bytes of two rows, as pairs of 16 bits: p[0] has bytes 0–3 and 16–19, p[1] 4–7 and 20–23, …
struct Pairs {
    __m256i p[4];

    GSB_AVX2_INLINE Pairs(__m256i upper, __m256i lower) {
        const __m256i zero = _mm256_setzero_si256();
        const __m256i a = _mm256_unpacklo_epi8(upper, lower), b = _mm256_unpackhi_epi8(upper, lower);
        p[0] = _mm256_unpacklo_epi8(a, zero);
        p[1] = _mm256_unpackhi_epi8(a, zero);
        p[2] = _mm256_unpacklo_epi8(b, zero);
        p[3] = _mm256_unpackhi_epi8(b, zero);
    }
};

}  // namespace

void split_weights(const int32_t* weights, size_t stride, uint8_t* pieces) {
    split_into_words(weights, stride, pieces);
}

GSB_AVX2 void resize_rows(const ResizeRows& r) {
    if (r.channels == 1) return plain_resize_rows<1>(r);
    int row = 0;
    for (; row + 4 <= r.rows; row += 4) resize_some_rows<2>(r, row);
    for (; row + 2 <= r.rows; row += 2) resize_some_rows<1>(r, row);
    if (row == r.rows) return;
    ResizeRows last = r;
    last.in += row * r.in_stride;
    last.out += row * r.out_stride;
    last.rows = 1;
    plain_resize_rows<3>(last);
}

GSB_AVX2 void resize_columns(const ResizeColumns& r) {
    const uint8_t* low_weights = r.taps.pieces + 4 * r.taps.stride * r.output;
    const uint8_t* high_weights = low_weights + 2 * r.taps.stride;
    const int taps = r.taps.taps[r.output];
    const uint8_t* in = r.in + static_cast<size_t>(r.taps.first[r.output]) * r.in_stride;
    int begin = 0;
    for (; begin + 32 <= r.bytes; begin += 32) {
        __m256i low[4], high[4];
        for (int i = 0; i < 4; ++i) low[i] = high[i] = _mm256_setzero_si256();
        for (int tap = 0; tap < taps; tap += 2) {
            const uint8_t* upper = in + tap * r.in_stride + begin;
            const uint8_t* lower = tap + 1 < taps ? upper + r.in_stride : upper;  // else its weight is 0
            const Pairs pairs(load256(upper), load256(lower));
            const __m256i low_pair = pair_at(low_weights, tap), high_pair = pair_at(high_weights, tap);
            for (int i = 0; i < 4; ++i) {
                low[i] = add_pairs(low[i], pairs.p[i], low_pair);
                high[i] = add_pairs(high[i], pairs.p[i], high_pair);
            }
        }
        const __m256i a = _mm256_packs_epi32(level(low[0], high[0]), level(low[1], high[1]));
        const __m256i b = _mm256_packs_epi32(level(low[2], high[2]), level(low[3], high[3]));
        store256(r.out + begin, _mm256_packus_epi16(a, b));
    }
    plain_resize_columns(r, begin);
}

}  // namespace gsb::avx2
