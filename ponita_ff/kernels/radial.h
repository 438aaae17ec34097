// The radial functions of pairs for training: Bessel functions through a small network to a basis that all layers
// share, then a matrix a layer; values, derivatives with respect to the distance, and gradients
// with respect to every weight.
//
// Rows come twice, (2, pairs): values, then derivatives with respect to the distance. A bias adds to the values alone.
#pragma once

#include "activation.h"
#include "network.h"

namespace {

// ----------------------------------------------------------------------------------------- matrices as products read

// B(k, j) = source(k, j) scale(j) for k < rows, j < columns, zero up to `depth` rows and `width` columns, in panels of
// two vectors that hold `panel_depth` rows. `scale` may be null.
template <typename T>
void pack_rows(const T* source, int64_t rows, int64_t columns, int64_t depth, int64_t width, int64_t panel_depth,
               const T* scale, T* out) {
    constexpr int64_t P = 2 * Simd<T>::width;
    for (int64_t start = 0; start < width; start += P, out += panel_depth * P) {
        const int64_t count = std::clamp<int64_t>(columns - start, 0, P);
        for (int64_t k = 0; k < depth; ++k) {
            T* target = out + k * P;
            const int64_t inside = k < rows ? count : 0;
            const T* from = source + k * columns + start;
            for (int64_t j = 0; j < inside; ++j) target[j] = scale ? from[j] * scale[start + j] : from[j];
            std::fill(target + inside, target + P, T(0));
        }
    }
}

// B(k, j) = source(j, k) scale(k), otherwise the same.
template <typename T>
void pack_columns(const T* source, int64_t rows, int64_t columns, int64_t depth, int64_t width, const T* scale,
                  T* out) {
    constexpr int64_t P = 2 * Simd<T>::width;
    for (int64_t start = 0; start < width; start += P, out += depth * P) {
        const int64_t count = std::clamp<int64_t>(columns - start, 0, P);
        if (count < P || rows < depth) std::fill(out, out + depth * P, T(0));
        for (int64_t j = 0; j < count; ++j) {
            const T* from = source + (start + j) * rows;
            for (int64_t k = 0; k < rows; ++k) out[k * P + j] = scale ? from[k] * scale[k] : from[k];
        }
    }
}

// ------------------------------------------------------------------------------------- gradients of weight matrices

constexpr int64_t CHUNK = 256;  // rows whose panel stays in the first-level cache
constexpr int GROUP = 6;        // columns of the left matrix that registers hold beside two vectors of the right one

// A left matrix (rows, columns) is kept in groups of columns, each (rows, GROUP), the last one narrower; a right one in
// panels, each (rows, 2 W). Copies `count` rows from `row` on of a matrix into such groups.
template <typename T>
void pack_left(const T* matrix, int64_t columns, int64_t row, int64_t count, int64_t rows, T* packed) {
    for (int64_t start = 0; start < columns; start += GROUP) {
        const int64_t width = std::min<int64_t>(GROUP, columns - start);
        T* out = packed + start * rows + row * width;
        for (int64_t r = 0; r < count; ++r, out += width)
            for (int64_t k = 0; k < width; ++k) out[k] = matrix[r * columns + start + k];
    }
}

// The same into panels.
template <typename T>
void pack_right(const T* matrix, int64_t columns, int64_t row, int64_t count, int64_t rows, T* packed) {
    constexpr int64_t P = 2 * Simd<T>::width;
    for (int64_t start = 0; start < columns; start += P)
        for (int64_t r = 0; r < count; ++r)
            std::copy_n(matrix + r * columns + start, P, packed + start * rows + (row + r) * P);
}

// out(k, :) += sum_r left(r, k) right(r, :) for the columns of one group and a panel.
template <int COLUMNS, typename T>
INLINE void outer_tile(const T* left, const T* right, int64_t rows, T* out) {
    constexpr int64_t W = Simd<T>::width;
    Vector<T> sums[COLUMNS][2] = {};
    for (int64_t r = 0; r < rows; ++r) {
        const Vector<T> one = load(right + 2 * W * r), two = load(right + 2 * W * r + W);
#pragma GCC unroll 6
        for (int k = 0; k < COLUMNS; ++k) {
            const Vector<T> factor = all(left[r * COLUMNS + k]);
            sums[k][0] += factor * one;
            sums[k][1] += factor * two;
        }
    }
#pragma GCC unroll 6
    for (int k = 0; k < COLUMNS; ++k) {
        T* target = out + 2 * W * k;
        store(target, load(target) + sums[k][0]);
        store(target + W, load(target + W) + sums[k][1]);
    }
}

// out(columns, 2 W) += left^T right, both packed.
template <typename T>
void outer_product(const T* left, const T* right, int64_t columns, int64_t rows, T* out) {
    constexpr int64_t panel = 2 * Simd<T>::width;
    for (int64_t begin = 0; begin < rows; begin += CHUNK) {
        const int64_t count = std::min(CHUNK, rows - begin);
        for (int64_t start = 0; start < columns; start += GROUP) {
            const int64_t width = std::min<int64_t>(GROUP, columns - start);
            const T *a = left + start * rows + begin * width, *b = right + begin * panel;
            T* target = out + start * panel;
            switch (width) {
                case 6: outer_tile<6>(a, b, count, target); break;
                case 5: outer_tile<5>(a, b, count, target); break;
                case 4: outer_tile<4>(a, b, count, target); break;
                case 3: outer_tile<3>(a, b, count, target); break;
                case 2: outer_tile<2>(a, b, count, target); break;
                default: outer_tile<1>(a, b, count, target);
            }
        }
    }
}

// Sums over rows of one panel, (rows, 2 W).
template <typename T>
void sum_rows(const T* panel, int64_t rows, T* out) {
    constexpr int64_t W = Simd<T>::width;
    Vector<T> one = all(T(0)), two = all(T(0));
    for (int64_t row = 0; row < rows; ++row) one += load(panel + row * 2 * W), two += load(panel + row * 2 * W + W);
    store(out, one);
    store(out + W, two);
}

// -------------------------------------------------------------------------------------------------- the basis itself

// SiLU, x s(x), s the logistic function, with its first and second derivative.
template <typename T>
INLINE void silu(Vector<T> x, Vector<T>& value, Vector<T>& derivative, Vector<T>& second_derivative) {
    const Vector<T> size = x < T(0) ? -x : x, fall = exp_of(-size), gate_of_size = T(1) / (T(1) + fall);
    const Vector<T> gate = x < T(0) ? fall * gate_of_size : gate_of_size, gate_derivative = gate * (T(1) - gate);
    value = x * gate;
    derivative = gate + x * gate_derivative;
    second_derivative = gate_derivative * (T(2) + x * (T(1) - gate - gate));
}

// A linear map with SiLU behind it, of functions of the distance and of their derivatives.
template <typename T>
struct DenseLayer {
    int64_t inputs, outputs, in_stride, width;  // in_stride: of a row that comes in; width: of one that goes out
    T *matrix, *adjoint, *bias;                 // packed: (inputs -> width), (width -> in_stride); (width)
    T *before, *after;                          // (2, pairs, width): ahead of the activation, behind it
    T* loss_grad;                               // (2, pairs, width): dS/d `before` (training.cpp)
};

struct RadialSizes {
    int64_t bessel, hidden, basis, envelope_power;
    double cutoff;
};

template <typename T>
class Radial {
    static constexpr int64_t W = Simd<T>::width;

public:
    static constexpr int64_t FEW = 24;  // pairs of an item of work

