// The C API: every exception becomes an error text.
#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "error.h"
// A shared library shows what this header declares, and nothing else.
#if defined(GSB_VIT_SHARED)
#pragma GCC visibility push(default)
#endif
#include "gsb_vit.h"
#if defined(GSB_VIT_SHARED)
#pragma GCC visibility pop
#endif
#include "model.h"

struct gsb_vit_model {
    gsb::Model model;
    std::atomic<size_t> max_pixels{gsb::kMaxPixels};
};

std::string& gsb::last_error() {
    static thread_local std::string text;
    return text;
}

namespace {

using gsb::last_error;

// Runs action(); on an exception keeps its text and returns `failure`.
template <class Result, class Action>
Result guarded(Result failure, Action action) {
    try {
        return action();
    } catch (const gsb::Error& error) {
        last_error() = error.what();
    } catch (const std::bad_alloc&) {
        last_error() = gsb::kNoMemory;
    } catch (const std::exception& error) {
        last_error() = std::string("unexpected: ") + error.what();
    }
    return failure;
}

void prepare(const gsb_vit_model* model, const uint8_t* pixels, int width, int height, size_t stride, int format,
             int orientation, uint8_t* prepared) {
    const size_t row = width > 0 && format > 0 ? static_cast<size_t>(width) * static_cast<size_t>(format) : 0;
    gsb::prepare(model->model.file().preprocessing(),
                 {pixels, width, height, stride ? stride : row, static_cast<gsb::PixelFormat>(format), orientation},
                 model->model.kernels(), model->max_pixels, prepared);
}

}  // namespace

extern "C" {

gsb_vit_model* gsb_vit_load(const char* path, int threads, const char* backend) {
    return gsb_vit_load_within(path, threads, backend, 0);
}

gsb_vit_model* gsb_vit_load_within(const char* path, int threads, const char* backend, size_t max_memory) {
    return guarded<gsb_vit_model*>(nullptr, [&] {
        if (!path) throw gsb::Error("no path given");
        auto file = std::make_unique<gsb::PackedModel>(path, max_memory);
        return new gsb_vit_model{{std::move(file), threads, backend ? backend : ""}};
    });
}

gsb_vit_model* gsb_vit_load_bytes(const uint8_t* bytes, size_t size, int threads, const char* backend) {
    return guarded<gsb_vit_model*>(nullptr, [&] {
        if (!bytes) throw gsb::Error("no bytes given");
        return new gsb_vit_model{
            gsb::Model(std::make_unique<gsb::PackedModel>("the model", bytes, size), threads, backend ? backend : "")};
    });
}

void gsb_vit_free(gsb_vit_model* model) {
    delete model;
}

gsb_vit_info gsb_vit_get_info(const gsb_vit_model* model) {
    const gsb::Architecture& a = model->model.architecture();
    return {a.image_height, a.image_width,       a.num_classes, a.num_tokens(),         a.embed_dim,
            a.depth,        a.num_heads,         a.mlp_hidden,  model->model.threads(), model->model.kernels().name,
            a.name.c_str(), a.attention_groups()};
}

const char* gsb_vit_class_name(const gsb_vit_model* model, int index) {
    const auto& names = model->model.class_names();
    return index >= 0 && static_cast<size_t>(index) < names.size() ? names[index].c_str() : nullptr;
}

int gsb_vit_predict(gsb_vit_model* model, const uint8_t* pixels, size_t count, float* logits) {
    return guarded(-1, [&] {
        if (count > 0 && (!pixels || !logits)) throw gsb::Error("no pixels or no room for logits given");
        model->model.predict(pixels, count, logits);
        return 0;
    });
}

int gsb_vit_masks(gsb_vit_model* model, const uint8_t* pixels, uint8_t* masks) {
    return guarded(-1, [&] {
        if (!pixels || !masks) throw gsb::Error("no pixels or no room for masks given");
        model->model.masks(pixels, masks);
        return 0;
    });
}

gsb_vit_decision gsb_vit_get_decision(const gsb_vit_model* model) {
    const gsb::Decision& decision = model->model.decision();
    return {decision.temperature, decision.has_unknown ? 1 : 0, decision.false_alarm_rate};
}

int gsb_vit_probabilities(const gsb_vit_model* model, const float* logits, size_t count, double* probabilities) {
    return guarded(-1, [&] {
        if (count > 0 && (!logits || !probabilities)) throw gsb::Error("no logits or no room for probabilities given");
        const int classes = model->model.architecture().num_classes;
        for (size_t i = 0; i < count; ++i) {
            model->model.decision().probabilities(logits + i * classes, classes, probabilities + i * classes);
        }
        return 0;
    });
}

int gsb_vit_predict_image(gsb_vit_model* model, const uint8_t* pixels, int width, int height, size_t stride, int format,
                          int orientation, float* logits) {
    return guarded(-1, [&] {
        if (!logits) throw gsb::Error("no room for logits given");
        const gsb::Architecture& a = model->model.architecture();
        std::vector<uint8_t> prepared(3 * static_cast<size_t>(a.image_height) * static_cast<size_t>(a.image_width));
        prepare(model, pixels, width, height, stride, format, orientation, prepared.data());
        model->model.predict(prepared.data(), 1, logits);
        return 0;
    });
}

int gsb_vit_prepare_image(const gsb_vit_model* model, const uint8_t* pixels, int width, int height, size_t stride,
                          int format, int orientation, uint8_t* prepared) {
    return guarded(-1, [&] {
        if (!prepared) throw gsb::Error("no room for pixels given");
        prepare(model, pixels, width, height, stride, format, orientation, prepared);
        return 0;
    });
}

void gsb_vit_set_max_pixels(gsb_vit_model* model, size_t pixels) {
    model->max_pixels = pixels;
}

int gsb_vit_is_unknown(const gsb_vit_model* model, const float* logits) {
    return guarded(-1, [&] {
        const gsb::Decision& decision = model->model.decision();
        if (!logits) throw gsb::Error("no logits given");
        if (!decision.has_unknown) throw gsb::Error("the model has no threshold for unknown pictures; export it again");
        const int classes = model->model.architecture().num_classes;
        return decision.known_score(logits, classes) < decision.threshold ? 1 : 0;
    });
}

void gsb_vit_set_profiling(gsb_vit_model* model, int on) {
    model->model.set_profiling(on != 0);
}

size_t gsb_vit_profile(const gsb_vit_model* model, gsb_vit_stage* stages, size_t capacity) {
    return guarded<size_t>(0, [&] {
        const std::vector<gsb::StageReport> report = model->model.profile();
        for (size_t i = 0; i < std::min(capacity, report.size()); ++i) {
            stages[i] = {report[i].name, report[i].seconds, report[i].bit_macs, report[i].byte_macs};
        }
        return report.size();
    });
}

const char* gsb_vit_backends(void) {
    return gsb::available_names().c_str();
}

const char* gsb_vit_error(void) {
    return last_error().c_str();
}

}  // extern "C"
