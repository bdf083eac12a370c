// Time spent in each stage of the forward pass.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

namespace gsb {

enum class Stage { patches, norms, qkv, values, scores, attention_value, projection, fc1, fc2, heads };
constexpr size_t kStages = 10;
constexpr std::array<const char*, kStages> kStageNames = {
    "patch embedding",   "norms",      "qkv", "value planes", "scores",
    "attention x value", "projection", "fc1", "fc2",          "heads"};

using StageSeconds = std::array<double, kStages>;

// Adds the time it lives to a stage; nullptr: does nothing.
class StageTimer {
  public:
    StageTimer(StageSeconds* seconds, Stage stage) : seconds_(seconds), stage_(static_cast<size_t>(stage)) {
        if (seconds_) start_ = Clock::now();
    }
    ~StageTimer() {
        if (seconds_) (*seconds_)[stage_] += std::chrono::duration<double>(Clock::now() - start_).count();
    }
    StageTimer(const StageTimer&) = delete;
    StageTimer& operator=(const StageTimer&) = delete;

  private:
    using Clock = std::chrono::steady_clock;
    StageSeconds* seconds_;
    size_t stage_;
    Clock::time_point start_;
};

}  // namespace gsb