    Radial(const RadialSizes& sizes, int64_t pairs, Arena& arena) : sizes_(sizes), pairs_(pairs) {
        const auto padded = [](int64_t width) { return (width + 2 * W - 1) / (2 * W) * 2 * W; };
        const int64_t inputs[2] = {sizes.bessel, sizes.hidden}, outputs[2] = {sizes.hidden, sizes.basis};
        for (int k = 0; k < 2; ++k) {
            DenseLayer<T>& layer = layers_[k];
            layer.inputs = inputs[k], layer.in_stride = k ? padded(inputs[k]) : inputs[k];
            layer.outputs = outputs[k], layer.width = padded(outputs[k]);
            layer.matrix = arena.take<T>(layer.in_stride * layer.width);
            layer.adjoint = arena.take<T>(layer.in_stride * layer.width);
            layer.bias = arena.take<T>(layer.width);
            for (T** piece : {&layer.before, &layer.after, &layer.loss_grad})
                *piece = arena.take<T>(2 * pairs * layer.width);
        }
        bessel_ = arena.take<T>(2 * pairs * sizes.bessel);
        bessel_left_ = arena.take<T>(2 * pairs * sizes.bessel);
        loss_grad_right_ = arena.take<T>(2 * pairs * layers_[0].width);
        hidden_right_ = arena.take<T>(2 * pairs * layers_[0].width);
        loss_grad_left_ = arena.take<T>(2 * pairs * layers_[1].width);
        envelope_ = arena.take<T>(2 * pairs);
        basis_ = arena.take<T>(2 * pairs * layers_[1].width);
        basis_left_ = arena.take<T>(2 * pairs * layers_[1].width);
    }

