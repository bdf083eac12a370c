// Runs a fuzz target without libFuzzer, so that any compiler can build and try it:
//   replay COUNT FILE...
// tries each file, then COUNT inputs made from them by the target's own mutator, or of random bytes where it has none.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" __attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t*, size_t, size_t, unsigned int);

// In place of libFuzzer's: one other byte.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t) {
    if (size > 0) data[static_cast<size_t>(std::rand()) % size] = static_cast<uint8_t>(std::rand());
    return size;
}

int main(int count, char** arguments) {
    constexpr size_t kLongest = 30000;
    std::vector<std::vector<uint8_t>> inputs;
    const int tries = count > 1 ? std::atoi(arguments[1]) : 0;
    for (int i = 2; i < count; ++i) {
        std::ifstream file(arguments[i], std::ios::binary);
        inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        LLVMFuzzerTestOneInput(inputs.back().data(), inputs.back().size());
    }
    for (int i = 0; i < tries; ++i) {
        std::vector<uint8_t> input;
        if (LLVMFuzzerCustomMutator != nullptr) {
            if (!inputs.empty()) input = inputs[static_cast<size_t>(i) % inputs.size()];
            const size_t size = input.size();
            input.resize(kLongest > size ? kLongest : size);
            input.resize(LLVMFuzzerCustomMutator(input.data(), size, input.size(), static_cast<unsigned int>(i)));
        } else {
            input.resize(static_cast<size_t>(std::rand()) % 1000);
            for (uint8_t& byte : input) byte = static_cast<uint8_t>(std::rand());
        }
        input.shrink_to_fit();
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("%zu inputs\n", inputs.size() + static_cast<size_t>(tries > 0 ? tries : 0));
    return 0;
}
