#include "attention.h"

#include <vector>

#include "attention_head.h"
#include "tasks.h"

namespace gsb::train {
namespace {

// bits (words, stride) of one part: word w of token n at [w·stride + n].
template <class T>
GSB_TRAIN_TARGET void pack_part(const Heads& heads, const T* qkv, const Part& part, uint64_t* bits, int stride) {
    const Shape& s = heads.shape;
    for (int token = 0; token < s.tokens; ++token) {
        for (int word = 0; word < words_of(s.channels); ++word) {
            uint64_t packed = 0;
            for (int piece = 0; piece < 4 && word * 64 + piece * 16 < s.channels; ++piece) {
                const __mmask16 plane = signs_of(shifted(part, qkv, token, word * 64 + piece * 16));
                packed |= static_cast<uint64_t>(plane) << (piece * 16);
            }
            bits[word * stride + token] = packed;
        }
    }
}

GSB_TRAIN_TARGET void score_rows(const Shape& s, const uint64_t* queries, const uint64_t* keys, int stride,
                                 float factor, float* out) {
    const __m256i base = _mm256_set1_epi32(s.channels);
    const __m256 scale = _mm256_set1_ps(factor);
    for (int row = 0; row < s.tokens; ++row) {
        for (int column = 0; column < s.tokens; column += 8) {
            __m512i counts = _mm512_setzero_si512();
            for (int word = 0; word < words_of(s.channels); ++word) {
                const __m512i q = _mm512_set1_epi64(static_cast<long long>(queries[word * stride + row]));
                const __m512i k = _mm512_loadu_si512(keys + word * stride + column);
                counts = _mm512_add_epi64(counts, _mm512_popcnt_epi64(_mm512_xor_si512(q, k)));
            }
            const __m256i twice = _mm256_slli_epi32(_mm512_cvtepi64_epi32(counts), 1);
            const __m256 score = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(base, twice)), scale);
            const __mmask8 lanes = static_cast<__mmask8>(lanes_from(column, s.tokens) & 0xFF);
            _mm256_mask_storeu_ps(out + static_cast<size_t>(row) * s.tokens + column, lanes, score);
        }
    }
}

GSB_TRAIN_TARGET float largest_entry(const Shape& s, const float* P, const float* E) {
    __m512 largest = _mm512_set1_ps(-__builtin_inff());
    const int size = s.tokens * s.tokens;
    for (int i = 0; i < size; i += 16) {
        const __mmask16 lanes = lanes_from(i, size);
        largest = _mm512_mask_max_ps(largest, lanes, largest, entries(P, E, i, lanes));
    }
    return _mm512_reduce_max_ps(largest);
}

template <class T>
GSB_TRAIN_TARGET void extremes_of_values(const Heads& heads, const T* qkv, int picture, float* largest,
                                         float* smallest) {
    const Shape& s = heads.shape;
    __m512 high = _mm512_set1_ps(-__builtin_inff()), low = _mm512_set1_ps(__builtin_inff());
    for (int head = 0; head < s.heads; ++head) {
        const Part part = part_of(heads, picture, head, 2);
        for (int token = 0; token < s.tokens; ++token) {
            for (int channel = 0; channel < s.channels; channel += 16) {
                const __m512 v = shifted(part, qkv, token, channel);
                high = _mm512_max_ps(high, v);
                low = _mm512_min_ps(low, v);
            }
        }
    }
    *largest = _mm512_reduce_max_ps(high);
    *smallest = _mm512_reduce_min_ps(low);
}

template <class T>
GSB_TRAIN_TARGET void superpose_head(const Heads& heads, const T* qkv, const Part& part, const Groups& groups,
                                     const Limits& limits, float* out) {
    const Shape& s = heads.shape;
    for (int token = 0; token < s.tokens; ++token) {
        for (int channel = 0; channel < s.channels; channel += 16) {
            const __m512 v = shifted(part, qkv, token, channel);
            __m512 size = _mm512_set1_ps(groups.scales[0]);
            for (int g = 1; g < groups.count; ++g) {
                size = _mm512_mask_add_ps(size, value_member(v, limits, g - 1), size, _mm512_set1_ps(groups.scales[g]));
            }
            _mm512_storeu_ps(out + static_cast<size_t>(token) * s.channels + channel, with_sign(size, signs_of(v)));
        }
    }
}

// One row of A_b·V_b (d): entries that are not zero, with their columns. They are added in order, as matrix libraries
// mostly do: sums of a few levels of either sign are often all but zero, and then a rounding decides the next sign.
struct RowList {
    std::vector<float> values;
    std::vector<int32_t> columns;
};

