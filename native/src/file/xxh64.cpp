#include "file/xxh64.h"

#include <cstring>

namespace gsb {

namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9,
                   kPrime4 = 0x85EBCA77C2B2AE63, kPrime5 = 0x27D4EB2F165667C5;

uint64_t rotated(uint64_t value, int bits) {
    return value << bits | value >> (64 - bits);
}

template <class Word>
uint64_t word(const uint8_t* bytes) {
    Word value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

uint64_t round_of(uint64_t sum, uint64_t value) {
    return rotated(sum + value * kPrime2, 31) * kPrime1;
}

uint64_t sum_of_stripes(const uint8_t*& bytes, size_t& left) {
    uint64_t lanes[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
    for (; left >= 32; bytes += 32, left -= 32) {
        for (int i = 0; i < 4; ++i) lanes[i] = round_of(lanes[i], word<uint64_t>(bytes + 8 * i));
    }
    uint64_t sum = rotated(lanes[0], 1) + rotated(lanes[1], 7) + rotated(lanes[2], 12) + rotated(lanes[3], 18);
    for (const uint64_t lane : lanes) sum = (sum ^ round_of(0, lane)) * kPrime1 + kPrime4;
    return sum;
}

}  // namespace

uint64_t xxh64(const uint8_t* bytes, size_t size) {
    size_t left = size;
    uint64_t sum = size >= 32 ? sum_of_stripes(bytes, left) : kPrime5;
    sum += size;
    for (; left >= 8; bytes += 8, left -= 8) {
        sum = rotated(sum ^ round_of(0, word<uint64_t>(bytes)), 27) * kPrime1 + kPrime4;
    }
    if (left >= 4) {
        sum = rotated(sum ^ word<uint32_t>(bytes) * kPrime1, 23) * kPrime2 + kPrime3;
        bytes += 4;
        left -= 4;
    }
    for (; left > 0; ++bytes, --left) sum = rotated(sum ^ *bytes * kPrime5, 11) * kPrime1;
    sum = (sum ^ sum >> 33) * kPrime2;
    sum = (sum ^ sum >> 29) * kPrime3;
    return sum ^ sum >> 32;
}

}  // namespace gsb
