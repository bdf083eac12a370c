#include "inputs.h"

namespace gsb::train {
namespace {

// m = round(|t/s|·kUnit) where t is inside, 0 elsewhere. coarse: the sign is the plane's (of a step, minus means 0);
// the size is 1 + m/256, or kClipped more where x itself was clipped, or kOutside. fine: the last byte of m.
constexpr int kUnit = 15000 * 256, kClipped = 16000, kOutside = 32767;

struct Code {
    __m512i coarse, fine;
};

GSB_TRAIN_INLINE Code encode(__m512 t, __mmask16 plane, __mmask16 inside, __mmask16 clipped, __m512 unit_per_scale) {
    __m512i m = _mm512_cvtps_epi32(_mm512_mul_ps(magnitude(t), unit_per_scale));
    m = _mm512_maskz_min_epi32(inside, m, _mm512_set1_epi32(kUnit));
    __m512i size = _mm512_add_epi32(_mm512_srli_epi32(m, 8), _mm512_set1_epi32(1));
    size = _mm512_mask_add_epi32(size, clipped, size, _mm512_set1_epi32(kClipped));
    size = _mm512_mask_mov_epi32(_mm512_set1_epi32(kOutside), inside, size);
    const __mmask16 minus = static_cast<__mmask16>(~plane);
    return {_mm512_mask_sub_epi32(size, minus, _mm512_setzero_si512(), size), m};
}

template <class T>
GSB_TRAIN_TARGET void quantize_rows(const Inputs& in, const T* x, int first, int last, uint64_t* bits, uint8_t* code) {
    const int words = words_of(in.width);
    const __m512 scale = _mm512_set1_ps(in.scale), half = _mm512_set1_ps(0.5f * in.scale);
    const __m512 clip = _mm512_set1_ps(in.clip), lowest = _mm512_set1_ps(-in.clip);
    const __m512 unit = _mm512_set1_ps(kUnit / in.scale), zero = _mm512_setzero_ps();
    for (int row = first; row < last; ++row) {
        const T* from = x + static_cast<size_t>(row) * in.width;
        uint16_t* out = reinterpret_cast<uint16_t*>(bits + static_cast<size_t>(row) * words);
        uint8_t* coarse = code ? code + static_cast<size_t>(row) * in.width * kCodeBytes : nullptr;
        uint8_t* fine = code ? coarse + 2 * in.width : nullptr;
        int column = 0;
        for (; column < in.width; column += 16) {
            const __mmask16 lanes = lanes_from(column, in.width);
            const __m512 raw = load(from + column, lanes);
            __m512 t = _mm512_min_ps(_mm512_max_ps(raw, lowest), clip);
            if (in.shift) t = _mm512_add_ps(t, load(in.shift + column, lanes));
            const __mmask16 plane =
                in.step ? _mm512_cmp_ps_mask(t, half, _CMP_GT_OQ) : _mm512_cmp_ps_mask(t, zero, _CMP_GE_OQ);
            *out++ = plane & lanes;
            if (!code) continue;
            const __mmask16 inside = _mm512_cmp_ps_mask(in.step ? t : magnitude(t), scale, _CMP_LE_OQ) &
                                     (in.step ? _mm512_cmp_ps_mask(t, zero, _CMP_GE_OQ) : 0xFFFF);
            const __mmask16 clipped = _mm512_cmp_ps_mask(magnitude(raw), clip, _CMP_GT_OQ);
            const Code q = encode(t, plane, inside, clipped, unit);
            _mm256_mask_storeu_epi16(coarse + 2 * column, lanes, _mm512_cvtepi32_epi16(q.coarse));
            _mm_mask_storeu_epi8(fine + column, lanes, _mm512_cvtepi32_epi8(q.fine));
        }
        for (; column < words * 64; column += 16) *out++ = 0;
    }
}

template <class T>
GSB_TRAIN_TARGET float backward_rows(const Inputs& in, const uint8_t* code, T* grad, T* dequantized, int first,
                                     int last, float* shift_grad) {
    const __m512i clip = _mm512_set1_epi32(kClipped), outside = _mm512_set1_epi32(kOutside);
    const __m512 ratio = _mm512_set1_ps(1.0f / kUnit), one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    const __m512 scale = _mm512_set1_ps(in.scale);
    __m512 scale_grad = zero;
    for (int row = first; row < last; ++row) {
        const size_t begin = static_cast<size_t>(row) * in.width;
        const uint8_t* coarse = code + begin * kCodeBytes;
        const uint8_t* fine_parts = coarse + 2 * in.width;
        for (int column = 0; column < in.width; column += 16) {
            const __mmask16 lanes = lanes_from(column, in.width);
            const __m512i q = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(lanes, coarse + 2 * column));
            const __m512i fine = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, fine_parts + column));
            const __m512i size = _mm512_abs_epi32(q);
            const __mmask16 inside = _mm512_cmp_epi32_mask(size, outside, _MM_CMPINT_NE);
            const __mmask16 clipped = _mm512_mask_cmp_epi32_mask(inside, size, clip, _MM_CMPINT_NLE);
            const __mmask16 minus = _mm512_movepi32_mask(q);
            __m512i m = _mm512_mask_sub_epi32(size, clipped, size, clip);
            m = _mm512_add_epi32(_mm512_slli_epi32(_mm512_sub_epi32(m, _mm512_set1_epi32(1)), 8), fine);
            __m512 t = _mm512_maskz_mul_ps(inside, _mm512_cvtepi32_ps(m), ratio), plane;
            if (in.step) {
                plane = _mm512_mask_mov_ps(one, minus, zero);
            } else {
                plane = _mm512_mask_sub_ps(one, minus, zero, one);
                t = _mm512_mask_sub_ps(t, minus, zero, t);
            }
            const __m512 g = load(grad + begin + column, lanes);
            scale_grad = _mm512_fmadd_ps(g, _mm512_sub_ps(plane, t), scale_grad);
            const __m512 passed = _mm512_maskz_mov_ps(inside, g);
            store(grad + begin + column, lanes, _mm512_maskz_mov_ps(static_cast<__mmask16>(~clipped), passed));
            store(dequantized + begin + column, lanes, _mm512_mul_ps(plane, scale));
            if (shift_grad) {
                store(shift_grad + column, lanes, _mm512_add_ps(load(shift_grad + column, lanes), passed));
            }
        }
    }
    return _mm512_reduce_add_ps(scale_grad);
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
