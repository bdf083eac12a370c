// Portable kernels: scores.
//
// Contract: kernels/contract.h.
#include "kernels/portable/isa.h"
#include "kernels/row_scores.h"

namespace gsb::portable {

namespace {

// Distances of one query to all keys, two words at a time.
struct WordDistances {
    void operator()(const Scores& s, const uint32_t* query, int32_t* z) const {
        for (int w = 0; w < s.words; w += 2) {
            const bool pair = w + 1 < s.words;
            const uint32_t *low = s.keys + w * s.key_stride, *high = pair ? low + s.key_stride : low;
            const uint64_t upper = pair ? ~uint64_t{0} << 32 : 0;
            const uint64_t bits = query[w] | (pair ? static_cast<uint64_t>(query[w + 1]) << 32 : 0);
            for (int j = 0; j < s.tokens; ++j) {
                const uint64_t key = low[j] | (static_cast<uint64_t>(high[j]) << 32 & upper);
                z[j] = (w == 0 ? 0 : z[j]) + __builtin_popcountll(bits ^ key);
            }
        }
    }
};

}  // namespace

void scores(const Scores& s) {
    RowScores<WordDistances>::run(s);
}

}  // namespace gsb::portable
