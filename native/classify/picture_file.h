/* A picture's file → pixels, as gsb_vit_predict_image takes them. */
#ifndef GSB_VIT_PICTURE_FILE_H
#define GSB_VIT_PICTURE_FILE_H

#include <stddef.h>
#include <stdint.h>

enum { MOST_PIXELS = 64000000 }; /* of a picture, as in Python */

struct picture {
    uint8_t* pixels; /* of malloc; NULL where there are none */
    int width, height, format, orientation;
};

/* Each decodes the bytes of a file of its kind. Returns NULL, or what is wrong, in which case there are no pixels. */
const char* decode_picture(const uint8_t* bytes, size_t size, struct picture* picture);
const char* decode_jpeg(const uint8_t* bytes, size_t size, struct picture* picture);
const char* decode_png(const uint8_t* bytes, size_t size, struct picture* picture);

/* A number of so many bytes, the most significant first or last. */
uint32_t read_number(const uint8_t* at, int bytes, int big);

/* The orientation that EXIF's tag 274 says, 1 … 8; 1 where there is none. `tiff` is what follows "Exif\0\0". */
int exif_orientation(const uint8_t* tiff, size_t size);

/* NULL where a picture of this size may be decoded. */
const char* check_size(uint32_t width, uint32_t height);

#endif
