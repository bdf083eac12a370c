// The operations a backend implements: one table of function pointers an instruction set, filled by name
// (avx2/table.cpp) and chosen once (dispatch.h).
//
// Kernels neither allocate nor throw. Every one computes exactly what docs/numerics.md says, so that all backends give
// the same bits. Bits live in 32-bit words, element 32·i + j of a row in bit j of its word i; pad bits are zero.
//
// Channel counts that kernels see are padded: to 16, and per head to 32. Pad channels get parameters that make their
// bits zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace gsb {

constexpr int kBlock = 64;       // channels a block of lane weights
constexpr int kCountGroup = 32;  // channels a group of stored counts
constexpr int kPiece = 16;       // channels a piece of an upper Value plane
constexpr int kScoreRows = 8;    // attention rows a backend may work on together

// Scores::exp_tables holds the table three times: repeated with period 32 (64 numbers; a window of 32 that starts at
// 32 − m mod 32 gives entry z at z mod 32), with period 64 (128 numbers), and as it is.
constexpr int kExpCyclic32 = 0, kExpCyclic64 = 64, kExpTable = 192;

// How a backend wants its one-bit weights; 0 is none.
enum class WeightLayout {
    rows = 1,  // (channels, stride): a row of words a channel, stride even
    lanes,     // blocks of 64 channels, the last one narrower: (block, depth, lanes)
    triples,   // as lanes, words x0 x1 x2 of each whole triple stored as (x0, x0^x1, x0^x1^x2), in both operands
    running    // as lanes, each word stored as the xor of all up to it, but the last of an even depth; in both operands
};

// Is word k of `depth` stored as the xor of itself and the stored word before it?
inline bool is_running(WeightLayout layout, int k, int depth) {
    if (layout == WeightLayout::triples) return k % 3 != 0 && k - k % 3 + 2 < depth;
    return layout == WeightLayout::running && k != 0 && (k % 2 == 0 || k + 1 < depth);
}

// How it wants the int8 weights of the patch embedding; `area` is the pixels a colour, padded to 4; 0 is none.
enum class PatchLayout {
    rows = 1,  // int8 (channels, 3, area)
    quads,     // int8 (block, 3, area / 4, lanes, 4)
    pairs      // int16 (channels / 16, 3, area / 2, 16, 2)
};

// How a row of activations is kept: as `planes` rows of bits, one behind the other, that all meet the same weights.
// Bits are signs, −1 and +1, or steps, 0 and 1.
struct ActivationFormat {
    int planes;
    bool is_signed;

    // Words of a row; even, so that the portable kernels may read two at a time.
    constexpr size_t row_words(int channels) const {
        return static_cast<size_t>(planes) * static_cast<size_t>((channels + 63) / 64 * 2);
    }
    // A product with weights ±1 is base − (counts << shift): where a sign differs from its weight, two are lost; a step
    // loses one from the number of weights +1.
    constexpr int count_shift() const { return is_signed ? 1 : 0; }
};
constexpr ActivationFormat kSigns{1, true}, kSteps{1, false};

// counts[row, channel] = popcount(rows[row] ^ weights[channel]).
struct Product {
    const uint32_t* rows;  // (count, stride), as prepare_rows wrote them
    size_t stride;         // words, even
    int count;
    const uint32_t* weights;
    int depth;                // words that hold bits
    int channels;             // a multiple of 16
    ActivationFormat inputs;  // one plane so far
};

// The sign of a layer norm. With t = (x − μ)·r, t·γ + β >= 0 holds from one float t on, or, where γ < 0, up to one: see
// weights/norm_signs.h.
struct Norm {
    const float* x;  // (count, stride)
    size_t stride;
    int count, width;
    const float* threshold;  // (width, padded to 16): bit = (t >= threshold) ^ flip
    const uint32_t* flip;    // bits, padded to 32
    float eps;
};

// Does r = 1/sqrt(v + eps) hold a row's norm? Not where numbers overflow, or are all equal and eps is 0: then r is
// infinite, 0 or NaN.
inline bool norm_holds(float factor) {
    return factor > 0 && factor <= std::numeric_limits<float>::max();
}

struct Patches {
    const uint8_t* pixels;  // (count, 3, area)
    const void* weights;
    int count, area, channels;
    const float* scale;     // (3, channels)
    const float* position;  // (count, channels)
    float* x;               // (count, stride)
    size_t stride;
};

