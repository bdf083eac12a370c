// The attention matrix in Forward: scores, its groups, and its product with the Value planes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "forward/call.h"
#include "kernels/float_ops.h"

namespace gsb {

namespace {

// Asks for memory that another core may have written: all at once, where reading would wait for one line at a time.
void fetch(const void* from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
}

}  // namespace

// Lays out one head's relative bias: for each column xi of the grid the rows (dy, xj), so that the bias of patch
// (yi, xi) to all patches is the window that starts at dy = gh − 1 − yi; then a row for each prefix token.
void Forward::expand_bias(Scratch& scratch, const BlockWeights& weights, int head) const {
    if (architecture_.attention_bias != Architecture::Bias::relative) return;
    const int height = architecture_.grid_height(), width = architecture_.grid_width(), prefix = shape_.prefix;
    const RelativeBias parts = architecture_.relative_bias();
    const size_t row = parts.columns();
    const float* table = weights.bias_patches.data() + head * parts.patches();
    float* out = scratch.bias.data() + kLanes;
    // Sixteen numbers at a time, also where fewer are wanted: the next ones overwrite the rest.
    for (int x = 0; x < width; ++x) {
        for (int dy = 0; dy < 2 * height - 1; ++dy, out += width) {
            const float* from = table + dy * row + (width - 1 - x);
            for (int i = 0; i < width; i += kLanes) std::memcpy(out + i, from + i, kLanes * sizeof(float));
        }
    }
    const float* extra = weights.bias_prefix.data() + head * parts.prefixes();
    const float *to_patches = extra + parts.to_patches(), *from_patches = extra + parts.from_patches();
    for (int a = 0; a < prefix; ++a) {
        std::copy_n(extra + a * prefix, prefix, scratch.bias_first.data() + a * kLanes);
        std::fill_n(scratch.bias_first.data() + a * kLanes + prefix, kLanes - prefix, to_patches[a]);
        std::fill_n(scratch.bias.data() + bias_begin_[a], shape_.key_stride, to_patches[a]);
    }
    std::copy_n(from_patches, prefix, scratch.bias_first.data() + prefix * kLanes);
}

Scores Forward::scores_of(Call& call, Scratch& scratch, int block, int head) const {
    Workspace& w = call.workspace;
    const BlockWeights& weights = weights_.blocks[block];
    const size_t square = static_cast<size_t>(shape_.tokens) * shape_.tokens;
    Scores s{};
    s.queries = w.queries.data() + head * shape_.head_words;
    s.query_stride = shape_.query_words;
    s.keys = w.keys[block % 2].data() + head * shape_.head_words * shape_.key_stride;
    s.key_stride = shape_.key_stride;
    s.words = shape_.head_words;
    s.tokens = shape_.tokens;
    s.exp_tables = weights.exp_tables.data();
    s.head_dim = shape_.head_dim;
    s.bias = no_bias_.empty() ? scratch.bias.data() : no_bias_.data();
    s.bias_begin = bias_begin_.data();
    s.bias_first = scratch.bias_first.data();
    s.prefix = shape_.prefix;
    s.half_bias = weights.half_bias ? weights.half_bias + head * square : nullptr;
    s.half_scale = weights.half_scale;
    s.masks = w.masks.data() + head * shape_.token_words;
    s.mask_stride = shape_.heads * shape_.token_words;
    s.row = scratch.attention_row.data();
    s.distances = scratch.distances.data();
    return s;
}

void Forward::score_task(Call& call, Scratch& scratch, int block, int task) const {
    StageTimer timer(call.seconds(scratch), Stage::scores);
    Workspace& w = call.workspace;
    const BlockWeights& weights = weights_.blocks[block];
    const int chunk = task / shape_.heads, head = task % shape_.heads;
    if (w.score_chunks > 1) {
        const size_t words = shape_.head_words * shape_.key_stride;
        fetch(w.keys[block % 2].data() + head * words, words * sizeof(uint32_t));
    }
    expand_bias(scratch, weights, head);
    Scores s = scores_of(call, scratch, block, head);
    s.first = chunk * w.score_step;
    s.last = std::min(shape_.tokens, s.first + w.score_step);
    if (shape_.attention_groups == 1) {
        kernels_.scores(s);
        return;
    }
    Candidates c{};
    c.fixed = architecture_.fixed_thresholds;
    if (c.fixed) {
        c.limit = *std::min_element(weights.attention_limits.begin(), weights.attention_limits.end());
    } else {
        c.ratio = architecture_.attention_thresholds[0];
    }
    c.maximum = w.attention_maximum.load(std::memory_order_relaxed);
    c.columns = w.candidate_columns.data() + task * w.candidate_capacity;
    c.values = w.candidate_values.data() + task * w.candidate_capacity;
    c.capacity = w.candidate_capacity - kLanes;
    c.begin = w.candidate_begin.data() + task * w.candidate_rows;
    c.count = w.candidate_count.data() + task * w.candidate_rows;
    s.candidates = &c;
    kernels_.scores(s);
    float known = w.attention_maximum.load(std::memory_order_relaxed);
    while (c.maximum > known && !w.attention_maximum.compare_exchange_weak(known, c.maximum)) {
    }
}

void Forward::attention_limits(Call& call, int block) const {
    std::vector<float>& limits = call.workspace.attention_limits;
    const float maximum = call.workspace.attention_maximum.load(std::memory_order_relaxed);
    for (size_t group = 0; group < limits.size(); ++group) {
        limits[group] = architecture_.fixed_thresholds ? weights_.blocks[block].attention_limits[group]
                                                       : architecture_.attention_thresholds[group] * maximum;
    }
}

// Sorts the candidates of rows first … last − 1 into a list of tokens for each upper group.
void Forward::list_groups(Call& call, Scratch& scratch, int block, int head, int first, int last) const {
    Workspace& w = call.workspace;
    const size_t groups = w.attention_limits.size();
    size_t used = 0;
    bool expanded = false;
    std::fill_n(scratch.list_count.data(), (last - first) * groups, 0);
    for (int row = first; row < last; ++row) {
        const size_t task = static_cast<size_t>(row / w.score_step) * shape_.heads + head;
        const size_t at = task * w.candidate_rows + row % w.score_step;
        int count = w.candidate_count[at];
        if (count == 0) continue;
        const size_t begin = task * w.candidate_capacity + w.candidate_begin[at];
        const int32_t* columns = w.candidate_columns.data() + begin;
        const float* values = w.candidate_values.data() + begin;
        if (count < 0) {
            if (!expanded) expand_bias(scratch, weights_.blocks[block], head);
            expanded = true;
            Candidates c{};
            c.fixed = true;
            c.limit = *std::min_element(w.attention_limits.begin(), w.attention_limits.end());
            c.maximum = -std::numeric_limits<float>::infinity();
            c.columns = scratch.row_columns.data();
            c.values = scratch.row_values.data();
            c.capacity = shape_.tokens;
            size_t row_begin = 0;
            c.begin = &row_begin;
            c.count = &count;
            Scores s = scores_of(call, scratch, block, head);
            s.first = row;
            s.last = row + 1;
            s.candidates = &c;
            kernels_.scores(s);
            columns = c.columns;
            values = c.values;
        }
        for (size_t group = 0; group < groups; ++group) {
            const size_t list = static_cast<size_t>(row - first) * groups + group;
            const float limit = w.attention_limits[group];
            scratch.list_begin[list] = used;
            for (int i = 0; i < count; ++i) {
                if (values[i] > limit) scratch.columns[used++] = columns[i];
            }
            scratch.list_count[list] = static_cast<int32_t>(used - scratch.list_begin[list]);
        }
    }
}

uint8_t* Forward::kept_row(Call& call, int block, int group, int head, int row) const {
    const size_t matrix = (static_cast<size_t>(block) * shape_.attention_groups + group) * shape_.heads + head;
    return call.kept.masks + (matrix * shape_.tokens + row) * shape_.tokens;
}

void Forward::keep_first_masks(Call& call, int block) const {
    const size_t matrix = static_cast<size_t>(shape_.tokens) * shape_.tokens;
    std::fill_n(kept_row(call, block, 0, 0, 0), shape_.attention_groups * shape_.heads * matrix, uint8_t{0});
    const uint32_t* bits = call.workspace.masks.data();
    for (int row = 0; row < shape_.tokens; ++row) {
        for (int head = 0; head < shape_.heads; ++head, bits += shape_.token_words) {
            uint8_t* out = kept_row(call, block, 0, head, row);
            for (int j = 0; j < shape_.tokens; ++j) out[j] = bits[j / 32] >> (j % 32) & 1;
        }
    }
}

// As list_groups left them.
void Forward::keep_upper_masks(Call& call, const Scratch& scratch, int block, int head, int first, int last) const {
    const int groups = shape_.attention_groups - 1;
    for (int row = first; row < last; ++row) {
        for (int group = 0; group < groups; ++group) {
            const size_t list = static_cast<size_t>(row - first) * groups + group;
            uint8_t* out = kept_row(call, block, group + 1, head, row);
            const int32_t* columns = scratch.columns.data() + scratch.list_begin[list];
            for (int i = 0; i < scratch.list_count[list]; ++i) out[columns[i]] = 1;
        }
    }
}

void Forward::attention_value(Call& call, Scratch& scratch, int block, int first, int last) const {
    StageTimer timer(call.seconds(scratch), Stage::attention_value);
    Workspace& w = call.workspace;
    const size_t channels = shape_.head_channels, planes = shape_.value_groups, tokens = shape_.tokens;
    const size_t words = shape_.token_words, stride = shape_.heads * words;
    const int depth = (shape_.tokens + 31) / 32;
    if (w.row_chunks > 1) {
        fetch(w.plane_bits.data(), shape_.heads * planes * w.plane_words * sizeof(uint32_t));
        fetch(w.plane_ones.data(), shape_.heads * planes * channels * sizeof(int32_t));
    }
    for (int step = first; step < last; step += kAttentionRows) {
        const int rows = std::min(kAttentionRows, last - step);
        for (int head = 0; head < shape_.heads; ++head) {
            const uint32_t* masks = w.masks.data() + step * stride + head * words;
            const uint8_t* active = w.plane_active.data() + head * planes * channels / kPiece;
            if (shape_.attention_groups > 1) list_groups(call, scratch, block, head, step, step + rows);
            if (call.kept.masks) keep_upper_masks(call, scratch, block, head, step, step + rows);
            Product p{masks, stride, rows, nullptr, depth, shape_.head_channels, shape_.token_format};
            if (kernels_.prepare_rows) {
                kernels_.prepare_rows(masks, stride, rows, depth, scratch.operand.data(), words);
                p.rows = scratch.operand.data();
                p.stride = words;
            }
            for (size_t plane = 0; plane < planes; ++plane) {
                // Plane 0 in one go, the others piece by piece.
                p.channels = plane == 0 ? shape_.head_channels : kPiece;
                for (size_t channel = 0; channel < channels; channel += p.channels) {
                    const size_t at = plane * channels + channel;
                    if (!active[at / kPiece]) continue;
                    p.weights = w.plane_bits.data() + (head * planes + plane) * w.plane_words +
                                weight_words(kernels_.weights, static_cast<int>(channel), depth);
                    kernels_.product_integers(p, w.plane_ones.data() + head * planes * channels + at,
                                              scratch.products.data() + plane * rows * channels + channel, channels);
                }
            }
            Combine c{};
            c.rows = rows;
            c.channels = shape_.head_channels;
            c.planes = shape_.value_groups;
            c.groups = shape_.attention_groups;
            c.products = scratch.products.data();
            c.active = active;
            c.scale = weights_.blocks[block].product_scale.data();
            if (shape_.attention_groups > 1) {
                c.columns = scratch.columns.data();
                c.list_begin = scratch.list_begin.data();
                c.list_count = scratch.list_count.data();
                c.byte_stride = w.byte_stride;
                c.plane_bytes = tokens * w.byte_stride;
                c.bytes = w.plane_bytes.data() + head * planes * c.plane_bytes;
            }
            c.shift = weights_.blocks[block].projection_shift.data() + head * channels;
            c.out = scratch.inner_bits.data() + (step - first) * shape_.inner_words + head * shape_.head_words;
            c.out_stride = shape_.inner_words;
            kernels_.combine(c);
        }
    }
}

}  // namespace gsb
