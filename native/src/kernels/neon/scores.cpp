// NEON kernels: scores, their softmax and its masks.
//
// Contract: kernels/contract.h. Sixteen keys go together: their distances are one register of bytes, and their
// exponentials come from a table of bytes in registers, one look-up for each of a float's four bytes. Distances that do
// not fit in a byte, or span 64 and more, take a plain path.
#include "kernels/candidates.h"
#include "kernels/contract.h"
#include "kernels/float_ops.h"
#include "kernels/neon/isa.h"

namespace gsb::neon {

namespace {

constexpr int kByteDistance = 255;  // largest distance of the fast path

struct Range {
    int smallest, largest;
};

uint8_t* byte_distances(const Scores& s) {
    return reinterpret_cast<uint8_t*>(s.distances);
}

// 0xFF for the first n of sixteen bytes.
inline uint8x16_t first_bytes(int n) {
    const uint8_t order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vcltq_u8(vld1q_u8(order), vdupq_n_u8(static_cast<uint8_t>(n < 16 ? n : 16)));
}

// Distances of one query to all keys as bytes, WORDS words each (0: s.words), and their extremes. Lanes without a key
// repeat the first of their sixteen.
template <int WORDS>
inline Range distances(const Scores& s, const uint32_t* query) {
    const int words = WORDS ? WORDS : s.words;
    uint8_t* out = byte_distances(s);
    uint8x16_t smallest = vdupq_n_u8(255), largest = vdupq_n_u8(0);
    for (int j = 0; j < s.tokens; j += 16) {
        const uint32_t* keys = s.keys + j;
        uint8x16_t sum[4];
        for (int i = 0; i < 4; ++i) sum[i] = vdupq_n_u8(0);
        for (int w = 0; w < words; ++w) {
            const uint8x16_t q = vreinterpretq_u8_u32(vdupq_n_u32(query[w]));
            for (int i = 0; i < 4; ++i) {
                const uint8x16_t key = vreinterpretq_u8_u32(vld1q_u32(keys + w * s.key_stride + 4 * i));
                sum[i] = vaddq_u8(sum[i], vcntq_u8(veorq_u8(q, key)));
            }
        }
        uint8x16_t z = vpaddq_u8(vpaddq_u8(sum[0], sum[1]), vpaddq_u8(sum[2], sum[3]));
        if (s.tokens - j < 16) z = vbslq_u8(first_bytes(s.tokens - j), z, vdupq_laneq_u8(z, 0));
        smallest = vminq_u8(smallest, z);
        largest = vmaxq_u8(largest, z);
        vst1q_u8(out + j, z);
    }
    return {vminvq_u8(smallest), vmaxvq_u8(largest)};
}

// The first 32 or 64 exponentials, byte by byte: plane b holds byte b of each. What lies behind is 0.
struct Planes32 {
    uint8x16x2_t plane[4];

    explicit Planes32(const Scores& s) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(s.exp_tables + kExpCyclic32);
        const uint8x16x4_t part[2] = {vld4q_u8(bytes), vld4q_u8(bytes + 64)};
        for (int b = 0; b < 4; ++b) plane[b] = {{part[0].val[b], part[1].val[b]}};
    }
    uint8x16_t at(int b, uint8x16_t index) const { return vqtbl2q_u8(plane[b], index); }
};

struct Planes64 {
    uint8x16x4_t plane[4];

    explicit Planes64(const Scores& s) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(s.exp_tables + kExpCyclic64);
        uint8x16x4_t part[4];
        for (int i = 0; i < 4; ++i) part[i] = vld4q_u8(bytes + 64 * i);
        for (int b = 0; b < 4; ++b) plane[b] = {{part[0].val[b], part[1].val[b], part[2].val[b], part[3].val[b]}};
    }
    uint8x16_t at(int b, uint8x16_t index) const { return vqtbl4q_u8(plane[b], index); }
};

