#include "machine/threads.h"

#include <unistd.h>

#include <chrono>
#include <system_error>

#if defined(__linux__)
#include <sched.h>
#endif

namespace gsb {

namespace {

// A phase of a picture takes 20 to 200 µs: waiting that long for the next before going to sleep saves the wake-up.
constexpr auto kSpin = std::chrono::microseconds(40);

void pause_core() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

template <class Condition>
bool spin_until(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; ++i) {
            if (condition()) return true;
            pause_core();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

}  // namespace

int usable_cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
    const unsigned count = std::thread::hardware_concurrency();
    return count == 0 ? 1 : static_cast<int>(count);
}

int this_process() {
    return static_cast<int>(getpid());
}

ThreadPool::ThreadPool(int threads) : parts_(threads) {}

void ThreadPool::start() {
    started_ = true;
    workers_.reserve(parts_.size() - 1);
    try {
        for (int i = 1; i < threads(); ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {
        // Fewer threads than asked for: the others take their tasks.
    }
}

ThreadPool::~ThreadPool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::drain(const Task& task, int worker) {
    const size_t parts = parts_.size();
    for (size_t i = 0; i < parts; ++i) {
        Part& part = parts_[(worker + i) % parts];
        while (part.next.load(std::memory_order_relaxed) < part.end) {
            const int number = part.next.fetch_add(1);
            if (number < part.end) task(number, worker);
        }
    }
}

void ThreadPool::run(int count, const Task& task) {
    if (!started_ && count > 1) start();
    if (workers_.empty() || count == 1) {
        for (int i = 0; i < count; ++i) task(i, 0);
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        task_ = &task;
        const auto parts = static_cast<int64_t>(parts_.size());
        for (int64_t i = 0; i < parts; ++i) {
            parts_[i].next.store(static_cast<int>(count * i / parts));
            parts_[i].end = static_cast<int>(count * (i + 1) / parts);
        }
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain(task, 0);
    spin_until([this] { return active_.load(std::memory_order_acquire) == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return active_.load() == 0; });
    task_ = nullptr;
}

void ThreadPool::work(int worker) {
    uint64_t seen = 0;
    while (true) {
        spin_until([&] { return round_.load(std::memory_order_acquire) != seen; });
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load() != seen; });
        if (stop_) return;
        seen = round_.load();
        if (!task_) continue;  // woke up after the round
        const Task& task = *task_;
        active_.fetch_add(1);
        lock.unlock();
        drain(task, worker);
        lock.lock();
        if (active_.fetch_sub(1) == 1) done_.notify_one();
    }
}

}  // namespace gsb
