// Pictures as callers have them: grey, RGB or RGBA bytes, perhaps to be turned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "picture/resample.h"

namespace gsb {

enum class PixelFormat { grey = 1, rgb = 3, rgba = 4 };  // their bytes a pixel

struct Picture {
    const uint8_t* pixels;
    int width, height;  // as stored
    size_t stride;      // bytes from a row to the next
    PixelFormat format;
    int orientation;  // EXIF's, 1 … 8
};

constexpr size_t kMaxPixels = 64'000'000;  // of a picture, unless the caller says otherwise

// Throws Error where the picture has no or too many pixels, rows overlap or run out of memory's numbers, or the format
// or orientation is none.
void check_picture(const Picture& picture, size_t max_pixels);

// The picture upright, what is transparent laid on white. `picture` stays in use. Grey stays one channel.
RowSource rows_of(const Picture& picture);

}  // namespace gsb
