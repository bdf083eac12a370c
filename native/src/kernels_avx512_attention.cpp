// AVX-512 kernels: scores, Value planes, and what follows attention × Value.
//
// Contract: kernels.h. Sixteen keys a register, one a 32-bit lane, so that lane l of a sum is lane l of sum16.
#include <cstring>

#include "avx512.h"
#include "kernels.h"

namespace gsb {

namespace {

GSB_AVX512_INLINE __m512i load(const void* from) {
    return _mm512_loadu_si512(from);
}

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

// One plane of 32 channels: bits of 32 tokens a word and lane, and bytes.
struct PlaneGroup {
    __m512i threshold, low, high;
    bool upper;  // plane 1 and above

    GSB_AVX512_INLINE __mmask32 sign(__m512i counts) const { return _mm512_cmple_epi16_mask(counts, threshold); }
    GSB_AVX512_INLINE __mmask32 member(__m512i counts) const {
        return upper ? _mm512_cmple_epi16_mask(counts, low) | _mm512_cmpge_epi16_mask(counts, high) : ~__mmask32{0};
    }
};

// Shifts one bit for each of up to 16 tokens into the 16-bit lanes of 32 channels, the first token lowest.
GSB_AVX512_INLINE __m512i sixteen_tokens(const PlaneGroup& g, const uint16_t* counts, int tokens, int8_t* bytes,
                                         size_t byte_stride) {
    const __m512i top = _mm512_set1_epi16(static_cast<short>(0x8000));
    const __m256i plus = _mm256_set1_epi8(1), minus = _mm256_set1_epi8(-1);
    __m512i bits = _mm512_setzero_si512();
    for (int t = 0; t < 16; ++t) {
        bits = _mm512_srli_epi16(bits, 1);
        if (t >= tokens) continue;
        const __m512i count = load(counts + t * kCountGroup);
        const __mmask32 sign = g.sign(count), member = g.member(count);
        bits = _mm512_mask_mov_epi16(bits, ~(sign ^ member), _mm512_or_si512(bits, top));
        if (!bytes) continue;
        const __m256i value = _mm256_maskz_mov_epi8(member, _mm256_mask_blend_epi8(sign, minus, plus));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + t * byte_stride), value);
    }
    return bits;
}

GSB_AVX512_APART void value_group(const ValuePlanes& v, int plane, int first) {
    // Plane 0 is one piece in blocks of 64 lanes, the upper planes are pieces of sixteen.
    const int block = plane == 0 ? first / kBlock * kBlock : first;
    const int lanes = plane > 0 ? kPiece : v.channels - block < kBlock ? v.channels - block : kBlock;
    const int depth = (v.tokens + 31) / 32;
    const uint16_t* counts = v.counts + static_cast<size_t>(first) * v.tokens;
    uint32_t* bits[2];
    for (int part = 0; part < 2; ++part) {
        bits[part] = v.bits + plane * v.plane_words + static_cast<size_t>(block) * depth + (first - block) +
                     part * static_cast<size_t>(plane == 0 ? kPiece : kPiece * depth);
    }
    int8_t* bytes = v.bytes ? v.bytes + plane * (v.tokens * v.byte_stride) + first : nullptr;
    PlaneGroup g{load(v.threshold + first), _mm512_setzero_si512(), _mm512_setzero_si512(), plane > 0};
    if (g.upper) {
        g.low = load(v.low + (plane - 1) * v.channels + first);
        g.high = load(v.high + (plane - 1) * v.channels + first);
    }
    __m512i ones[2] = {}, triple[2] = {};
    for (int k = 0; k < depth; ++k) {
        __m512i half[2];
        for (int h = 0; h < 2; ++h) {
            const int token = 32 * k + 16 * h;
            half[h] = sixteen_tokens(g, counts + static_cast<size_t>(token) * kCountGroup, v.tokens - token,
                                     bytes ? bytes + token * v.byte_stride : nullptr, v.byte_stride);
        }
        // Words of whole triples are kept as running xors, see kernels_avx512.cpp.
        const bool running = k % 3 != 0 && k - k % 3 + 2 < depth;
        for (int part = 0; part < 2; ++part) {
            const auto pick = [part](__m512i x) GSB_AVX512 {
                return _mm512_cvtepu16_epi32(part ? _mm512_extracti64x4_epi64(x, 1) : _mm512_castsi512_si256(x));
            };
            const __m512i word = _mm512_or_si512(pick(half[0]), _mm512_slli_epi32(pick(half[1]), 16));
            ones[part] = _mm512_add_epi32(ones[part], _mm512_popcnt_epi32(word));
            triple[part] = running ? _mm512_xor_si512(triple[part], word) : word;
            _mm512_storeu_si512(bits[part] + static_cast<size_t>(k) * lanes, triple[part]);
        }
    }
    for (int part = 0; part < 2; ++part) {
        _mm512_storeu_si512(v.ones + static_cast<size_t>(plane) * v.channels + first + 16 * part, ones[part]);
    }
}

