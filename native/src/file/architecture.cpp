#include "file/architecture.h"

#include <algorithm>
#include <cstdint>

#include "error.h"
#include "file/keys.h"

namespace gsb {

namespace {

// Of values that check_object has passed:
int whole(const Json& object, const char* key) {
    return static_cast<int>(object.at(key).number(key));
}

int side(const Json& object, const char* key, size_t index) {
    return static_cast<int>(object.at(key).array(key)[index].number(key));
}

std::vector<float> floats(const Json& object, const char* key) {
    std::vector<float> values;
    for (const Json& item : object.at(key).array(key)) values.push_back(static_cast<float>(item.number(key)));
    return values;
}

template <class Choice, size_t count>
Choice choice(const Json& object, const char* key, const char* const (&choices)[count]) {
    return static_cast<Choice>(std::find(choices, choices + count, object.at(key).text(key)) - choices);
}

size_t dimension(const Architecture& a, schema::Dimension of, size_t convolution) {
    switch (of) {
        case schema::Dimension::convolution_inputs:
            return convolution == 0 ? 3 : a.channels[convolution - 1];
        case schema::Dimension::convolution_outputs:
            return a.channels[convolution];
        case schema::Dimension::embed_dim:
            return a.embed_dim;
        case schema::Dimension::patch_height:
            return a.patch_height;
        case schema::Dimension::patch_width:
            return a.patch_width;
        case schema::Dimension::num_patches:
            return a.num_patches();
        case schema::Dimension::prefix_tokens:
            return a.prefix_tokens;
        case schema::Dimension::num_classes:
            return a.num_classes;
        case schema::Dimension::head_dim:
            return a.head_dim();
        case schema::Dimension::num_heads:
            return a.num_heads;
        case schema::Dimension::relative_bias_size:
            return a.relative_bias().size();
        case schema::Dimension::num_tokens:
            return a.num_tokens();
        case schema::Dimension::attention_groups:
            return a.attention_groups();
        case schema::Dimension::value_groups:
            return a.value_groups();
        case schema::Dimension::mlp_hidden:
            return a.mlp_hidden;
    }
    throw Error("a dimension that is none");
}

// Bits of the levels between so many convolutions and the last: 8, or what the key says of each.
std::vector<int> read_level_bits(const Json& json, size_t count) {
    const Json* formats = json.find("tokenizer_formats");
    std::vector<int> bits;
    for (size_t i = 0; formats && i < formats->array("tokenizer_formats").size(); ++i) {
        const Json& format = formats->array("tokenizer_formats")[i];
        const Json *levels = format.find("bits"), *is_signed = format.find("signed");
        bits.push_back(levels ? static_cast<int>(levels->number("bits")) : 1);
        if ((bits.back() != 1 && bits.back() != 8) || !is_signed || is_signed->boolean("signed")) {
            throw Error("tokenizer_formats are not 1 or 8 bits, unsigned");
        }
    }
    if (bits.empty()) bits.resize(count, 8);
    if (bits.size() != count) {
        throw Error(std::to_string(bits.size()) + " tokenizer_formats for " + std::to_string(count) +
                    " tokenizer_channels");
    }
    return bits;
}

void read_tokenizer(const Json& json, Architecture& a) {
    if (const Json* channels = json.find("tokenizer_channels")) {
        for (const Json& item : channels->array("tokenizer_channels")) {
            a.channels.push_back(static_cast<int>(item.number("tokenizer_channels")));
        }
    }
    a.level_bits = read_level_bits(json, a.channels.size());
    if (a.channels.empty()) return;
    a.channels.push_back(a.embed_dim);
    const int stride = 1 << a.channels.size();
    if (a.patch_height != stride || a.patch_width != stride) {
        throw Error("patch_size is not the stride of " + std::to_string(a.channels.size()) + " convolutions");
    }
}

// The first prefix tokens have a head each, or one head reads the mean of all patches.
void read_heads(const Json& json, Architecture& a) {
    const int heads = whole(json, "num_heads_out");
    if (json.find("global_pool")) a.global_pool = choice<Architecture::Pool>(json, "global_pool", schema::kGlobalPool);
    if (json.find("pool_norm")) {
        a.norm_before_pool = choice<schema::PoolNorm>(json, "pool_norm", schema::kPoolNorm) == schema::PoolNorm::before;
    }
    if (a.global_pool == Architecture::Pool::avg) {
        if (heads != 1) throw Error("num_heads_out must be 1 where global_pool is avg");
        a.heads.push_back({{a.prefix_tokens, a.num_patches()}});
        return;
    }
    if (a.norm_before_pool) throw Error("pool_norm before goes with global_pool avg");
    if (heads > a.prefix_tokens) throw Error("num_heads_out is more than prefix_tokens");
    for (int token = 0; token < heads; ++token) a.heads.push_back({{token, 1}});
}

}  // namespace

TokenRange Architecture::tokens_read() const {
    int first = heads[0].reads.first, end = heads[0].reads.end();
    for (const Head& head : heads) {
        first = std::min(first, head.reads.first);
        end = std::max(end, head.reads.end());
    }
    return {first, end - first};
}

double Architecture::token_macs(int bits) const {
    if (channels.empty()) return bits == 8 ? 3.0 * image_height * image_width * embed_dim : 0;
    double macs = 0, places = 1.0 * image_height * image_width;
    for (size_t i = 0; i < channels.size(); ++i) {
        places /= 4;
        if ((i == 0 ? 8 : level_bits[i - 1]) != bits) continue;
        macs += places * 9 * (i == 0 ? 3 : channels[i - 1]) * channels[i];
    }
    return macs;
}

size_t Architecture::measure(const schema::Size& size, size_t convolution) const {
    const size_t value = size.times * dimension(*this, size.dimension, convolution) + size.plus;
    return size.words ? (value + 63) / 64 : value;
}

bool Architecture::has(schema::When when) const {
    switch (when) {
        case schema::When::always:
            return true;
        case schema::When::tokenizer_patches:
            return channels.empty();
        case schema::When::attention_bias_relative:
            return attention_bias == Bias::relative;
        case schema::When::attention_bias_full:
            return attention_bias == Bias::full;
        case schema::When::threshold_scope_fixed:
            return fixed_thresholds;
    }
    throw Error("a condition that is none");
}

Architecture read_architecture(const Json& json, bool optional) {
    check_object("architecture", json, schema::kArchitecture);
    for (const schema::Key& key : schema::kArchitecture) {
        if (key.optional && !optional && json.find(key.name)) {
            throw Error(std::string("architecture: key '") + key.name + "' is unknown in version 1");
        }
    }
    Architecture a{};
    a.name = json.at("name").text("name");
    a.image_height = side(json, "image_size", 0);
    a.image_width = side(json, "image_size", 1);
    a.patch_height = side(json, "patch_size", 0);
    a.patch_width = side(json, "patch_size", 1);
    a.embed_dim = whole(json, "embed_dim");
    a.depth = whole(json, "depth");
    a.num_heads = whole(json, "num_heads");
    a.mlp_hidden = whole(json, "mlp_hidden");
    a.prefix_tokens = whole(json, "prefix_tokens");
    a.num_classes = whole(json, "num_classes");
    read_tokenizer(json, a);
    a.layer_norm_eps = static_cast<float>(json.at("layer_norm_eps").number("layer_norm_eps"));
    a.attention_thresholds = floats(json, "attention_thresholds");
    a.value_thresholds = floats(json, "value_thresholds");
    a.fixed_thresholds = choice<schema::ThresholdScope>(json, "threshold_scope", schema::kThresholdScope) ==
                         schema::ThresholdScope::fixed;
    a.attention_bias = choice<Architecture::Bias>(json, "attention_bias", schema::kAttentionBias);
    if (a.image_height % a.patch_height || a.image_width % a.patch_width) {
        throw Error("image_size is no multiple of patch_size");
    }
    if (a.embed_dim % a.num_heads) throw Error("embed_dim is no multiple of num_heads");
    if (1LL * a.grid_height() * a.grid_width() + a.prefix_tokens > schema::kMaxTokens) {
        throw Error("there are too many tokens");
    }
    read_heads(json, a);
    if (!optional && static_cast<int>(a.heads.size()) != a.prefix_tokens) {
        throw Error("num_heads_out must equal prefix_tokens");
    }
    return a;
}

Preprocessing read_preprocessing(const Json& json, const Architecture& architecture) {
    check_object("preprocessing", json, schema::kPreprocessing);
    const int height = side(json, "size", 0), width = side(json, "size", 1);
    if (static_cast<uint64_t>(height) * static_cast<uint64_t>(width) > kMaxPixels) {
        throw Error("size has more than " + std::to_string(kMaxPixels) + " pixels");
    }
    if (height != architecture.image_height || width != architecture.image_width) {
        throw Error("preprocessing gives pictures of (" + std::to_string(height) + ", " + std::to_string(width) +
                    "), the model reads (" + std::to_string(architecture.image_height) + ", " +
                    std::to_string(architecture.image_width) + ")");
    }
    return {height, width, json.at("resize").text("resize") == "crop", json.at("crop_ratio").number("crop_ratio"),
            filter_named(json.at("interpolation").text("interpolation"))};
}

}  // namespace gsb
