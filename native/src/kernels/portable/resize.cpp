// Portable kernels: resampling of pictures.
//
// Contract: kernels/contract.h.
#include "kernels/plain_resize.h"
#include "kernels/portable/isa.h"

namespace gsb::portable {

void resize_rows(const ResizeRows& r) {
    r.channels == 1 ? plain_resize_rows<1>(r) : plain_resize_rows<3>(r);
}

void resize_columns(const ResizeColumns& r) {
    plain_resize_columns(r, 0);
}

}  // namespace gsb::portable
