#include "forward/forward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "forward/call.h"
#include "forward/colours.h"
#include "forward/tokenizer.h"
#include "kernels/float_ops.h"

namespace gsb {

namespace {

// Cuts patch `index` out of the picture, colour by colour.
void gather_patch(const Architecture& a, const uint8_t* picture, int index, int area, uint8_t* out) {
    const int height = a.patch_height, width = a.patch_width;
    const int y = index / a.grid_width() * height, x = index % a.grid_width() * width;
    const size_t picture_line = static_cast<size_t>(a.image_width) * 3;
    const uint8_t* line = picture + y * picture_line + static_cast<size_t>(x) * 3;
    for (int row = 0; row < height; ++row, line += picture_line, out += width) {
        if (width == 16) {  // a constant count vectorizes without a remainder
            split_colours(line, 16, out, out + area, out + 2 * area);
        } else {
            split_colours(line, width, out, out + area, out + 2 * area);
        }
    }
}

// Adds token i (width) to its lane, (16, width), as sum16 does for each channel.
void add_to_lane(const float* x, int i, int width, float* lanes) {
    float* lane = lanes + static_cast<size_t>(i % kLanes) * width;
    for (int c = 0; c < width; ++c) lane[c] = lane[c] + x[c];
}

// The mean of the `count` tokens that lie in lanes, in the first of them.
void fold_lanes(int count, int width, float* lanes) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
        const size_t size = static_cast<size_t>(half) * width;
        for (size_t i = 0; i < size; ++i) lanes[i] = lanes[i] + lanes[size + i];
    }
    const float share = 1.0f / static_cast<float>(count);
    for (int c = 0; c < width; ++c) lanes[c] = lanes[c] * share;
}

}  // namespace

Forward::Forward(const Architecture& architecture, const Shape& shape, const ModelWeights& weights,
                 const Kernels& kernels)
    : architecture_(architecture), shape_(shape), weights_(weights), kernels_(kernels), bias_begin_(shape.tokens) {
    if (architecture.attention_bias != Architecture::Bias::relative) {
        no_bias_.resize(shape.key_stride);
        return;
    }
    // As expand_bias lays them out.
    const int64_t height = architecture.grid_height(), width = architecture.grid_width();
    for (int64_t patch = 0; patch < shape.patches; ++patch) {
        const int64_t y = patch / width, x = patch % width;
        bias_begin_[shape.prefix + patch] =
            kLanes + x * (2 * height - 1) * width + (height - 1 - y) * width - shape.prefix;
    }
    for (int prefix = 0; prefix < shape.prefix; ++prefix) {
        bias_begin_[prefix] =
            2 * kLanes + (2 * height - 1) * width * width + prefix * static_cast<int64_t>(shape.key_stride);
    }
}

void Forward::run(const uint8_t* picture, float* logits, Workspace& w, std::vector<Scratch>& scratch, ThreadPool* pool,
                  int worker, bool profiling, Kept kept) const {
    Call call{picture, w, profiling, kept};
    const auto phase = [&](int tasks, const ThreadPool::Task& task) {
        if (pool) {
            pool->run(tasks, task);
        } else {
            for (int i = 0; i < tasks; ++i) task(i, worker);
        }
    };
    const auto rows = [&](int chunk) {
        return std::make_pair(chunk * w.row_step, std::min(shape_.tokens, (chunk + 1) * w.row_step));
    };
    w.overflowed.store(false, std::memory_order_relaxed);
    for (size_t i = 0; i < shape_.maps.size(); ++i) {
        phase(shape_.maps[i].height,
              [&](int line, int thread) { convolve(call, scratch[thread], static_cast<int>(i), line); });
    }
    phase(w.row_chunks, [&](int chunk, int thread) {
        const auto [first, last] = rows(chunk);
        embed(call, scratch[thread], first, last);
        query_key_value(call, scratch[thread], 0, chunk, first, last);
    });
    for (int block = 0; block < architecture_.depth; ++block) {
        value_limits(call, scratch[worker], block);
        w.attention_maximum.store(-std::numeric_limits<float>::infinity(), std::memory_order_relaxed);
        const int score_tasks = shape_.heads * w.score_chunks;
        phase(score_tasks + shape_.heads, [&](int place, int thread) {
            const int task = w.score_order[place];
            if (task < score_tasks) {
                score_task(call, scratch[thread], block, task);
            } else {
                value_task(call, scratch[thread], block, task - score_tasks);
            }
        });
        attention_limits(call, block);
        if (kept.masks) keep_first_masks(call, block);
        const bool last_block = block + 1 == architecture_.depth;
        // Behind the last block only some tokens are read.
        const TokenRange wanted =
            last_block && !kept.masks ? architecture_.tokens_read() : TokenRange{0, shape_.tokens};
        const int begin = wanted.first / w.row_step, chunks = (wanted.end() - 1) / w.row_step + 1 - begin;
        phase(chunks, [&](int task, int thread) {
            const int chunk = begin + task;
            const auto [chunk_first, chunk_last] = rows(chunk);
            const int first = std::max(chunk_first, wanted.first), last = std::min(chunk_last, wanted.end());
            attention_value(call, scratch[thread], block, first, last);
            rest_of_block(call, scratch[thread], block, first, last);
            if (!last_block) query_key_value(call, scratch[thread], block + 1, chunk, first, last);
        });
    }
    heads(call, scratch[worker], logits);
    if (w.overflowed.load(std::memory_order_relaxed)) {
        std::fill_n(logits, architecture_.num_classes, std::numeric_limits<float>::quiet_NaN());
    }
}

