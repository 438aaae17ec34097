// Limits of the kernels, and what Python asks a library when it loads it.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

static_assert(sizeof(void*) == 8 && sizeof(double) == 8, "ponita_ff/kernels/structs.py counts on 64 bits");

// Sizes of arrays; Python reads them through limit() and refuses networks beyond.
constexpr int64_t MAX_DEGREES = 13;  // Legendre degrees 0 ... 12
constexpr int64_t MAX_LAYERS = 64;
constexpr int64_t MAX_HARMONICS = 9;  // of the fibre convolution, 0 ... 2
constexpr int64_t MAX_THREADS = 256;

struct NamedValue {
    const char* name;
    int64_t value;
};

// The value of that name, -1 where there is none.
inline int64_t find_value(const char* name, std::initializer_list<NamedValue> entries) {
    for (const NamedValue& entry : entries)
        if (!std::strcmp(name, entry.name)) return entry.value;
    return -1;
}

// Size of a structure that Python fills in: plain, and of 8-byte fields, so that there is no padding.
template <typename Struct>
constexpr int64_t shared_size() {
    static_assert(std::is_standard_layout<Struct>::value && std::is_trivially_copyable<Struct>::value,
                  "Python can fill in plain structures only");
    static_assert(sizeof(Struct) % 8 == 0 && alignof(Struct) == 8, "fields must have 8 bytes each");
    return sizeof(Struct);
}

#define SHARED_STRUCT(NAME) \
    NamedValue { #NAME, shared_size<NAME>() }

inline int64_t find_limit(const char* name) {
    return find_value(name, {{"MAX_DEGREES", MAX_DEGREES},
                             {"MAX_LAYERS", MAX_LAYERS},
                             {"MAX_HARMONICS", MAX_HARMONICS},
                             {"MAX_THREADS", MAX_THREADS}});
}
