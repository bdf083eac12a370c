// Value planes and their combination with attention against plain loops.
#include <algorithm>
#include <limits>

#include "selftest.h"
#include "weights/layout.h"

namespace gsb::selftest {

namespace {

void test_extremes(const Kernels& kernels, int channels, int tokens, Results& results) {
    Random random(static_cast<unsigned>(channels + tokens));
    const size_t stride = static_cast<size_t>(tokens) * kCountGroup;
    Guarded<uint16_t> counts(channels / kCountGroup * stride), smallest(channels), largest(channels);
    for (size_t i = 0; i < counts.size(); ++i) counts[i] = static_cast<uint16_t>(random.integer(0, 2000));
    bool right = true;
    for (int first : {0, tokens / 3}) {
        kernels.count_extremes(counts.data(), stride, channels, first, tokens, smallest.data(), largest.data());
        for (int c = 0; c < channels; ++c) {
            int low = 65535, high = 0;
            for (int j = first; j < tokens; ++j) {
                const int count = counts[c / kCountGroup * stride + j * kCountGroup + c % kCountGroup];
                low = std::min(low, count);
                high = std::max(high, count);
            }
            right &= smallest[c] == low && largest[c] == high;
        }
    }
    const std::string size = std::to_string(channels) + " x " + std::to_string(tokens);
    results.check(right && smallest.clean() && largest.clean(), std::string(kernels.name) + " count_extremes " + size);
}

// Value planes of one head, all inputs random.
struct Planes {
    Planes(const Kernels& kernels, int channel_count, int token_count, int plane_count)
        : channels(channel_count),
          tokens(token_count),
          planes(plane_count),
          depth((token_count + 31) / 32),
          plane_words(round_up(static_cast<size_t>(channels) * round_up(depth, 2), 16)),
          byte_stride(round_up(channels, 64)),
          random(static_cast<unsigned>(channels * tokens + planes)),
          counts(static_cast<size_t>(channels) * tokens),
          threshold(channels),
          low(std::max(1, (planes - 1) * channels)),
          high(std::max(1, (planes - 1) * channels)),
          active(planes * channels / kPiece),
          bits(planes * plane_words),
          ones(planes * channels),
          bytes(planes * tokens * byte_stride, 77) {
        for (size_t i = 0; i < counts.size(); ++i) counts[i] = static_cast<uint16_t>(random.integer(0, 100));
        for (int c = 0; c < channels; ++c) threshold[c] = static_cast<int16_t>(random.integer(-1, 100));
        for (size_t i = 0; i < active.size(); ++i) active[i] = i * kPiece < size_t(channels) || random.word() % 3 > 0;
        for (int i = 0; i < (planes - 1) * channels; ++i) {
            // A piece that is not active has no entries.
            const bool none = !active[(channels + i) / kPiece];
            low[i] = static_cast<int16_t>(none || i % 5 == 0 ? -1 : random.integer(0, 30));
            high[i] = none || i % 7 == 0 ? std::numeric_limits<int16_t>::max()
                                         : static_cast<int16_t>(random.integer(60, 100));
        }
        kernels.value_planes({counts.data(), tokens, channels, planes, threshold.data(), low.data(), high.data(),
                              active.data(), bits.data(), plane_words, ones.data(), bytes.data(), byte_stride});
    }

    bool is_active(int plane, int c) { return active[(plane * channels + c) / kPiece] != 0; }
    // −1, 0, 1
    int value(int plane, int c, int j) {
        const int count = counts[(static_cast<size_t>(c / kCountGroup) * tokens + j) * kCountGroup + c % kCountGroup];
        const int at = (plane - 1) * channels + c;
        if (plane > 0 && count > low[at] && count < high[at]) return 0;
        return count <= threshold[c] ? 1 : -1;
    }

