// The forward pass of one picture, in phases whose tasks may run on several threads.
//
// A block has two phases. `scores` needs every key: attention rows and groups, head by head. `rows` needs only its own
// token rows: attention × Value, projection, MLP and the next block's query, key and Value. Between them the extremes
// over the whole picture are known.
//
// The same path on one page, without threads and packed operands, is src/gsb_vit/runtime/reference.py. Its steps here:
//   _embed                embed
//   _convolve             convolve, convolve_bits, embed, which is the last convolution
//   _first_convolution    convolve
//   _convolution          convolve, embed
//   _convolution_of_bits  convolve_bits, embed
//   _attention            norm, query_key_value
//   _attention_masks      expand_bias, scores_of, score_task, attention_limits, list_groups
//   _value_planes         value_limits, limit_counts, value_task
//   _combine              attention_value
//   _mlp                  rest_of_block, which begins with the projection that ends _attention
//   _heads                heads
#pragma once

#include <cstdint>
#include <vector>

#include "file/packed_model.h"
#include "forward/workspace.h"
#include "kernels/contract.h"
#include "machine/threads.h"
#include "weights/model_weights.h"

namespace gsb {

// What a caller wants to know of a picture beside its logits; nullptr: nothing.
struct Kept {
    float* features = nullptr;  // (heads, C): the normalised token, or mean, that each head reads
    uint8_t* masks = nullptr;   // (depth, A, attention heads, N, N): 1 where a token is in a group of another
};

class Forward {
  public:
    Forward(const Architecture& architecture, const Shape& shape, const ModelWeights& weights, const Kernels& kernels);

    // Runs one picture (H, W, 3) to its logits (K), all NaN where a norm does not hold (contract.h). `pool` nullptr: on
    // the calling thread with scratch[worker].
    void run(const uint8_t* picture, float* logits, Workspace& workspace, std::vector<Scratch>& scratch,
             ThreadPool* pool, int worker, bool profiling, Kept kept = {}) const;

  private:
    struct Call;  // one picture's pointers

    Product window_product(Call& call, Scratch& scratch, int map_index, int place, int count,
                           const BinaryWeights& weights) const;
    void convolve_bits(Call& call, Scratch& scratch, int index, int line) const;
    void convolve(Call& call, Scratch& scratch, int index, int line) const;
    void embed(Call& call, Scratch& scratch, int first, int last) const;
    void norm(Call& call, Scratch& scratch, const float* x, int count, const NormSigns& signs) const;
    void query_key_value(Call& call, Scratch& scratch, int block, int chunk, int first, int last) const;
    void value_limits(Call& call, Scratch& scratch, int block) const;
    void limit_counts(Workspace& workspace, const BlockWeights& weights, int group, int channel, float upper,
                      float lower) const;
    Scores scores_of(Call& call, Scratch& scratch, int block, int head) const;
    void expand_bias(Scratch& scratch, const BlockWeights& weights, int head) const;
    void score_task(Call& call, Scratch& scratch, int block, int task) const;
    void value_task(Call& call, Scratch& scratch, int block, int head) const;
    void attention_limits(Call& call, int block) const;
    void keep_first_masks(Call& call, int block) const;
    void keep_upper_masks(Call& call, const Scratch& scratch, int block, int head, int first, int last) const;
    uint8_t* kept_row(Call& call, int block, int group, int head, int row) const;
    void attention_value(Call& call, Scratch& scratch, int block, int first, int last) const;
    void list_groups(Call& call, Scratch& scratch, int block, int head, int first, int last) const;
    void rest_of_block(Call& call, Scratch& scratch, int block, int first, int last) const;
    const float* normed_mean(Call& call, Scratch& scratch, TokenRange reads) const;
    void heads(Call& call, Scratch& scratch, float* logits) const;
    void add_residual(Scratch& scratch, const uint32_t* bits, size_t stride, int count, const ResidualLayer& layer,
                      float* x) const;
    Product product(Scratch& scratch, const uint32_t* bits, size_t stride, int count,
                    const BinaryWeights& weights) const;

    const Architecture& architecture_;
    const Shape& shape_;
    const ModelWeights& weights_;
    const Kernels& kernels_;
    std::vector<int64_t> bias_begin_;  // (N)
    std::vector<float> no_bias_;
};

}  // namespace gsb
