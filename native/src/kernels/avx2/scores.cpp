// AVX2 kernels: scores.
//
// Contract: kernels/contract.h. Sixteen keys are two registers, so that the lanes of a sum are those of sum16.
#include <cstring>

#include "kernels/avx2/isa.h"
#include "kernels/candidates.h"
#include "kernels/contract.h"

namespace gsb::avx2 {

namespace {

struct Range {
    int smallest, largest;
};

// Distances of one query to all keys, WORDS words each (0: s.words), and their extremes.
template <int WORDS>
GSB_AVX2_INLINE Range distances(const Scores& s, const uint32_t* query) {
    constexpr int kWords = 31;  // as many counts of eight fit in a byte
    const int words = WORDS ? WORDS : s.words;
    const ByteCounts once(1);
    __m256i smallest = _mm256_set1_epi32(s.head_dim), largest = _mm256_setzero_si256();
    for (int j = 0; j < s.tokens; j += 8) {
        __m256i z = _mm256_setzero_si256();
        for (int first = 0; first < words; first += kWords) {
            const int end = words - first < kWords ? words : first + kWords;
            __m256i bytes = _mm256_setzero_si256();
            for (int w = first; w < end; ++w) {
                const __m256i q = _mm256_set1_epi32(static_cast<int>(query[w]));
                bytes = once.added(bytes, _mm256_xor_si256(q, load256(s.keys + w * s.key_stride + j)));
            }
            z = _mm256_add_epi32(z, sum_bytes(bytes));
        }
        // Lanes without a key repeat the first.
        const __m256i real = _mm256_broadcastd_epi32(_mm256_castsi256_si128(z));
        if (s.tokens - j < 8) z = _mm256_blendv_epi8(real, z, lanes256(s.tokens - j));
        smallest = _mm256_min_epi32(smallest, z);
        largest = _mm256_max_epi32(largest, z);
        store256(s.distances + j, z);
    }
    __m128i least = _mm_min_epi32(_mm256_castsi256_si128(smallest), _mm256_extracti128_si256(smallest, 1));
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    least = _mm_min_epi32(least, _mm_shuffle_epi32(least, 0x4E));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4E));
    return {_mm_cvtsi128_si32(_mm_min_epi32(least, _mm_shuffle_epi32(least, 0xB1))),
            _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xB1)))};
}

// The exponentials of distances that span less than 8·N, in registers: entry z at z mod 8·N.
template <int N>
struct InRegisters {
    __m256 table[N];

    GSB_AVX2_INLINE InRegisters(const Scores& s, int smallest) {
        const float* window = s.exp_tables + (N == 4 ? kExpCyclic32 : kExpCyclic64) + 8 * N - smallest % (8 * N);
        for (int i = 0; i < N; ++i) table[i] = _mm256_loadu_ps(window + 8 * i);
    }
    GSB_AVX2_INLINE __m256 at(__m256i z) const {
        __m256 found[N];
        for (int i = 0; i < N; ++i) found[i] = _mm256_permutevar8x32_ps(table[i], z);
        // Bits 3, 4 … of z choose between neighbours.
        for (int bit = 3, left = N; left > 1; ++bit, left /= 2) {
            const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(z, 31 - bit));
            for (int i = 0; i < left / 2; ++i) found[i] = _mm256_blendv_ps(found[2 * i], found[2 * i + 1], upper);
        }
        return found[0];
    }
};

struct Gathered {
    const float* table;
    __m256i smallest;

    GSB_AVX2_INLINE Gathered(const Scores& s, int least)
        : table(s.exp_tables + kExpTable), smallest(_mm256_set1_epi32(least)) {}
    GSB_AVX2_INLINE __m256 at(__m256i z) const { return _mm256_i32gather_ps(table, _mm256_sub_epi32(z, smallest), 4); }
};

// Writes the exponentials to s.row, zeros behind them up to a multiple of 16, and returns their sum.
template <class Table>
GSB_AVX2_INLINE float exponentials(const Scores& s, int smallest) {
    const Table table(s, smallest);
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int j = 0; j < s.tokens; j += 16) {
        for (int part = 0; part < 2; ++part) {
            const int at = j + 8 * part;
            __m256 p = _mm256_setzero_ps();
            if (at < s.tokens) {
                p = table.at(load256(s.distances + at));
                if (s.tokens - at < 8) p = _mm256_and_ps(p, _mm256_castsi256_ps(lanes256(s.tokens - at)));
            }
            sum[part] = _mm256_add_ps(sum[part], p);
            _mm256_storeu_ps(s.row + at, p);
        }
    }
    return fold16(sum[0], sum[1]);
}

