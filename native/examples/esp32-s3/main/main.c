/* A model on an ESP32-S3: is it exact here, and how long does a picture take?
 *
 * A camera's frame is classified likewise. With Espressif's esp32-camera and PIXFORMAT_GRAYSCALE it is
 *     classify(frame->buf, frame->width, frame->height, MODEL_GREY);
 * and fmt2rgb888() makes MODEL_RGB of a JPEG frame; that function writes blue first, so swap red and blue.
 */
#include <inttypes.h>
#include <stdio.h>

#include "esp_timer.h"
#include "model.h"

static model_arena arena; /* in internal RAM; it serves one picture at a time */
static float logits[MODEL_CLASSES];
static uint8_t frame[96 * 96];

static void classify(const uint8_t* pixels, int width, int height, int format) {
    const int64_t begin = esp_timer_get_time();
    const int status = model_picture_logits(pixels, width, height, 0, format, 1, &arena, logits);
    const int64_t microseconds = esp_timer_get_time() - begin;
    if (status != MODEL_OK) {
        printf("no answer, status %d\n", status);
    } else if (model_is_unknown(logits) == 1) {
        printf("none of the classes; %" PRId64 " us\n", microseconds);
    } else {
        printf("%s; %" PRId64 " us\n", model_class_name(model_best(logits)), microseconds);
    }
}

void app_main(void) {
    const int checked = model_check(&arena);
    printf("logits %s those of gsb-vit\n", checked == MODEL_OK ? "equal" : "differ from");
    for (int y = 0; y < 96; ++y) { /* a bright square on black */
        for (int x = 0; x < 96; ++x) frame[96 * y + x] = x >= 32 && x < 64 && y >= 32 && y < 64 ? 255 : 0;
    }
    classify(frame, 96, 96, MODEL_GREY);
}