    int channels, tokens, planes, depth;
    size_t plane_words, byte_stride;
    Random random;
    Guarded<uint16_t> counts;
    Guarded<int16_t> threshold, low, high;
    Guarded<uint8_t> active;
    Guarded<uint32_t> bits;
    Guarded<int32_t> ones;
    Guarded<int8_t> bytes;
};

void test_planes(const Kernels& kernels, Planes& p, const std::string& what, Results& results) {
    bool bits_right = p.bits.clean() && p.ones.clean(), bytes_right = p.bytes.clean();
    const size_t stride = round_up(p.depth, 2);
    for (int plane = 0; plane < p.planes; ++plane) {
        const int width = plane == 0 ? p.channels : kPiece;
        bool any = false;
        for (int first = 0; first < p.channels; first += width) any |= p.is_active(plane, first);
        for (int first = 0; first < p.channels; first += width) {
            std::vector<uint32_t> rows(width * stride), packed(width * stride);
            for (int c = 0; c < width; ++c) {
                int32_t ones = 0;
                for (int j = 0; j < p.tokens; ++j) {
                    const int value = p.value(plane, first + c, j);
                    const bool negative = p.value(0, first + c, j) < 0;
                    // Sign and membership are equal.
                    const bool set = value == 0 ? negative : !negative;
                    rows[c * stride + j / 32] |= static_cast<uint32_t>(set) << (j % 32);
                    ones += set;
                    const int8_t byte =
                        p.bytes[(static_cast<size_t>(plane) * p.tokens + j) * p.byte_stride + first + c];
                    // Pieces without entries hold zeros where the plane is read at all.
                    bytes_right &= p.is_active(plane, first) ? byte == value : !any || byte == 0 || byte == value;
                }
                bits_right &= !p.is_active(plane, first) || p.ones[plane * p.channels + first + c] == ones;
            }
            if (!p.is_active(plane, first)) continue;
            pack_weights(kernels.weights, rows.data(), stride, width, p.depth, packed.data());
            const uint32_t* found =
                p.bits.data() + plane * p.plane_words + weight_words(kernels.weights, first, p.depth);
            const size_t words = weight_words(kernels.weights, width, p.depth);
            bits_right &= std::equal(packed.begin(), packed.begin() + words, found);
        }
    }
    results.check(bits_right, what + " bits");
    results.check(bytes_right, what + " bytes");
}

void test_combine(const Kernels& kernels, Planes& p, int groups, const std::string& what, Results& results) {
    constexpr int kRows = 3;
    const int channels = p.channels, planes = p.planes, lists = kRows * (groups - 1);
    std::vector<std::vector<int>> members(kRows * groups);
    for (size_t i = 0; i < members.size(); ++i) {
        const int one_in = i % groups == 0 ? 2 : static_cast<int>(i) % 4;  // 0: empty, 1: every token
        for (int j = 0; j < p.tokens; ++j) {
            if (one_in > 0 && p.random.integer(1, one_in) == 1) members[i].push_back(j);
        }
    }
    Guarded<int32_t> products(planes * kRows * channels), columns(lists * p.tokens + 1), list_count(lists + 1);
    Guarded<size_t> list_begin(lists + 1);
    Guarded<float> scale(groups * planes), shift(channels);
    for (size_t i = 0; i < scale.size(); ++i) scale[i] = p.random.number(0.001f, 0.1f);
    size_t used = 0;
    for (int row = 0; row < kRows; ++row) {
        for (int group = 1; group < groups; ++group) {
            const std::vector<int>& list = members[row * groups + group];
            list_begin[row * (groups - 1) + group - 1] = used;
            list_count[row * (groups - 1) + group - 1] = static_cast<int32_t>(list.size());
            for (int j : list) columns[used++] = j;
        }
    }
    std::vector<float> y(kRows * channels);
    for (int row = 0; row < kRows; ++row) {
        for (int c = 0; c < channels; ++c) {
            for (int term = 0; term < groups * planes; ++term) {
                int sum = 0;
                for (int j : members[row * groups + term / planes]) sum += p.value(term % planes, c, j);
                const float scaled = static_cast<float>(sum) * scale[term];
                y[row * channels + c] = term == 0 ? scaled : y[row * channels + c] + scaled;
                if (term >= planes) continue;
                const int dense = products[row * channels + c];
                products[(term * kRows + row) * channels + c] = term == 0 ? sum : 2 * sum - dense;
            }
        }
    }
    // Ties of the first row are +1; a pad channel never is.
    for (int c = 0; c < channels; ++c) shift[c] = c % 2 ? -y[c] : p.random.number(-1, 1);
    shift[channels - 1] = -std::numeric_limits<float>::infinity();
    const size_t words = channels / 32;
    Guarded<uint32_t> out(kRows * words);
    kernels.combine({kRows, channels, planes, groups, products.data(), p.active.data(), scale.data(), columns.data(),
                     list_begin.data(), list_count.data(), p.bytes.data(), p.tokens * p.byte_stride, p.byte_stride,
                     shift.data(), out.data(), words});
    bool right = out.clean();
    for (int row = 0; row < kRows; ++row) {
        for (int c = 0; c < channels; ++c) {
            right &= bit(out.data() + row * words, c) == (y[row * channels + c] + shift[c] >= 0);
        }
    }
    results.check(right, what + " combine, groups " + std::to_string(groups));
}

}  // namespace

void test_values(const Kernels& kernels, Results& results) {
    for (int channels : {32, 64, 96, 128}) {
        for (int tokens : {1, 15, 16, 33, 64, 198, 300}) {
            test_extremes(kernels, channels, tokens, results);
            for (int planes = 1; planes <= 3; ++planes) {
                const std::string what = std::string(kernels.name) + " values " + std::to_string(channels) + " x " +
                                         std::to_string(tokens) + " planes " + std::to_string(planes);
                Planes p(kernels, channels, tokens, planes);
                test_planes(kernels, p, what, results);
                for (int groups = 1; groups <= 3; ++groups) test_combine(kernels, p, groups, what, results);
            }
        }
    }
}

}  // namespace gsb::selftest
