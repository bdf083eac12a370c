/* ------------------------------------------------------------------------------------------------------------------
 * The engine. It is the same for every model; the macros above give the shape. One picture at a time, one row of
 * tokens at a time: no attention matrix is ever stored, its rows are computed twice instead.
 *
 * Logits are those of gsb-vit to the last bit: every float operation is one IEEE 754 operation in the order of
 * docs/numerics.md, and all else is whole numbers. So nothing may be fused, reordered or kept with more digits.
 */
#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || DBL_MANT_DIG != 53
#error "float and double must be those of IEEE 754, with 32 and 64 bits"
#endif
#if !defined(FLT_EVAL_METHOD) || (FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16)
#error "each float operation must be rounded: compile with -msse2 -mfpmath=sse, not for the x87"
#endif
#if INT_MAX < 2147483647
#error "int must have 32 bits"
#endif
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error "compile without -ffast-math, -Ofast and their parts: they change results"
#endif
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "compile without -ffinite-math-only: it changes results"
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off") /* GCC knows no STDC pragma */
#else
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>
#endif

#define LANES 16 /* of sum16 in docs/numerics.md */
#define WORDS(bits) (((bits) + 31) / 32)
#define WIDTH_WORDS WORDS(EMBED_DIM)
#define HIDDEN_WORDS WORDS(MLP_HIDDEN)
#define HEAD_DIM (EMBED_DIM / NUM_HEADS)
#define HEAD_WORDS WORDS(HEAD_DIM)
#define GRID_HEIGHT (IMAGE_HEIGHT / PATCH_HEIGHT)
#define GRID_WIDTH (IMAGE_WIDTH / PATCH_WIDTH)
#define PATCHES (GRID_HEIGHT * GRID_WIDTH)
#define TOKENS (PREFIX_TOKENS + PATCHES)
#define TOKEN_WORDS WORDS(TOKENS)
#define PIXEL_BYTES (IMAGE_HEIGHT * IMAGE_WIDTH * 3)

/* ---- Memory: what is needed at the same time lies side by side, all else shares its place. */

#if FILTER_SUPPORT > 0
struct window {
    int32_t first, end; /* pixels of the picture that an output reads */
    double sum;     /* of their weights */
};

struct resizing {
    int32_t sums[PIXEL_BYTES]; /* in fixed point; narrowed in place to the pixels of struct embedding */
    int32_t weights[IMAGE_WIDTH * MODEL_MOST_TAPS];
    int32_t first[IMAGE_WIDTH], taps[IMAGE_WIDTH];
    struct window down[IMAGE_HEIGHT];
    uint8_t source[3 * MODEL_MAX_PICTURE_WIDTH]; /* a line of the picture */
    uint8_t line[3 * IMAGE_WIDTH];               /* the same, resized */
};
#endif

struct embedding {
    uint8_t pixels[PIXEL_BYTES];
#if CONVOLUTIONS > 0
    uint8_t even[EVEN_LEVELS], odd[ODD_LEVELS]; /* levels between convolutions */
#endif
};

struct block {
    int16_t values[TOKENS][EMBED_DIM]; /* popcounts */
    uint32_t queries[TOKENS][NUM_HEADS * HEAD_WORDS], keys[TOKENS][NUM_HEADS * HEAD_WORDS];
    uint32_t planes[VALUE_GROUPS][EMBED_DIM][TOKEN_WORDS]; /* 0: the Value's signs; others: who is in the group */
    uint32_t masks[ATTENTION_GROUPS][TOKEN_WORDS];         /* of one row of one head */
    float row[TOKENS];                                     /* of the attention matrix */
    uint16_t scores[TOKENS];
    uint32_t bits[WIDTH_WORDS], hidden[HIDDEN_WORDS];
};

struct classifying {
    float row[EMBED_DIM];
    int8_t levels[EMBED_DIM];
    float logits[NUM_CLASSES]; /* of model_check */
};

struct arena {
    union {
#if FILTER_SUPPORT > 0
        struct resizing resizing;
#endif
        struct {
            union {
                struct embedding embedding;
                struct block block;
                struct classifying classifying;
            } now;
            float x[TOKENS][EMBED_DIM];
        } run;
    } u;
};

typedef char arena_is_large_enough[sizeof(struct arena) <= MODEL_ARENA_BYTES ? 1 : -1];

/* ---- Bits */

