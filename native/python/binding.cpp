// gsb_vit._native: the model, and single kernels for the tests.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "arrays.h"
#include "error.h"
#include "file/xxh64.h"
#include "kernels/dispatch.h"
#include "machine/core_speed.h"
#include "model.h"

using namespace nb::literals;

namespace {

// Checks the pictures' shape and runs them: (B, width).
template <typename Run>
Result<float> run_pictures(const gsb::Model& model, const Array<uint8_t, 4>& pixels, size_t width, Run run) {
    const gsb::Architecture& a = model.architecture();
    if (pixels.shape(1) != static_cast<size_t>(a.image_height) ||
        pixels.shape(2) != static_cast<size_t>(a.image_width) || pixels.shape(3) != 3) {
        throw gsb::Error("pictures must be uint8 (B, " + std::to_string(a.image_height) + ", " +
                         std::to_string(a.image_width) + ", 3)");
    }
    const size_t count = pixels.shape(0);
    std::vector<float> values(count * width);
    {
        nb::gil_scoped_release release;
        run(pixels.data(), count, values.data());
    }
    return result(std::move(values), {count, width});
}

Result<float> logits(gsb::Model& model, Array<uint8_t, 4> pixels) {
    return run_pictures(
        model, pixels, model.architecture().num_classes,
        [&](const uint8_t* pictures, size_t count, float* out) { model.predict(pictures, count, out); });
}

Result<float> embed(gsb::Model& model, Array<uint8_t, 4> pixels) {
    return run_pictures(model, pixels, model.feature_count(),
                        [&](const uint8_t* pictures, size_t count, float* out) { model.embed(pictures, count, out); });
}

std::vector<nb::tuple> profile(const gsb::Model& model) {
    std::vector<nb::tuple> rows;
    for (const gsb::StageReport& stage : model.profile()) {
        rows.push_back(nb::make_tuple(stage.name, stage.seconds, stage.bit_macs, stage.byte_macs));
    }
    return rows;
}

// A model travels to other processes as its file's bytes, with the threads and the backend that were asked for, and its
// limit.
using State = std::tuple<nb::bytes, int, std::string, size_t>;

State state(const gsb::Model& model) {
    return {nb::bytes(model.file().file_bytes(), model.file().file_size()), model.threads_wanted(),
            model.backend_wanted(), model.file().max_memory()};
}

void restore(gsb::Model* model, const State& from) {
    const auto& [bytes, threads, backend, max_memory] = from;
    auto file = std::make_unique<gsb::PackedModel>("a pickled model", static_cast<const uint8_t*>(bytes.data()),
                                                   bytes.size(), max_memory);
    new (model) gsb::Model(std::move(file), threads, backend);
}

nb::tuple core_speed(const std::string& backend) {
    const gsb::CoreSpeed speed = gsb::core_speed(gsb::choose_kernels(backend).name);
    return nb::make_tuple(speed.hz, speed.vector_adds, speed.byte_macs);
}

uint64_t checksum(Array<uint8_t, 1> bytes) {
    const nb::gil_scoped_release release;
    return gsb::xxh64(bytes.data(), bytes.size());
}

std::vector<std::string> backends() {
    std::vector<std::string> names;
    for (const gsb::Kernels* kernels : gsb::available_kernels()) names.push_back(kernels->name);
    return names;
}

}  // namespace

void bind_kernels(nb::module_& module);
void bind_pictures(nb::module_& module);

NB_MODULE(_native, module) {
    nb::exception<gsb::Error>(module, "NativeError", PyExc_ValueError);
    module.def("backends", backends, "The backends this machine can run, best first.");
    module.def("xxh64", checksum, "bytes"_a, "XXH64 with seed 0 of uint8 (n).");
    module.def("core_hz", gsb::core_hz, "Cycles a second of this core, now.");
    module.def("core_speed", core_speed, "backend"_a,
               "(cycles a second, vector additions a cycle, 8-bit products a cycle); 0 where not measured.");
    module.def(
        "read_rate",
        [](const std::string& backend, size_t bytes) {
            return gsb::read_rate(gsb::choose_kernels(backend).name, bytes);
        },
        "backend"_a, "bytes"_a, "Bytes a second one core reads from so much memory; 0 where not measured.");
    nb::class_<gsb::Model>(module, "Model")
        .def(
            "__init__",
            [](gsb::Model* model, const std::string& path, int threads, const std::string& backend, size_t max_memory) {
                const nb::gil_scoped_release release;
                new (model) gsb::Model(std::make_unique<gsb::PackedModel>(path, max_memory), threads, backend);
            },
            "path"_a, "threads"_a = 0, "backend"_a = "", "max_memory"_a = 0)
        .def("__getstate__", state)
        .def("__setstate__", restore)
        .def_prop_ro("backend", [](const gsb::Model& model) { return model.kernels().name; })
        .def_prop_ro("threads", &gsb::Model::threads)
        .def_prop_ro("header", &gsb::Model::header, "The metadata's model, JSON.")
        .def("logits", logits, "pixels"_a, "uint8 (B, H, W, 3) → float32 (B, K).")
        .def("embed", embed, "pixels"_a, "uint8 (B, H, W, 3) → float32 (B, heads · C).")
        .def("set_profiling", &gsb::Model::set_profiling, "on"_a)
        .def("profile", profile, "(stage, seconds, one-bit products, eight-bit products) of each stage.");
    bind_kernels(module);
    bind_pictures(module);
}
