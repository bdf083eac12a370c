// A loaded model: the file, its packed weights, and the threads and memory to run it.
#pragma once

#include <atomic>
#include <memory>
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
    // threads: 0 takes every core this process may run on. backend: "" lets choose_kernels() choose. Throws Error, also
    // where file, weights and the arrays of a forward pass together take more than the file's max_memory().
    Model(std::unique_ptr<const PackedModel> file, int threads, const std::string& backend);

    const PackedModel& file() const { return *file_; }
    const Architecture& architecture() const { return file_->architecture(); }
    const std::vector<std::string>& class_names() const { return file_->class_names(); }
    const Decision& decision() const { return file_->decision(); }
    const std::string& header() const { return file_->header(); }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return threads_; }
    // As they were asked for: 0 and "" choose anew on another machine.
    int threads_wanted() const { return threads_wanted_; }
    const std::string& backend_wanted() const { return backend_wanted_; }

    // pixels: (count, H, W, 3); logits: (count, K). One call at a time: others wait. In a forked child, too, also where
    // the fork met another thread's call. Throws Error where the model's numbers overflow.
    void predict(const uint8_t* pixels, size_t count, float* logits) { run(pixels, count, logits, {}); }
    // features: (count, heads, C), the normalised token, or mean, that each head reads; else as predict.
    void embed(const uint8_t* pixels, size_t count, float* features);
    // One picture; masks: (depth, A, heads, N, N).
    void masks(const uint8_t* pixels, uint8_t* masks);
    size_t feature_count() const { return architecture().heads.size() * architecture().embed_dim; }  // of a picture

    void set_profiling(bool on);
    std::vector<StageReport> profile() const;

    ~Model();
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

  private:
    // What a process runs the model with. A forked child has none of its parent's threads, and finds locks and memory
    // as the fork met them: it leaves those alone and makes its own.
    struct Session {
        Session(const Shape& shape, const Architecture& architecture, int threads);

        const int process;
        Mutex mutex;
        ThreadPool pool;
        std::vector<Scratch> scratch;                 // one a thread
        Workspace shared;                             // for a picture that all threads work on
        std::vector<std::unique_ptr<Workspace>> own;  // for pictures side by side, one a thread; made when needed
        bool profiling = false;
        double pictures = 0;  // profiled
    };

    Session& session() const;
    // `kept` is of the first picture.
    void run(const uint8_t* pixels, size_t count, float* logits, Kept kept);
    void run_side_by_side(Session& session, const uint8_t* pixels, size_t count, float* logits, Kept kept);
    // `kept` of another picture.
    Kept kept_of(Kept kept, size_t picture) const;

    // Throws Error where there is too little for what a forward pass takes.
    size_t checked_forward_bytes() const;
    ModelWeights checked_weights();

    std::unique_ptr<const PackedModel> file_;
    const Kernels& kernels_;
    Shape shape_;
    const int threads_wanted_, threads_;
    const std::string backend_wanted_;
    const size_t forward_bytes_;  // of the arrays that a forward pass takes
    bool has_room_side_by_side_ = false;
    ModelWeights weights_;
    Forward forward_;
    mutable std::atomic<Session*> session_;
};

}  // namespace gsb
