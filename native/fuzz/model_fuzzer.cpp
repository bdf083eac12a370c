// libFuzzer harness: a file's bytes → reader → one forward pass on every backend, all compared with the first.
//
// Aborts where a message is no single line of text, and where backends disagree: other logits, or another refusal. What
// the sanitizers find ends the run likewise. CONTRIBUTING.md says how to build and run it.
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

// Is a forward pass short, and its memory small?
bool is_cheap(const gsb::Architecture& a) {
    const double tokens = a.num_tokens(), width = a.embed_dim, depth = a.depth;
    const double groups = a.attention_groups() + a.value_groups();
    const double products = depth * tokens * width * (4 * width + 2.0 * a.mlp_hidden + tokens * groups);
    return a.token_macs() < 1e8 && products < 1e8 && tokens * tokens * a.num_heads * groups < 1e7 &&
           1.0 * a.num_classes * width < 1e7;
}

struct Outcome {
    std::string refusal;  // empty: logits
    std::vector<float> logits;

    bool operator==(const Outcome& other) const {
        if (refusal != other.refusal || logits.size() != other.logits.size()) return false;
        return logits.empty() || std::memcmp(logits.data(), other.logits.data(), logits.size() * sizeof(float)) == 0;
    }
};

Outcome run(const uint8_t* data, size_t size, const Bytes& pixels, size_t pictures, int threads, const char* backend) {
    Outcome outcome;
    try {
        gsb::Model model(std::make_unique<gsb::PackedModel>("input", data, size), threads, backend);
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
    Bytes file(8);
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, 8);
    file.insert(file.end(), header.begin(), header.end());
    file.insert(file.end(), payload.begin(), payload.end());
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

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
    Random random{seed + 1ULL};
    Bytes header, payload;
    const size_t way = random.below(8);
    if (way == 0 || !split(data, size, header, payload)) return LLVMFuzzerMutate(data, size, max_size);
    if (way < 4) {
        const size_t longest = header.size() + std::min<size_t>(max_size - size, 256), length = header.size();
        header.resize(longest);
        header.resize(LLVMFuzzerMutate(header.data(), length, longest));
    } else if (way < 6) {
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
    Bytes pixels;
    constexpr size_t kPictures = 2;
    try {
        const gsb::PackedModel file("input", data, size);
        const gsb::Architecture& a = file.architecture();
        if (!is_cheap(a)) return 0;
        pixels.resize(kPictures * 3 * a.image_height * a.image_width);
    } catch (const gsb::Error& error) {
        checked(error);
        return 0;
    }
    Random random{gsb::xxh64(data, size) | 1};
    for (uint8_t& value : pixels) value = static_cast<uint8_t>(random.below(256));
    const std::vector<const gsb::Kernels*>& backends = gsb::available_kernels();
    const Outcome expected = run(data, size, pixels, kPictures, 1, "portable");
    for (const gsb::Kernels* kernels : backends) {
        // Threads take long to start: now and then.
        const int threads = random.below(16) == 0 ? 2 : 1;
        if (!(run(data, size, pixels, kPictures, threads, kernels->name) == expected)) {
            fail(std::string(kernels->name) + " with " + std::to_string(threads) + " threads differs from portable");
        }
    }
    return 0;
}
