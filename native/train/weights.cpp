#include "weights.h"

#include <algorithm>

namespace gsb::train {
namespace {

constexpr int kRows = 4;

// Popcounts of x ^ w of up to four rows and sixteen channels, as sixteen int32 each.
template <int Rows>
GSB_TRAIN_INLINE void count_block(const uint64_t* bits, int words, const uint64_t* block, __m512i* counts) {
    __m512i low[Rows], high[Rows];
    for (int r = 0; r < Rows; ++r) low[r] = high[r] = _mm512_setzero_si512();
    for (int word = 0; word < words; ++word) {
        const __m512i left = _mm512_loadu_si512(block + word * kLanes);
        const __m512i right = _mm512_loadu_si512(block + word * kLanes + 8);
        for (int r = 0; r < Rows; ++r) {
            const __m512i x = _mm512_set1_epi64(static_cast<long long>(bits[r * words + word]));
            low[r] = _mm512_add_epi64(low[r], _mm512_popcnt_epi64(_mm512_xor_si512(x, left)));
            high[r] = _mm512_add_epi64(high[r], _mm512_popcnt_epi64(_mm512_xor_si512(x, right)));
        }
    }
    for (int r = 0; r < Rows; ++r) {
        counts[r] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(low[r])),
                                       _mm512_cvtepi64_epi32(high[r]), 1);
    }
}

GSB_TRAIN_INLINE __m512i integers_of(const Product& p, int block, __m512i counts) {
    const __m512i base = _mm512_loadu_si512(p.base + block * kLanes);
    return _mm512_sub_epi32(base, p.factor == 2 ? _mm512_add_epi32(counts, counts) : counts);
}

struct Affine {
    const float *scale, *bias;
};

GSB_TRAIN_INLINE __m512 affine(const Affine& to, __m512i integers, int column, __mmask16 lanes) {
    const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(integers), load(to.scale + column, lanes));
    return to.bias ? _mm512_add_ps(y, load(to.bias + column, lanes)) : y;
}

template <class T>
GSB_TRAIN_INLINE void write(const Product& p, const Affine& to, int block, __m512i counts, T* y, __mmask16 lanes) {
    store(y + block * kLanes, lanes, affine(to, integers_of(p, block, counts), block * kLanes, lanes));
}

GSB_TRAIN_INLINE void write(const Product& p, const Affine&, int block, __m512i counts, int16_t* y, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(y + block * kLanes, lanes, _mm512_cvtepi32_epi16(integers_of(p, block, counts)));
}

template <class Out>
GSB_TRAIN_TARGET void multiply_rows(const Product& p, const uint64_t* bits, const Affine& to, int first, int last,
                                    Out* y) {
    const int words = words_of(p.width), blocks = (p.channels + kLanes - 1) / kLanes;
    __m512i counts[kRows];
    for (int row = first; row < last; row += kRows) {
        const uint64_t* x = bits + static_cast<size_t>(row) * words;
        Out* out = y + static_cast<size_t>(row) * p.channels;
        for (int block = 0; block < blocks; ++block) {
            const uint64_t* w = p.packed + static_cast<size_t>(block) * words * kLanes;
            const __mmask16 lanes = lanes_from(block * kLanes, p.channels);
            const int rows = std::min(kRows, last - row);
            if (rows == kRows) {
                count_block<kRows>(x, words, w, counts);
            } else {
                for (int r = 0; r < rows; ++r) count_block<1>(x + r * words, words, w, counts + r);
            }
            for (int r = 0; r < rows; ++r) {
                write(p, to, block, counts[r], out + static_cast<size_t>(r) * p.channels, lanes);
            }
        }
    }
}

