// A zeroed array on a cache-line boundary. Behind its end lie 64 more bytes of its own, so that a vector kernel may
// load or store a whole register at the last element. A MemoryCount of this thread counts it before it is made.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "machine/memory.h"

namespace gsb {

constexpr size_t round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

template <class T>
class Buffer {
    static_assert(std::is_trivial_v<T>);

  public:
    Buffer() = default;
    explicit Buffer(size_t size) : size_(size) {
        const bool fits = size <= (SIZE_MAX / 2) / sizeof(T);
        const size_t bytes = fits ? round_up(size * sizeof(T), 64) + 64 : SIZE_MAX;
        if (MemoryCount* count = MemoryCount::current(); count && !count->add(bytes)) return;
        if (!fits) throw std::bad_alloc();
        data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
        if (!data_) throw std::bad_alloc();
        std::memset(static_cast<void*>(data_.get()), 0, bytes);
    }

    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    size_t size() const { return size_; }
    T& operator[](size_t i) { return data_.get()[i]; }
    const T& operator[](size_t i) const { return data_.get()[i]; }
    T* begin() { return data_.get(); }
    T* end() { return data_.get() + size_; }
    const T* begin() const { return data_.get(); }
    const T* end() const { return data_.get() + size_; }

  private:
    struct Free {
        void operator()(T* pointer) const { std::free(pointer); }
    };
    std::unique_ptr<T[], Free> data_;
    size_t size_ = 0;
};

}  // namespace gsb
