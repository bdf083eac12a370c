// AVX-512 kernels: resampling of pictures. A weight of 23 bits and a sign is three signed bytes, and four products of
// bytes and their sum are one instruction (VNNI).
//
// Contract: kernels/contract.h. Pieces of an output: bytes 0, 1 and 2 of its weights, (stride) each.
#include <cstring>

#include "kernels/avx512/isa.h"
#include "kernels/plain_resize.h"

namespace gsb::avx512 {

namespace {

struct Sums {
    __m512i byte[3];

    GSB_AVX512_INLINE Sums() { byte[0] = byte[1] = byte[2] = _mm512_setzero_si512(); }
    // Adds four pixels a lane, times four weights.
    GSB_AVX512_INLINE void add(__m512i pixels, const uint8_t* pieces, size_t stride, int tap) {
        for (int i = 0; i < 3; ++i) {
            uint32_t weights;
            std::memcpy(&weights, pieces + i * stride + tap, sizeof(weights));
            byte[i] = _mm512_dpbusd_epi32(byte[i], pixels, broadcast(&weights));
        }
    }
    GSB_AVX512_INLINE __m512i level() const {
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(byte[2], 8), byte[1]);
        sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), byte[0]);
        return _mm512_srai_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(kHalfWeight)), kWeightBits);
    }
};

GSB_AVX512_INLINE __m128i load_pixels(const uint8_t* from) {
    return _mm_maskz_loadu_epi8(0x0FFF, from);
}

GSB_AVX512_INLINE void store_pixel(uint8_t* to, __m128i rgb) {
    _mm_mask_storeu_epi8(to, 0x7, rgb);
}

// Four rows of RGB; taps are a multiple of four.
GSB_AVX512_INLINE void resize_pixel(const ResizeRows& r, int row, int o) {
    const __m512i colours = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const uint8_t* pieces = r.taps.pieces + 4 * r.taps.stride * o;
    const uint8_t* in = r.in + row * r.in_stride + 3 * static_cast<size_t>(r.taps.first[o]);
    Sums sums;
    for (int tap = 0; tap < r.taps.taps[o]; tap += 4, in += 12) {
        const __m256i upper =
            _mm256_inserti128_si256(_mm256_castsi128_si256(load_pixels(in)), load_pixels(in + r.in_stride), 1);
        const __m256i lower = _mm256_inserti128_si256(_mm256_castsi128_si256(load_pixels(in + 2 * r.in_stride)),
                                                      load_pixels(in + 3 * r.in_stride), 1);
        const __m512i four = _mm512_inserti64x4(_mm512_castsi256_si512(upper), lower, 1);
        sums.add(_mm512_shuffle_epi8(four, colours), pieces, r.taps.stride, tap);
    }
    const __m512i words = _mm512_packs_epi32(sums.level(), _mm512_setzero_si512());
    const __m512i bytes = _mm512_packus_epi16(words, words);
    uint8_t* out = r.out + row * r.out_stride + 3 * o;
    store_pixel(out, _mm512_castsi512_si128(bytes));
    store_pixel(out + r.out_stride, _mm512_extracti32x4_epi32(bytes, 1));
    store_pixel(out + 2 * r.out_stride, _mm512_extracti32x4_epi32(bytes, 2));
    store_pixel(out + 3 * r.out_stride, _mm512_extracti32x4_epi32(bytes, 3));
}

}  // namespace

void split_weights(const int32_t* weights, size_t stride, uint8_t* pieces) {
    for (size_t i = 0; i < stride; ++i) {
        int32_t rest = weights[i];
        for (int byte = 0; byte < 3; ++byte) {
            const auto low = static_cast<int8_t>(rest & 0xFF);
            pieces[byte * stride + i] = static_cast<uint8_t>(low);
            rest = (rest - low) / 256;
        }
    }
}

GSB_AVX512 void resize_rows(const ResizeRows& r) {
    if (r.channels == 1) return plain_resize_rows<1>(r);
    int row = 0;
    for (; row + 4 <= r.rows; row += 4) {
        for (int o = 0; o < r.taps.outputs; ++o) {
            if (r.taps.taps[o] % 4 == 0) {
                resize_pixel(r, row, o);
                continue;
            }
            for (int i = row; i < row + 4; ++i) {
                plain_resize_pixel<3>(r.in + i * r.in_stride + 3 * static_cast<size_t>(r.taps.first[o]),
                                      r.taps.weights + o * r.taps.stride, r.taps.taps[o],
                                      r.out + i * r.out_stride + 3 * o);
            }
        }
    }
    if (row == r.rows) return;
    ResizeRows last = r;
    last.in += row * r.in_stride;
    last.out += row * r.out_stride;
    last.rows = r.rows - row;
    plain_resize_rows<3>(last);
}

GSB_AVX512 void resize_columns(const ResizeColumns& r) {
    const uint8_t* pieces = r.taps.pieces + 4 * r.taps.stride * r.output;
    const int taps = r.taps.taps[r.output];
    const uint8_t* in = r.in + static_cast<size_t>(r.taps.first[r.output]) * r.in_stride;
    for (int begin = 0; begin < r.bytes; begin += 64) {
        const int left = r.bytes - begin;
        const __mmask64 there = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        Sums sums[4];
        for (int tap = 0; tap < taps; tap += 4) {
            __m512i row[4];
            for (int i = 0; i < 4; ++i) {  // behind the last tap weights are 0
                const int taken = tap + i < taps ? tap + i : taps - 1;
                row[i] = _mm512_maskz_loadu_epi8(there, in + taken * r.in_stride + begin);
            }
            const __m512i a = _mm512_unpacklo_epi8(row[0], row[1]), b = _mm512_unpackhi_epi8(row[0], row[1]);
            const __m512i c = _mm512_unpacklo_epi8(row[2], row[3]), d = _mm512_unpackhi_epi8(row[2], row[3]);
            sums[0].add(_mm512_unpacklo_epi16(a, c), pieces, r.taps.stride, tap);
            sums[1].add(_mm512_unpackhi_epi16(a, c), pieces, r.taps.stride, tap);
            sums[2].add(_mm512_unpacklo_epi16(b, d), pieces, r.taps.stride, tap);
            sums[3].add(_mm512_unpackhi_epi16(b, d), pieces, r.taps.stride, tap);
        }
        const __m512i a = _mm512_packs_epi32(sums[0].level(), sums[1].level());
        const __m512i b = _mm512_packs_epi32(sums[2].level(), sums[3].level());
        _mm512_mask_storeu_epi8(r.out + begin, there, _mm512_packus_epi16(a, b));
    }
}

}  // namespace gsb::avx512
