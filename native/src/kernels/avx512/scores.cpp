// AVX-512 kernels: scores.
//
// Contract: kernels/contract.h. Sixteen keys a register, one a 32-bit lane, so that lane l of a sum is lane l of sum16.
#include <cstring>

#include "kernels/avx512/isa.h"
#include "kernels/candidates.h"
#include "kernels/contract.h"

namespace gsb::avx512 {

namespace {

GSB_AVX512_INLINE __mmask16 lanes_of(int j, int tokens) {
    return tokens - j < 16 ? first_lanes(tokens - j) : static_cast<__mmask16>(0xFFFF);
}

struct Range {
    int smallest, span;
};

// The least of sixteen numbers below 65536.
GSB_AVX512_INLINE int least_lane(__m512i x) {
    const __m256i half = _mm512_cvtepi32_epi16(x);
    const __m128i eight = _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(eight)) & 0xFFFF;
}

// Distances of one query to sixteen keys, WORDS words each (0: `words`).
template <int WORDS>
GSB_AVX512_INLINE __m512i distances_to(const uint32_t* query, const uint32_t* keys, size_t key_stride, int words) {
    __m512i z = _mm512_setzero_si512();
    for (int w = 0; w < (WORDS ? WORDS : words); ++w) {
        const __m512i differing = _mm512_xor_si512(broadcast(query + w), load(keys + w * key_stride));
        const __m512i count = _mm512_popcnt_epi32(differing);
        z = w == 0 ? count : _mm512_add_epi32(z, count);
    }
    return z;
}

// Distances of one query to all keys; returns the smallest, and how far the largest is from it.
template <int WORDS>
GSB_AVX512_INLINE Range distances(const Scores& s, int row, int32_t* z) {
    const uint32_t *query = s.queries + row * s.query_stride, *keys = s.keys;
    __m512i smallest = _mm512_set1_epi32(s.head_dim), largest = _mm512_setzero_si512();
    int j = 0;
#pragma GCC unroll 13
    for (; j + 16 <= s.tokens; j += 16) {
        const __m512i here = distances_to<WORDS>(query, keys + j, s.key_stride, s.words);
        _mm512_storeu_si512(z + j, here);
        smallest = _mm512_min_epi32(smallest, here);
        largest = _mm512_max_epi32(largest, here);
    }
    if (j < s.tokens) {
        const __mmask16 lanes = lanes_of(j, s.tokens);
        const __m512i here = distances_to<WORDS>(query, keys + j, s.key_stride, s.words);
        _mm512_storeu_si512(z + j, here);
        smallest = _mm512_mask_min_epi32(smallest, lanes, smallest, here);
        largest = _mm512_mask_max_epi32(largest, lanes, largest, here);
    }
    const int least = least_lane(smallest);
    return {least, 65535 - least_lane(_mm512_sub_epi32(_mm512_set1_epi32(65535), largest)) - least};
}

// A row's exponentials of distances that span less than 32, in registers: entry z at z mod 32.
struct Narrow {
    __m512 low, high;

    GSB_AVX512_INLINE void load(const Scores& s, int smallest) {
        const float* window = s.exp_tables + kExpCyclic32 + 32 - smallest % 32;
        low = _mm512_loadu_ps(window);
        high = _mm512_loadu_ps(window + 16);
    }
    GSB_AVX512_INLINE __m512 at(__m512i z) const { return _mm512_permutex2var_ps(low, z, high); }
};

// Likewise less than 64.
struct Wide {
    Narrow even, odd;  // 32 entries each: bit 5 of z clear, set

    GSB_AVX512_INLINE void load(const Scores& s, int smallest) {
        const float* window = s.exp_tables + kExpCyclic64 + 64 - smallest % 64;
        even = {_mm512_loadu_ps(window), _mm512_loadu_ps(window + 16)};
        odd = {_mm512_loadu_ps(window + 32), _mm512_loadu_ps(window + 48)};
    }
    GSB_AVX512_INLINE __m512 at(__m512i z) const {
        return _mm512_mask_blend_ps(_mm512_test_epi32_mask(z, _mm512_set1_epi32(32)), even.at(z), odd.at(z));
    }
};

// Any others, from memory.
struct Gathered {
    const float* table;
    __m512i smallest;