// The bytes of 32 channels that are in no group.
GSB_AVX512_INLINE void clear_bytes(const ValuePlanes& v, int plane, int first) {
    int8_t* bytes = v.bytes + plane * (v.tokens * v.byte_stride) + first;
    for (int j = 0; j < v.tokens; ++j) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + j * v.byte_stride), _mm256_setzero_si256());
    }
}

// Σ over the listed tokens of one plane's bytes: 16·W channels. Bytes hold 127 entries, then they are widened.
template <int W>
GSB_AVX512_INLINE void listed_sums(const int8_t* bytes, size_t stride, const int32_t* columns, int count,
                                   __m512i* sums) {
    for (int w = 0; w < W; ++w) sums[w] = _mm512_setzero_si512();
    for (int n = 0; n < count; n += 127) {
        const int end = count - n < 127 ? count : n + 127;
        if (W == 4) {
            __m512i acc = _mm512_setzero_si512();
            for (int i = n; i < end; ++i) acc = _mm512_add_epi8(acc, load(bytes + columns[i] * stride));
            sums[0] = _mm512_add_epi32(sums[0], _mm512_cvtepi8_epi32(_mm512_castsi512_si128(acc)));
            sums[1] = _mm512_add_epi32(sums[1], _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(acc, 1)));
            sums[W - 2] = _mm512_add_epi32(sums[W - 2], _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(acc, 2)));
            sums[W - 1] = _mm512_add_epi32(sums[W - 1], _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(acc, 3)));
        } else {
            __m256i acc = _mm256_setzero_si256();
            for (int i = n; i < end; ++i) {
                const auto* from = reinterpret_cast<const __m256i*>(bytes + columns[i] * stride);
                acc = _mm256_add_epi8(acc, _mm256_loadu_si256(from));
            }
            sums[0] = _mm512_add_epi32(sums[0], _mm512_cvtepi8_epi32(_mm256_castsi256_si128(acc)));
            sums[1] = _mm512_add_epi32(sums[1], _mm512_cvtepi8_epi32(_mm256_extracti128_si256(acc, 1)));
        }
    }
}

