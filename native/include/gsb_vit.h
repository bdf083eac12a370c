/* gsb-vit: run a packed one-bit vision transformer. C API, no Python, no PyTorch.
 *
 * Every function may be called from any thread; calls on one model wait for each other. A packed file is read whole
 * and its checksums are verified; what becomes of it afterwards changes nothing.
 */
#ifndef GSB_VIT_H
#define GSB_VIT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gsb_vit_model gsb_vit_model;

typedef struct gsb_vit_info {
    int height, width; /* of the pictures gsb_vit_predict reads, in pixels */
    int classes;       /* numbers a picture gets */
    int tokens;        /* N, prefix tokens and patches */
    int embed_dim, depth, num_heads, mlp_hidden;
    int threads;         /* that predict uses */
    const char* backend; /* the instruction set that runs: "portable", "avx2", "avx512", "neon", "neon_dot" or "wasm" */
    const char* name;    /* of the architecture; lives as long as the model */
    int attention_groups; /* A, binary masks of an attention head */
} gsb_vit_info;

/* How logits become an answer: from the packed file, fitted on pictures that were not trained on. */
typedef struct gsb_vit_decision {
    double temperature;      /* that logits are divided by before the softmax; 1 where the file holds none */
    int has_unknown;         /* 1 where the file holds a threshold for pictures of no class, else 0 */
    double false_alarm_rate; /* the share of known pictures that the threshold was set to call unknown */
} gsb_vit_decision;

/* One stage of the forward pass, summed over the calls since profiling was switched on. */
typedef struct gsb_vit_stage {
    const char* name;
    double seconds;   /* busy time, summed over threads */
    double bit_macs;  /* one-bit multiply-adds done; 0 for stages that multiply no bits */
    double byte_macs; /* eight-bit multiply-adds done */
} gsb_vit_stage;

/* Load a packed file. threads: 0 uses every core this process may run on. backend: NULL takes the fastest there is, or
 * the one that the environment variable GSB_VIT_BACKEND names. Returns NULL where it fails; gsb_vit_error() says why.
 */
gsb_vit_model* gsb_vit_load(const char* path, int threads, const char* backend);

/* The same with a limit on the bytes that the loaded model may take: its file, its weights and what predict works with.
 * A model that would take more is refused before that memory is asked for. 0: what the environment variable
 * GSB_VIT_MAX_MEMORY says, or 1 GiB, as gsb_vit_load. */
gsb_vit_model* gsb_vit_load_within(const char* path, int threads, const char* backend, size_t max_memory);

/* The same from a file's bytes, which are copied. */
gsb_vit_model* gsb_vit_load_bytes(const uint8_t* bytes, size_t size, int threads, const char* backend);

void gsb_vit_free(gsb_vit_model* model);

gsb_vit_info gsb_vit_get_info(const gsb_vit_model* model);

/* The name of class index, UTF-8, or NULL where there is none. Lives as long as the model. */
const char* gsb_vit_class_name(const gsb_vit_model* model, int index);

/* Classify count pictures: pixels is (count, height, width, 3) RGB bytes, logits receives (count, classes). Returns 0,
 * or −1 where it fails, as where the model's numbers overflow. A picture's logits do not depend on the other pictures,
 * the threads or the backend. */
int gsb_vit_predict(gsb_vit_model* model, const uint8_t* pixels, size_t count, float* logits);

/* Run one picture and write its attention masks: uint8 (depth, A, num_heads, N, N), 1 where token j (the last axis) is
 * in a group of token i. Returns 0, or −1 where it fails. */
int gsb_vit_masks(gsb_vit_model* model, const uint8_t* pixels, uint8_t* masks);

/* How a pixel is stored: its bytes. */
enum { GSB_VIT_GREY = 1, GSB_VIT_RGB = 3, GSB_VIT_RGBA = 4 };

/* Classify one picture of any size: logits receives (classes). It is turned upright, laid on white where it is
 * transparent, cut and resized as in training, with the pixels and the logits of Python to the last bit.
 *
 * pixels: height rows of width pixels, 8 bits a channel, `stride` bytes from a row to the next (0: width times
 * format). Nothing outside these rows is read. A decoder gives pixels as they are stored; orientation is the number of
 * EXIF's tag 274, 1 … 8, that goes with them, and 1 for pixels that are upright. RGBA is not premultiplied. Other
 * pixels become these before: 16 bits a channel v are v/257, rounded; palettes and CMYK are converted by the decoder.
 *
 * Returns 0, or −1 where it fails: also where the picture has more pixels than gsb_vit_set_max_pixels allows. */
int gsb_vit_predict_image(gsb_vit_model* model, const uint8_t* pixels, int width, int height, size_t stride, int format,
                          int orientation, float* logits);

/* Only make the pixels that gsb_vit_predict takes: prepared receives (height, width, 3) of gsb_vit_info. */
int gsb_vit_prepare_image(const gsb_vit_model* model, const uint8_t* pixels, int width, int height, size_t stride,
                          int format, int orientation, uint8_t* prepared);

/* The most pixels of a picture that the two functions above take; 64 million unless this says otherwise. */
void gsb_vit_set_max_pixels(gsb_vit_model* model, size_t pixels);

gsb_vit_decision gsb_vit_get_decision(const gsb_vit_model* model);

/* Probabilities of count pictures from their logits (count, classes): softmax(logits / temperature), in double; each
 * row of probabilities (count, classes) sums to 1. Returns 0, or −1 where it fails. */
int gsb_vit_probabilities(const gsb_vit_model* model, const float* logits, size_t count, double* probabilities);

/* Is the picture with these logits (classes) none of the classes? 1: yes, 0: no, −1: the file holds no threshold. */
int gsb_vit_is_unknown(const gsb_vit_model* model, const float* logits);

/* Switch profiling on (and the sums to zero) or off. */
void gsb_vit_set_profiling(gsb_vit_model* model, int on);

/* Write up to capacity stages and return how many there are. */
size_t gsb_vit_profile(const gsb_vit_model* model, gsb_vit_stage* stages, size_t capacity);

/* The backends this machine can run, best first, separated by commas. */
const char* gsb_vit_backends(void);

/* What went wrong in the last failed call of this thread; one line. */
const char* gsb_vit_error(void);

#ifdef __cplusplus
}
#endif

#endif
