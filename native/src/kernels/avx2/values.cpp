// AVX2 kernels: extremes and planes of the Value, and what follows attention × Value.
//
// Contract: kernels/contract.h. Counts of sixteen channels a register, one a 16-bit lane; products one a 32-bit lane.
#include <cstring>

#include "kernels/avx2/isa.h"
#include "kernels/contract.h"

namespace gsb::avx2 {

namespace {

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

GSB_AVX2 void count_extremes(const uint16_t* counts, size_t group_stride, int channels, int first, int last,
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

GSB_AVX2 void value_planes(const ValuePlanes& v) {
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

GSB_AVX2 void combine(const Combine& c) {
    for (int first = 0; first < c.channels; first += kPiece) combine_piece(c, first);
}

}  // namespace gsb::avx2
