/* A model on a processor that is emulated: the bits of one picture's logits. The picture has the model's size. */
#include <string.h>

#include "board.h"
#include "model.h"
#include "pictures.h"

static model_arena arena;
static float logits[MODEL_CLASSES];

int main(void) {
    const int checked = model_check(&arena);
    print(checked == MODEL_OK ? "logits equal those of gsb-vit\n" : "logits differ from those of gsb-vit\n");
    ticks();
    if (model_logits(pictures[0], &arena, logits) != MODEL_OK) return 1;
    ticks();
    print("logits");
    for (int k = 0; k < MODEL_CLASSES; ++k) {
        uint32_t bits;
        memcpy(&bits, &logits[k], sizeof bits);
        print(" ");
        print_hex(bits);
    }
    print("\n");
    return checked != MODEL_OK;
}