GSB_TRAIN_TARGET void pack(const float* weight, int channels, int width, float mean, int block, uint64_t* packed,
                           int32_t* sums) {
    const int words = words_of(width);
    uint64_t* out = packed + static_cast<size_t>(block) * words * kLanes;
    const __m512 middle = _mm512_set1_ps(mean);
    for (int lane = 0; lane < kLanes; ++lane) {
        const int channel = block * kLanes + lane;
        int ones = 0;
        for (int word = 0; word < words; ++word) {
            uint64_t bits = 0;
            for (int piece = 0; channel < channels && piece < 4; ++piece) {
                const int column = word * 64 + piece * 16;
                if (column >= width) break;
                const __mmask16 lanes = lanes_from(column, width);
                const __m512 w = load(weight + static_cast<size_t>(channel) * width + column, lanes);
                const __mmask16 plane =
                    _mm512_cmp_ps_mask(_mm512_sub_ps(w, middle), _mm512_setzero_ps(), _CMP_GE_OQ) & lanes;
                bits |= static_cast<uint64_t>(plane) << (piece * 16);
            }
            out[word * kLanes + lane] = bits;
            ones += __builtin_popcountll(bits);
        }
        sums[block * kLanes + lane] = channel < channels ? 2 * ones - width : 0;
    }
}

template <class T>
GSB_TRAIN_TARGET void expand(const uint64_t* packed, int channels, int width, const float* scale, int block, T* out) {
    const int words = words_of(width);
    const uint64_t* from = packed + static_cast<size_t>(block) * words * kLanes;
    for (int lane = 0; lane < kLanes && block * kLanes + lane < channels; ++lane) {
        const int channel = block * kLanes + lane;
        const __m512 up = _mm512_set1_ps(scale[channel]), down = _mm512_set1_ps(-scale[channel]);
        for (int column = 0; column < width; column += 16) {
            const uint64_t bits = from[column / 64 * kLanes + lane] >> (column % 64);
            const __m512 w = _mm512_mask_mov_ps(down, static_cast<__mmask16>(bits), up);
            store(out + static_cast<size_t>(channel) * width + column, lanes_from(column, width), w);
        }
    }
}

template <class T>
GSB_TRAIN_TARGET void rescale_rows(const int16_t* integers, const Affine& to, int channels, int first, int last, T* y) {
    for (int row = first; row < last; ++row) {
        const size_t begin = static_cast<size_t>(row) * channels;
        for (int column = 0; column < channels; column += 16) {
            const __mmask16 lanes = lanes_from(column, channels);
            const __m512i q = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(lanes, integers + begin + column));
            store(y + begin + column, lanes, affine(to, q, column, lanes));
        }
    }
}

}  // namespace

void pack_block(const float* weight, int channels, int width, float mean, int block, uint64_t* packed, int32_t* sums) {
    pack(weight, channels, width, mean, block, packed, sums);
}

template <class T>
void expand_block(const uint64_t* packed, int channels, int width, const float* scale, int block, T* out) {
    expand(packed, channels, width, scale, block, out);
}

template <class T>
void multiply(const Product& p, const uint64_t* bits, const float* scale, const float* bias, int first, int last,
              T* y) {
    multiply_rows(p, bits, {scale, bias}, first, last, y);
}

void multiply_integers(const Product& p, const uint64_t* bits, int first, int last, int16_t* out) {
    multiply_rows(p, bits, {nullptr, nullptr}, first, last, out);
}

template <class T>
void rescale(const int16_t* integers, const float* scale, const float* bias, int channels, int first, int last, T* y) {
    rescale_rows(integers, {scale, bias}, channels, first, last, y);
}

template void expand_block(const uint64_t*, int, int, const float*, int, float*);
template void expand_block(const uint64_t*, int, int, const float*, int, Half*);
template void multiply(const Product&, const uint64_t*, const float*, const float*, int, int, float*);
template void multiply(const Product&, const uint64_t*, const float*, const float*, int, int, Half*);
template void rescale(const int16_t*, const float*, const float*, int, int, int, float*);
template void rescale(const int16_t*, const float*, const float*, int, int, int, Half*);

}  // namespace gsb::train