// Entries of the attention matrix that may belong to an upper group: those above the limit known so far.
struct Candidates {
    float ratio;  // limit = ratio · largest entry so far, or, where `fixed`,
    float limit;  // this
    bool fixed;
    float maximum;     // in and out: largest entry so far
    int32_t* columns;  // (capacity) entries of all rows, one row behind the other
    float* values;
    size_t capacity, used;
    size_t* begin;   // (rows, from the first of the call) where a row's entries start
    int32_t* count;  // likewise: how many; −1: they did not fit, run the row again
};

// Attention rows first … last − 1 of one head.
struct Scores {
    const uint32_t* queries;  // the head's words in row 0
    size_t query_stride;
    const uint32_t* keys;  // (words, key_stride): word w of every token
    size_t key_stride;     // tokens rounded up to 64
    int words, tokens, first, last;
    const float* exp_tables;  // see kExpTable
    int head_dim;
    const float* bias;          // bias of (i, j) at bias[bias_begin[i] + j]; 16 floats behind the last are readable
    const int64_t* bias_begin;  // (tokens)
    const float* bias_first;    // (prefix + 1, 16): what stands for j < prefix in prefix row i, and in any patch row
    int prefix;
    const uint16_t* half_bias;  // float16 (tokens, tokens) instead, or nullptr
    float half_scale;
    uint32_t* masks;  // (tokens, mask_stride): M_0
    size_t mask_stride;
    float* row;              // (key_stride) scratch: one row of A
    int32_t* distances;      // (key_stride) scratch
    Candidates* candidates;  // nullptr where there is one group
};

// The Value planes of one head, as weights of depth `tokens` and as bytes. Upper groups usually hold few channels, so
// their planes are kept in pieces of sixteen channels, and only the pieces that hold any are made and multiplied. Plane
// 0 is one piece of all channels.
struct ValuePlanes {
    const uint16_t* counts;  // (channels / 32, tokens, 32)
    int tokens, channels;    // channels: a multiple of 32
    int planes;
    const int16_t* threshold;   // (channels): plane 0 is +1 where count <= threshold
    const int16_t *low, *high;  // (planes − 1, channels): in the group where count <= low or count >= high
    const uint8_t* active;      // (planes): 0 for a plane without entries, which is not written
    uint32_t* bits;             // (planes, plane_words): plane 0; for the others +1 where (sign = group membership)
    size_t plane_words;
    int32_t* ones;  // (planes, channels): popcounts of the bits
    int8_t* bytes;  // (planes, tokens, byte_stride): −1, 0, 1; nullptr where not wanted
    size_t byte_stride;
};

// Attention × Value of one head: from products to the input bits of the projection.
struct Combine {
    int rows, channels, planes, groups;
    const int32_t* products;  // (planes, rows, channels): I_00, then 2·I_0b − I_00
    const uint8_t* active;    // (planes, channels / 16): elsewhere products are not read, and 0
    const float* scale;       // (groups, planes)
    // Of the upper groups alone, else nullptr and 0.
    const int32_t* columns;
    const size_t* list_begin;   // (rows, groups − 1): row's entries of group g + 1 among columns
    const int32_t* list_count;  // (rows, groups − 1)
    const int8_t* bytes;        // as in ValuePlanes
    size_t plane_bytes, byte_stride;
    const float* shift;  // (channels); −infinity in pad channels
    uint32_t* out;       // (rows, out_stride)
    size_t out_stride;
};

// Resampling of 8-bit pixels along one axis (docs/numerics.md): output o is the sum of weights[o·stride + i] times
// pixel first[o] + i for i < taps[o], in fixed point: 2^22 stands for 1.
struct Taps {
    int outputs;
    size_t stride;           // a multiple of 4; weights behind an output's last are 0
    const int32_t* first;    // (outputs)
    const int32_t* taps;     // (outputs)
    const int32_t* weights;  // (outputs, stride)
    const uint8_t* pieces;   // (outputs, 4·stride): each output's weights as split_weights wrote them, or nullptr
};

// Along each of some rows.
struct ResizeRows {
    const uint8_t* in;  // (rows, in_stride bytes): pixels of `channels` bytes; nothing behind a row is read
    size_t in_stride;
    int rows, channels;  // 1 or 3
    Taps taps;
    uint8_t* out;  // (rows, out_stride bytes)
    size_t out_stride;
};

