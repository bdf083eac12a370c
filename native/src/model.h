// A loaded model: the file, its packed weights, and the threads and memory to run it.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "file/packed_model.h"
#include "forward/forward.h"
#include "kernels/dispatch.h"
#include "machine/threads.h"
#include "weights/model_weights.h"

namespace gsb {

struct StageReport {
    const char* name;
    double seconds, bit_macs, byte_macs;
};

class Model {
  public:
    // threads: 0 takes every core this process may run on. backend: "" lets choose_kernels() choose. Throws Error.
    Model(const std::string& path, int threads, const std::string& backend);

    const Architecture& architecture() const { return file_.architecture(); }
    const std::vector<std::string>& class_names() const { return file_.class_names(); }
    const std::string& header() const { return file_.header(); }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return pool_.threads(); }

    // pixels: (count, H, W, 3); logits: (count, K). One call at a time: others wait.
    void predict(const uint8_t* pixels, size_t count, float* logits);

    void set_profiling(bool on);
    std::vector<StageReport> profile() const;

  private:
    void predict_side_by_side(const uint8_t* pixels, size_t count, float* logits);

    PackedModel file_;
    const Kernels& kernels_;
    Shape shape_;
    ModelWeights weights_;
    Forward forward_;
    ThreadPool pool_;
    mutable std::mutex mutex_;
    std::vector<Scratch> scratch_;                 // one a thread
    std::unique_ptr<Workspace> shared_;            // for a picture that all threads work on
    std::vector<std::unique_ptr<Workspace>> own_;  // for pictures side by side, one a thread; made when needed
    bool profiling_ = false;
    double pictures_ = 0;  // profiled
};

}  // namespace gsb
