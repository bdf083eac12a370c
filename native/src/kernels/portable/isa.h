// The functions of the portable backend.
#pragma once

#include "kernels/contract.h"

namespace gsb::portable {

// products.cpp
kernel::ProductThreshold product_threshold;
kernel::ProductInterval product_interval;
kernel::ProductCount product_count;
kernel::ProductIntegers product_integers;
kernel::ProductResidual product_residual;

// edges.cpp
kernel::NormBits norm_bits;
kernel::PatchesEmbed patches_embed;
kernel::DotBytes dot_bytes;

// scores.cpp
kernel::AttentionScores scores;

// values.cpp
kernel::CountExtremes count_extremes;
kernel::MakeValuePlanes value_planes;
kernel::CombineProducts combine;

// resize.cpp
kernel::ResizePictureRows resize_rows;
kernel::ResizePictureColumns resize_columns;

}  // namespace gsb::portable
