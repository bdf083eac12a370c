/* ---- From pixels to tokens */

#if CONVOLUTIONS == 0
#if defined(__GNUC__)
#define APART __attribute__((noinline)) /* with all registers for itself */
#else
#define APART
#endif

#if defined(__ARM_FEATURE_MVE)
#define PLACE_OF(tap) (tap)

/* Σ taps·weight: eight a time. */
APART static int32_t dot(const int16_t* taps, const int8_t* weight, int count) {
    int32_t sum = 0;
    for (int i = 0; i < count / 8 * 8; i += 8) {
        sum = vmladavaq_s16(sum, vldrhq_s16(taps + i), vldrbq_s16(weight + i));
    }
    if (count % 8 != 0) {
        const int i = count / 8 * 8;
        const mve_pred16_t real = vctp16q((uint32_t)(count % 8));
        sum = vmladavaq_s16(sum, vldrhq_z_s16(taps + i, real), vldrbq_z_s16(weight + i, real));
    }
    return sum;
}
#elif defined(__ARM_FEATURE_SIMD32)
/* Two a time, so that bytes 0 and 2 of a word of weights come first, 1 and 3 behind them. */
#define PLACE_OF(tap) ((tap) / 4 * 4 + (((tap) % 4 * 2) | ((tap) % 4 / 2)) % 4)

APART static int32_t dot(const int16_t* taps, const int8_t* weight, int count) {
    int32_t sum = 0;
    for (int i = 0; i < count / 4 * 4; i += 4) {
        uint32_t four;
        int32_t even, odd;
        memcpy(&four, weight + i, sizeof four);
        memcpy(&even, taps + i, sizeof even);
        memcpy(&odd, taps + i + 2, sizeof odd);
        sum = __smlad(even, __sxtb16((int32_t)four), sum);
        sum = __smlad(odd, __sxtb16((int32_t)(four >> 8)), sum);
    }
    for (int i = count / 4 * 4; i < count; ++i) sum += taps[PLACE_OF(i)] * weight[i];
    return sum;
}
#else
#define PLACE_OF(tap) (tap)

static inline int32_t dot(const int16_t* taps, const int8_t* weight, int count) {
    int32_t sum = 0;
    for (int i = 0; i < count; ++i) sum += taps[i] * weight[i];
    return sum;
}
#endif

static void embed(struct arena* arena, const uint8_t* pixels) {
    int16_t (*taps)[PATCH_TAPS] = arena->u.run.now.embedding.taps;
    for (int patch = 0; patch < PATCHES; ++patch) {
        const uint8_t* corner =
            pixels + ((size_t)(patch / GRID_WIDTH) * PATCH_HEIGHT * IMAGE_WIDTH + patch % GRID_WIDTH * PATCH_WIDTH) * 3;
        const int8_t* weight = patch_weight;
        float* x = arena->u.run.x[PREFIX_TOKENS + patch];
        for (int row = 0; row < PATCH_HEIGHT; ++row) {
            for (int column = 0; column < PATCH_WIDTH; ++column) {
                const uint8_t* pixel = corner + ((size_t)row * IMAGE_WIDTH + column) * 3;
                const int place = PLACE_OF(row * PATCH_WIDTH + column);
                for (int colour = 0; colour < 3; ++colour) taps[colour][place] = pixel[colour];
            }
        }
        for (int o = 0; o < EMBED_DIM; ++o) {
            float part[3];
            for (int colour = 0; colour < 3; ++colour, weight += PATCH_AREA) {
                part[colour] = (float)dot(taps[colour], weight, PATCH_AREA) * patch_scale[3 * o + colour];
            }
            x[o] = ((part[0] + part[1]) + part[2]) + position[(size_t)patch * EMBED_DIM + o];
        }
    }
}
#else
/* Output o of a place as a level; those of one bit begin with o = 0. */
static inline void put_level(const struct convolution* c, void* levels, int place, int o, float y) {
#if ONE_BIT_LEVELS
    if (c->gives_bits) {
        uint32_t* words = (uint32_t*)levels + (size_t)place * WORDS(c->outputs);
        if (o % 32 == 0) words[o / 32] = 0;
        if (y > 0.5f) set_bit(words, o);
        return;
    }
#endif
    ((uint8_t*)levels)[(size_t)place * (size_t)c->outputs + o] = level_of(y);
}

