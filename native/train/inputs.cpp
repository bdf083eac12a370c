#include "inputs.h"

namespace gsb::train {
namespace {

// m = round(|t/s|·kUnit) where t is inside, 0 elsewhere. coarse: the sign is the plane's (of a step, minus means 0);
// the size is 1 + m/256, or kClipped more where x itself was clipped, or kOutside. fine: the last byte of m.
constexpr int kUnit = 15000 * 256, kClipped = 16000, kOutside = 32767;

struct Code {
    Ints coarse, fine;
};

GSB_TRAIN_INLINE Code encode(Floats t, Mask plane, Mask inside, Mask clipped, Floats unit_per_scale) {
    const Ints m = keep(inside, min(rounded(magnitude(t) * unit_per_scale), ints(kUnit)));
    Ints size = shift_right<8>(m) + ints(1);
    size = select(clipped, size + ints(kClipped), size);
    size = select(inside, size, ints(kOutside));
    return {select(plane, size, ints(0) - size), m};
}

template <class T>
GSB_TRAIN_TARGET void quantize_rows(const Inputs& in, const T* x, int first, int last, uint64_t* bits, uint8_t* code) {
    const int words = words_of(in.width);
    const Floats scale = floats(in.scale), half = floats(0.5f * in.scale), zero = floats(0.0f);
    const Floats clip = floats(in.clip), lowest = floats(-in.clip), unit = floats(kUnit / in.scale);
    for (int row = first; row < last; ++row) {
        const T* from = x + static_cast<size_t>(row) * in.width;
        uint16_t* out = reinterpret_cast<uint16_t*>(bits + static_cast<size_t>(row) * words);
        uint8_t* coarse = code ? code + static_cast<size_t>(row) * in.width * kCodeBytes : nullptr;
        uint8_t* fine = code ? coarse + 2 * in.width : nullptr;
        int column = 0;
        for (; column < in.width; column += 16) {
            const Lanes lanes = lanes_from(column, in.width);
            const Floats raw = load(from + column, lanes);
            Floats t = min(max(raw, lowest), clip);
            if (in.shift) t = t + load(in.shift + column, lanes);
            const Mask plane = in.step ? t > half : t >= zero;
            *out++ = bits_of(plane & mask_of(lanes));
            if (!code) continue;
            const Mask inside = in.step ? (t <= scale) & (t >= zero) : magnitude(t) <= scale;
            const Code q = encode(t, plane, inside, magnitude(raw) > clip, unit);
            store_int16(coarse + 2 * column, lanes, q.coarse);
            store_uint8(fine + column, lanes, q.fine);
        }
        for (; column < words * 64; column += 16) *out++ = 0;
    }
}

template <class T>
GSB_TRAIN_TARGET float backward_rows(const Inputs& in, const uint8_t* code, T* grad, T* dequantized, int first,
                                     int last, float* shift_grad) {
    const Ints clip = ints(kClipped), outside = ints(kOutside);
    const Floats ratio = floats(1.0f / kUnit), one = floats(1.0f), zero = floats(0.0f), scale = floats(in.scale);
    Floats scale_grad = zero;
    for (int row = first; row < last; ++row) {
        const size_t begin = static_cast<size_t>(row) * in.width;
        const uint8_t* coarse = code + begin * kCodeBytes;
        const uint8_t* fine_parts = coarse + 2 * in.width;
        for (int column = 0; column < in.width; column += 16) {
            const Lanes lanes = lanes_from(column, in.width);
            const Ints q = load_int16(coarse + 2 * column, lanes), fine = load_uint8(fine_parts + column, lanes);
            const Ints size = magnitude(q);
            const Mask inside = size < outside, minus = q < ints(0);
            const Mask clipped = inside & (clip < size);
            const Ints m = shift_left<8>(select(clipped, size - clip, size) - ints(1)) + fine;
            Floats t = keep(inside, floats(m) * ratio), plane = select(minus, zero, one);
            if (!in.step) {
                plane = select(minus, zero - one, one);
                t = select(minus, zero - t, t);
            }
            const Floats g = load(grad + begin + column, lanes);
            scale_grad = fma(g, plane - t, scale_grad);
            const Floats passed = keep(inside, g);
            store(grad + begin + column, lanes, keep(~clipped, passed));
            store(dequantized + begin + column, lanes, plane * scale);
            if (shift_grad) store(shift_grad + column, lanes, load(shift_grad + column, lanes) + passed);
        }
    }
    return sum(scale_grad);
}

}  // namespace

template <class T>
void quantize(const Inputs& in, const T* x, int first, int last, uint64_t* bits, uint8_t* code) {
    quantize_rows(in, x, first, last, bits, code);
}

template <class T>
float quantize_backward(const Inputs& in, const uint8_t* code, T* grad, T* dequantized, int first, int last,
                        float* shift_grad) {
    return backward_rows(in, code, grad, dequantized, first, last, shift_grad);
}

template void quantize(const Inputs&, const float*, int, int, uint64_t*, uint8_t*);
template void quantize(const Inputs&, const Half*, int, int, uint64_t*, uint8_t*);
template float quantize_backward(const Inputs&, const uint8_t*, float*, float*, int, int, float*);
template float quantize_backward(const Inputs&, const uint8_t*, Half*, Half*, int, int, float*);

}  // namespace gsb::train
