// AVX-512 kernels: products of bits.
//
// Contract: kernels/contract.h. Layout: lane weights, one output channel a 32-bit lane, and operand rows as running
// xors: with P_k = x_0 ^ … ^ x_k in both operands, one xor each gives P_k of the products' differences. P_2i is the sum
// bit of the carry-save adder that takes P_2i−2 and the words 2i − 1 and 2i, and its carry is P_2i−1 ? ¬P_2i : P_2i−2.
// Cost of two words: two xors, one ternary operation, one popcount, one addition; only the last sum is counted.
//
// Up to kResidentWords words deep, sixteen channels' weights stay in registers while all rows stream past as broadcast
// operands; deeper products go through tiles of rows by registers, whose weights come from the first-level cache.
#include <cstring>

#include "kernels/avx512/epilogues.h"
#include "kernels/avx512/isa.h"
#include "kernels/contract.h"

namespace gsb::avx512 {

namespace {

constexpr int kCarry = 0x3A;  // d ? ¬s : a, as the truth table of (d, s, a)
constexpr int kResidentWords = 12;

// Accumulators change in place and weights stay in registers: left to itself GCC copies and spills the former and loads
// the latter once for each row.
GSB_AVX512_INLINE void accumulate(__m512i& acc, __m512i x) {
    asm("vpaddd %1, %0, %0" : "+v"(acc) : "v"(x));
}
GSB_AVX512_INLINE __m512i load_kept(const void* from) {
    __m512i x = load(from);
    asm("" : "+v"(x));
    return x;
}

// Two words further: sums from P_2i to P_2i+2 of R rows by W registers, and the carries' counts. Two arrays of sums
// take turns, or every sum would be copied.
template <int R, int W>
GSB_AVX512_INLINE void two_words(const uint32_t* rows, size_t stride, const uint32_t* weights,
                                 const __m512i (&before)[R][W], __m512i (&after)[R][W], __m512i (&carries)[R][W]) {
    __m512i x0[R], x1[R];
    for (int r = 0; r < R; ++r) {
        x0[r] = broadcast(rows + r * stride);
        x1[r] = broadcast(rows + r * stride + 1);
    }
    for (int w = 0; w < W; ++w) {
        const __m512i w0 = load_kept(weights + 16 * w), w1 = load_kept(weights + 16 * W + 16 * w);
        for (int r = 0; r < R; ++r) {
            after[r][w] = _mm512_xor_si512(x1[r], w1);
            const __m512i middle = _mm512_xor_si512(x0[r], w0);
            const __m512i carry = _mm512_ternarylogic_epi32(middle, after[r][w], before[r][w], kCarry);
            accumulate(carries[r][w], _mm512_popcnt_epi32(carry));
        }
    }
}

// R rows by W registers of sixteen channels: sink(row, register, counts).
template <int R, int W, class Sink>
GSB_AVX512_INLINE void tile(const uint32_t* rows, size_t stride, const uint32_t* weights, int depth, const Sink& sink) {
    constexpr int kLanes = 16 * W;
    __m512i sums[R][W], others[R][W], carries[R][W];
    for (int w = 0; w < W; ++w) {
        const __m512i word = load_kept(weights + 16 * w);
        for (int r = 0; r < R; ++r) {
            sums[r][w] = _mm512_xor_si512(broadcast(rows + r * stride), word);
            carries[r][w] = _mm512_setzero_si512();
        }
    }
    int k = 1;
    const auto from = [&](int word) GSB_AVX512 { return weights + static_cast<size_t>(word) * kLanes; };
    for (; k + 4 <= depth; k += 4) {
        two_words<R, W>(rows + k, stride, from(k), sums, others, carries);
        two_words<R, W>(rows + k + 2, stride, from(k + 2), others, sums, carries);
    }
    if (k + 2 <= depth) {
        two_words<R, W>(rows + k, stride, from(k), sums, others, carries);
        std::memcpy(sums, others, sizeof(sums));
        k += 2;
    }
    for (int w = 0; w < W; ++w) {
        for (int r = 0; r < R; ++r) sums[r][w] = _mm512_popcnt_epi32(sums[r][w]);
        if (k == depth) continue;
        const __m512i word = load_kept(weights + static_cast<size_t>(k) * kLanes + 16 * w);
        for (int r = 0; r < R; ++r) {
            const __m512i differing = _mm512_xor_si512(broadcast(rows + r * stride + k), word);
            accumulate(sums[r][w], _mm512_popcnt_epi32(differing));
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int w = 0; w < W; ++w) {
            sink(r, w, _mm512_add_epi32(sums[r][w], _mm512_add_epi32(carries[r][w], carries[r][w])));
        }
    }
}

// Rows of channels first … first + 16·W − 1.
template <int W, class Epilogue>
GSB_AVX512_INLINE void block(const Product& p, int first, const Epilogue& epilogue) {
    constexpr int kRows = W > 2 ? 2 : W == 2 ? 4 : 8;
    const uint32_t* weights = p.weights + static_cast<size_t>(first) * p.depth;
    const auto sink_from = [&](int row) GSB_AVX512 {
        return [&, row](int r, int w, __m512i counts) GSB_AVX512 { epilogue.lanes(first + 16 * w)(row + r, counts); };
    };
    int row = 0;
    for (; row + kRows <= p.count; row += kRows) {
        tile<kRows, W>(p.rows + row * p.stride, p.stride, weights, p.depth, sink_from(row));
    }
    for (; row < p.count; ++row) {
        tile<1, W>(p.rows + row * p.stride, p.stride, weights, p.depth, sink_from(row));
    }
}

template <class Epilogue>
GSB_AVX512_INLINE void tiles(const Product& p, const Epilogue& epilogue) {
    int first = 0;
    for (; first + 64 <= p.channels; first += 64) block<4>(p, first, epilogue);
    switch ((p.channels - first) / 16) {
        case 1:
            return block<1>(p, first, epilogue);
        case 2:
            return block<2>(p, first, epilogue);
        case 3:
            return block<3>(p, first, epilogue);
        default:
            return;
    }
}

// weights ^ *word in every lane. As assembly, because GCC broadcasts into a register first.
GSB_AVX512_INLINE __m512i xor_broadcast(__m512i weights, const uint32_t* word) {
    __m512i x;
    asm("vpxord %2%{1to16%}, %1, %0" : "=v"(x) : "v"(weights), "m"(*word));
    return x;
}

// Every row by every channel, DEPTH words deep.
template <int DEPTH, class Epilogue>
GSB_AVX512_INLINE void resident(const Product& p, const Epilogue& epilogue) {
    constexpr int kRunning = (DEPTH - 1) / 2 * 2;  // the last running xor
    for (int first = 0; first < p.channels; first += 16) {
        const int block = first / kBlock * kBlock, lanes = p.channels - block < kBlock ? p.channels - block : kBlock;
        const uint32_t* from = p.weights + static_cast<size_t>(block) * DEPTH + (first - block);
        __m512i weights[DEPTH];
#pragma GCC unroll 12
        for (int k = 0; k < DEPTH; ++k) weights[k] = load_kept(from + k * lanes);
        const auto finish = epilogue.lanes(first);
        const __m512i two = _mm512_set1_epi32(2);
        const uint32_t* x = p.rows;
        for (int row = 0; row < p.count; ++row, x += p.stride) {
            __m512i sum = xor_broadcast(weights[0], x), carries = _mm512_setzero_si512();
#pragma GCC unroll 12
            for (int k = 1; k < kRunning; k += 2) {
                const __m512i before = sum;
                sum = xor_broadcast(weights[k + 1], x + k + 1);
                const __m512i carry = _mm512_popcnt_epi32(
                    _mm512_ternarylogic_epi32(xor_broadcast(weights[k], x + k), sum, before, kCarry));
                carries = k == 1 ? carry : _mm512_add_epi32(carries, carry);
            }
            __m512i counts = _mm512_popcnt_epi32(sum);
            if (kRunning + 1 < DEPTH) {
                const __m512i last = xor_broadcast(weights[DEPTH - 1], x + DEPTH - 1);
                counts = _mm512_add_epi32(counts, _mm512_popcnt_epi32(last));
            }
            // At most 5·32 carries: they fit the lowest byte of their lane.
            if (kRunning > 0) counts = _mm512_dpbusd_epi32(counts, carries, two);
            finish(row, counts);
        }
    }
}

template <class Epilogue>
GSB_AVX512_INLINE void product(const Product& given, const Epilogue& epilogue) {
    const Product p = given;  // a copy of its own, which the stores cannot be thought to change
    static_assert(kResidentWords == 12);
    switch (p.depth) {
        case 1:
            return resident<1>(p, epilogue);
        case 2:
            return resident<2>(p, epilogue);
        case 3:
            return resident<3>(p, epilogue);
        case 4:
            return resident<4>(p, epilogue);
        case 5:
            return resident<5>(p, epilogue);
        case 6:
            return resident<6>(p, epilogue);
        case 7:
            return resident<7>(p, epilogue);
        case 8:
            return resident<8>(p, epilogue);
        case 9:
            return resident<9>(p, epilogue);
        case 10:
            return resident<10>(p, epilogue);
        case 11:
            return resident<11>(p, epilogue);
        case 12:
            return resident<12>(p, epilogue);
        default:
            return tiles(p, epilogue);
    }
}

}  // namespace

GSB_AVX512 void product_threshold(const Product& p, const int32_t* threshold, uint32_t* out, size_t out_stride) {
    product(p, ThresholdBits{threshold, out, out_stride});
}

GSB_AVX512 void product_interval(const Product& p, const int32_t* low, const uint32_t* range, uint32_t* out,
                                 size_t out_stride) {
    product(p, IntervalBits{low, range, out, out_stride});
}

GSB_AVX512 void product_count(const Product& p, uint16_t* out, size_t group_stride) {
    product(p, Counts{out, group_stride});
}

GSB_AVX512 void product_integers(const Product& p, const int32_t* base, int32_t* out, size_t out_stride) {
    product(p, Integers{base, out, out_stride});
}

GSB_AVX512 void product_residual(const Product& p, const int32_t* base, const float* scale, const float* bias, float* x,
                                 size_t x_stride) {
    product(p, Residual{base, _mm_cvtsi32_si128(p.inputs.count_shift()), scale, bias, x, x_stride});
}

// Running xors of a row, sixteen words at a time; the last word of an even depth stays as it is.
GSB_AVX512 void prepare_rows(const uint32_t* bits, size_t bit_stride, int count, int depth, uint32_t* rows,
                             size_t stride) {
    const __m512i zero = _mm512_setzero_si512(), top = _mm512_set1_epi32(15);
    const int words = (depth + 1) / 2 * 2, running = (depth - 1) / 2 * 2 + 1;
    for (int row = 0; row < count; ++row) {
        const uint32_t* from = bits + row * bit_stride;
        uint32_t* to = rows + row * stride;
        __m512i before = zero;
        for (int k = 0; k < words; k += 16) {
            const int here = words - k, inside = running - k;
            const __mmask16 mask = here < 16 ? first_lanes(here) : 0xFFFF;
            const __mmask16 plain = inside < 16 ? static_cast<__mmask16>(~first_lanes(inside)) : 0;
            const __m512i x = _mm512_maskz_loadu_epi32(mask, from + k);
            __m512i sum = _mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 15));
            sum = _mm512_xor_si512(sum, _mm512_alignr_epi32(sum, zero, 14));
            sum = _mm512_xor_si512(sum, _mm512_alignr_epi32(sum, zero, 12));
            sum = _mm512_ternarylogic_epi32(sum, _mm512_alignr_epi32(sum, zero, 8), before, 0x96);
            before = _mm512_permutexvar_epi32(top, sum);
            _mm512_mask_storeu_epi32(to + k, mask, _mm512_mask_mov_epi32(sum, plain, x));
        }
    }
}

}  // namespace gsb::avx512
