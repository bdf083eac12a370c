// A packed model file (docs/packed-format.md): what its metadata says, and its tensors, checked against each other.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "file/architecture.h"
#include "file/safetensors_file.h"

namespace gsb {

class PackedModel {
  public:
    // Maps and checks the file. Throws Error, the path first in its text.
    explicit PackedModel(const std::string& path);

    const Architecture& architecture() const { return architecture_; }
    const std::vector<std::string>& class_names() const { return class_names_; }
    // The metadata's `model`, JSON.
    const std::string& header() const { return file_.metadata().at("model"); }

    // A checked tensor's bytes in the mapping, which may be unaligned; `block` −1 stands for the tensors outside.
    const uint8_t* bytes(int block, const char* name) const;

    // A checked tensor's numbers, copied.
    template <class T>
    std::vector<T> copy(int block, const char* name) const {
        const TensorView& view = tensor(block, name);
        std::vector<T> values(view.bytes / sizeof(T));
        if (!values.empty()) std::memcpy(values.data(), view.data, view.bytes);
        return values;
    }

  private:
    const TensorView& tensor(int block, const char* name) const;
    void read_metadata();
    void check_outer();
    void check_block(int block);
    void expect(int block, const char* name, const char* dtype, std::initializer_list<size_t> shape);
    void check_pad_bits(int block, const char* name, size_t rows, size_t depth) const;
    void check_range(int block, const char* name, int low, int high) const;
    void check_positive(int block, const char* name) const;
    void check_exp_table(int block) const;

    SafetensorsFile file_;
    Architecture architecture_;
    std::vector<std::string> class_names_;
    size_t expected_ = 0;  // tensors asked for so far: any other in the file is foreign
};

}  // namespace gsb
