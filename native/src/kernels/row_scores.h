// Attention rows one by one, for any way of counting distances.
//
// DISTANCES()(scores, query, z) writes the distances of one query to all keys.
#pragma once

#include <cstdint>

#include "kernels/candidates.h"
#include "kernels/contract.h"
#include "kernels/float_ops.h"
#include "kernels/row_products.h"

namespace gsb {

template <class DISTANCES>
struct RowScores {
    static void run(const Scores& s) {
        float* a = s.row;
        for (int row = s.first; row < s.last; ++row) {
            const float largest = attention_row(s, row, a, s.distances);
            uint32_t* mask = s.masks + row * s.mask_stride;
            for (int j = 0; j < s.tokens; j += 32) {
                const int end = s.tokens - j < 32 ? s.tokens - j : 32;
                uint8_t flags[32] = {};
                for (int l = 0; l < end; ++l) flags[l] = a[j + l] > s.half_scale;
                mask[j / 32] = static_cast<uint32_t>(pack_flags(flags, 32));
            }
            if (s.candidates) collect(*s.candidates, row - s.first, a, s.tokens, largest);
        }
    }

  private:
    // Adds the bias of row `row` to a (0 … tokens − 1).
    static void add_bias(const Scores& s, int row, float* a) {
        if (s.half_bias) {
            const uint16_t* bias = s.half_bias + static_cast<size_t>(row) * s.tokens;
            for (int j = 0; j < s.tokens; ++j) a[j] = a[j] + half_to_float(bias[j]);
            return;
        }
        const float* first = s.bias_first + kLanes * (row < s.prefix ? row : s.prefix);
        const float* bias = s.bias + s.bias_begin[row];
        for (int j = 0; j < s.prefix; ++j) a[j] = a[j] + first[j];
        for (int j = s.prefix; j < s.tokens; ++j) a[j] = a[j] + bias[j];
    }

    // Writes row `row` of A and returns its largest entry.
    static float attention_row(const Scores& s, int row, float* a, int32_t* z) {
        DISTANCES()(s, s.queries + row * s.query_stride, z);
        int32_t smallest = z[0];
        for (int j = 1; j < s.tokens; ++j) smallest = z[j] < smallest ? z[j] : smallest;
        const float* table = s.exp_tables + kExpTable;
        for (int j = 0; j < s.tokens; ++j) a[j] = table[z[j] - smallest];
        const float factor = 1.0f / sum16(a, s.tokens);
        for (int j = 0; j < s.tokens; ++j) a[j] = a[j] * factor;
        add_bias(s, row, a);
        float largest = a[0];
        for (int j = 1; j < s.tokens; ++j) largest = a[j] > largest ? a[j] : largest;
        return largest;
    }

    static void collect(Candidates& c, int row, const float* a, int tokens, float largest) {
        if (!begin_list(c, row, tokens, largest)) return;
        const float limit = limit_of(c);
        for (int j = 0; j < tokens; ++j) list_marked(c, a[j] > limit, j, a);
        end_list(c, row);
    }
};

}  // namespace gsb
