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
    Floats sums[Rows][Vectors];
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) sums[r][v] = floats(0.0f);
    }
    for (int k = 0; k < depth; ++k) {
        Floats right[Vectors];
        for (int v = 0; v < Vectors; ++v) right[v] = load(b + k * b_stride + v * 16, kAllLanes);
        for (int r = 0; r < Rows; ++r) {
            const Floats left = floats(a.data[r * a.row_stride + k * a.k_stride]);
            for (int v = 0; v < Vectors; ++v) sums[r][v] = fma(left, right[v], sums[r][v]);
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) store(out + r * out_stride + v * 16, kAllLanes, sums[r][v]);
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
    constexpr int kTile = 16 * kTileVectors;
    int column = 0;
    for (; column + kTile <= columns; column += kTile) {
        product_columns<kTileVectors>(a, rows, depth, b + column, b_stride, out + column, out_stride);
    }
    for (; column < columns; column += 16) {
        product_columns<1>(a, rows, depth, b + column, b_stride, out + column, out_stride);
    }
}

}  // namespace gsb::train
