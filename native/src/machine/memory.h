// What a model may ask of the machine's memory: counted before it is taken.
#pragma once

#include <cstddef>
#include <string>

namespace gsb {

// Bytes that a loaded model may take, its file included: `wanted`, or where that is 0 what the environment variable
// GSB_VIT_MAX_MEMORY says, or else schema::kMaxMemory. Throws Error where the variable is no whole number above 0.
size_t memory_limit(size_t wanted);

// As a message may: "2.70 GB", "0.12 MB".
std::string shown_bytes(size_t bytes);

// How a caller allows more, for the end of a message.
extern const char* const kRaiseMemory;

// Counts the arrays (Buffer) that its thread makes while it lives. One at a time in a thread.
class MemoryCount {
  public:
    // Only counts: the arrays stay without memory and must not be used.
    MemoryCount();
    // Lets arrays be made up to `limit` bytes in all; the first beyond it throws Error.
    explicit MemoryCount(size_t limit);
    ~MemoryCount();
    MemoryCount(const MemoryCount&) = delete;
    MemoryCount& operator=(const MemoryCount&) = delete;

    size_t bytes() const { return bytes_; }

    // The one that lives in this thread, or nullptr.
    static MemoryCount* current();
    // Adds an array's bytes; → whether it is to be made.
    bool add(size_t bytes);

  private:
    const bool makes_;
    const size_t limit_;
    size_t bytes_ = 0;
};

}  // namespace gsb
