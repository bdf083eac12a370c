/* ---- A block */

/* Bits of at most 32 outputs, the first one lowest. No store comes between, so inputs may stay in registers. */
static inline uint32_t signs_of(const uint32_t* bits, const uint32_t* weight, const int16_t* threshold, int outputs) {
    uint32_t word = 0;
    for (int o = 0; o < outputs; ++o, weight += WIDTH_WORDS) {
        word |= (uint32_t)(count_differences(bits, weight, WIDTH_WORDS) <= threshold[o]) << o;
    }
    return word;
}

static inline uint32_t steps_of(const uint32_t* bits, const uint32_t* weight, const int16_t* interval, int outputs) {
    uint32_t word = 0;
    for (int o = 0; o < outputs; ++o, weight += WIDTH_WORDS, interval += 2) {
        const int count = count_differences(bits, weight, WIDTH_WORDS);
        word |= (uint32_t)(count < interval[0] || interval[1] < count) << o;
    }
    return word;
}

/* Norm and qkv of every token: bits of queries and keys, popcounts of the Value. Says whether the norms hold. */
static int query_key_value(struct arena* arena, int block) {
    struct block* b = &arena->u.run.now.block;
    int holds = 1;
    for (int token = 0; token < TOKENS; ++token) {
        const uint32_t* weight = qkv_weight[block];
        const int16_t* threshold = qkv_threshold[block];
        holds &= norm_bits(arena->u.run.x[token], norm1_threshold[block], norm1_flip[block], b->bits);
        for (int part = 0; part < 2; ++part) {
            uint32_t* out = part == 0 ? b->queries[token] : b->keys[token];
            for (int head = 0; head < NUM_HEADS; ++head) {
                for (int c = 0; c < HEAD_DIM; c += 32) {
                    const int count = HEAD_DIM - c < 32 ? HEAD_DIM - c : 32;
                    *out++ = signs_of(b->bits, weight, threshold, count);
                    weight += (size_t)count * WIDTH_WORDS;
                    threshold += count;
                }
            }
        }
        for (int c = 0; c < EMBED_DIM; ++c, weight += WIDTH_WORDS) {
            b->values[token][c] = (int16_t)count_differences(b->bits, weight, WIDTH_WORDS);
        }
    }
    return holds;
}

static inline float value_of(const struct block* b, int block, int token, int c) {
    return (float)(EMBED_DIM - 2 * b->values[token][c]) * v_scale[block][c] + v_bias[block][c];
}

/* The Value's planes: bits of a channel's tokens, so that they meet the bits of a row of attention. */
static void value_planes(struct block* b, int block) {
    float limits[VALUE_GROUPS][2] = {{0}}; /* 0 is not used: plane 0 has every token */
#if VALUE_GROUPS > 1 && FIXED_LIMITS
    for (int group = 1; group < VALUE_GROUPS; ++group) {
        limits[group][0] = value_limits[block][2 * (group - 1)];
        limits[group][1] = value_limits[block][2 * (group - 1) + 1];
    }
#elif VALUE_GROUPS > 1
    float largest = -INFINITY, smallest = INFINITY;
    for (int token = 0; token < TOKENS; ++token) {
        for (int c = 0; c < EMBED_DIM; ++c) {
            const float value = value_of(b, block, token, c);
            if (value > largest) largest = value;
            if (value < smallest) smallest = value;
        }
    }
    for (int group = 1; group < VALUE_GROUPS; ++group) {
        limits[group][0] = value_ratios[group - 1] * largest;
        limits[group][1] = value_ratios[group - 1] * smallest;
    }
#endif
    for (int c = 0; c < EMBED_DIM; ++c) {
        const int threshold = qkv_threshold[block][2 * EMBED_DIM + c];
        for (int group = 0; group < VALUE_GROUPS; ++group) {
            for (int i = 0; i < TOKEN_WORDS; ++i) b->planes[group][c][i] = 0;
        }
        for (int token = 0; token < TOKENS; ++token) {
            if (b->values[token][c] <= threshold) set_bit(b->planes[0][c], token);
            if (VALUE_GROUPS > 1) {
                const float value = value_of(b, block, token, c);
                for (int group = 1; group < VALUE_GROUPS; ++group) {
                    if (value > limits[group][0] || value < limits[group][1]) set_bit(b->planes[group][c], token);
                }
            }
        }
    }
}

