// The native tests without Python: selftest [MODEL PIXELS LOGITS] ...
//
// The thread pool; every kernel of every backend this machine can run against plain loops; then each packed file on
// each backend with one to three threads against logits from elsewhere, bit for bit. PIXELS and LOGITS hold raw
// numbers: uint8 (B, H, W, 3) and float32 (B, K). Prints what ran and "N passed, 0 failed".
#include "selftest.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "error.h"
#include "kernels/dispatch.h"
#include "model.h"

namespace gsb::selftest {

void Results::check(bool ok, const std::string& what) {
    constexpr int kPrinted = 20;
    ok ? ++passed_ : ++failed_;
    if (!ok && failed_ <= kPrinted) std::printf("FAILED %s\n", what.c_str());
}

float lanes_sum(const std::vector<float>& x) {
    float lane[16] = {};
    for (size_t i = 0; i < x.size(); ++i) lane[i % 16] = lane[i % 16] + x[i];
    for (int half : {8, 4, 2, 1}) {
        for (int l = 0; l < half; ++l) lane[l] = lane[l] + lane[l + half];
    }
    return lane[0];
}

namespace {

// What the processor can, as the operating system says it: a question of its own beside that of dispatch.cpp.
std::set<std::string> expected_backends() {
    std::set<std::string> expected = {"portable"};
#if defined(__aarch64__)
    expected.insert("neon");
    uint64_t instructions;  // Linux lets programs read this register; bits 47 to 44 are about dot products
    asm("mrs %0, ID_AA64ISAR0_EL1" : "=r"(instructions));
    if (instructions >> 44 & 15) expected.insert("neon_dot");
#elif defined(__x86_64__)
    std::ifstream cpu("/proc/cpuinfo");
    std::set<std::string> flags;
    for (std::string line; flags.empty() && std::getline(cpu, line);) {
        if (line.rfind("flags", 0) != 0) continue;
        std::istringstream words(line);
        flags.insert(std::istream_iterator<std::string>(words), std::istream_iterator<std::string>());
    }
    const auto all = [&](std::initializer_list<const char*> names) {
        for (const char* name : names) {
            if (flags.count(name) == 0) return false;
        }
        return true;
    };
    if (all({"avx2", "f16c"})) expected.insert("avx2");
    if (all({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vpopcntdq", "avx512_vnni"})) {
        expected.insert("avx512");
    }
#endif
    return expected;
}

std::string names(const Features& features) {
    std::string text;
    for (const Kernels* kernels : kernels_for(features)) text += std::string(text.empty() ? "" : " ") + kernels->name;
    return text;
}

// Which backends processors that are not this one would get.
void test_dispatch(Results& results) {
#if defined(__x86_64__)
    Features all{};
    all.avx2 = all.f16c = all.avx512f = all.avx512bw = all.avx512dq = all.avx512vl = true;
    all.avx512vpopcntdq = all.avx512vnni = true;
    results.check(names(all) == "avx512 avx2 portable", "dispatch: Ice Lake, Zen 4");
    results.check(names({}) == "portable", "dispatch: x86-64-v2");
    for (bool Features::* lacking : {&Features::avx512f, &Features::avx512bw, &Features::avx512dq, &Features::avx512vl,
                                     &Features::avx512vpopcntdq, &Features::avx512vnni}) {
        Features some = all;
        some.*lacking = false;
        results.check(names(some) == "avx2 portable", "dispatch: AVX-512 in part");
    }
    Features cascade_lake = all, skylake_x = all, haswell{}, odd = all;
    cascade_lake.avx512vpopcntdq = false;
    skylake_x.avx512vpopcntdq = skylake_x.avx512vnni = false;
    haswell.avx2 = haswell.f16c = true;
    odd.f16c = false;
    results.check(names(cascade_lake) == "avx2 portable", "dispatch: Cascade Lake");
    results.check(names(skylake_x) == "avx2 portable", "dispatch: Skylake-X");
    results.check(names(haswell) == "avx2 portable", "dispatch: Haswell");
    results.check(names(odd) == "portable", "dispatch: without F16C");
#elif defined(__aarch64__)
    Features dotprod{};
    dotprod.dotprod = true;
    results.check(names({}) == "neon portable", "dispatch: Cortex-A53, A72");
    results.check(names(dotprod) == "neon_dot neon portable", "dispatch: Cortex-A76");
#endif
    results.check(kernels_for(processor_features()) == available_kernels(), "dispatch: this processor");
}

std::vector<uint8_t> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(path + " cannot be read");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void test_model(const std::string& backend, char** files, Results& results) {
    const std::string path = files[0];
    const std::vector<uint8_t> pixels = read_file(files[1]), expected = read_file(files[2]);
    for (int threads = 1; threads <= 3; ++threads) {
        Model model(std::make_unique<PackedModel>(path), threads, backend);
        const Architecture& a = model.architecture();
        const size_t picture = static_cast<size_t>(a.image_height) * a.image_width * 3;
        const size_t count = pixels.size() / picture;
        std::vector<float> logits(count * a.num_classes);
        const std::string what = backend + " " + path + " threads " + std::to_string(threads);
        results.check(count > 0 && expected.size() == logits.size() * sizeof(float), what + ": sizes");
        if (expected.size() != logits.size() * sizeof(float)) continue;
        for (int time = 0; time < 2; ++time) {
            model.predict(pixels.data(), count, logits.data());
            results.check(std::memcmp(logits.data(), expected.data(), expected.size()) == 0, what);
        }
    }
}

int run(int argc, char** argv) {
    if ((argc - 1) % 3 != 0) throw Error("usage: selftest [MODEL PIXELS LOGITS] ...");
    Results results;
    test_dispatch(results);
    test_threads(results);
    if (argc > 1) test_workers(argv[1], read_file(argv[2]), results);
    std::set<std::string> ran;
    for (const Kernels* kernels : available_kernels()) {
        const int before = results.passed() + results.failed();
        test_products(*kernels, results);
        test_numbers(*kernels, results);
        test_scores(*kernels, results);
        test_values(*kernels, results);
        test_resize(*kernels, results);
        for (int i = 1; i < argc; i += 3) test_model(kernels->name, argv + i, results);
        ran.insert(kernels->name);
        std::printf("%s: %d checks\n", kernels->name, results.passed() + results.failed() - before);
    }
    for (const std::string& name : expected_backends()) {
        results.check(ran.count(name) == 1, name + " never ran, though this processor has it");
    }
    std::printf("%d passed, %d failed\n", results.passed(), results.failed());
    return results.failed() == 0 ? 0 : 1;
}

}  // namespace

}  // namespace gsb::selftest

int main(int argc, char** argv) {
    try {
        return gsb::selftest::run(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "selftest: %s\n", error.what());
        return 2;
    }
}
