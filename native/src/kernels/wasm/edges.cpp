// WebAssembly kernels: norms, patch embedding, heads.
//
// Contract: kernels/contract.h.
#include "kernels/contract.h"
#include "kernels/wasm/isa.h"

namespace gsb::wasm {

namespace {

// Sixteen floats minus `mean`, those from `lanes` on as zeros.
inline Lanes16 centred(const float* from, int lanes, v128_t mean) {
    Lanes16 x = load16(from);
    for (v128_t& part : x.part) part = wasm_f32x4_sub(part, mean);
    if (lanes >= kWide) return x;
    const Lanes16 real = first_lanes(lanes);
    for (int i = 0; i < 4; ++i) x.part[i] = wasm_v128_and(real.part[i], x.part[i]);
    return x;
}

// R patches by sixteen channels over one colour: two taps a multiplication.
template <int R>
inline void patch_tile(const Patches& p, const int16_t* weights, int row, int first, int colour) {
    v128_t sums[R][4];
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) sums[r][i] = wasm_i32x4_const_splat(0);
    }
    const size_t stride = 3 * static_cast<size_t>(p.area);
    const uint8_t* pixels = p.pixels + row * stride + static_cast<size_t>(colour) * p.area;
    for (int k = 0; k < p.area; k += 2, weights += 2 * kWide) {
        const Lanes16 w = load16(weights);
        for (int r = 0; r < R; ++r) {
            const uint8_t* pair = pixels + r * stride + k;
            const v128_t taps = wasm_i32x4_splat(pair[0] | pair[1] << 16);
            for (int i = 0; i < 4; ++i) {
                sums[r][i] = wasm_i32x4_add(sums[r][i], wasm_i32x4_dot_i16x8(w.part[i], taps));
            }
        }
    }
    const Lanes16 scale = load16(p.scale + static_cast<size_t>(colour) * p.channels + first);
    for (int r = 0; r < R; ++r) {
        float* x = p.x + (row + r) * p.stride + first;
        const Lanes16 position = load16(p.position + static_cast<size_t>(row + r) * p.channels + first);
        Lanes16 y = load16(x);
        for (int i = 0; i < 4; ++i) {
            const v128_t part = wasm_f32x4_mul(wasm_f32x4_convert_i32x4(sums[r][i]), scale.part[i]);
            y.part[i] = colour == 0 ? part : wasm_f32x4_add(y.part[i], part);
            if (colour == 2) y.part[i] = wasm_f32x4_add(y.part[i], position.part[i]);
        }
        store16(x, y);
    }
}

}  // namespace

bool norm_bits(const Norm& given, uint32_t* out, size_t out_stride) {
    const Norm norm = given;
    bool holds = true;
    const float share = 1.0f / static_cast<float>(norm.width);
    const v128_t zero = wasm_f32x4_const_splat(0);
    for (int row = 0; row < norm.count; ++row) {
        const float* x = norm.x + row * norm.stride;
        Lanes16 sum{{zero, zero, zero, zero}}, squares = sum;
        for (int i = 0; i < norm.width; i += kWide) {
            const Lanes16 v = centred(x + i, norm.width - i, zero);
            for (int part = 0; part < 4; ++part) sum.part[part] = wasm_f32x4_add(sum.part[part], v.part[part]);
        }
        const v128_t mean = wasm_f32x4_splat(fold16(sum) * share);
        for (int i = 0; i < norm.width; i += kWide) {
            const Lanes16 e = centred(x + i, norm.width - i, mean);
            for (int part = 0; part < 4; ++part) {
                const v128_t square = wasm_f32x4_mul(e.part[part], e.part[part]);
                squares.part[part] = wasm_f32x4_add(squares.part[part], square);
            }
        }
        const float variance = fold16(squares) * share;
        const float scalar = 1.0f / __builtin_sqrtf(variance + norm.eps);
        const v128_t factor = wasm_f32x4_splat(scalar);
        holds &= norm_holds(scalar);
        for (int i = 0; i < norm.width; i += kWide) {
            const Lanes16 e = centred(x + i, norm.width - i, mean), threshold = load16(norm.threshold + i);
            Lanes16 above;
            for (int part = 0; part < 4; ++part) {
                above.part[part] = wasm_f32x4_ge(wasm_f32x4_mul(e.part[part], factor), threshold.part[part]);
            }
            unsigned bits = bits16(above) ^ (norm.flip[i / 32] >> (i % 32));
            if (norm.width - i < kWide) bits &= (1u << (norm.width - i)) - 1;
            store_bits(out + row * out_stride, i, static_cast<uint16_t>(bits));
        }
    }
    return holds;
}

void patches_embed(const Patches& given) {
    constexpr int kRows = 2;
    const Patches p = given;
    for (int first = 0; first < p.channels; first += kWide) {
        for (int colour = 0; colour < 3; ++colour) {
            const int16_t* weights =
                static_cast<const int16_t*>(p.weights) + (static_cast<size_t>(first) * 3 + kWide * colour) * p.area;
            int row = 0;
            for (; row + kRows <= p.count; row += kRows) patch_tile<kRows>(p, weights, row, first, colour);
            for (; row < p.count; ++row) patch_tile<1>(p, weights, row, first, colour);
        }
    }
}

void dot_bytes(const int8_t* x, const int8_t* weights, int depth, int rows, int32_t* out) {
    for (int row = 0; row < rows; ++row) {
        const int8_t* w = weights + static_cast<size_t>(row) * depth;
        v128_t sums = wasm_i32x4_const_splat(0);
        int k = 0;
        for (; k + 8 <= depth; k += 8) {
            sums = wasm_i32x4_add(sums, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(x + k), wasm_i16x8_load8x8(w + k)));
        }
        int32_t sum = wasm_i32x4_extract_lane(sums, 0) + wasm_i32x4_extract_lane(sums, 1) +
                      wasm_i32x4_extract_lane(sums, 2) + wasm_i32x4_extract_lane(sums, 3);
        for (; k < depth; ++k) sum += static_cast<int32_t>(x[k]) * w[k];
        out[row] = sum;
    }
}

}  // namespace gsb::wasm
