// Products of small float matrices that lie in the cache.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace gsb::train {

// a(row, k) = data[row·row_stride + k·k_stride].
struct Left {
    const float* data;
    size_t row_stride, k_stride;
};

template <int Rows, int Vectors>
GSB_TRAIN_INLINE void product_tile(Left a, int depth, const float* b, size_t b_stride, float* out, size_t out_stride) {
    __m512 sums[Rows][Vectors];
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) sums[r][v] = _mm512_setzero_ps();
    }
    for (int k = 0; k < depth; ++k) {
        __m512 right[Vectors];
        for (int v = 0; v < Vectors; ++v) right[v] = _mm512_loadu_ps(b + k * b_stride + v * 16);
        for (int r = 0; r < Rows; ++r) {
            const __m512 left = _mm512_set1_ps(a.data[r * a.row_stride + k * a.k_stride]);
            for (int v = 0; v < Vectors; ++v) sums[r][v] = _mm512_fmadd_ps(left, right[v], sums[r][v]);
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) _mm512_storeu_ps(out + r * out_stride + v * 16, sums[r][v]);
    }
}

template <int Vectors>
GSB_TRAIN_INLINE void product_columns(Left a, int rows, int depth, const float* b, size_t b_stride, float* out,
                                      size_t out_stride) {
    int row = 0;
    for (; row + 4 <= rows; row += 4) {
        product_tile<4, Vectors>({a.data + row * a.row_stride, a.row_stride, a.k_stride}, depth, b, b_stride,
                                 out + row * out_stride, out_stride);
    }
    for (; row < rows; ++row) {
        product_tile<1, Vectors>({a.data + row * a.row_stride, a.row_stride, a.k_stride}, depth, b, b_stride,
                                 out + row * out_stride, out_stride);
    }
}

// out (rows, columns) = a·b, b (depth, columns); columns a multiple of 16. Each sum runs over k in order.
GSB_TRAIN_INLINE void small_product(Left a, int rows, int depth, const float* b, size_t b_stride, int columns,
                                    float* out, size_t out_stride) {
    int column = 0;
    for (; column + 64 <= columns; column += 64) {
        product_columns<4>(a, rows, depth, b + column, b_stride, out + column, out_stride);
    }
    if (columns - column >= 32) {
        product_columns<2>(a, rows, depth, b + column, b_stride, out + column, out_stride);
        column += 32;
    }
    if (columns > column) product_columns<1>(a, rows, depth, b + column, b_stride, out + column, out_stride);
}

}  // namespace gsb::train
