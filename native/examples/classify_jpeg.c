/* Name what is in JPEG files, decoded by libjpeg-turbo: classify_jpeg MODEL.safetensors PICTURE.jpg ...
 * A line each: class, logit, name of the file. EXIF's orientation is read, CMYK is refused by the decoder. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// clang-format off
#include <jpeglib.h>  // behind stdio.h, whose FILE it names
// clang-format on

#include "gsb_vit.h"

struct failure {
    struct jpeg_error_mgr base;
    jmp_buf back;
    char text[JMSG_LENGTH_MAX];
};

static void fail(j_common_ptr decoder) {
    struct failure* failure = (struct failure*)decoder->err;
    decoder->err->format_message(decoder, failure->text);
    longjmp(failure->back, 1);
}

static unsigned number(const JOCTET* at, int bytes, int big) {
    unsigned value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | at[big ? i : bytes - 1 - i];
    return value;
}

/* EXIF's tag 274 in a marker APP1, 1 where it says none. */
static int orientation_of(const struct jpeg_marker_struct* marker) {
    for (; marker; marker = marker->next) {
        const unsigned length = marker->data_length;
        if (marker->marker != JPEG_APP0 + 1 || length < 16 || memcmp(marker->data, "Exif\0", 6) != 0) continue;
        const JOCTET* tiff = marker->data + 6;
        const unsigned size = length - 6;
        const int big = tiff[0] == 'M';
        const unsigned first = number(tiff + 4, 4, big);
        if (first > size - 2) return 1;
        const unsigned entries = number(tiff + first, 2, big);
        for (unsigned i = 0; i < entries && first + 2 + 12 * (i + 1) <= size; ++i) {
            const JOCTET* entry = tiff + first + 2 + 12 * i;
            const unsigned value = number(entry + 8, 2, big);
            if (number(entry, 2, big) == 274) return value >= 1 && value <= 8 ? (int)value : 1;
        }
    }
    return 1;
}

struct picture {
    uint8_t* pixels;
    int width, height, format, orientation;
};

/* Returns NULL, or what is wrong. The caller frees the pixels in either case. */
static const char* decode(const char* path, struct picture* picture) {
    static struct failure failure;
    struct jpeg_decompress_struct decoder;
    FILE* volatile file = fopen(path, "rb");
    if (!file) return "cannot be opened";
    memset(&decoder, 0, sizeof(decoder));
    decoder.err = jpeg_std_error(&failure.base);
    failure.base.error_exit = fail;
    const char* volatile wrong = NULL;
    if (setjmp(failure.back)) {
        wrong = failure.text;
    } else {
        jpeg_create_decompress(&decoder);
        jpeg_stdio_src(&decoder, file);
        jpeg_save_markers(&decoder, JPEG_APP0 + 1, 0xFFFF);
        jpeg_read_header(&decoder, TRUE);
        picture->format = decoder.num_components == 1 ? GSB_VIT_GREY : GSB_VIT_RGB;
        decoder.out_color_space = picture->format == GSB_VIT_GREY ? JCS_GRAYSCALE : JCS_RGB;
        picture->orientation = orientation_of(decoder.marker_list);
        if ((double)decoder.image_width * decoder.image_height > 64e6) {
            wrong = "more than 64 megapixels";
        } else {
            jpeg_start_decompress(&decoder);
            picture->width = (int)decoder.output_width, picture->height = (int)decoder.output_height;
            const size_t row = (size_t)picture->width * picture->format;
            picture->pixels = malloc(row * picture->height);
            while (picture->pixels && decoder.output_scanline < decoder.output_height) {
                JSAMPROW to = picture->pixels + row * decoder.output_scanline;
                jpeg_read_scanlines(&decoder, &to, 1);
            }
            if (!picture->pixels) wrong = "there is not enough memory";
            if (failure.base.num_warnings > 0) wrong = "damaged or truncated";
        }
    }
    jpeg_destroy_decompress(&decoder);
    fclose(file);
    return wrong;
}

int main(int argc, char** argv) {
    if (argc < 3) return fprintf(stderr, "usage: %s MODEL.safetensors PICTURE.jpg ...\n", argv[0]), 2;
    gsb_vit_model* model = gsb_vit_load(argv[1], 0, NULL);
    if (!model) return fprintf(stderr, "%s\n", gsb_vit_error()), 2;
    const int classes = gsb_vit_get_info(model).classes;
    float* logits = malloc(classes * sizeof(float));
    int failed = 0;
    for (int i = 2; logits && i < argc; ++i) {
        struct picture p = {NULL, 0, 0, 0, 1};
        const char* wrong = decode(argv[i], &p);
        if (!wrong && gsb_vit_predict_image(model, p.pixels, p.width, p.height, 0, p.format, p.orientation, logits)) {
            wrong = gsb_vit_error();
        }
        free(p.pixels);
        if (wrong) {
            fprintf(stderr, "%s: %s\n", argv[i], wrong);
            failed = 1;
            continue;
        }
        int best = 0;
        for (int k = 1; k < classes; ++k) best = logits[k] > logits[best] ? k : best;
        printf("%s %.9g %s\n", gsb_vit_class_name(model, best), logits[best], argv[i]);
    }
    free(logits), gsb_vit_free(model);
    return failed;
}
