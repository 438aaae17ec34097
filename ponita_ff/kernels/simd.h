// Vectors of the machine's own width, through the extension that GCC and Clang share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define PONITA_VECTOR_BYTES 64
#elif defined(__AVX__)
#define PONITA_VECTOR_BYTES 32
#else
#define PONITA_VECTOR_BYTES 16
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

template <typename T>
struct Simd {
    static constexpr int64_t width = PONITA_VECTOR_BYTES / sizeof(T);
    // aligned(…): any address of a T may be loaded from; may_alias: it is an array of T.
    typedef T Vector __attribute__((vector_size(PONITA_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <typename T>
using Vector = typename Simd<T>::Vector;

template <typename T>
INLINE Vector<T> load(const T* address) {
    return *reinterpret_cast<const Vector<T>*>(address);
}

template <typename T>
INLINE void store(T* address, Vector<T> value) {
    *reinterpret_cast<Vector<T>*>(address) = value;
}

template <typename T>
INLINE Vector<T> all(T value) {
    return value - Vector<T>{};
}

template <typename T>
INLINE T sum(Vector<T> value) {
    T total = 0;
    for (int64_t i = 0; i < Simd<T>::width; ++i) total += value[i];
    return total;
}

#if defined(__AVX__)
#include <immintrin.h>

INLINE float sum_of_eight(__m256 lanes) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

template <>
INLINE float sum<float>(Vector<float> value) {
#if defined(__AVX512F__)
    const __m512 lanes = value;
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(lanes), 1));
    return sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(lanes), upper));
#else
    return sum_of_eight(value);
#endif
}
#endif
