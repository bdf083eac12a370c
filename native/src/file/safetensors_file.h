// A safetensors file, mapped and checked: every tensor lies inside the file and has as many bytes as its shape says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace gsb {

struct TensorView {
    std::string dtype;  // as the file writes it: "F32", "U64", ...
    std::vector<size_t> shape;
    const uint8_t* data = nullptr;  // in the mapping; may be unaligned
    size_t bytes = 0;
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

    const uint8_t* bytes_ = nullptr;
    size_t size_ = 0;
    std::map<std::string, std::string> metadata_;
    std::map<std::string, TensorView> tensors_;
};

}  // namespace gsb
