// The AVX2 backend.
#include "kernels/avx2/isa.h"
#include "kernels/dispatch.h"

namespace gsb {

constexpr Kernels kAvx2Kernels = [] {
    Kernels table{};
    table.name = "avx2";
    table.weights = WeightLayout::triples;
    table.patches = PatchLayout::pairs;
    table.prepare_rows = avx2::prepare_rows;
    table.product_threshold = avx2::product_threshold;
    table.product_interval = avx2::product_interval;
    table.product_count = avx2::product_count;
    table.product_integers = avx2::product_integers;
    table.product_residual = avx2::product_residual;
    table.norm_bits = avx2::norm_bits;
    table.patches_embed = avx2::patches_embed;
    table.dot_bytes = avx2::dot_bytes;
    table.scores = avx2::scores;
    table.count_extremes = avx2::count_extremes;
    table.value_planes = avx2::value_planes;
    table.combine = avx2::combine;
    table.tap_group = 4;
    table.split_weights = avx2::split_weights;
    table.resize_rows = avx2::resize_rows;
    table.resize_columns = avx2::resize_columns;
    return table;
}();
static_assert(complete(kAvx2Kernels));

}  // namespace gsb