// Across rows: output row o.
struct ResizeColumns {
    const uint8_t* in;  // (rows, in_stride bytes)
    size_t in_stride;
    int bytes;  // a row
    Taps taps;  // that of row `output`
    int output;
    uint8_t* out;  // (bytes)
};

constexpr int kWeightBits = 22;

// The types of a backend's functions: the header of an instruction set declares each by its name (avx2/isa.h).
namespace kernel {

// Bits as they are → operand rows.
using PrepareRows = void(const uint32_t* bits, size_t bit_stride, int count, int depth, uint32_t* rows, size_t stride);
// bit = counts <= threshold; (count, out_stride) words.
using ProductThreshold = void(const Product&, const int32_t* threshold, uint32_t* out, size_t out_stride);
// bit = 0 where (uint32)(counts − low) <= range.
using ProductInterval = void(const Product&, const int32_t* low, const uint32_t* range, uint32_t* out,
                             size_t out_stride);
// The counts themselves, (channels / 32, group_stride / 32, 32); channels a multiple of 32.
using ProductCount = void(const Product&, uint16_t* out, size_t group_stride);
// base − counts.
using ProductIntegers = void(const Product&, const int32_t* base, int32_t* out, size_t out_stride);
// x += f(base − (counts << the inputs' shift)) · scale + bias.
using ProductResidual = void(const Product&, const int32_t* base, const float* scale, const float* bias, float* x,
                             size_t x_stride);
// bit = layer norm >= 0; (count, out_stride) words. Says whether the norm holds in every row.
using NormBits = bool(const Norm&, uint32_t* out, size_t out_stride);
using PatchesEmbed = void(const Patches&);
// out[row] = Σ x·w[row], exact.
using DotBytes = void(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out);
using AttentionScores = void(const Scores&);
// Smallest and largest count of each channel over rows first … last − 1.
using CountExtremes = void(const uint16_t* counts, size_t group_stride, int channels, int first, int last,
                           uint16_t* smallest, uint16_t* largest);
using MakeValuePlanes = void(const ValuePlanes&);
using CombineProducts = void(const Combine&);
// One output's weights → 4·stride bytes, as resize_rows and resize_columns like them.
using SplitWeights = void(const int32_t* weights, size_t stride, uint8_t* pieces);
using ResizePictureRows = void(const ResizeRows&);
using ResizePictureColumns = void(const ResizeColumns&);

}  // namespace kernel

struct Kernels {
    const char* name;
    WeightLayout weights;
    PatchLayout patches;

    kernel::PrepareRows* prepare_rows;  // nullptr: bits are operand rows already
    // products.cpp of an instruction set
    kernel::ProductThreshold* product_threshold;
    kernel::ProductInterval* product_interval;
    kernel::ProductCount* product_count;
    kernel::ProductIntegers* product_integers;
    kernel::ProductResidual* product_residual;
    // edges.cpp
    kernel::NormBits* norm_bits;
    kernel::PatchesEmbed* patches_embed;
    kernel::DotBytes* dot_bytes;
    // scores.cpp
    kernel::AttentionScores* scores;
    // values.cpp
    kernel::CountExtremes* count_extremes;
    kernel::MakeValuePlanes* value_planes;
    kernel::CombineProducts* combine;
    // resize.cpp
    int tap_group;                        // outputs get a multiple of so many taps where the picture has them
    kernel::SplitWeights* split_weights;  // nullptr: no pieces
    kernel::ResizePictureRows* resize_rows;
    kernel::ResizePictureColumns* resize_columns;
};

// Is every entry there that has to be? Takes the table apart, so that an entry added to it does not compile until it is
// asked for here, too.
constexpr bool complete(const Kernels& table) {
    const auto& [name, weights, patches, prepare_rows, product_threshold, product_interval, product_count,
                 product_integers, product_residual, norm_bits, patches_embed, dot_bytes, scores, count_extremes,
                 value_planes, combine, tap_group, split_weights, resize_rows, resize_columns] = table;
    return name && weights != WeightLayout{} && patches != PatchLayout{} && product_threshold && product_interval &&
           product_count && product_integers && product_residual && norm_bits && patches_embed && dot_bytes && scores &&
           count_extremes && value_planes && combine && tap_group && resize_rows && resize_columns;
}

}  // namespace gsb
