// Resampling against plain loops, with nothing read or written around the buffers.
#include <algorithm>

#include "kernels/dispatch.h"
#include "picture/resample.h"
#include "picture/source.h"
#include "selftest.h"

namespace gsb::selftest {

namespace {

uint8_t rounded(int64_t sum) {
    return static_cast<uint8_t>(std::clamp<int64_t>((sum + (1 << (kWeightBits - 1))) >> kWeightBits, 0, 255));
}

struct Case {
    int from, to, channels, rows;
    Filter filter;
};

std::string name_of(const Kernels& kernels, const char* what, const Case& c) {
    return std::string(kernels.name) + " " + what + " " + std::to_string(c.from) + " to " + std::to_string(c.to) +
           ", " + std::to_string(c.rows) + " rows of " + std::to_string(c.channels);
}

// Pixels that ring: black and white.
Guarded<uint8_t> noise(size_t size, Random& random) {
    Guarded<uint8_t> pixels(size);
    for (size_t i = 0; i < size; ++i) pixels[i] = random.word() % 2 ? 255 : 0;
    return pixels;
}

void test_rows(const Kernels& kernels, const Case& c, Results& results) {
    Random random(static_cast<unsigned>(c.from * c.to + c.rows));
    const size_t in_stride = c.from * c.channels + 5, out_stride = c.to * c.channels + 3;
    Guarded<uint8_t> in = noise((c.rows - 1) * in_stride + c.from * c.channels, random);
    Guarded<uint8_t> out((c.rows - 1) * out_stride + c.to * c.channels, 1);
    Axis axis(c.from, 0, static_cast<float>(c.from), c.to, c.filter);
    const Taps taps = axis.taps(0, c.to, 0, kernels.tap_group, kernels.split_weights);
    kernels.resize_rows({in.data(), in_stride, c.rows, c.channels, taps, out.data(), out_stride});
    bool right = out.clean();
    for (int row = 0; row < c.rows; ++row) {
        for (int o = 0; o < c.to; ++o) {
            for (int channel = 0; channel < c.channels; ++channel) {
                int64_t sum = 0;
                for (int i = 0; i < taps.taps[o]; ++i) {
                    sum += int64_t{taps.weights[o * taps.stride + i]} *
                           in[row * in_stride + (taps.first[o] + i) * c.channels + channel];
                }
                right &= out[row * out_stride + o * c.channels + channel] == rounded(sum);
            }
        }
        for (size_t i = c.to * c.channels; row + 1 < c.rows && i < out_stride; ++i)
            right &= out[row * out_stride + i] == 1;
    }
    results.check(right, name_of(kernels, "resize_rows", c));
}

void test_columns(const Kernels& kernels, const Case& c, Results& results) {
    Random random(static_cast<unsigned>(c.from * c.to + c.rows));
    const int bytes = c.rows * c.channels;
    Guarded<uint8_t> in = noise(static_cast<size_t>(c.from) * bytes, random);
    Guarded<uint8_t> out(bytes);
    Axis axis(c.from, 0, static_cast<float>(c.from), c.to, c.filter);
    const Taps taps = axis.taps(0, c.to, 0, 1, kernels.split_weights);
    bool right = true;
    for (int o = 0; o < c.to; ++o) {
        kernels.resize_columns({in.data(), static_cast<size_t>(bytes), bytes, taps, o, out.data()});
        for (int i = 0; i < bytes; ++i) {
            int64_t sum = 0;
            for (int tap = 0; tap < taps.taps[o]; ++tap) {
                sum += int64_t{taps.weights[o * taps.stride + tap]} * in[size_t(taps.first[o] + tap) * bytes + i];
            }
            right &= out[i] == rounded(sum);
        }
    }
    results.check(right && out.clean(), name_of(kernels, "resize_columns", c));
}

// A picture in memory of its own size, every format and orientation: the same as the portable backend.
void test_pictures(const Kernels& kernels, Results& results) {
    Random random(9);
    for (int orientation = 1; orientation <= 8; ++orientation) {
        for (const PixelFormat format : {PixelFormat::grey, PixelFormat::rgb, PixelFormat::rgba}) {
            const int channels = static_cast<int>(format), width = random.integer(1, 60),
                      height = random.integer(1, 3) == 1 ? 1 : random.integer(1, 60);
            // A picture of one row has no next one, however far it would be.
            const size_t stride = height == 1 ? SIZE_MAX / 4 : width * channels + random.integer(0, 7);
            Guarded<uint8_t> pixels = noise((height - 1) * stride + width * channels, random);
            const Picture picture{pixels.data(), width, height, stride, format, orientation};
            const RowSource source = rows_of(picture);
            const Box box{0, 0, static_cast<float>(source.width), static_cast<float>(source.height)};
            const size_t size = size_t{19} * 23 * source.channels;
            Guarded<uint8_t> out(size), expected(size);
            resample(source, box, 19, 23, Filter::bicubic, kernels, kMaxPixels, out.data());
            resample(source, box, 19, 23, Filter::bicubic, *available_kernels().back(), kMaxPixels, expected.data());
            results.check(out.clean() && std::memcmp(out.data(), expected.data(), size) == 0,
                          std::string(kernels.name) + " picture, orientation " + std::to_string(orientation));
        }
    }
}

}  // namespace

void test_resize(const Kernels& kernels, Results& results) {
    for (const int channels : {1, 3}) {
        for (const int rows : {1, 2, 3, 4, 7, 21, 64}) {
            for (const Filter filter : {Filter::box, Filter::bilinear, Filter::bicubic, Filter::lanczos}) {
                for (const auto& [from, to] : {std::pair{1, 5}, {2, 1}, {3, 3}, {5, 9}, {31, 7}, {64, 64}, {200, 33}}) {
                    const Case one{from, to, channels, rows, filter};
                    test_rows(kernels, one, results);
                    test_columns(kernels, one, results);
                }
            }
        }
    }
    test_pictures(kernels, results);
}

}  // namespace gsb::selftest
