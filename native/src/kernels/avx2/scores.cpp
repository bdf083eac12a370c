// AVX2 kernels: scores, Value planes, and what follows attention × Value.
//
// Contract: kernels/contract.h. Sixteen keys are two registers, so that the lanes of a sum are those of sum16.
#include <cstring>

#include "kernels/avx2/isa.h"
#include "kernels/contract.h"

namespace gsb {

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
    c.maximum = largest > c.maximum ? largest : c.maximum;
    const float limit = c.fixed ? c.limit : c.ratio * c.maximum;
    c.begin[row] = c.used;
    c.count[row] = 0;
    if (!(largest > limit)) return;
    if (c.capacity - c.used < static_cast<size_t>(s.tokens)) {
        c.count[row] = -1;
        return;
    }
    const __m256 limits = _mm256_set1_ps(limit);
    for (int j = 0; j < s.tokens; j += 8) {
        auto above =
            static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(s.row + j), limits, _CMP_GT_OQ)));
        for (; above != 0; above &= above - 1) {
            const int column = j + __builtin_ctz(above);
            c.columns[c.used] = column;
            c.values[c.used++] = s.row[column];
        }
    }
    c.count[row] = static_cast<int32_t>(c.used - c.begin[row]);
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

// Sixteen channels of a plane.
struct PlanePiece {
    __m256i threshold, low, high;
    bool upper;

    GSB_AVX2_INLINE __m256i negative(__m256i counts) const { return _mm256_cmpgt_epi16(counts, threshold); }
    GSB_AVX2_INLINE __m256i member(__m256i counts) const {
        if (!upper) return _mm256_set1_epi16(-1);
        // Between the limits is outside the group.
        return _mm256_or_si256(_mm256_cmpgt_epi16(counts, _mm256_sub_epi16(high, _mm256_set1_epi16(1))),
                               _mm256_cmpgt_epi16(_mm256_add_epi16(low, _mm256_set1_epi16(1)), counts));
    }
};

// Shifts one bit for each of up to 16 tokens into the 16-bit lanes of 16 channels, the first token lowest.
GSB_AVX2_INLINE __m256i sixteen_tokens(const PlanePiece& g, const uint16_t* counts, int tokens, int8_t* bytes,
                                       size_t byte_stride) {
    const __m256i top = _mm256_set1_epi16(static_cast<short>(0x8000)), one = _mm256_set1_epi16(1);
    __m256i bits = _mm256_setzero_si256();
    for (int t = 0; t < 16; ++t) {
        bits = _mm256_srli_epi16(bits, 1);
        if (t >= tokens) continue;
        const __m256i count = load256(counts + t * kCountGroup);
        const __m256i negative = g.negative(count), member = g.member(count);
        // Sign and membership are equal: negative and member differ.
        bits = _mm256_or_si256(bits, _mm256_and_si256(_mm256_xor_si256(negative, member), top));
        if (!bytes) continue;
        const __m256i value = _mm256_and_si256(_mm256_or_si256(negative, one), member);
        const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + t * byte_stride), packed);
    }
    return bits;
}

GSB_AVX2_APART void value_piece(const ValuePlanes& v, int plane, int first) {
    const int block = plane == 0 ? first / kBlock * kBlock : first;
    const int lanes = plane > 0 ? kPiece : v.channels - block < kBlock ? v.channels - block : kBlock;
    const int depth = (v.tokens + 31) / 32;
    const uint16_t* counts =
        v.counts + static_cast<size_t>(first / kCountGroup * kCountGroup) * v.tokens + first % kCountGroup;
    uint32_t* bits = v.bits + plane * v.plane_words + static_cast<size_t>(block) * depth + (first - block);
    int8_t* bytes = v.bytes ? v.bytes + plane * (v.tokens * v.byte_stride) + first : nullptr;
    PlanePiece g{load256(v.threshold + first), _mm256_setzero_si256(), _mm256_setzero_si256(), plane > 0};
    if (g.upper) {
        g.low = load256(v.low + (plane - 1) * v.channels + first);
        g.high = load256(v.high + (plane - 1) * v.channels + first);
    }
    const ByteCounts once(1);
    __m256i ones[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, kept[2] = {};
    for (int k = 0; k < depth; ++k) {
        __m256i half[2];
        for (int h = 0; h < 2; ++h) {
            const int token = 32 * k + 16 * h;
            half[h] = sixteen_tokens(g, counts + static_cast<size_t>(token) * kCountGroup, v.tokens - token,
                                     bytes ? bytes + token * v.byte_stride : nullptr, v.byte_stride);
        }
        const bool running = is_running(WeightLayout::triples, k, depth);
        for (int part = 0; part < 2; ++part) {
            const __m128i early = part ? _mm256_extracti128_si256(half[0], 1) : _mm256_castsi256_si128(half[0]);
            const __m128i late = part ? _mm256_extracti128_si256(half[1], 1) : _mm256_castsi256_si128(half[1]);
            const __m256i word =
                _mm256_or_si256(_mm256_cvtepu16_epi32(early), _mm256_slli_epi32(_mm256_cvtepu16_epi32(late), 16));
            ones[part] = _mm256_add_epi32(ones[part], sum_bytes(once.added(_mm256_setzero_si256(), word)));
            kept[part] = running ? _mm256_xor_si256(kept[part], word) : word;
            store256(bits + static_cast<size_t>(k) * lanes + 8 * part, kept[part]);
        }
    }
    for (int part = 0; part < 2; ++part) {
        store256(v.ones + static_cast<size_t>(plane) * v.channels + first + 8 * part, ones[part]);
    }
}

GSB_AVX2_INLINE void clear_bytes(const ValuePlanes& v, int plane, int first) {
    int8_t* bytes = v.bytes + plane * (v.tokens * v.byte_stride) + first;
    for (int j = 0; j < v.tokens; ++j) std::memset(bytes + j * v.byte_stride, 0, kPiece);
}

// Σ over the listed tokens of one plane's bytes, sixteen channels. Bytes hold 127 entries, then they are widened.
GSB_AVX2_INLINE void listed_sums(const int8_t* bytes, size_t stride, const int32_t* columns, int count,
                                 __m256i (&sums)[2]) {
    sums[0] = sums[1] = _mm256_setzero_si256();
    for (int n = 0; n < count; n += 127) {
        const int end = count - n < 127 ? count : n + 127;
        __m128i acc = _mm_setzero_si128();
        for (int i = n; i < end; ++i) {
            acc = _mm_add_epi8(acc, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + columns[i] * stride)));
        }
        sums[0] = _mm256_add_epi32(sums[0], _mm256_cvtepi8_epi32(acc));
        sums[1] = _mm256_add_epi32(sums[1], _mm256_cvtepi8_epi32(_mm_srli_si128(acc, 8)));
    }
}

