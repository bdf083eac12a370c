#include "machine/memory.h"

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "error.h"
#include "file/schema.h"

namespace gsb {

namespace {

constexpr const char* kVariable = "GSB_VIT_MAX_MEMORY";

MemoryCount*& of_this_thread() {
    static thread_local MemoryCount* count = nullptr;
    return count;
}

}  // namespace

const char* const kRaiseMemory = "raise max_memory (--max-gigabytes, GSB_VIT_MAX_MEMORY)";

size_t memory_limit(size_t wanted) {
    const char* text = wanted == 0 ? std::getenv(kVariable) : nullptr;
    if (!text) return wanted == 0 ? schema::kMaxMemory : wanted;
    const bool digits = *text != '\0' && std::strspn(text, "0123456789") == std::strlen(text);
    errno = 0;
    const unsigned long long value = digits ? std::strtoull(text, nullptr, 10) : 0;
    if (value == 0 || errno == ERANGE || value > SIZE_MAX) {
        throw Error(std::string(kVariable) + " must be a whole number of bytes, at least 1");
    }
    return static_cast<size_t>(value);
}

std::string shown_bytes(size_t bytes) {
    const bool giga = bytes >= 100'000'000;
    const uint64_t step = giga ? 10'000'000 : 10'000, hundredths = bytes / step + (bytes % step >= step / 2);
    std::string text = std::to_string(hundredths / 100) + ".";
    text += static_cast<char>('0' + hundredths / 10 % 10);
    text += static_cast<char>('0' + hundredths % 10);
    return text + (giga ? " GB" : " MB");
}

MemoryCount::MemoryCount() : makes_(false), limit_(SIZE_MAX) {
    of_this_thread() = this;
}

MemoryCount::MemoryCount(size_t limit) : makes_(true), limit_(limit) {
    of_this_thread() = this;
}

MemoryCount::~MemoryCount() {
    of_this_thread() = nullptr;
}

MemoryCount* MemoryCount::current() {
    return of_this_thread();
}

bool MemoryCount::add(size_t bytes) {
    if (bytes > limit_ - bytes_) {
        if (makes_) throw Error("they take more than the " + shown_bytes(limit_) + " that are left");
        bytes_ = SIZE_MAX;
        return false;
    }
    bytes_ += bytes;
    return makes_;
}

}  // namespace gsb
