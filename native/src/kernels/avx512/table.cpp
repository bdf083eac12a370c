// The AVX-512 backend (VPOPCNTDQ, VNNI: Ice Lake, Zen 4 and later).
#include "kernels/avx512/isa.h"
#include "kernels/dispatch.h"

namespace gsb {

constexpr Kernels kAvx512Kernels = [] {
    Kernels table{};
    table.name = "avx512";
    table.weights = WeightLayout::running;
    table.patches = PatchLayout::quads;
    table.prepare_rows = avx512::prepare_rows;
    table.product_threshold = avx512::product_threshold;
    table.product_interval = avx512::product_interval;
    table.product_count = avx512::product_count;
    table.product_integers = avx512::product_integers;
    table.product_residual = avx512::product_residual;
    table.norm_bits = avx512::norm_bits;
    table.patches_embed = avx512::patches_embed;
    table.dot_bytes = avx512::dot_bytes;
    table.scores = avx512::scores;
    table.count_extremes = avx512::count_extremes;
    table.value_planes = avx512::value_planes;
    table.combine = avx512::combine;
    table.tap_group = 4;
    table.split_weights = avx512::split_weights;
    table.resize_rows = avx512::resize_rows;
    table.resize_columns = avx512::resize_columns;
    return table;
}();
static_assert(complete(kAvx512Kernels));

}  // namespace gsb