#if defined(__POPCNT__) || defined(__aarch64__) || defined(__riscv_zbb)
static inline int count_bits(uint32_t x) { return __builtin_popcount(x); }
#else
/* Numbers of ones in groups of four bits. */
static inline uint32_t count_nibbles(uint32_t x) {
    x -= (x >> 1) & 0x55555555u;
    return (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
}

static inline int add_nibbles(uint32_t x) {
    return (int)((((x & 0x0F0F0F0Fu) + ((x >> 4) & 0x0F0F0F0Fu)) * 0x01010101u) >> 24);
}

static inline int count_bits(uint32_t x) {
    x = count_nibbles(x);
    return (int)((((x + (x >> 4)) & 0x0F0F0F0Fu) * 0x01010101u) >> 24);
}
#define COUNTS_BY_HAND
#endif

/* Ones in three words: a full adder makes two words of them, whose ones weigh 1 and 2. */
static inline int count_three(uint32_t a, uint32_t b, uint32_t c) {
#ifdef COUNTS_BY_HAND
    const uint32_t half = a ^ b, ones = half ^ c, twos = (a & b) | (half & c);
    return add_nibbles(count_nibbles(ones) + 2 * count_nibbles(twos));
#else
    return count_bits(a) + count_bits(b) + count_bits(c);
#endif
}

#if defined(__ARM_FEATURE_MVE)
/* Helium: ones in each byte of four words, added to a count. */
static inline int add_four(int count, uint32x4_t words) {
    uint8x16_t x = vreinterpretq_u8_u32(words);
    x = vsubq_u8(x, vandq_u8(vshrq_n_u8(x, 1), vdupq_n_u8(0x55)));
    x = vaddq_u8(vandq_u8(x, vdupq_n_u8(0x33)), vandq_u8(vshrq_n_u8(x, 2), vdupq_n_u8(0x33)));
    x = vandq_u8(vaddq_u8(x, vshrq_n_u8(x, 4)), vdupq_n_u8(0x0F));
    return (int)vaddvaq_u8((uint32_t)count, x);
}
#endif

/* popcount(a ^ b) */
static inline int count_differences(const uint32_t *a, const uint32_t *b, int words) {
    int count = 0, i = 0;
#if defined(__ARM_FEATURE_MVE)
    for (; i + 4 <= words; i += 4) count = add_four(count, veorq_u32(vld1q_u32(a + i), vld1q_u32(b + i)));
#endif
    for (; i + 3 <= words; i += 3) {
        count += count_three(a[i] ^ b[i], a[i + 1] ^ b[i + 1], a[i + 2] ^ b[i + 2]);
    }
    for (; i < words; ++i) count += count_bits(a[i] ^ b[i]);
    return count;
}

/* popcount(a & b) */
static inline int count_common(const uint32_t *a, const uint32_t *b, int words) {
    int count = 0, i = 0;
#if defined(__ARM_FEATURE_MVE)
    for (; i + 4 <= words; i += 4) count = add_four(count, vandq_u32(vld1q_u32(a + i), vld1q_u32(b + i)));
#endif
    for (; i + 3 <= words; i += 3) {
        count += count_three(a[i] & b[i], a[i + 1] & b[i + 1], a[i + 2] & b[i + 2]);
    }
    for (; i < words; ++i) count += count_bits(a[i] & b[i]);
    return count;
}

static inline void set_bit(uint32_t *words, int index) { words[index / 32] |= (uint32_t)1 << (index % 32); }

/* ---- Floats */

static inline float fold16(float *lane) {
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
    }
    return lane[0];
}

/* Sum of n numbers, `step` apart. */
static float sum16(const float *x, int n, int step) {
    float lane[LANES] = {0};
    for (int i = 0; i < n; ++i) lane[i % LANES] = lane[i % LANES] + x[(size_t)i * step];
    return fold16(lane);
}

/* The square root of x > 0, rounded to nearest, ties impossible. Bit by bit, so that no library decides. */
static float square_root(float x) {
    uint32_t bits, root = 0;
    int exponent;
    float scaled = x;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7FFFFFFFu) == 0 || bits >= 0x7F800000u) return bits > 0x7F800000u ? NAN : x; /* 0, +inf; NaN, < 0 */
    exponent = (int)(bits >> 23);
    if (exponent == 0) { /* subnormal */
        scaled = x * 0x1p24f;
        memcpy(&bits, &scaled, sizeof bits);
        exponent = (int)(bits >> 23) - 24;
    }
    bits = (bits & 0x007FFFFFu) | 0x00800000u;
    exponent -= 127;
    if (exponent & 1) {
        bits <<= 1;
        exponent -= 1;
    }
    /* value = bits · 2^(exponent − 23); the root of bits · 2^25 has 25 bits, the last one for rounding. */
    {
        uint64_t rest = (uint64_t)bits << 25;
        uint32_t bit = (uint32_t)1 << 24;
        for (; bit != 0; bit >>= 1) {
            const uint64_t tried = (uint64_t)(root | bit) * (root | bit);
            if (tried <= rest) root |= bit;
        }
    }
    root = ((root >> 1) + (root & 1)) + ((uint32_t)(exponent / 2 + 126) << 23);
    memcpy(&x, &root, sizeof x);
    return x;
}