// Rows of 16·W channels from `first` on.
template <int W>
GSB_AVX512_APART void combine_channels(const Combine& given, int first) {
    const Combine c = given;  // a copy of its own, which the stores cannot be thought to change
    const size_t plane_products = static_cast<size_t>(c.rows) * c.channels, pieces = c.channels / kPiece;
    const uint8_t* active = c.active + first / kPiece;
    const auto any = [&](int plane) GSB_AVX512 {
        bool found = false;
        for (int w = 0; w < W; ++w) found |= active[plane * pieces + w] != 0;
        return found;
    };
    for (int row = 0; row < c.rows; ++row) {
        const int32_t* product = c.products + static_cast<size_t>(row) * c.channels + first;
        __m512i dense[W];
        __m512 y[W];
        for (int w = 0; w < W; ++w) {
            dense[w] = load(product + 16 * w);
            y[w] = _mm512_mul_ps(_mm512_cvtepi32_ps(dense[w]), _mm512_set1_ps(c.scale[0]));
        }
        for (int plane = 1; plane < c.planes; ++plane) {
            const __m512 scale = _mm512_set1_ps(c.scale[plane]);
            for (int w = 0; w < W; ++w) {
                if (!active[plane * pieces + w]) continue;
                const __m512i twice = _mm512_add_epi32(dense[w], load(product + plane * plane_products + 16 * w));
                const __m512 sum = _mm512_cvtepi32_ps(_mm512_srai_epi32(twice, 1));
                y[w] = _mm512_add_ps(y[w], _mm512_mul_ps(sum, scale));
            }
        }
        for (int group = 1; group < c.groups; ++group) {
            const size_t list = static_cast<size_t>(row) * (c.groups - 1) + group - 1;
            if (c.list_count[list] == 0) continue;
            for (int plane = 0; plane < c.planes; ++plane) {
                if (!any(plane)) continue;
                __m512i sums[W];
                listed_sums<W>(c.bytes + plane * c.plane_bytes + first, c.byte_stride, c.columns + c.list_begin[list],
                               c.list_count[list], sums);
                const __m512 scale = _mm512_set1_ps(c.scale[group * c.planes + plane]);
                for (int w = 0; w < W; ++w) {
                    y[w] = _mm512_add_ps(y[w], _mm512_mul_ps(_mm512_cvtepi32_ps(sums[w]), scale));
                }
            }
        }
        char* out = reinterpret_cast<char*>(c.out + row * c.out_stride) + first / 8;
        for (int w = 0; w < W; ++w) {
            const __m512 shifted = _mm512_add_ps(y[w], _mm512_loadu_ps(c.shift + first + 16 * w));
            const uint16_t bits = _mm512_cmp_ps_mask(shifted, _mm512_setzero_ps(), _CMP_GE_OQ);
            std::memcpy(out + 2 * w, &bits, sizeof(bits));
        }
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

GSB_AVX512 void count_extremes_avx512(const uint16_t* counts, size_t group_stride, int channels, int first, int last,
                                      uint16_t* smallest, uint16_t* largest) {
    for (int c = 0; c < channels; c += kCountGroup) {
        const uint16_t* group = counts + c / kCountGroup * group_stride;
        __m512i low = load(group + static_cast<size_t>(first) * kCountGroup), high = low;
        for (int row = first + 1; row < last; ++row) {
            const __m512i values = load(group + static_cast<size_t>(row) * kCountGroup);
            low = _mm512_min_epu16(low, values);
            high = _mm512_max_epu16(high, values);
        }
        _mm512_storeu_si512(smallest + c, low);
        _mm512_storeu_si512(largest + c, high);
    }
}

GSB_AVX512 void value_planes_avx512(const ValuePlanes& v) {
    for (int plane = 0; plane < v.planes; ++plane) {
        const uint8_t* active = v.active + plane * (v.channels / kPiece);
        bool any = false;
        for (int piece = 0; piece < v.channels / kPiece; ++piece) any |= active[piece] != 0;
        for (int first = 0; any && first < v.channels; first += kCountGroup) {
            if (active[first / kPiece] || active[first / kPiece + 1]) {
                value_group(v, plane, first);
            } else if (v.bytes) {
                clear_bytes(v, plane, first);
            }
        }
    }
}

GSB_AVX512 void combine_avx512(const Combine& c) {
    int first = 0;
    for (; first + 64 <= c.channels; first += 64) combine_channels<4>(c, first);
    if (first < c.channels) combine_channels<2>(c, first);
}

}  // namespace gsb
