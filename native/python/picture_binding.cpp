// From pictures to the pixels a model reads.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <string>
#include <tuple>
#include <utility>

#include "arrays.h"
#include "error.h"
#include "kernels/dispatch.h"
#include "picture/prepare.h"

using namespace nb::literals;

namespace {

// Rows may lie apart; the pixels of a row may not.
using Pixels = nb::ndarray<const uint8_t, nb::ndim<3>, nb::device::cpu>;
using Size = std::tuple<int, int>;

gsb::Picture picture_of(const Pixels& pixels, int orientation) {
    const size_t channels = pixels.shape(2);
    if (channels != 1 && channels != 3 && channels != 4) throw gsb::Error("pixels must have 1, 3 or 4 channels");
    if (pixels.shape(0) > INT32_MAX || pixels.shape(1) > INT32_MAX) throw gsb::Error("a side is too long");
    if (pixels.size() == 0) throw gsb::Error("an array without pixels is no picture");
    const auto width = static_cast<int64_t>(channels);
    const bool tight = (pixels.stride(2) == 1 || channels == 1) && (pixels.stride(1) == width || pixels.shape(1) == 1);
    const size_t row = pixels.shape(1) * channels;
    const int64_t stride = pixels.shape(0) > 1 ? pixels.stride(0) : static_cast<int64_t>(row);
    if (!tight || stride < 0) throw gsb::Error("rows of pixels must be contiguous and come in order");
    return {pixels.data(),
            static_cast<int>(pixels.shape(1)),
            static_cast<int>(pixels.shape(0)),
            static_cast<size_t>(stride),
            static_cast<gsb::PixelFormat>(channels),
            orientation};
}

void check_size(const Size& size) {
    const auto [height, width] = size;
    if (height < 1 || width < 1 || static_cast<size_t>(height) > gsb::kMaxPixels / static_cast<size_t>(width)) {
        throw gsb::Error("size must be two whole numbers above 0, at most 64 million pixels");
    }
}

Result<uint8_t> prepare(const Pixels& pixels, const Size& size, const std::string& resize, double crop_ratio,
                        const std::string& interpolation, const std::string& backend, size_t max_pixels,
                        int orientation) {
    check_size(size);
    if (resize != "crop" && resize != "squash") throw gsb::Error("resize '" + resize + "' is unknown");
    if (!(crop_ratio > 0 && crop_ratio <= 1)) throw gsb::Error("crop_ratio must be above 0 and at most 1");
    const auto [height, width] = size;
    const gsb::Preprocessing wanted{height, width, resize == "crop", crop_ratio, gsb::filter_named(interpolation)};
    const gsb::Picture picture = picture_of(pixels, orientation);
    std::vector<uint8_t> out(3 * static_cast<size_t>(height) * static_cast<size_t>(width));
    {
        nb::gil_scoped_release release;
        gsb::prepare(wanted, picture, gsb::choose_kernels(backend), max_pixels, out.data());
    }
    return result(std::move(out), {static_cast<size_t>(height), static_cast<size_t>(width), size_t{3}});
}

Result<uint8_t> resize(const Pixels& pixels, const Size& size, const std::string& filter,
                       const std::tuple<float, float, float, float>& box, const std::string& backend) {
    check_size(size);
    const gsb::Picture picture = picture_of(pixels, 1);
    gsb::check_picture(picture, gsb::kMaxPixels);
    const auto [left, top, right, bottom] = box;
    if (!(0 <= left && left <= right && right <= static_cast<float>(picture.width) && 0 <= top && top <= bottom &&
          bottom <= static_cast<float>(picture.height))) {
        throw gsb::Error("the box must lie in the picture");
    }
    const auto [height, width] = size;
    const gsb::RowSource source = gsb::rows_of(picture);
    const size_t channels = source.channels;
    std::vector<uint8_t> out(channels * static_cast<size_t>(height) * static_cast<size_t>(width));
    {
        nb::gil_scoped_release release;
        gsb::resample(source, {left, top, right, bottom}, width, height, gsb::filter_named(filter),
                      gsb::choose_kernels(backend), gsb::kMaxPixels, out.data());
    }
    return result(std::move(out), {static_cast<size_t>(height), static_cast<size_t>(width), channels});
}

}  // namespace

void bind_pictures(nb::module_& module) {
    module.def("prepare", prepare, "pixels"_a, "size"_a, "resize"_a, "crop_ratio"_a, "interpolation"_a,
               "backend"_a = "", "max_pixels"_a = gsb::kMaxPixels, "orientation"_a = 1,
               "uint8 (h, w, 1, 3 or 4) → uint8 (H, W, 3), as gsb_vit.data.preprocess.Preprocessing does it.");
    module.def("resize", resize, "pixels"_a, "size"_a, "filter"_a, "box"_a, "backend"_a = "",
               "The part `box` (left, top, right, bottom) of uint8 (h, w, C), resampled: → uint8 (H, W, C), C 1 or 3; "
               "RGBA is laid on white.");
}
