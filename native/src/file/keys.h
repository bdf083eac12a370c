// Checks of JSON objects against the tables of schema.h.
#pragma once

#include <cstddef>
#include <string>

#include "file/json.h"
#include "file/schema.h"

namespace gsb {

// Text of a file for an error message: at most 60 characters, what is not printable ASCII as '?'.
std::string quoted(const std::string& text);

// Checks that `object` has exactly these keys. Throws Error.
void check_names(const char* where, const Json& object, const char* const* names, size_t count);
template <size_t count>
void check_names(const char* where, const Json& object, const char* const (&names)[count]) {
    check_names(where, object, names, count);
}

// Checks the value of one key. Throws Error.
void check_key(const schema::Key& key, const Json& value);

// Checks that `object` has these keys, but perhaps optional ones, and no other, with values as they say. Throws Error.
void check_object(const char* where, const Json& object, const schema::Key* keys, size_t count);
template <size_t count>
void check_object(const char* where, const Json& object, const schema::Key (&keys)[count]) {
    check_object(where, object, keys, count);
}

}  // namespace gsb
