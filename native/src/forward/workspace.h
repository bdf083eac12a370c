// The memory of a forward pass, made once: what phases hand to each other, and what a thread needs for itself.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "file/packed_model.h"
#include "forward/profile.h"
#include "machine/buffer.h"
#include "weights/shape.h"

namespace gsb {

constexpr int kAttentionRows = 32;  // rows of attention × Value in one go

// What phases hand to each other. Where several threads write an array in one phase, the part of each lies together:
// cores that write neighbouring lines take them from each other, their prefetchers even before they are written.
struct Workspace {
    Workspace(const Shape& shape, int threads);

    int row_step, row_chunks;      // token rows a task of a row phase
    int score_step, score_chunks;  // token rows a task of a score phase
    std::vector<int> score_order;  // its tasks in the order they are begun: scores, then Value planes of each head
    // The tokenizer's feature maps, each in one of the two.
    std::vector<Buffer<uint8_t>> levels;
    std::vector<Buffer<uint32_t>> level_bits;
    Buffer<float> x;           // (N, padded_width)
    Buffer<uint32_t> queries;  // (N, query_words)
    // Of even and odd blocks: while some rows still read a block's keys, others write the next block's.
    Buffer<uint32_t> keys[2];               // (query_words, key_stride)
    Buffer<uint16_t> counts;                // (inner / 32, N, 32) popcounts of the Value
    Buffer<uint16_t> smallest, largest;     // (row_chunks, inner)
    Buffer<int16_t> value_low, value_high;  // (heads, V − 1, head_channels)
    Buffer<uint8_t> plane_active;           // (heads, V)
    Buffer<uint32_t> masks;                 // (N, heads, token_words)
    size_t plane_words, byte_stride;
    Buffer<uint32_t> plane_bits;        // (heads, V, plane_words)
    Buffer<int32_t> plane_ones;         // (heads, V, head_channels)
    Buffer<int8_t> plane_bytes;         // (heads, V, N, byte_stride)
    size_t candidate_capacity;          // a score task
    Buffer<int32_t> candidate_columns;  // (score tasks, candidate_capacity)
    Buffer<float> candidate_values;
    size_t candidate_rows;           // a score task, in whole cache lines
    Buffer<size_t> candidate_begin;  // (score tasks, candidate_rows)
    Buffer<int32_t> candidate_count;
    std::vector<float> attention_limits;                  // (A − 1)
    alignas(64) std::atomic<float> attention_maximum{0};  // on a cache line that only changes with it
    alignas(64) std::atomic<bool> overflowed{false};      // likewise: a norm of this picture did not hold
};

// What a thread needs for itself, on cache lines of its own.
struct alignas(64) Scratch {
    Scratch(const Shape& shape, const Architecture& architecture, int rows);

    Buffer<uint8_t> pixels;        // (rows, 3, patch_area), or a line of the tokenizer's windows
    Buffer<uint8_t> planes;        // (3, 3, stride): the lines of the picture that a line of outputs reads
    Buffer<float> line;            // (width, padded channels): a line of what one of its convolutions gives
    Buffer<uint32_t> bit_windows;  // (rows, window_stride): windows of one-bit levels
    Buffer<uint32_t> line_bits;    // (width, an even number of words): a line of one-bit levels
    std::vector<float> mean;       // (C, 16): the tokens' sums in lanes, where a head reads their mean
    Buffer<uint32_t> width_bits;   // (rows, width_words)
    Buffer<uint32_t> key_bits;     // (rows, query_words)
    Buffer<uint32_t> inner_bits;   // (rows, inner_words)
    Buffer<uint32_t> hidden_bits;  // (rows, hidden_words)
    Buffer<uint32_t> operand;      // (rows, the widest)
    Buffer<float> attention_row;   // (key_stride)
    Buffer<int32_t> distances;     // (kScoreRows, key_stride)
    Buffer<float> bias;            // one head's relative bias, see expand_bias
    Buffer<float> bias_first;      // (prefix + 1, 16)
    Buffer<int32_t> products;      // (V, kAttentionRows, head_channels)
    Buffer<int32_t> columns;       // (kAttentionRows, A − 1, N)
    Buffer<size_t> list_begin;     // (kAttentionRows, A − 1)
    Buffer<int32_t> list_count;
    Buffer<int32_t> row_columns;  // (N) candidates of a row that had to be run again
    Buffer<float> row_values;
    std::vector<float> value_extremes;  // (2, C): each channel's smallest and largest Value
    std::vector<float> normed;          // (C)
    Buffer<int8_t> levels;              // (C)
    Buffer<int32_t> sums;               // (K)
    StageSeconds seconds{};
};

}  // namespace gsb
