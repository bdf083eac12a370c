#include "file/keys.h"

#include <algorithm>
#include <vector>

#include "error.h"

namespace gsb {

namespace {

void check_one(const schema::Key& key, const Json& value) {
    const std::string name = key.name;
    if (key.kind == schema::Kind::text) {
        value.text(key.name);
    } else if (key.kind == schema::Kind::choice) {
        const std::string& text = value.text(key.name);
        if (std::find(key.choices, key.choices + key.choice_count, text) == key.choices + key.choice_count) {
            throw Error(name + " '" + quoted(text) + "' is unknown");
        }
    } else if (key.kind == schema::Kind::boolean) {
        value.boolean(key.name);
    } else if (key.kind == schema::Kind::object) {
        try {
            check_object(key.name, value, key.members, key.member_count);
        } catch (const Error& error) {
            throw Error(name + ": " + error.what());
        }
    } else if (key.kind == schema::Kind::whole) {
        value.whole(key.name, static_cast<long long>(key.least), static_cast<long long>(key.most));
    } else {
        const double number = value.number(key.name);
        if (!(number >= key.least && number <= key.most && number > key.above && number < key.below)) {
            throw Error(name + " is out of range");
        }
    }
}

}  // namespace

void check_key(const schema::Key& key, const Json& value) {
    if (key.most_items < 0) return check_one(key, value);
    const std::vector<Json>& items = value.array(key.name);
    const auto count = static_cast<long long>(items.size());
    if (count < key.least_items || count > key.most_items) {
        throw Error(std::string(key.name) + " has " + std::to_string(count) + " items");
    }
    for (const Json& item : items) check_one(key, item);
    for (size_t i = 1; key.increasing && i < items.size(); ++i) {
        if (!(items[i - 1].number(key.name) < items[i].number(key.name))) {
            throw Error(std::string(key.name) + " must increase");
        }
    }
}

std::string quoted(const std::string& text) {
    constexpr size_t kLongest = 60;
    std::string shown = text.substr(0, kLongest);
    for (char& c : shown) {
        if (c < 0x20 || c > 0x7E) c = '?';
    }
    return text.size() > kLongest ? shown + "..." : shown;
}

void check_names(const char* where, const Json& object, const char* const* names, size_t count) {
    const auto& members = object.object(where);
    for (size_t i = 0; i < count; ++i) {
        if (!object.find(names[i])) throw Error(std::string(where) + ": key '" + names[i] + "' is missing");
    }
    // Keys are there once: with the right number of them, none is unknown.
    if (members.size() != count) throw Error(std::string(where) + " has an unknown key");
}

void check_object(const char* where, const Json& object, const schema::Key* keys, size_t count) {
    std::vector<const char*> names;
    for (size_t i = 0; i < count; ++i) {
        if (!keys[i].optional || object.find(keys[i].name)) names.push_back(keys[i].name);
    }
    check_names(where, object, names.data(), names.size());
    for (size_t i = 0; i < count; ++i) {
        if (const Json* value = object.find(keys[i].name)) check_key(keys[i], *value);
    }
}

}  // namespace gsb
