#include "model.h"

#include "error.h"

namespace gsb {

namespace {

constexpr int kMaxThreads = 1024;

int checked_threads(int threads) {
    if (threads < 0 || threads > kMaxThreads) {
        throw Error("threads " + std::to_string(threads) + " must be from 0 (every core) to " +
                    std::to_string(kMaxThreads));
    }
    return threads == 0 ? usable_cores() : threads;
}

}  // namespace

Model::Model(const std::string& path, int threads, const std::string& backend)
    : file_(path),
      kernels_(choose_kernels(backend)),
      shape_(file_.architecture()),
      weights_(file_, shape_, kernels_),
      forward_(file_.architecture(), shape_, weights_, kernels_),
      pool_(checked_threads(threads)) {
    for (int i = 0; i < pool_.threads(); ++i) scratch_.emplace_back(shape_, architecture(), shape_.tokens);
    shared_ = std::make_unique<Workspace>(shape_, pool_.threads());
}

void Model::predict(const uint8_t* pixels, size_t count, float* logits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t picture = static_cast<size_t>(architecture().image_height) * architecture().image_width * 3;
    const size_t classes = architecture().num_classes, threads = pool_.threads();
    // Pictures side by side, one a thread, need no waiting for each other; what is left over is shared.
    const size_t side_by_side = threads == 1 ? 0 : count - count % threads;
    if (side_by_side > 0) predict_side_by_side(pixels, side_by_side, logits);
    for (size_t i = side_by_side; i < count; ++i) {
        forward_.run(pixels + i * picture, logits + i * classes, *shared_, scratch_, threads == 1 ? nullptr : &pool_, 0,
                     profiling_);
    }
    if (profiling_) pictures_ += static_cast<double>(count);
}

void Model::predict_side_by_side(const uint8_t* pixels, size_t count, float* logits) {
    const size_t picture = static_cast<size_t>(architecture().image_height) * architecture().image_width * 3;
    const size_t classes = architecture().num_classes;
    while (own_.size() < scratch_.size()) own_.push_back(std::make_unique<Workspace>(shape_, 1));
    constexpr size_t kMost = 1 << 20;  // tasks are counted in int
    for (size_t begin = 0; begin < count; begin += kMost) {
        const size_t part = count - begin < kMost ? count - begin : kMost;
        pool_.run(static_cast<int>(part), [&](int task, int worker) {
            const size_t i = begin + task;
            forward_.run(pixels + i * picture, logits + i * classes, *own_[worker], scratch_, nullptr, worker,
                         profiling_);
        });
    }
}

void Model::set_profiling(bool on) {
    const std::lock_guard<std::mutex> lock(mutex_);
    profiling_ = on;
    pictures_ = on ? 0 : pictures_;
    if (!on) return;
    for (Scratch& scratch : scratch_) scratch.seconds = {};
}

std::vector<StageReport> Model::profile() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Architecture& a = architecture();
    const double tokens = a.num_tokens(), width = a.embed_dim, hidden = a.mlp_hidden;
    const double full = a.depth, short_ = a.depth - 1;  // the last block continues with the tokens that are read
    const double rows = tokens * short_ + a.tokens_read().count;
    std::vector<StageReport> stages(kStages);
    for (size_t i = 0; i < kStages; ++i) {
        stages[i] = {kStageNames[i], 0, 0, 0};
        for (const Scratch& scratch : scratch_) stages[i].seconds += scratch.seconds[i];
    }
    const auto at = [&](Stage stage) -> StageReport& { return stages[static_cast<size_t>(stage)]; };
    at(Stage::patches).byte_macs = pictures_ * a.num_patches() * width * 3 * a.patch_height * a.patch_width;
    at(Stage::qkv).bit_macs = pictures_ * full * tokens * width * 3 * width;
    at(Stage::scores).bit_macs = pictures_ * full * tokens * tokens * width;
    at(Stage::attention_value).bit_macs = pictures_ * rows * tokens * width;
    at(Stage::projection).bit_macs = pictures_ * rows * width * width;
    at(Stage::fc1).bit_macs = at(Stage::fc2).bit_macs = pictures_ * rows * width * hidden;
    at(Stage::heads).byte_macs = pictures_ * static_cast<double>(a.heads.size()) * width * a.num_classes;
    return stages;
}

}  // namespace gsb
