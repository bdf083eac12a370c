// What a WebAssembly module has instead of an operating system: nothing is imported.
//
// Exceptions are not caught there: the standard library for this target cannot, and engines disagree about the
// instructions. A throw keeps its text for gsb_vit_error() and stops the module with a trap. Whoever runs it makes a
// new instance then; the memory of this one is only good for reading the text.
#include <cstdlib>
#include <ctime>
#include <exception>
#include <new>
#include <string>
#include <typeinfo>

#include "error.h"

extern "C" {

void __wasm_call_ctors();

// To be called once, before anything else: WASI's name for it.
void _initialize() {
    __wasm_call_ctors();
}

void* __cxa_allocate_exception(size_t size) noexcept {
    return std::malloc(size);
}

void __cxa_free_exception(void* exception) noexcept {
    std::free(exception);
}

// Every type that is thrown here begins with std::exception.
[[noreturn]] void __cxa_throw(void* exception, std::type_info* type, void (*)(void*)) {
    const bool no_memory = *type == typeid(std::bad_alloc);
    gsb::last_error() = no_memory ? gsb::kNoMemory : static_cast<std::exception*>(exception)->what();
    __builtin_trap();
}

// The only thread never ends.
int __cxa_thread_atexit(void (*)(void*), void*, void*) {
    return 0;
}

// No environment, and a clock that stands still: profiles show no seconds.
char* getenv(const char*) {
    return nullptr;
}

int clock_gettime(clockid_t, timespec* time) {
    *time = {};
    return 0;
}

void abort() {
    __builtin_trap();
}

// The library's own failures; while there is memory, none is met. Its texts would need printf.
[[noreturn]] void abort_message(const char*, ...) {
    gsb::last_error() = gsb::kNoMemory;
    __builtin_trap();
}

}  // extern "C"

[[noreturn]] void std::__libcpp_verbose_abort(const char*, ...) {
    abort_message("");
}
