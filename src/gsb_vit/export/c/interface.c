/* ---- What model.h offers */

static struct arena* arena_of(model_arena* arena) {
    return (struct arena*)(void*)arena;
}

int model_logits(const uint8_t* pixels, model_arena* arena, float* logits) {
    return run(arena_of(arena), pixels, logits);
}

const uint8_t* model_prepare(const uint8_t* pixels, int width, int height, size_t stride, int format, int orientation,
                             model_arena* arena) {
    struct upright u;
    struct axis across, down;
    float left = 0.0f, top = 0.0f, right, bottom;
    if (!pixels || width < 1 || height < 1 || orientation < 1 || orientation > 8) return NULL;
    if (format != MODEL_GREY && format != MODEL_RGB && format != MODEL_RGBA) return NULL;
    if (stride == 0) stride = (size_t)width * (size_t)format;
    if ((size_t)width > PTRDIFF_MAX / 4 / (size_t)height || stride < (size_t)width * (size_t)format) return NULL;
    if (stride > PTRDIFF_MAX / (size_t)height) return NULL;
    u = turned(pixels, width, height, stride, format, orientation);
    if (u.width > MODEL_MAX_PICTURE_WIDTH) return NULL;
    right = (float)u.width;
    bottom = (float)u.height;
#if KEEP_MIDDLE
    {
        const double w = u.width, h = u.height, high = IMAGE_HEIGHT / h, wide = IMAGE_WIDTH / w;
        const double factor = (high > wide ? high : wide) / CROP_RATIO;
        const double height_at = IMAGE_HEIGHT / factor, width_at = IMAGE_WIDTH / factor;
        const double kept_height = height_at < h ? height_at : h, kept_width = width_at < w ? width_at : w;
        const double x = (w - kept_width) / 2, y = (h - kept_height) / 2;
        left = (float)x;
        top = (float)y;
        right = (float)(x + kept_width < w ? x + kept_width : w);
        bottom = (float)(y + kept_height < h ? y + kept_height : h);
    }
#endif
    across = axis_of(u.width, left, right, IMAGE_WIDTH);
    down = axis_of(u.height, top, bottom, IMAGE_HEIGHT);
    resize(arena_of(arena), &u, &across, &down);
    return arena_of(arena)->u.run.now.embedding.pixels;
}

int model_picture_logits(const uint8_t* pixels, int width, int height, size_t stride, int format, int orientation,
                         model_arena* arena, float* logits) {
    const uint8_t* prepared = model_prepare(pixels, width, height, stride, format, orientation, arena);
    return prepared ? run(arena_of(arena), prepared, logits) : MODEL_NO_PICTURE;
}

int model_best(const float* logits) {
    int best = 0;
    for (int k = 1; k < NUM_CLASSES; ++k) {
        if (logits[k] > logits[best]) best = k;
    }
    return best;
}

void model_probabilities(const float* logits, double* probabilities) {
    const double largest = logits[model_best(logits)] / TEMPERATURE;
    double sum = 0.0;
    for (int k = 0; k < NUM_CLASSES; ++k) {
        probabilities[k] = exp(logits[k] / TEMPERATURE - largest);
        sum += probabilities[k];
    }
    for (int k = 0; k < NUM_CLASSES; ++k) probabilities[k] /= sum;
}

int model_is_unknown(const float* logits) {
#if UNKNOWN_SCORE == SCORE_NONE
    (void)logits;
    return -1;
#else
    double score = logits[model_best(logits)];
#if UNKNOWN_SCORE == SCORE_ENERGY
    const double largest = score;
    double sum = 0.0;
    for (int k = 0; k < NUM_CLASSES; ++k) sum += exp((logits[k] - largest) / TEMPERATURE);
    score = largest + TEMPERATURE * log(sum);
#endif
    return score < UNKNOWN_THRESHOLD;
#endif
}

const char* model_class_name(int index) {
    return index < 0 || index >= NUM_CLASSES ? NULL : class_names[index];
}

int model_check(model_arena* arena) {
    struct arena* a = arena_of(arena);
    uint8_t* pixels = a->u.run.now.embedding.pixels;
    float* logits = a->u.run.now.classifying.logits;
    uint32_t noise = 1, sum = 2166136261u;
    for (int i = 0; i < PIXEL_BYTES; ++i) {
        noise = noise * 1664525u + 1013904223u;
        pixels[i] = (uint8_t)(noise >> 24);
    }
    if (run(a, pixels, logits) != MODEL_OK) return MODEL_NOT_FINITE;
    for (int k = 0; k < NUM_CLASSES; ++k) {
        uint32_t bits;
        memcpy(&bits, &logits[k], sizeof bits);
        for (int shift = 0; shift < 32; shift += 8) sum = (sum ^ ((bits >> shift) & 255u)) * 16777619u;
    }
    return sum == CHECK_SUM ? MODEL_OK : MODEL_NOT_EXACT;
}
