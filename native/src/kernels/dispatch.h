// Which backends this machine can run, and the choice of one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/contract.h"

namespace gsb {

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif
#if defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const Kernels kNeonDotKernels;
#endif
#if defined(__wasm_simd128__)
extern const Kernels kWasmKernels;
#endif

// What kernels ask of a processor, and the operating system saves.
struct Features {
#if defined(__aarch64__)
    bool dotprod;
#else
    bool avx2, f16c, avx512f, avx512bw, avx512dq, avx512vl, avx512vpopcntdq, avx512vnni;
#endif
};
Features processor_features();

// The backends a processor with these features can run, best first. AVX-512 counts only as a whole: without VPOPCNTDQ
// (Skylake-X, Cascade Lake) AVX2 it is.
std::vector<const Kernels*> kernels_for(const Features& features);

// Best first; asked of the processor once.
const std::vector<const Kernels*>& available_kernels();

// "avx512, avx2, portable"
const std::string& available_names();

// The backend of that name, or, for an empty name, the one that the environment variable GSB_VIT_BACKEND names, or else
// the best. Throws Error listing what there is.
const Kernels& choose_kernels(std::string_view name);

}  // namespace gsb