#if CONVOLUTIONS > 0
/* y, 0 where it is not above 0, and 255 where it is above that, rounded half to even. */
static inline uint8_t level_of(float y) {
    if (!(y > 0.0f)) return 0;
    if (y > 255.0f) return 255;
    return (uint8_t)((y + 0x1p23f) - 0x1p23f);
}
#endif

static inline int8_t signed_level_of(float y) {
    if (y >= 127.0f) return 127;
    if (!(y >= -128.0f)) return -128;
    return (int8_t)((y + 0x1.8p23f) - 0x1.8p23f);
}

/* A norm that makes no sense of a row: its numbers overflow, or are all equal where eps is 0. */
static inline int norm_holds(float factor) { return factor > 0.0f && factor <= FLT_MAX; }

/* 1/sqrt(variance + eps) of a row, and its mean. */
static float norm_factor(const float *x, float *mean) {
    const float share = 1.0f / (float)EMBED_DIM;
    const float middle = sum16(x, EMBED_DIM, 1) * share;
    float lane[LANES] = {0};
    for (int i = 0; i < EMBED_DIM; ++i) {
        const float centred = x[i] - middle;
        lane[i % LANES] = lane[i % LANES] + centred * centred;
    }
    *mean = middle;
    return 1.0f / square_root(fold16(lane) * share + LAYER_NORM_EPS);
}

/* The bits of a normalised row: for t = (x − mean)·factor, whether t·weight + bias is at least 0. That is where t is at
 * least a threshold, or below it where the weight is negative (flip). Says whether the norm holds. */
static int norm_bits(const float *x, const float *threshold, const uint32_t *flip, uint32_t *bits) {
    float mean;
    const float factor = norm_factor(x, &mean);
    for (int i = 0; i < WIDTH_WORDS; ++i) bits[i] = flip[i];
    for (int i = 0; i < EMBED_DIM; ++i) {
        bits[i / 32] ^= (uint32_t)((x[i] - mean) * factor >= threshold[i]) << (i % 32);
    }
    return norm_holds(factor);
}

/* ---- From pixels to tokens */

#if CONVOLUTIONS == 0
static void embed(struct arena *arena, const uint8_t *pixels) {
    for (int patch = 0; patch < PATCHES; ++patch) {
        const uint8_t *corner =
            pixels + ((size_t)(patch / GRID_WIDTH) * PATCH_HEIGHT * IMAGE_WIDTH + patch % GRID_WIDTH * PATCH_WIDTH) * 3;
        const int8_t *weight = patch_weight;
        float *x = arena->u.run.x[PREFIX_TOKENS + patch];
        for (int o = 0; o < EMBED_DIM; ++o) {
            float part[3];
            for (int colour = 0; colour < 3; ++colour) {
                int32_t sum = 0;
                for (int row = 0; row < PATCH_HEIGHT; ++row) {
                    const uint8_t *pixel = corner + (size_t)row * IMAGE_WIDTH * 3 + colour;
                    for (int column = 0; column < PATCH_WIDTH; ++column) sum += pixel[3 * column] * *weight++;
                }
                part[colour] = (float)sum * patch_scale[3 * o + colour];
            }
            x[o] = ((part[0] + part[1]) + part[2]) + position[(size_t)patch * EMBED_DIM + o];
        }
    }
}
#else
/* 3 × 3, stride 2, one line and column of zeros before the first. Either levels or x receives the outputs. */
static void convolve(const struct convolution *c, const uint8_t *in, int first, uint8_t *levels, float *x) {
    const int height = c->height, width = c->width;
    for (int place = 0; place < height * width; ++place) {
        const int y = place / width, column = place % width;
        const int top = y == 0, left = column == 0;
        const float *offset = c->offset + (first ? (size_t)(2 * top + left) * c->outputs
                                                 : x ? (size_t)place * c->outputs : (size_t)0);
        const int8_t *weight = c->weight;
        const ptrdiff_t window = ((ptrdiff_t)(2 * y - 1) * (2 * width) + (2 * column - 1)) * c->inputs;
        for (int o = 0; o < c->outputs; ++o) {
            int32_t sum[3] = {0, 0, 0};
            float part[3], out;
            if (first) { /* weight: colour, line, column; a sum a colour */
                for (int colour = 0; colour < 3; ++colour) {
                    for (int row = top; row < 3; ++row) {
                        for (int tap = left; tap < 3; ++tap) {
                            sum[colour] += in[window + ((ptrdiff_t)row * 2 * width + tap) * 3 + colour] *
                                           weight[9 * colour + 3 * row + tap];
                        }
                    }
                    part[colour] = (float)sum[colour] * c->scale[3 * o + colour];
                }
            } else { /* weight: line, column, input; a sum a line */
                for (int row = 0; row < 3; ++row) {
                    const ptrdiff_t begin = (ptrdiff_t)left * c->inputs;
                    for (ptrdiff_t i = begin; row >= top && i < 3 * (ptrdiff_t)c->inputs; ++i) {
                        sum[row] += in[window + (ptrdiff_t)row * 2 * width * c->inputs + i] *
                                    weight[(ptrdiff_t)row * 3 * c->inputs + i];
                    }
                    part[row] = (float)sum[row] * c->scale[o];
                }
            }
            weight += 9 * (size_t)c->inputs;
            out = ((part[0] + part[1]) + part[2]) + offset[o];
            if (x) {
                *x++ = out;
            } else {
                *levels++ = level_of(out);
            }
        }
    }
}

