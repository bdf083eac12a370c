// Prints a hash of what every training kernel writes, for numbers from a fixed seed: builds for different instruction
// sets must print the same. Prints "not supported" where the processor lacks the instructions.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../train/attention.h"

using namespace gsb::train;

namespace {

uint32_t state = 1;

float number(float low, float high) {
    state = state * 1664525u + 1013904223u;
    return low + (high - low) * static_cast<float>(state >> 8) / 16777216.0f;
}

std::vector<float> numbers(size_t size, float low, float high) {
    std::vector<float> out(size);
    for (float& x : out) x = number(low, high);
    return out;
}

// The same numbers in either type.
struct Numbers {
    Numbers(const std::vector<float>& values, Type kind) : type(kind), floats(values), halves(values.size()) {
        for (size_t i = 0; i < values.size(); ++i) {
            uint32_t bits;
            std::memcpy(&bits, &values[i], sizeof(bits));
            halves[i].bits = static_cast<uint16_t>(bits >> 16);
        }
    }
    Numbers(size_t size, Type kind) : Numbers(std::vector<float>(size), kind) {}
    Tensor tensor() { return type == Type::float32 ? Tensor{floats.data(), type} : Tensor{halves.data(), type}; }
    Type type;
    std::vector<float> floats;
    std::vector<Half> halves;
};

class Hash {
  public:
    explicit Hash(const std::string& name) : name_(name) {}
    ~Hash() { std::printf("%s %016llx\n", name_.c_str(), static_cast<unsigned long long>(value_)); }
    template <class T>
    void add(const std::vector<T>& values) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
        for (size_t i = 0; i < values.size() * sizeof(T); ++i) value_ = (value_ ^ bytes[i]) * 1099511628211ull;
    }
    void add(const Numbers& values) {
        if (values.type == Type::float32) {
            add(values.floats);
        } else {
            add(values.halves);
        }
    }
    void add(float value) { add(std::vector<float>{value}); }

  private:
    std::string name_;
    uint64_t value_ = 14695981039346656037ull;
};

void linear(int rows, int width, int channels, bool step, bool with_shift, float clip, Type type, int threads) {
    const size_t inputs_size = static_cast<size_t>(rows) * width, outputs = static_cast<size_t>(rows) * channels;
    std::vector<float> x = numbers(inputs_size, -2, 2);
    const float edges[] = {0.0f, -0.0f, 0.5f, 1.0f, -1.0f, clip, -clip, 1e-30f, -1e-30f, 0.99999994f, 1.0000001f};
    for (size_t i = 0; i < x.size() && i < sizeof(edges) / sizeof(float); ++i) x[i] = std::fmin(edges[i], 100.0f);
    const std::vector<float> shift = numbers(width, -0.2f, 0.2f), bias = numbers(channels, -1, 1);
    const std::vector<float> scale = numbers(channels, 0.1f, 1),
                             weight = numbers(static_cast<size_t>(channels) * width, -1, 1);
    Hash hash("linear " + std::to_string(rows) + " " + std::to_string(width) + " " + std::to_string(channels) +
              (step ? " step" : " sign") + (with_shift ? " shift" : "") + (type == Type::bfloat16 ? " half" : ""));
    std::vector<uint64_t> packed(packed_words(channels, width));
    std::vector<int32_t> sums((channels + kLanes - 1) / kLanes * kLanes);
    pack_weight(weight.data(), channels, width, 0.01f, packed.data(), sums.data(), threads);
    Numbers from(x, type), y(outputs, type), plane(static_cast<size_t>(channels) * width, type);
    expand_weight(packed.data(), channels, width, scale.data(), plane.tensor(), threads);
    const Inputs in{rows, width, with_shift ? shift.data() : nullptr, clip, 1.0f, step};
    std::vector<uint8_t> code(inputs_size * kCodeBytes);
    std::vector<int16_t> integers(outputs);
    const Layer layer{packed.data(), sums.data(), channels, scale.data(), with_shift ? bias.data() : nullptr};
    linear_forward(in, from.tensor(), layer, y.tensor(), integers.data(), code.data(), threads);
    hash.add(packed);
    hash.add(sums);
    hash.add(plane);
    hash.add(y);
    hash.add(integers);
    hash.add(code);
    rescale_integers(integers.data(), rows, channels, scale.data(), layer.bias, y.tensor(), threads);
    hash.add(y);
    Numbers grad(numbers(inputs_size, -1, 1), type), dequantized(inputs_size, type);
    std::vector<float> shift_grad(width);
    hash.add(inputs_backward(in, code.data(), grad.tensor(), dequantized.tensor(), shift_grad.data(), threads));
    hash.add(grad);
    hash.add(dequantized);
    hash.add(shift_grad);
}

