#include "file/packed_model.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "file/json.h"
#include "file/keys.h"
#include "file/xxh64.h"
#include "machine/memory.h"

namespace gsb {

namespace {

constexpr const char* kAgain = "; export the model again";

std::string prefix_of(int block) {
    return block < 0 ? std::string() : "blocks." + std::to_string(block) + ".";
}

std::string shown(const std::string& type, const std::vector<size_t>& shape) {
    std::string text = type + " (";
    for (size_t side : shape) text += std::to_string(side) + ", ";
    return text + ")";
}

bool is_finite(const TensorView& view) {
    bool finite = true;
    if (view.dtype == "F32") {
        for (float value : view.copy<float>()) finite &= std::isfinite(value);
    } else if (view.dtype == "F16") {
        // The exponent of an infinity or NaN is all ones. Read byte by byte: tensors may be unaligned.
        for (size_t i = 1; i < view.bytes; i += 2) finite &= (view.data[i] & 0x7C) != 0x7C;
    }
    return finite;
}

bool pad_is_zero(const TensorView& view, size_t depth) {
    if (depth % 64 == 0) return true;
    const size_t row_bytes = (depth + 63) / 64 * 8;
    for (size_t end = row_bytes; end <= view.bytes; end += row_bytes) {
        uint64_t last;
        std::memcpy(&last, view.data + end - 8, 8);
        if (last >> (depth % 64)) return false;
    }
    return true;
}

bool in_range(const TensorView& view, int low, size_t high) {
    for (int16_t value : view.copy<int16_t>()) {
        if (value < low || value > static_cast<long long>(high)) return false;
    }
    return true;
}

bool falls(const TensorView& view) {
    const std::vector<float> table = view.copy<float>();
    return table[0] == 1.0f && table.back() >= 0 && std::is_sorted(table.rbegin(), table.rend());
}

// What is wrong with a finite tensor's values; empty: nothing.
std::string fault(const TensorView& view, schema::Rule rule, int low, size_t high) {
    switch (rule) {
        case schema::Rule::any:
            return "";
        case schema::Rule::bits:
            return pad_is_zero(view, high) ? "" : "has pad bits that are not zero";
        case schema::Rule::range:
            if (in_range(view, low, high)) return "";
            return "has values outside " + std::to_string(low) + " ... " + std::to_string(high);
        case schema::Rule::positive:
            return view.copy<float>()[0] > 0 ? "" : "is not above 0";
        case schema::Rule::falling:
            return falls(view) ? "" : "does not fall from 1 towards 0";
    }
    throw Error("a rule that is none");
}

const schema::Version& known_version(std::string_view name) {
    std::string known;
    for (const schema::Version& version : schema::kVersions) {
        if (name == version.name) return version;
        known += (known.empty() ? "" : ", ") + std::string(version.name);
    }
    throw Error("version '" + quoted(std::string(name)) + "' is unknown to this gsb-vit (it reads " + known +
                "); update it");
}

// `decision` may be left out, and is unknown to version 1.
void check_model_keys(const Json& model, const std::string& version) {
    std::vector<const char*> names(std::begin(schema::kModelKeys), std::end(schema::kModelKeys));
    model.object("the metadata");
    if (version != "1" && model.find(schema::kDecisionKey)) names.push_back(schema::kDecisionKey);
    check_names("the metadata", model, names.data(), names.size());
}

std::string hexadecimal(uint64_t sum) {
    std::string text(16, '0');
    for (size_t i = text.size(); i-- > 0; sum >>= 4) text[i] = "0123456789abcdef"[sum & 15];
    return text;
}

}  // namespace

PackedModel::PackedModel(const std::string& path, size_t max_memory)
    : name_(path), max_memory_(memory_limit(max_memory)), file_(path, max_memory_) {
    check();
}

PackedModel::PackedModel(const std::string& name, const uint8_t* bytes, size_t size, size_t max_memory)
    : name_(name), max_memory_(memory_limit(max_memory)), file_(name, bytes, size, max_memory_) {
    check();
}

void PackedModel::check() {
    try {
        read_metadata();
        check_tensors();
    } catch (const Error& error) {
        throw Error(name_ + ": " + error.what());
    }
}

const uint8_t* PackedModel::bytes(int block, const char* name) const {
    return tensor(block, name).data;
}

const TensorView& PackedModel::tensor(int block, const char* name) const {
    return tensor(prefix_of(block) + name);
}

const TensorView& PackedModel::tensor(const std::string& name) const {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) throw Error("tensor " + name + " is missing" + kAgain);
    return found->second;
}

