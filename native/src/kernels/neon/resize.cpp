// NEON kernels: resampling of pictures.
//
// Contract: kernels/contract.h.
#include "kernels/neon/isa.h"
#include "kernels/plain_resize.h"

namespace gsb::neon {

void resize_rows(const ResizeRows& r) {
    r.channels == 1 ? plain_resize_rows<1>(r) : plain_resize_rows<3>(r);
}

void resize_columns(const ResizeColumns& r) {
    plain_resize_columns(r, 0);
}

}  // namespace gsb::neon
