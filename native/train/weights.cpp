#include "weights.h"

#include <algorithm>

namespace gsb::train {
namespace {

// Popcounts of x ^ w of some rows and sixteen channels.
template <int Rows>
GSB_TRAIN_INLINE void count_block(const uint64_t* bits, int words, const uint64_t* block, Ints* counts) {
    BitCounts sums[Rows];
    for (int word = 0; word < words; ++word) {
        for (int r = 0; r < Rows; ++r) sums[r].add(bits[r * words + word], block + word * kLanes);
    }
    for (int r = 0; r < Rows; ++r) counts[r] = sums[r].total();
}

GSB_TRAIN_INLINE Ints integers_of(const Product& p, int block, Ints counts) {
    return load_int32(p.base + block * kLanes) - (p.factor == 2 ? counts + counts : counts);
}

struct Affine {
    const float *scale, *bias;
};

GSB_TRAIN_INLINE Floats affine(const Affine& to, Ints integers, int column, Lanes lanes) {
    const Floats y = floats(integers) * load(to.scale + column, lanes);
    return to.bias ? y + load(to.bias + column, lanes) : y;
}

template <class T>
GSB_TRAIN_INLINE void write(const Product& p, const Affine& to, int block, Ints counts, T* y, Lanes lanes) {
    store(y + block * kLanes, lanes, affine(to, integers_of(p, block, counts), block * kLanes, lanes));
}

GSB_TRAIN_INLINE void write(const Product& p, const Affine&, int block, Ints counts, int16_t* y, Lanes lanes) {
    store_int16(y + block * kLanes, lanes, integers_of(p, block, counts));
}

template <class Out>
GSB_TRAIN_TARGET void multiply_rows(const Product& p, const uint64_t* bits, const Affine& to, int first, int last,
                                    Out* y) {
    const int words = words_of(p.width), blocks = (p.channels + kLanes - 1) / kLanes;
    Ints counts[kCountRows];
    for (int row = first; row < last; row += kCountRows) {
        const uint64_t* x = bits + static_cast<size_t>(row) * words;
        Out* out = y + static_cast<size_t>(row) * p.channels;
        for (int block = 0; block < blocks; ++block) {
            const uint64_t* w = p.packed + static_cast<size_t>(block) * words * kLanes;
            const Lanes lanes = lanes_from(block * kLanes, p.channels);
            const int rows = std::min(kCountRows, last - row);
            if (rows == kCountRows) {
                count_block<kCountRows>(x, words, w, counts);
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
    const Floats middle = floats(mean), zero = floats(0.0f);
    for (int lane = 0; lane < kLanes; ++lane) {
        const int channel = block * kLanes + lane;
        int ones = 0;
        for (int word = 0; word < words; ++word) {
            uint64_t bits = 0;
            for (int piece = 0; channel < channels && piece < 4; ++piece) {
                const int column = word * 64 + piece * 16;
                if (column >= width) break;
                const Lanes lanes = lanes_from(column, width);
                const Floats w = load(weight + static_cast<size_t>(channel) * width + column, lanes);
                const Mask plane = (w - middle >= zero) & mask_of(lanes);
                bits |= static_cast<uint64_t>(bits_of(plane)) << (piece * 16);
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
        const Floats up = floats(scale[channel]), down = floats(-scale[channel]);
        for (int column = 0; column < width; column += 16) {
            const uint64_t bits = from[column / 64 * kLanes + lane] >> (column % 64);
            const Floats w = select(mask_of_bits(static_cast<uint16_t>(bits)), up, down);
            store(out + static_cast<size_t>(channel) * width + column, lanes_from(column, width), w);
        }
    }
}

template <class T>
GSB_TRAIN_TARGET void rescale_rows(const int16_t* integers, const Affine& to, int channels, int first, int last, T* y) {
    for (int row = first; row < last; ++row) {
        const size_t begin = static_cast<size_t>(row) * channels;
        for (int column = 0; column < channels; column += 16) {
            const Lanes lanes = lanes_from(column, channels);
            store(y + begin + column, lanes, affine(to, load_int16(integers + begin + column, lanes), column, lanes));
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
