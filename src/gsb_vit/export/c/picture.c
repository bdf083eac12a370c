/* ---- From a picture to pixels: Pillow's arithmetic, horizontally first */

/* A picture as it stands upright: pixel (x, y) is at origin + x·across + y·down. */
struct upright {
    const uint8_t* origin;
    ptrdiff_t across, down;
    int width, height, format;
};

static struct upright turned(const uint8_t* pixels, int width, int height, size_t stride, int format, int orientation) {
    const ptrdiff_t pixel = format, row = (ptrdiff_t)stride;
    const ptrdiff_t right = (width - 1) * pixel, bottom = (height - 1) * row;
    struct upright u = {NULL, 0, 0, 0, 0, 0};
    const int is_mirrored = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const int is_flipped = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const ptrdiff_t along = is_mirrored ? -pixel : pixel, below = is_flipped ? -row : row;
    const int is_lying = orientation >= 5;
    u.origin = pixels + (is_mirrored ? right : 0) + (is_flipped ? bottom : 0);
    u.across = is_lying ? below : along;
    u.down = is_lying ? along : below;
    u.width = is_lying ? height : width;
    u.height = is_lying ? width : height;
    u.format = format;
    return u;
}

/* A channel laid on white: value·opacity + 255·(1 − opacity), rounded as Pillow does. */
static inline uint8_t on_white(int value, int opacity) {
    const int sum = value * opacity + 255 * (255 - opacity) + 128;
    return (uint8_t)(((sum >> 8) + sum) >> 8);
}

static inline void read_pixel(const struct upright* u, const uint8_t* pixel, uint8_t* rgb) {
    for (int c = 0; c < 3; ++c) {
        rgb[c] = u->format == MODEL_GREY ? pixel[0] : u->format == MODEL_RGB ? pixel[c] : on_white(pixel[c], pixel[3]);
    }
}

#if FILTER_SUPPORT > 0
/* Line y as RGB: where it is, or copied into buffer. */
static inline const uint8_t* read_line(const struct upright* u, int y, uint8_t* buffer) {
    const uint8_t* from = u->origin + y * u->down;
    if (u->format == MODEL_RGB && u->across == 3) return from;
    for (int x = 0; x < u->width; ++x) read_pixel(u, from + x * u->across, buffer + 3 * x);
    return buffer;
}
#endif

/* One axis of the part of a picture that is kept. */
struct axis {
    double scale, support, factor;
    float begin;
    int pixels;
};

static struct axis axis_of(int pixels, float begin, float end, int outputs) {
    struct axis a;
    double widening;
    a.scale = (double)(end - begin) / outputs;
    widening = a.scale < 1.0 ? 1.0 : a.scale;
    a.support = FILTER_SUPPORT * widening;
    a.factor = 1.0 / widening;
    a.begin = begin;
    a.pixels = pixels;
    return a;
}

#if FILTER_SUPPORT == 0
/* Each output takes one pixel. Sums of steps round, as Pillow's do; behind the last pixel there is black. */
static void resize(struct arena* arena, const struct upright* u, const struct axis* across, const struct axis* down) {
    uint8_t* out = arena->u.run.now.embedding.pixels;
    double y = down->begin + down->scale * 0.5;
    for (int row = 0; row < IMAGE_HEIGHT; ++row, y += down->scale) {
        double x = across->begin + across->scale * 0.5;
        for (int column = 0; column < IMAGE_WIDTH; ++column, x += across->scale, out += 3) {
            out[0] = out[1] = out[2] = 0;
            if (y < down->pixels && x < across->pixels) {
                read_pixel(u, u->origin + (int)y * u->down + (int)x * u->across, out);
            }
        }
    }
}
#else
static inline double filter_at(double x) {
    if (x < 0.0) x = -x;
#if FILTER_SUPPORT == 1
    return x < 1.0 ? 1.0 - x : 0.0;
#else
    {
        const double a = -0.5;
        if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
        return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
    }
#endif
}

