// One picture on its way through Forward.
#pragma once

#include "forward/forward.h"

namespace gsb {

struct Forward::Call {
    const uint8_t* picture;
    Workspace& workspace;
    bool profiling;
    Kept kept;

    StageSeconds* seconds(Scratch& scratch) const { return profiling ? &scratch.seconds : nullptr; }
};

}  // namespace gsb