void PackedModel::read_metadata() {
    const auto value = [&](const char* key) {
        const auto found = file_.metadata().find(key);
        return found == file_.metadata().end() ? std::string() : found->second;
    };
    if (value("format") != schema::kFormat) {
        throw Error("not a packed model; make one with `gsb-vit export RUN -o MODEL.safetensors`");
    }
    const schema::Version& version = known_version(value("version"));
    try {
        for (size_t i = 0; i < version.key_count; ++i) {
            const std::string key = version.keys[i];
            if (!file_.metadata().count(key)) throw Error("key '" + key + "' is missing");
        }
        if (file_.metadata().size() != version.key_count) throw Error("an unknown key");
        if (file_.metadata().count(schema::kChecksumKeys[0])) check_sums();
        const Json model = Json::parse(value("model"));
        check_model_keys(model, version.name);
        architecture_ = read_architecture(model.at("architecture"), file_.metadata().at("version") != "1");
        for (const Json& name : model.at("class_names").array("class_names")) {
            class_names_.push_back(name.text("a class name"));
        }
        if (class_names_.size() != static_cast<size_t>(architecture_.num_classes)) {
            throw Error("class_names has " + std::to_string(class_names_.size()) + " names for " +
                        std::to_string(architecture_.num_classes) + " classes");
        }
        preprocessing_ = read_preprocessing(model.at("preprocessing"), architecture_);
        model.at("provenance").object("provenance");
        if (const Json* decision = model.find(schema::kDecisionKey)) decision_ = read_decision(*decision);
    } catch (const Error& error) {
        throw Error("metadata: " + std::string(error.what()) + kAgain);
    }
}

void PackedModel::check_sums() const {
    std::string header = file_.metadata().at("model");
    for (const std::string& name : file_.names_by_place()) header += "\n" + name;
    check_sum("header_xxh64", xxh64(reinterpret_cast<const uint8_t*>(header.data()), header.size()));
    check_sum("payload_xxh64", xxh64(file_.payload(), file_.payload_size()));
}

void PackedModel::check_sum(const char* key, uint64_t sum) const {
    const std::string& stored = file_.metadata().at(key);
    if (stored.size() != 16 || stored.find_first_not_of("0123456789abcdef") != std::string::npos) {
        throw Error(std::string(key) + " must be 16 lower-case hexadecimal digits");
    }
    const std::string found = hexadecimal(sum);
    if (stored != found) {
        throw Error(std::string(key) + " is " + stored + ", but the file gives " + found +
                    " (damaged, perhaps in copying)");
    }
}

void PackedModel::check_tensors() {
    size_t expected = 0;
    const auto check_all = [&](const std::string& prefix, const auto& tensors, size_t convolution = 0) {
        for (const schema::Tensor& wanted : tensors) {
            if (!architecture_.has(wanted.when)) continue;
            check(prefix + wanted.name, wanted, convolution);
            ++expected;
        }
    };
    check_all("", schema::kOuterTensors);
    for (size_t i = 0; i < architecture_.channels.size(); ++i) {
        const std::string prefix = "tokenizer." + std::to_string(i) + ".";
        const bool last = i + 1 == architecture_.channels.size();
        if (i == 0) {
            check_all(prefix, schema::kFirstConvolutionTensors, i);
        } else if (architecture_.level_bits[i - 1] == 1) {
            last ? check_all(prefix, schema::kLastBinaryConvolutionTensors, i)
                 : check_all(prefix, schema::kMiddleBinaryConvolutionTensors, i);
        } else {
            last ? check_all(prefix, schema::kLastConvolutionTensors, i)
                 : check_all(prefix, schema::kMiddleConvolutionTensors, i);
        }
    }
    for (size_t head = 0; head < architecture_.heads.size(); ++head) {
        check_all("heads." + std::to_string(head) + ".", schema::kHeadTensors);
    }
    for (int block = 0; block < architecture_.depth; ++block) check_all(prefix_of(block), schema::kBlockTensors);
    if (expected != file_.tensors().size()) {
        throw Error("a tensor does not belong in this model" + std::string(kAgain));
    }
}

void PackedModel::check(const std::string& name, const schema::Tensor& wanted, size_t convolution) const {
    const TensorView& view = tensor(name);
    std::vector<size_t> shape;
    for (int i = 0; i < wanted.rank; ++i) shape.push_back(architecture_.measure(wanted.shape[i], convolution));
    if (view.dtype != wanted.type || view.shape != shape) {
        throw Error("tensor " + name + " is " + shown(view.dtype, view.shape) + ", not " + shown(wanted.type, shape) +
                    kAgain);
    }
    const std::string what = is_finite(view)
                                 ? fault(view, wanted.rule, wanted.low, architecture_.measure(wanted.high, convolution))
                                 : "holds numbers that are not finite";
    if (!what.empty()) throw Error("tensor " + name + " " + what + kAgain);
}

}  // namespace gsb
