// XXH64 (xxHash specification 0.2.0) with seed 0: a checksum that finds damage, not malice. docs/packed-format.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gsb {

// bytes may be unaligned, and null where size is 0.
uint64_t xxh64(const uint8_t* bytes, size_t size);

}  // namespace gsb