    int64_t items() const { return (pairs_ + FEW - 1) / FEW; }
    int64_t begin(int64_t item) const { return std::min(item * FEW, pairs_); }
    int64_t width() const { return layers_[1].width; }
    // (2, pairs, width()): the basis, or in groups of columns.
    const T* basis() const { return basis_; }
    const T* basis_left() const { return basis_left_; }
    // (2, pairs, width()): where dS/d basis goes.
    T* loss_grad() { return layers_[1].loss_grad; }

    // The weights of linear map k, (outputs, inputs) and (outputs), as the products read them.
    void prepare(int k, const T* matrix, const T* bias) {
        DenseLayer<T>& layer = layers_[k];
        std::fill(layer.bias, layer.bias + layer.width, T(0));
        std::copy_n(bias, layer.outputs, layer.bias);
        pack_columns(matrix, layer.inputs, layer.outputs, layer.in_stride, layer.width, static_cast<const T*>(nullptr),
                     layer.matrix);
        if (k)
            pack_rows(matrix, layer.outputs, layer.inputs, layer.width, layer.in_stride, layer.width,
                      static_cast<const T*>(nullptr), layer.adjoint);
    }

    // The basis of some pairs.
    template <typename Distance>
    void forward(int64_t item, Distance&& distance) {
        const int64_t first = begin(item), count = begin(item + 1) - first;
        for (int64_t pair = first; pair < first + count; ++pair) measure(pair, distance(pair));
        for (const int64_t row : {first, pairs_ + first})
            pack_left(bessel_ + row * sizes_.bessel, sizes_.bessel, row, count, 2 * pairs_, bessel_left_);
        dense(layers_[0], bessel_, first, count);
        dense(layers_[1], layers_[0].after, first, count);
        for (const int64_t row : {first, pairs_ + first})
            pack_right(layers_[0].after + row * layers_[0].width, layers_[0].width, row, count, 2 * pairs_,
                       hidden_right_);
        const int64_t wide = width();
        for (int64_t pair = first; pair < first + count; ++pair) {
            const T value = envelope_[pair], derivative = envelope_[pairs_ + pair];
            const int64_t at = pair * wide, derivative_at = (pairs_ + pair) * wide;
            for (int64_t k = 0; k < wide; k += W) {
                const Vector<T> found = load(layers_[1].after + at + k);
                store(basis_ + at + k, value * found);
                store(basis_ + derivative_at + k,
                      value * load(layers_[1].after + derivative_at + k) + derivative * found);
            }
        }
        for (const int64_t row : {first, pairs_ + first})
            pack_left(basis_ + row * wide, wide, row, count, 2 * pairs_, basis_left_);
    }

    // From dS/d basis of some pairs to the derivatives for the inputs of both activations.
    void backward(int64_t item) {
        const int64_t first = begin(item), count = begin(item + 1) - first, wide = width(), narrow = layers_[0].width;
        T* loss_grad = layers_[1].loss_grad;
        for (int64_t pair = first; pair < first + count; ++pair) {
            const T value = envelope_[pair], derivative = envelope_[pairs_ + pair];
            const int64_t at = pair * wide, derivative_at = (pairs_ + pair) * wide;
            for (int64_t k = 0; k < wide; k += W) {
                const Vector<T> of_derivative = load(loss_grad + derivative_at + k);
                store(loss_grad + at + k, value * load(loss_grad + at + k) + derivative * of_derivative);
                store(loss_grad + derivative_at + k, value * of_derivative);
            }
        }
        dense_adjoint(layers_[1], first, count);
        for (const int64_t row : {first, pairs_ + first}) {
            pack_left(loss_grad + row * wide, wide, row, count, 2 * pairs_, loss_grad_left_);
            product(Rows<T>{loss_grad + row * wide, wide}, count, layers_[1].adjoint, wide, narrow,
                    [&](int64_t r, int64_t column, Vector<T> value)
                        INLINE_LAMBDA { store(layers_[0].loss_grad + (row + r) * narrow + column, value); });
        }
        dense_adjoint(layers_[0], first, count);
        for (const int64_t row : {first, pairs_ + first})
            pack_right(layers_[0].loss_grad + row * narrow, narrow, row, count, 2 * pairs_, loss_grad_right_);
    }

    // Panels of both maps' gradients, after all pairs went backward.
    int64_t panels() const { return 2 * (layers_[0].width / (2 * W)); }

