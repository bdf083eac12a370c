/* ---- The heads */

/* y = (x − mean)·factor·weight + bias; y may be x. Says whether the norm holds. */
static int final_norm(const float* x, float* y) {
    float mean;
    const float factor = norm_factor(x, &mean);
    for (int i = 0; i < EMBED_DIM; ++i) y[i] = (((x[i] - mean) * factor) * norm_weight[i]) + norm_bias[i];
    return norm_holds(factor);
}

#if POOL_MEAN && PATCHES > 1
static void mean_of_patches(struct arena* arena, float* mean) {
    const float share = 1.0f / (float)PATCHES;
    for (int c = 0; c < EMBED_DIM; ++c) {
        mean[c] = sum16(&arena->u.run.x[PREFIX_TOKENS][c], PATCHES, EMBED_DIM) * share;
    }
}
#endif

/* What head `head` reads, normalised, into row. Says whether the norms hold. */
static int head_input(struct arena* arena, int head, float* row) {
#if POOL_MEAN && PATCHES > 1 && NORM_BEFORE_POOL
    int holds = 1;
    for (int token = PREFIX_TOKENS; token < TOKENS; ++token) {
        holds &= final_norm(arena->u.run.x[token], arena->u.run.x[token]);
    }
    (void)head;
    mean_of_patches(arena, row);
    return holds;
#elif POOL_MEAN && PATCHES > 1
    (void)head;
    mean_of_patches(arena, row);
    return final_norm(row, row);
#else
    return final_norm(arena->u.run.x[READ_FIRST + head], row);
#endif
}

static int classify(struct arena* arena, float* logits) {
    struct classifying* now = &arena->u.run.now.classifying;
    int holds = 1;
    for (int head = 0; head < NUM_HEADS_OUT; ++head) {
        const int8_t* weight = head_weight[head];
        holds &= head_input(arena, head, now->row);
        for (int c = 0; c < EMBED_DIM; ++c) {
            now->levels[c] = signed_level_of((now->row[c] + head_shift[head][c]) / head_input_scale[head]);
        }
        for (int k = 0; k < NUM_CLASSES; ++k) {
            int32_t sum = 0;
            float logit;
            for (int c = 0; c < EMBED_DIM; ++c) sum += now->levels[c] * *weight++;
            logit = (float)sum * head_scale[head][k] + head_bias[head][k];
            logits[k] = head == 0 ? logit : (logits[k] + logit) * 0.5f;
        }
    }
    for (int k = 0; k < NUM_CLASSES; ++k) holds &= logits[k] >= -FLT_MAX && logits[k] <= FLT_MAX;
    return holds;
}

static int run(struct arena* arena, const uint8_t* pixels, float* logits) {
    int holds = 1;
    embed(arena, pixels);
#if PREFIX_TOKENS > 0
    memcpy(arena->u.run.x, prefix_tokens, sizeof prefix_tokens);
#endif
    for (int block = 0; holds && block < DEPTH; ++block) holds = run_block(arena, block);
    if (holds && classify(arena, logits)) return MODEL_OK;
    for (int k = 0; k < NUM_CLASSES; ++k) logits[k] = NAN;
    return MODEL_NOT_FINITE;
}