static inline double centre_of(const struct axis* a, int output) {
    return a->begin + (output + 0.5) * a->scale;
}

static inline double weight_of(const struct axis* a, double centre, int pixel) {
    return filter_at((pixel - centre + 0.5) * a->factor);
}

static struct window window_of(const struct axis* a, int output) {
    const double centre = centre_of(a, output);
    struct window w;
    w.first = (int)(centre - a->support + 0.5);
    if (w.first > a->pixels - 1) w.first = a->pixels - 1;
    if (w.first < 0) w.first = 0;
    w.end = (int)(centre + a->support + 0.5);
    if (w.end > a->pixels) w.end = a->pixels;
    w.sum = 0.0;
    for (int pixel = w.first; pixel < w.end; ++pixel) w.sum += weight_of(a, centre, pixel);
    return w;
}

/* A pixel's share of an output; 2^22 stands for 1. */
static int32_t fixed_weight(const struct axis* a, int output, const struct window* w, int pixel) {
    const double exact = weight_of(a, centre_of(a, output), pixel);
    const double share = w->sum != 0.0 ? exact / w->sum : exact;
    return (int32_t)(share < 0 ? -0.5 + share * 4194304.0 : 0.5 + share * 4194304.0);
}

/* An arithmetic shift, whatever the compiler makes of >> for negative numbers; then the nearest grey level. */
static inline uint8_t grey_level(int32_t sum) {
    if (sum < 0) return 0;
    sum >>= 22;
    return (uint8_t)(sum > 255 ? 255 : sum);
}

static void resize_line(const struct resizing* r, const uint8_t* in, uint8_t* out) {
    const int32_t* weight = r->weights;
    for (int o = 0; o < IMAGE_WIDTH; ++o, out += 3) {
        const uint8_t* pixel = in + 3 * (ptrdiff_t)r->first[o];
        int32_t red = 1 << 21, green = 1 << 21, blue = 1 << 21;
        for (int i = 0; i < r->taps[o]; ++i, pixel += 3, ++weight) {
            red += pixel[0] * *weight;
            green += pixel[1] * *weight;
            blue += pixel[2] * *weight;
        }
        out[0] = grey_level(red);
        out[1] = grey_level(green);
        out[2] = grey_level(blue);
    }
}

/* Each line of the picture is resized once and added to all lines of the result that it is part of. */
static void resize(struct arena* arena, const struct upright* u, const struct axis* across, const struct axis* down) {
    struct resizing* r = &arena->u.resizing;
    uint8_t* out = arena->u.run.now.embedding.pixels; /* where r->sums begins */
    int32_t* weight = r->weights;
    int open = 0;
    for (int o = 0; o < IMAGE_WIDTH; ++o) {
        const struct window w = window_of(across, o);
        r->first[o] = w.first;
        r->taps[o] = w.end > w.first ? w.end - w.first : 0;
        for (int pixel = w.first; pixel < w.end; ++pixel) *weight++ = fixed_weight(across, o, &w, pixel);
    }
    for (int o = 0; o < IMAGE_HEIGHT; ++o) r->down[o] = window_of(down, o);
    for (int i = 0; i < PIXEL_BYTES; ++i) r->sums[i] = 1 << 21;
    for (int y = r->down[0].first; y < r->down[IMAGE_HEIGHT - 1].end; ++y) {
        resize_line(r, read_line(u, y, r->source), r->line);
        while (open < IMAGE_HEIGHT && r->down[open].end <= y) ++open;
        for (int o = open; o < IMAGE_HEIGHT && r->down[o].first <= y; ++o) {
            int32_t* sum = r->sums + (ptrdiff_t)o * IMAGE_WIDTH * 3;
            const int32_t share = fixed_weight(down, o, &r->down[o], y);
            for (int i = 0; i < 3 * IMAGE_WIDTH; ++i) sum[i] += r->line[i] * share;
        }
    }
    for (int i = 0; i < PIXEL_BYTES; ++i) out[i] = grey_level(r->sums[i]);
}
#endif
