// libFuzzer harness: a file's bytes → reader → one forward pass on every backend, all compared with the first.
//
// Aborts where a message is no single line of text, and where backends disagree: other logits, or another refusal. What
// the sanitizers find ends the run likewise. CONTRIBUTING.md says how to build and run it.
//
// Mutants are of four kinds: bytes of the header, numbers written in it, values in the tensors, and new files of a
// random architecture, whose tensors all have the type, shape and range that the table in schema.h asks for. Checksums
// are mended, or next to no mutant would be read further.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "error.h"
#include "file/packed_model.h"
#include "file/safetensors_file.h"
#include "file/xxh64.h"
#include "kernels/dispatch.h"
#include "model.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using Bytes = std::vector<uint8_t>;

// Small numbers from a seed (xorshift64*).
struct Random {
    uint64_t state;

    size_t below(size_t limit) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<size_t>((state * 0x2545F4914F6CDD1D) >> 33) % limit;
    }
};

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::abort();
}

std::string checked(const gsb::Error& error) {
    const std::string text = error.what();
    if (text.empty() || text.size() > 1000) fail("a message of " + std::to_string(text.size()) + " bytes");
    for (const char c : text) {
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) fail("a control character in the message: " + text);
    }
    return text;
}

// Is a forward pass short, and its memory small? What a larger one does, smaller ones do, too: channels, tokens and
// groups beyond the widths of all kernels are within these bounds.
bool is_cheap(const gsb::Architecture& a) {
    const double tokens = a.num_tokens(), width = a.embed_dim, depth = a.depth;
    const double groups = a.attention_groups() + a.value_groups();
    const double products = depth * tokens * width * (4 * width + 2.0 * a.mlp_hidden + tokens * groups);
    return a.token_macs(8) + a.token_macs(1) < 1e5 && products < 1e6 && tokens * tokens * a.num_heads * groups < 3e4 &&
           1.0 * a.num_classes * width < 1e4;
}

struct Outcome {
    std::string refusal;  // empty: logits
    std::vector<float> logits;

    bool operator==(const Outcome& other) const {
        if (refusal != other.refusal || logits.size() != other.logits.size()) return false;
        return logits.empty() || std::memcmp(logits.data(), other.logits.data(), logits.size() * sizeof(float)) == 0;
    }
};

using File = std::unique_ptr<const gsb::PackedModel>;

Outcome run(File file, const Bytes& pixels, size_t pictures, int threads, const gsb::Kernels& kernels) {
    Outcome outcome;
    try {
        gsb::Model model(std::move(file), threads, kernels.name);
        outcome.logits.resize(pictures * model.architecture().num_classes);
        model.predict(pixels.data(), pictures, outcome.logits.data());
    } catch (const gsb::Error& error) {
        outcome = {checked(error), {}};
    }
    return outcome;
}

// Header bytes and payload of a file; false where it has no room for both.
bool split(const uint8_t* data, size_t size, Bytes& header, Bytes& payload) {
    uint64_t length = 0;
    if (size < 8) return false;
    std::memcpy(&length, data, 8);
    if (length > size - 8) return false;
    header.assign(data + 8, data + 8 + length);
    payload.assign(data + 8 + length, data + size);
    return true;
}

Bytes joined(const Bytes& header, const Bytes& payload) {
    Bytes file(8 + header.size() + payload.size());
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, 8);
    std::copy(payload.begin(), payload.end(), std::copy(header.begin(), header.end(), file.begin() + 8));
    return file;
}

void put_sum(Bytes& file, const std::string& key, uint64_t sum) {
    const std::string before = "\"" + key + "\":\"";
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(sum));
    for (size_t at = 8; at + before.size() + 17 <= file.size(); ++at) {
        if (std::memcmp(file.data() + at, before.data(), before.size()) != 0) continue;
        std::memcpy(file.data() + at + before.size(), digits, 16);
        return;
    }
}

