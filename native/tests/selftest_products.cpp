// Products, norms, patch embedding and heads against plain loops.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "selftest.h"
#include "weights/layout.h"
#include "weights/norm_signs.h"

namespace gsb::selftest {

namespace {

// Operands of a product with pad bits of zero, and how many bits differ.
struct Case {
    Case(const Kernels& kernels, int depth_bits, int rows, int channel_count)
        : what(std::string(kernels.name) + " depth " + std::to_string(depth_bits) + " rows " + std::to_string(rows) +
               " channels " + std::to_string(channel_count)),
          count(rows),
          channels(channel_count),
          depth((depth_bits + 31) / 32),
          stride(round_up(depth, 2) + 2),
          random(static_cast<unsigned>(depth_bits * 1000 + rows * 100 + channel_count)),
          bits(rows * stride),
          operand(rows * stride),
          weights(weight_words(kernels.weights, channel_count, depth)),
          differing(static_cast<size_t>(rows) * channel_count) {
        std::vector<uint32_t> matrix(channels * stride);
        for (int row = 0; row < rows; ++row) fill(bits.data() + row * stride, depth_bits, row == 0 ? 1 : 2);
        for (int c = 0; c < channels; ++c) fill(matrix.data() + c * stride, depth_bits, c == 1 ? 1 : c == 2 ? 0 : 2);
        for (int row = 0; row < rows; ++row) {
            for (int c = 0; c < channels; ++c) {
                for (int i = 0; i < depth_bits; ++i) {
                    differing[row * channels + c] +=
                        bit(bits.data() + row * stride, i) != bit(matrix.data() + c * stride, i);
                }
            }
        }
        pack_weights(kernels.weights, matrix.data(), stride, channels, depth, weights.data());
        if (kernels.prepare_rows) {
            kernels.prepare_rows(bits.data(), stride, rows, depth, operand.data(), stride);
        } else {
            std::copy_n(bits.data(), bits.size(), operand.data());
        }
        product = {operand.data(), stride, rows, weights.data(), depth, channels, kSigns};
    }
    int at(int row, int c) const { return differing[row * channels + c]; }

    std::string what;
    int count, channels, depth;
    size_t stride;
    Random random;
    Guarded<uint32_t> bits, operand, weights;
    std::vector<int> differing;
    Product product;

