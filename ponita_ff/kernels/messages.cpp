// Sums over neighbours with kernels that are sums of products, and the derivatives of such sums.
//
//     Q(A, R, f, g) = sum_i,m,l,o,c  A(i,m,l,o) R(i,m,l,c) f(j(i,m),o,c) g(i,o,c)
//
// over atoms i, their neighbours j = j(i, m) in slots m, degrees l, orientations o, channels c. The kernel sum_l A R of
// an edge, (orientations, channels), lives in registers only. Channels come as a multiple of the vector width.

#include <algorithm>

#include "limits.h"
#include "simd.h"

extern "C" {
struct MessageShape {
    int64_t atoms, max_neighbours, degrees, orientations, channels, threads;
    const int64_t *neighbours, *reverse;
    const bool* active;  // (atoms, max_neighbours): edges that count
};
}

namespace {

// out(o, c) += sum_l A(l, o) R(l, c) f(o, c), with a second product A' R' if PAIR. D degrees, known only here if 0.
template <typename T, int D, bool PAIR>
void add_message(const MessageShape& s, const T* a, const T* r, const T* a2, const T* r2, const T* f, T* out) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t degrees = D ? D : s.degrees, channels = s.channels, orientations = s.orientations;
    for (int64_t c = 0; c < channels; c += W) {
        Vector<T> one[D ? D : MAX_DEGREES], two[PAIR ? (D ? D : MAX_DEGREES) : 1];
        for (int64_t l = 0; l < degrees; ++l) {
            one[l] = load(r + l * channels + c);
            if constexpr (PAIR) two[l] = load(r2 + l * channels + c);
        }
        for (int64_t o = 0; o < orientations; ++o) {
            Vector<T> kernel = all(T(0));
#pragma GCC unroll 13
            for (int64_t l = 0; l < degrees; ++l) {
                kernel += all(a[l * orientations + o]) * one[l];
                if constexpr (PAIR) kernel += all(a2[l * orientations + o]) * two[l];
            }
            T* target = out + o * channels + c;
            store(target, load(target) + kernel * load(f + o * channels + c));
        }
    }
}

// out(l, c) = sum_o A(l, o) f(o, c) g(o, c)
template <typename T, int D>
void radial_gradient(const MessageShape& s, const T* a, const T*, const T* f, const T* g, T* out) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t degrees = D ? D : s.degrees, channels = s.channels, orientations = s.orientations;
    for (int64_t c = 0; c < channels; c += W) {
        Vector<T> sums[D ? D : MAX_DEGREES];
        for (int64_t l = 0; l < degrees; ++l) sums[l] = all(T(0));
        for (int64_t o = 0; o < orientations; ++o) {
            const Vector<T> product = load(f + o * channels + c) * load(g + o * channels + c);
#pragma GCC unroll 13
            for (int64_t l = 0; l < degrees; ++l) sums[l] += all(a[l * orientations + o]) * product;
        }
        for (int64_t l = 0; l < degrees; ++l) store(out + l * channels + c, sums[l]);
    }
}

// out(l, o) = sum_c R(l, c) f(o, c) g(o, c)
template <typename T, int D>
void angular_gradient(const MessageShape& s, const T*, const T* r, const T* f, const T* g, T* out) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t degrees = D ? D : s.degrees, channels = s.channels, orientations = s.orientations;
    for (int64_t o = 0; o < orientations; ++o) {
        Vector<T> sums[D ? D : MAX_DEGREES];
        for (int64_t l = 0; l < degrees; ++l) sums[l] = all(T(0));
        for (int64_t c = 0; c < channels; c += W) {
            const Vector<T> product = load(f + o * channels + c) * load(g + o * channels + c);
#pragma GCC unroll 13
            for (int64_t l = 0; l < degrees; ++l) sums[l] += load(r + l * channels + c) * product;
        }
        for (int64_t l = 0; l < degrees; ++l) out[l * orientations + o] = sum<T>(sums[l]);
    }
}

