// What threads.h declares, for systems without threads and processes.
#pragma once

#include <functional>

namespace gsb {

struct Mutex {};
struct Lock {
    explicit Lock(Mutex&) {}
};

inline int usable_cores() {
    return 1;
}

inline int this_process() {
    return 0;
}

// Every task on the calling thread.
class ThreadPool {
  public:
    using Task = std::function<void(int task, int worker)>;

    explicit ThreadPool(int) {}
    int threads() const { return 1; }
    void run(int count, const Task& task) {
        for (int i = 0; i < count; ++i) task(i, 0);
    }
};

}  // namespace gsb
