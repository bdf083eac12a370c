/* Pictures of any size, as gsb_vit_predict_image takes them: images MODEL BACKEND < PICTURES > RESULTS
 * Each picture is a line "width height stride format orientation" and its bytes, (height − 1)·stride and one row; each
 * result the pixels that gsb_vit_prepare_image makes, and the logits. */
#include <stdio.h>
#include <stdlib.h>

#include "gsb_vit.h"

static int fail(void) {
    return fprintf(stderr, "%s\n", gsb_vit_error()), 1;
}

int main(int argc, char** argv) {
    gsb_vit_model* model = argc == 3 ? gsb_vit_load(argv[1], 1, argv[2]) : NULL;
    if (!model) return fail();
    const gsb_vit_info info = gsb_vit_get_info(model);
    const size_t prepared_bytes = (size_t)info.height * info.width * 3;
    uint8_t* prepared = malloc(prepared_bytes);
    float* logits = malloc(info.classes * sizeof(float));
    int width, height, stride, format, orientation;
    while (scanf("%d %d %d %d %d", &width, &height, &stride, &format, &orientation) == 5 && getchar() == '\n') {
        const size_t row = stride ? (size_t)stride : (size_t)width * format;
        const size_t bytes = (height - 1) * row + (size_t)width * format;
        uint8_t* pixels = malloc(bytes); /* not a byte more, so that a sanitizer sees what is read behind */
        if (!pixels || fread(pixels, 1, bytes, stdin) != bytes) return fprintf(stderr, "truncated\n"), 1;
        if (gsb_vit_prepare_image(model, pixels, width, height, stride, format, orientation, prepared)) return fail();
        if (gsb_vit_predict_image(model, pixels, width, height, stride, format, orientation, logits)) return fail();
        fwrite(prepared, 1, prepared_bytes, stdout);
        fwrite(logits, sizeof(float), info.classes, stdout);
        free(pixels);
    }
    free(prepared), free(logits), gsb_vit_free(model);
    return 0;
}
