// What inference and training share: the network's shape, matrix products, Legendre polynomials, messages, convolution
// over orientations, normalisation, and threads that meet quickly.
//
// Arrays over atoms, orientations and channels come in two orders: rows, (atoms, orientations, stride), as matrix
// products read them, and panels, (atoms, stride / 2 W, orientations, 2 W): what an edge's kernel reads of another atom
// for one pair of vectors then lies in one piece. T is float or double. Channels and hidden width come padded with
// zeros to a multiple of two vectors (`stride`), orientations to a multiple of one (`ori_stride`).
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
#include <type_traits>

#include "limits.h"
#include "simd.h"

#ifdef _OPENMP
#include <omp.h>
#endif

struct Shape {
    int64_t num_ori, ori_stride, degrees, channels, stride, hidden, num_layers, has_fibre;
    double norm_eps;
    const void* orientations;  // (3, ori_stride)
    const void* weights;       // (ori_stride), the quadrature's
};

namespace {

constexpr int64_t BLOCK_ROWS = 96;  // atoms x orientations of a block: its buffers fit a core's second-level cache
constexpr int TILE_ROWS = PONITA_VECTOR_BYTES == 64 ? 12 : 6;  // as many as registers hold beside two vectors

inline bool fits(const Shape& shape) {
    return shape.num_layers > 0 && shape.num_layers <= MAX_LAYERS && shape.degrees <= MAX_DEGREES;
}

// ------------------------------------------------------------------------------------------------ matrix products

// Where a column of a row lies in panels of so many rows, (columns / 2 W, rows, 2 W).
template <typename T>
INLINE int64_t in_panels(int64_t rows, int64_t row, int64_t column) {
    const int64_t within = column % (2 * Simd<T>::width);
    return (column - within) * rows + row * 2 * Simd<T>::width + within;
}

// What is multiplied from the left: rows, `stride` apart, or panels of two vectors of `stride` rows.
template <typename T>
struct Rows {
    static constexpr int64_t run = 0;  // how many of a row lie behind each other; 0: all
    const T* first;
    int64_t stride;
    INLINE const T* at(int64_t row, int64_t) const { return first + row * stride; }
    INLINE int64_t step() const { return stride; }
};
template <typename T>
struct Panels {
    static constexpr int64_t run = 2 * Simd<T>::width;
    const T* first;
    int64_t stride;
    INLINE const T* at(int64_t row, int64_t k) const { return first + k * stride + row * run; }
    INLINE int64_t step() const { return run; }
};

// out(r, :) = a(r, :) B for R rows and one panel of two vectors of B, packed (depth, 2 W).
template <int R, typename T, typename Left, typename Epilogue>
INLINE void tile(const Left& a, const T* panel, int64_t depth, int64_t row, Epilogue&& epilogue) {
    constexpr int64_t W = Simd<T>::width;
    Vector<T> sums[R][2] = {};
    const int64_t run = Left::run ? Left::run : depth, step = a.step();
    for (int64_t start = 0; start < depth; start += run) {
        const T* values = a.at(row, start);
        for (int64_t k = 0; k < run; ++k, panel += 2 * W) {
            const Vector<T> left = load(panel), right = load(panel + W);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const Vector<T> value = all(values[r * step + k]);
                sums[r][0] += value * left;
                sums[r][1] += value * right;
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        epilogue(row + r, 0, sums[r][0]);
        epilogue(row + r, W, sums[r][1]);
    }
}

// tile for a number of rows known at run time, 1 to R.
template <int R, typename T, typename Left, typename Epilogue>
INLINE void tile_of(int64_t rows, const Left& a, const T* panel, int64_t depth, int64_t row, Epilogue&& epilogue) {
    if (rows == R) return tile<R>(a, panel, depth, row, epilogue);
    if constexpr (R > 1) tile_of<R - 1>(rows, a, panel, depth, row, epilogue);
}

// Calls epilogue(row, column, vector of sums) for all of a(rows, depth) B(depth, width), B packed in panels.
template <typename T, typename Left, typename Epilogue>
void product(const Left& a, int64_t rows, const T* packed, int64_t depth, int64_t width, Epilogue&& use) {
    constexpr int64_t panel_width = 2 * Simd<T>::width;
    for (int64_t start = 0; start < width; start += panel_width) {
        const T* panel = packed + start * depth;
        const auto shifted = [&](int64_t row, int64_t column, Vector<T> value)
                                 INLINE_LAMBDA { use(row, start + column, value); };
        // As few tiles as will do, as even as can be: a tile of few rows waits for its own sums.
        for (int64_t number = (rows + TILE_ROWS - 1) / TILE_ROWS, k = 0; k < number; ++k) {
            const int64_t row = rows * k / number;
            tile_of<TILE_ROWS>(rows * (k + 1) / number - row, a, panel, depth, row, shifted);
        }
    }
}

// ---------------------------------------------------------------------------------------------- kernels of an edge

// P_l at all orientations, (degrees, ori_stride), and dP_l/dc if asked for, of a bond along `direction`.
template <typename T>
void legendre(const Shape& shape, const T* direction, T* values, T* derivatives) {
    constexpr int64_t W = Simd<T>::width;
    const T* grid = static_cast<const T*>(shape.orientations);
    const int64_t stride = shape.ori_stride, degrees = shape.degrees;
    for (int64_t o = 0; o < stride; o += W) {
        const Vector<T> c = load(grid + o) * direction[0] + load(grid + stride + o) * direction[1] +
                            load(grid + 2 * stride + o) * direction[2];
        Vector<T> before = all(T(1)), value = c;
        store(values + o, before);
        if (degrees > 1) store(values + stride + o, value);
        for (int64_t l = 1; l + 1 < degrees; ++l) {  // Bonnet's recursion
            const Vector<T> next = (T(2 * l + 1) * c * value - T(l) * before) * (T(1) / T(l + 1));
            before = value, value = next;
            store(values + (l + 1) * stride + o, value);
        }
        if (!derivatives) continue;
        Vector<T> derivative_before = all(T(0)), derivative = all(T(1));
        store(derivatives + o, derivative_before);
        if (degrees > 1) store(derivatives + stride + o, derivative);
        for (int64_t l = 1; l + 1 < degrees; ++l) {  // P'_{l+1} = P'_{l-1} + (2l + 1) P_l
            const Vector<T> next = derivative_before + T(2 * l + 1) * load(values + l * stride + o);
            derivative_before = derivative, derivative = next;
            store(derivatives + (l + 1) * stride + o, derivative);
        }
    }
}

// Calls use(D) with the number of degrees as a constant, so that loops over them unroll; 0 for more than usual.
template <typename Use>
auto for_degrees(int64_t degrees, Use&& use) {
    switch (degrees) {
        case 1: return use(std::integral_constant<int, 1>());
        case 2: return use(std::integral_constant<int, 2>());
        case 3: return use(std::integral_constant<int, 3>());
        case 4: return use(std::integral_constant<int, 4>());
        case 5: return use(std::integral_constant<int, 5>());
        case 6: return use(std::integral_constant<int, 6>());
        case 7: return use(std::integral_constant<int, 7>());
        default: return use(std::integral_constant<int, 0>());
    }
}

// Where channel c of the first orientation lies in an atom's features.
template <typename T>
INLINE int64_t panel_start(const Shape& shape, int64_t c) {
    return in_panels<T>(shape.num_ori, 0, c);
}

// out(o, :) += sum_l P_l(o) R_l(:) f(o, :). Degrees D at compile time, or at run time where D is 0; CONSTANT: f is the
// same at every orientation and already in R.
template <typename T, int D, bool CONSTANT>
void send(const Shape& shape, const T* angular, const T* values, const T* features, T* out) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t degrees = D ? D : shape.degrees, stride = shape.stride, ori_stride = shape.ori_stride;
    for (int64_t c = 0; c < stride; c += 2 * W) {
        Vector<T> left[D ? D : MAX_DEGREES], right[D ? D : MAX_DEGREES];
        for (int64_t l = 0; l < degrees; ++l) {
            left[l] = load(values + l * stride + c);
            right[l] = load(values + l * stride + c + W);
        }
        for (int64_t o = 0; o < shape.num_ori; ++o) {
            Vector<T> one = left[0], two = right[0];  // P_0 = 1
#pragma GCC unroll 13
            for (int64_t l = 1; l < degrees; ++l) {
                const Vector<T> factor = all(angular[l * ori_stride + o]);
                one += factor * left[l];
                two += factor * right[l];
            }
            T* target = out + o * stride + c;
            if constexpr (CONSTANT) {
                store(target, load(target) + one);
                store(target + W, load(target + W) + two);
            } else {
                const T* source = features + c * shape.num_ori + 2 * W * o;
                store(target, load(target) + one * load(source));
                store(target + W, load(target + W) + two * load(source + W));
            }
        }
    }
}

// out(o, :) += self_weight(:) in(o, :): what an atom sends to itself. Panels in, rows out.
template <typename T>
INLINE void send_to_self(const Shape& shape, const T* self_weight, const T* in, T* out) {
    constexpr int64_t W = Simd<T>::width;
    for (int64_t c = 0; c < shape.stride; c += 2 * W) {
        const Vector<T> left = load(self_weight + c), right = load(self_weight + c + W);
        for (int64_t o = 0; o < shape.num_ori; ++o, in += 2 * W) {
            T* target = out + o * shape.stride + c;
            store(target, load(target) + left * load(in));
            store(target + W, load(target + W) + right * load(in + W));
        }
    }
}

// ------------------------------------------------------------------------------- convolution over orientations, norm

// Two orientations at a time (every grid has an even number): enough independent sums to hide their latency.
template <int ATOMS, typename T>
INLINE void one_channel(const Shape& shape, const T* kernel, Vector<T> start, const T* in, T* out, int64_t step) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t stride = shape.stride, ori = shape.num_ori, row = ori * stride;
    for (int64_t n = 0; n < ori; n += 2) {
        Vector<T> sums[2][ATOMS];
        for (int a = 0; a < ATOMS; ++a) sums[0][a] = sums[1][a] = start;
        const T* pair = kernel + n * ori * W;
        for (int64_t m = 0; m < ori; ++m) {
            const Vector<T> one = load(pair + m * W), two = load(pair + (ori + m) * W);
#pragma GCC unroll 4
            for (int a = 0; a < ATOMS; ++a) {
                const Vector<T> value = load(in + a * row + m * stride);
                sums[0][a] += one * value;
                sums[1][a] += two * value;
            }
        }
        for (int a = 0; a < ATOMS; ++a) {
            store(out + a * row + n * step, sums[0][a]);
            store(out + a * row + (n + 1) * step, sums[1][a]);
        }
    }
}

