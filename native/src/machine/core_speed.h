// What one core does in a second, measured: its clock, and how many vector instructions it starts a cycle. These are
// the ceilings that a stage's time is compared with (docs/performance.md).
//
// The clock is a chain of register additions, each waiting for the one before: one a cycle on every core there is. The
// time-stamp counter is no clock: it runs at the same speed whatever the core does.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace gsb {

struct CoreSpeed {
    double hz = 0;
    double vector_adds = 0;  // 32-bit vector additions a cycle, of the backend's width; 0: not measured
    double byte_macs = 0;    // products of two 8-bit numbers a cycle, added up, as the backend makes them; 0: likewise
};

namespace core_speed_detail {

constexpr int kRounds = 4000, kTries = 5;

// Calls body(kRounds), which starts `each` instructions a round, and returns the instructions a second of the best try.
template <class Body>
double rate(double each, Body body) {
    using Clock = std::chrono::steady_clock;
    double best = 0;
    for (int i = 0; i < kTries; ++i) {
        const auto start = Clock::now();
        body(kRounds);
        const std::chrono::duration<double> seconds = Clock::now() - start;
        best = std::max(best, each * kRounds / seconds.count());
    }
    return best;
}

inline void add_chain(long rounds) {
#if defined(__x86_64__)
    long sum = 0, one = 1;
    asm volatile(
        "1:\n"
        ".rept 64\n add %2, %0\n .endr\n"
        "dec %1\n jnz 1b\n"
        : "+r"(sum), "+r"(rounds)
        : "r"(one)
        : "cc");
#elif defined(__aarch64__)
    long sum = 0, one = 1;
    asm volatile(
        "1:\n"
        ".rept 64\n add %0, %0, %2\n .endr\n"
        "subs %1, %1, #1\n b.ne 1b\n"
        : "+r"(sum), "+r"(rounds)
        : "r"(one)
        : "cc");
#else
    (void)rounds;
#endif
}

#if defined(__x86_64__)

// Independent instructions on fourteen registers, four times over; the sources stay as they are.
#define GSB_STREAM(NAME, TARGET, INSTRUCTION)                                                                         \
    __attribute__((target(TARGET))) inline void NAME(long rounds) {                                                   \
        asm volatile(                                                                                                 \
            "1:\n"                                                                                                    \
            ".rept 4\n"                                                                                               \
            ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13\n" INSTRUCTION                                      \
            "\n.endr\n"                                                                                               \
            ".endr\n"                                                                                                 \
            "dec %0\n jnz 1b\n"                                                                                       \
            "vzeroupper\n"                                                                                            \
            : "+r"(rounds)                                                                                            \
            :                                                                                                         \
            : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
              "xmm12", "xmm13", "xmm14", "xmm15");                                                                    \
    }
constexpr double kStream = 4 * 14;

GSB_STREAM(add512, "avx512f", "vpaddd %%zmm15, %%zmm\\r, %%zmm\\r")
GSB_STREAM(dot512, "avx512f,avx512vnni", "vpdpbusd %%zmm15, %%zmm14, %%zmm\\r")
GSB_STREAM(add256, "avx2", "vpaddd %%ymm15, %%ymm\\r, %%ymm\\r")
GSB_STREAM(dot256, "avx2", "vpmaddwd %%ymm15, %%ymm14, %%ymm\\r")
#undef GSB_STREAM

// Reads `bytes` (a multiple of 512) from `from`, eight registers a round.
#define GSB_READ(NAME, TARGET, LOAD, SIZE)                                                     \
    __attribute__((target(TARGET))) inline void NAME(const uint8_t* from, size_t bytes) {      \
        size_t rounds = bytes / (8 * SIZE);                                                    \
        asm volatile(                                                                          \
            "1:\n"                                                                             \
            ".irp r, 0, 1, 2, 3, 4, 5, 6, 7\n" LOAD                                            \
            "\n.endr\n"                                                                        \
            "add %2, %0\n dec %1\n jnz 1b\n"                                                   \
            "vzeroupper\n"                                                                     \
            : "+r"(from), "+r"(rounds)                                                         \
            : "i"(8 * SIZE)                                                                    \
            : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"); \
    }

GSB_READ(read512, "avx512f", "vmovdqu64 64*\\r(%0), %%zmm\\r", 64)
GSB_READ(read256, "avx2", "vmovdqu 32*\\r(%0), %%ymm\\r", 32)
#undef GSB_READ

#endif

}  // namespace core_speed_detail

// Cycles a second; 0 on a processor this cannot be measured on. Takes less than a millisecond a try.
inline double core_hz() {
    return core_speed_detail::rate(64, core_speed_detail::add_chain);
}

// `backend` must be one that this machine has (kernels/dispatch.h).
inline CoreSpeed core_speed(const std::string& backend) {
    CoreSpeed speed;
    speed.hz = core_hz();
#if defined(__x86_64__)
    using namespace core_speed_detail;
    if (backend == "avx512") {
        speed.vector_adds = rate(kStream, add512) / speed.hz;
        speed.byte_macs = 64 * rate(kStream, dot512) / speed.hz;
    } else if (backend == "avx2") {
        speed.vector_adds = rate(kStream, add256) / speed.hz;
        speed.byte_macs = 16 * rate(kStream, dot256) / speed.hz;
    }
#else
    (void)backend;
#endif
    return speed;
}

// Bytes a second that one core reads over and over from `bytes` of memory, in the backend's widest loads; 0: not
// measured. What fits into a cache comes from there, so this is the bandwidth that weights of that size have.
inline double read_rate(const std::string& backend, size_t bytes) {
#if defined(__x86_64__)
    using Clock = std::chrono::steady_clock;
    void (*read)(const uint8_t*, size_t) = backend == "avx512" ? core_speed_detail::read512
                                           : backend == "avx2" ? core_speed_detail::read256
                                                               : nullptr;
    if (!read) return 0;
    const size_t whole = std::max<size_t>(512, bytes / 512 * 512);
    const std::vector<uint8_t> memory(whole, 1);
    const size_t passes = (size_t{16} << 20) / whole + 1;
    double best = 0;
    for (int i = 0; i < core_speed_detail::kTries; ++i) {
        const auto start = Clock::now();
        for (size_t pass = 0; pass < passes; ++pass) read(memory.data(), whole);
        const std::chrono::duration<double> seconds = Clock::now() - start;
        best = std::max(best, static_cast<double>(whole * passes) / seconds.count());
    }
    return best;
#else
    (void)backend, (void)bytes;
    return 0;
#endif
}

}  // namespace gsb