// Writes the exponentials to s.row, zeros behind them up to a multiple of 16, and returns their sum.
template <class Planes>
inline float exponentials(const Scores& s, const Planes& planes, int smallest) {
    const uint8x16_t least = vdupq_n_u8(static_cast<uint8_t>(smallest));
    const float32x4_t zero = vdupq_n_f32(0);
    Floats16 sum{{zero, zero, zero, zero}};
    for (int j = 0; j < s.tokens; j += 16) {
        uint8x16_t index = vsubq_u8(vld1q_u8(byte_distances(s) + j), least);
        // An index behind the table gives zeros.
        if (s.tokens - j < 16) index = vornq_u8(index, first_bytes(s.tokens - j));
        const uint8x16_t b0 = planes.at(0, index), b1 = planes.at(1, index);
        const uint8x16_t b2 = planes.at(2, index), b3 = planes.at(3, index);
        const uint16x8_t low0 = vreinterpretq_u16_u8(vzip1q_u8(b0, b1)), low1 = vreinterpretq_u16_u8(vzip2q_u8(b0, b1));
        const uint16x8_t high0 = vreinterpretq_u16_u8(vzip1q_u8(b2, b3));
        const uint16x8_t high1 = vreinterpretq_u16_u8(vzip2q_u8(b2, b3));
        const Floats16 p{
            {vreinterpretq_f32_u16(vzip1q_u16(low0, high0)), vreinterpretq_f32_u16(vzip2q_u16(low0, high0)),
             vreinterpretq_f32_u16(vzip1q_u16(low1, high1)), vreinterpretq_f32_u16(vzip2q_u16(low1, high1))}};
        for (int i = 0; i < 4; ++i) sum.part[i] = vaddq_f32(sum.part[i], p.part[i]);
        store16(s.row + j, p);
    }
    return fold16(sum);
}

inline float far_exponentials(const Scores& s, int smallest) {
    const float* table = s.exp_tables + kExpTable;
    for (int j = 0; j < s.tokens; ++j) s.row[j] = table[byte_distances(s)[j] - smallest];
    return sum16(s.row, s.tokens);
}

// Exponentials of distances that need more than a byte.
float wide_exponentials(const Scores& s, const uint32_t* query) {
    int32_t smallest = s.head_dim;
    for (int j = 0; j < s.tokens; ++j) {
        int32_t count = 0;
        for (int w = 0; w < s.words; ++w) count += __builtin_popcount(query[w] ^ s.keys[w * s.key_stride + j]);
        s.distances[j] = count;
        smallest = count < smallest ? count : smallest;
    }
    const float* table = s.exp_tables + kExpTable;
    for (int j = 0; j < s.tokens; ++j) s.row[j] = table[s.distances[j] - smallest];
    return sum16(s.row, s.tokens);
}

// The bias of a row; `at` gives that of sixteen keys.
struct FloatBias {
    const float *row, *first;
    int prefix;

    FloatBias(const Scores& s, int i)
        : row(s.bias + s.bias_begin[i]),
          first(s.bias_first + kLanes * (i < s.prefix ? i : s.prefix)),
          prefix(s.prefix) {}
    Floats16 at(int j, int) const {
        Floats16 bias = load16(row + j);
        if (j >= prefix) return bias;
        const Lanes16 in_prefix(prefix - j);
        const Floats16 other = load16(first + j);
        for (int i = 0; i < 4; ++i) bias.part[i] = vbslq_f32(in_prefix.part[i], other.part[i], bias.part[i]);
        return bias;
    }
};

struct HalfBias {
    const uint16_t* row;

    HalfBias(const Scores& s, int i) : row(s.half_bias + static_cast<size_t>(i) * s.tokens) {}
    Floats16 at(int j, int lanes) const {
        uint16_t last[16] = {};
        const uint16_t* from = row + j;
        if (lanes < 16) from = static_cast<uint16_t*>(std::memcpy(last, from, lanes * sizeof(*from)));
        Floats16 bias;
        for (int i = 0; i < 4; ++i) {
            bias.part[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i)));
        }
        return bias;
    }
};

