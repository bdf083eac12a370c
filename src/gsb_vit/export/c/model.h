/* A one-bit vision transformer in one C file, made by gsb-vit {{version}} (MIT licence, the gsb-vit authors).
 *
 * C99 and <stdint.h>, <stddef.h>, <float.h>, <limits.h>, <string.h> (memcpy), <math.h> (exp, log; logits need neither);
 * where a processor has Helium, its <arm_mve.h>. Nothing is allocated and no state is kept: one arena serves any number
 * of pictures, in turn. Weights are constants.
 *
 *   static model_arena arena;
 *   float logits[MODEL_CLASSES];
 *   if (model_picture_logits(rgb, width, height, 0, MODEL_RGB, 1, &arena, logits) == MODEL_OK)
 *       puts(model_class_name(model_best(logits)));
 *
 * Logits equal those of gsb-vit to the last bit. Compile model.c with -ffp-contract=off and without -ffast-math;
 * model_check() tells whether compiler and processor keep to that.
 */
#ifndef {{guard}}
#define {{guard}}

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MODEL_NAME {{name}}
#define MODEL_HEIGHT {{height}} /* of the pixels that model_logits reads */
#define MODEL_WIDTH {{width}}
#define MODEL_CLASSES {{classes}}

/* Bytes. Flash: weights, tables and names; the code comes on top. Stack: what the functions below take at most,
 * counted by gcc on x86-64 and Cortex-M from -O0 to -O3; exp and log of the C library come on top. */
#define MODEL_FLASH_BYTES {{flash}}
#define MODEL_STACK_BYTES {{stack}}

/* The widest picture that model_prepare and model_picture_logits take, once it is upright. The height has no limit.
 * Resizing works in the arena, too. To change it, define it for all files that include this one. */
#ifndef MODEL_MAX_PICTURE_WIDTH
#define MODEL_MAX_PICTURE_WIDTH {{max_width}}
#endif
#define MODEL_MOST_TAPS {{most_taps}}
#define MODEL_RESIZE_BYTES {{resize_bytes}}
#define MODEL_RUN_BYTES {{run_bytes}}
#define MODEL_ARENA_BYTES (MODEL_RUN_BYTES > MODEL_RESIZE_BYTES ? MODEL_RUN_BYTES : MODEL_RESIZE_BYTES)

/* Working memory. Its content means nothing between two calls. */
typedef union model_arena {
    double alignment;
    unsigned char bytes[MODEL_ARENA_BYTES];
} model_arena;

enum {
    MODEL_OK = 0,
    MODEL_NOT_FINITE = -1, /* the model's numbers overflow on this picture; logits are NaN */
    MODEL_NO_PICTURE = -2, /* what model_prepare refuses */
    MODEL_NOT_EXACT = -3   /* of model_check */
};

enum { MODEL_GREY = 1, MODEL_RGB = 3, MODEL_RGBA = 4 }; /* how a pixel is stored: its bytes */

/* Classify pixels (MODEL_HEIGHT, MODEL_WIDTH, 3), RGB, that have the model's size: logits (MODEL_CLASSES). */
int model_logits(const uint8_t* pixels, model_arena* arena, float* logits);

/* Classify a picture of any size: {{preparation}}.
 *
 * pixels: height rows of width pixels, 8 bits a channel, `stride` bytes from a row to the next (0: width times
 * format). orientation is the number of EXIF's tag 274, 1 … 8; 1 is upright. RGBA is laid on white. */
int model_picture_logits(const uint8_t* pixels, int width, int height, size_t stride, int format, int orientation,
                         model_arena* arena, float* logits);

/* Only make the pixels that model_logits takes. They lie in the arena, and model_logits may read them there. NULL: no
 * picture, an unknown format or orientation, a stride that is too short, or more columns than MODEL_MAX_PICTURE_WIDTH. */
const uint8_t* model_prepare(const uint8_t* pixels, int width, int height, size_t stride, int format, int orientation,
                             model_arena* arena);

/* The class with the largest logit, the first of equals. */
int model_best(const float* logits);

/* softmax(logits / temperature), in double; they sum to 1. The last bits depend on exp of the C library. */
void model_probabilities(const float* logits, double* probabilities);

/* Is the picture with these logits none of the classes? 1: yes, 0: no, -1: the model has no threshold. */
int model_is_unknown(const float* logits);

/* UTF-8; NULL where there is no such class. */
const char* model_class_name(int index);

/* Classify a picture of noise and compare a sum of the logits' bits with that of gsb-vit. MODEL_NOT_EXACT: compiler
 * options, the compiler, the processor or its floating-point modes change results. */
int model_check(model_arena* arena);

#ifdef __cplusplus
}
#endif

#endif