// out(a, n, :) = bias + sum_n' kernel(n, n', :) in(a, n', :), the kernel packed (stride / W, n, n', W), the bias
// optional. Rows in; rows or panels out.
template <typename T>
void over_orientations(const Shape& shape, const T* kernel, const T* bias, int64_t atoms, const T* in, T* out,
                       bool panels) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t ori = shape.num_ori, row = ori * shape.stride;
    for (int64_t c = 0; c < shape.stride; c += W) {
        const Vector<T> start = bias ? load(bias + c) : all(T(0));
        for (int64_t atom = 0; atom < atoms; atom += 4) {
            const T* from = in + atom * row + c;
            T* to = out + atom * row + (panels ? panel_start<T>(shape, c) : c);
            const int64_t step = panels ? 2 * W : shape.stride;
            switch (std::min<int64_t>(4, atoms - atom)) {
                case 1: one_channel<1>(shape, kernel, start, from, to, step); break;
                case 2: one_channel<2>(shape, kernel, start, from, to, step); break;
                case 3: one_channel<3>(shape, kernel, start, from, to, step); break;
                default: one_channel<4>(shape, kernel, start, from, to, step);
            }
        }
        kernel += ori * ori * W;
    }
}

// out(a, :) = sum_n weight(n) in(a, n, :) of panels of `width` for some atoms: what the quadrature makes of an atom.
template <typename T>
void pool(const Shape& shape, const T* in, int64_t width, int64_t atoms, T* out) {
    constexpr int64_t W = Simd<T>::width;
    const T* weights = static_cast<const T*>(shape.weights);
    for (int64_t panel = 0; panel < width; panel += 2 * W)
        for (int64_t atom = 0; atom < atoms; ++atom) {
            Vector<T> left = all(T(0)), right = all(T(0));
            for (int64_t o = 0; o < shape.num_ori; ++o, in += 2 * W) {
                left += weights[o] * load(in);
                right += weights[o] * load(in + W);
            }
            store(out + atom * width + panel, left);
            store(out + atom * width + panel + W, right);
        }
}