static void embed(struct arena *arena, const uint8_t *pixels) {
    struct embedding *e = &arena->u.run.now.embedding;
    const uint8_t *in = pixels;
    for (int i = 0; i < CONVOLUTIONS; ++i) {
        uint8_t *out = i % 2 == 0 ? e->even : e->odd;
        convolve(&convolutions[i], in, i == 0, out, i + 1 == CONVOLUTIONS ? arena->u.run.x[PREFIX_TOKENS] : NULL);
        in = out;
    }
}
#endif

/* ---- A block */

/* Norm and qkv of every token: bits of queries and keys, popcounts of the Value. Says whether the norms hold. */
static int query_key_value(struct arena *arena, int block) {
    struct block *b = &arena->u.run.now.block;
    int holds = 1;
    for (int token = 0; token < TOKENS; ++token) {
        const uint32_t *weight = qkv_weight[block];
        const int16_t *threshold = qkv_threshold[block];
        holds &= norm_bits(arena->u.run.x[token], norm1_threshold[block], norm1_flip[block], b->bits);
        for (int part = 0; part < 2; ++part) {
            uint32_t *out = part == 0 ? b->queries[token] : b->keys[token];
            for (int head = 0; head < NUM_HEADS; ++head, out += HEAD_WORDS) {
                for (int i = 0; i < HEAD_WORDS; ++i) out[i] = 0;
                for (int c = 0; c < HEAD_DIM; ++c, weight += WIDTH_WORDS) {
                    if (count_differences(b->bits, weight, WIDTH_WORDS) <= *threshold++) set_bit(out, c);
                }
            }
        }
        for (int c = 0; c < EMBED_DIM; ++c, weight += WIDTH_WORDS) {
            b->values[token][c] = (int16_t)count_differences(b->bits, weight, WIDTH_WORDS);
        }
    }
    return holds;
}

static inline float value_of(const struct block *b, int block, int token, int c) {
    return (float)(EMBED_DIM - 2 * b->values[token][c]) * v_scale[block][c] + v_bias[block][c];
}

