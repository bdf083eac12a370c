// Sixteen lanes of numbers, whatever the width of the processor's registers: the one vocabulary of all kernels here.
// Results are the same on every instruction set: each operation is rounded once, and sum() adds lane l + 8 to lane l,
// then l + 4, l + 2 and l + 1.
//
// Which instruction set a build uses is chosen by GSB_TRAIN_AVX512, GSB_TRAIN_AVX2 or GSB_TRAIN_NEON. Each header has:
//
//   Lanes      the first n of sixteen: lanes_from(begin, end), kAllLanes; Mask: any of them; Floats, Ints (32 bits)
//   load, store                     float or Half; lanes beyond are read as 0 and not written; Half is rounded to even
//   load_int32, load_int16, load_uint8, store_int16, store_uint8          stores keep the low bits
//   floats, ints, rounded (to even) and + - * < <= != & | ~ by lane; min and max give b where a is a NaN
//   magnitude, shift_left<Bits>, shift_right<Bits> (zeros come in)
//   fma(a, b, c) = a·b + c; select(m, yes, no); keep(m, x): x or 0
//   add_where(m, a, b): a + b or a; fma_where(m, a, b, c): a·b + c or c; divide_where(m, a, b): a/b or 0
//   sum, largest, smallest of sixteen; count, bits_of, mask_of_bits of a mask, mask_of(lanes)
//   append(m, x, column, values, columns): writes x's lanes in m and their columns, side by side; returns how many.
//                                          Room for sixteen is needed
//   BitCounts  add(word, words): how many bits of word and words[0 … 15] differ; total()
//   kCountRows, kTileVectors: rows by sixteen channels, and by four rows sixteen columns, that fit the registers
//   supported()                     whether this processor has the instructions
#pragma once

#include <cstdint>

namespace gsb::train {

// The bits of a bfloat16: the upper half of a float.
struct Half {
    uint16_t bits;
};

}  // namespace gsb::train

#if defined(GSB_TRAIN_AVX512)
#include "lanes_avx512.h"
#elif defined(GSB_TRAIN_AVX2)
#include "lanes_avx2.h"
#elif defined(GSB_TRAIN_NEON)
#include "lanes_neon.h"
#else
#error "define GSB_TRAIN_AVX512, GSB_TRAIN_AVX2 or GSB_TRAIN_NEON"
#endif

namespace gsb::train {

#if !defined(GSB_TRAIN_AVX512)  // which has instructions for these
GSB_TRAIN_INLINE Floats add_where(Mask m, Floats a, Floats b) {
    return select(m, a + b, a);
}
GSB_TRAIN_INLINE Floats fma_where(Mask m, Floats a, Floats b, Floats c) {
    return select(m, fma(a, b, c), c);
}
GSB_TRAIN_INLINE int append(Mask m, Floats x, int column, float* values, int32_t* columns) {
    float room[16];
    store(room, kAllLanes, x);
    int used = 0;
    for (uint32_t some = bits_of(m); some; some &= some - 1, ++used) {
        const int lane = __builtin_ctz(some);
        values[used] = room[lane];
        columns[used] = column + lane;
    }
    return used;
}
#endif

GSB_TRAIN_INLINE Mask operator>(Floats a, Floats b) {
    return b < a;
}
GSB_TRAIN_INLINE Mask operator>=(Floats a, Floats b) {
    return b <= a;
}

inline int words_of(int bits) {
    return (bits + 63) / 64;
}

}  // namespace gsb::train
