// Shares the tasks of one kernel call among threads.
#pragma once

#include <algorithm>
#include <functional>

namespace gsb::train {

constexpr int kRowsPerTask = 32;

inline int row_tasks(int rows) {
    return (rows + kRowsPerTask - 1) / kRowsPerTask;
}

// Runs task(0 … count − 1) on at most `threads` threads of one pool, which calls share one after the other. What tasks
// are, and the order in which their sums are added, must not depend on `threads`: then results do not either.
void run_tasks(int threads, int count, const std::function<void(int task)>& task);

// Runs rows(first, last) over blocks of kRowsPerTask rows.
template <class Rows>
void run_rows(int threads, int rows, const Rows& body) {
    run_tasks(threads, row_tasks(rows),
              [&](int task) { body(task, task * kRowsPerTask, std::min(rows, (task + 1) * kRowsPerTask)); });
}

}  // namespace gsb::train