GSB_TRAIN_TARGET int list_row(const Shape& s, const float* P, const float* E, const Groups& groups,
                              const Limits& limits, RowList& list) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int used = 0;
    for (int column = 0; column < s.tokens; column += 16) {
        const __mmask16 lanes = lanes_from(column, s.tokens);
        const __m512 a = superposed(entries(P, E, column, lanes), groups, limits);
        const __mmask16 some = _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_UQ) & lanes;
        _mm512_mask_compressstoreu_ps(list.values.data() + used, some, a);
        _mm512_mask_compressstoreu_epi32(list.columns.data() + used, some,
                                         _mm512_add_epi32(lane, _mm512_set1_epi32(column)));
        used += __builtin_popcount(some);
    }
    return used;
}

template <int Vectors, class T>
GSB_TRAIN_INLINE void sum_list(const RowList& list, int used, const float* V, size_t stride, T* out) {
    __m512 sums[Vectors];
    for (int v = 0; v < Vectors; ++v) sums[v] = _mm512_setzero_ps();
    for (int i = 0; i < used; ++i) {
        const float* row = V + list.columns[i] * stride;
        const __m512 a = _mm512_set1_ps(list.values[i]);
        for (int v = 0; v < Vectors; ++v) sums[v] = _mm512_fmadd_ps(a, _mm512_loadu_ps(row + 16 * v), sums[v]);
    }
    for (int v = 0; v < Vectors; ++v) store(out + 16 * v, 0xFFFF, sums[v]);
}

template <class T>
GSB_TRAIN_TARGET void attend_head(const Shape& s, const float* P, const float* E, const Groups& groups,
                                  const Limits& limits, const float* V, T* y, size_t stride, RowList& list) {
    for (int row = 0; row < s.tokens; ++row) {
        const size_t begin = static_cast<size_t>(row) * s.tokens;
        const int used = list_row(s, P + begin, E ? E + begin : nullptr, groups, limits, list);
        int channel = 0;
        for (; channel + 64 <= s.channels; channel += 64) {
            sum_list<4>(list, used, V + channel, s.channels, y + row * stride + channel);
        }
        for (; channel < s.channels; channel += 16) {
            sum_list<1>(list, used, V + channel, s.channels, y + row * stride + channel);
        }
    }
}

}  // namespace

void scores(const Heads& heads, float factor, float* out, int threads) {
    const Shape& s = heads.shape;
    const int stride = (s.tokens + 7) / 8 * 8, words = words_of(s.channels);
    run_tasks(threads, s.batch * s.heads, [&](int task) {
        std::vector<uint64_t> queries(words * stride), keys(words * stride);
        with_type(heads.qkv, [&](auto* qkv) {
            pack_part(heads, qkv, part_of(heads, task / s.heads, task % s.heads, 0), queries.data(), stride);
            pack_part(heads, qkv, part_of(heads, task / s.heads, task % s.heads, 1), keys.data(), stride);
        });
        score_rows(s, queries.data(), keys.data(), stride, factor,
                   out + static_cast<size_t>(task) * s.tokens * s.tokens);
    });
}

void attention_extremes(const Shape& s, const float* P, const float* E, float* largest, int threads) {
    const size_t size = static_cast<size_t>(s.tokens) * s.tokens;
    run_tasks(threads, s.batch, [&](int picture) {
        float most = -__builtin_inff();
        for (int head = 0; head < s.heads; ++head) {
            const float* rows = P + (static_cast<size_t>(picture) * s.heads + head) * size;
            most = std::max(most, largest_entry(s, rows, E ? E + head * size : nullptr));
        }
        largest[picture] = most;
    });
}

void value_extremes(const Heads& heads, float* extremes, int threads) {
    run_tasks(threads, heads.shape.batch, [&](int picture) {
        with_type(heads.qkv, [&](auto* qkv) {
            extremes_of_values(heads, qkv, picture, extremes + picture, extremes + heads.shape.batch + picture);
        });
    });
}

void superpose_values(const Heads& heads, const Groups& values, float* out, int threads) {
    const Shape& s = heads.shape;
    run_tasks(threads, s.batch * s.heads, [&](int task) {
        const int picture = task / s.heads;
        with_type(heads.qkv, [&](auto* qkv) {
            superpose_head(heads, qkv, part_of(heads, picture, task % s.heads, 2), values,
                           limits_of(values, 2, picture), out + static_cast<size_t>(task) * s.tokens * s.channels);
        });
    });
}

void attend(const Shape& s, const float* P, const float* E, const Groups& attention, const float* V, Tensor y,
            int threads) {
    const size_t size = static_cast<size_t>(s.tokens) * s.tokens, width = static_cast<size_t>(s.heads) * s.channels;
    run_tasks(threads, s.batch * s.heads, [&](int task) {
        const int picture = task / s.heads, head = task % s.heads;
        RowList list{std::vector<float>(s.tokens + 16), std::vector<int32_t>(s.tokens + 16)};
        with_type(y, [&](auto* out) {
            attend_head(s, P + task * size, E ? E + head * size : nullptr, attention, limits_of(attention, 1, picture),
                        V + static_cast<size_t>(task) * s.tokens * s.channels,
                        out + picture * s.tokens * width + head * s.channels, width, list);
        });
    });
}

}  // namespace gsb::train
