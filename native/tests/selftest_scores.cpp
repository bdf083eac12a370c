// Attention scores against plain loops.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/float_ops.h"
#include "selftest.h"

namespace gsb::selftest {

namespace {

enum class Bias { none, first_and_row, half };

// One head's queries and keys, and the attention matrix they give.
struct Head {
    Head(int token_count, int dim, Bias kind, bool equal)
        : tokens(token_count),
          head_dim(dim),
          words((dim + 31) / 32),
          prefix(kind == Bias::first_and_row ? std::min(2, token_count) : 0),
          key_stride(round_up(token_count, 64)),
          random(static_cast<unsigned>(token_count * 1000 + dim)),
          queries(tokens * words),
          keys(words * key_stride),
          tables(kExpTable + dim + 1),
          bias(static_cast<size_t>(tokens) * (tokens + 3) + kLanes),
          first((prefix + 1) * kLanes),
          half_bias(kind == Bias::half ? static_cast<size_t>(tokens) * tokens : 0),
          begin(tokens),
          attention(static_cast<size_t>(tokens) * tokens) {
        std::vector<bool> one(dim);
        for (int i = 0; i < dim; ++i) one[i] = random.word() & 1;
        for (int token = 0; token < tokens; ++token) {
            // All equal; or near one vector or its opposite, so that distances go from 0 to dim.
            const bool opposite = !equal && random.word() & 1;
            for (int i = 0; i < dim; ++i) {
                const bool flip = !equal && random.integer(0, 30) == 0;
                const auto set = static_cast<uint32_t>(one[i] ^ flip ^ opposite) << (i % 32);
                queries[token * words + i / 32] |= static_cast<uint32_t>(one[i] ^ (flip && token % 2)) << (i % 32);
                keys[i / 32 * key_stride + token] |= set;
            }
        }
        fill_tables();
        if (kind != Bias::none) fill_bias();
        fill_attention();
    }

    Scores scores() {
        Scores s{};
        s.queries = queries.data();
        s.query_stride = words;
        s.keys = keys.data();
        s.key_stride = key_stride;
        s.words = words;
        s.tokens = s.last = tokens;
        s.exp_tables = tables.data();
        s.head_dim = head_dim;
        s.bias = bias.data();
        s.bias_begin = begin.data();
        s.bias_first = first.data();
        s.prefix = prefix;
        s.half_bias = half_bias.size() > 0 ? half_bias.data() : nullptr;
        s.mask_stride = round_up((tokens + 31) / 32, 2);
        return s;
    }

    int tokens, head_dim, words, prefix;
    size_t key_stride;
    Random random;
    Guarded<uint32_t> queries, keys;
    Guarded<float> tables, bias, first;
    Guarded<uint16_t> half_bias;
    Guarded<int64_t> begin;
    std::vector<float> attention;

  private:
    void fill_tables() {
        const auto entry = [&](int t) { return t <= head_dim ? std::exp(-0.2f * static_cast<float>(t)) : 0.0f; };
        for (int i = 0; i < 64; ++i) tables[kExpCyclic32 + i] = entry(i % 32);
        for (int i = 0; i < 128; ++i) tables[kExpCyclic64 + i] = entry(i % 64);
        for (int t = 0; t <= head_dim; ++t) tables[kExpTable + t] = entry(t);
    }

    void fill_bias() {
        const float size = 0.5f / static_cast<float>(tokens);
        for (size_t i = 0; i < bias.size(); ++i) bias[i] = random.number(-size, size);
        for (size_t i = 0; i < first.size(); ++i) first[i] = random.number(-size, size);
        for (int row = 0; row < tokens; ++row) begin[row] = static_cast<int64_t>(row) * (tokens + 3);
        // Any half but infinity and NaN; mostly small ones.
        for (size_t i = 0; i < half_bias.size(); ++i) {
            half_bias[i] =
                static_cast<uint16_t>((random.word() & 0x8000) | random.integer(0, i % 9 == 0 ? 0x3000 : 0x2000));
        }
    }

    float bias_of(int row, int column) {
        if (half_bias.size() > 0) return half_to_float(half_bias[row * tokens + column]);
        return column < prefix ? first[std::min(row, prefix) * kLanes + column] : bias[begin[row] + column];
    }

