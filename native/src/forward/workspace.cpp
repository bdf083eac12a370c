#include "forward/workspace.h"

#include <algorithm>

#include "kernels/contract.h"
#include "kernels/float_ops.h"

namespace gsb {

Workspace::Workspace(const Shape& s, int threads) {
    // Even chunks, about four a thread, so that a thread that loses its core for a while does not hold up the others.
    row_step = threads == 1 ? s.tokens : std::max(8, (s.tokens + 4 * threads - 1) / (4 * threads));
    row_chunks = (s.tokens + row_step - 1) / row_step;
    score_chunks = threads == 1 ? 1 : std::min(s.tokens, (4 * threads + s.heads - 1) / s.heads);
    score_step = (s.tokens + score_chunks - 1) / score_chunks;
    score_chunks = (s.tokens + score_step - 1) / score_step;
    // Scores of a chunk of rows, and between chunks an even share of the Value planes: the pool gives tasks that lie
    // together to the same thread, which then goes on with the same rows.
    for (int chunk = 0; chunk < score_chunks; ++chunk) {
        for (int head = 0; head < s.heads; ++head) score_order.push_back(chunk * s.heads + head);
        for (int head = 0; head < s.heads; ++head) {
            if (head * score_chunks / s.heads == chunk) score_order.push_back(s.heads * score_chunks + head);
        }
    }
    const size_t tokens = s.tokens, heads = s.heads, planes = s.value_groups, tasks = heads * score_chunks;
    for (const FeatureMap& map : s.maps) {
        levels.emplace_back(map.bits == 1 ? 0 : map.size());
        level_bits.emplace_back(map.bits == 1 ? map.size() : 0);
    }
    x = Buffer<float>(tokens * s.padded_width);
    queries = Buffer<uint32_t>(tokens * s.query_words);
    for (Buffer<uint32_t>& block_keys : keys) block_keys = Buffer<uint32_t>(s.query_words * s.key_stride);
    counts = Buffer<uint16_t>(tokens * s.inner);
    smallest = Buffer<uint16_t>(static_cast<size_t>(row_chunks) * s.inner);
    largest = Buffer<uint16_t>(static_cast<size_t>(row_chunks) * s.inner);
    value_low = Buffer<int16_t>((planes - 1) * s.inner);
    value_high = Buffer<int16_t>((planes - 1) * s.inner);
    plane_active = Buffer<uint8_t>(heads * planes * s.head_channels / kPiece);
    masks = Buffer<uint32_t>(heads * tokens * s.token_words);
    plane_words = round_up(static_cast<size_t>(s.head_channels) * s.token_words, 16);
    byte_stride = round_up(s.head_channels, 64);
    plane_bits = Buffer<uint32_t>(heads * planes * plane_words);
    plane_ones = Buffer<int32_t>(heads * planes * s.head_channels);
    attention_limits.resize(s.attention_groups - 1);
    if (s.attention_groups == 1) return;
    plane_bytes = Buffer<int8_t>(heads * planes * tokens * byte_stride);
    // Room for 6 % of the entries and one row more; rows that do not fit are run again.
    candidate_capacity = round_up(static_cast<size_t>(score_step) * tokens / 16 + tokens + 16, 16);
    candidate_columns = Buffer<int32_t>(tasks * candidate_capacity);
    candidate_values = Buffer<float>(tasks * candidate_capacity);
    candidate_rows = round_up(score_step, 16);
    candidate_begin = Buffer<size_t>(tasks * candidate_rows);
    candidate_count = Buffer<int32_t>(tasks * candidate_rows);
}

Scratch::Scratch(const Shape& s, const Architecture& a, int row_count) {
    const size_t rows = row_count, tokens = s.tokens, groups = s.attention_groups - 1;
    size_t byte_windows = 0, line_size = 0, window_words = 0, line_words = 0, inputs = 3;
    for (size_t i = 0; i <= s.maps.size(); ++i) {
        const bool last = i == s.maps.size(), of_bits = i > 0 && s.maps[i - 1].bits == 1;
        const size_t count = last ? rows : s.maps[i].width;
        const size_t area = last ? s.patch_area : round_up(3 * inputs, 4);
        if (of_bits) {
            window_words = std::max(window_words, count * s.maps[i - 1].window_stride());
        } else {
            byte_windows = std::max(byte_windows, count * 3 * area);
        }
        if (last) break;
        const FeatureMap& map = s.maps[i];
        line_size = std::max(line_size, map.width * round_up(map.channels, 32));
        if (of_bits && map.bits == 1) line_words = std::max(line_words, map.width * round_up(map.units(), 2));
        inputs = map.channels;
    }
    pixels = Buffer<uint8_t>(byte_windows);
    planes = Buffer<uint8_t>(s.maps.empty() ? 0 : 9 * round_up(a.image_width + 4, 16));
    line = Buffer<float>(line_size);
    bit_windows = Buffer<uint32_t>(window_words);
    line_bits = Buffer<uint32_t>(line_words);
    if (a.global_pool == Architecture::Pool::avg) mean.resize(kLanes * s.width);
    width_bits = Buffer<uint32_t>(rows * s.width_words);
    key_bits = Buffer<uint32_t>(rows * s.query_words);
    inner_bits = Buffer<uint32_t>(rows * s.inner_words);
    hidden_bits = Buffer<uint32_t>(rows * s.hidden_words);
    operand = Buffer<uint32_t>(std::max({rows * std::max({s.width_words, s.inner_words, s.hidden_words}),
                                         kAttentionRows * s.token_words, window_words}));
    attention_row = Buffer<float>(s.key_stride);
    distances = Buffer<int32_t>(kScoreRows * s.key_stride);
    const size_t windows = static_cast<size_t>(2 * a.grid_height() - 1) * a.grid_width() * a.grid_width();
    const bool relative = a.attention_bias == Architecture::Bias::relative;
    bias = Buffer<float>(relative ? 2 * kLanes + windows + s.prefix * s.key_stride : 0);
    bias_first = Buffer<float>((s.prefix + 1) * kLanes);
    products = Buffer<int32_t>(static_cast<size_t>(s.value_groups) * kAttentionRows * s.head_channels);
    columns = Buffer<int32_t>(kAttentionRows * groups * tokens);
    list_begin = Buffer<size_t>(kAttentionRows * groups);
    list_count = Buffer<int32_t>(kAttentionRows * groups);
    row_columns = Buffer<int32_t>(tokens + kLanes);
    row_values = Buffer<float>(tokens + kLanes);
    value_extremes.resize(2 * static_cast<size_t>(s.width));
    normed.resize(s.width);
    levels = Buffer<int8_t>(s.width);
    sums = Buffer<int32_t>(a.num_classes);
}

}  // namespace gsb