// The same of one vector of channels in panels.
template <typename T>
INLINE Vector<T> pool_panels(const Shape& shape, const T* features, int64_t c) {
    const T *weights = static_cast<const T*>(shape.weights), *panel = features + panel_start<T>(shape, c);
    Vector<T> total = all(T(0));
    for (int64_t o = 0; o < shape.num_ori; ++o) total += weights[o] * load(panel + 2 * Simd<T>::width * o);
    return total;
}

template <typename T>
T total_weight(const Shape& shape) {
    T total = 0;
    for (int64_t o = 0; o < shape.num_ori; ++o) total += static_cast<const T*>(shape.weights)[o];
    return total;
}

// out(r, :) += vector
template <typename T>
void add_to_rows(const Shape& shape, const T* vector, int64_t rows, T* out) {
    constexpr int64_t W = Simd<T>::width;
    for (int64_t row = 0; row < rows; ++row, out += shape.stride)
        for (int64_t c = 0; c < shape.stride; c += W) store(out + c, load(out + c) + load(vector + c));
}

// (h - mean) / standard deviation of each row; the padding stays zero.
template <typename T>
void normalise(const Shape& shape, const T* in, int64_t rows, T* out, T* inverse_deviation) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t stride = shape.stride, channels = shape.channels;
    for (int64_t row = 0; row < rows; ++row, in += stride, out += stride) {
        Vector<T> total = all(T(0)), squares = all(T(0));
        for (int64_t c = 0; c < stride; c += W) total += load(in + c);
        const T mean = sum<T>(total) / T(channels);
        for (int64_t c = 0; c < stride; c += W) {
            const Vector<T> centred = load(in + c) - mean;
            store(out + c, centred);
            squares += centred * centred;
        }
        const T padding = T(stride - channels) * mean * mean;
        const T factor = 1 / std::sqrt((sum<T>(squares) - padding) / T(channels) + T(shape.norm_eps));
        for (int64_t c = 0; c < stride; c += W) store(out + c, load(out + c) * factor);
        std::fill(out + channels, out + stride, T(0));
        inverse_deviation[row] = factor;
    }
}

