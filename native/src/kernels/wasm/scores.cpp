// WebAssembly kernels: scores, their softmax and its masks.
//
// Contract: kernels/contract.h. Sixteen keys go together: their distances are one register of bytes, and where these
// span less than 32, their exponentials come from tables of bytes in registers, one look-up for each of a float's four
// bytes. Wider spans, and distances that do not fit in a byte, take a plain path.
#include "kernels/candidates.h"
#include "kernels/contract.h"
#include "kernels/float_ops.h"
#include "kernels/wasm/isa.h"

namespace gsb::wasm {

namespace {

constexpr int kByteDistance = 255;  // largest distance of the fast path

struct Range {
    int smallest, largest;
};

uint8_t* byte_distances(const Scores& s) {
    return reinterpret_cast<uint8_t*>(s.distances);
}

// 0xFF for the first n of sixteen bytes.
inline v128_t first_bytes(int n) {
    const v128_t order = wasm_i8x16_const(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return wasm_i8x16_lt(order, wasm_i8x16_splat(static_cast<int8_t>(n < 16 ? n : 16)));
}

inline Range range_of(v128_t smallest, v128_t largest) {
    uint8_t low[16], high[16];
    wasm_v128_store(low, smallest);
    wasm_v128_store(high, largest);
    Range range{low[0], high[0]};
    for (int i = 1; i < 16; ++i) {
        range.smallest = low[i] < range.smallest ? low[i] : range.smallest;
        range.largest = high[i] > range.largest ? high[i] : range.largest;
    }
    return range;
}

// Distances of one query to all keys as bytes, WORDS words each (0: s.words), and their extremes. Lanes without a key
// repeat the first of their sixteen.
template <int WORDS>
inline Range distances(const Scores& s, const uint32_t* query) {
    const int words = WORDS ? WORDS : s.words;
    uint8_t* out = byte_distances(s);
    v128_t smallest = wasm_u8x16_const_splat(255), largest = wasm_u8x16_const_splat(0);
    for (int j = 0; j < s.tokens; j += 16) {
        const uint32_t* keys = s.keys + j;
        v128_t sum[4];
        for (v128_t& part : sum) part = wasm_i8x16_const_splat(0);
        for (int w = 0; w < words; ++w) {
            const v128_t q = wasm_v128_load32_splat(query + w);
            for (int i = 0; i < 4; ++i) {
                const v128_t key = wasm_v128_load(keys + w * s.key_stride + 4 * i);
                sum[i] = wasm_i8x16_add(sum[i], wasm_i8x16_popcnt(wasm_v128_xor(q, key)));
            }
        }
        for (v128_t& part : sum) part = sum_bytes(part);
        v128_t z =
            wasm_u8x16_narrow_i16x8(wasm_i16x8_narrow_i32x4(sum[0], sum[1]), wasm_i16x8_narrow_i32x4(sum[2], sum[3]));
        if (s.tokens - j < 16) {
            const v128_t first = wasm_i8x16_splat(static_cast<int8_t>(wasm_u8x16_extract_lane(z, 0)));
            z = wasm_v128_bitselect(z, first, first_bytes(s.tokens - j));
        }
        smallest = wasm_u8x16_min(smallest, z);
        largest = wasm_u8x16_max(largest, z);
        wasm_v128_store(out + j, z);
    }
    return range_of(smallest, largest);
}

// The first 32 exponentials, byte by byte: plane b holds byte b of each.
struct Planes32 {
    v128_t low[4], high[4];

    explicit Planes32(const Scores& s) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(s.exp_tables + kExpCyclic32);
        for (int b = 0; b < 4; ++b) {
            uint8_t plane[32];
            for (int i = 0; i < 32; ++i) plane[i] = bytes[4 * i + b];
            low[b] = wasm_v128_load(plane);
            high[b] = wasm_v128_load(plane + 16);
        }
    }
    // An index behind the table gives zero.
    v128_t at(int b, v128_t index, v128_t upper) const {
        return wasm_v128_or(wasm_i8x16_swizzle(low[b], index), wasm_i8x16_swizzle(high[b], upper));
    }
};

// Writes the exponentials to s.row, zeros behind them up to a multiple of 16, and returns their sum.
inline float near_exponentials(const Scores& s, const Planes32& planes, int smallest) {
    const v128_t least = wasm_i8x16_splat(static_cast<int8_t>(smallest)), half = wasm_i8x16_const_splat(16);
    const v128_t zero = wasm_f32x4_const_splat(0);
    Lanes16 sum{{zero, zero, zero, zero}};
    for (int j = 0; j < s.tokens; j += 16) {
        v128_t index = wasm_i8x16_sub(wasm_v128_load(byte_distances(s) + j), least);
        if (s.tokens - j < 16) index = wasm_v128_or(index, wasm_v128_not(first_bytes(s.tokens - j)));
        const v128_t upper = wasm_i8x16_sub(index, half);
        const v128_t b0 = planes.at(0, index, upper), b1 = planes.at(1, index, upper);
        const v128_t b2 = planes.at(2, index, upper), b3 = planes.at(3, index, upper);
        const auto zip8 = [](v128_t a, v128_t b, bool second) {
            return second ? wasm_i8x16_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                          : wasm_i8x16_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        };
        const auto zip16 = [](v128_t a, v128_t b, bool second) {
            return second ? wasm_i16x8_shuffle(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
                          : wasm_i16x8_shuffle(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        };
        const v128_t low0 = zip8(b0, b1, false), low1 = zip8(b0, b1, true);
        const v128_t high0 = zip8(b2, b3, false), high1 = zip8(b2, b3, true);
        const Lanes16 p{
            {zip16(low0, high0, false), zip16(low0, high0, true), zip16(low1, high1, false), zip16(low1, high1, true)}};
        for (int i = 0; i < 4; ++i) sum.part[i] = wasm_f32x4_add(sum.part[i], p.part[i]);
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
    Lanes16 at(int j, int) const {
        Lanes16 bias = load16(row + j);
        if (j >= prefix) return bias;
        const Lanes16 in_prefix = first_lanes(prefix - j), other = load16(first + j);
        for (int i = 0; i < 4; ++i) {
            bias.part[i] = wasm_v128_bitselect(other.part[i], bias.part[i], in_prefix.part[i]);
        }
        return bias;
    }
};

struct HalfBias {
    const uint16_t* row;

    HalfBias(const Scores& s, int i) : row(s.half_bias + static_cast<size_t>(i) * s.tokens) {}
    // As half_to_float, four at a time.
    Lanes16 at(int j, int lanes) const {
        uint16_t halves[16] = {};
        std::memcpy(halves, row + j, (lanes < 16 ? lanes : 16) * sizeof(*row));
        Lanes16 bias;
        for (int i = 0; i < 4; ++i) {
            const v128_t half = wasm_u32x4_load16x4(halves + 4 * i);
            const v128_t magnitude = wasm_i32x4_shl(wasm_v128_and(half, wasm_i32x4_const_splat(0x7FFF)), 13);
            const v128_t sign = wasm_i32x4_shl(wasm_v128_and(half, wasm_i32x4_const_splat(0x8000)), 16);
            bias.part[i] = wasm_v128_or(wasm_f32x4_mul(magnitude, wasm_f32x4_const_splat(0x1p112f)), sign);
        }
        return bias;
    }
};

inline float largest_of(v128_t x) {
    x = wasm_f32x4_pmax(x, wasm_i32x4_shuffle(x, x, 2, 3, 2, 3));
    x = wasm_f32x4_pmax(x, wasm_i32x4_shuffle(x, x, 1, 1, 1, 1));
    return wasm_f32x4_extract_lane(x, 0);
}

inline v128_t largest_part(const Lanes16& x) {
    return wasm_f32x4_pmax(wasm_f32x4_pmax(x.part[0], x.part[1]), wasm_f32x4_pmax(x.part[2], x.part[3]));
}

inline uint16_t above(const Lanes16& x, v128_t limit) {
    Lanes16 mask;
    for (int i = 0; i < 4; ++i) mask.part[i] = wasm_f32x4_gt(x.part[i], limit);
    return bits16(mask);
}

// Turns the exponentials in s.row into row i of A and M_0; returns the largest entry.
template <class Bias>
inline float finish_row(const Scores& s, int i, float sum) {
    const Bias bias(s, i);
    const v128_t factor = wasm_f32x4_splat(1.0f / sum), half = wasm_f32x4_splat(s.half_scale);
    const v128_t none = wasm_f32x4_splat(-__builtin_inff());
    v128_t largest = none;
    uint32_t* mask = s.masks + i * s.mask_stride;
    for (int j = 0; j < s.tokens; j += 16) {
        const int lanes = s.tokens - j;
        const Lanes16 e = bias.at(j, lanes);
        Lanes16 a = load16(s.row + j);
        for (int part = 0; part < 4; ++part) {
            a.part[part] = wasm_f32x4_add(wasm_f32x4_mul(a.part[part], factor), e.part[part]);
        }
        if (lanes < 16) {
            const Lanes16 real = first_lanes(lanes);
            for (int part = 0; part < 4; ++part) {
                a.part[part] = wasm_v128_bitselect(a.part[part], none, real.part[part]);
            }
        }
        store_bits(mask, j, above(a, half));
        largest = wasm_f32x4_pmax(largest, largest_part(a));
        store16(s.row + j, a);
    }
    return largest_of(largest);
}

inline void collect(Candidates& c, int row, const Scores& s, float largest) {
    if (!begin_list(c, row, s.tokens, largest)) return;
    const v128_t limit = wasm_f32x4_splat(limit_of(c));
    for (int j = 0; j < s.tokens; j += 16) {
        const Lanes16 a = load16(s.row + j);
        if (wasm_v128_any_true(wasm_f32x4_gt(largest_part(a), limit))) list_marked(c, above(a, limit), j, s.row);
    }
    end_list(c, row);
}

template <int WORDS, class Bias>
void score_rows(const Scores& given) {
    const Scores s = given;
    const Planes32 near(s);
    for (int i = s.first; i < s.last; ++i) {
        const Range range = distances<WORDS>(s, s.queries + i * s.query_stride);
        const float sum = range.largest - range.smallest < 32 ? near_exponentials(s, near, range.smallest)
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

}  // namespace gsb::wasm
