// Pixels apart, colour by colour.
#pragma once

#include <cstdint>

namespace gsb {

// Nothing overlaps and all sizes are locals, so that compilers use vector instructions.
inline void split_colours(const uint8_t* __restrict line, int width, uint8_t* __restrict red, uint8_t* __restrict green,
                          uint8_t* __restrict blue) {
    for (int column = 0; column < width; ++column) {
        red[column] = line[3 * column];
        green[column] = line[3 * column + 1];
        blue[column] = line[3 * column + 2];
    }
}

}  // namespace gsb
