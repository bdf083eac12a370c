/* Do all backends of this machine agree? compare_backends MODEL.safetensors PICTURES
 * Runs that many pictures of noise on every backend, on one thread and on two, and compares the logits' bits. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gsb_vit.h"

int main(int argc, char** argv) {
    if (argc != 3) return fprintf(stderr, "usage: %s MODEL.safetensors PICTURES\n", argv[0]), 2;
    const size_t count = strtoul(argv[2], NULL, 10);
    char names[256];
    snprintf(names, sizeof(names), "%s", gsb_vit_backends());
    uint8_t* pixels = NULL;
    float *first = NULL, *logits = NULL;
    size_t size = 0;
    int runs = 0;
    for (char* name = strtok(names, ", "); name; name = strtok(NULL, ", ")) {
        for (int threads = 1; threads <= 2; ++threads) {
            gsb_vit_model* model = gsb_vit_load(argv[1], threads, name);
            if (!model) return fprintf(stderr, "%s\n", gsb_vit_error()), 2;
            const gsb_vit_info info = gsb_vit_get_info(model);
            if (!first) {
                const size_t bytes = count * info.height * info.width * 3;
                size = count * info.classes * sizeof(float);
                pixels = malloc(bytes);
                first = malloc(size);
                logits = malloc(size);
                uint32_t noise = 1;
                for (size_t i = 0; i < bytes; ++i) pixels[i] = (noise = noise * 1664525u + 1013904223u) >> 24;
            }
            if (gsb_vit_predict(model, pixels, count, logits) != 0) return fprintf(stderr, "%s\n", gsb_vit_error()), 2;
            if (runs++ == 0) memcpy(first, logits, size);
            if (memcmp(first, logits, size) != 0) return fprintf(stderr, "%s differs\n", name), 1;
            printf("%s, %d threads: %zu pictures agree\n", name, threads, count);
            gsb_vit_free(model);
        }
    }
    free(pixels);
    free(first);
    free(logits);
    return 0;
}