/* The Value's planes: bits of a channel's tokens, so that they meet the bits of a row of attention. */
static void value_planes(struct block *b, int block) {
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
static void add_bias(float *row, int block, int head, int token) {
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
        float *out = row + PREFIX_TOKENS;
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

static void add_bias(float *row, int block, int head, int token) {
    const uint16_t *from = attention_bias[block] + ((size_t)head * TOKENS + token) * TOKENS;
    for (int j = 0; j < TOKENS; ++j) row[j] = row[j] + half_to_float(from[j]);
}
#endif

/* A row of the attention matrix, into b->row. Returns its largest number. */
static float attention_row(struct block *b, int block, int head, int token) {
    const uint32_t *query = b->queries[token] + head * HEAD_WORDS;
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
static void attention_limits(struct block *b, int block, float *limits) {
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
static inline int sparse_product(const uint32_t *mask, const uint32_t *signs, const uint32_t *members) {
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
static inline int dense_product(const uint32_t *mask, int ones, const uint32_t *signs) {
    return 2 * count_common(mask, signs, TOKEN_WORDS) - ones;
}

/* One token's attention over all heads, into b->bits: what the projection reads. */
static void attend(struct block *b, int block, int token, const float *limits) {
    for (int i = 0; i < WIDTH_WORDS; ++i) b->bits[i] = 0;
    for (int head = 0; head < NUM_HEADS; ++head) {
        int ones[ATTENTION_GROUPS];
        attention_row(b, block, head, token);
        for (int group = 0; group < ATTENTION_GROUPS; ++group) {
            uint32_t *mask = b->masks[group];
            ones[group] = 0;
            for (int i = 0; i < TOKEN_WORDS; ++i) mask[i] = 0;
            for (int j = 0; j < TOKENS; ++j) {
                if (!(b->row[j] > limits[group])) continue;
                set_bit(mask, j);
                ones[group] += 1;
            }
        }
        for (int c = head * HEAD_DIM; c < (head + 1) * HEAD_DIM; ++c) {
            const float *scale = product_scale[block];
            float y = 0.0f;
            for (int group = 0; group < ATTENTION_GROUPS; ++group) {
                const uint32_t *mask = b->masks[group];
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
static void project(const uint32_t *bits, int block, float *x) {
    const uint32_t *weight = proj_weight[block];
    for (int o = 0; o < EMBED_DIM; ++o, weight += WIDTH_WORDS) {
        const int dot = EMBED_DIM - 2 * count_differences(bits, weight, WIDTH_WORDS);
        x[o] = x[o] + ((float)dot * proj_scale[block][o] + proj_bias[block][o]);
    }
}

/* Says whether the norm holds. */
static int mlp(struct block *b, int block, float *x) {
    const uint32_t *weight = fc1_weight[block];
    const int16_t *interval = fc1_zero_interval[block];
    const int holds = norm_bits(x, norm2_threshold[block], norm2_flip[block], b->bits);
    int ones = 0;
    for (int i = 0; i < HIDDEN_WORDS; ++i) b->hidden[i] = 0;
    for (int o = 0; o < MLP_HIDDEN; ++o, weight += WIDTH_WORDS, interval += 2) {
        const int count = count_differences(b->bits, weight, WIDTH_WORDS);
        if (interval[0] <= count && count <= interval[1]) continue;
        set_bit(b->hidden, o);
        ones += 1;
    }
    weight = fc2_weight[block]; /* of {0, 1} and ±1 */
    for (int o = 0; o < EMBED_DIM; ++o, weight += HIDDEN_WORDS) {
        const int dot = 2 * count_common(b->hidden, weight, HIDDEN_WORDS) - ones;
        x[o] = x[o] + ((float)dot * fc2_scale[block][o] + fc2_bias[block][o]);
    }
    return holds;
}

/* Behind the last attention only tokens that a head reads are computed. Says whether the norms hold. */
static int run_block(struct arena *arena, int block) {
    struct block *b = &arena->u.run.now.block;
    const int is_last = block + 1 == DEPTH;
    const int first = is_last ? READ_FIRST : 0, end = is_last ? READ_END : TOKENS;
    float limits[ATTENTION_GROUPS];
    int holds = query_key_value(arena, block);
    if (!holds) return 0; /* and no NaN goes on from here */
    value_planes(b, block);
    attention_limits(b, block, limits);
    for (int token = first; token < end; ++token) {
        float *x = arena->u.run.x[token];
        attend(b, block, token, limits);
        project(b->bits, block, x);
        holds &= mlp(b, block, x);
    }
    return holds;
}

/* ---- The heads */

/* y = (x − mean)·factor·weight + bias; y may be x. Says whether the norm holds. */
static int final_norm(const float *x, float *y) {
    float mean;
    const float factor = norm_factor(x, &mean);
    for (int i = 0; i < EMBED_DIM; ++i) y[i] = (((x[i] - mean) * factor) * norm_weight[i]) + norm_bias[i];
    return norm_holds(factor);
}

#if POOL_MEAN && PATCHES > 1
static void mean_of_patches(struct arena *arena, float *mean) {
    const float share = 1.0f / (float)PATCHES;
    for (int c = 0; c < EMBED_DIM; ++c) {
        mean[c] = sum16(&arena->u.run.x[PREFIX_TOKENS][c], PATCHES, EMBED_DIM) * share;
    }
}
#endif

/* What head `head` reads, normalised, into row. Says whether the norms hold. */
static int head_input(struct arena *arena, int head, float *row) {
#if POOL_MEAN && PATCHES > 1 && NORM_BEFORE_POOL
    int holds = 1;
    for (int token = PREFIX_TOKENS; token < TOKENS; ++token) {
        holds &= final_norm(arena->u.run.x[token], arena->u.run.x[token]);
    }
    (void)head;
    mean_of_patches(arena, row);
    return holds;
#elif POOL_MEAN && PATCHES > 1
    (void)head;
    mean_of_patches(arena, row);
    return final_norm(row, row);
#else
    return final_norm(arena->u.run.x[READ_FIRST + head], row);
#endif
}

static int classify(struct arena *arena, float *logits) {
    struct classifying *now = &arena->u.run.now.classifying;
    int holds = 1;
    for (int head = 0; head < NUM_HEADS_OUT; ++head) {
        const int8_t *weight = head_weight[head];
        holds &= head_input(arena, head, now->row);
        for (int c = 0; c < EMBED_DIM; ++c) {
            now->levels[c] = signed_level_of((now->row[c] + head_shift[head][c]) / head_input_scale[head]);
        }
        for (int k = 0; k < NUM_CLASSES; ++k) {
            int32_t sum = 0;
            float logit;
            for (int c = 0; c < EMBED_DIM; ++c) sum += now->levels[c] * *weight++;
            logit = (float)sum * head_scale[head][k] + head_bias[head][k];
            logits[k] = head == 0 ? logit : (logits[k] + logit) * 0.5f;
        }
    }
    for (int k = 0; k < NUM_CLASSES; ++k) holds &= logits[k] >= -FLT_MAX && logits[k] <= FLT_MAX;
    return holds;
}

static int run(struct arena *arena, const uint8_t *pixels, float *logits) {
    int holds = 1;
    embed(arena, pixels);
#if PREFIX_TOKENS > 0
    memcpy(arena->u.run.x, prefix_tokens, sizeof prefix_tokens);
#endif
    for (int block = 0; holds && block < DEPTH; ++block) holds = run_block(arena, block);
    if (holds && classify(arena, logits)) return MODEL_OK;
    for (int k = 0; k < NUM_CLASSES; ++k) logits[k] = NAN;
    return MODEL_NOT_FINITE;
}

/* ---- From a picture to pixels: Pillow's arithmetic, horizontally first */

/* A picture as it stands upright: pixel (x, y) is at origin + x·across + y·down. */
struct upright {
    const uint8_t *origin;
    ptrdiff_t across, down;
    int width, height, format;
};

static struct upright turned(const uint8_t *pixels, int width, int height, size_t stride, int format, int orientation) {
    const ptrdiff_t pixel = format, row = (ptrdiff_t)stride;
    const ptrdiff_t right = (width - 1) * pixel, bottom = (height - 1) * row;
    struct upright u = {NULL, 0, 0, 0, 0, 0};
    const int is_mirrored = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const int is_flipped = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const ptrdiff_t along = is_mirrored ? -pixel : pixel, below = is_flipped ? -row : row;
    const int is_lying = orientation >= 5;
    u.origin = pixels + (is_mirrored ? right : 0) + (is_flipped ? bottom : 0);
    u.across = is_lying ? below : along;
    u.down = is_lying ? along : below;
    u.width = is_lying ? height : width;
    u.height = is_lying ? width : height;
    u.format = format;
    return u;
}

/* A channel laid on white: value·opacity + 255·(1 − opacity), rounded as Pillow does. */
static inline uint8_t on_white(int value, int opacity) {
    const int sum = value * opacity + 255 * (255 - opacity) + 128;
    return (uint8_t)(((sum >> 8) + sum) >> 8);
}

static inline void read_pixel(const struct upright *u, const uint8_t *pixel, uint8_t *rgb) {
    for (int c = 0; c < 3; ++c) {
        rgb[c] = u->format == MODEL_GREY ? pixel[0] : u->format == MODEL_RGB ? pixel[c] : on_white(pixel[c], pixel[3]);
    }
}

/* Line y as RGB: where it lies, or copied into buffer. */
#if FILTER_SUPPORT > 0
static inline const uint8_t *read_line(const struct upright *u, int y, uint8_t *buffer) {
    const uint8_t *from = u->origin + y * u->down;
    if (u->format == MODEL_RGB && u->across == 3) return from;
    for (int x = 0; x < u->width; ++x) read_pixel(u, from + x * u->across, buffer + 3 * x);
    return buffer;
}
#endif

/* One axis of the part of a picture that is kept. */
struct axis {
    double scale, support, factor;
    float begin;
    int pixels;
};

static struct axis axis_of(int pixels, float begin, float end, int outputs) {
    struct axis a;
    double widening;
    a.scale = (double)(end - begin) / outputs;
    widening = a.scale < 1.0 ? 1.0 : a.scale;
    a.support = FILTER_SUPPORT * widening;
    a.factor = 1.0 / widening;
    a.begin = begin;
    a.pixels = pixels;
    return a;
}

#if FILTER_SUPPORT == 0
/* Each output takes one pixel. Sums of steps round, as Pillow's do; behind the last pixel there is black. */
static void resize(struct arena *arena, const struct upright *u, const struct axis *across, const struct axis *down) {
    uint8_t *out = arena->u.run.now.embedding.pixels;
    double y = down->begin + down->scale * 0.5;
    for (int row = 0; row < IMAGE_HEIGHT; ++row, y += down->scale) {
        double x = across->begin + across->scale * 0.5;
        for (int column = 0; column < IMAGE_WIDTH; ++column, x += across->scale, out += 3) {
            out[0] = out[1] = out[2] = 0;
            if (y < down->pixels && x < across->pixels) {
                read_pixel(u, u->origin + (int)y * u->down + (int)x * u->across, out);
            }
        }
    }
}
#else
static inline double filter_at(double x) {
    if (x < 0.0) x = -x;
#if FILTER_SUPPORT == 1
    return x < 1.0 ? 1.0 - x : 0.0;
#else
    {
        const double a = -0.5;
        if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
        return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
    }
#endif
}

static inline double centre_of(const struct axis *a, int output) { return a->begin + (output + 0.5) * a->scale; }

static inline double weight_of(const struct axis *a, double centre, int pixel) {
    return filter_at((pixel - centre + 0.5) * a->factor);
}

static struct window window_of(const struct axis *a, int output) {
    const double centre = centre_of(a, output);
    struct window w;
    w.first = (int)(centre - a->support + 0.5);
    if (w.first > a->pixels - 1) w.first = a->pixels - 1;
    if (w.first < 0) w.first = 0;
    w.end = (int)(centre + a->support + 0.5);
    if (w.end > a->pixels) w.end = a->pixels;
    w.sum = 0.0;
    for (int pixel = w.first; pixel < w.end; ++pixel) w.sum += weight_of(a, centre, pixel);
    return w;
}

/* A pixel's share of an output; 2^22 stands for 1. */
static int32_t fixed_weight(const struct axis *a, int output, const struct window *w, int pixel) {
    const double exact = weight_of(a, centre_of(a, output), pixel);
    const double share = w->sum != 0.0 ? exact / w->sum : exact;
    return (int32_t)(share < 0 ? -0.5 + share * 4194304.0 : 0.5 + share * 4194304.0);
}

/* An arithmetic shift, whatever the compiler makes of >> for negative numbers; then the nearest grey level. */
static inline uint8_t grey_level(int32_t sum) {
    if (sum < 0) return 0;
    sum >>= 22;
    return (uint8_t)(sum > 255 ? 255 : sum);
}

static void resize_line(const struct resizing *r, const uint8_t *in, uint8_t *out) {
    const int32_t *weight = r->weights;
    for (int o = 0; o < IMAGE_WIDTH; ++o, out += 3) {
        const uint8_t *pixel = in + 3 * (ptrdiff_t)r->first[o];
        int32_t red = 1 << 21, green = 1 << 21, blue = 1 << 21;
        for (int i = 0; i < r->taps[o]; ++i, pixel += 3, ++weight) {
            red += pixel[0] * *weight;
            green += pixel[1] * *weight;
            blue += pixel[2] * *weight;
        }
        out[0] = grey_level(red);
        out[1] = grey_level(green);
        out[2] = grey_level(blue);
    }
}

/* Each line of the picture is resized once and added to all lines of the result that it is part of. */
static void resize(struct arena *arena, const struct upright *u, const struct axis *across, const struct axis *down) {
    struct resizing *r = &arena->u.resizing;
    uint8_t *out = arena->u.run.now.embedding.pixels; /* where r->sums begins */
    int32_t *weight = r->weights;
    int open = 0;
    for (int o = 0; o < IMAGE_WIDTH; ++o) {
        const struct window w = window_of(across, o);
        r->first[o] = w.first;
        r->taps[o] = w.end > w.first ? w.end - w.first : 0;
        for (int pixel = w.first; pixel < w.end; ++pixel) *weight++ = fixed_weight(across, o, &w, pixel);
    }
    for (int o = 0; o < IMAGE_HEIGHT; ++o) r->down[o] = window_of(down, o);
    for (int i = 0; i < PIXEL_BYTES; ++i) r->sums[i] = 1 << 21;
    for (int y = r->down[0].first; y < r->down[IMAGE_HEIGHT - 1].end; ++y) {
        resize_line(r, read_line(u, y, r->source), r->line);
        while (open < IMAGE_HEIGHT && r->down[open].end <= y) ++open;
        for (int o = open; o < IMAGE_HEIGHT && r->down[o].first <= y; ++o) {
            int32_t *sum = r->sums + (ptrdiff_t)o * IMAGE_WIDTH * 3;
            const int32_t share = fixed_weight(down, o, &r->down[o], y);
            for (int i = 0; i < 3 * IMAGE_WIDTH; ++i) sum[i] += r->line[i] * share;
        }
    }
    for (int i = 0; i < PIXEL_BYTES; ++i) out[i] = grey_level(r->sums[i]);
}
#endif

/* ---- What model.h offers */

static struct arena *arena_of(model_arena *arena) { return (struct arena *)(void *)arena; }

int model_logits(const uint8_t *pixels, model_arena *arena, float *logits) {
    return run(arena_of(arena), pixels, logits);
}

const uint8_t *model_prepare(const uint8_t *pixels, int width, int height, size_t stride, int format, int orientation,
                             model_arena *arena) {
    struct upright u;
    struct axis across, down;
    float left = 0.0f, top = 0.0f, right, bottom;
    if (!pixels || width < 1 || height < 1 || orientation < 1 || orientation > 8) return NULL;
    if (format != MODEL_GREY && format != MODEL_RGB && format != MODEL_RGBA) return NULL;
    if (stride == 0) stride = (size_t)width * (size_t)format;
    if ((size_t)width > PTRDIFF_MAX / 4 / (size_t)height || stride < (size_t)width * (size_t)format) return NULL;
    if (stride > PTRDIFF_MAX / (size_t)height) return NULL;
    u = turned(pixels, width, height, stride, format, orientation);
    if (u.width > MODEL_MAX_PICTURE_WIDTH) return NULL;
    right = (float)u.width;
    bottom = (float)u.height;
#if KEEP_MIDDLE
    {
        const double w = u.width, h = u.height, high = IMAGE_HEIGHT / h, wide = IMAGE_WIDTH / w;
        const double factor = (high > wide ? high : wide) / CROP_RATIO;
        const double height_at = IMAGE_HEIGHT / factor, width_at = IMAGE_WIDTH / factor;
        const double kept_height = height_at < h ? height_at : h, kept_width = width_at < w ? width_at : w;
        const double x = (w - kept_width) / 2, y = (h - kept_height) / 2;
        left = (float)x;
        top = (float)y;
        right = (float)(x + kept_width < w ? x + kept_width : w);
        bottom = (float)(y + kept_height < h ? y + kept_height : h);
    }
#endif
    across = axis_of(u.width, left, right, IMAGE_WIDTH);
    down = axis_of(u.height, top, bottom, IMAGE_HEIGHT);
    resize(arena_of(arena), &u, &across, &down);
    return arena_of(arena)->u.run.now.embedding.pixels;
}

int model_picture_logits(const uint8_t *pixels, int width, int height, size_t stride, int format, int orientation,
                         model_arena *arena, float *logits) {
    const uint8_t *prepared = model_prepare(pixels, width, height, stride, format, orientation, arena);
    return prepared ? run(arena_of(arena), prepared, logits) : MODEL_NO_PICTURE;
}

int model_best(const float *logits) {
    int best = 0;
    for (int k = 1; k < NUM_CLASSES; ++k) {
        if (logits[k] > logits[best]) best = k;
    }
    return best;
}

void model_probabilities(const float *logits, double *probabilities) {
    const double largest = logits[model_best(logits)] / TEMPERATURE;
    double sum = 0.0;
    for (int k = 0; k < NUM_CLASSES; ++k) {
        probabilities[k] = exp(logits[k] / TEMPERATURE - largest);
        sum += probabilities[k];
    }
    for (int k = 0; k < NUM_CLASSES; ++k) probabilities[k] /= sum;
}

int model_is_unknown(const float *logits) {
#if UNKNOWN_SCORE == SCORE_NONE
    (void)logits;
    return -1;
#else
    double score = logits[model_best(logits)];
#if UNKNOWN_SCORE == SCORE_ENERGY
    const double largest = score;
    double sum = 0.0;
    for (int k = 0; k < NUM_CLASSES; ++k) sum += exp((logits[k] - largest) / TEMPERATURE);
    score = largest + TEMPERATURE * log(sum);
#endif
    return score < UNKNOWN_THRESHOLD;
#endif
}

const char *model_class_name(int index) { return index < 0 || index >= NUM_CLASSES ? NULL : class_names[index]; }

int model_check(model_arena *arena) {
    struct arena *a = arena_of(arena);
    uint8_t *pixels = a->u.run.now.embedding.pixels;
    float *logits = a->u.run.now.classifying.logits;
    uint32_t noise = 1, sum = 2166136261u;
    for (int i = 0; i < PIXEL_BYTES; ++i) {
        noise = noise * 1664525u + 1013904223u;
        pixels[i] = (uint8_t)(noise >> 24);
    }
    if (run(a, pixels, logits) != MODEL_OK) return MODEL_NOT_FINITE;
    for (int k = 0; k < NUM_CLASSES; ++k) {
        uint32_t bits;
        memcpy(&bits, &logits[k], sizeof bits);
        for (int shift = 0; shift < 32; shift += 8) sum = (sum ^ ((bits >> shift) & 255u)) * 16777619u;
    }
    return sum == CHECK_SUM ? MODEL_OK : MODEL_NOT_EXACT;
}
