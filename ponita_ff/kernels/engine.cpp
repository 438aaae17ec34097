// The engine (engine.h) as functions for Python.

#include "engine.h"
#include "image.h"

namespace {

template <typename T>
int64_t workspace_bytes(const Model* model, const Task* task) {
    if (!fits(model->shape)) return -1;
    return most_bytes(task->threads, [&](int64_t threads) { return Engine<T>(*model, *task, threads).bytes(); });
}

template <typename T>
void evaluate(const Model* model, const Task* task) {
    const auto make = [&](int64_t threads) {
        auto* engine = new Engine<T>(*model, *task, threads);
        engine->prepare();
        return engine;
    };
    on_threads(task->threads, make, [](Engine<T>& engine, int64_t thread) { engine.run(thread); });
}

}  // namespace

extern "C" {

int64_t limit(const char* name) { return find_limit(name); }
int64_t struct_size(const char* name) {
    return find_value(name, {SHARED_STRUCT(Shape), SHARED_STRUCT(Layer), SHARED_STRUCT(Model), SHARED_STRUCT(Task),
                             SHARED_STRUCT(Image)});
}

int64_t vector_width_f32() { return Simd<float>::width; }
int64_t vector_width_f64() { return Simd<double>::width; }
int64_t workspace_bytes_f32(const Model* model, const Task* task) { return workspace_bytes<float>(model, task); }
int64_t workspace_bytes_f64(const Model* model, const Task* task) { return workspace_bytes<double>(model, task); }
void evaluate_f32(const Model* model, const Task* task) { evaluate<float>(model, task); }
void evaluate_f64(const Model* model, const Task* task) { evaluate<double>(model, task); }
}
