// Resampling of 8-bit pictures, to the bit as Pillow computes it with the horizontal pass first: docs/numerics.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/contract.h"

namespace gsb {

enum class Filter { nearest, bilinear, bicubic, box, lanczos };
// Throws Error for another name.
Filter filter_named(const std::string& name);

// A part of a picture in its pixels, as Pillow keeps it.
struct Box {
    float left, top, right, bottom;
};

// One axis: `pixels`, of which begin … end become `outputs`.
class Axis {
  public:
    Axis(int pixels, float begin, float end, int outputs, Filter filter);

    // Every output is the pixel of its number.
    bool is_identity() const { return identity_; }
    int outputs() const { return outputs_; }
    // Pixels first … end − 1 are those that some output reads.
    int first_pixel() const { return window(0).first; }
    int end_pixel() const { return window(outputs_ - 1).end; }
    // Outputs whose weights are made at a time, so that they stay few.
    int outputs_at_once() const;

    // The weights of some outputs, at most outputs_at_once(), with pixels counted from `origin`; valid until the next
    // call.
    Taps taps(int output, int count, int origin, int group, kernel::SplitWeights* split);
    // Filter nearest: the pixel that each output takes, −1: none.
    std::vector<int> nearest() const;

  private:
    struct Window {
        double centre;
        int first, end;
    };
    Window window(int output) const;
    void set_weights(const Window& window, int32_t* weights);

    const int pixels_;
    const float begin_;
    const int outputs_;
    const Filter filter_;
    double scale_, widening_, support_;
    bool identity_;
    size_t stride_;
    std::vector<double> exact_;
    std::vector<int32_t> first_, taps_, weights_;
    std::vector<uint8_t> pieces_;
};

// Gives `count` rows from `first` on, tightly packed or with the stride it sets; `buffer` has room for them.
using Rows = std::function<const uint8_t*(int first, int count, uint8_t* buffer, size_t& stride)>;

// A picture that is read row by row.
struct RowSource {
    int width, height, channels;  // 1 or 3
    Rows rows;
};

// out: (height, width, channels), tightly packed. most: pixels of the picture between the two passes; Throws Error
// above.
void resample(const RowSource& source, const Box& box, int width, int height, Filter filter, const Kernels& kernels,
              size_t most, uint8_t* out);

}  // namespace gsb