// Gives a version 2 file the checksums that fit it, or it would never be read further.
void seal(Bytes& file) {
    try {
        const gsb::SafetensorsFile parts("input", file.data(), file.size(), file.size());
        const auto model = parts.metadata().find("model");
        if (model == parts.metadata().end() || !parts.metadata().count("payload_xxh64")) return;
        std::string header = model->second;
        for (const std::string& name : parts.names_by_place()) header += "\n" + name;
        put_sum(file, "payload_xxh64", gsb::xxh64(parts.payload(), parts.payload_size()));
        put_sum(file, "header_xxh64", gsb::xxh64(reinterpret_cast<const uint8_t*>(header.data()), header.size()));
    } catch (const gsb::Error&) {  // no file to seal
    }
}

// Mutates a stretch of some bytes in place.
void mutate_stretch(Bytes& bytes, Random& random) {
    if (bytes.empty()) return;
    const size_t begin = random.below(bytes.size()), length = std::min<size_t>(bytes.size() - begin, 32);
    LLVMFuzzerMutate(bytes.data() + begin, length, length);
}

// Puts a number that arithmetic breaks on in place of one or of a row of them.
void put_numbers(Bytes& bytes, Random& random) {
    if (bytes.size() < 4) return;
    constexpr float kNumbers[] = {0.0f,   -0.0f,  1.0f,   -1.0f, 1e38f,  -1e38f, 3.4e38f, -3.4e38f,
                                  1e-45f, 1e-38f, 1e-20f, 1e20f, -1e20f, 1e10f,  65504.0f};
    const float number = kNumbers[random.below(std::size(kNumbers))];
    const size_t count = bytes.size() / 4, begin = random.below(count);
    const size_t end = std::min(count, begin + (random.below(2) ? 1 : 1 + random.below(64)));
    for (size_t i = begin; i < end; ++i) std::memcpy(bytes.data() + 4 * i, &number, 4);
}

// Writes another number over one in the header, whether it stands in the file's own JSON or in the model's.
void put_digits(Bytes& header, Random& random) {
    constexpr const char* kNumbers[] = {"0",
                                        "1",
                                        "2",
                                        "3",
                                        "-1",
                                        "7",
                                        "15",
                                        "16",
                                        "17",
                                        "63",
                                        "64",
                                        "65",
                                        "127",
                                        "256",
                                        "1024",
                                        "1025",
                                        "32767",
                                        "32768",
                                        "65535",
                                        "1048576",
                                        "1048577",
                                        "2147483648",
                                        "4294967296",
                                        "9007199254740992",
                                        "18446744073709551615",
                                        "0.5",
                                        "1e-30",
                                        "1e300",
                                        "00",
                                        "1.",
                                        ""};
    const auto is_digit = [](uint8_t c) { return c >= '0' && c <= '9'; };
    const auto begin = header.begin();
    if (header.empty()) return;
    const auto first = std::find_if(begin + random.below(header.size()), header.end(), is_digit);
    const auto last = std::find_if_not(first, header.end(), is_digit);
    if (first == last) return;
    std::string number = kNumbers[random.below(std::size(kNumbers))];
    if (last - first < 9 && random.below(2)) {  // near the one that stands there
        number = std::to_string(std::stoi(std::string(first, last)) - 2 + static_cast<int>(random.below(5)));
    }
    Bytes changed(begin, first);
    changed.insert(changed.end(), number.begin(), number.end());
    changed.insert(changed.end(), last, header.end());
    header = std::move(changed);
}

template <class T>
void put(Bytes& bytes, T value) {
    const auto* begin = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), begin, begin + sizeof(T));
}

// Writes a file of a random small architecture.
class Maker {
  public:
    explicit Maker(Random& random) : random_(random) {}

