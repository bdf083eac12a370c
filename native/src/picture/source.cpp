#include "picture/source.h"

#include <cstdint>
#include <cstring>
#include <string>

#include "error.h"

namespace gsb {

namespace {

// Where the pixels of the upright picture are: pixel (x, y) at origin + x·across + y·down.
struct Upright {
    const uint8_t* origin;
    ptrdiff_t across, down;
    int width, height;
};

Upright upright(const Picture& p) {
    const auto pixel = static_cast<ptrdiff_t>(p.format), row = static_cast<ptrdiff_t>(p.stride);
    const ptrdiff_t right = (p.width - 1) * pixel, bottom = (p.height - 1) * row;
    switch (p.orientation) {
        case 2:
            return {p.pixels + right, -pixel, row, p.width, p.height};
        case 3:
            return {p.pixels + right + bottom, -pixel, -row, p.width, p.height};
        case 4:
            return {p.pixels + bottom, pixel, -row, p.width, p.height};
        case 5:
            return {p.pixels, row, pixel, p.height, p.width};
        case 6:
            return {p.pixels + bottom, -row, pixel, p.height, p.width};
        case 7:
            return {p.pixels + right + bottom, -row, -pixel, p.height, p.width};
        case 8:
            return {p.pixels + right, row, -pixel, p.height, p.width};
        default:
            return {p.pixels, pixel, row, p.width, p.height};
    }
}

// value·opacity + 255·(1 − opacity), rounded as Pillow does.
uint8_t on_white(int value, int opacity) {
    const int sum = value * opacity + 255 * (255 - opacity) + 128;
    return static_cast<uint8_t>(((sum >> 8) + sum) >> 8);
}

bool is_opaque(const uint8_t* rgba, ptrdiff_t across, int width) {
    uint8_t all = 255;
    for (int x = 0; x < width; ++x) all &= rgba[x * across + 3];
    return all == 255;
}

// Four bytes at a time: the fourth is overwritten by the next pixel.
void gather_opaque(const uint8_t* rgba, ptrdiff_t across, int width, uint8_t* to) {
    for (int x = 0; x + 1 < width; ++x) std::memcpy(to + 3 * static_cast<ptrdiff_t>(x), rgba + x * across, 4);
    std::memcpy(to + 3 * static_cast<ptrdiff_t>(width - 1), rgba + (width - 1) * across, 3);
}

template <PixelFormat format>
void gather(const uint8_t* from, ptrdiff_t across, int width, uint8_t* to) {
    if constexpr (format == PixelFormat::rgba) {
        if (is_opaque(from, across, width)) return gather_opaque(from, across, width, to);
    }
    for (int x = 0; x < width; ++x) {
        const uint8_t* pixel = from + x * across;
        if constexpr (format == PixelFormat::grey) {
            *to++ = *pixel;
        } else {
            for (int c = 0; c < 3; ++c) {
                *to++ = format == PixelFormat::rgb || pixel[3] == 255 ? pixel[c] : on_white(pixel[c], pixel[3]);
            }
        }
    }
}

const uint8_t* read_rows(const Upright& u, PixelFormat format, int first, int count, uint8_t* buffer, size_t& stride) {
    const auto pixel = static_cast<ptrdiff_t>(format);
    const uint8_t* from = u.origin + first * u.down;
    if (format != PixelFormat::rgba && u.across == pixel && u.down > 0) {
        stride = static_cast<size_t>(u.down);
        return from;
    }
    const auto run = format == PixelFormat::grey  ? gather<PixelFormat::grey>
                     : format == PixelFormat::rgb ? gather<PixelFormat::rgb>
                                                  : gather<PixelFormat::rgba>;
    stride = static_cast<size_t>(u.width) * (format == PixelFormat::grey ? 1 : 3);
    for (int i = 0; i < count; ++i) run(from + i * u.down, u.across, u.width, buffer + i * stride);
    return buffer;
}

}  // namespace

void check_picture(const Picture& p, size_t max_pixels) {
    const int format = static_cast<int>(p.format);
    if (format != 1 && format != 3 && format != 4) {
        throw Error("pixel format " + std::to_string(format) + " is unknown; use 1 (grey), 3 (RGB) or 4 (RGBA)");
    }
    if (p.orientation < 1 || p.orientation > 8) {
        throw Error("orientation " + std::to_string(p.orientation) + " is unknown; EXIF has 1 to 8");
    }
    const std::string size = std::to_string(p.width) + " x " + std::to_string(p.height) + " pixels";
    if (p.width < 1 || p.height < 1) throw Error(size + " are no picture");
    const size_t width = static_cast<size_t>(p.width), height = static_cast<size_t>(p.height);
    if (width > max_pixels / height) {
        throw Error(size + " are more than " + std::to_string(max_pixels) +
                    "; give a smaller picture, or raise the limit");
    }
    const size_t row = width * static_cast<size_t>(format), all = PTRDIFF_MAX;
    if (p.stride < row || row > all || (height > 1 && p.stride > (all - row) / (height - 1))) {
        throw Error("stride " + std::to_string(p.stride) + " does not fit rows of " + std::to_string(row) + " bytes");
    }
    if (!p.pixels) throw Error("no pixels given");
}

RowSource rows_of(const Picture& p) {
    const Upright u = upright(p);
    const PixelFormat format = p.format;
    const int channels = format == PixelFormat::grey ? 1 : 3;
    return {u.width, u.height, channels, [u, format](int first, int count, uint8_t* buffer, size_t& stride) {
                return read_rows(u, format, first, count, buffer, stride);
            }};
}

}  // namespace gsb
