// A packed model file (docs/packed-format.md): what its metadata says, and its tensors, checked against each other.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "file/safetensors_file.h"

namespace gsb {

struct Architecture {
    std::string name;
    int image_height, image_width, patch_height, patch_width;
    int embed_dim, depth, num_heads, mlp_hidden, prefix_tokens, num_classes;
    float layer_norm_eps;
    std::vector<float> attention_thresholds, value_thresholds;
    bool fixed_thresholds;
    enum class Bias { none, relative, full } attention_bias;

    int grid_height() const { return image_height / patch_height; }
    int grid_width() const { return image_width / patch_width; }
    int num_patches() const { return grid_height() * grid_width(); }
    int num_tokens() const { return prefix_tokens + num_patches(); }
    int head_dim() const { return embed_dim / num_heads; }
    int attention_groups() const { return static_cast<int>(attention_thresholds.size()) + 1; }
    int value_groups() const { return static_cast<int>(value_thresholds.size()) + 1; }
    int relative_bias_size() const {
        return (2 * grid_height() - 1) * (2 * grid_width() - 1) + prefix_tokens * prefix_tokens + 2 * prefix_tokens;
    }
};

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