    Bytes file() {
        draw();
        const bool old = version_ == 1;
        const auto each = [&](const std::string& prefix, const auto& tensors, size_t convolution = 0) {
            for (const gsb::schema::Tensor& tensor : tensors) {
                if (a_.has(tensor.when)) add(prefix, tensor, convolution);
            }
        };
        each("", gsb::schema::kOuterTensors);
        for (size_t i = 0; i < a_.channels.size(); ++i) {
            const std::string prefix = "tokenizer." + std::to_string(i) + ".";
            if (i == 0) {
                each(prefix, gsb::schema::kFirstConvolutionTensors, i);
                continue;
            }
            const bool last = i + 1 == a_.channels.size();
            if (a_.level_bits[i - 1] == 1) {
                last ? each(prefix, gsb::schema::kLastBinaryConvolutionTensors, i)
                     : each(prefix, gsb::schema::kMiddleBinaryConvolutionTensors, i);
            } else {
                last ? each(prefix, gsb::schema::kLastConvolutionTensors, i)
                     : each(prefix, gsb::schema::kMiddleConvolutionTensors, i);
            }
        }
        for (size_t i = 0; i < a_.heads.size(); ++i) {
            each("heads." + std::to_string(i) + ".", gsb::schema::kHeadTensors);
        }
        for (int i = 0; i < a_.depth; ++i) each("blocks." + std::to_string(i) + ".", gsb::schema::kBlockTensors);
        const std::string sums = R"(,"header_xxh64":"0000000000000000","payload_xxh64":"0000000000000000")";
        const std::string text = R"({"__metadata__":{"format":"gsb-vit-packed","version":")" +
                                 std::to_string(version_) + R"(","model":")" + escaped(model()) + "\"" +
                                 (old ? "" : sums) + "}" + entries_ + "}";
        return joined(Bytes(text.begin(), text.end()), payload_);
    }

  private:
    int among(std::initializer_list<int> values) { return values.begin()[random_.below(values.size())]; }

    std::vector<float> thresholds() {
        std::vector<float> values;
        const int count = among({0, 1, 2, 3, 3, 15});
        for (int i = 0; i < count; ++i) values.push_back(static_cast<float>(i + 1) / static_cast<float>(count + 1));
        return values;
    }

    void draw() {
        using gsb::schema::GlobalPool;
        version_ = among({1, 2, 2, 2});
        const bool old = version_ == 1;
        const int head_dim = among({1, 3, 8, 13, 16, 31, 32, 33, 64, 65});
        a_.num_heads = among({1, 1, 2, 3});
        a_.embed_dim = a_.num_heads * head_dim;
        a_.depth = among({1, 1, 1, 2, 3});
        a_.mlp_hidden = among({1, 2, 15, 16, 17, 33, 63, 64, 65, 130});
        a_.num_classes = among({1, 2, 3, 9, 17});
        int height = among({1, 1, 2, 3, 5}), width = among({1, 2, 3, 4, 9});
        if (!old && random_.below(3) == 0) {
            for (int i = among({1, 1, 2}); i > 0; --i) a_.channels.push_back(among({1, 3, 8, 17}));
            for (size_t i = 0; i < a_.channels.size(); ++i) a_.level_bits.push_back(among({1, 8}));
            a_.channels.push_back(a_.embed_dim);
            a_.patch_height = a_.patch_width = 1 << a_.channels.size();
        } else {
            a_.patch_height = among({1, 2, 3, 4, 7});
            a_.patch_width = among({1, 2, 4, 5, 8});
        }
        a_.image_height = height * a_.patch_height;
        a_.image_width = width * a_.patch_width;
        a_.prefix_tokens = among({1, 1, 2});
        const int heads = old ? a_.prefix_tokens : 1 + static_cast<int>(random_.below(a_.prefix_tokens));
        if (!old && random_.below(3) == 0) {
            a_.global_pool = GlobalPool::avg;
            a_.norm_before_pool = random_.below(2);
            a_.prefix_tokens = among({0, 0, 1, 4});
            a_.heads.resize(1);
        } else {
            a_.heads.resize(heads);
        }
        a_.attention_thresholds = thresholds();
        a_.value_thresholds = thresholds();
        a_.fixed_thresholds = random_.below(2);
        a_.attention_bias = static_cast<gsb::Architecture::Bias>(random_.below(3));
    }

    float number(size_t wild) {
        constexpr float kWild[] = {0.0f, -0.0f, 1.0f, -1.0f, 1e38f, -3e38f, 1e-45f, 1e-38f, 1e-20f, 1e20f, -65504.0f};
        if (wild && random_.below(wild) == 0) return kWild[random_.below(std::size(kWild))];
        return (static_cast<float>(random_.below(2001)) - 1000) / 500;
    }

    void add(const std::string& prefix, const gsb::schema::Tensor& tensor, size_t convolution) {
        using gsb::schema::Rule;
        const std::string type = tensor.type;
        const size_t begin = payload_.size(), high = a_.measure(tensor.high, convolution),
                     wild = among({0, 0, 0, 40, 3});
        std::string shape;
        size_t count = 1;
        for (int i = 0; i < tensor.rank; ++i) {
            const size_t side = a_.measure(tensor.shape[i], convolution);
            shape += (i == 0 ? "" : ",") + std::to_string(side);
            count *= side;
        }
        const size_t row = tensor.rule == Rule::bits ? (high + 63) / 64 : 1;
        float falling = 1;
        for (size_t i = 0; i < count; ++i) {
            if (type == "I8") put(payload_, static_cast<int8_t>(random_.below(256)));
            if (type == "I16") {
                const size_t range = high - static_cast<size_t>(tensor.low) + 1;
                put(payload_, static_cast<int16_t>(tensor.low + static_cast<int>(random_.below(range))));
            }
            if (type == "F16") put(payload_, static_cast<uint16_t>(random_.below(0x7C00) | random_.below(2) << 15));
            if (type == "U64") {
                const uint64_t word = random_.state * 0x9E3779B97F4A7C15;
                const bool last = i % row == row - 1 && high % 64 != 0;
                put(payload_, last ? word & ((1ULL << high % 64) - 1) : word);
                random_.below(2);
            }
            if (type != "F32") continue;
            if (tensor.rule == Rule::falling) {
                put(payload_, falling);
                falling *= static_cast<float>(random_.below(1001)) / 1000;
            } else {
                const float value = number(wild);
                put(payload_, tensor.rule != Rule::positive ? value : value > 0 ? value : 0.25f);
            }
        }
        entries_ += ",\"" + prefix + tensor.name + R"(":{"dtype":")" + type + R"(","shape":[)" + shape +
                    R"(],"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(payload_.size()) + "]}";
    }

    static std::string listed(const std::vector<float>& values) {
        std::string text;
        for (const float value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
        return "[" + text + "]";
    }

    static std::string pair(int height, int width) {
        return "[" + std::to_string(height) + "," + std::to_string(width) + "]";
    }

    std::string model() {
        namespace schema = gsb::schema;
        const auto whole = [](const char* key, size_t value) {
            return std::string(",\"") + key + "\":" + std::to_string(value);
        };
        const std::string size = pair(a_.image_height, a_.image_width);
        std::string text =
            R"({"architecture":{"name":"x","image_size":)" + size + R"(,"patch_size":)" +
            pair(a_.patch_height, a_.patch_width) + whole("embed_dim", a_.embed_dim) + whole("depth", a_.depth) +
            whole("num_heads", a_.num_heads) + whole("mlp_hidden", a_.mlp_hidden) +
            whole("prefix_tokens", a_.prefix_tokens) + whole("num_heads_out", a_.heads.size()) +
            whole("num_classes", a_.num_classes) + R"(,"layer_norm_eps":)" + (random_.below(4) ? "1e-6" : "0") +
            R"(,"attention_thresholds":)" + listed(a_.attention_thresholds) + R"(,"value_thresholds":)" +
            listed(a_.value_thresholds) + R"(,"threshold_scope":")" + schema::kThresholdScope[a_.fixed_thresholds] +
            R"(","attention_bias":")" + schema::kAttentionBias[static_cast<int>(a_.attention_bias)] + "\"";
        if (version_ > 1) {
            std::string channels, formats;
            for (size_t i = 0; i + 1 < a_.channels.size(); ++i) {
                channels += (i == 0 ? "" : ",") + std::to_string(a_.channels[i]);
                formats += std::string(i == 0 ? "" : ",") + R"({"bits":)" + std::to_string(a_.level_bits[i]) +
                           R"(,"signed":false})";
            }
            text += std::string(R"(,"global_pool":")") + schema::kGlobalPool[static_cast<int>(a_.global_pool)] +
                    R"(","pool_norm":")" + schema::kPoolNorm[a_.norm_before_pool] + R"(","tokenizer_channels":[)" +
                    channels + "]";
            const bool all_bytes = std::count(a_.level_bits.begin(), a_.level_bits.end(), 1) == 0;
            if (!all_bytes || random_.below(2)) text += R"(,"tokenizer_formats":[)" + formats + "]";
        }
        text += R"(},"class_names":[)";
        for (int i = 0; i < a_.num_classes; ++i) text += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\"";
        text += R"(],"preprocessing":{"size":)" + size + R"(,"resize":")" + schema::kResize[random_.below(2)] +
                R"(","crop_ratio":0.9,"interpolation":")" + schema::kInterpolation[random_.below(3)] +
                R"(","mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]},"provenance":{})";
        if (version_ > 1 && random_.below(3) == 0) {
            text += R"(,"decision":{"temperature":1.5,"unknown":{"score":"energy","threshold":0.5,)"
                    R"("false_alarm_rate":0.05}})";
        }
        return text + "}";
    }

    static std::string escaped(const std::string& text) {
        std::string out;
        for (const char c : text) out += c == '"' ? std::string("\\\"") : std::string(1, c);
        return out;
    }

    Random& random_;
    gsb::Architecture a_{};
    int version_ = 2;
    std::string entries_;
    Bytes payload_;
};

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
    Random random{seed + 1ULL};
    Bytes header, payload;
    const size_t way = random.below(16);
    if (way == 0) return LLVMFuzzerMutate(data, size, max_size);
    if (way < 3 || !split(data, size, header, payload)) {
        Bytes file = Maker(random).file();
        seal(file);
        if (file.size() > max_size) return 0;
        std::memcpy(data, file.data(), file.size());
        return file.size();
    }
    if (way < 5) {
        const size_t longest = header.size() + std::min<size_t>(max_size - size, 256), length = header.size();
        header.resize(longest);
        header.resize(LLVMFuzzerMutate(header.data(), length, longest));
    } else if (way < 8) {
        put_digits(header, random);
    } else if (way < 12) {
        mutate_stretch(payload, random);
    } else {
        put_numbers(payload, random);
    }
    Bytes file = joined(header, payload);
    if (random.below(8) > 0) seal(file);
    if (file.size() > max_size) return 0;
    std::memcpy(data, file.data(), file.size());
    return file.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const auto read = [&] { return std::make_unique<const gsb::PackedModel>("input", data, size); };
    File file;
    try {
        file = read();
    } catch (const gsb::Error& error) {
        checked(error);
        return 0;
    }
    const gsb::Architecture& a = file->architecture();
    if (!is_cheap(a)) return 0;
    Random random{gsb::xxh64(data, size) | 1};
    const bool threaded = random.below(64) == 0;  // threads take long to start
    // Often one; a second meets what the first left in memory, and more than one a thread lie side by side.
    const size_t pictures = threaded ? 1 + random.below(3) : 1 + (random.below(4) == 0);
    Bytes pixels(pictures * 3 * a.image_height * a.image_width);
    for (uint8_t& value : pixels) value = static_cast<uint8_t>(random.below(256));
    const Outcome expected = run(std::move(file), pixels, pictures, 1, gsb::kPortableKernels);
    for (const gsb::Kernels* kernels : gsb::available_kernels()) {
        if (kernels == &gsb::kPortableKernels && !threaded) continue;
        if (!(run(read(), pixels, pictures, threaded ? 2 : 1, *kernels) == expected)) {
            fail(std::string(kernels->name) + (threaded ? " with 2 threads" : "") + " differs from portable");
        }
    }
    return 0;
}
