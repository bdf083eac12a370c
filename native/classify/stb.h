/* What of stb_image.h is used, alike where it is implemented and where it is called. Its memory is zero from the start,
 * so that what a damaged file leaves out is the same in every run. */
#ifndef GSB_VIT_STB_H
#define GSB_VIT_STB_H

#include <stdlib.h>

#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_NO_SIMD
#define STBI_MALLOC(size) calloc(1, size)
#define STBI_REALLOC(pointer, size) realloc(pointer, size)
#define STBI_FREE(pointer) free(pointer)
#include "../third_party/stb_image.h"

#endif