void attention(const Shape& s, int groups, bool aligned, bool extras, bool of_batch, Type type, int threads) {
    const size_t width = static_cast<size_t>(s.heads) * s.channels, pairs = static_cast<size_t>(s.tokens) * s.tokens;
    const size_t rows = static_cast<size_t>(s.batch) * s.tokens, of_heads = static_cast<size_t>(s.batch) * s.heads;
    Hash hash("attention " + std::to_string(s.tokens) + " " + std::to_string(s.channels) + " " +
              std::to_string(groups) + (aligned ? " aligned" : "") + (type == Type::bfloat16 ? " half" : ""));
    Numbers qkv(numbers(rows * 3 * width, -1, 1), type);
    const std::vector<float> shifts = numbers(3 * width, -0.2f, 0.2f), E = numbers(s.heads * pairs, -0.1f, 0.1f);
    const std::vector<float> P = numbers(of_heads * pairs, 0, 1);
    const float* shift = extras ? shifts.data() : nullptr;
    const float* bias = extras ? E.data() : nullptr;
    const Heads heads{
        s, qkv.tensor(), {shift, shift ? shift + width : nullptr, shift ? shift + 2 * width : nullptr}, 0.7f, 0.6f};
    std::vector<float> S(of_heads * pairs), most(s.batch), ends(2 * s.batch), V(of_heads * s.tokens * s.channels);
    scores(heads, 0.125f, S.data(), threads);
    attention_extremes(s, P.data(), bias, most.data(), threads);
    value_extremes(heads, ends.data(), threads);
    const int batch = of_batch ? 1 : s.batch;
    std::vector<float> attention_limits, value_limits;
    for (int g = 1; g < groups; ++g) {
        const float part = 0.5f + 0.15f * static_cast<float>(g);
        for (int b = 0; b < batch; ++b) attention_limits.push_back(part * most[b]);
        for (int b = 0; b < batch; ++b) value_limits.push_back(part * ends[b]);
        for (int b = 0; b < batch; ++b) value_limits.push_back(part * ends[s.batch + b]);
    }
    const std::vector<float> a_scales = numbers(groups, 0.2f, 0.9f), v_scales = numbers(groups, 0.2f, 0.9f);
    const Groups a{groups, a_scales.data(), attention_limits.data(), batch};
    const Groups v{groups, v_scales.data(), value_limits.data(), batch};
    superpose_values(heads, v, V.data(), threads);
    Numbers y(rows * width, type), grad(numbers(rows * width, -1, 1), type), grad_qkv(rows * 3 * width, type);
    attend(s, P.data(), bias, a, V.data(), y.tensor(), threads);
    std::vector<float> work(of_heads * pairs), grad_bias(s.heads * pairs), grad_shifts(of_heads * 3 * s.channels);
    std::vector<float> grad_scales(of_heads * (2 + 2 * groups));
    std::vector<int32_t> members(of_heads * 2 * groups);
    attend_backward(heads, P.data(), bias, a, v, aligned, V.data(), grad.tensor(),
                    {grad_qkv.tensor(), work.data(), bias ? grad_bias.data() : nullptr, grad_shifts.data(),
                     grad_scales.data(), members.data()},
                    threads);
    for (const auto* part : {&S, &most, &ends, &V, &work, &grad_bias, &grad_shifts, &grad_scales}) hash.add(*part);
    hash.add(y);
    hash.add(grad_qkv);
    hash.add(members);
}

}  // namespace

int main() {
    if (!supported()) {
        std::puts("not supported");
        return 0;
    }
    const float none = INFINITY;
    for (Type type : {Type::float32, Type::bfloat16}) {
        for (int width : {1, 15, 16, 63, 65, 192, 513, 4100}) {
            for (bool step : {false, true}) {
                linear(5, width, 37, step, true, none, type, 1);
                linear(70, width, 16, step, false, 1.25f, type, 2);
            }
        }
        for (int tokens : {2, 5, 16, 66}) {
            for (int channels : {16, 48, 112}) {
                attention({3, tokens, 2, channels}, 3, true, true, false, type, 1);
                attention({2, tokens, 3, channels}, 1 + tokens % 4, false, false, true, type, 2);
            }
        }
    }
    return 0;
}
