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
                const Mask plane = signs_of(shifted(part, qkv, token, word * 64 + piece * 16));
                packed |= static_cast<uint64_t>(bits_of(plane)) << (piece * 16);
            }
            bits[word * stride + token] = packed;
        }
    }
}

GSB_TRAIN_TARGET void score_rows(const Shape& s, const uint64_t* queries, const uint64_t* keys, int stride,
                                 float factor, float* out) {
    const Ints base = ints(s.channels);
    const Floats scale = floats(factor);
    for (int row = 0; row < s.tokens; ++row) {
        for (int column = 0; column < s.tokens; column += 16) {
            BitCounts sums;
            for (int word = 0; word < words_of(s.channels); ++word) {
                sums.add(queries[word * stride + row], keys + word * stride + column);
            }
            const Ints counts = sums.total();
            store(out + static_cast<size_t>(row) * s.tokens + column, lanes_from(column, s.tokens),
                  floats(base - (counts + counts)) * scale);
        }
    }
}

GSB_TRAIN_TARGET float largest_entry(const Shape& s, const float* P, const float* E) {
    Floats most = floats(-__builtin_inff());
    const int size = s.tokens * s.tokens;
    for (int i = 0; i < size; i += 16) {
        const Lanes lanes = lanes_from(i, size);
        most = select(mask_of(lanes), max(most, entries(P, E, i, lanes)), most);
    }
    return largest(most);
}

template <class T>
GSB_TRAIN_TARGET void extremes_of_values(const Heads& heads, const T* qkv, int picture, float* most, float* least) {
    const Shape& s = heads.shape;
    Floats high = floats(-__builtin_inff()), low = floats(__builtin_inff());
    for (int head = 0; head < s.heads; ++head) {
        const Part part = part_of(heads, picture, head, 2);
        for (int token = 0; token < s.tokens; ++token) {
            for (int channel = 0; channel < s.channels; channel += 16) {
                const Floats v = shifted(part, qkv, token, channel);
                high = max(high, v);
                low = min(low, v);
            }
        }
    }
    *most = largest(high);
    *least = smallest(low);
}

template <class T>
GSB_TRAIN_TARGET void superpose_head(const Heads& heads, const T* qkv, const Part& part, const Groups& groups,
                                     const Limits& limits, float* out) {
    const Shape& s = heads.shape;
    for (int token = 0; token < s.tokens; ++token) {
        for (int channel = 0; channel < s.channels; channel += 16) {
            const Floats v = shifted(part, qkv, token, channel);
            Floats size = floats(groups.scales[0]);
            for (int g = 1; g < groups.count; ++g) {
                size = add_where(value_member(v, limits, g - 1), size, floats(groups.scales[g]));
            }
            store(out + static_cast<size_t>(token) * s.channels + channel, kAllLanes, with_sign(size, signs_of(v)));
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
    int used = 0;
    for (int column = 0; column < s.tokens; column += 16) {
        const Lanes lanes = lanes_from(column, s.tokens);
        const Floats a = superposed(entries(P, E, column, lanes), groups, limits);
        const Mask some = (a != floats(0.0f)) & mask_of(lanes);
        used += append(some, a, column, list.values.data() + used, list.columns.data() + used);
    }
    return used;
}

template <int Vectors, class T>
GSB_TRAIN_INLINE void sum_list(const RowList& list, int used, const float* V, size_t stride, T* out) {
    Floats sums[Vectors];
    for (int v = 0; v < Vectors; ++v) sums[v] = floats(0.0f);
    for (int i = 0; i < used; ++i) {
        const float* row = V + list.columns[i] * stride;
        const Floats a = floats(list.values[i]);
        for (int v = 0; v < Vectors; ++v) sums[v] = fma(a, load(row + 16 * v, kAllLanes), sums[v]);
    }
    for (int v = 0; v < Vectors; ++v) store(out + 16 * v, kAllLanes, sums[v]);
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
    const int stride = (s.tokens + 15) / 16 * 16, words = words_of(s.channels);
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
