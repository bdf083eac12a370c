#include <vector>

#include "attention.h"
#include "attention_head.h"
#include "small_product.h"
#include "tasks.h"

namespace gsb::train {
namespace {

constexpr int kBiasRows = 8;  // rows of one head that a task of the softmax's gradient takes

int padded(int columns) {
    return (columns + 15) / 16 * 16;
}

struct Scratch {
    explicit Scratch(const Shape& s)
        : grad(static_cast<size_t>(s.tokens) * s.channels),
          turned(static_cast<size_t>(s.channels) * padded(s.tokens)),
          rows(4 * static_cast<size_t>(padded(s.tokens))),
          left(grad.size()),
          right(grad.size()) {}
    std::vector<float> grad, turned, rows, left, right;
};

// Sums of one picture and head; see AttentionGradients.
struct Sums {
    float *shifts, *scales;
    int32_t* members;
};

template <class T>
GSB_TRAIN_TARGET void copy_rows(const T* from, size_t stride, const Shape& s, float* to) {
    for (int token = 0; token < s.tokens; ++token) {
        for (int channel = 0; channel < s.channels; channel += 16) {
            store(to + static_cast<size_t>(token) * s.channels + channel, kAllLanes,
                  load(from + token * stride + channel, kAllLanes));
        }
    }
}

void turn(const float* from, const Shape& s, float* to) {
    for (int token = 0; token < s.tokens; ++token) {
        for (int channel = 0; channel < s.channels; ++channel) {
            to[channel * padded(s.tokens) + token] = from[static_cast<size_t>(token) * s.channels + channel];
        }
    }
}

// One row: from the gradient of A_b to that of A, into `out`; adds A_b's entries times `grad` to value_grad.
struct RowSums {
    Floats scales[kMostGroups];
    int32_t members[kMostGroups];
};

GSB_TRAIN_INLINE void attention_row(const Shape& s, const float* P, const float* E, const Groups& groups,
                                    const Limits& limits, const float* row_grad, const float* grad, float* value_grad,
                                    float* out, RowSums& sums) {
    const Floats scale = floats(groups.scales[0]), zero = floats(0.0f), one = floats(1.0f);
    alignas(64) float values[16];
    for (int column = 0; column < s.tokens; column += 16) {
        const Lanes lanes = lanes_from(column, s.tokens);
        const Floats A = entries(P, E, column, lanes), g = load(row_grad + column, lanes);
        const Mask inside = (A >= zero) & (A <= scale), base = above(A, 0.5f * groups.scales[0]) & mask_of(lanes);
        sums.scales[0] = fma(g, keep(base, one) - divide_where(inside, A, scale), sums.scales[0]);
        Floats slope = keep(inside, one), a = keep(base, scale);
        for (int group = 1; group < groups.count; ++group) {
            const Mask member = above(A, limits.upper[group - 1]) & mask_of(lanes);
            const Floats part = floats(groups.scales[group]);
            sums.scales[group] = add_where(member, sums.scales[group], g);
            sums.members[group] += count(member);
            slope = add_where(member, slope, part);
            a = add_where(member, a, part);
        }
        store(out + column, lanes, g * slope);
        store(values, kAllLanes, a);
        for (uint32_t some = bits_of((a != zero) & mask_of(lanes)); some; some &= some - 1) {
            const int lane = __builtin_ctz(some);
            const Floats entry = floats(values[lane]);
            float* to = value_grad + static_cast<size_t>(column + lane) * s.channels;
            for (int channel = 0; channel < s.channels; channel += 16) {
                store(to + channel, kAllLanes,
                      fma(entry, load(grad + channel, kAllLanes), load(to + channel, kAllLanes)));
            }
        }
    }
}

// The gradient of A into `work` (N, N), that of V_b into scratch.left.
GSB_TRAIN_TARGET void attention_head_backward(const Shape& s, const float* P, const float* E, const Groups& groups,
                                              const Limits& limits, Scratch& scratch, float* work, float* scale_sums,
                                              int32_t* members) {
    RowSums sums;
    for (int g = 0; g < groups.count; ++g) {
        sums.scales[g] = floats(0.0f);
        sums.members[g] = 0;
    }
    std::fill(scratch.left.begin(), scratch.left.end(), 0.0f);
    const int columns = padded(s.tokens);
    for (int first = 0; first < s.tokens; first += 4) {
        const int rows = std::min(4, s.tokens - first);
        const float* grad = scratch.grad.data() + static_cast<size_t>(first) * s.channels;
        small_product({grad, static_cast<size_t>(s.channels), 1}, rows, s.channels, scratch.turned.data(), columns,
                      columns, scratch.rows.data(), columns);
        for (int r = 0; r < rows; ++r) {
            const size_t begin = static_cast<size_t>(first + r) * s.tokens;
            attention_row(s, P + begin, E ? E + begin : nullptr, groups, limits, scratch.rows.data() + r * columns,
                          grad + r * s.channels, scratch.left.data(), work + begin, sums);
        }
    }
    for (int g = 0; g < groups.count; ++g) {
        scale_sums[g] = sum(sums.scales[g]);
        members[g] = sums.members[g];
    }
}

template <class T>
GSB_TRAIN_TARGET void values_backward(const Heads& heads, const Part& part, const Groups& groups, const Limits& limits,
                                      bool aligned, const float* grad, T* out, float* shift_sums, float* scale_sums,
                                      int32_t* members) {
    const Shape& s = heads.shape;
    const T* qkv = static_cast<const T*>(heads.qkv.data);
    const Floats one = floats(1.0f), zero = floats(0.0f);
    Floats sums[kMostGroups];
    for (int g = 0; g < groups.count; ++g) {
        sums[g] = zero;
        members[g] = 0;
    }
    std::fill_n(shift_sums, s.channels, 0.0f);
    for (int token = 0; token < s.tokens; ++token) {
        for (int channel = 0; channel < s.channels; channel += 16) {
            const Floats v = shifted(part, qkv, token, channel), size = magnitude(v);
            const Floats g = load(grad + static_cast<size_t>(token) * s.channels + channel, kAllLanes);
            const Floats signed_grad = with_sign(g, signs_of(v));
            Floats slope = zero;
            for (int group = 0; group < groups.count; ++group) {
                const Floats scale = floats(groups.scales[group]);
                const Mask inside = size <= scale;
                const Mask member = group ? value_member(v, limits, group - 1) : mask_of(kAllLanes);
                sums[group] = fma_where(member, signed_grad, one - divide_where(inside, size, scale), sums[group]);
                members[group] += count(member);
                slope = add_where(aligned ? inside & member : inside | ~member, slope, one);
            }
            const Floats passed = g * slope;
            store(out + part.begin + token * part.stride + channel, kAllLanes, passed);
            store(shift_sums + channel, kAllLanes, load(shift_sums + channel, kAllLanes) + passed);
        }
    }
    for (int g = 0; g < groups.count; ++g) scale_sums[g] = sum(sums[g]);
}

// size·sign of q or k (N, d).
template <class T>
GSB_TRAIN_TARGET void plane_of(const Heads& heads, const Part& part, float size, float* out) {
    const T* qkv = static_cast<const T*>(heads.qkv.data);
    for (int token = 0; token < heads.shape.tokens; ++token) {
        for (int channel = 0; channel < heads.shape.channels; channel += 16, out += 16) {
            store(out, kAllLanes, with_sign(floats(size), signs_of(shifted(part, qkv, token, channel))));
        }
    }
}

// From the gradient (N, d) of s·sign(t) to that of t.
template <class T>
GSB_TRAIN_TARGET float signs_backward(const Heads& heads, const Part& part, float scale, const float* grad, T* out,
                                      float* shift_sums) {
    const T* qkv = static_cast<const T*>(heads.qkv.data);
    const Floats one = floats(1.0f), limit = floats(scale);
    Floats scale_grad = floats(0.0f);
    std::fill_n(shift_sums, heads.shape.channels, 0.0f);
    for (int token = 0; token < heads.shape.tokens; ++token) {
        for (int channel = 0; channel < heads.shape.channels; channel += 16, grad += 16) {
            const Floats t = shifted(part, qkv, token, channel), g = load(grad, kAllLanes);
            const Mask inside = magnitude(t) <= limit;
            scale_grad = fma(g, with_sign(one, signs_of(t)) - divide_where(inside, t, limit), scale_grad);
            const Floats passed = keep(inside, g);
            store(out + part.begin + token * part.stride + channel, kAllLanes, passed);
            store(shift_sums + channel, kAllLanes, load(shift_sums + channel, kAllLanes) + passed);
        }
    }
    return sum(scale_grad);
}

// Rows of one head over all pictures: the bias's gradient is their sum; then through the softmax, in place.
GSB_TRAIN_TARGET void softmax_backward(const Shape& s, int head, int first, int last, const float* P, float* work,
                                       float* bias) {
    const size_t size = static_cast<size_t>(s.tokens) * s.tokens;
    for (int row = first; row < last; ++row) {
        const size_t at = static_cast<size_t>(row) * s.tokens;
        float* total = bias ? bias + head * size + at : nullptr;
        if (total) std::fill_n(total, s.tokens, 0.0f);
        for (int picture = 0; picture < s.batch; ++picture) {
            const size_t begin = (static_cast<size_t>(picture) * s.heads + head) * size + at;
            Floats dot = floats(0.0f);
            for (int column = 0; column < s.tokens; column += 16) {
                const Lanes lanes = lanes_from(column, s.tokens);
                const Floats g = load(work + begin + column, lanes);
                dot = fma(g, load(P + begin + column, lanes), dot);
                if (total) store(total + column, lanes, load(total + column, lanes) + g);
            }
            const Floats mean = floats(sum(dot));
            for (int column = 0; column < s.tokens; column += 16) {
                const Lanes lanes = lanes_from(column, s.tokens);
                const Floats g = load(work + begin + column, lanes) - mean;
                store(work + begin + column, lanes, g * load(P + begin + column, lanes));
            }
        }
    }
}

GSB_TRAIN_TARGET void product_by_plane(const Shape& s, Left a, const float* plane, float* out) {
    small_product(a, s.tokens, s.tokens, plane, s.channels, s.channels, out, s.channels);
}

template <class T>
void queries_and_keys_backward(const Heads& heads, int task, const float* work, T* out, Sums sums, Scratch& scratch) {
    const Shape& s = heads.shape;
    const float scales[2] = {heads.query_scale, heads.key_scale};
    const float root = 1.0f / __builtin_sqrtf(static_cast<float>(s.channels));
    const int picture = task / s.heads, head = task % s.heads;
    float* planes[2] = {scratch.grad.data(), scratch.left.data()};  // both before `out`, which may be qkv, is written
    for (int part = 0; part < 2; ++part) {
        plane_of<T>(heads, part_of(heads, picture, head, part), scales[part] * root, planes[part]);
    }
    for (int part = 0; part < 2; ++part) {
        const size_t row = part == 0 ? s.tokens : 1, k = part == 0 ? 1 : s.tokens;
        product_by_plane(s, {work, row, k}, planes[1 - part], scratch.right.data());
        sums.scales[part] = signs_backward<T>(heads, part_of(heads, picture, head, part), scales[part],
                                              scratch.right.data(), out, sums.shifts + part * s.channels);
    }
}

}  // namespace

void attend_backward(const Heads& heads, const float* P, const float* E, const Groups& attention, const Groups& values,
                     bool aligned, const float* V, Tensor grad, const AttentionGradients& out, int threads) {
    const Shape& s = heads.shape;
    const size_t size = static_cast<size_t>(s.tokens) * s.tokens, width = static_cast<size_t>(s.heads) * s.channels;
    const int groups = attention.count + values.count;
    const auto sums_of = [&](int task) {
        const size_t at = static_cast<size_t>(task);
        return Sums{out.shifts + at * 3 * s.channels, out.scales + at * (2 + groups), out.members + at * groups};
    };
    with_type(heads.qkv, [&](auto* qkv) {
        using T = std::remove_pointer_t<decltype(qkv)>;
        T* grad_qkv = static_cast<T*>(out.qkv.data);
        run_tasks(threads, s.batch * s.heads, [&](int task) {
            const int picture = task / s.heads, head = task % s.heads;
            Scratch scratch(s);
            const Sums sums = sums_of(task);
            with_type(grad, [&](auto* g) {
                copy_rows(g + picture * s.tokens * width + head * s.channels, width, s, scratch.grad.data());
            });
            turn(V + static_cast<size_t>(task) * s.tokens * s.channels, s, scratch.turned.data());
            attention_head_backward(s, P + task * size, E ? E + head * size : nullptr, attention,
                                    limits_of(attention, 1, picture), scratch, out.work + task * size, sums.scales + 2,
                                    sums.members);
            values_backward<T>(heads, part_of(heads, picture, head, 2), values, limits_of(values, 2, picture), aligned,
                               scratch.left.data(), grad_qkv, sums.shifts + 2 * s.channels,
                               sums.scales + 2 + attention.count, sums.members + attention.count);
        });
        const int blocks = (s.tokens + kBiasRows - 1) / kBiasRows;
        run_tasks(threads, s.heads * blocks, [&](int task) {
            const int first = task % blocks * kBiasRows;
            softmax_backward(s, task / blocks, first, std::min(s.tokens, first + kBiasRows), P, out.work, out.bias);
        });
        run_tasks(threads, s.batch * s.heads, [&](int task) {
            Scratch scratch(s);
            queries_and_keys_backward<T>(heads, task, out.work + task * size, grad_qkv, sums_of(task), scratch);
        });
    });
}

}  // namespace gsb::train