// dQ/dg, or dQ/df where `adjoint`: then each edge's kernel is that of the reversed edge.
template <typename T, int D, bool PAIR>
void sum_messages(const MessageShape& s, const T* a, const T* r, const T* a2, const T* r2, const T* f, bool adjoint,
                  T* out) {
    const int64_t row = s.orientations * s.channels, of_a = s.degrees * s.orientations, of_r = s.degrees * s.channels;
#pragma omp parallel for num_threads(int(s.threads)) schedule(static)
    for (int64_t atom = 0; atom < s.atoms; ++atom) {
        std::fill(out + atom * row, out + (atom + 1) * row, T(0));
        for (int64_t slot = 0; slot < s.max_neighbours; ++slot) {
            const int64_t at = atom * s.max_neighbours + slot, other = s.neighbours[at];
            if (!s.active[at]) continue;
            const int64_t edge = adjoint ? other * s.max_neighbours + s.reverse[at] : at;
            add_message<T, D, PAIR>(s, a + edge * of_a, r + edge * of_r, PAIR ? a2 + edge * of_a : nullptr,
                                    PAIR ? r2 + edge * of_r : nullptr, f + other * row, out + atom * row);
        }
    }
}

// dQ/dR, or dQ/dA where `angular`.
template <typename T, int D>
void edge_gradients(const MessageShape& s, const T* a, const T* r, const T* f, const T* g, bool angular, T* out) {
    const int64_t row = s.orientations * s.channels, of_a = s.degrees * s.orientations, of_r = s.degrees * s.channels;
    const int64_t size = angular ? of_a : of_r;
#pragma omp parallel for num_threads(int(s.threads)) schedule(static)
    for (int64_t atom = 0; atom < s.atoms; ++atom)
        for (int64_t slot = 0; slot < s.max_neighbours; ++slot) {
            const int64_t edge = atom * s.max_neighbours + slot;
            T* target = out + edge * size;
            if (!s.active[edge])
                std::fill(target, target + size, T(0));
            else if (angular)
                angular_gradient<T, D>(s, a, r + edge * of_r, f + s.neighbours[edge] * row, g + atom * row, target);
            else
                radial_gradient<T, D>(s, a + edge * of_a, r, f + s.neighbours[edge] * row, g + atom * row, target);
        }
}

template <typename T>
void sum_messages(const MessageShape& s, const T* a, const T* r, const T* a2, const T* r2, const T* f, bool adjoint,
                  T* out) {
#define DEGREES(D)                                                             \
    case D:                                                                    \
        return a2 ? sum_messages<T, D, true>(s, a, r, a2, r2, f, adjoint, out) \
                  : sum_messages<T, D, false>(s, a, r, a2, r2, f, adjoint, out);
    switch (s.degrees) {
        DEGREES(1)
        DEGREES(2)
        DEGREES(3)
        DEGREES(4)
            DEGREES(5) DEGREES(6) DEGREES(7) default : return a2
                                                       ? sum_messages<T, 0, true>(s, a, r, a2, r2, f, adjoint, out)
                                                       : sum_messages<T, 0, false>(s, a, r, a2, r2, f, adjoint, out);
    }
#undef DEGREES
}

template <typename T>
void edge_gradients(const MessageShape& s, const T* a, const T* r, const T* f, const T* g, bool angular, T* out) {
#define DEGREES(D) \
    case D: return edge_gradients<T, D>(s, a, r, f, g, angular, out);
    switch (s.degrees) {
        DEGREES(1)
        DEGREES(2)
        DEGREES(3)
        DEGREES(4) DEGREES(5) DEGREES(6) DEGREES(7) default : return edge_gradients<T, 0>(s, a, r, f, g, angular, out);
    }
#undef DEGREES
}

}  // namespace

extern "C" {

int64_t limit(const char* name) { return find_limit(name); }
int64_t struct_size(const char* name) { return find_value(name, {SHARED_STRUCT(MessageShape)}); }

int64_t vector_width_f32() { return Simd<float>::width; }
int64_t vector_width_f64() { return Simd<double>::width; }

void sum_messages_f32(const MessageShape* s, const float* a, const float* r, const float* a2, const float* r2,
                      const float* f, bool adjoint, float* out) {
    sum_messages(*s, a, r, a2, r2, f, adjoint, out);
}
void sum_messages_f64(const MessageShape* s, const double* a, const double* r, const double* a2, const double* r2,
                      const double* f, bool adjoint, double* out) {
    sum_messages(*s, a, r, a2, r2, f, adjoint, out);
}
void edge_gradients_f32(const MessageShape* s, const float* a, const float* r, const float* f, const float* g,
                        bool angular, float* out) {
    edge_gradients(*s, a, r, f, g, angular, out);
}
void edge_gradients_f64(const MessageShape* s, const double* a, const double* r, const double* f, const double* g,
                        bool angular, double* out) {
    edge_gradients(*s, a, r, f, g, angular, out);
}
}