GSB_AVX2_INLINE float powers(const Scores& s, Range range) {
    const int span = range.largest - range.smallest;
    if (span < 32) return exponentials<InRegisters<4>>(s, range.smallest);
    if (span < 64) return exponentials<InRegisters<8>>(s, range.smallest);
    return exponentials<Gathered>(s, range.smallest);
}

// The bias of a row; `at` gives that of eight keys.
struct FloatBias {
    const float *row, *first;
    int prefix;
    GSB_AVX2_INLINE FloatBias(const Scores& s, int i)
        : row(s.bias + s.bias_begin[i]), first(s.bias_first + 16 * (i < s.prefix ? i : s.prefix)), prefix(s.prefix) {}
    GSB_AVX2_INLINE __m256 at(int j, int) const {
        const __m256 bias = _mm256_loadu_ps(row + j);
        if (j >= prefix) return bias;
        return _mm256_blendv_ps(bias, _mm256_loadu_ps(first + j), _mm256_castsi256_ps(lanes256(prefix - j)));
    }
};

struct HalfBias {
    const uint16_t* row;
    GSB_AVX2_INLINE HalfBias(const Scores& s, int i) : row(s.half_bias + static_cast<size_t>(i) * s.tokens) {}
    GSB_AVX2_INLINE __m256 at(int j, int lanes) const {
        uint16_t last[8] = {};
        const uint16_t* from = row + j;
        if (lanes < 8) from = static_cast<uint16_t*>(std::memcpy(last, from, lanes * sizeof(*from)));
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
};

GSB_AVX2_INLINE float largest_of(__m256 x) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

// Turns the exponentials in s.row into row i of A and M_0; returns the largest entry.
template <class Bias>
GSB_AVX2_INLINE float finish_row(const Scores& s, int i, float sum) {
    const Bias bias(s, i);
    const __m256 factor = _mm256_set1_ps(1.0f / sum), half = _mm256_set1_ps(s.half_scale);
    const __m256 none = _mm256_set1_ps(-__builtin_inff());
    __m256 largest = none;
    auto* mask = reinterpret_cast<uint8_t*>(s.masks + i * s.mask_stride);
    for (int j = 0; j < s.tokens; j += 8) {
        const int lanes = s.tokens - j;
        __m256 a = _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(s.row + j), factor), bias.at(j, lanes));
        if (lanes < 8) a = _mm256_blendv_ps(none, a, _mm256_castsi256_ps(lanes256(lanes)));
        mask[j / 8] = static_cast<uint8_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, half, _CMP_GT_OQ)));
        largest = _mm256_max_ps(largest, a);
        _mm256_storeu_ps(s.row + j, a);
    }
    return largest_of(largest);
}

GSB_AVX2_INLINE void collect(Candidates& c, int row, const Scores& s, float largest) {
    if (!begin_list(c, row, s.tokens, largest)) return;
    const __m256 limits = _mm256_set1_ps(limit_of(c));
    for (int j = 0; j < s.tokens; j += 8) {
        const __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(s.row + j), limits, _CMP_GT_OQ);
        list_marked(c, static_cast<unsigned>(_mm256_movemask_ps(above)), j, s.row);
    }
    end_list(c, row);
}

template <int WORDS, class Bias>
GSB_AVX2_APART void score_rows(const Scores& given) {
    const Scores s = given;
    for (int i = s.first; i < s.last; ++i) {
        const Range range = distances<WORDS>(s, s.queries + i * s.query_stride);
        const float largest = finish_row<Bias>(s, i, powers(s, range));
        if (s.candidates) collect(*s.candidates, i - s.first, s, largest);
    }
}

template <class Bias>
GSB_AVX2_INLINE void score_words(const Scores& s) {
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

GSB_AVX2 void scores(const Scores& s) {
    if (s.half_bias) {
        score_words<HalfBias>(s);
    } else {
        score_words<FloatBias>(s);
    }
}

}  // namespace gsb::avx2
