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
#if defined(__ARM_FEATURE_SIMD32)
#include <arm_acle.h>
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
#define PATCH_AREA (PATCH_HEIGHT * PATCH_WIDTH)
#define PATCH_TAPS ((PATCH_AREA + 3) / 4 * 4)
#define PIXEL_BYTES (IMAGE_HEIGHT * IMAGE_WIDTH * 3)

/* ---- Memory: what is needed at the same time lies side by side, all else shares its place. */

#if FILTER_SUPPORT > 0
struct window {
    int32_t first, end; /* pixels of the picture that an output reads */
    double sum;         /* of their weights */
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
    uint32_t even[EVEN_WORDS], odd[ODD_WORDS]; /* levels between convolutions: bytes, or bits */
#else
    int16_t taps[3][PATCH_TAPS]; /* of a patch, colour by colour */
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
