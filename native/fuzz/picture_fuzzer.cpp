// libFuzzer harness: a picture's bytes and its claims → the pixels a model reads, on every backend, all compared with
// the portable one.
//
// The first bytes are what a caller says of the picture and wants of it, in the order of Claims; the rest are the
// picture. It lies in memory of exactly its size, so that a sanitizer sees what is read outside. Aborts where backends
// disagree, and where a message is no single line of text. CONTRIBUTING.md says how to build and run it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "error.h"
#include "kernels/dispatch.h"
#include "picture/prepare.h"

namespace {

using Bytes = std::vector<uint8_t>;

struct Claims {
    int32_t width, height;
    uint64_t stride;
    double crop_ratio;
    float left, top, right, bottom;
    uint32_t max_pixels;
    uint16_t to_height, to_width;
    uint8_t format, orientation, filter, kind;
};

enum Kind { crop, squash, box };

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::abort();
}

std::string checked(const gsb::Error& error) {
    const std::string text = error.what();
    if (text.empty() || text.size() > 1000) fail("a message of " + std::to_string(text.size()) + " bytes");
    for (const char c : text) {
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) fail("a control character in the message: " + text);
    }
    return text;
}

// A number: three times in four below `most`, so that most pictures are quick to resize.
template <class T>
T often_small(T value, T most) {
    return value >= 0 && value % 4 != 0 ? value / 4 % most : value;
}

float within(float place, int side) {
    return std::isfinite(place) ? std::clamp(std::fabs(place), 0.0f, static_cast<float>(side)) : 0.0f;
}

struct Outcome {
    std::string refusal;
    Bytes pixels;

    bool operator==(const Outcome& other) const { return refusal == other.refusal && pixels == other.pixels; }
};

Outcome run(const Claims& c, const gsb::Picture& picture, int height, int width, const gsb::Kernels& kernels) {
    Outcome outcome;
    try {
        const auto filter = static_cast<gsb::Filter>(c.filter % 5);
        outcome.pixels.assign(3 * static_cast<size_t>(height) * width, 77);
        if (c.kind % 3 != Kind::box) {
            const double ratio = c.crop_ratio > 0 && c.crop_ratio <= 1 ? c.crop_ratio : 1;
            gsb::prepare({height, width, c.kind % 3 == Kind::crop, ratio, filter}, picture, kernels, c.max_pixels,
                         outcome.pixels.data());
            return outcome;
        }
        gsb::check_picture(picture, c.max_pixels);
        const gsb::RowSource source = gsb::rows_of(picture);
        const auto [left, right] = std::minmax({within(c.left, source.width), within(c.right, source.width)});
        const auto [top, bottom] = std::minmax({within(c.top, source.height), within(c.bottom, source.height)});
        gsb::resample(source, {left, top, right, bottom}, width, height, filter, kernels, c.max_pixels,
                      outcome.pixels.data());
    } catch (const gsb::Error& error) {
        outcome = {checked(error), {}};
    }
    return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Claims c;
    if (size < sizeof(c)) return 0;
    std::memcpy(&c, data, sizeof(c));
    data += sizeof(c);
    size -= sizeof(c);
    gsb::Picture picture{nullptr,
                         often_small(c.width, 40),
                         often_small(c.height, 40),
                         0,
                         static_cast<gsb::PixelFormat>(c.format < 250 ? "\1\3\4"[c.format % 3] : c.format),
                         c.orientation < 250 ? 1 + c.orientation % 8 : c.orientation};
    const uint64_t row = static_cast<uint64_t>(std::max(picture.width, 0)) * static_cast<uint64_t>(picture.format);
    picture.stride = c.stride % 4 == 0 ? c.stride : row + c.stride / 4 % 70;
    c.max_pixels = c.max_pixels % 4 == 0 ? c.max_pixels % (1 << 15) : 1 << 12;
    static const uint8_t kNothing = 0;
    picture.pixels = &kNothing;
    try {
        gsb::check_picture(picture, c.max_pixels);
    } catch (const gsb::Error& error) {
        checked(error);
        return 0;
    }
    const uint64_t bytes = (static_cast<uint64_t>(picture.height) - 1) * picture.stride + row;
    if (bytes > 100'000) return 0;
    const std::unique_ptr<uint8_t[]> pixels(new uint8_t[bytes]);
    for (uint64_t i = 0; i < bytes; ++i) pixels[i] = size == 0 ? 255 : data[i % size] ^ static_cast<uint8_t>(i / size);
    picture.pixels = pixels.get();
    const int height = 1 + c.to_height % 35, width = 1 + c.to_width % 35;
    const Outcome expected = run(c, picture, height, width, gsb::kPortableKernels);
    for (const gsb::Kernels* kernels : gsb::available_kernels()) {
        if (kernels == &gsb::kPortableKernels) continue;
        if (!(run(c, picture, height, width, *kernels) == expected)) fail(std::string(kernels->name) + " differs");
    }
    return 0;
}
