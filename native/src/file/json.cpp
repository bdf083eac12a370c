#include "file/json.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#if !defined(__wasm__)
#include <locale>
#include <sstream>
#endif

#include "error.h"
#include "file/schema.h"

namespace gsb {

namespace {

[[noreturn]] void fail(const std::string& what) {
    throw Error("the header is not JSON (" + what + ")");
}

void append_utf8(std::string& out, uint32_t code) {
    if (code < 0x80) {
        out += static_cast<char>(code);
        return;
    }
    const int extra = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned kLead[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(kLead[extra] | (code >> (6 * extra)));
    for (int i = extra - 1; i >= 0; --i) out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
}

}  // namespace

class JsonReader {
  public:
    explicit JsonReader(std::string_view text) : text_(text) {}

    Json document() {
        Json value = read(0);
        skip_space();
        if (position_ != text_.size()) fail("bytes behind the value");
        return value;
    }

  private:
    int peek() const { return position_ < text_.size() ? static_cast<unsigned char>(text_[position_]) : -1; }

    int next() {
        if (position_ == text_.size()) fail("it ends early");
        return static_cast<unsigned char>(text_[position_++]);
    }

    void expect(char wanted) {
        if (next() != wanted) fail(std::string("no '") + wanted + "' where one belongs");
    }

    void skip_space() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++position_;
    }

    void literal(std::string_view word) {
        if (text_.substr(position_, word.size()) != word) fail("an unknown word");
        position_ += word.size();
    }

    Json read(int level) {
        skip_space();
        Json value;
        switch (peek()) {
            case '{':
                value.value_ = std::make_unique<Json::Object>(read_object(level + 1));
                break;
            case '[':
                value.value_ = std::make_unique<Json::Array>(read_array(level + 1));
                break;
            case '"':
                value.value_ = std::make_unique<std::string>(read_text());
                break;
            case 't':
                literal("true");
                value.value_ = true;
                break;
            case 'f':
                literal("false");
                value.value_ = false;
                break;
            case 'n':
                literal("null");
                break;
            default:
                read_number(value);
        }
        return value;
    }

    // What is between the brackets of an array or object: item() for each, commas between them.
    template <class Item>
    void read_items(char open, char close, int level, Item item) {
        if (level > schema::kMaxNesting) fail("too deeply nested");
        expect(open);
        skip_space();
        if (peek() == close) {
            ++position_;
            return;
        }
        while (true) {
            item();
            skip_space();
            if (peek() != ',') break;
            ++position_;
        }
        expect(close);
    }

    Json::Object read_object(int level) {
        Json::Object members;
        read_items('{', '}', level, [&] {
            skip_space();
            std::string key = read_text();
            skip_space();
            expect(':');
            members.emplace_back(std::move(key), read(level));
        });
        std::vector<std::string_view> keys;
        for (const auto& member : members) keys.push_back(member.first);
        std::sort(keys.begin(), keys.end());
        if (std::adjacent_find(keys.begin(), keys.end()) != keys.end()) fail("a key twice");
        return members;
    }

    Json::Array read_array(int level) {
        Json::Array items;
        read_items('[', ']', level, [&] { items.push_back(read(level)); });
        return items;
    }

    size_t digits() {
        const size_t start = position_;
        while (peek() >= '0' && peek() <= '9') ++position_;
        if (position_ == start) fail("a value that is none");
        return position_ - start;
    }

    void read_number(Json& value) {
        bool whole = true;
        const size_t start = position_;
        if (peek() == '-') ++position_;
        const bool zero = peek() == '0';
        if (digits() > 1 && zero) fail("a number with a leading zero");
        if (peek() == '.') {
            whole = false;
            ++position_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            whole = false;
            ++position_;
            if (peek() == '+' || peek() == '-') ++position_;
            digits();
        }
        const double number = parsed(text_.substr(start, position_ - start), whole);
        if (whole) {
            value.value_ = Json::Whole{number};
        } else {
            value.value_ = number;
        }
    }

    static double parsed(std::string_view digits, bool whole) {
        constexpr size_t kExact = 15;  // so many digits fit a float64
        double number = 0;
        if (whole && digits.size() <= kExact) {
            const bool negative = digits[0] == '-';
            for (char c : digits.substr(negative)) number = 10 * number + (c - '0');
            return negative ? -number : number;
        }
#if defined(__wasm__)
        // No other locale, and streams would be half of the module.
        number = std::strtod(std::string(digits).c_str(), nullptr);
        const bool fits = std::isfinite(number);
#else
        // A stream with the classic locale: strtod would follow the host program's locale.
        std::istringstream stream{std::string(digits)};
        stream.imbue(std::locale::classic());
        stream >> number;
        const bool fits = !stream.fail();
#endif
        if (!fits) fail("a number out of range");
        return number;
    }

