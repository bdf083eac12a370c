// AVX-512 kernels: extremes and planes of the Value, and what follows attention × Value.
//
// Contract: kernels/contract.h. Counts of 32 channels a register, one a 16-bit lane; products one a 32-bit lane.
#include <cstring>

#include "kernels/avx512/isa.h"
#include "kernels/contract.h"

namespace gsb::avx512 {

namespace {

// One plane of 32 channels: bits of 32 tokens a word and lane, and bytes.
struct PlaneGroup {
    __m512i threshold, low, high;

    GSB_AVX512_INLINE __mmask32 sign(__m512i counts) const { return _mm512_cmple_epi16_mask(counts, threshold); }
    // Of plane 1 and above.
    GSB_AVX512_INLINE __mmask32 member(__m512i counts) const {
        return _mm512_cmple_epi16_mask(counts, low) | _mm512_cmpge_epi16_mask(counts, high);
    }
};

// One bit for each of up to 16 tokens in the 16-bit lanes of 32 channels, the first token lowest. The loop must unroll:
// its constants are then registers or operands in memory.
template <bool UPPER>
GSB_AVX512_INLINE __m512i sixteen_tokens(const PlaneGroup& g, const uint16_t* counts, int tokens, int8_t* bytes,
                                         size_t byte_stride) {
    const __m256i plus = _mm256_set1_epi8(1), minus = _mm256_set1_epi8(-1);
    __m512i bits = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
        if (t >= tokens) break;
        const __m512i count = load(counts + t * kCountGroup);
        const __mmask32 sign = g.sign(count), member = UPPER ? g.member(count) : ~__mmask32{0};
        const __m512i bit = _mm512_set1_epi16(static_cast<short>(1u << t));
        bits = _mm512_mask_add_epi16(bits, UPPER ? _kxnor_mask32(sign, member) : sign, bits, bit);
        if (!bytes) continue;
        const __m256i either = _mm256_mask_blend_epi8(sign, minus, plus);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + t * byte_stride),
                            UPPER ? _mm256_maskz_mov_epi8(member, either) : either);
    }
    return bits;
}

template <bool UPPER>
GSB_AVX512_APART void value_group(const ValuePlanes& v, int plane, int first) {
    // Plane 0 is one piece in blocks of 64 lanes, the upper planes are pieces of sixteen.
    const int block = UPPER ? first : first / kBlock * kBlock;
    const int lanes = UPPER ? kPiece : v.channels - block < kBlock ? v.channels - block : kBlock;
    const int depth = (v.tokens + 31) / 32;
    const uint16_t* counts = v.counts + static_cast<size_t>(first) * v.tokens;
    uint32_t* bits[2];
    for (int part = 0; part < 2; ++part) {
        bits[part] = v.bits + plane * v.plane_words + static_cast<size_t>(block) * depth + (first - block) +
                     part * static_cast<size_t>(UPPER ? kPiece * depth : kPiece);
    }
    int8_t* bytes = v.bytes ? v.bytes + plane * (v.tokens * v.byte_stride) + first : nullptr;
    PlaneGroup g{load(v.threshold + first), _mm512_setzero_si512(), _mm512_setzero_si512()};
    if (UPPER) {
        g.low = load(v.low + (plane - 1) * v.channels + first);
        g.high = load(v.high + (plane - 1) * v.channels + first);
    }
    __m512i ones[2] = {}, kept[2] = {};
    for (int k = 0; k < depth; ++k) {
        __m512i half[2];
        for (int h = 0; h < 2; ++h) {
            const int token = 32 * k + 16 * h;
            half[h] = sixteen_tokens<UPPER>(g, counts + static_cast<size_t>(token) * kCountGroup, v.tokens - token,
                                            bytes ? bytes + token * v.byte_stride : nullptr, v.byte_stride);
        }
        const bool running = is_running(WeightLayout::running, k, depth);
        for (int part = 0; part < 2; ++part) {
            const auto pick = [part](__m512i x) GSB_AVX512 {
                return _mm512_cvtepu16_epi32(part ? _mm512_extracti64x4_epi64(x, 1) : _mm512_castsi512_si256(x));
            };
            const __m512i word = _mm512_or_si512(pick(half[0]), _mm512_slli_epi32(pick(half[1]), 16));
            ones[part] = _mm512_add_epi32(ones[part], _mm512_popcnt_epi32(word));
            kept[part] = running ? _mm512_xor_si512(kept[part], word) : word;
            _mm512_storeu_si512(bits[part] + static_cast<size_t>(k) * lanes, kept[part]);
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

GSB_AVX512 void count_extremes(const uint16_t* counts, size_t group_stride, int channels, int first, int last,
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

GSB_AVX512 void value_planes(const ValuePlanes& v) {
    for (int plane = 0; plane < v.planes; ++plane) {
        const uint8_t* active = v.active + plane * (v.channels / kPiece);
        bool any = false;
        for (int piece = 0; piece < v.channels / kPiece; ++piece) any |= active[piece] != 0;
        for (int first = 0; any && first < v.channels; first += kCountGroup) {
            if (active[first / kPiece] || active[first / kPiece + 1]) {
                plane > 0 ? value_group<true>(v, plane, first) : value_group<false>(v, plane, first);
            } else if (v.bytes) {
                clear_bytes(v, plane, first);
            }
        }
    }
}

GSB_AVX512 void combine(const Combine& c) {
    int first = 0;
    for (; first + 64 <= c.channels; first += 64) combine_channels<4>(c, first);
    if (first < c.channels) combine_channels<2>(c, first);
}

}  // namespace gsb::avx512
