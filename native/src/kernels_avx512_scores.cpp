// AVX-512 kernels: scores.
//
// Contract: kernels.h. Sixteen keys a register, one a 32-bit lane, so that lane l of a sum is lane l of sum16.
#include <cstring>

#include "avx512.h"
#include "kernels.h"

namespace gsb {

namespace {

GSB_AVX512_INLINE __mmask16 lanes_of(int j, int tokens) {
    return tokens - j < 16 ? first_lanes(tokens - j) : static_cast<__mmask16>(0xFFFF);
}

struct Range {
    int smallest, largest;
};

// Sixteen keys from j on: the distances of R queries, and the extremes over the first `lanes`. Whole registers need no
// mask, which would cost a copy each.
template <int R, int WORDS, bool WHOLE>
GSB_AVX512_INLINE void distances_to(const Scores& s, const uint32_t* queries, int j, __mmask16 lanes,
                                    __m512i (&smallest)[R], __m512i (&largest)[R]) {
    const int words = WORDS ? WORDS : s.words;
    __m512i z[R];
    for (int w = 0; w < words; ++w) {
        const __m512i key = load(s.keys + w * s.key_stride + j);
        for (int r = 0; r < R; ++r) {
            const __m512i q = _mm512_set1_epi32(static_cast<int>(queries[r * s.query_stride + w]));
            const __m512i count = _mm512_popcnt_epi32(_mm512_xor_si512(q, key));
            z[r] = w == 0 ? count : _mm512_add_epi32(z[r], count);
        }
    }
    for (int r = 0; r < R; ++r) {
        _mm512_storeu_si512(s.distances + r * s.key_stride + j, z[r]);
        if (WHOLE) {
            smallest[r] = _mm512_min_epi32(smallest[r], z[r]);
            largest[r] = _mm512_max_epi32(largest[r], z[r]);
        } else {
            smallest[r] = _mm512_mask_min_epi32(smallest[r], lanes, smallest[r], z[r]);
            largest[r] = _mm512_mask_max_epi32(largest[r], lanes, largest[r], z[r]);
        }
    }
}

// Distances of R queries to all keys, WORDS words each (0: s.words), and each row's extremes.
template <int R, int WORDS>
GSB_AVX512_APART void distances(const Scores& given, int row, Range (&ranges)[R]) {
    const Scores s = given;  // a copy of its own, which the stores cannot be thought to change
    const uint32_t* queries = s.queries + row * s.query_stride;
    __m512i smallest[R], largest[R];
    for (int r = 0; r < R; ++r) {
        smallest[r] = _mm512_set1_epi32(s.head_dim);
        largest[r] = _mm512_setzero_si512();
    }
    int j = 0;
    for (; j + 16 <= s.tokens; j += 16) distances_to<R, WORDS, true>(s, queries, j, 0xFFFF, smallest, largest);
    if (j < s.tokens) distances_to<R, WORDS, false>(s, queries, j, lanes_of(j, s.tokens), smallest, largest);
    for (int r = 0; r < R; ++r) {
        ranges[r] = {_mm512_reduce_min_epi32(smallest[r]), _mm512_reduce_max_epi32(largest[r])};
    }
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

// Turns the distances z of R rows into exponentials, in place, and sums them.
template <class Table, int R>
GSB_AVX512_APART void exponentials(const Scores& given, const Range (&ranges)[R], int32_t* z, __m512 (&sums)[R]) {
    const Scores s = given;
    Table table[R];
    __m512 sum[R];
    for (int r = 0; r < R; ++r) {
        table[r].load(s, ranges[r].smallest);
        sum[r] = _mm512_setzero_ps();
    }
    int j = 0;
    for (; j + 16 <= s.tokens; j += 16) {
        for (int r = 0; r < R; ++r) {
            const __m512 p = table[r].at(load(z + r * s.key_stride + j));
            sum[r] = _mm512_add_ps(sum[r], p);
            _mm512_storeu_ps(z + r * s.key_stride + j, p);
        }
    }
    for (int r = 0; r < R; ++r) {
        if (j < s.tokens) {
            const __m512 p = _mm512_maskz_mov_ps(lanes_of(j, s.tokens), table[r].at(load(z + r * s.key_stride + j)));
            sum[r] = _mm512_add_ps(sum[r], p);
            _mm512_storeu_ps(z + r * s.key_stride + j, p);
        }
        sums[r] = sum[r];
    }
}

// Lists the entries above the limit of a row with exponentials p.
template <class Bias>
GSB_AVX512_APART void collect(Candidates& c, int row, const Scores& s, const int32_t* p, __m512 factor,
                              const Bias& bias, float largest) {
    c.maximum = largest > c.maximum ? largest : c.maximum;
    const float limit = c.fixed ? c.limit : c.ratio * c.maximum;
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

// Candidates of R rows, most of which have none: a row without an entry above the limit and the maximum so far changes
// nothing.
template <int R, class Bias>
GSB_AVX512_INLINE void collect_rows(Candidates& c, int row, const Scores& s, const int32_t* p,
                                    const __m512 (&factor)[R], const Bias* bias, const __m512 (&largest)[R]) {
    for (int r = 0; r < R; ++r) {
        c.begin[row + r] = c.used;
        c.count[row + r] = 0;
        const float limit = c.fixed ? c.limit : c.ratio * c.maximum, bound = limit < c.maximum ? limit : c.maximum;
        if (_mm512_cmp_ps_mask(largest[r], _mm512_set1_ps(bound), _CMP_GT_OQ)) {
            collect(c, row + r, s, p + r * s.key_stride, factor[r], bias[r], _mm512_reduce_max_ps(largest[r]));
        }
    }
}

// Sixteen entries of R rows from key j on: M_0, and the largest so far.
template <bool FIRST, bool WHOLE, int R, class Bias>
GSB_AVX512_INLINE void finish_keys(const Scores& s, const int32_t* p, char* masks, int j, const __m512 (&factor)[R],
                                   const Bias* bias, __m512 (&largest)[R]) {
    const __mmask16 lanes = WHOLE ? static_cast<__mmask16>(0xFFFF) : lanes_of(j, s.tokens);
    const __m512 half = _mm512_set1_ps(s.half_scale);
    for (int r = 0; r < R; ++r) {
        const __m512 e = FIRST ? bias[r].first_keys(lanes) : bias[r].keys(j, lanes);
        const __m512 a = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(p + r * s.key_stride + j), factor[r]), e);
        const uint16_t bits =
            WHOLE ? _mm512_cmp_ps_mask(a, half, _CMP_GT_OQ) : _mm512_mask_cmp_ps_mask(lanes, a, half, _CMP_GT_OQ);
        std::memcpy(masks + r * s.mask_stride * sizeof(*s.masks) + j / 8, &bits, sizeof(bits));
        largest[r] = WHOLE ? _mm512_max_ps(largest[r], a) : _mm512_mask_max_ps(largest[r], lanes, largest[r], a);
    }
}

// R rows from their exponentials p to masks and candidates.
template <int R, class Bias>
GSB_AVX512_APART void finish_rows(const Scores& given, int row, const int32_t* p, const __m512 (&sums)[R]) {
    const Scores s = given;
    __m512 factor[R], largest[R];
    for (int r = 0; r < R; ++r) {
        factor[r] = _mm512_set1_ps(1.0f / fold16(sums[r]));
        largest[r] = _mm512_set1_ps(-__builtin_inff());
    }
    const Bias bias[4] = {Bias(s, row), Bias(s, row + (R > 1)), Bias(s, row + (R > 2) * 2), Bias(s, row + (R > 3) * 3)};
    char* masks = reinterpret_cast<char*>(s.masks + row * s.mask_stride);
    if (s.tokens < 16) {
        finish_keys<true, false>(s, p, masks, 0, factor, bias, largest);
    } else {
        finish_keys<true, true>(s, p, masks, 0, factor, bias, largest);
        int j = 16;
        for (; j + 16 <= s.tokens; j += 16) finish_keys<false, true>(s, p, masks, j, factor, bias, largest);
        if (j < s.tokens) finish_keys<false, false>(s, p, masks, j, factor, bias, largest);
    }
    if (s.candidates) collect_rows(*s.candidates, row - s.first, s, p, factor, bias, largest);
}

template <int R, int WORDS, class Bias>
GSB_AVX512_INLINE void score_some(const Scores& s, int row) {
    Range ranges[R];
    __m512 sums[R];
    distances<R, WORDS>(s, row, ranges);
    int span = 0;
    for (int r = 0; r < R; ++r) {
        const int here = ranges[r].largest - ranges[r].smallest;
        span = here > span ? here : span;
    }
    if (span < 32) {
        exponentials<Narrow>(s, ranges, s.distances, sums);
    } else if (span < 64) {
        exponentials<Wide>(s, ranges, s.distances, sums);
    } else {
        exponentials<Gathered>(s, ranges, s.distances, sums);
    }
    finish_rows<R, Bias>(s, row, s.distances, sums);
}

template <int WORDS, class Bias>
GSB_AVX512_INLINE void score_rows(const Scores& s) {
    int row = s.first;
    for (; row + kScoreRows <= s.last; row += kScoreRows) score_some<kScoreRows, WORDS, Bias>(s, row);
    for (; row < s.last; ++row) score_some<1, WORDS, Bias>(s, row);
}

template <class Bias>
GSB_AVX512_INLINE void score_words(const Scores& s) {
    switch (s.words) {
        case 1:
            return score_rows<1, Bias>(s);
        case 2:
            return score_rows<2, Bias>(s);
        case 3:
            return score_rows<3, Bias>(s);
        default:
            return score_rows<0, Bias>(s);
    }
}

}  // namespace

GSB_AVX512 void scores_avx512(const Scores& s) {
    if (s.half_bias) {
        score_words<HalfBias>(s);
    } else {
        score_words<FloatBias>(s);
    }
}

}  // namespace gsb
