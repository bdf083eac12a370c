// NEON with the dot products of ARMv8.2: what differs from neon/.
#pragma once

#include "kernels/contract.h"

// Of each function, not of the file: nothing outside the kernels may use instructions the processor may lack.
#if defined(__clang__)
#define GSB_NEON_DOT __attribute__((target("dotprod")))
#else
#define GSB_NEON_DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define GSB_NEON_DOT_INLINE GSB_NEON_DOT __attribute__((always_inline)) inline

namespace gsb::neon_dot {

// edges.cpp
kernel::PatchesEmbed patches_embed;
kernel::DotBytes dot_bytes;

}  // namespace gsb::neon_dot