    void fill_attention() {
        for (int row = 0; row < tokens; ++row) {
            std::vector<int> z(tokens);
            for (int j = 0; j < tokens; ++j) {
                for (int i = 0; i < head_dim; ++i) {
                    const bool key = keys[i / 32 * key_stride + j] >> (i % 32) & 1;
                    z[j] += bit(queries.data() + row * words, i) != key;
                }
            }
            std::vector<float> p(tokens);
            const int least = *std::min_element(z.begin(), z.end());
            for (int j = 0; j < tokens; ++j) p[j] = tables[kExpTable + z[j] - least];
            const float factor = 1.0f / lanes_sum(p);
            for (int j = 0; j < tokens; ++j) {
                const float share = p[j] * factor;
                attention[row * tokens + j] = share + bias_of(row, j);
            }
        }
    }
};

void test_head(const Kernels& kernels, Head& head, bool fixed, size_t capacity, const std::string& what,
               Results& results) {
    const int n = head.tokens;
    const float most = *std::max_element(head.attention.begin(), head.attention.end());
    Scores s = head.scores();
    s.half_scale = head.attention[n / 2];  // a tie: outside
    Guarded<uint32_t> masks(n * s.mask_stride);
    Guarded<float> row(head.key_stride), values(capacity + kLanes);
    Guarded<int32_t> distances(kScoreRows * head.key_stride), columns(capacity + kLanes), count(n);
    Guarded<size_t> begin(n);
    Candidates c{};
    c.ratio = 0.7f;
    c.limit = most * 0.5f;
    c.fixed = fixed;
    c.maximum = -std::numeric_limits<float>::infinity();
    c.columns = columns.data();
    c.values = values.data();
    c.capacity = capacity;
    c.begin = begin.data();
    c.count = count.data();
    s.masks = masks.data();
    s.row = row.data();
    s.distances = distances.data();
    s.candidates = &c;
    kernels.scores(s);
    bool right = true, listed = c.maximum == most;
    for (int i = 0; i < n; ++i) {
        const float* a = head.attention.data() + static_cast<size_t>(i) * n;
        for (size_t j = 0; j < s.mask_stride * 32; ++j) {
            right &= bit(masks.data() + i * s.mask_stride, j) == (static_cast<int>(j) < n && a[j] > s.half_scale);
        }
        if (count[i] < 0) continue;
        // Entries are true and in order, and none above the final limit is missing.
        const float limit = fixed ? c.limit : c.ratio * most;
        int above = 0;
        for (int k = 0; k < count[i]; ++k) {
            const int column = columns[begin[i] + k];
            listed &= column < n && same_bits(values[begin[i] + k], a[column]) && (!fixed || a[column] > limit);
            listed &= k == 0 || columns[begin[i] + k - 1] < column;
            above += a[column] > limit;
        }
        listed &= above == std::count_if(a, a + n, [&](float x) { return x > limit; });
    }
    const bool all_fit = std::all_of(count.data(), count.data() + n, [](int32_t k) { return k >= 0; });
    const bool clean = masks.clean() && row.clean() && values.clean() && distances.clean() && columns.clean() &&
                       count.clean() && begin.clean();
    results.check(right, what + " masks");
    results.check(listed && clean && (capacity < static_cast<size_t>(n) * n || all_fit), what + " candidates");
}

}  // namespace

void test_scores(const Kernels& kernels, Results& results) {
    int turn = 0;
    for (int tokens : {1, 5, 16, 17, 31, 33, 50, 66, 130, 198}) {
        for (int head_dim : {32, 48, 64, 80, 128, 256}) {
            const Bias kind = static_cast<Bias>(turn % 3);
            Head head(tokens, head_dim, kind, turn % 5 == 0);
            const std::string what = std::string(kernels.name) + " scores of " + std::to_string(tokens) +
                                     " tokens, d " + std::to_string(head_dim) + " bias " + std::to_string(turn % 3);
            test_head(kernels, head, false, static_cast<size_t>(tokens) * tokens, what, results);
            test_head(kernels, head, true, static_cast<size_t>(tokens) * 2, what + " fixed", results);
            ++turn;
        }
    }
}

}  // namespace gsb::selftest
