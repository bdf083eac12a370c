#include "file/packed_model.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "file/json.h"

namespace gsb {

namespace {

constexpr const char* kAgain = "; export the model again";

std::string full_name(int block, const char* name) {
    return block < 0 ? name : "blocks." + std::to_string(block) + "." + name;
}

}  // namespace

PackedModel::PackedModel(const std::string& path) : file_(path) {
    try {
        read_metadata();
        check_outer();
        for (int block = 0; block < architecture_.depth; ++block) check_block(block);
        if (expected_ != file_.tensors().size()) {
            throw Error("a tensor does not belong in this model" + std::string(kAgain));
        }
    } catch (const Error& error) {
        throw Error(path + ": " + error.what());
    }
}

const uint8_t* PackedModel::bytes(int block, const char* name) const {
    return tensor(block, name).data;
}

const TensorView& PackedModel::tensor(int block, const char* name) const {
    const auto found = file_.tensors().find(full_name(block, name));
    if (found == file_.tensors().end()) throw Error("tensor " + full_name(block, name) + " is missing" + kAgain);
    return found->second;
}

void PackedModel::read_metadata() {
    const auto value = [&](const char* key) {
        const auto found = file_.metadata().find(key);
        return found == file_.metadata().end() ? std::string() : found->second;
    };
    if (value("format") != "gsb-vit-packed") {
        throw Error("not a packed model; make one with `gsb-vit export RUN -o MODEL.safetensors`");
    }
    if (value("version") != "1") {
        throw Error("version '" + value("version") + "' is unknown to this gsb-vit (it reads 1); update it");
    }
    try {
        const Json model = Json::parse(value("model"));
        model.object("the metadata");
        const Json& architecture = model.at("architecture");
        architecture.object("architecture");
        architecture_ = read_architecture(architecture);
        for (const Json& name : model.at("class_names").array("class_names")) {
            class_names_.push_back(name.text("a class name"));
        }
        if (class_names_.size() != static_cast<size_t>(architecture_.num_classes)) {
            throw Error("class_names has " + std::to_string(class_names_.size()) + " names for " +
                        std::to_string(architecture_.num_classes) + " classes");
        }
    } catch (const Error& error) {
        throw Error("metadata: " + std::string(error.what()) + kAgain);
    }
}

void PackedModel::check_outer() {
    const Architecture& a = architecture_;
    const size_t width = a.embed_dim, classes = a.num_classes;
    const size_t prefixes = a.prefix_tokens, patches = a.num_patches();
    const size_t patch_height = a.patch_height, patch_width = a.patch_width;
    expect(-1, "patch_embed.weight", "I8", {width, 3, patch_height, patch_width});
    expect(-1, "patch_embed.scale", "F32", {width, 3});
    expect(-1, "patch_embed.position", "F32", {patches, width});
    expect(-1, "prefix_tokens", "F32", {prefixes, width});
    expect(-1, "norm.weight", "F32", {width});
    expect(-1, "norm.bias", "F32", {width});
    for (size_t head = 0; head < a.heads.size(); ++head) {
        const std::string prefix = "heads." + std::to_string(head) + ".";
        expect(-1, (prefix + "shift").c_str(), "F32", {width});
        expect(-1, (prefix + "input_scale").c_str(), "F32", {1});
        expect(-1, (prefix + "weight").c_str(), "I8", {classes, width});
        expect(-1, (prefix + "scale").c_str(), "F32", {classes});
        expect(-1, (prefix + "bias").c_str(), "F32", {classes});
        check_positive(-1, (prefix + "input_scale").c_str());
    }
}

void PackedModel::check_block(int block) {
    const Architecture& a = architecture_;
    const size_t width = a.embed_dim, hidden = a.mlp_hidden, heads = a.num_heads, tokens = a.num_tokens();
    const size_t width_words = (width + 63) / 64, hidden_words = (hidden + 63) / 64;
    const size_t groups = a.attention_groups(), value_groups = a.value_groups();
    for (const char* name : {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.v_scale", "attn.v_bias",
                             "attn.proj.shift", "attn.proj.scale", "attn.proj.bias", "mlp.fc2.scale", "mlp.fc2.bias"}) {
        expect(block, name, "F32", {width});
    }
    expect(block, "attn.qkv.weight", "U64", {3 * width, width_words});
    expect(block, "attn.qkv.threshold", "I16", {3 * width});
    expect(block, "attn.exp_table", "F32", {static_cast<size_t>(a.head_dim()) + 1});
    expect(block, "attn.attention_half_scale", "F32", {1});
    expect(block, "attn.product_scale", "F32", {groups, value_groups});
    expect(block, "attn.proj.weight", "U64", {width, width_words});
    expect(block, "mlp.fc1.weight", "U64", {hidden, width_words});
    expect(block, "mlp.fc1.zero_interval", "I16", {hidden, 2});
    expect(block, "mlp.fc2.weight", "U64", {width, hidden_words});
    if (a.attention_bias == Architecture::Bias::relative) {
        expect(block, "attn.bias", "F32", {heads, static_cast<size_t>(a.relative_bias_size())});
    } else if (a.attention_bias == Architecture::Bias::full) {
        expect(block, "attn.bias", "F16", {heads, tokens, tokens});
    }
    if (a.fixed_thresholds) {
        expect(block, "attn.attention_limits", "F32", {groups - 1});
        expect(block, "attn.value_limits", "F32", {value_groups - 1, 2});
    }
    check_pad_bits(block, "attn.qkv.weight", 3 * width, width);
    check_pad_bits(block, "attn.proj.weight", width, width);
    check_pad_bits(block, "mlp.fc1.weight", hidden, width);
    check_pad_bits(block, "mlp.fc2.weight", width, hidden);
    check_range(block, "attn.qkv.threshold", -1, a.embed_dim);
    check_range(block, "mlp.fc1.zero_interval", 0, a.embed_dim);
    check_positive(block, "attn.attention_half_scale");
    check_exp_table(block);
}

void PackedModel::expect(int block, const char* name, const char* dtype, std::initializer_list<size_t> shape) {
    const TensorView& view = tensor(block, name);
    const std::string what = "tensor " + full_name(block, name);
    if (view.dtype != dtype || !std::equal(shape.begin(), shape.end(), view.shape.begin(), view.shape.end())) {
        std::string found = view.dtype + " (", wanted = std::string(dtype) + " (";
        for (size_t side : view.shape) found += std::to_string(side) + ", ";
        for (size_t side : shape) wanted += std::to_string(side) + ", ";
        throw Error(what + " is " + found + "), not " + wanted + ")" + kAgain);
    }
    ++expected_;
    bool finite = true;
    if (view.dtype == "F32") {
        for (float value : copy<float>(block, name)) finite &= std::isfinite(value);
    } else if (view.dtype == "F16") {
        // The exponent of an infinity or NaN is all ones. Read byte by byte: the mapping may be unaligned.
        for (size_t i = 1; i < view.bytes; i += 2) finite &= (view.data[i] & 0x7C) != 0x7C;
    }
    if (!finite) throw Error(what + " holds numbers that are not finite" + kAgain);
}

void PackedModel::check_pad_bits(int block, const char* name, size_t rows, size_t depth) const {
    if (depth % 64 == 0) return;
    const size_t words = (depth + 63) / 64;
    const uint8_t* data = bytes(block, name);
    for (size_t row = 0; row < rows; ++row) {
        uint64_t last;
        std::memcpy(&last, data + (row * words + words - 1) * 8, 8);
        if (last >> (depth % 64)) {
            throw Error("tensor " + full_name(block, name) + " has pad bits that are not zero" + kAgain);
        }
    }
}

void PackedModel::check_range(int block, const char* name, int low, int high) const {
    for (int16_t value : copy<int16_t>(block, name)) {
        if (value < low || value > high) {
            throw Error("tensor " + full_name(block, name) + " has values outside " + std::to_string(low) + " ... " +
                        std::to_string(high) + kAgain);
        }
    }
}

void PackedModel::check_positive(int block, const char* name) const {
    if (!(copy<float>(block, name)[0] > 0)) {
        throw Error("tensor " + full_name(block, name) + " is not above 0" + kAgain);
    }
}

void PackedModel::check_exp_table(int block) const {
    const std::vector<float> table = copy<float>(block, "attn.exp_table");
    if (table[0] != 1.0f || table.back() < 0 || !std::is_sorted(table.rbegin(), table.rend())) {
        throw Error("tensor " + full_name(block, "attn.exp_table") + " does not fall from 1 towards 0" + kAgain);
    }
}

}  // namespace gsb
