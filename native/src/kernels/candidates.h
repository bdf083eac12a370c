// What backends share of listing a row's candidates; finding the entries above the limit is their own.
#pragma once

#include "kernels/contract.h"

namespace gsb {

// The limit as far as it is known.
inline float limit_of(const Candidates& c) {
    return c.fixed ? c.limit : c.ratio * c.maximum;
}

// Begins the list of a row whose largest entry is `largest`, counted from the first of the call. False: it stays empty,
// or has to be made again because it might not fit.
inline bool begin_list(Candidates& c, int row, int tokens, float largest) {
    c.maximum = largest > c.maximum ? largest : c.maximum;
    c.begin[row] = c.used;
    c.count[row] = 0;
    if (!(largest > limit_of(c))) return false;
    if (c.capacity - c.used >= static_cast<size_t>(tokens)) return true;
    c.count[row] = -1;
    return false;
}

// Adds the entries a[first + i] of bits i that are set.
inline void list_marked(Candidates& c, unsigned marked, int first, const float* a) {
    for (; marked != 0; marked &= marked - 1) {
        const int column = first + __builtin_ctz(marked);
        c.columns[c.used] = column;
        c.values[c.used++] = a[column];
    }
}

inline void end_list(Candidates& c, int row) {
    c.count[row] = static_cast<int32_t>(c.used - c.begin[row]);
}

}  // namespace gsb