    GSB_AVX512_INLINE void load(const Scores& s, int least) {
        table = s.exp_tables + kExpTable;
        smallest = _mm512_set1_epi32(least);
    }
    GSB_AVX512_INLINE __m512 at(__m512i z) const {
        // Lanes without a key may hold any distance: let them look at the first entry.
        const __m512i entry = _mm512_max_epi32(_mm512_sub_epi32(z, smallest), _mm512_setzero_si512());
        return _mm512_i32gather_ps(entry, table, 4);
    }
};

// The bias of a row, from floats or halves. Prefix keys have their own: first_keys() is for keys 0 … 15.
struct FloatBias {
    const float *row, *first;
    __mmask16 prefix;
    GSB_AVX512_INLINE FloatBias(const Scores& s, int i)
        : row(s.bias + s.bias_begin[i]),
          first(s.bias_first + 16 * (i < s.prefix ? i : s.prefix)),
          prefix(first_lanes(s.prefix)) {}
    GSB_AVX512_INLINE __m512 first_keys(__mmask16) const {
        return _mm512_mask_loadu_ps(_mm512_loadu_ps(row), prefix, first);
    }
    GSB_AVX512_INLINE __m512 keys(int j, __mmask16) const { return _mm512_loadu_ps(row + j); }
};

struct HalfBias {
    const uint16_t* row;
    GSB_AVX512_INLINE HalfBias(const Scores& s, int i) : row(s.half_bias + static_cast<size_t>(i) * s.tokens) {}
    GSB_AVX512_INLINE __m512 first_keys(__mmask16 lanes) const { return keys(0, lanes); }
    GSB_AVX512_INLINE __m512 keys(int j, __mmask16 lanes) const {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, row + j));
    }
};

// Turns the distances z of a row into exponentials, in place, and returns their sum, lane by lane.
template <class Table>
GSB_AVX512_INLINE __m512 exponentials(const Scores& s, int smallest, int32_t* z) {
    Table table;
    table.load(s, smallest);
    __m512 sum = _mm512_setzero_ps();
    int j = 0;
#pragma GCC unroll 13
    for (; j + 16 <= s.tokens; j += 16) {
        const __m512 p = table.at(load(z + j));
        sum = _mm512_add_ps(sum, p);
        _mm512_storeu_ps(z + j, p);
    }
    if (j < s.tokens) {
        const __m512 p = _mm512_maskz_mov_ps(lanes_of(j, s.tokens), table.at(load(z + j)));
        sum = _mm512_add_ps(sum, p);
        _mm512_storeu_ps(z + j, p);
    }
    return sum;
}

// Lists the entries above the limit of a row with exponentials p.
template <class Bias>
GSB_AVX512_APART void collect(Candidates& c, int row, const Scores& s, const int32_t* p, __m512 factor,
                              const Bias& bias, float largest) {
    c.maximum = largest > c.maximum ? largest : c.maximum;
    const float limit = limit_of(c);
    if (!(largest > limit)) return;
    if (c.capacity - c.used < static_cast<size_t>(s.tokens)) {
        c.count[row] = -1;
        return;
    }
    const __m512 limits = _mm512_set1_ps(limit);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t used = c.used;
    for (int j = 0; j < s.tokens; j += 16) {
        const __mmask16 lanes = lanes_of(j, s.tokens);
        const __m512 e = j == 0 ? bias.first_keys(lanes) : bias.keys(j, lanes);
        const __m512 a = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(p + j), factor), e);
        const __mmask16 above = _mm512_mask_cmp_ps_mask(lanes, a, limits, _CMP_GT_OQ);
        if (!above) continue;
        const __m512i column = _mm512_add_epi32(lane, _mm512_set1_epi32(j));
        _mm512_storeu_ps(c.values + used, _mm512_maskz_compress_ps(above, a));
        _mm512_storeu_si512(c.columns + used, _mm512_maskz_compress_epi32(above, column));
        used += static_cast<size_t>(__builtin_popcount(above));
    }
    c.count[row] = static_cast<int32_t>(used - c.used);
    c.used = used;
}

// Sixteen entries of a row from key j on: M_0, and the largest so far.
template <bool FIRST, bool WHOLE, class Bias>
GSB_AVX512_INLINE void finish_keys(const Scores& s, const int32_t* p, char* masks, int j, __m512 factor,
                                   const Bias& bias, __m512& largest) {
    const __mmask16 lanes = WHOLE ? static_cast<__mmask16>(0xFFFF) : lanes_of(j, s.tokens);
    const __m512 half = _mm512_set1_ps(s.half_scale);
    const __m512 e = FIRST ? bias.first_keys(lanes) : bias.keys(j, lanes);
    const __m512 a = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(p + j), factor), e);
    const uint16_t bits =
        WHOLE ? _mm512_cmp_ps_mask(a, half, _CMP_GT_OQ) : _mm512_mask_cmp_ps_mask(lanes, a, half, _CMP_GT_OQ);
    std::memcpy(masks + j / 8, &bits, sizeof(bits));
    largest = WHOLE ? _mm512_max_ps(largest, a) : _mm512_mask_max_ps(largest, lanes, largest, a);
}

