// Operand rows of WeightLayout::triples.
#pragma once

#include <cstdint>

namespace gsb {

// Words x0 x1 x2 of each whole triple → (x0, x0^x1, x0^x1^x2); what is left over stays as it is.
inline void prepare_triples(const uint32_t* from, int depth, uint32_t* to) {
    int k = 0;
    for (; k + 3 <= depth; k += 3) {
        to[k] = from[k];
        to[k + 1] = from[k] ^ from[k + 1];
        to[k + 2] = to[k + 1] ^ from[k + 2];
    }
    for (; k < depth; ++k) to[k] = from[k];
}

}  // namespace gsb
