// The one exception of the library: something the caller gave cannot be used. The message is one line for a user.
#pragma once

#include <stdexcept>
#include <string>

namespace gsb {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What the C API says of a bad_alloc.
constexpr const char* kNoMemory = "there is not enough memory for this";

// The text of the last failed call of this thread, which gsb_vit_error() gives.
std::string& last_error();

}  // namespace gsb
