// A packed model file (docs/packed-format.md): what its metadata says, and its tensors, checked against each other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "file/architecture.h"
#include "file/decision.h"
#include "file/safetensors_file.h"

namespace gsb {

class PackedModel {
  public:
    // Reads and checks the file. Throws Error, the path first in its text. `max_memory`: see memory_limit().
    explicit PackedModel(const std::string& path, size_t max_memory = 0);
    // The same from a file's bytes; `name` stands for the path.
    PackedModel(const std::string& name, const uint8_t* bytes, size_t size, size_t max_memory = 0);

    // Stands first in messages about the file.
    const std::string& name() const { return name_; }
    // Bytes that the loaded model may take.
    size_t max_memory() const { return max_memory_; }

    const Architecture& architecture() const { return architecture_; }
    const std::vector<std::string>& class_names() const { return class_names_; }
    const Preprocessing& preprocessing() const { return preprocessing_; }
    const Decision& decision() const { return decision_; }
    // The metadata's `model`, JSON.
    const std::string& header() const { return file_.metadata().at("model"); }

    // The whole file.
    const uint8_t* file_bytes() const { return file_.bytes(); }
    size_t file_size() const { return file_.size(); }

    // A checked tensor's bytes in the file, which may be unaligned; `block` −1 stands for the tensors outside.
    const uint8_t* bytes(int block, const char* name) const;

    // A checked tensor's numbers, copied.
    template <class T>
    std::vector<T> copy(int block, const char* name) const {
        return tensor(block, name).copy<T>();
    }

  private:
    const TensorView& tensor(int block, const char* name) const;
    const TensorView& tensor(const std::string& name) const;
    void check();
    void read_metadata();
    // Version 2: compares the checksums with what the file holds.
    void check_sums() const;
    void check_sum(const char* key, uint64_t sum) const;
    void check_tensors();
    // Checks the type, shape and values of the tensor `name` against its entry in the table; `convolution` says whose
    // inputs and outputs are meant.
    void check(const std::string& name, const schema::Tensor& wanted, size_t convolution) const;

    const std::string name_;
    const size_t max_memory_;
    SafetensorsFile file_;
    Architecture architecture_;
    Preprocessing preprocessing_;
    std::vector<std::string> class_names_;
    Decision decision_;
};

}  // namespace gsb
