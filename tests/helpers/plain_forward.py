"""docs/numerics.md once more, in plain loops over Python integers and float32 scalars: slow, for tiny models only."""

import math

import numpy as np

f = np.float32


def plain_logits(model, picture):
    """Return the logits of one picture by plain loops, from the packed bits themselves."""
    a = model.architecture
    tokens = [[f(v) for v in row] for row in model["prefix_tokens"]] + embed(model, picture)
    for index in range(a.depth):
        block = model.block(index)
        tokens = [add(x, y) for x, y in zip(tokens, attention(a, block, tokens), strict=True)]
        tokens = [add(x, mlp(a, block, x)) for x in tokens]
    if a.global_pool == "avg":
        patches = tokens[a.prefix_tokens :]
        share = f(1) / f(len(patches))
        if a.pool_norm == "before":
            patches = [norm(x, model["norm.weight"], model["norm.bias"], a) for x in patches]
        mean = [sum16(channel) * share for channel in zip(*patches, strict=True)]
        read = [mean if a.pool_norm == "before" else norm(mean, model["norm.weight"], model["norm.bias"], a)]
    else:
        read = [norm(tokens[j], model["norm.weight"], model["norm.bias"], a) for j in range(a.num_heads_out)]
    results = [head(model, j, y) for j, y in enumerate(read)]
    if len(results) == 1:
        return np.array(results[0])
    return np.array([(left + right) * f(0.5) for left, right in zip(*results, strict=True)])


def convolve(model, picture):
    a = model.architecture
    x, count = [[[int(v) for v in pixel] for pixel in line] for line in picture], len(a.channels)
    for index, outputs in enumerate(a.channels):
        weight, scale = model[f"tokenizer.{index}.weight"], model[f"tokenizer.{index}.scale"]
        binary = index > 0 and a.level_bits[index - 1] == 1
        highest = 0 if index + 1 == count else 2 ** a.level_bits[index] - 1
        inputs, new = len(x[0][0]), []
        for top in range(0, len(x), 2):
            line = []
            for left in range(0, len(x[0]), 2):
                taps = [
                    (i, j, c, x[top + i - 1][left + j - 1][c])
                    for i in range(3)
                    for j in range(3)
                    for c in range(inputs)
                    if top + i > 0 and left + j > 0
                ]
                place = []
                for o in range(outputs):
                    sums = [0, 0, 0]  # by colour, then by kernel row; of bits one sum
                    for i, j, c, value in taps:
                        if binary:
                            sums[0] += value * (1 if bit_of(weight[o], (3 * i + j) * inputs + c) else -1)
                        else:
                            sums[i if index else c] += value * int(weight[o, i, j, c] if index else weight[o, c, i, j])
                    if binary:
                        y = f(sums[0]) * scale[o]
                    else:
                        parts = [f(sums[p]) * (scale[o] if index else scale[o, p]) for p in range(3)]
                        y = (parts[0] + parts[1]) + parts[2]
                    if index == 0:
                        y = y + model["tokenizer.0.offset"][2 * (top == 0) + (left == 0), o]
                    elif index + 1 < count:
                        y = y + model[f"tokenizer.{index}.bias"][o]
                    place.append(y if index + 1 == count else min(max(round(float(y)), 0), highest))
                line.append(place)
            new.append(line)
        x = new
    tokens = [place for line in x for place in line]
    return [add(token, position) for token, position in zip(tokens, model["patch_embed.position"], strict=True)]


