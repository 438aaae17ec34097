// GELU and its derivative of an array.

#include "activation.h"

#include <algorithm>

#include "limits.h"

namespace {

constexpr int64_t BLOCK = 8192;  // elements that a thread takes at a time

template <typename T>
void apply(int64_t count, int64_t threads, const T* x, T* value, T* derivative) {
    constexpr int64_t W = Simd<T>::width;
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t end = std::min(start + BLOCK, count), whole = start + (end - start) / W * W;
        Vector<T> y, d;
        for (int64_t i = start; i < whole; i += W) {
            gelu(load(x + i), y, d);
            store(value + i, y);
            store(derivative + i, d);
        }
        if (whole == end) continue;
        T rest[W] = {};
        std::copy(x + whole, x + end, rest);
        gelu(load(rest), y, d);
        for (int64_t i = whole; i < end; ++i) value[i] = y[i - whole], derivative[i] = d[i - whole];
    }
}

}  // namespace

extern "C" {

int64_t limit(const char* name) { return find_limit(name); }

void gelu_f32(int64_t count, int64_t threads, const float* x, float* value, float* derivative) {
    apply(count, threads, x, value, derivative);
}
void gelu_f64(int64_t count, int64_t threads, const double* x, double* value, double* derivative) {
    apply(count, threads, x, value, derivative);
}
}
