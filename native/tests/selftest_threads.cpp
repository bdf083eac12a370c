// The thread pool. Each of these ends only if the pool does what it should, however much time each thread is given.
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "forward/forward.h"
#include "kernels/dispatch.h"
#include "machine/threads.h"
#include "selftest.h"

namespace gsb::selftest {

namespace {

// Holds whoever waits until `count` have arrived.
class Gate {
  public:
    explicit Gate(int count) : left_(count) {}
    void arrive() {
        std::lock_guard<std::mutex> lock(mutex_);
        if (--left_ <= 0) open_.notify_all();
    }
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        open_.wait(lock, [this] { return left_ <= 0; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable open_;
    int left_;
};

void test_every_task_runs_once(ThreadPool& pool, const std::string& what, Results& results) {
    for (int count : {0, 1, 2, 3, 7, 64, 1000}) {
        const std::unique_ptr<std::atomic<int>[]> runs(new std::atomic<int>[count + 1]());
        std::atomic<bool> known{true};
        pool.run(count, [&](int task, int worker) {
            runs[task].fetch_add(1);
            if (worker < 0 || worker >= pool.threads()) known = false;
        });
        bool once = known;
        for (int task = 0; task < count; ++task) once = once && runs[task] == 1;
        results.check(once && runs[count] == 0, what + ": each of " + std::to_string(count) + " tasks once");
    }
}

// As many tasks as threads, each of which waits for all the others: only all threads together get through.
void test_all_threads_work(ThreadPool& pool, const std::string& what, Results& results) {
    const int threads = pool.threads();
    Gate gate(threads);
    const std::unique_ptr<std::atomic<int>[]> tasks(new std::atomic<int>[threads]());
    pool.run(threads, [&](int, int worker) {
        gate.arrive();
        gate.wait();
        tasks[worker].fetch_add(1);
    });
    bool each = true;
    for (int worker = 0; worker < threads; ++worker) each = each && tasks[worker] == 1;
    results.check(each, what + ": every thread works");
}

// The first task of one thread's part ends only after all other tasks: the others have to do the rest of that part, as
// they do for a thread whose core a neighbour took.
void test_a_held_up_thread_holds_up_no_other(ThreadPool& pool, const std::string& what, Results& results) {
    constexpr int kTasks = 60;
    for (int part = 0; part < pool.threads(); ++part) {
        const int held = kTasks * part / pool.threads();
        Gate others(kTasks - 1);
        std::atomic<int> done{0};
        pool.run(kTasks, [&](int task, int) {
            task == held ? others.wait() : others.arrive();
            done.fetch_add(1);
        });
        results.check(done == kTasks, what + ": part " + std::to_string(part) + " held up");
    }
}

}  // namespace

void test_threads(Results& results) {
    for (int threads : {1, 2, 3, 5}) {
        ThreadPool pool(threads);
        const std::string what = "pool of " + std::to_string(threads);
        results.check(pool.threads() == threads, what + ": its size");
        for (int time = 0; time < 3; ++time) test_every_task_runs_once(pool, what, results);
        test_all_threads_work(pool, what, results);
        if (threads > 1) test_a_held_up_thread_holds_up_no_other(pool, what, results);
    }
}

// A forward pass asks the pool for so many tasks that every thread comes to work, if not in the first picture: which
// thread gets how many is up to the machine.
void test_workers(const std::string& path, const std::vector<uint8_t>& pixels, Results& results) {
    const PackedModel file(path);
    const Architecture& a = file.architecture();
    const Shape shape(a);
    const Kernels& kernels = choose_kernels("");
    const ModelWeights weights(file, shape, kernels);
    const Forward forward(a, shape, weights, kernels);
    for (int threads : {2, 3}) {
        ThreadPool pool(threads);
        Workspace workspace(shape, threads);
        std::vector<Scratch> scratch;
        for (int i = 0; i < threads; ++i) scratch.emplace_back(shape, a, shape.tokens);
        const auto all_worked = [&] {
            for (const Scratch& one : scratch) {
                double seconds = 0;
                for (double stage : one.seconds) seconds += stage;
                if (seconds == 0) return false;
            }
            return true;
        };
        std::vector<float> logits(a.num_classes);
        constexpr int kMost = 1000000;
        for (int picture = 0; picture < kMost && !all_worked(); ++picture) {
            forward.run(pixels.data(), logits.data(), workspace, scratch, &pool, 0, true);
        }
        results.check(all_worked(), path + ": all of " + std::to_string(threads) + " threads work on a picture");
    }
}

}  // namespace gsb::selftest