#if ATTENTION_BIAS == BIAS_RELATIVE
static void add_bias(float* row, int block, int head, int token) {
    const int line = 2 * GRID_WIDTH - 1, behind = (2 * GRID_HEIGHT - 1) * line;
    const float *table = attention_bias[block] + (size_t)head * RELATIVE_BIAS_SIZE, *extra = table + behind;
    if (token < PREFIX_TOKENS) {
        for (int j = 0; j < PREFIX_TOKENS; ++j) row[j] = row[j] + extra[token * PREFIX_TOKENS + j];
        for (int j = 0; j < PATCHES; ++j) {
            row[PREFIX_TOKENS + j] = row[PREFIX_TOKENS + j] + extra[PREFIX_TOKENS * PREFIX_TOKENS + token];
        }
    } else {
        const int patch = token - PREFIX_TOKENS;
        const int from = (patch / GRID_WIDTH + GRID_HEIGHT - 1) * line + (patch % GRID_WIDTH + GRID_WIDTH - 1);
        float* out = row + PREFIX_TOKENS;
        for (int j = 0; j < PREFIX_TOKENS; ++j) {
            row[j] = row[j] + extra[PREFIX_TOKENS * PREFIX_TOKENS + PREFIX_TOKENS + j];
        }
        for (int y = 0; y < GRID_HEIGHT; ++y) {
            for (int x = 0; x < GRID_WIDTH; ++x, ++out) *out = *out + table[from - y * line - x];
        }
    }
}
#elif ATTENTION_BIAS == BIAS_FULL
/* IEEE half → float, exact. Shifted into place the exponent is 112 too small; a multiplication mends that. */
static float half_to_float(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7FFFu) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    return half & 0x8000u ? -value : value;
}

static void add_bias(float* row, int block, int head, int token) {
    const uint16_t* from = attention_bias[block] + ((size_t)head * TOKENS + token) * TOKENS;
    for (int j = 0; j < TOKENS; ++j) row[j] = row[j] + half_to_float(from[j]);
}
#endif

/* A row of the attention matrix, into b->row. Returns its largest number. */
static float attention_row(struct block* b, int block, int head, int token) {
    const uint32_t* query = b->queries[token] + head * HEAD_WORDS;
    int least = HEAD_DIM;
    float share, largest = -INFINITY;
    for (int j = 0; j < TOKENS; ++j) {
        const int score = count_differences(query, b->keys[j] + head * HEAD_WORDS, HEAD_WORDS);
        b->scores[j] = (uint16_t)score;
        if (score < least) least = score;
    }
    for (int j = 0; j < TOKENS; ++j) b->row[j] = exp_table[block][b->scores[j] - least];
    share = 1.0f / sum16(b->row, TOKENS, 1);
    for (int j = 0; j < TOKENS; ++j) b->row[j] = b->row[j] * share;
#if ATTENTION_BIAS != BIAS_NONE
    add_bias(b->row, block, head, token);
#endif
    for (int j = 0; j < TOKENS; ++j) {
        if (b->row[j] > largest) largest = b->row[j];
    }
    return largest;
}

/* What a number of the attention matrix is above to be in a group. */
static void attention_limits(struct block* b, int block, float* limits) {
    limits[0] = attention_half_scale[block];
#if ATTENTION_GROUPS > 1 && FIXED_LIMITS
    (void)b;
    for (int group = 1; group < ATTENTION_GROUPS; ++group) {
        limits[group] = attention_fixed_limits[block][group - 1];
    }
#elif ATTENTION_GROUPS > 1
    float largest = -INFINITY;
    for (int head = 0; head < NUM_HEADS; ++head) {
        for (int token = 0; token < TOKENS; ++token) {
            const float found = attention_row(b, block, head, token);
            if (found > largest) largest = found;
        }
    }
    for (int group = 1; group < ATTENTION_GROUPS; ++group) limits[group] = attention_ratios[group - 1] * largest;
#else
    (void)b;
#endif
}

/* Σ_j mask[j]·plane[j] of a channel: its signs where `members` are, 0 elsewhere. Upper groups have few tokens, so that
 * most words are 0. */
static inline int sparse_product(const uint32_t* mask, const uint32_t* signs, const uint32_t* members) {
    int positive = 0, present = 0;
    for (int i = 0; i < TOKEN_WORDS; ++i) {
        const uint32_t both = mask[i] & members[i];
        if (both == 0) continue;
        present += count_bits(both);
        positive += count_bits(both & signs[i]);
    }
    return 2 * positive - present;
}

