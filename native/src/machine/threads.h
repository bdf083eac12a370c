// A pool of threads that share the tasks of one call. Idle threads sleep. Where a system has no threads, one_thread.h
// stands for all of this.
#pragma once

#if defined(__wasm__)
#include "machine/one_thread.h"
#else

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gsb {

using Mutex = std::mutex;
using Lock = std::lock_guard<Mutex>;

// Cores that this process may run on.
int usable_cores();

// A number that a forked child does not share with its parent.
int this_process();

class ThreadPool {
  public:
    using Task = std::function<void(int task, int worker)>;

    // `threads` counts the calling thread, which works, too. The others start with the first run() that needs them.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return static_cast<int>(parts_.size()); }

    // Runs task(0 … count − 1), each once on some thread, and returns when all are done. They must not throw. One call
    // at a time.
    //
    // Every thread begins with a part of its own, thread t with the t-th of equal parts, so that calls whose tasks
    // belong together find their data in the same core's caches; then it takes what is left of the others' parts. Tasks
    // are handed out one at a time, so a thread that lost its core holds up no more than its own.
    void run(int count, const Task& task);

  private:
    // A thread's part of the tasks, on a cache line of its own.
    struct alignas(64) Part {
        std::atomic<int> next{0};  // the first task not yet handed out; may pass `end`
        int end = 0;
    };

    void start();
    void work(int worker);
    void drain(const Task& task, int worker);

    std::vector<Part> parts_;  // one a thread
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::atomic<uint64_t> round_{0};  // grows with each run()
    std::atomic<int> active_{0};      // workers inside the round
    const Task* task_ = nullptr;      // nullptr between rounds; guarded by mutex_, as are the parts' ends
    bool started_ = false, stop_ = false;
};

}  // namespace gsb

#endif
