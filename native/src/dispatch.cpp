#include "dispatch.h"

#include <cstdlib>

#include "error.h"

namespace gsb {

namespace {

std::vector<const Kernels*> detect() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    // __builtin_cpu_supports asks the operating system, too, whether it saves the wide registers.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq") &&
        __builtin_cpu_supports("avx512vnni")) {
        found.push_back(&kAvx512Kernels);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) found.push_back(&kAvx2Kernels);
#endif
#if defined(__aarch64__)
    found.push_back(&kNeonKernels);  // part of every AArch64 processor
#endif
    found.push_back(&kPortableKernels);
    return found;
}

}  // namespace

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> kernels = detect();
    return kernels;
}

const std::string& available_names() {
    static const std::string names = [] {
        std::string text;
        for (const Kernels* kernels : available_kernels())
            text += (text.empty() ? "" : ", ") + std::string(kernels->name);
        return text;
    }();
    return names;
}

const Kernels& choose_kernels(const std::string& name) {
    std::string wanted = name, source = "backend";
    if (const char* forced = wanted.empty() ? std::getenv("GSB_VIT_BACKEND") : nullptr) {
        wanted = forced;
        source = "GSB_VIT_BACKEND";
    }
    if (wanted.empty()) return *available_kernels().front();
    for (const Kernels* kernels : available_kernels()) {
        if (wanted == kernels->name) return *kernels;
    }
    throw Error(source + " '" + wanted + "' cannot run on this machine; there is " + available_names());
}

}  // namespace gsb
