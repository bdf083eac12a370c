/* JPEG → pixels, with the pixels of Pillow.
 *
 * stb_image reads the file and its coefficients. The steps that follow are those of libjpeg-turbo, which Pillow uses:
 * its accurate integer transform (Loeffler, Ligtenberg, Moschytz 1989, constants of 13 bits), its triangle filter for
 * subsampled colours and its fixed-point conversion to RGB. stb_image's own steps round otherwise.
 */
#include <string.h>

#define STB_IMAGE_IMPLEMENTATION
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include "stb.h"
#pragma GCC diagnostic pop
#else
#include "stb.h"
#endif

#include "gsb_vit.h"
#include "picture_file.h"

static uint8_t clamped(int32_t value) {
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

/* One transform of eight numbers, each `step` apart; results are scaled by 2^13. Sums of what no encoder writes wrap.
 */
static void transform8(const uint32_t* in, int step, uint32_t out[8]) {
    const uint32_t even = (in[2 * step] + in[6 * step]) * 4433u;
    const uint32_t low = even - in[6 * step] * 15137u, high = even + in[2 * step] * 6270u;
    const uint32_t sum = (in[0] + in[4 * step]) * 8192u, difference = (in[0] - in[4 * step]) * 8192u;
    const uint32_t head[4] = {sum + high, difference + low, difference - low, sum - high};
    const uint32_t a = in[7 * step], b = in[5 * step], c = in[3 * step], d = in[step];
    const uint32_t turn = (a + c + b + d) * 9633u;
    const uint32_t p = (a + d) * 7373u, q = (b + c) * 20995u;
    const uint32_t r = turn - (a + c) * 16069u, s = turn - (b + d) * 3196u;
    const uint32_t tail[4] = {d * 12299u - p + s, c * 25172u - q + r, b * 16819u - q + s, a * 2446u - p + r};
    for (int i = 0; i < 4; ++i) {
        out[i] = head[i] + tail[i];
        out[7 - i] = head[i] - tail[i];
    }
}

/* value / 2^bits, rounded to the nearest. */
static int32_t descaled(uint32_t value, int bits) {
    return (int32_t)(value + (1u << (bits - 1))) >> bits;
}

/* Coefficients (8, 8) → samples: columns, kept with two more bits, then rows. */
static void transform_block(stbi_uc* out, int stride, short data[64]) {
    uint32_t block[64], line[8];
    for (int i = 0; i < 64; ++i) block[i] = (uint32_t)data[i];
    for (int x = 0; x < 8; ++x) {
        transform8(block + x, 8, line);
        for (int y = 0; y < 8; ++y) block[8 * y + x] = (uint32_t)descaled(line[y], 11);
    }
    for (int y = 0; y < 8; ++y) {
        transform8(block + 8 * y, 1, line);
        for (int x = 0; x < 8; ++x) out[y * stride + x] = clamped(descaled(line[x], 18) + 128);
    }
}

/* A plane of samples, of which every one stands for across × down pixels. */
struct plane {
    const uint8_t* samples;
    int stride, width, height, across, down;
};

/* Row y of a plane at the picture's width: a sample weighs 3, its neighbour on the pixel's side 1. `sums` has room for
 * the plane's width. Half a sum is rounded down and up in turns. */
static void upsampled_row(const struct plane* p, int y, int width, int32_t* sums, uint8_t* out) {
    const uint8_t* near = p->samples + (size_t)(y / p->down) * p->stride;
    const int smooth_across = p->across == 2 && p->down <= 2 && p->width > 2;
    const int smooth_down = p->down == 2 && (smooth_across || p->across == 1);
    if (!smooth_down && !smooth_across) {
        for (int x = 0; x < width; ++x) out[x] = near[x / p->across];
        return;
    }
    if (smooth_down) {
        const int other = y / 2 + (y % 2 ? 1 : -1);
        const uint8_t* far = p->samples + (size_t)(other < 0           ? 0
                                                   : other < p->height ? other
                                                                       : p->height - 1) *
                                              p->stride;
        for (int x = 0; x < p->width; ++x) sums[x] = 3 * near[x] + far[x];
    } else {
        for (int x = 0; x < p->width; ++x) sums[x] = near[x];
    }
    if (!smooth_across) {
        for (int x = 0; x < width; ++x) out[x] = (uint8_t)((sums[x] + (y % 2 ? 2 : 1)) >> 2);
        return;
    }
    const int shift = smooth_down ? 4 : 2, first = smooth_down ? 8 : 1, second = smooth_down ? 7 : 2;
    for (int x = 0; x < width; ++x) {
        const int at = x / 2, other = x % 2 ? at + 1 : at - 1;
        const int32_t beside = sums[other < 0 ? 0 : other < p->width ? other : at];
        out[x] = (uint8_t)((3 * sums[at] + beside + (x % 2 ? second : first)) >> shift);
    }
}

/* Rows of Y, Cb, Cr → RGB, interleaved. */
static void to_rgb(const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int width, uint8_t* rgb) {
    for (int x = 0; x < width; ++x, rgb += 3) {
        const int32_t blue = cb[x] - 128, red = cr[x] - 128;
        rgb[0] = clamped(y[x] + ((91881 * red + 32768) >> 16));
        rgb[1] = clamped(y[x] + ((-22554 * blue - 46802 * red + 32768) >> 16));
        rgb[2] = clamped(y[x] + ((116130 * blue + 32768) >> 16));
    }
}

/* All rows of the picture from its decoded planes. */
static const char* write_pixels(const stbi__jpeg* jpeg, int channels, uint8_t* pixels) {
    const int width = (int)jpeg->s->img_x, height = (int)jpeg->s->img_y;
    const int coloured = channels == 3 && !(jpeg->rgb == 3 || (jpeg->app14_color_transform == 0 && !jpeg->jfif));
    uint8_t* rows = calloc((size_t)width, 3);
    int32_t* sums = calloc((size_t)width + 1, sizeof(int32_t));
    for (int y = 0; rows && sums && y < height; ++y) {
        uint8_t* out = pixels + (size_t)y * width * channels;
        for (int k = 0; k < channels; ++k) {
            const struct plane plane = {jpeg->img_comp[k].data,
                                        jpeg->img_comp[k].w2,
                                        jpeg->img_comp[k].x,
                                        jpeg->img_comp[k].y,
                                        channels == 1 ? 1 : jpeg->img_h_max / jpeg->img_comp[k].h,
                                        channels == 1 ? 1 : jpeg->img_v_max / jpeg->img_comp[k].v};
            upsampled_row(&plane, y, width, sums, channels == 1 ? out : rows + (size_t)k * width);
        }
        if (coloured) {
            to_rgb(rows, rows + width, rows + 2 * (size_t)width, width, out);
        } else if (channels == 3) {
            for (int i = 0; i < 3 * width; ++i) out[i] = rows[(size_t)(i % 3) * width + i / 3];
        }
    }
    const char* wrong = rows && sums ? NULL : "there is not enough memory";
    free(rows), free(sums);
    return wrong;
}

/* What the markers before the first scan say. The number of channels is 0 where no frame was found. */
struct markers {
    uint32_t width, height;
    int channels, orientation;
};

static struct markers read_markers(const uint8_t* bytes, size_t size) {
    struct markers found = {0, 0, 0, 1};
    int exif = 0;
    for (size_t at = 2; at + 4 <= size && bytes[at] == 0xFF;) {
        const int kind = bytes[at + 1];
        if (kind == 0xFF) {
            ++at;
            continue;
        }
        const size_t length = read_number(bytes + at + 2, 2, 1);
        const uint8_t* data = bytes + at + 4;
        if (kind == 0xDA || length < 2 || length - 2 > size - at - 4) break;
        if (kind >= 0xC0 && kind <= 0xC2 && length >= 8) {
            found.height = read_number(data + 1, 2, 1), found.width = read_number(data + 3, 2, 1);
            found.channels = data[5];
        } else if (kind == 0xE1 && !exif && length >= 8 && memcmp(data, "Exif\0", 6) == 0) {
            found.orientation = exif_orientation(data + 6, length - 8);
            exif = 1;
        }
        at += 2 + length;
    }
    return found;
}

static const char* decode_planes(stbi__jpeg* jpeg, int channels, struct picture* picture) {
    if (!stbi__decode_jpeg_image(jpeg)) return "damaged or truncated";
    const stbi_uc* end = jpeg->s->img_buffer;
    if (end - jpeg->s->img_buffer_original < 2 || end[-2] != 0xFF || end[-1] != 0xD9) return "damaged or truncated";
    picture->width = (int)jpeg->s->img_x, picture->height = (int)jpeg->s->img_y;
    picture->pixels = malloc((size_t)picture->width * picture->height * channels);
    return picture->pixels ? write_pixels(jpeg, channels, picture->pixels) : "there is not enough memory";
}

const char* decode_jpeg(const uint8_t* bytes, size_t size, struct picture* picture) {
    const struct markers found = read_markers(bytes, size);
    if (found.channels == 0) return "no baseline or progressive JPEG of 8 bits, or damaged";
    if (found.channels != 1 && found.channels != 3) return "a JPEG in CMYK; save it as RGB";
    const char* wrong = check_size(found.width, found.height);
    if (wrong) return wrong;
    if (size > 0x7FFFFFFF) return "a file of more than 2 GB";
    stbi__context context;
    stbi__jpeg* jpeg = calloc(1, sizeof(*jpeg));
    if (!jpeg) return "there is not enough memory";
    stbi__start_mem(&context, bytes, (int)size);
    context.img_n = 0; /* so that cleaning up is safe before a frame is read */
    jpeg->s = &context;
    stbi__setup_jpeg(jpeg);
    jpeg->idct_block_kernel = transform_block;
    picture->format = found.channels == 1 ? GSB_VIT_GREY : GSB_VIT_RGB;
    picture->orientation = found.orientation;
    wrong = decode_planes(jpeg, found.channels, picture);
    if (!wrong && context.img_n != found.channels) wrong = "damaged";
    stbi__cleanup_jpeg(jpeg);
    free(jpeg);
    return wrong;
}
