/* ---- Bits */

#if defined(__POPCNT__) || defined(__aarch64__) || defined(__riscv_zbb)
static inline int count_bits(uint32_t x) {
    return __builtin_popcount(x);
}

/* popcount(a ^ b), or of a & b */
static inline int count_pairs(const uint32_t* a, const uint32_t* b, int words, int common) {
    int count = 0;
    for (int i = 0; i < words; ++i) count += count_bits(common ? a[i] & b[i] : a[i] ^ b[i]);
    return count;
}
#else
/* Masks that stay in registers: Thumb's "and" either shifts a register or takes a constant, but not both. */
struct masks {
    uint32_t twos, nibbles, bytes;
};

static inline struct masks count_masks(void) {
    struct masks m = {0x55555555u, 0x33333333u, 0x0F0F0F0Fu};
#if defined(__GNUC__) && defined(__thumb2__)
    __asm__("" : "+r"(m.twos));
    __asm__("" : "+r"(m.nibbles));
    __asm__("" : "+r"(m.bytes));
#endif
    return m;
}

/* Ones in groups of two bits, of four, and in bytes. */
static inline uint32_t count_twos(struct masks m, uint32_t x) {
    return x - (m.twos & (x >> 1));
}

static inline uint32_t count_nibbles(struct masks m, uint32_t twos) {
    return (m.nibbles & twos) + (m.nibbles & (twos >> 2));
}

static inline uint32_t count_bytes(struct masks m, uint32_t nibbles) {
    return (m.bytes & nibbles) + (m.bytes & (nibbles >> 4));
}

/* Those of three words: two bits have room for 3, so the third word's are halved and added to the others'. */
static inline uint32_t count_three(struct masks m, uint32_t a, uint32_t b, uint32_t c) {
    a = count_twos(m, a) + (m.twos & c);
    b = count_twos(m, b) + (m.twos & (c >> 1));
    return count_bytes(m, count_nibbles(m, a) + count_nibbles(m, b));
}

static inline uint32_t count_one(struct masks m, uint32_t x) {
    x = count_nibbles(m, count_twos(m, x));
    return (x + (x >> 4)) & m.bytes;
}

/* The sum of four bytes, of at most so many words. */
static inline int sum_bytes(uint32_t bytes, int words) {
#if defined(__ARM_FEATURE_SIMD32)
    (void)words;
    return (int)__usada8(bytes, 0, 0);
#else
    if (words < 8) return (int)((bytes * 0x01010101u) >> 24);
    bytes = (bytes & 0x00FF00FFu) + ((bytes >> 8) & 0x00FF00FFu);
    return (int)((bytes & 0xFFFFu) + (bytes >> 16));
#endif
}

static inline int count_bits(uint32_t x) {
    return sum_bytes(count_one(count_masks(), x), 1);
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

#define MOST_WORDS 30 /* whose ones a byte has room for */
#define PAIR(i) (common ? a[i] & b[i] : a[i] ^ b[i])
/* popcount(a ^ b), or of a & b */
static inline int count_pairs(const uint32_t* a, const uint32_t* b, int words, int common) {
    const struct masks m = count_masks();
    int count = 0, i = 0;
#if defined(__ARM_FEATURE_MVE)
    for (; i + 4 <= words; i += 4) {
        const uint32x4_t x = vld1q_u32(a + i), y = vld1q_u32(b + i);
        count = add_four(count, common ? vandq_u32(x, y) : veorq_u32(x, y));
    }
#endif
    while (i < words) {
        const int rest = words - i < MOST_WORDS ? words - i : MOST_WORDS, end = i + rest;
        uint32_t bytes = 0;
        for (; i + 3 <= end; i += 3) bytes += count_three(m, PAIR(i), PAIR(i + 1), PAIR(i + 2));
        for (; i < end; ++i) bytes += count_one(m, PAIR(i));
        count += sum_bytes(bytes, rest);
    }
    return count;
}
#undef PAIR
#endif

/* popcount(a ^ b) */
static inline int count_differences(const uint32_t* a, const uint32_t* b, int words) {
    return count_pairs(a, b, words, 0);
}

/* popcount(a & b) */
static inline int count_common(const uint32_t* a, const uint32_t* b, int words) {
    return count_pairs(a, b, words, 1);
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
