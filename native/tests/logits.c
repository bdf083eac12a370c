/* Writes logits as raw float32: logits MODEL PIXELS THREADS BACKEND. PIXELS holds raw pictures, uint8 (B, H, W, 3). */
#include <stdio.h>
#include <stdlib.h>

#include "gsb_vit.h"

int main(int argc, char** argv) {
    if (argc != 5) return fprintf(stderr, "usage: logits MODEL PIXELS THREADS BACKEND\n"), 1;
    gsb_vit_model* model = gsb_vit_load(argv[1], atoi(argv[3]), argv[4]);
    if (!model) return fprintf(stderr, "%s\n", gsb_vit_error()), 1;
    const gsb_vit_info info = gsb_vit_get_info(model);
    const size_t picture = (size_t)info.height * info.width * 3;
    uint8_t* pixels = malloc(picture);
    float* logits = malloc(info.classes * sizeof(float));
    FILE* file = fopen(argv[2], "rb");
    if (!pixels || !logits || !file) return fprintf(stderr, "%s cannot be read\n", argv[2]), 1;
    while (fread(pixels, 1, picture, file) == picture) {
        if (gsb_vit_predict(model, pixels, 1, logits) != 0) return fprintf(stderr, "%s\n", gsb_vit_error()), 1;
        fwrite(logits, sizeof(float), info.classes, stdout);
    }
    fclose(file);
    free(pixels);
    free(logits);
    gsb_vit_free(model);
    return fflush(stdout) != 0;
}
