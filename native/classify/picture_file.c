/* Which decoder a file's first bytes ask for; binary PPM and PGM; EXIF. */
#include "picture_file.h"

#include <stdlib.h>
#include <string.h>

#include "gsb_vit.h"

uint32_t read_number(const uint8_t* at, int bytes, int big) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | at[big ? i : bytes - 1 - i];
    return value;
}

int exif_orientation(const uint8_t* tiff, size_t size) {
    if (size < 10) return 1;
    const int big = tiff[0] == 'M';
    const size_t first = read_number(tiff + 4, 4, big);
    if (first > size - 2) return 1;
    const size_t entries = read_number(tiff + first, 2, big);
    for (size_t i = 0; i < entries && first + 2 + 12 * (i + 1) <= size; ++i) {
        const uint8_t* entry = tiff + first + 2 + 12 * i;
        const uint32_t value = read_number(entry + 8, 2, big);
        if (read_number(entry, 2, big) == 274) return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

const char* check_size(uint32_t width, uint32_t height) {
    if (width == 0 || height == 0) return "a picture without pixels";
    return (uint64_t)width * height > MOST_PIXELS ? "more than 64 megapixels" : NULL;
}

/* A number of a header, behind spaces and comments; −1: none. Moves *at behind it. */
static int64_t header_number(const uint8_t* bytes, size_t size, size_t* at) {
    int64_t value = -1;
    while (*at < size && strchr(" \t\r\n#", bytes[*at])) {
        if (bytes[*at] == '#') {
            while (*at < size && bytes[*at] != '\n') ++*at;
        } else {
            ++*at;
        }
    }
    for (; *at < size && bytes[*at] >= '0' && bytes[*at] <= '9' && value < 1000000; ++*at) {
        value = (value < 0 ? 0 : 10 * value) + bytes[*at] - '0';
    }
    return value;
}

static const char* decode_ppm(const uint8_t* bytes, size_t size, struct picture* picture) {
    size_t at = 2;
    const int64_t width = header_number(bytes, size, &at), height = header_number(bytes, size, &at),
                  white = header_number(bytes, size, &at);
    if (width < 1 || height < 1 || white != 255 || at >= size) return "not a PPM or PGM of 8 bits";
    const char* wrong = check_size((uint32_t)width, (uint32_t)height);
    if (wrong) return wrong;
    picture->format = bytes[1] == '6' ? GSB_VIT_RGB : GSB_VIT_GREY;
    const size_t wanted = (size_t)(width * height * picture->format);
    if (size - at - 1 < wanted) return "truncated";
    picture->pixels = malloc(wanted);
    if (!picture->pixels) return "there is not enough memory";
    memcpy(picture->pixels, bytes + at + 1, wanted);
    picture->width = (int)width, picture->height = (int)height;
    return NULL;
}

const char* decode_picture(const uint8_t* bytes, size_t size, struct picture* picture) {
    memset(picture, 0, sizeof(*picture));
    picture->orientation = 1;
    const char* wrong = "not a picture; give one of the formats JPEG, PNG, PPM";
    if (size > 2 && memcmp(bytes, "\xFF\xD8\xFF", 3) == 0) {
        wrong = decode_jpeg(bytes, size, picture);
    } else if (size > 8 && memcmp(bytes, "\x89PNG\r\n\x1A\n", 8) == 0) {
        wrong = decode_png(bytes, size, picture);
    } else if (size > 2 && bytes[0] == 'P' && (bytes[1] == '5' || bytes[1] == '6')) {
        wrong = decode_ppm(bytes, size, picture);
    }
    if (wrong) {
        free(picture->pixels);
        picture->pixels = NULL;
    }
    return wrong;
}
