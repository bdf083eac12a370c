/* A model on an Arduino board with a 32-bit processor: is it exact here, and how long does a picture take?
 *
 *   gsb-vit export MODEL.safetensors --c native/examples/arduino/classify
 *
 * puts model.c and model.h beside this sketch; then open it in the Arduino IDE. RAM and flash that the model takes are
 * printed by that command. AVR boards (Uno, Mega) are too small, and model.c does not compile for them.
 */
#include "model.h"

static model_arena arena;
static float logits[MODEL_CLASSES];
static uint8_t picture[MODEL_HEIGHT * MODEL_WIDTH];

void setup() {
  Serial.begin(115200);
  const int checked = model_check(&arena);
  Serial.println(checked == MODEL_OK ? "logits equal those of gsb-vit" : "logits differ from those of gsb-vit");
}

void loop() {
  // Put a camera's grey frame here, of any size up to MODEL_MAX_PICTURE_WIDTH columns.
  for (int i = 0; i < MODEL_HEIGHT * MODEL_WIDTH; ++i) picture[i] = i % MODEL_WIDTH * 255 / MODEL_WIDTH;
  const unsigned long begin = micros();
  if (model_picture_logits(picture, MODEL_WIDTH, MODEL_HEIGHT, 0, MODEL_GREY, 1, &arena, logits) != MODEL_OK) {
    Serial.println("no answer");
  } else if (model_is_unknown(logits) == 1) {
    Serial.println("none of the classes");
  } else {
    Serial.print(model_class_name(model_best(logits)));
    Serial.print(", microseconds: ");
    Serial.println(micros() - begin);
  }
  delay(1000);
}
