// Convolution over orientations through the harmonics that it keeps.
//
// A fibre kernel sum_l w_l P_l(n . n') keeps (l_max + 1)^2 numbers of a function of the orientation: with harmonics Y_k
// such that P_l(n . n') is the sum of Y_k(n) Y_k(n') over those k that belong to l,
//
//     h(n) = sum_k Y_k(n) H_k,    H_k = w_l(k) sum_n' q(n') Y_k(n') s(n')    (q: the quadrature's weights)
//
// What comes behind, up to the activation, is linear but for each orientation's inverse deviation d(n), so that the first
// matrix product needs no more than the H_k: W1 norm(h(n)) = sum_k Y_k(n) / d(n) (W1' H_k), W1' with every row's mean
// taken out. On fine grids that is far less than a product for each orientation.
#pragma once

#include "network.h"

namespace {

// Calls use(K) with the number of harmonics, 1, 4 or 9, as a constant.
template <typename Use>
void for_harmonics(int64_t number, Use&& use) {
    switch (number) {
        case 1: return use(std::integral_constant<int, 1>());
        case 4: return use(std::integral_constant<int, 4>());
        default: return use(std::integral_constant<int, 9>());
    }
}

// Calls use(k, c, vector) with sum_n matrix(n, k) in(n, c) of one atom's rows.
template <int K, typename T, typename Use>
INLINE void analyse(const Shape& shape, const T* matrix, const T* in, Use&& use) {
    for (int64_t c = 0; c < shape.stride; c += Simd<T>::width) {
        Vector<T> sums[K] = {};
        for (int64_t o = 0; o < shape.num_ori; ++o) {
            const Vector<T> value = load(in + o * shape.stride + c);
#pragma GCC unroll 9
            for (int k = 0; k < K; ++k) sums[k] += all(matrix[o * K + k]) * value;
        }
#pragma GCC unroll 9
        for (int k = 0; k < K; ++k) use(k, c, sums[k]);
    }
}

// out(n, :) = sum_k matrix(n, k) in(k, :) for one atom, rows or panels.
template <int K, typename T>
INLINE void synthesise(const Shape& shape, const T* matrix, const T* in, T* out, bool panels) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t step = panels ? 2 * W : shape.stride;
    for (int64_t c = 0; c < shape.stride; c += W) {
        Vector<T> values[K];
        for (int k = 0; k < K; ++k) values[k] = load(in + k * shape.stride + c);
        T* to = out + (panels ? panel_start<T>(shape, c) : c);
        for (int64_t o = 0; o < shape.num_ori; ++o) {
            Vector<T> total = matrix[o * K] * values[0];
#pragma GCC unroll 9
            for (int k = 1; k < K; ++k) total += all(matrix[o * K + k]) * values[k];
            store(to + o * step, total);
        }
    }
}

// out(n, k) = factors(n) matrix(n, k); and transposed, (k, n).
template <typename T>
void scale_rows(const Shape& shape, int64_t number, const T* matrix, const T* factors, T* out, T* transposed) {
    for (int64_t o = 0; o < shape.num_ori; ++o)
        for (int64_t k = 0; k < number; ++k) {
            const T value = factors[o] * matrix[o * number + k];
            out[o * number + k] = value;
            if (transposed) transposed[k * shape.num_ori + o] = value;
        }
}

}  // namespace
