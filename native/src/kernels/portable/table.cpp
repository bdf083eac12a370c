// The portable backend.
#include "kernels/dispatch.h"
#include "kernels/portable/isa.h"

namespace gsb {

constexpr Kernels kPortableKernels = [] {
    Kernels table{};
    table.name = "portable";
    table.weights = WeightLayout::rows;
    table.patches = PatchLayout::rows;
    table.product_threshold = portable::product_threshold;
    table.product_interval = portable::product_interval;
    table.product_count = portable::product_count;
    table.product_integers = portable::product_integers;
    table.product_residual = portable::product_residual;
    table.norm_bits = portable::norm_bits;
    table.patches_embed = portable::patches_embed;
    table.dot_bytes = portable::dot_bytes;
    table.scores = portable::scores;
    table.count_extremes = portable::count_extremes;
    table.value_planes = portable::value_planes;
    table.combine = portable::combine;
    table.tap_group = 1;
    table.resize_rows = portable::resize_rows;
    table.resize_columns = portable::resize_columns;
    return table;
}();
static_assert(complete(kPortableKernels));

}  // namespace gsb
