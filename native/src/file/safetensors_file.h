// A safetensors file, read whole and checked: every tensor has as many bytes as its shape says, and together they fill
// the file behind its header without holes or overlaps. What becomes of the file afterwards changes nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace gsb {

struct TensorView {
    std::string dtype;  // as the file writes it: "F32", "U64", ...
    std::vector<size_t> shape;
    const uint8_t* data = nullptr;  // in the file's bytes; may be unaligned
    size_t bytes = 0;

    template <class T>
    std::vector<T> copy() const {
        std::vector<T> values(bytes / sizeof(T));
        if (!values.empty()) std::memcpy(values.data(), data, bytes);
        return values;
    }
};

class SafetensorsFile {
  public:
    // Throws Error, the path first in its text, also for a file of more than `limit` bytes.
    SafetensorsFile(const std::string& path, size_t limit);
    // The same from its bytes; `name` stands for the path.
    SafetensorsFile(const std::string& name, const uint8_t* bytes, size_t size, size_t limit);
    SafetensorsFile(const SafetensorsFile&) = delete;
    SafetensorsFile& operator=(const SafetensorsFile&) = delete;

    const uint8_t* bytes() const { return bytes_.get(); }
    size_t size() const { return size_; }

    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    const std::map<std::string, TensorView>& tensors() const { return tensors_; }
    // All bytes behind the header.
    const uint8_t* payload() const { return payload_; }
    size_t payload_size() const { return static_cast<size_t>(bytes_.get() + size_ - payload_); }
    // The names of tensors that have bytes, in the order of their places.
    std::vector<std::string> names_by_place() const;

  private:
    void read(const std::string& path, size_t limit);
    void check(const std::string& name);
    void read_header();
    void check_places() const;

    std::unique_ptr<uint8_t[]> bytes_;
    size_t size_ = 0;
    const uint8_t* payload_ = nullptr;
    std::map<std::string, std::string> metadata_;
    std::map<std::string, TensorView> tensors_;
};

}  // namespace gsb
