#include "tasks.h"

#include <unistd.h>

#include <memory>
#include <mutex>

#include "machine/threads.h"

namespace gsb::train {
namespace {

std::mutex shared;
ThreadPool* pool = nullptr;  // never deleted: at exit, and behind a fork, its threads may be gone
int pool_threads = 0;
pid_t pool_process = 0;

ThreadPool& pool_of(int threads) {
    if (pool_threads != threads || pool_process != getpid()) {
        if (pool_process == getpid()) delete pool;
        pool = new ThreadPool(threads);
        pool_threads = threads;
        pool_process = getpid();
    }
    return *pool;
}

}  // namespace

void run_tasks(int threads, int count, const std::function<void(int task)>& task) {
    if (threads <= 1 || count <= 1) {
        for (int i = 0; i < count; ++i) task(i);
        return;
    }
    std::lock_guard<std::mutex> lock(shared);
    pool_of(threads).run(count, [&](int i, int) { task(i); });
}

}  // namespace gsb::train