// Every row, sixteen channels from `first` on.
GSB_AVX2_APART void combine_piece(const Combine& given, int first) {
    const Combine c = given;
    const size_t plane_products = static_cast<size_t>(c.rows) * c.channels, pieces = c.channels / kPiece;
    const uint8_t* active = c.active + first / kPiece;
    for (int row = 0; row < c.rows; ++row) {
        const int32_t* product = c.products + static_cast<size_t>(row) * c.channels + first;
        const __m256i dense[2] = {load256(product), load256(product + 8)};
        __m256 y[2];
        for (int part = 0; part < 2; ++part) {
            y[part] = _mm256_mul_ps(_mm256_cvtepi32_ps(dense[part]), _mm256_set1_ps(c.scale[0]));
        }
        for (int plane = 1; plane < c.planes; ++plane) {
            if (!active[plane * pieces]) continue;
            const __m256 scale = _mm256_set1_ps(c.scale[plane]);
            for (int part = 0; part < 2; ++part) {
                const __m256i other = load256(product + plane * plane_products + 8 * part);
                const __m256i sum = _mm256_srai_epi32(_mm256_add_epi32(dense[part], other), 1);
                y[part] = _mm256_add_ps(y[part], _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale));
            }
        }
        for (int group = 1; group < c.groups; ++group) {
            const size_t list = static_cast<size_t>(row) * (c.groups - 1) + group - 1;
            for (int plane = 0; plane < c.planes && c.list_count[list] > 0; ++plane) {
                if (!active[plane * pieces]) continue;
                __m256i sums[2];
                listed_sums(c.bytes + plane * c.plane_bytes + first, c.byte_stride, c.columns + c.list_begin[list],
                            c.list_count[list], sums);
                const __m256 scale = _mm256_set1_ps(c.scale[group * c.planes + plane]);
                for (int part = 0; part < 2; ++part) {
                    y[part] = _mm256_add_ps(y[part], _mm256_mul_ps(_mm256_cvtepi32_ps(sums[part]), scale));
                }
            }
        }
        auto* out = reinterpret_cast<uint8_t*>(c.out + row * c.out_stride) + first / 8;
        for (int part = 0; part < 2; ++part) {
            const __m256 shifted = _mm256_add_ps(y[part], _mm256_loadu_ps(c.shift + first + 8 * part));
            out[part] =
                static_cast<uint8_t>(_mm256_movemask_ps(_mm256_cmp_ps(shifted, _mm256_setzero_ps(), _CMP_GE_OQ)));
        }
    }
}

}  // namespace

GSB_AVX2 void scores_avx2(const Scores& s) {
    if (s.half_bias) {
        score_words<HalfBias>(s);
    } else {
        score_words<FloatBias>(s);
    }
}

GSB_AVX2 void count_extremes_avx2(const uint16_t* counts, size_t group_stride, int channels, int first, int last,
                                  uint16_t* smallest, uint16_t* largest) {
    for (int c = 0; c < channels; c += 16) {
        const uint16_t* group = counts + c / kCountGroup * group_stride + c % kCountGroup;
        __m256i low = load256(group + static_cast<size_t>(first) * kCountGroup), high = low;
        for (int row = first + 1; row < last; ++row) {
            const __m256i values = load256(group + static_cast<size_t>(row) * kCountGroup);
            low = _mm256_min_epu16(low, values);
            high = _mm256_max_epu16(high, values);
        }
        store256(smallest + c, low);
        store256(largest + c, high);
    }
}

GSB_AVX2 void value_planes_avx2(const ValuePlanes& v) {
    for (int plane = 0; plane < v.planes; ++plane) {
        const uint8_t* active = v.active + plane * (v.channels / kPiece);
        bool any = false;
        for (int piece = 0; piece < v.channels / kPiece; ++piece) any |= active[piece] != 0;
        for (int first = 0; any && first < v.channels; first += kPiece) {
            if (active[first / kPiece]) {
                value_piece(v, plane, first);
            } else if (v.bytes) {
                clear_bytes(v, plane, first);
            }
        }
    }
}

GSB_AVX2 void combine_avx2(const Combine& c) {
    for (int first = 0; first < c.channels; first += kPiece) combine_piece(c, first);
}

}  // namespace gsb
