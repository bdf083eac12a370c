#include "file/safetensors_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <string_view>

#include "error.h"
#include "file/json.h"
#include "file/keys.h"
#include "machine/memory.h"

namespace gsb {

namespace {

size_t item_bytes(const std::string& what, const std::string& type) {
    for (const schema::Type& known : schema::kTypes) {
        if (type == known.name) return known.bytes;
    }
    throw Error(what + " has the unknown type " + quoted(type));
}

// What is wrong with a file of so many bytes; empty: nothing.
std::string size_fault(uint64_t size, uint64_t limit) {
    if (size >= 8 && size <= limit) return "";
    const std::string has = "has " + std::to_string(size) + " bytes";
    return size < 8 ? has : has + ", more than " + std::to_string(limit) + "; " + kRaiseMemory;
}

// A path with a NUL, written as a message may.
std::string one_line(std::string path) {
    for (size_t at; (at = path.find('\0')) != std::string::npos;) path.replace(at, 1, "\\0");
    return path;
}

TensorView read_tensor(const std::string& what, const Json& entry, const uint8_t* data, size_t data_bytes) {
    check_names(what.c_str(), entry, schema::kTensorKeys);
    TensorView view;
    view.dtype = entry.at("dtype").text(what.c_str());
    size_t bytes = item_bytes(what, view.dtype);
    for (const Json& side : entry.at("shape").array(what.c_str())) {
        const auto length = static_cast<size_t>(side.whole(what.c_str(), 0, schema::kMaxWhole));
        view.shape.push_back(length);
        if (length != 0 && bytes > (SIZE_MAX >> 1) / length) throw Error(what + " is larger than any file");
        bytes *= length;
    }
    const auto limit = static_cast<long long>(data_bytes);
    const Json::Array& offsets = entry.at("data_offsets").array(what.c_str());
    if (offsets.size() != 2) throw Error(what + " has no begin and end");
    const auto begin = static_cast<size_t>(offsets[0].whole(what.c_str(), 0, limit));
    const auto end = static_cast<size_t>(offsets[1].whole(what.c_str(), 0, limit));
    if (begin > end || end - begin != bytes) throw Error(what + " does not fill its place in the file");
    view.data = data + begin;
    view.bytes = bytes;
    return view;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path, size_t limit) {
    read(path, limit);
    check(path);
}

SafetensorsFile::SafetensorsFile(const std::string& name, const uint8_t* bytes, size_t size, size_t limit)
    : size_(size) {
    const std::string fault = size_fault(size, limit);
    if (!fault.empty()) throw Error(name + ": cannot be read (" + fault + "); give a packed model");
    bytes_.reset(new uint8_t[size]);
    std::memcpy(bytes_.get(), bytes, size);
    check(name);
}

void SafetensorsFile::check(const std::string& name) {
    try {
        read_header();
    } catch (const Error& error) {
        throw Error(name + ": not a packed model, or truncated (" + error.what() + "); export it again");
    }
}

void SafetensorsFile::read(const std::string& path, size_t limit) {
    const auto fail = [&](const std::string& why) {
        throw Error(path + ": cannot be read (" + why + "); give a packed model file");
    };
    if (path.find('\0') != std::string::npos) {
        throw Error(one_line(path) + ": cannot be read (the path holds a NUL); give a packed model file");
    }
    // Without waiting: a FIFO would block until someone writes.
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) fail(std::strerror(errno));
    struct stat status{};
    std::string fault;
    if (::fstat(file, &status) != 0) {
        fault = std::strerror(errno);
    } else if (S_ISDIR(status.st_mode)) {
        fault = "is a folder";
    } else if (!S_ISREG(status.st_mode)) {
        fault = "is no regular file";
    } else if (fault = size_fault(static_cast<uint64_t>(status.st_size), limit); fault.empty()) {
        size_ = static_cast<size_t>(status.st_size);
        bytes_.reset(new (std::nothrow) uint8_t[size_]);
        if (!bytes_) fault = "there is no memory for its " + std::to_string(size_) + " bytes";
    }
    for (size_t begin = 0; fault.empty() && begin < size_;) {
        const ssize_t count = ::read(file, bytes_.get() + begin, size_ - begin);
        if (count > 0) begin += static_cast<size_t>(count);
        if (count == 0) fault = "it became shorter";
        if (count < 0 && errno != EINTR) fault = std::strerror(errno);
    }
    ::close(file);
    if (!fault.empty()) fail(fault);
}

void SafetensorsFile::read_header() {
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | bytes_[i];
    if (length > size_ - 8) throw Error("its header is longer than the file");
    if (length > schema::kMaxHeaderBytes) {
        throw Error("its header has more than " + std::to_string(schema::kMaxHeaderBytes) + " bytes");
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes_.get() + 8), static_cast<size_t>(length));
    const Json header = Json::parse(text);
    payload_ = bytes_.get() + 8 + length;
    for (const auto& [name, entry] : header.object("the header")) {
        if (name == "__metadata__") {
            for (const auto& [key, value] : entry.object("__metadata__")) metadata_[key] = value.text("metadata");
        } else {
            tensors_[name] = read_tensor("tensor " + quoted(name), entry, payload_, payload_size());
        }
    }
    check_places();
}

void SafetensorsFile::check_places() const {
    std::vector<std::pair<const uint8_t*, size_t>> places;
    for (const auto& [name, view] : tensors_) places.emplace_back(view.data, view.bytes);
    std::sort(places.begin(), places.end());  // empty tensors before the one that begins at the same place
    const uint8_t* end = payload_;
    for (const auto& [begin, length] : places) {
        if (begin != end) throw Error("a tensor does not begin where the one before it ends");
        end = begin + length;
    }
    if (end != payload_ + payload_size()) throw Error("the file does not end with its last tensor");
}

std::vector<std::string> SafetensorsFile::names_by_place() const {
    std::vector<std::pair<const uint8_t*, std::string>> places;
    for (const auto& [name, view] : tensors_) {
        if (view.bytes > 0) places.emplace_back(view.data, name);
    }
    std::sort(places.begin(), places.end());
    std::vector<std::string> names;
    for (const auto& [begin, name] : places) names.push_back(name);
    return names;
}

}  // namespace gsb