void Forward::embed(Call& call, Scratch& scratch, int first, int last) const {
    StageTimer timer(call.seconds(scratch), Stage::patches);
    const size_t stride = shape_.padded_width;
    for (; first < std::min(last, shape_.prefix); ++first) {
        const float* token = weights_.prefix_tokens.data() + static_cast<size_t>(first) * shape_.width;
        std::copy_n(token, shape_.width, call.workspace.x.data() + first * stride);
    }
    const int count = last - first, patch = first - shape_.prefix;
    if (count <= 0) return;
    if (!shape_.maps.empty() && shape_.maps.back().bits == 1) {
        // Each token begins as its position, to which the product is added.
        float* x = call.workspace.x.data() + first * stride;
        std::copy_n(weights_.position.data() + patch * stride, count * stride, x);
        const ResidualLayer& layer = weights_.last_convolution;
        const int map = static_cast<int>(shape_.maps.size()) - 1;
        const Product p = window_product(call, scratch, map, patch, count, layer.weights);
        kernels_.product_residual(p, layer.base.data(), layer.scale.data(), layer.bias.data(), x, stride);
        return;
    }
    for (int i = 0; i < count; ++i) {
        uint8_t* pixels = scratch.pixels.data() + static_cast<size_t>(i) * 3 * shape_.patch_area;
        if (shape_.maps.empty()) {
            gather_patch(architecture_, call.picture, patch + i, shape_.patch_area, pixels);
        } else {
            const int columns = architecture_.grid_width();
            gather_levels(shape_.maps.back(), call.workspace.levels.back().data(), (patch + i) / columns,
                          (patch + i) % columns, shape_.patch_area, pixels);
        }
    }
    Patches patches{};
    patches.pixels = scratch.pixels.data();
    patches.weights = weights_.patch_weight.data();
    patches.count = count;
    patches.area = shape_.patch_area;
    patches.channels = shape_.padded_width;
    patches.scale = weights_.patch_scale.data();
    patches.position = weights_.position.data() + patch * stride;
    patches.x = call.workspace.x.data() + first * stride;
    patches.stride = stride;
    kernels_.patches_embed(patches);
}

Product Forward::product(Scratch& scratch, const uint32_t* bits, size_t stride, int count,
                         const BinaryWeights& weights) const {
    if (kernels_.prepare_rows) {
        const int planes = weights.inputs.planes;  // rows of their own here
        kernels_.prepare_rows(bits, stride / planes, count * planes, weights.depth, scratch.operand.data(),
                              stride / planes);
        bits = scratch.operand.data();
    }
    return {bits, stride, count, weights.words.data(), weights.depth, weights.channels, weights.inputs};
}

void Forward::add_residual(Scratch& scratch, const uint32_t* bits, size_t stride, int count, const ResidualLayer& layer,
                           float* x) const {
    const Product p = product(scratch, bits, stride, count, layer.weights);
    kernels_.product_residual(p, layer.base.data(), layer.scale.data(), layer.bias.data(), x, shape_.padded_width);
}

void Forward::norm(Call& call, Scratch& scratch, const float* x, int count, const NormSigns& signs) const {
    Norm norm{};
    norm.x = x;
    norm.stride = shape_.padded_width;
    norm.count = count;
    norm.width = shape_.width;
    norm.threshold = signs.threshold.data();
    norm.flip = signs.flip.data();
    norm.eps = architecture_.layer_norm_eps;
    if (!kernels_.norm_bits(norm, scratch.width_bits.data(), shape_.width_words)) {
        call.workspace.overflowed.store(true, std::memory_order_relaxed);
    }
}

