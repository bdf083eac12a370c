#include "file/safetensors_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "error.h"
#include "file/json.h"

namespace gsb {

namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the format's own library

size_t item_bytes(const std::string& dtype) {
    if (dtype == "I8" || dtype == "U8" || dtype == "BOOL") return 1;
    if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
    if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
    if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
    return 0;
}

TensorView read_tensor(const std::string& name, const Json& entry, const uint8_t* data, size_t data_bytes) {
    const std::string what = "tensor " + name;
    TensorView view;
    view.dtype = entry.at("dtype").text(what.c_str());
    const size_t item = item_bytes(view.dtype);
    if (item == 0) throw Error(what + " has the unknown type " + view.dtype);
    const auto limit = static_cast<long long>(data_bytes);
    size_t bytes = item;
    for (const Json& side : entry.at("shape").array(what.c_str())) {
        const auto length = static_cast<size_t>(side.whole(what.c_str(), 0, 1LL << 48));
        view.shape.push_back(length);
        if (length != 0 && bytes > (SIZE_MAX >> 1) / length) throw Error(what + " is larger than any file");
        bytes *= length;
    }
    const auto& offsets = entry.at("data_offsets").array(what.c_str());
    if (offsets.size() != 2) throw Error(what + " has no begin and end");
    const auto begin = static_cast<size_t>(offsets[0].whole(what.c_str(), 0, limit));
    const auto end = static_cast<size_t>(offsets[1].whole(what.c_str(), 0, limit));
    if (begin > end || end - begin != bytes) throw Error(what + " does not fill its place in the file");
    view.data = data + begin;
    view.bytes = bytes;
    return view;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) {
    map(path);
    try {
        read_header();
    } catch (const Error& error) {
        ::munmap(const_cast<uint8_t*>(bytes_), size_);
        throw Error(path + ": not a packed model, or truncated (" + error.what() + "); export it again");
    }
}

SafetensorsFile::~SafetensorsFile() {
    ::munmap(const_cast<uint8_t*>(bytes_), size_);
}

void SafetensorsFile::map(const std::string& path) {
    const auto fail = [&](const std::string& why) {
        throw Error(path + ": cannot be read (" + why + "); give a packed model file");
    };
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) fail(std::strerror(errno));
    struct stat status{};
    std::string fault;
    if (::fstat(file, &status) != 0) {
        fault = std::strerror(errno);
    } else if (S_ISDIR(status.st_mode)) {
        fault = "is a folder";
    } else if (!S_ISREG(status.st_mode)) {
        fault = "is no regular file";
    } else if (status.st_size < 8) {
        fault = "has " + std::to_string(status.st_size) + " bytes";
    } else {
        size_ = static_cast<size_t>(status.st_size);
        void* mapping = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        if (mapping == MAP_FAILED) fault = std::strerror(errno);
        bytes_ = static_cast<const uint8_t*>(mapping);
    }
    ::close(file);
    if (!fault.empty()) fail(fault);
}

void SafetensorsFile::read_header() {
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | bytes_[i];
    if (length > kMaxHeader || length > size_ - 8) throw Error("its header is longer than the file");
    const std::string_view text(reinterpret_cast<const char*>(bytes_ + 8), static_cast<size_t>(length));
    const Json header = Json::parse(text);
    const uint8_t* data = bytes_ + 8 + length;
    const size_t data_bytes = size_ - 8 - static_cast<size_t>(length);
    for (const auto& [name, entry] : header.object("the header")) {
        if (name == "__metadata__") {
            for (const auto& [key, value] : entry.object("__metadata__")) metadata_[key] = value.text("metadata");
        } else {
            entry.object(("tensor " + name).c_str());
            tensors_[name] = read_tensor(name, entry, data, data_bytes);
        }
    }
}

}  // namespace gsb