/* The same of plane 0, which has every token; `ones` are those of the mask. */
static inline int dense_product(const uint32_t* mask, int ones, const uint32_t* signs) {
    return 2 * count_common(mask, signs, TOKEN_WORDS) - ones;
}

/* One token's attention over all heads, into b->bits: what the projection reads. */
static void attend(struct block* b, int block, int token, const float* limits) {
    for (int i = 0; i < WIDTH_WORDS; ++i) b->bits[i] = 0;
    for (int head = 0; head < NUM_HEADS; ++head) {
        int ones[ATTENTION_GROUPS];
        attention_row(b, block, head, token);
        for (int group = 0; group < ATTENTION_GROUPS; ++group) {
            uint32_t* mask = b->masks[group];
            ones[group] = 0;
            for (int i = 0; i < TOKEN_WORDS; ++i) mask[i] = 0;
            for (int j = 0; j < TOKENS; ++j) {
                if (!(b->row[j] > limits[group])) continue;
                set_bit(mask, j);
                ones[group] += 1;
            }
        }
        for (int c = head * HEAD_DIM; c < (head + 1) * HEAD_DIM; ++c) {
            const float* scale = product_scale[block];
            float y = 0.0f;
            for (int group = 0; group < ATTENTION_GROUPS; ++group) {
                const uint32_t* mask = b->masks[group];
                if (ones[group] == 0) { /* would add 0 */
                    scale += VALUE_GROUPS;
                    continue;
                }
                y = y + (float)dense_product(mask, ones[group], b->planes[0][c]) * *scale++;
                for (int plane = 1; plane < VALUE_GROUPS; ++plane) {
                    y = y + (float)sparse_product(mask, b->planes[0][c], b->planes[plane][c]) * *scale++;
                }
            }
            if (y + proj_shift[block][c] >= 0.0f) set_bit(b->bits, c);
        }
    }
}

/* x = x + (dot·scale + bias); the bits stand for ±1. */
static void project(const uint32_t* bits, int block, float* x) {
    const uint32_t* weight = proj_weight[block];
    for (int o = 0; o < EMBED_DIM; ++o, weight += WIDTH_WORDS) {
        const int dot = EMBED_DIM - 2 * count_differences(bits, weight, WIDTH_WORDS);
        x[o] = x[o] + ((float)dot * proj_scale[block][o] + proj_bias[block][o]);
    }
}

/* Says whether the norm holds. */
static int mlp(struct block* b, int block, float* x) {
    const uint32_t* weight = fc1_weight[block];
    const int16_t* interval = fc1_zero_interval[block];
    const int holds = norm_bits(x, norm2_threshold[block], norm2_flip[block], b->bits);
    int ones = 0;
    for (int o = 0; o < MLP_HIDDEN; o += 32, weight += 32 * WIDTH_WORDS, interval += 64) {
        const uint32_t word = steps_of(b->bits, weight, interval, MLP_HIDDEN - o < 32 ? MLP_HIDDEN - o : 32);
        b->hidden[o / 32] = word;
        ones += count_bits(word);
    }
    weight = fc2_weight[block]; /* of {0, 1} and ±1 */
    for (int o = 0; o < EMBED_DIM; ++o, weight += HIDDEN_WORDS) {
        const int dot = 2 * count_common(b->hidden, weight, HIDDEN_WORDS) - ones;
        x[o] = x[o] + ((float)dot * fc2_scale[block][o] + fc2_bias[block][o]);
    }
    return holds;
}

/* Behind the last attention only tokens that a head reads are computed. Says whether the norms hold. */
static int run_block(struct arena* arena, int block) {
    struct block* b = &arena->u.run.now.block;
    const int is_last = block + 1 == DEPTH;
    const int first = is_last ? READ_FIRST : 0, end = is_last ? READ_END : TOKENS;
    float limits[ATTENTION_GROUPS];
    int holds = query_key_value(arena, block);
    if (!holds) return 0; /* and no NaN goes on from here */
    value_planes(b, block);
    attention_limits(b, block, limits);
    for (int token = first; token < end; ++token) {
        float* x = arena->u.run.x[token];
        attend(b, block, token, limits);
        project(b->bits, block, x);
        holds &= mlp(b, block, x);
    }
    return holds;
}
