// Which backends this machine can run, and the choice of one.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace gsb {

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif
#if defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

// Best first; asked of the processor once.
const std::vector<const Kernels*>& available_kernels();

// "avx512, avx2, portable"
const std::string& available_names();

// The backend of that name, or, for an empty name, the one that the environment variable GSB_VIT_BACKEND names, or else
// the best. Throws Error listing what there is.
const Kernels& choose_kernels(const std::string& name);

}  // namespace gsb