def embed(model, picture):
    if model.architecture.channels:
        return convolve(model, picture)
    a, weight, scale = model.architecture, model["patch_embed.weight"], model["patch_embed.scale"]
    (height, width), (_, columns) = a.patch_size, a.grid
    out = []
    for n in range(a.num_patches):
        top, left = (n // columns) * height, (n % columns) * width
        row = []
        for o in range(a.embed_dim):
            sums = [
                sum(
                    int(weight[o, c, y, x]) * int(picture[top + y, left + x, c])
                    for y in range(height)
                    for x in range(width)
                )
                for c in range(3)
            ]
            parts = [f(sums[c]) * scale[o, c] for c in range(3)]
            row.append(((parts[0] + parts[1]) + parts[2]) + model["patch_embed.position"][n, o])
        out.append(row)
    return out


def attention(a, block, tokens):
    heads, d, width, count = a.num_heads, a.head_dim, a.embed_dim, a.num_tokens
    inputs = [[bool(y >= 0) for y in norm(x, block["norm1.weight"], block["norm1.bias"], a)] for x in tokens]
    qkv = [[differing(x, block["attn.qkv.weight"][o]) for o in range(3 * width)] for x in inputs]
    limit = [int(t) for t in block["attn.qkv.threshold"]]
    bit = [[qkv[i][o] <= limit[o] for o in range(3 * width)] for i in range(count)]
    bias = bias_table(a, block)
    scores = {}
    for h in range(heads):
        for i in range(count):
            z = [sum(bit[i][h * d + c] != bit[j][width + h * d + c] for c in range(d)) for j in range(count)]
            p = [block["attn.exp_table"][value - min(z)] for value in z]
            r = f(1) / sum16(p)
            for j in range(count):
                scores[h, i, j] = p[j] * r if bias is None else p[j] * r + bias(h, i, j)
    value = {
        (i, c): f(width - 2 * qkv[i][2 * width + c]) * block["attn.v_scale"][c] + block["attn.v_bias"][c]
        for i in range(count)
        for c in range(width)
    }
    if a.threshold_scope == "fixed":
        upper = [f(v) for v in block["attn.attention_limits"]]
        sides = [(f(v[0]), f(v[1])) for v in block["attn.value_limits"]]
    else:
        largest, top, bottom = max(scores.values()), max(value.values()), min(value.values())
        upper = [f(ratio) * largest for ratio in a.attention_thresholds]
        sides = [(f(ratio) * top, f(ratio) * bottom) for ratio in a.value_thresholds]
    limits = [block["attn.attention_half_scale"][0], *upper]
    out = []
    for i in range(count):
        y = []
        for c in range(width):
            total = None
            for m, attention_limit in enumerate(limits):
                present = [j for j in range(count) if scores[c // d, i, j] > attention_limit]
                for b in range(a.value_groups):
                    dot = 0
                    for j in present:
                        v = value[j, c]
                        inside = b == 0 or v > sides[b - 1][0] or v < sides[b - 1][1]
                        dot += (1 if bit[j][2 * width + c] else -1) if inside else 0
                    term = f(dot) * block["attn.product_scale"][m, b]
                    total = term if total is None else total + term
            y.append(total)
        bits = [bool(v + s >= 0) for v, s in zip(y, block["attn.proj.shift"], strict=True)]
        out.append(
            [
                f(width - 2 * differing(bits, block["attn.proj.weight"][o])) * block["attn.proj.scale"][o]
                + block["attn.proj.bias"][o]
                for o in range(width)
            ]
        )
    return out


def bias_table(a, block):
    if a.attention_bias == "none":
        return None
    table = block["attn.bias"]
    if a.attention_bias == "full":
        return lambda h, i, j: f(table[h, i, j])
    (gh, gw), p = a.grid, a.prefix_tokens
    o = (2 * gh - 1) * (2 * gw - 1)

    def lookup(h, i, j):
        if i < p and j < p:
            return table[h, o + i * p + j]
        if i < p:
            return table[h, o + p * p + i]
        if j < p:
            return table[h, o + p * p + p + j]
        (yi, xi), (yj, xj) = divmod(i - p, gw), divmod(j - p, gw)
        return table[h, (yi - yj + gh - 1) * (2 * gw - 1) + (xi - xj + gw - 1)]

    return lookup


def mlp(a, block, x):
    bits = [bool(y >= 0) for y in norm(x, block["norm2.weight"], block["norm2.bias"], a)]
    hidden = []
    for m in range(a.mlp_hidden):
        low, high = (int(v) for v in block["mlp.fc1.zero_interval"][m])
        hidden.append(not low <= differing(bits, block["mlp.fc1.weight"][m]) <= high)
    out = []
    for o in range(a.embed_dim):
        dot = sum(1 if bit_of(block["mlp.fc2.weight"][o], m) else -1 for m in range(a.mlp_hidden) if hidden[m])
        out.append(f(dot) * block["mlp.fc2.scale"][o] + block["mlp.fc2.bias"][o])
    return out


def head(model, j, y):
    shift, step = model[f"heads.{j}.shift"], model[f"heads.{j}.input_scale"][0]
    # Python's round is half to even, as rint is.
    levels = [min(max(round(float((v + s) / step)), -128), 127) for v, s in zip(y, shift, strict=True)]
    out = []
    for k, weights in enumerate(model[f"heads.{j}.weight"]):
        total = sum(int(w) * q for w, q in zip(weights, levels, strict=True))
        out.append(f(total) * model[f"heads.{j}.scale"][k] + model[f"heads.{j}.bias"][k])
    return out


def norm(x, weight, bias, a):
    share = f(1) / f(len(x))
    mean = sum16(x) * share
    e = [v - mean for v in x]
    variance = sum16([v * v for v in e]) * share
    r = f(1) / f(math.sqrt(variance + f(a.layer_norm_eps)))
    return [((v * r) * g) + b for v, g, b in zip(e, weight, bias, strict=True)]


def sum16(x):
    lanes = [f(0)] * 16
    for i, value in enumerate(x):
        lanes[i % 16] = lanes[i % 16] + value
    for width in (8, 4, 2, 1):
        for lane in range(width):
            lanes[lane] = lanes[lane] + lanes[lane + width]
    return lanes[0]


def add(x, y):
    return [left + right for left, right in zip(x, y, strict=True)]


def differing(bits, words):
    return sum(bit != bit_of(words, j) for j, bit in enumerate(bits))


def bit_of(words, j):
    return bool((int(words[j // 64]) >> (j % 64)) & 1)
