/* ---- Bits */

#if defined(__POPCNT__) || defined(__aarch64__) || defined(__riscv_zbb)
static inline int count_bits(uint32_t x) {
    return __builtin_popcount(x);
}
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
static inline int count_differences(const uint32_t* a, const uint32_t* b, int words) {
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
static inline int count_common(const uint32_t* a, const uint32_t* b, int words) {
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

static inline void set_bit(uint32_t* words, int index) {
    words[index / 32] |= (uint32_t)1 << (index % 32);
}

/* ---- Floats */

static inline float fold16(float* lane) {
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
    }
    return lane[0];
}

/* Sum of n numbers, `step` apart. */
static float sum16(const float* x, int n, int step) {
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
static inline int norm_holds(float factor) {
    return factor > 0.0f && factor <= FLT_MAX;
}

/* 1/sqrt(variance + eps) of a row, and its mean. */
static float norm_factor(const float* x, float* mean) {
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
static int norm_bits(const float* x, const float* threshold, const uint32_t* flip, uint32_t* bits) {
    float mean;
    const float factor = norm_factor(x, &mean);
    for (int i = 0; i < WIDTH_WORDS; ++i) bits[i] = flip[i];
    for (int i = 0; i < EMBED_DIM; ++i) {
        bits[i / 32] ^= (uint32_t)((x[i] - mean) * factor >= threshold[i]) << (i % 32);
    }
    return norm_holds(factor);
}