// A row from its exponentials p to its mask; returns the largest entries, lane by lane.
template <class Bias>
GSB_AVX512_INLINE __m512 finish(const Scores& s, int row, const int32_t* p, __m512 factor, const Bias& bias) {
    char* masks = reinterpret_cast<char*>(s.masks + row * s.mask_stride);
    __m512 largest = _mm512_set1_ps(-__builtin_inff());
    if (s.tokens < 16) {
        finish_keys<true, false>(s, p, masks, 0, factor, bias, largest);
        return largest;
    }
    finish_keys<true, true>(s, p, masks, 0, factor, bias, largest);
    int j = 16;
#pragma GCC unroll 13
    for (; j + 16 <= s.tokens; j += 16) finish_keys<false, true>(s, p, masks, j, factor, bias, largest);
    if (j < s.tokens) finish_keys<false, false>(s, p, masks, j, factor, bias, largest);
    return largest;
}

// Rows `row` … `end` − 1, at most kScoreRows: step by step, as each step's results come late and many can be under way.
template <int WORDS, class Bias>
GSB_AVX512_INLINE void score_some(const Scores& given, const Scores& s, int row, int end) {
    Range ranges[kScoreRows];
    __m512 factor[kScoreRows];
    const int rows = end - row;
    int32_t* z = s.distances;
    int span = 0;
    for (int r = 0; r < rows; ++r) {
        ranges[r] = distances<WORDS>(s, row + r, z + r * s.key_stride);
        span = ranges[r].span > span ? ranges[r].span : span;
    }
    // By the widest of them: branches on each row's own span would be mispredicted too often.
    for (int r = 0; r < rows; ++r) {
        int32_t* here = z + r * s.key_stride;
        factor[r] = span < 32   ? exponentials<Narrow>(s, ranges[r].smallest, here)
                    : span < 64 ? exponentials<Wide>(s, ranges[r].smallest, here)
                                : exponentials<Gathered>(s, ranges[r].smallest, here);
    }
    for (int r = 0; r < rows; ++r) factor[r] = _mm512_set1_ps(1.0f / fold16(factor[r]));
    for (int r = 0; r < rows; ++r) {
        const int32_t* p = z + r * s.key_stride;
        const Bias bias(s, row + r);
        const __m512 largest = finish(s, row + r, p, factor[r], bias);
        if (!s.candidates) continue;
        // Most rows have no candidates: one without an entry above the limit and the maximum so far changes nothing.
        Candidates& c = *s.candidates;
        const int at = row + r - s.first;
        c.begin[at] = c.used;
        c.count[at] = 0;
        const float limit = limit_of(c), bound = limit < c.maximum ? limit : c.maximum;
        if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(bound), _CMP_GT_OQ)) {
            collect(c, at, given, p, factor[r], Bias(given, row + r), _mm512_reduce_max_ps(largest));
        }
    }
}

// TOKENS: how many, or 0 where that is known when it runs.
template <int WORDS, int TOKENS, class Bias>
GSB_AVX512_APART void score_rows(const Scores& given) {
    Scores s = given;  // a copy of its own, which the stores cannot be thought to change
    if (TOKENS) {
        s.tokens = TOKENS;
        s.key_stride = (TOKENS + 63) / 64 * 64;
    }
    for (int row = s.first; row < s.last; row += kScoreRows) {
        score_some<WORDS, Bias>(given, s, row, s.last - row < kScoreRows ? s.last : row + kScoreRows);
    }
}

template <class Bias>
GSB_AVX512_INLINE void score_words(const Scores& s) {
    // The shapes that most models have, 64 channels a head and 196 patches, as constants: loops unroll.
    if (s.words == 2 && s.tokens == 197) return score_rows<2, 197, Bias>(s);
    if (s.words == 2 && s.tokens == 198) return score_rows<2, 198, Bias>(s);
    switch (s.words) {
        case 1:
            return score_rows<1, 0, Bias>(s);
        case 2:
            return score_rows<2, 0, Bias>(s);
        case 3:
            return score_rows<3, 0, Bias>(s);
        default:
            return score_rows<0, 0, Bias>(s);
    }
}

}  // namespace

GSB_AVX512 void scores(const Scores& s) {
    if (s.half_bias) {
        score_words<HalfBias>(s);
    } else {
        score_words<FloatBias>(s);
    }
}

}  // namespace gsb::avx512
