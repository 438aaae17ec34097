// exp, GELU and its derivatives of vectors.
#pragma once

#include "simd.h"

typedef int32_t Bits __attribute__((vector_size(PONITA_VECTOR_BYTES)));

INLINE Bits bits_of(Vector<float> x) {
    Bits bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
INLINE Vector<float> float_of(Bits bits) {
    Vector<float> x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Absolute error below float32's epsilon; exp(x) <= 1 here.
INLINE Vector<float> exp_of(Vector<float> x) {
    x = x < -86.0f ? all(-86.0f) : x;  // only ever called for x <= 0
    // exp(x) = 2^n exp(f); a float this large has no bits behind the point, and n stands in its lowest ones.
    const Vector<float> magic = all(12582912.0f), shifted = x * 1.44269504088896341f + magic;
    const Vector<float> f = x - (shifted - magic) * 0.693147181f;
    Vector<float> p = all(1.3981999507e-3f);  // Cephes' expf, without its highest degree
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    return float_of(bits_of(p) + (bits_of(shifted) << 23));
}

INLINE Vector<double> exp_of(Vector<double> x) {
    for (int64_t i = 0; i < Simd<double>::width; ++i) x[i] = std::exp(x[i]);
    return x;
}

// gelu(x) = x Phi(x), its derivative Phi(x) + x phi(x) and its second, (2 - x^2) phi(x). Phi(-|x|) = exp(-x^2 / 2) t
// q(t), t = 1 / (1 + k |x|), q fitted to 9e-9: within float's rounding.
INLINE void gelu(Vector<float> x, Vector<float>& value, Vector<float>& derivative, Vector<float>& second_derivative) {
    const Vector<float> size = float_of(bits_of(x) & 0x7fffffff);
    const Vector<float> gauss = exp_of(-0.5f * x * x);
    const Vector<float> t = 1.0f / (1.0f + 0.38890873f * size);
    Vector<float> q = all(0.0536624767f);
    q = q * t - 0.259020051f;
    q = q * t + 0.379858615f;
    q = q * t - 0.0207141335f;
    q = q * t + 0.195421439f;
    q = q * t + 0.150791662f;
    q = q * t * gauss;
    const Vector<float> phi = x < 0.0f ? q : 1.0f - q;
    value = x * phi;
    const Vector<float> density = gauss * 0.39894228040f;
    derivative = phi + x * density;
    second_derivative = (2.0f - x * x) * density;
}

INLINE void gelu(Vector<double> x, Vector<double>& value, Vector<double>& derivative,
                 Vector<double>& second_derivative) {
    for (int64_t i = 0; i < Simd<double>::width; ++i) {
        const double phi = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
        const double density = std::exp(-0.5 * x[i] * x[i]) * 0.39894228040143267794;
        value[i] = x[i] * phi;
        derivative[i] = phi + x[i] * density;
        second_derivative[i] = (2.0 - x[i] * x[i]) * density;
    }
}

template <typename V>
INLINE void gelu(V x, V& value, V& derivative) {
    V second_derivative;
    gelu(x, value, derivative, second_derivative);
}

// Value and second derivative where the first is known: Phi = gelu' - x phi, and no need to work it out again.
INLINE void gelu_from_derivative(Vector<float> x, Vector<float> derivative, Vector<float>& value,
                                 Vector<float>& second_derivative) {
    const Vector<float> density = exp_of(-0.5f * x * x) * 0.39894228040f;
    value = x * (derivative - x * density);
    second_derivative = (2.0f - x * x) * density;
}

INLINE void gelu_from_derivative(Vector<double> x, Vector<double> derivative, Vector<double>& value,
                                 Vector<double>& second_derivative) {
    gelu(x, value, derivative, second_derivative);
}
