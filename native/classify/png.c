/* PNG → pixels, as Python has them: palettes and few bits widened, 16 bits narrowed, transparency kept. */
#include <string.h>

#include "gsb_vit.h"
#include "picture_file.h"
#include "stb.h"

enum { GREY = 0, COLOUR = 2 }; /* kinds of PNG's header that the rules below name */

/* Of the bytes of a chunk's kind and data, as PNG's appendix D has it. */
static uint32_t crc32(const uint8_t* bytes, size_t size) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; ++i) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

/* What the chunks say beside the pixels. */
struct chunks {
    uint32_t width, height;
    int depth, kind, orientation, transparent_colour;
};

/* Reads all chunks and checks their sums. Returns NULL, or what is wrong. */
static const char* read_chunks(const uint8_t* bytes, size_t size, struct chunks* found) {
    memset(found, 0, sizeof(*found));
    found->orientation = 1;
    for (size_t at = 8; at + 12 <= size;) {
        const size_t length = read_number(bytes + at, 4, 1);
        const uint8_t *kind = bytes + at + 4, *data = bytes + at + 8;
        if (length > size - at - 12) return "truncated";
        if (crc32(kind, length + 4) != read_number(data + length, 4, 1)) return "damaged: a checksum is wrong";
        if (memcmp(kind, "IHDR", 4) == 0 && length == 13) {
            found->width = read_number(data, 4, 1), found->height = read_number(data + 4, 4, 1);
            found->depth = data[8], found->kind = data[9];
        } else if (memcmp(kind, "tRNS", 4) == 0) {
            found->transparent_colour = found->kind == GREY || found->kind == COLOUR;
        } else if (memcmp(kind, "eXIf", 4) == 0) {
            const int prefixed = length >= 6 && memcmp(data, "Exif\0", 6) == 0;
            found->orientation = exif_orientation(data + (prefixed ? 6 : 0), length - (prefixed ? 6 : 0));
        } else if (memcmp(kind, "IEND", 4) == 0) {
            return found->depth ? NULL : "damaged: no header";
        }
        at += 12 + length;
    }
    return "truncated";
}

/* Grey of 16 bits is rounded to the nearest of 8; what is transparent becomes white. */
static const char* decode_wide_grey(const uint8_t* bytes, int size, struct picture* picture) {
    int channels = 0;
    uint16_t* wide = stbi_load_16_from_memory(bytes, size, &picture->width, &picture->height, &channels, 0);
    if (!wide) return "damaged or truncated";
    const size_t count = (size_t)picture->width * picture->height;
    picture->pixels = malloc(count);
    for (size_t i = 0; picture->pixels && i < count; ++i) {
        const int hidden = channels == 2 && wide[2 * i + 1] == 0;
        picture->pixels[i] = (uint8_t)(hidden ? 255 : (wide[channels * i] + 128) / 257);
    }
    stbi_image_free(wide);
    picture->format = GSB_VIT_GREY;
    return picture->pixels ? NULL : "there is not enough memory";
}

const char* decode_png(const uint8_t* bytes, size_t size, struct picture* picture) {
    struct chunks found;
    if (size > 0x7FFFFFFF) return "a file of more than 2 GB";
    const char* wrong = read_chunks(bytes, size, &found);
    if (!wrong) wrong = check_size(found.width, found.height);
    if (wrong) return wrong;
    picture->orientation = found.orientation;
    if (found.depth == 16 && found.kind == GREY) return decode_wide_grey(bytes, (int)size, picture);
    if (found.depth == 16 && found.transparent_colour) {
        return "16 bits with one transparent colour are not read; save it with 8 bits";
    }
    int channels = 0;
    stbi_info_from_memory(bytes, (int)size, &picture->width, &picture->height, &channels);
    const int wanted = channels == 2 ? 4 : channels;
    picture->pixels = stbi_load_from_memory(bytes, (int)size, &picture->width, &picture->height, &channels, wanted);
    picture->format = wanted == 1 ? GSB_VIT_GREY : wanted == 3 ? GSB_VIT_RGB : GSB_VIT_RGBA;
    return picture->pixels ? NULL : "damaged or truncated";
}
