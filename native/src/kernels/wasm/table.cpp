// The WebAssembly backend.
#include "kernels/dispatch.h"
#include "kernels/wasm/isa.h"

namespace gsb {

constexpr Kernels kWasmKernels = [] {
    Kernels table{};
    table.name = "wasm";
    table.weights = WeightLayout::triples;
    table.patches = PatchLayout::pairs;
    table.prepare_rows = wasm::prepare_rows;
    table.product_threshold = wasm::product_threshold;
    table.product_interval = wasm::product_interval;
    table.product_count = wasm::product_count;
    table.product_integers = wasm::product_integers;
    table.product_residual = wasm::product_residual;
    table.norm_bits = wasm::norm_bits;
    table.patches_embed = wasm::patches_embed;
    table.dot_bytes = wasm::dot_bytes;
    table.scores = wasm::scores;
    table.count_extremes = wasm::count_extremes;
    table.value_planes = wasm::value_planes;
    table.combine = wasm::combine;
    table.tap_group = 4;
    table.split_weights = wasm::split_weights;
    table.resize_rows = wasm::resize_rows;
    table.resize_columns = wasm::resize_columns;
    return table;
}();
static_assert(complete(kWasmKernels));

}  // namespace gsb
