// A safetensors file, mapped and checked: every tensor has as many bytes as its shape says, and together they fill the
// file behind its header without holes or overlaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace gsb {

struct TensorView {
    std::string dtype;  // as the file writes it: "F32", "U64", ...
    std::vector<size_t> shape;
    const uint8_t* data = nullptr;  // in the mapping; may be unaligned
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
    // Throws Error, the path first in its text.
    explicit SafetensorsFile(const std::string& path);
    ~SafetensorsFile();
    SafetensorsFile(const SafetensorsFile&) = delete;
    SafetensorsFile& operator=(const SafetensorsFile&) = delete;

    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    const std::map<std::string, TensorView>& tensors() const { return tensors_; }

  private:
    void map(const std::string& path);
    void read_header();
    void check_places(const uint8_t* data, size_t bytes) const;

    const uint8_t* bytes_ = nullptr;
    size_t size_ = 0;
    std::map<std::string, std::string> metadata_;
    std::map<std::string, TensorView> tensors_;
};

}  // namespace gsb
