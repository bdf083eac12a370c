/* A model on a bare Cortex-M: is it exact here, what does it answer, what does it take?
 *
 *   gsb-vit export MODEL.safetensors --c .
 *   arm-none-eabi-gcc -std=c99 -Os -ffp-contract=off -ffunction-sections -mcpu=cortex-m4 -mfpu=fpv4-sp-d16 \
 *       -mfloat-abi=hard -I. -nostartfiles -specs=nano.specs -specs=nosys.specs -T device.ld -Wl,--gc-sections \
 *       main.c startup.c model.c -lm -o model.elf
 *   qemu-system-arm -M mps2-an386 -icount shift=0 -display none -semihosting -kernel model.elf
 *
 * For a Cortex-M7: -mcpu=cortex-m7 -mfpu=fpv5-d16 -mfloat-abi=hard and -M mps2-an500; for a Cortex-M55:
 * -mcpu=cortex-m55 -mfloat-abi=hard and -M mps3-an547. With -DPICTURES="pictures.h", a file that defines PICTURE_COUNT,
 * PICTURE_WIDTH, PICTURE_HEIGHT and static const uint8_t pictures[][HEIGHT * WIDTH * 3], it prints their logits' bits.
 */
#include <string.h>

#include "board.h"
#include "model.h"

#ifdef PICTURES
#include PICTURES
#endif

static model_arena arena;
static float logits[MODEL_CLASSES];

static void print_number(const char* what, uint32_t number) {
    print(what);
    print(" ");
    print_hex(number);
    print("\n");
}

int main(void) {
    const uint8_t* pixels;
    uint64_t begin;
    int checked;
    paint_stack();
    checked = model_check(&arena);
    print(checked == MODEL_OK ? "logits equal those of gsb-vit\n" : "logits differ from those of gsb-vit\n");
    pixels = arena.bytes; /* whatever is there: the time does not depend on it much */
    begin = ticks();
    if (model_logits(pixels, &arena, logits) != MODEL_OK) print("these pixels give no logits\n");
    print_number("ticks", (uint32_t)(ticks() - begin));
#ifdef PICTURES
    for (int i = 0; i < PICTURE_COUNT; ++i) {
        begin = ticks();
        pixels = model_prepare(pictures[i], PICTURE_WIDTH, PICTURE_HEIGHT, 0, MODEL_RGB, 1, &arena);
        print_number("prepared", (uint32_t)(ticks() - begin));
        begin = ticks();
        if (!pixels || model_logits(pixels, &arena, logits) != MODEL_OK) return 1;
        print_number("classified", (uint32_t)(ticks() - begin));
        print("logits");
        for (int k = 0; k < MODEL_CLASSES; ++k) {
            uint32_t bits;
            memcpy(&bits, &logits[k], sizeof bits);
            print(" ");
            print_hex(bits);
        }
        print("\n");
        print(model_class_name(model_best(logits)));
        print("\n");
    }
#endif
    print_number("stack", stack_used());
    print_number("arena", sizeof arena);
    return checked != MODEL_OK;
}
