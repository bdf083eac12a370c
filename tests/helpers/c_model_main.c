/* Reads the pixels of one picture, writes the bits of its logits; the picture goes through model_prepare, too. */
#include <stdio.h>
#include <string.h>

#include "model.h"

static model_arena arena;
static uint8_t pixels[MODEL_HEIGHT * MODEL_WIDTH * 3];
static double probabilities[MODEL_CLASSES];

int main(void) {
    float logits[MODEL_CLASSES], again[MODEL_CLASSES];
    if (fread(pixels, 1, sizeof pixels, stdin) != sizeof pixels || model_check(&arena) != MODEL_OK) return 1;
    for (int orientation = 1; orientation <= 8; ++orientation) {
        for (int height = 1; height <= MODEL_HEIGHT; height += 5) {
            if (!model_prepare(pixels, MODEL_WIDTH, height, 0, MODEL_RGB, orientation, &arena)) return 2;
            if (!model_prepare(pixels, MODEL_WIDTH / 2, height, 0, MODEL_RGBA, orientation, &arena)) return 3;
            if (!model_prepare(pixels, 1, height, MODEL_WIDTH, MODEL_GREY, orientation, &arena)) return 4;
        }
    }
    if (model_logits(pixels, &arena, logits) != MODEL_OK) return 5;
    if (model_picture_logits(pixels, MODEL_WIDTH, MODEL_HEIGHT, 0, MODEL_RGB, 1, &arena, again) != MODEL_OK) return 6;
    if (memcmp(logits, again, sizeof logits) != 0) return 7;
    model_probabilities(logits, probabilities);
    if (model_is_unknown(logits) > 1) return 8;
    for (int k = 0; k < MODEL_CLASSES; ++k) {
        uint32_t bits;
        memcpy(&bits, &logits[k], sizeof bits);
        printf("%08lx\n", (unsigned long)bits);
    }
    return 0;
}
