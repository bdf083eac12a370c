// A small strict JSON reader (RFC 8259) for the headers of packed files.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace gsb {

class Json {
  public:
    using Array = std::vector<Json>;
    using Object = std::vector<std::pair<std::string, Json>>;

    // Parses a whole document. Throws Error for anything that is not exactly one JSON value: duplicate keys, text that
    // is not UTF-8, trailing bytes, more than 64 levels of arrays and objects.
    static Json parse(std::string_view document);

    // The value as that kind; throw Error naming `what` where it is another.
    const std::string& text(const char* what) const;
    double number(const char* what) const;
    bool boolean(const char* what) const;
    long long whole(const char* what, long long low, long long high) const;
    const Array& array(const char* what) const;
    const Object& object(const char* what) const;
    // The member of an object. at() throws Error where it is missing, find() returns nullptr.
    const Json& at(const char* key) const;
    const Json* find(std::string_view key) const;

  private:
    friend class JsonReader;

    struct Whole {  // written without fraction and exponent
        double value;
    };

    // Sixteen bytes, as a hostile header may hold millions of values. Pointers of an alternative are never null.
    std::variant<std::monostate, bool, double, Whole, std::unique_ptr<std::string>, std::unique_ptr<Array>,
                 std::unique_ptr<Object>>
        value_;
};

}  // namespace gsb
