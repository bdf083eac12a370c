#include "weights/model_weights.h"

#include <algorithm>
#include <string>

namespace gsb {

ModelWeights::ModelWeights(const PackedModel& model, const Shape& shape, const Kernels& kernels) {
    const Architecture& a = model.architecture();
    patch_weight = pack_patch_weights(kernels.patches, model.bytes(-1, "patch_embed.weight"), shape.width,
                                      a.patch_height * a.patch_width);
    const std::vector<float> scale = model.copy<float>(-1, "patch_embed.scale");
    const std::vector<float> flat = model.copy<float>(-1, "patch_embed.position");
    const size_t padded = shape.padded_width, width = shape.width;
    patch_scale = Buffer<float>(3 * padded);
    for (size_t c = 0; c < width; ++c) {
        for (size_t colour = 0; colour < 3; ++colour) patch_scale[colour * padded + c] = scale[3 * c + colour];
    }
    position = Buffer<float>(shape.patches * padded);
    for (int row = 0; row < shape.patches; ++row) {
        std::copy_n(flat.begin() + row * width, width, position.begin() + row * padded);
    }
    prefix_tokens = model.copy<float>(-1, "prefix_tokens");
    norm_weight = model.copy<float>(-1, "norm.weight");
    norm_bias = model.copy<float>(-1, "norm.bias");
    for (size_t head = 0; head < a.heads.size(); ++head) {
        const std::string name = "heads." + std::to_string(head) + ".";
        const auto floats = [&](const char* part) { return model.copy<float>(-1, (name + part).c_str()); };
        heads.push_back({floats("shift"), floats("scale"), floats("bias"), floats("input_scale")[0],
                         reinterpret_cast<const int8_t*>(model.bytes(-1, (name + "weight").c_str()))});
    }
    blocks.reserve(a.depth);
    for (int block = 0; block < a.depth; ++block) blocks.emplace_back(model, shape, kernels, block);
}

}  // namespace gsb
