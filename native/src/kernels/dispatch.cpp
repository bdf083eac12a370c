#include "kernels/dispatch.h"

#include <cstdlib>

#include "error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace gsb {

Features processor_features() {
    Features f{};
#if defined(__x86_64__)
    // __builtin_cpu_supports asks the operating system, too, whether it saves the wide registers.
    __builtin_cpu_init();
    f.avx2 = __builtin_cpu_supports("avx2");
    // Asked of the processor alone: older Clangs do not know the name, and what the system saves for AVX2 is enough.
    unsigned eax, ebx, ecx, edx;
    f.f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
    f.avx512f = __builtin_cpu_supports("avx512f");
    f.avx512bw = __builtin_cpu_supports("avx512bw");
    f.avx512dq = __builtin_cpu_supports("avx512dq");
    f.avx512vl = __builtin_cpu_supports("avx512vl");
    f.avx512vpopcntdq = __builtin_cpu_supports("avx512vpopcntdq");
    f.avx512vnni = __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    f.dotprod = true;  // of every processor that this is compiled for
#elif defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long kHasDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
    f.dotprod = getauxval(AT_HWCAP) & kHasDotProducts;
#endif
    return f;
}

std::vector<const Kernels*> kernels_for([[maybe_unused]] const Features& f) {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    // The AVX-512 kernels' loads of halves are F16C, too.
    const bool avx2 = f.avx2 && f.f16c;
    if (avx2 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl && f.avx512vpopcntdq && f.avx512vnni) {
        found.push_back(&kAvx512Kernels);
    }
    if (avx2) found.push_back(&kAvx2Kernels);
#endif
#if defined(__aarch64__)
    if (f.dotprod) found.push_back(&kNeonDotKernels);
    found.push_back(&kNeonKernels);  // part of every AArch64 processor
#endif
#if defined(__wasm_simd128__)
    found.push_back(&kWasmKernels);  // an engine without SIMD128 refuses the whole module
#endif
    found.push_back(&kPortableKernels);
    return found;
}

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> kernels = kernels_for(processor_features());
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

const Kernels& choose_kernels(std::string_view name) {
    std::string wanted(name), source = "backend";
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