  private:
    // kind 0: zeros, 1: ones, 2: random
    void fill(uint32_t* row, int depth_bits, int kind) {
        for (int i = 0; i < depth_bits; ++i) {
            row[i / 32] |= static_cast<uint32_t>(kind == 2 ? random.word() & 1 : kind) << (i % 32);
        }
    }
};

void test_bits(const Kernels& kernels, Case& c, Results& results) {
    Guarded<int32_t> threshold(c.channels), low(c.channels);
    Guarded<uint32_t> range(c.channels);
    for (int i = 0; i < c.channels; ++i) {
        // Ties with the first row, never, anything.
        threshold[i] = i % 3 == 0 ? c.at(0, i) : i % 5 == 0 ? -1 : c.random.integer(0, 32 * c.depth);
        low[i] = i % 4 == 0 ? c.at(0, i) : i % 7 == 0 ? -1 : c.random.integer(0, 32 * c.depth);
        range[i] = i % 4 == 0 ? 0 : i % 11 == 0 ? UINT32_MAX : static_cast<uint32_t>(c.random.integer(0, 40));
    }
    const size_t words = round_up((c.channels + 31) / 32, 2);
    Guarded<uint32_t> below(c.count * words), outside(c.count * words);
    kernels.product_threshold(c.product, threshold.data(), below.data(), words);
    kernels.product_interval(c.product, low.data(), range.data(), outside.data(), words);
    bool right[2] = {below.clean(), outside.clean()};
    for (int row = 0; row < c.count; ++row) {
        for (int i = 0; i < static_cast<int>(words) * 32; ++i) {
            const bool real = i < c.channels;
            const int64_t distance = real ? static_cast<int64_t>(c.at(row, i)) - low[i] : 0;
            const bool inside = real && distance >= 0 && distance <= static_cast<int64_t>(range[i]);
            right[0] &= bit(below.data() + row * words, i) == (real && c.at(row, i) <= threshold[i]);
            right[1] &= bit(outside.data() + row * words, i) == (real && !(inside || range[i] == UINT32_MAX));
        }
    }
    results.check(right[0], c.what + " product_threshold");
    results.check(right[1], c.what + " product_interval");
}

void test_integers(const Kernels& kernels, Case& c, Results& results) {
    Guarded<int32_t> base(c.channels), integers(c.count * c.channels);
    Guarded<float> scale(c.channels), bias(c.channels), stream(c.count * c.channels);
    for (int i = 0; i < c.channels; ++i) {
        base[i] = c.random.integer(-5000, 5000);
        scale[i] = c.random.number(-1, 1);
        bias[i] = c.random.number(-1, 1);
    }
    kernels.product_integers(c.product, base.data(), integers.data(), c.channels);
    bool right = integers.clean();
    for (int row = 0; row < c.count; ++row) {
        for (int i = 0; i < c.channels; ++i) right &= integers[row * c.channels + i] == base[i] - c.at(row, i);
    }
    results.check(right, c.what + " product_integers");
    for (int shift = 0; shift <= 1; ++shift) {
        c.product.inputs = shift ? kSigns : kSteps;
        std::vector<float> expected(stream.size());
        for (size_t at = 0; at < stream.size(); ++at) {
            const int i = static_cast<int>(at) % c.channels, row = static_cast<int>(at) / c.channels;
            stream[at] = c.random.number(-3, 3);
            const float scaled = static_cast<float>(base[i] - c.at(row, i) * (1 << shift)) * scale[i];
            const float change = scaled + bias[i];
            expected[at] = stream[at] + change;
        }
        kernels.product_residual(c.product, base.data(), scale.data(), bias.data(), stream.data(), c.channels);
        const bool equal = std::memcmp(expected.data(), stream.data(), stream.size() * sizeof(float)) == 0;
        results.check(equal && stream.clean(), c.what + " product_residual shift " + std::to_string(shift));
    }
}

void test_counts(const Kernels& kernels, Case& c, Results& results) {
    const size_t group_stride = static_cast<size_t>(c.count) * kCountGroup;
    Guarded<uint16_t> counts(c.channels / kCountGroup * group_stride);
    kernels.product_count(c.product, counts.data(), group_stride);
    bool right = counts.clean();
    for (int row = 0; row < c.count; ++row) {
        for (int i = 0; i < c.channels; ++i) {
            right &= counts[i / kCountGroup * group_stride + row * kCountGroup + i % kCountGroup] == c.at(row, i);
        }
    }
    results.check(right, c.what + " product_count");
}

void test_norm(const Kernels& kernels, int width, Results& results) {
    constexpr int kRows = 13;  // reaches every group of rows that a backend works on together
    const size_t padded = round_up(width, 16), words = round_up(round_up(width, 32) / 32, 2);
    const float share = 1.0f / static_cast<float>(width), eps = 1e-12f;
    Random random(static_cast<unsigned>(width));
    Guarded<float> x(kRows * padded);
    std::vector<float> weight(width), bias(width);
    for (int c = 0; c < width; ++c) {
        weight[c] = c % 3 == 0 ? 0.0f : random.number(-2, 2);
        bias[c] = c % 6 == 0 ? -0.0f : random.number(-1, 1);
        // Row 1 has no spread: its bits are those of the bias.
        for (int row = 0; row < kRows; ++row) x[row * padded + c] = row == 1 ? 0.5f : random.number(-2, 3);
    }
    const NormSigns signs = norm_signs(weight, bias);
    Guarded<float> threshold(std::vector<float>(signs.threshold.begin(), signs.threshold.end()));
    Guarded<uint32_t> flip(std::vector<uint32_t>(signs.flip.begin(), signs.flip.end())), out(kRows * words);
    const Norm norm{x.data(), padded, kRows, width, threshold.data(), flip.data(), eps};
    bool right = true;
    for (int row = 0; row < kRows; ++row) {
        float& number = x[row * padded + row % width];
        const float before = std::exchange(number, std::numeric_limits<float>::infinity());
        right &= !kernels.norm_bits(norm, out.data(), words);
        number = before;
    }
    right &= kernels.norm_bits(norm, out.data(), words) && out.clean();
    for (int row = 0; row < kRows; ++row) {
        std::vector<float> e(x.data() + row * padded, x.data() + row * padded + width), squares(width);
        const float mean = lanes_sum(e) * share;
        for (int c = 0; c < width; ++c) {
            e[c] = e[c] - mean;
            squares[c] = e[c] * e[c];
        }
        const float factor = 1.0f / std::sqrt(lanes_sum(squares) * share + eps);
        for (size_t c = 0; c < words * 32; ++c) {
            bool positive = false;
            if (c < static_cast<size_t>(width)) {
                const float scaled = e[c] * factor * weight[c];
                positive = scaled + bias[c] >= 0;
            }
            right &= bit(out.data() + row * words, c) == positive;
        }
    }
    results.check(right, std::string(kernels.name) + " norm_bits width " + std::to_string(width));
}

void test_patches(const Kernels& kernels, int width, int taps, int count, Results& results) {
    const size_t area = round_up(taps, 4), channels = round_up(width, 16);
    Random random(static_cast<unsigned>(width + taps));
    std::vector<uint8_t> weights(static_cast<size_t>(width) * 3 * taps);
    for (uint8_t& w : weights) w = static_cast<uint8_t>(random.word());
    // The largest sums there are.
    std::fill_n(weights.begin(), 3 * taps, uint8_t{127});
    std::fill_n(weights.end() - 3 * taps, 3 * taps, uint8_t{128});
    Guarded<uint8_t> pixels(count * 3 * area);
    for (size_t i = 0; i < pixels.size(); ++i) {
        if (i % area < static_cast<size_t>(taps)) pixels[i] = i < 3 * area ? 255 : static_cast<uint8_t>(random.word());
    }
    Guarded<float> scale(3 * channels), position(count * channels), x(count * channels);
    for (size_t i = 0; i < scale.size(); ++i) scale[i] = random.number(-1, 1);
    for (size_t i = 0; i < position.size(); ++i) position[i] = random.number(-1, 1);
    const Buffer<uint8_t> packed = pack_patch_weights(kernels.patches, weights.data(), width, taps);
    kernels.patches_embed({pixels.data(), packed.data(), count, static_cast<int>(area), static_cast<int>(channels),
                           scale.data(), position.data(), x.data(), channels});
    bool right = x.clean();
    for (int n = 0; n < count; ++n) {
        for (int o = 0; o < width; ++o) {
            float part[3];
            for (int colour = 0; colour < 3; ++colour) {
                int32_t sum = 0;
                for (int k = 0; k < taps; ++k) {
                    sum +=
                        static_cast<int8_t>(weights[(o * 3 + colour) * taps + k]) * pixels[(n * 3 + colour) * area + k];
                }
                part[colour] = static_cast<float>(sum) * scale[colour * channels + o];
            }
            const float sum = (part[0] + part[1]) + part[2];
            right &= same_bits(x[n * channels + o], sum + position[n * channels + o]);
        }
    }
    results.check(right, std::string(kernels.name) + " patches_embed taps " + std::to_string(taps));
}

void test_dot(const Kernels& kernels, int depth, Results& results) {
    constexpr int kRows = 11;
    Random random(static_cast<unsigned>(depth));
    Guarded<int8_t> x(depth), weights(kRows * depth);
    for (int k = 0; k < depth; ++k) x[k] = k % 2 ? -128 : static_cast<int8_t>(random.word());
    for (int i = 0; i < kRows * depth; ++i) weights[i] = i < depth ? -128 : static_cast<int8_t>(random.word());
    Guarded<int32_t> out(kRows);
    kernels.dot_bytes(x.data(), weights.data(), depth, kRows, out.data());
    bool right = out.clean();
    for (int row = 0; row < kRows; ++row) {
        int32_t sum = 0;
        for (int k = 0; k < depth; ++k) sum += x[k] * weights[row * depth + k];
        right &= out[row] == sum;
    }
    results.check(right, std::string(kernels.name) + " dot_bytes depth " + std::to_string(depth));
}

}  // namespace

void test_products(const Kernels& kernels, Results& results) {
    int turn = 0;
    for (int depth : {1,   31,  33,  63,  64,  65,  96,  127, 128, 160, 192,  198, 256,
                      288, 320, 352, 384, 385, 416, 448, 511, 512, 513, 1536, 3072}) {
        for (int rows : {1, 2, 3, 4, 5, 7, 8, 9, 15}) {
            const int channels[] = {32, 96, 64, 160, 16, 48, 80};
            Case c(kernels, depth, rows, channels[turn++ % 7]);
            test_bits(kernels, c, results);
            test_integers(kernels, c, results);
            if (c.channels % kCountGroup == 0) test_counts(kernels, c, results);
            results.check(c.operand.clean() && c.weights.clean(), c.what + " operands");
        }
    }
}

void test_numbers(const Kernels& kernels, Results& results) {
    for (int width : {1, 15, 16, 17, 31, 48, 100, 384, 391}) test_norm(kernels, width, results);
    test_patches(kernels, 64, 256, 9, results);
    test_patches(kernels, 16, 1, 1, results);
    test_patches(kernels, 100, 35, 6, results);
    test_patches(kernels, 48, 1024, 4, results);
    for (int depth : {1, 15, 16, 31, 33, 64, 100, 384, 1024}) test_dot(kernels, depth, results);
}

}  // namespace gsb::selftest