// Turns the exponentials in s.row into row i of A and M_0; returns the largest entry.
template <class Bias>
inline float finish_row(const Scores& s, int i, float sum) {
    const Bias bias(s, i);
    const float32x4_t factor = vdupq_n_f32(1.0f / sum), half = vdupq_n_f32(s.half_scale);
    const float32x4_t none = vdupq_n_f32(-__builtin_inff());
    float32x4_t largest = none;
    uint32_t* mask = s.masks + i * s.mask_stride;
    for (int j = 0; j < s.tokens; j += 16) {
        const int lanes = s.tokens - j;
        const Floats16 e = bias.at(j, lanes);
        Floats16 a = load16(s.row + j);
        for (int part = 0; part < 4; ++part) a.part[part] = vaddq_f32(vmulq_f32(a.part[part], factor), e.part[part]);
        if (lanes < 16) {
            const Lanes16 real(lanes);
            for (int part = 0; part < 4; ++part) a.part[part] = vbslq_f32(real.part[part], a.part[part], none);
        }
        uint32x4_t above[4];
        for (int part = 0; part < 4; ++part) above[part] = vcgtq_f32(a.part[part], half);
        store_bits(mask, j, bits16(above));
        largest = vmaxq_f32(vmaxq_f32(largest, vmaxq_f32(a.part[0], a.part[1])), vmaxq_f32(a.part[2], a.part[3]));
        store16(s.row + j, a);
    }
    return vmaxvq_f32(largest);
}

inline void collect(Candidates& c, int row, const Scores& s, float largest) {
    if (!begin_list(c, row, s.tokens, largest)) return;
    const float limit = limit_of(c);
    const float32x4_t limits = vdupq_n_f32(limit);
    for (int j = 0; j < s.tokens; j += 16) {
        const Floats16 a = load16(s.row + j);
        const float32x4_t most = vmaxq_f32(vmaxq_f32(a.part[0], a.part[1]), vmaxq_f32(a.part[2], a.part[3]));
        if (!(vmaxvq_f32(most) > limit)) continue;
        uint32x4_t above[4];
        for (int part = 0; part < 4; ++part) above[part] = vcgtq_f32(a.part[part], limits);
        list_marked(c, bits16(above), j, s.row);
    }
    end_list(c, row);
}

template <int WORDS, class Bias>
void score_rows(const Scores& given) {
    const Scores s = given;
    const Planes32 near(s);
    for (int i = s.first; i < s.last; ++i) {
        const Range range = distances<WORDS>(s, s.queries + i * s.query_stride);
        const int span = range.largest - range.smallest;
        const float sum = span < 32   ? exponentials(s, near, range.smallest)
                          : span < 64 ? exponentials(s, Planes64(s), range.smallest)
                                      : far_exponentials(s, range.smallest);
        const float largest = finish_row<Bias>(s, i, sum);
        if (s.candidates) collect(*s.candidates, i - s.first, s, largest);
    }
}

template <class Bias>
void score_wide_rows(const Scores& given) {
    const Scores s = given;
    for (int i = s.first; i < s.last; ++i) {
        const float sum = wide_exponentials(s, s.queries + i * s.query_stride);
        const float largest = finish_row<Bias>(s, i, sum);
        if (s.candidates) collect(*s.candidates, i - s.first, s, largest);
    }
}

template <class Bias>
void score_words(const Scores& s) {
    if (s.head_dim > kByteDistance) return score_wide_rows<Bias>(s);
    switch (s.words) {
        case 1:
            return score_rows<1, Bias>(s);
        case 2:
            return score_rows<2, Bias>(s);
        default:
            return score_rows<0, Bias>(s);
    }
}

}  // namespace

void scores(const Scores& s) {
    if (s.half_bias) {
        score_words<HalfBias>(s);
    } else {
        score_words<FloatBias>(s);
    }
}

}  // namespace gsb::neon