    uint32_t hex4() {
        uint32_t code = 0;
        for (int i = 0; i < 4; ++i) {
            const int c = next();
            const int digit = c >= '0' && c <= '9'   ? c - '0'
                              : c >= 'a' && c <= 'f' ? c - 'a' + 10
                              : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                     : -1;
            if (digit < 0) fail("a broken \\u escape");
            code = code * 16 + static_cast<uint32_t>(digit);
        }
        return code;
    }

    void escape(std::string& out) {
        const int c = next();
        static constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
        const size_t at = kNames.find(static_cast<char>(c));
        if (at != kNames.npos) {
            out += kValues[at];
            return;
        }
        if (c != 'u') fail("an unknown escape");
        uint32_t code = hex4();
        if (code >= 0xD800 && code < 0xDC00) {
            if (next() != '\\' || next() != 'u') fail("half a surrogate pair");
            const uint32_t low = hex4();
            if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        } else if (code >= 0xDC00 && code <= 0xDFFF) {
            fail("half a surrogate pair");
        }
        append_utf8(out, code);
    }

    // One UTF-8 character whose first byte is `lead`; overlong forms and surrogates are refused.
    void utf8(std::string& out, int lead) {
        const int extra = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        static constexpr uint32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
        if (lead < 0xC2 || lead > 0xF4) fail("text that is not UTF-8");
        uint32_t code = static_cast<uint32_t>(lead) & (0x3Fu >> extra);
        for (int i = 0; i < extra; ++i) {
            const int c = next();
            if ((c & 0xC0) != 0x80) fail("text that is not UTF-8");
            code = code << 6 | (static_cast<uint32_t>(c) & 0x3F);
        }
        if (code < kSmallest[extra] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
            fail("text that is not UTF-8");
        }
        append_utf8(out, code);
    }

    std::string read_text() {
        expect('"');
        std::string out;
        while (true) {
            const int c = next();
            if (c == '"') return out;
            if (c == '\\') {
                escape(out);
            } else if (c < 0x20) {
                fail("a control character in text");
            } else if (c < 0x80) {
                out += static_cast<char>(c);
            } else {
                utf8(out, c);
            }
        }
    }

    std::string_view text_;
    size_t position_ = 0;
};

Json Json::parse(std::string_view document) {
    return JsonReader(document).document();
}

const std::string& Json::text(const char* what) const {
    const auto* text = std::get_if<std::unique_ptr<std::string>>(&value_);
    if (!text) throw Error(std::string(what) + " must be text");
    return **text;
}

double Json::number(const char* what) const {
    if (const auto* whole = std::get_if<Whole>(&value_)) return whole->value;
    const auto* number = std::get_if<double>(&value_);
    if (!number) throw Error(std::string(what) + " must be a number");
    return *number;
}

bool Json::boolean(const char* what) const {
    const auto* value = std::get_if<bool>(&value_);
    if (!value) throw Error(std::string(what) + " must be true or false");
    return *value;
}

long long Json::whole(const char* what, long long low, long long high) const {
    const auto* number = std::get_if<Whole>(&value_);
    if (!number || !(number->value >= static_cast<double>(low)) || !(number->value <= static_cast<double>(high))) {
        throw Error(std::string(what) + " must be a whole number from " + std::to_string(low) + " to " +
                    std::to_string(high));
    }
    return static_cast<long long>(number->value);
}

const Json::Array& Json::array(const char* what) const {
    const auto* items = std::get_if<std::unique_ptr<Array>>(&value_);
    if (!items) throw Error(std::string(what) + " must be a list");
    return **items;
}

const Json::Object& Json::object(const char* what) const {
    const auto* members = std::get_if<std::unique_ptr<Object>>(&value_);
    if (!members) throw Error(std::string(what) + " must be a JSON object");
    return **members;
}

const Json* Json::find(std::string_view key) const {
    const auto* members = std::get_if<std::unique_ptr<Object>>(&value_);
    if (!members) return nullptr;
    for (const auto& member : **members) {
        if (member.first == key) return &member.second;
    }
    return nullptr;
}

const Json& Json::at(const char* key) const {
    const Json* value = find(key);
    if (!value) throw Error(std::string("key '") + key + "' is missing");
    return *value;
}

}  // namespace gsb
