// The table of the relative attention bias (docs/packed-format.md): its size, and where each part of it begins.
#pragma once

#include <cstddef>

namespace gsb {

// A head's entries: a patch to a patch, by their offset (dy, dx); then prefix a to prefix b, prefix a to any patch, any
// patch to prefix b.
struct RelativeBias {
    int grid_height, grid_width, prefix;

    size_t rows() const { return static_cast<size_t>(2 * grid_height - 1); }
    size_t columns() const { return static_cast<size_t>(2 * grid_width - 1); }
    size_t patches() const { return rows() * columns(); }
    // Behind those of patches:
    size_t to_patches() const { return static_cast<size_t>(prefix) * prefix; }
    size_t from_patches() const { return to_patches() + prefix; }
    size_t prefixes() const { return from_patches() + prefix; }

    size_t size() const { return patches() + prefixes(); }
};

}  // namespace gsb
