#include "file/architecture.h"

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <utility>

#include "error.h"

namespace gsb {

namespace {

constexpr int kMaxThresholds = 15;
constexpr long long kMaxTokens = 1 << 20;

std::pair<int, int> read_pair(const Json& object, const char* key, int largest) {
    const auto& sides = object.at(key).array(key);
    if (sides.size() != 2) throw Error(std::string(key) + " must be two whole numbers");
    return {static_cast<int>(sides[0].whole(key, 1, largest)), static_cast<int>(sides[1].whole(key, 1, largest))};
}

std::vector<float> read_ratios(const Json& object, const char* key) {
    std::vector<float> ratios;
    double previous = 0;
    for (const Json& item : object.at(key).array(key)) {
        const double ratio = item.number(key);
        if (!(ratio > previous && ratio < 1)) throw Error(std::string(key) + " must increase between 0 and 1");
        ratios.push_back(static_cast<float>(ratio));
        previous = ratio;
    }
    if (ratios.size() > kMaxThresholds) throw Error(std::string(key) + " has more than 15 numbers");
    return ratios;
}

size_t read_choice(const Json& object, const char* key, std::initializer_list<const char*> allowed) {
    const std::string& text = object.at(key).text(key);
    const auto found = std::find(allowed.begin(), allowed.end(), text);
    if (found == allowed.end()) throw Error(std::string(key) + " '" + text + "' is unknown");
    return static_cast<size_t>(found - allowed.begin());
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

Architecture read_architecture(const Json& json) {
    Architecture a{};
    const auto whole = [&](const char* key, int largest) {
        return static_cast<int>(json.at(key).whole(key, 1, largest));
    };
    a.name = json.at("name").text("name");
    std::tie(a.image_height, a.image_width) = read_pair(json, "image_size", 65535);
    std::tie(a.patch_height, a.patch_width) = read_pair(json, "patch_size", 1024);
    a.embed_dim = whole("embed_dim", 32767);
    a.depth = whole("depth", 1024);
    a.num_heads = whole("num_heads", 32767);
    a.mlp_hidden = whole("mlp_hidden", 1 << 20);
    a.prefix_tokens = whole("prefix_tokens", 2);
    a.num_classes = whole("num_classes", 1 << 20);
    if (whole("num_heads_out", 2) != a.prefix_tokens) throw Error("num_heads_out must equal prefix_tokens");
    for (int token = 0; token < a.prefix_tokens; ++token) a.heads.push_back({{token, 1}});
    const double eps = json.at("layer_norm_eps").number("layer_norm_eps");
    if (!(eps >= 0 && eps <= 1)) throw Error("layer_norm_eps must be a number from 0 to 1");
    a.layer_norm_eps = static_cast<float>(eps);
    a.attention_thresholds = read_ratios(json, "attention_thresholds");
    a.value_thresholds = read_ratios(json, "value_thresholds");
    a.fixed_thresholds = read_choice(json, "threshold_scope", {"sample", "fixed"}) == 1;
    a.attention_bias =
        static_cast<Architecture::Bias>(read_choice(json, "attention_bias", {"none", "relative", "full"}));
    if (a.image_height % a.patch_height || a.image_width % a.patch_width) {
        throw Error("image_size is no multiple of patch_size");
    }
    if (a.embed_dim % a.num_heads) throw Error("embed_dim is no multiple of num_heads");
    if (1LL * a.grid_height() * a.grid_width() + a.prefix_tokens > kMaxTokens) throw Error("there are too many tokens");
    constexpr size_t kKeys = 15;
    if (json.object("architecture").size() != kKeys) throw Error("architecture has an unknown key");
    return a;
}

}  // namespace gsb
