// The one exception of the library: something the caller gave cannot be used. The message is one line for a user.
#pragma once

#include <stdexcept>
#include <string>

namespace gsb {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace gsb