// Rows times the norm's Jacobian, which is symmetric: (x - mean(x) - n (n . x) / C) / standard deviation, in place.
template <typename T>
void normalise_adjoint(const Shape& shape, const T* normal, const T* inverse_deviation, int64_t rows, T* x) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t stride = shape.stride, channels = shape.channels;
    for (int64_t row = 0; row < rows; ++row, normal += stride, x += stride) {
        Vector<T> total = all(T(0)), along = all(T(0));
        for (int64_t c = 0; c < stride; c += W) {
            total += load(x + c);
            along += load(x + c) * load(normal + c);
        }
        const T mean = sum<T>(total) / T(channels), projection = sum<T>(along) / T(channels);
        for (int64_t c = 0; c < stride; c += W)
            store(x + c, (load(x + c) - mean - load(normal + c) * projection) * inverse_deviation[row]);
        std::fill(x + channels, x + stride, T(0));
    }
}

// ------------------------------------------------------------------------------------------------ threads, memory

// Meets quickly while all threads run, and gives the core away when one of them does not.
class Barrier {
public:
    explicit Barrier(int64_t threads) : threads_(threads) {}
    void wait() {
        const int64_t round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int64_t spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
            if (spins > 20000) std::this_thread::yield();
    }

private:
    const int64_t threads_;
    std::atomic<int64_t> arrived_{0}, round_{0};
};