#if ONE_BIT_LEVELS
/* Σ ±level of the window at (y, column): one-bit levels and weights, tap by tap in whole words. `ones` are the window's. */
static int32_t sum_of_bits(const struct convolution* c, const uint32_t* in, const uint32_t* weight, int y, int column,
                           int ones) {
    const int words = WORDS(c->inputs), top = y == 0, left = column == 0;
    int common = 0;
    for (int row = top; row < 3; ++row) {
        const size_t place = (size_t)(2 * y + row - 1) * (size_t)(2 * c->width) + (size_t)(2 * column + left - 1);
        common += count_common(in + place * (size_t)words, weight + (3 * row + left) * words, (3 - left) * words);
    }
    return 2 * common - ones;
}

static int ones_of_window(const struct convolution* c, const uint32_t* in, int y, int column) {
    const int words = WORDS(c->inputs), top = y == 0, left = column == 0;
    int ones = 0;
    for (int row = top; row < 3; ++row) {
        const size_t place = (size_t)(2 * y + row - 1) * (size_t)(2 * c->width) + (size_t)(2 * column + left - 1);
        const uint32_t* from = in + place * (size_t)words;
        for (int i = 0; i < (3 - left) * words; ++i) ones += count_bits(from[i]);
    }
    return ones;
}

static void convolve_bits(const struct convolution* c, const uint32_t* in, void* levels, float* x) {
    for (int place = 0; place < c->height * c->width; ++place) {
        const int y = place / c->width, column = place % c->width;
        const float* offset = c->offset + (x ? (size_t)place * (size_t)c->outputs : (size_t)0);
        const uint32_t* weight = c->bits;
        const int ones = ones_of_window(c, in, y, column);
        for (int o = 0; o < c->outputs; ++o, weight += 9 * WORDS(c->inputs)) {
            const float out = (float)sum_of_bits(c, in, weight, y, column, ones) * c->scale[o] + offset[o];
            if (x) {
                *x++ = out;
            } else {
                put_level(c, levels, place, o, out);
            }
        }
    }
}
#endif

/* 3 × 3, stride 2, one line and column of zeros before the first. Either levels or x receives the outputs. */
static void convolve(const struct convolution* c, const uint8_t* in, int first, void* levels, float* x) {
    const int height = c->height, width = c->width;
    for (int place = 0; place < height * width; ++place) {
        const int y = place / width, column = place % width;
        const int top = y == 0, left = column == 0;
        const float* offset = c->offset + (first ? (size_t)(2 * top + left) * c->outputs
                                           : x   ? (size_t)place * c->outputs
                                                 : (size_t)0);
        const int8_t* weight = c->weight;
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
                put_level(c, levels, place, o, out);
            }
        }
    }
}

static void embed(struct arena* arena, const uint8_t* pixels) {
    struct embedding* e = &arena->u.run.now.embedding;
    const void* in = pixels;
    for (int i = 0; i < CONVOLUTIONS; ++i) {
        const struct convolution* c = &convolutions[i];
        uint32_t* out = i % 2 == 0 ? e->even : e->odd;
        float* x = i + 1 == CONVOLUTIONS ? arena->u.run.x[PREFIX_TOKENS] : NULL;
#if ONE_BIT_LEVELS
        if (c->bits) {
            convolve_bits(c, (const uint32_t*)in, out, x);
        } else {
            convolve(c, (const uint8_t*)in, i == 0, out, x);
        }
#else
        convolve(c, (const uint8_t*)in, i == 0, out, x);
#endif
        in = out;
    }
}
#endif