void Forward::query_key_value(Call& call, Scratch& scratch, int block, int chunk, int first, int last) const {
    const BlockWeights& weights = weights_.blocks[block];
    Workspace& w = call.workspace;
    const int count = last - first;
    const size_t words = shape_.query_words;
    {
        StageTimer timer(call.seconds(scratch), Stage::norms);
        norm(call, scratch, w.x.data() + static_cast<size_t>(first) * shape_.padded_width, count, weights.norm1);
    }
    StageTimer timer(call.seconds(scratch), Stage::qkv);
    Product p = product(scratch, scratch.width_bits.data(), shape_.width_words, count, weights.query);
    kernels_.product_threshold(p, weights.query_threshold.data(), w.queries.data() + first * words, words);
    p.weights = weights.key.words.data();
    kernels_.product_threshold(p, weights.key_threshold.data(), scratch.key_bits.data(), words);
    uint32_t* keys = w.keys[block % 2].data() + first;
    for (int row = 0; row < count; ++row) {
        const uint32_t* bits = scratch.key_bits.data() + row * words;
        for (int word = 0; word < shape_.inner / 32; ++word) keys[word * shape_.key_stride + row] = bits[word];
    }
    p.weights = weights.value.words.data();
    const size_t group_stride = static_cast<size_t>(shape_.tokens) * kCountGroup;
    kernels_.product_count(p, w.counts.data() + static_cast<size_t>(first) * kCountGroup, group_stride);
    const size_t extremes = static_cast<size_t>(chunk) * shape_.inner;
    kernels_.count_extremes(w.counts.data(), group_stride, shape_.inner, first, last, w.smallest.data() + extremes,
                            w.largest.data() + extremes);
}

void Forward::rest_of_block(Call& call, Scratch& scratch, int block, int first, int last) const {
    const BlockWeights& weights = weights_.blocks[block];
    const int count = last - first;
    float* x = call.workspace.x.data() + static_cast<size_t>(first) * shape_.padded_width;
    {
        StageTimer timer(call.seconds(scratch), Stage::projection);
        add_residual(scratch, scratch.inner_bits.data(), shape_.inner_words, count, weights.projection, x);
    }
    {
        StageTimer timer(call.seconds(scratch), Stage::norms);
        norm(call, scratch, x, count, weights.norm2);
    }
    {
        StageTimer timer(call.seconds(scratch), Stage::fc1);
        const Product p = product(scratch, scratch.width_bits.data(), shape_.width_words, count, weights.fc1);
        kernels_.product_interval(p, weights.fc1_low.data(), weights.fc1_range.data(), scratch.hidden_bits.data(),
                                  shape_.hidden_words);
    }
    StageTimer timer(call.seconds(scratch), Stage::fc2);
    add_residual(scratch, scratch.hidden_bits.data(), shape_.hidden_words, count, weights.fc2, x);
}

// What a head reads, normalised: a token, or the mean of several.
const float* Forward::normed_mean(Call& call, Scratch& scratch, TokenRange reads) const {
    const float* x = call.workspace.x.data() + static_cast<size_t>(reads.first) * shape_.padded_width;
    float* lanes = scratch.mean.data();
    const auto norm = [&](const float* from) {
        if (!layer_norm(from, shape_.width, weights_.norm_weight.data(), weights_.norm_bias.data(),
                        architecture_.layer_norm_eps, scratch.normed.data())) {
            call.workspace.overflowed.store(true, std::memory_order_relaxed);
        }
        return scratch.normed.data();
    };
    if (reads.count == 1) return norm(x);
    const bool before = architecture_.norm_before_pool;
    std::fill(scratch.mean.begin(), scratch.mean.end(), 0.0f);
    for (int i = 0; i < reads.count; ++i, x += shape_.padded_width) {
        add_to_lane(before ? norm(x) : x, i, shape_.width, lanes);
    }
    fold_lanes(reads.count, shape_.width, lanes);
    return before ? lanes : norm(lanes);
}

void Forward::heads(Call& call, Scratch& scratch, float* logits) const {
    StageTimer timer(call.seconds(scratch), Stage::heads);
    const int classes = architecture_.num_classes;
    for (size_t i = 0; i < architecture_.heads.size(); ++i) {
        const HeadWeights& head = weights_.heads[i];
        const float* normed = normed_mean(call, scratch, architecture_.heads[i].reads);
        if (call.kept.features) std::copy_n(normed, shape_.width, call.kept.features + i * shape_.width);
        for (int c = 0; c < shape_.width; ++c) {
            const float level = std::nearbyintf((normed[c] + head.shift[c]) / head.input_scale);
            scratch.levels[c] = static_cast<int8_t>(level >= 127 ? 127 : level >= -128 ? level : -128);
        }
        kernels_.dot_bytes(scratch.levels.data(), head.weight, shape_.width, classes, scratch.sums.data());
        for (int k = 0; k < classes; ++k) {
            const float scaled = static_cast<float>(scratch.sums[k]) * head.scale[k];
            const float logit = scaled + head.bias[k];
            logits[k] = i == 0 ? logit : (logits[k] + logit) * 0.5f;
        }
    }
}

}  // namespace gsb
