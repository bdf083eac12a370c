/* Name what is in pictures, without Python: gsb-vit-classify MODEL PICTURE... Run it without arguments for its options.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gsb_vit.h"
#include "picture_file.h"

static const char* const kUsage =
    "usage: gsb-vit-classify [OPTIONS] MODEL PICTURE...\n"
    "Name what is in pictures: JPEG, PNG, binary PPM or PGM; - is the standard input.\n"
    "A line an answer, fields separated by tabs: picture, class, probability.\n"
    "  --top N        how many classes to name (default: 1)\n"
    "  --unknown      give no class to a picture that looks like none of them\n"
    "  --logits       print all logits of a picture in place of answers\n"
    "  --threads N    threads of the engine (default: all cores)\n"
    "  --backend NAME the engine's instruction set (default: the fastest there is)\n"
    "Exits with 1 where some pictures could not be read, with 2 where it cannot begin.\n";

struct options {
    int top, unknown, logits, threads;
    const char* backend;
};

static int refuse(const char* what, const char* why) {
    return fprintf(stderr, "gsb-vit-classify: %s: %s\n", what, why), 2;
}

/* A whole number of at least `least`; −1: it is none. */
static int whole(const char* text, int least) {
    char* end = NULL;
    errno = 0;
    const long value = text ? strtol(text, &end, 10) : -1;
    return !text || *end || end == text || errno || value < least || value > 1000000 ? -1 : (int)value;
}

/* → the index of the first argument that is no option; −1: refused, and said why. */
static int read_options(int argc, char** argv, struct options* o) {
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; ++i) {
        if (strcmp(argv[i], "--") == 0) return i + 1;
        if (strcmp(argv[i], "--unknown") == 0) {
            o->unknown = 1;
        } else if (strcmp(argv[i], "--logits") == 0) {
            o->logits = 1;
        } else if (strcmp(argv[i], "--top") == 0) {
            if ((o->top = whole(argv[++i], 1)) < 0) return refuse("--top", "give a whole number of at least 1"), -1;
        } else if (strcmp(argv[i], "--threads") == 0) {
            if ((o->threads = whole(argv[++i], 0)) < 0) return refuse("--threads", "give a whole number"), -1;
        } else if (strcmp(argv[i], "--backend") == 0 && i + 1 < argc) {
            o->backend = argv[++i];
        } else {
            return refuse(argv[i], "unknown option; run without arguments for help"), -1;
        }
    }
    return i;
}

/* A whole file. → NULL where it cannot be read; *wrong says why. */
static uint8_t* read_file(const char* path, size_t* size, const char** wrong) {
    enum { MOST = 1024000000 }; /* as in Python, 16 bytes for each of the most pixels */
    FILE* file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    uint8_t* bytes = NULL;
    size_t room = 0;
    *size = 0;
    *wrong = file ? NULL : "cannot be opened";
    while (file && !*wrong) {
        if (*size == room) {
            room = room ? 2 * room : 1 << 16;
            uint8_t* larger = room > 2 * (size_t)MOST ? NULL : realloc(bytes, room);
            if (!larger) {
                *wrong = "too large";
                break;
            }
            bytes = larger;
        }
        const size_t got = fread(bytes + *size, 1, room - *size, file);
        *size += got;
        if (got == 0) break;
    }
    if (file && !*wrong && ferror(file)) *wrong = "cannot be read";
    if (!*wrong && *size > MOST) *wrong = "too large";
    if (file && file != stdin) fclose(file);
    if (*wrong) free(bytes), bytes = NULL;
    return bytes;
}

/* The best classes first; of equal ones that with the lower number. */
static void print_answers(const gsb_vit_model* model, const char* path, const struct options* o, int classes,
                          double* probabilities) {
    for (int rank = 0; rank < o->top && rank < classes; ++rank) {
        int best = 0;
        for (int k = 1; k < classes; ++k) best = probabilities[k] > probabilities[best] ? k : best;
        printf("%s\t%s\t%.6f\n", path, gsb_vit_class_name(model, best), probabilities[best]);
        probabilities[best] = -1;
    }
}

/* → NULL, or what is wrong. */
static const char* classify(gsb_vit_model* model, const char* path, const struct options* o, int classes, float* logits,
                            double* probabilities) {
    const char* wrong = NULL;
    size_t size = 0;
    uint8_t* bytes = read_file(path, &size, &wrong);
    if (wrong) return wrong;
    struct picture p;
    wrong = decode_picture(bytes, size, &p);
    free(bytes);
    if (wrong) return wrong;
    if (gsb_vit_predict_image(model, p.pixels, p.width, p.height, 0, p.format, p.orientation, logits) != 0 ||
        gsb_vit_probabilities(model, logits, 1, probabilities) != 0) {
        wrong = gsb_vit_error();
    }
    free(p.pixels);
    if (wrong) return wrong;
    if (o->logits) {
        printf("%s", path);
        for (int k = 0; k < classes; ++k) printf("\t%.9g", logits[k]);
        printf("\n");
    } else if (o->unknown && gsb_vit_is_unknown(model, logits) == 1) {
        printf("%s\t(none of the classes)\t\n", path);
    } else {
        print_answers(model, path, o, classes, probabilities);
    }
    return NULL;
}

int main(int argc, char** argv) {
    struct options options = {1, 0, 0, 0, NULL};
    const int first = read_options(argc, argv, &options);
    if (first < 0) return 2;
    if (argc - first < 2) return fputs(kUsage, stderr), 2;
    gsb_vit_model* model = gsb_vit_load(argv[first], options.threads, options.backend);
    if (!model) return fprintf(stderr, "gsb-vit-classify: %s\n", gsb_vit_error()), 2;
    if (options.unknown && !gsb_vit_get_decision(model).has_unknown) {
        return refuse(argv[first], "the model has no threshold for unknown pictures; export it again");
    }
    const int classes = gsb_vit_get_info(model).classes;
    float* logits = malloc((size_t)classes * sizeof(float));
    double* probabilities = malloc((size_t)classes * sizeof(double));
    if (!logits || !probabilities) return refuse(argv[first], "there is not enough memory");
    int failed = 0;
    for (int i = first + 1; i < argc; ++i) {
        const char* wrong = classify(model, argv[i], &options, classes, logits, probabilities);
        if (wrong) fprintf(stderr, "%s: %s\n", argv[i], wrong), failed = 1;
    }
    free(logits), free(probabilities), gsb_vit_free(model);
    return fflush(stdout) != 0 ? 1 : failed;
}
