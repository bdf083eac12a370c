#include "model.h"

#include <cmath>
#include <cstdint>
#include <utility>

#include "error.h"
#include "machine/memory.h"

namespace gsb {

namespace {

constexpr int kMaxThreads = 1024;

size_t total(size_t a, size_t b) {
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}

size_t times(size_t bytes, size_t count) {
    return bytes > SIZE_MAX / count ? SIZE_MAX : bytes * count;
}

int checked_threads(int threads) {
    if (threads < 0 || threads > kMaxThreads) {
        throw Error("threads " + std::to_string(threads) + " must be from 0 (every core) to " +
                    std::to_string(kMaxThreads));
    }
    return threads == 0 ? usable_cores() : threads;
}

}  // namespace

Model::Session::Session(const Shape& shape, const Architecture& architecture, int threads)
    : process(this_process()), pool(threads), shared(shape, threads) {
    for (int i = 0; i < threads; ++i) scratch.emplace_back(shape, architecture, shape.tokens);
}

Model::Model(std::unique_ptr<const PackedModel> file, int threads, const std::string& backend)
    : file_(std::move(file)),
      kernels_(choose_kernels(backend)),
      shape_(architecture()),
      threads_wanted_(threads),
      threads_(checked_threads(threads)),
      backend_wanted_(backend),
      forward_bytes_(checked_forward_bytes()),
      weights_(checked_weights()),
      forward_(architecture(), shape_, weights_, kernels_),
      session_(new Session(shape_, architecture(), threads_)) {}

size_t Model::checked_forward_bytes() const {
    MemoryCount count;
    const Workspace shared(shape_, threads_);
    const size_t workspace = count.bytes();
    const Scratch scratch(shape_, architecture(), shape_.tokens);
    const size_t bytes = total(workspace, times(count.bytes() - workspace, threads_));
    const size_t limit = file_->max_memory();
    if (bytes > limit - file_->file_size()) {
        throw Error(file_->name() + ": a forward pass on " + std::to_string(threads_) +
                    (threads_ == 1 ? " thread takes " : " threads takes ") + shown_bytes(bytes) +
                    ", and a model may take " + shown_bytes(limit) + "; give fewer threads, or " + kRaiseMemory);
    }
    return bytes;
}

ModelWeights Model::checked_weights() {
    const size_t left = file_->max_memory() - file_->file_size() - forward_bytes_;
    size_t bytes = 0;
    const auto made = [&] {
        MemoryCount count(left);
        ModelWeights weights(*file_, shape_, kernels_);
        bytes = count.bytes();
        return weights;
    };
    try {
        ModelWeights weights = made();
        MemoryCount count;
        const Workspace own(shape_, 1);
        has_room_side_by_side_ = times(count.bytes(), threads_) <= left - bytes;
        return weights;
    } catch (const Error& error) {
        throw Error(file_->name() + ": its weights are too large: " + error.what() + "; " + kRaiseMemory);
    }
}

Model::~Model() {
    // A parent's session is left alone: there are no threads to join.
    Session* last = session_.load();
    if (last->process == this_process()) delete last;
}

Model::Session& Model::session() const {
    Session* found = session_.load(std::memory_order_acquire);
    if (found->process == this_process()) return *found;
    auto own = std::make_unique<Session>(shape_, architecture(), threads_);
    if (session_.compare_exchange_strong(found, own.get())) return *own.release();
    return *found;  // another thread of the child was first
}

void Model::embed(const uint8_t* pixels, size_t count, float* features) {
    std::vector<float> logits(count * architecture().num_classes);
    run(pixels, count, logits.data(), {features, nullptr});
}

void Model::masks(const uint8_t* pixels, uint8_t* masks) {
    std::vector<float> logits(architecture().num_classes);
    run(pixels, 1, logits.data(), {nullptr, masks});
}

Kept Model::kept_of(Kept kept, size_t picture) const {
    if (kept.features) kept.features += picture * feature_count();
    return kept;
}

void Model::run(const uint8_t* pixels, size_t count, float* logits, Kept kept) {
    Session& session = this->session();
    const Lock lock(session.mutex);
    const size_t picture = static_cast<size_t>(architecture().image_height) * architecture().image_width * 3;
    const size_t classes = architecture().num_classes, threads = threads_;
    // Pictures side by side, one a thread, need no waiting for each other, but memory; what is left over is shared.
    const size_t side_by_side = threads == 1 || !has_room_side_by_side_ ? 0 : count - count % threads;
    if (side_by_side > 0) run_side_by_side(session, pixels, side_by_side, logits, kept);
    for (size_t i = side_by_side; i < count; ++i) {
        forward_.run(pixels + i * picture, logits + i * classes, session.shared, session.scratch,
                     threads == 1 ? nullptr : &session.pool, 0, session.profiling, kept_of(kept, i));
    }
    if (session.profiling) session.pictures += static_cast<double>(count);
    bool finite = true;
    for (size_t i = 0; i < count * classes; ++i) finite &= std::isfinite(logits[i]);
    if (!finite) throw Error("the model's numbers overflow; export it again, or give another model");
}

void Model::run_side_by_side(Session& session, const uint8_t* pixels, size_t count, float* logits, Kept kept) {
    const size_t picture = static_cast<size_t>(architecture().image_height) * architecture().image_width * 3;
    const size_t classes = architecture().num_classes;
    while (session.own.size() < session.scratch.size()) {
        session.own.push_back(std::make_unique<Workspace>(shape_, 1));
    }
    constexpr size_t kMost = 1 << 20;  // tasks are counted in int
    for (size_t begin = 0; begin < count; begin += kMost) {
        const size_t part = count - begin < kMost ? count - begin : kMost;
        session.pool.run(static_cast<int>(part), [&](int task, int worker) {
            const size_t i = begin + task;
            forward_.run(pixels + i * picture, logits + i * classes, *session.own[worker], session.scratch, nullptr,
                         worker, session.profiling, kept_of(kept, i));
        });
    }
}

void Model::set_profiling(bool on) {
    Session& session = this->session();
    const Lock lock(session.mutex);
    session.profiling = on;
    session.pictures = on ? 0 : session.pictures;
    if (!on) return;
    for (Scratch& scratch : session.scratch) scratch.seconds = {};
}

std::vector<StageReport> Model::profile() const {
    Session& session = this->session();
    const Lock lock(session.mutex);
    const double pictures = session.pictures;
    const Architecture& a = architecture();
    const double tokens = a.num_tokens(), width = a.embed_dim, hidden = a.mlp_hidden;
    const double full = a.depth, short_ = a.depth - 1;  // the last block continues with the tokens that are read
    const double rows = tokens * short_ + a.tokens_read().count;
    std::vector<StageReport> stages(kStages);
    for (size_t i = 0; i < kStages; ++i) {
        stages[i] = {kStageNames[i], 0, 0, 0};
        for (const Scratch& scratch : session.scratch) stages[i].seconds += scratch.seconds[i];
    }
    const auto at = [&](Stage stage) -> StageReport& { return stages[static_cast<size_t>(stage)]; };
    at(Stage::patches).byte_macs = pictures * a.token_macs(8);
    at(Stage::patches).bit_macs = pictures * a.token_macs(1);
    at(Stage::qkv).bit_macs = pictures * full * tokens * width * 3 * width;
    at(Stage::scores).bit_macs = pictures * full * tokens * tokens * width;
    at(Stage::attention_value).bit_macs = pictures * rows * tokens * width;
    at(Stage::projection).bit_macs = pictures * rows * width * width;
    at(Stage::fc1).bit_macs = at(Stage::fc2).bit_macs = pictures * rows * width * hidden;
    at(Stage::heads).byte_macs = pictures * static_cast<double>(a.heads.size()) * width * a.num_classes;
    return stages;
}

}  // namespace gsb