// Hands out consecutive pieces of one block of memory, each on a cache line of its own.
class Arena {
public:
    explicit Arena(void* start) : next_(static_cast<char*>(start)) {}
    template <typename T>
    T* take(int64_t count) {
        T* piece = reinterpret_cast<T*>(next_);
        next_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return piece;
    }
    int64_t used(void* start) const { return next_ - static_cast<char*>(start); }

private:
    char* next_;
};

// Threads that share out one stage of work after another.
class Team {
public:
    Team(int64_t threads, std::atomic<int64_t>* next) : barrier_(threads), next_(next) {}
    void prepare(int64_t stages) {
        for (int64_t stage = 0; stage < stages; ++stage) next_[stage].store(0);
    }
    // Called by every thread. Items are fixed by the task and fetched by whoever is free: a slow core does not hold up
    // the others. Nobody leaves before all are done.
    template <typename Work>
    void share(int64_t stage, int64_t items, Work&& work) {
        for (int64_t item; (item = next_[stage].fetch_add(1)) < items;) work(item);
        barrier_.wait();
    }

private:
    Barrier barrier_;
    std::atomic<int64_t>* next_;
};

// How atoms are cut into blocks of a few.
struct Blocks {
    int64_t atoms, number, rows;  // rows: atoms x orientations of the largest block
    Blocks(const Shape& shape, int64_t atoms_, int64_t threads) : atoms(atoms_) {
        const int64_t most = std::max<int64_t>(1, BLOCK_ROWS / shape.num_ori);
        number = std::max((atoms + most - 1) / most, std::min(atoms, threads));
        if (number < 8 * threads) number = std::min((number + threads - 1) / threads * threads, atoms);
        number = std::max<int64_t>(1, number);  // a process may have no atoms
        rows = (atoms + number - 1) / number * shape.num_ori;
    }
    int64_t begin(int64_t block) const { return atoms * block / number; }
};

inline int64_t allowed_threads(int64_t asked) { return std::clamp<int64_t>(asked, 1, MAX_THREADS); }

// Bytes that suffice for as many threads as asked for and for any fewer.
template <typename BytesOf>
int64_t most_bytes(int64_t asked, BytesOf&& bytes_of) {
    int64_t most = 0;
    for (int64_t threads = 1; threads <= allowed_threads(asked); ++threads) most = std::max(most, bytes_of(threads));
    return most;
}

// Makes a worker for as many threads as the runtime gives (inside another parallel region: one) and runs it on each.
template <typename Make, typename Run>
void on_threads(int64_t asked, Make&& make, Run&& run) {
#ifdef _OPENMP
    decltype(make(1)) worker = nullptr;
#pragma omp parallel num_threads(int(allowed_threads(asked)))
    {
#pragma omp single
        worker = make(omp_get_num_threads());
        run(*worker, omp_get_thread_num());
    }
#else
    auto worker = make(1);
    run(*worker, 0);
#endif
    delete worker;
}

}  // namespace
