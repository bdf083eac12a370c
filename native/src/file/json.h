// A small strict JSON reader (RFC 8259) for the headers of packed files.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gsb {

class Json {
  public:
    enum class Kind { null, boolean, number, text, array, object };

    // Parses a whole document. Throws Error for anything that is not exactly one JSON value: duplicate keys, text that
    // is not UTF-8, trailing bytes, more than 64 levels.
    static Json parse(std::string_view document);

    Kind kind() const { return kind_; }
    // The value as that kind; throw Error naming `what` where it is another.
    const std::string& text(const char* what) const;
    double number(const char* what) const;
    long long whole(const char* what, long long low, long long high) const;
    const std::vector<Json>& array(const char* what) const;
    const std::vector<std::pair<std::string, Json>>& object(const char* what) const;
    // The member of an object. at() throws Error where it is missing, find() returns nullptr.
    const Json& at(const char* key) const;
    const Json* find(std::string_view key) const;

  private:
    friend class JsonReader;

    Kind kind_ = Kind::null;
    double number_ = 0;
    bool whole_ = false;  // written without fraction and exponent
    std::string text_;
    std::vector<Json> items_;
    std::vector<std::pair<std::string, Json>> members_;
};

}  // namespace gsb
