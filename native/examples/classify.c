/* Name what is in a picture of any size: classify MODEL.safetensors [PICTURE]
 * PICTURE, or the standard input, is a binary PPM (P6, RGB) or PGM (P5, grey) with 8 bits a channel. For raw RGB bytes
 * write a header first: (printf 'P6 640 480 255\n'; cat raw) | classify MODEL.safetensors */
#include <stdio.h>
#include <stdlib.h>

#include "gsb_vit.h"

/* A number of a header, behind spaces and comments; −1: none. */
static int number(FILE* file) {
    int value = -1, c;
    while (fscanf(file, " %d", &value) != 1 && (c = fgetc(file)) == '#') {
        while (c != '\n' && c != EOF) c = fgetc(file);
    }
    return value;
}

static int fail(const char* what, const char* why) {
    return fprintf(stderr, "%s: %s\n", what, why), 2;
}

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) return fail("usage", "classify MODEL.safetensors [PICTURE.ppm]");
    const char* name = argc == 3 ? argv[2] : "standard input";
    gsb_vit_model* model = gsb_vit_load(argv[1], 0, NULL);
    if (!model) return fprintf(stderr, "%s\n", gsb_vit_error()), 2;
    const gsb_vit_info info = gsb_vit_get_info(model);
    FILE* file = argc == 3 ? fopen(argv[2], "rb") : stdin;
    if (!file) return fail(name, "cannot be opened");
    const int first = fgetc(file), kind = fgetc(file), width = number(file), height = number(file),
              white = number(file);
    const int format = kind == '6' ? GSB_VIT_RGB : GSB_VIT_GREY;
    if (first != 'P' || (kind != '5' && kind != '6') || width < 1 || height < 1 || white != 255 || fgetc(file) == EOF) {
        return fail(name, "not a binary PPM or PGM of 8 bits");
    }
    const double bytes = (double)width * height * format;
    uint8_t* pixels = bytes < 2e9 ? malloc((size_t)bytes) : NULL;
    float* logits = malloc(info.classes * sizeof(float));
    if (!pixels || !logits) return fail(name, "too large for this program");
    if (fread(pixels, 1, (size_t)bytes, file) != (size_t)bytes) return fail(name, "truncated");
    if (gsb_vit_predict_image(model, pixels, width, height, 0, format, 1, logits) != 0) {
        return fprintf(stderr, "%s\n", gsb_vit_error()), 2;
    }
    int best = 0;
    for (int k = 1; k < info.classes; ++k) best = logits[k] > logits[best] ? k : best;
    printf("%s %.9g (%s, %d threads)\n", gsb_vit_class_name(model, best), logits[best], info.backend, info.threads);
    free(pixels), free(logits), gsb_vit_free(model);
    return file == stdin ? 0 : fclose(file);
}
