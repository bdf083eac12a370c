// The C API: every exception becomes an error text.
#include <algorithm>
#include <exception>
#include <new>
#include <string>

#include "error.h"
#include "gsb_vit.h"
#include "model.h"

struct gsb_vit_model {
    gsb::Model model;
};

namespace {

std::string& last_error() {
    static thread_local std::string text;
    return text;
}

// Runs action(); on an exception keeps its text and returns `failure`.
template <class Result, class Action>
Result guarded(Result failure, Action action) {
    try {
        return action();
    } catch (const gsb::Error& error) {
        last_error() = error.what();
    } catch (const std::bad_alloc&) {
        last_error() = "there is not enough memory for this model";
    } catch (const std::exception& error) {
        last_error() = std::string("unexpected: ") + error.what();
    }
    return failure;
}

}  // namespace

extern "C" {

gsb_vit_model* gsb_vit_load(const char* path, int threads, const char* backend) {
    return guarded<gsb_vit_model*>(nullptr, [&] {
        if (!path) throw gsb::Error("no path given");
        return new gsb_vit_model{gsb::Model(std::make_unique<gsb::PackedModel>(path), threads, backend ? backend : "")};
    });
}

void gsb_vit_free(gsb_vit_model* model) {
    delete model;
}

gsb_vit_info gsb_vit_get_info(const gsb_vit_model* model) {
    const gsb::Architecture& a = model->model.architecture();
    return {a.image_height, a.image_width, a.num_classes, a.num_tokens(),         a.embed_dim,
            a.depth,        a.num_heads,   a.mlp_hidden,  model->model.threads(), model->model.kernels().name,
            a.name.c_str()};
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
