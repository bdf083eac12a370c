/* Classify a picture: classify MODEL.safetensors PICTURE.ppm
 * The picture is a binary PPM (P6) of the size the model reads: cut and resized before, see docs/performance.md. */
#include <stdio.h>
#include <stdlib.h>

#include "gsb_vit.h"

int main(int argc, char** argv) {
    if (argc != 3) return fprintf(stderr, "usage: %s MODEL.safetensors PICTURE.ppm\n", argv[0]), 2;
    gsb_vit_model* model = gsb_vit_load(argv[1], 0, NULL);
    if (!model) return fprintf(stderr, "%s\n", gsb_vit_error()), 2;
    const gsb_vit_info info = gsb_vit_get_info(model);
    const size_t bytes = (size_t)info.height * info.width * 3;
    uint8_t* pixels = malloc(bytes);
    float* logits = malloc(info.classes * sizeof(float));
    int width = 0, height = 0;
    FILE* file = fopen(argv[2], "rb");
    if (!file || fscanf(file, "P6 %d %d 255", &width, &height) != 2 || fgetc(file) == EOF || width != info.width ||
        height != info.height || fread(pixels, 1, bytes, file) != bytes) {
        return fprintf(stderr, "%s: not a P6 picture of %d x %d\n", argv[2], info.width, info.height), 2;
    }
    fclose(file);
    if (gsb_vit_predict(model, pixels, 1, logits) != 0) return fprintf(stderr, "%s\n", gsb_vit_error()), 2;
    int best = 0;
    for (int k = 1; k < info.classes; ++k) best = logits[k] > logits[best] ? k : best;
    printf("%s %.9g (%s, %d threads)\n", gsb_vit_class_name(model, best), logits[best], info.backend, info.threads);
    free(pixels), free(logits), gsb_vit_free(model);
    return 0;
}