    // Writes a panel's part of the gradients of matrix and bias of both maps; `tile` has room for so many rows of 2 W.
    int64_t tile_rows() const { return std::max(layers_[1].width, sizes_.bessel); }
    void gradient(int64_t panel, T* tile, T* const matrix[2], T* const bias[2]) const {
        const int64_t half = panels() / 2, start = panel % half * 2 * W;
        const DenseLayer<T>&one = layers_[0], &two = layers_[1];
        const int64_t inside = std::clamp<int64_t>(one.outputs - start, 0, 2 * W);
        if (panel < half) {
            std::fill(tile, tile + one.inputs * 2 * W, T(0));
            const T* right = loss_grad_right_ + start * 2 * pairs_;
            outer_product(bessel_left_, right, one.inputs, 2 * pairs_, tile);
            for (int64_t j = 0; j < inside; ++j)
                for (int64_t b = 0; b < one.inputs; ++b) matrix[0][(start + j) * one.inputs + b] = tile[b * 2 * W + j];
            sum_rows(right, pairs_, tile);
            std::copy_n(tile, inside, bias[0] + start);
            return;
        }
        std::fill(tile, tile + two.width * 2 * W, T(0));
        outer_product(loss_grad_left_, hidden_right_ + start * 2 * pairs_, two.width, 2 * pairs_, tile);
        for (int64_t k = 0; k < two.outputs; ++k)
            std::copy_n(tile + k * 2 * W, inside, matrix[1] + k * two.inputs + start);
        if (start) return;
        for (int64_t k = 0; k < two.outputs; ++k) {
            T total = 0;
            for (int64_t pair = 0; pair < pairs_; ++pair) total += two.loss_grad[pair * two.width + k];
            bias[1][k] = total;
        }
    }

private:
    // Bessel functions sin(k pi r / cutoff) cutoff / r, the envelope, and their derivatives.
    void measure(int64_t pair, double r) {
        const double unit = 3.14159265358979323846 / sizes_.cutoff, ratio = sizes_.cutoff / r;
        const double sine = std::sin(unit * r), cosine = std::cos(unit * r);
        double s = sine, c = cosine;
        T *values = bessel_ + pair * sizes_.bessel, *derivatives = bessel_ + (pairs_ + pair) * sizes_.bessel;
        for (int64_t k = 0; k < sizes_.bessel; ++k) {
            values[k] = T(s * ratio);
            derivatives[k] = T(double(k + 1) * unit * c * ratio - s * ratio / r);
            const double next = s * cosine + c * sine;
            c = c * cosine - s * sine, s = next;
        }
        const double u = std::min(r / sizes_.cutoff, 1.0), p = double(sizes_.envelope_power);
        const double before = std::pow(u, p - 1);
        envelope_[pair] = T(1 - before * u * ((p + 1) * (p + 2) / 2 - p * (p + 2) * u + p * (p + 1) / 2 * u * u));
        envelope_[pairs_ + pair] = T(-p * (p + 1) * (p + 2) / (2 * sizes_.cutoff) * before * (1 - u) * (1 - u));
    }

    void dense(const DenseLayer<T>& layer, const T* in, int64_t first, int64_t count) {
        const int64_t wide = layer.width;
        for (const int64_t row : {first, pairs_ + first})
            product(Rows<T>{in + row * layer.in_stride, layer.in_stride}, count, layer.matrix, layer.in_stride, wide,
                    [&](int64_t r, int64_t column, Vector<T> value) INLINE_LAMBDA {
                        if (row < pairs_) value += load(layer.bias + column);
                        store(layer.before + (row + r) * wide + column, value);
                    });
        for (int64_t at = first * wide; at < (first + count) * wide; at += W) {
            const int64_t derivative_at = at + pairs_ * wide;
            Vector<T> value, derivative, second_derivative;
            silu<T>(load(layer.before + at), value, derivative, second_derivative);
            store(layer.after + at, value);
            store(layer.after + derivative_at, derivative * load(layer.before + derivative_at));
        }
    }

    // In place in `loss_grad`, from the gradient behind the activation to that ahead of it.
    void dense_adjoint(const DenseLayer<T>& layer, int64_t first, int64_t count) {
        for (int64_t at = first * layer.width; at < (first + count) * layer.width; at += W) {
            const int64_t derivative_at = at + pairs_ * layer.width;
            Vector<T> value, derivative, second_derivative;
            silu<T>(load(layer.before + at), value, derivative, second_derivative);
            const Vector<T> of_derivative = load(layer.loss_grad + derivative_at);
            store(layer.loss_grad + at, derivative * load(layer.loss_grad + at) +
                                            second_derivative * load(layer.before + derivative_at) * of_derivative);
            store(layer.loss_grad + derivative_at, derivative * of_derivative);
        }
    }

    const RadialSizes& sizes_;
    const int64_t pairs_;
    DenseLayer<T> layers_[2];
    T *bessel_, *bessel_left_;            // (2, pairs, bessel)
    T *loss_grad_right_, *hidden_right_;  // (2, pairs, hidden), in panels
    T* loss_grad_left_;                   // (2, pairs, basis), in groups
    T* envelope_;                         // (2, pairs)
    T *basis_, *basis_left_;              // (2, pairs, basis)
};

}  // namespace
