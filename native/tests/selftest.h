// What the native tests share: counting of checks, random numbers, and buffers that notice a stray write.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "kernels/contract.h"
#include "machine/buffer.h"

namespace gsb::selftest {

class Results {
  public:
    // Counts a check; prints one that fails, the first twenty in all.
    void check(bool ok, const std::string& what);
    int passed() const { return passed_; }
    int failed() const { return failed_; }

  private:
    int passed_ = 0, failed_ = 0;
};

class Random {
  public:
    explicit Random(unsigned seed) : engine_(seed) {}
    int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
    float number(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine_); }
    uint32_t word() { return static_cast<uint32_t>(engine_()); }

  private:
    std::mt19937 engine_;
};

// An array one element behind a 64-byte boundary between bytes of 0xAA, which are readable, as behind a Buffer.
template <class T>
class Guarded {
  public:
    explicit Guarded(size_t size, T value = T()) : size_(size), memory_(size * sizeof(T) + 2 * kGuard) {
        if (memory_.data() == nullptr) throw std::bad_alloc();  // GCC 14 warns of a Buffer that only counts
        std::memset(memory_.data(), 0xAA, memory_.size());
        for (size_t i = 0; i < size; ++i) data()[i] = value;
    }
    explicit Guarded(const std::vector<T>& values) : Guarded(values.size()) {
        if (size_ > 0) std::memcpy(data(), values.data(), size_ * sizeof(T));
    }
    T* data() { return reinterpret_cast<T*>(memory_.data() + kFront); }
    T& operator[](size_t i) { return data()[i]; }
    size_t size() const { return size_; }
    // Is all that lies around the array as it was?
    bool clean() const {
        const size_t end = kFront + size_ * sizeof(T);
        for (size_t i = 0; i < memory_.size(); ++i) {
            if ((i < kFront || i >= end) && memory_[i] != 0xAA) return false;
        }
        return true;
    }

  private:
    static constexpr size_t kGuard = 256, kFront = 128 + sizeof(T);
    size_t size_;
    Buffer<uint8_t> memory_;
};

inline bool bit(const uint32_t* words, size_t i) {
    return words[i / 32] >> (i % 32) & 1;
}

inline bool same_bits(float a, float b) {
    return std::memcmp(&a, &b, sizeof(a)) == 0;
}

// Σ x_i in the order of docs/numerics.md, written out once more.
float lanes_sum(const std::vector<float>& x);

// Every kernel of a backend against plain loops.
void test_products(const Kernels& kernels, Results& results);
void test_numbers(const Kernels& kernels, Results& results);  // norms, patches, bytes
void test_scores(const Kernels& kernels, Results& results);
void test_values(const Kernels& kernels, Results& results);  // extremes, Value planes, combination
void test_resize(const Kernels& kernels, Results& results);

// The thread pool, and a forward pass that shares one picture among the pool's threads.
void test_threads(Results& results);
void test_workers(const std::string& path, const std::vector<uint8_t>& pixels, Results& results);

}  // namespace gsb::selftest
