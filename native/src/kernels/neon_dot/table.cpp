// The backend of AArch64 processors with dot products: NEON's, but for sums of bytes.
#include "kernels/dispatch.h"
#include "kernels/neon/isa.h"
#include "kernels/neon_dot/isa.h"

namespace gsb {

constexpr Kernels kNeonDotKernels = [] {
    Kernels table{};
    table.name = "neon_dot";
    table.weights = WeightLayout::lanes;
    table.patches = PatchLayout::quads;
    table.product_threshold = neon::product_threshold;
    table.product_interval = neon::product_interval;
    table.product_count = neon::product_count;
    table.product_integers = neon::product_integers;
    table.product_residual = neon::product_residual;
    table.norm_bits = neon::norm_bits;
    table.patches_embed = neon_dot::patches_embed;
    table.dot_bytes = neon_dot::dot_bytes;
    table.scores = neon::scores;
    table.count_extremes = neon::count_extremes;
    table.value_planes = neon::value_planes;
    table.combine = neon::combine;
    table.tap_group = 1;
    table.resize_rows = neon::resize_rows;
    table.resize_columns = neon::resize_columns;
    return table;
}();
static_assert(complete(kNeonDotKernels));

}  // namespace gsb
