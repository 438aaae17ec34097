// Training of the force-field form: energies and their gradients with respect to pairs, then the gradient of a loss.
//
// With E = sum_i E_i and x_p the vector of a pair of atoms, `energy_and_pair_gradients` gives E_i and dE/dx_p. A loss L
// of both has the derivatives e_i = dL/dE_i and v_p = dL/d(dE/dx_p). Its gradient with respect to any weight is that of
//
//     S = sum_i e_i E_i + dE/dx . v
//
// The second term is the directional derivative of E along v. `loss_backward` computes the tangent of every variable,
// its derivative when all x move along v, forwards (forward mode), and then the derivative of S with respect to every
// variable backwards (reverse mode). Names of the three kinds of derivatives of a variable y:
//
//     y_grad       dE/dy, known from `energy_and_pair_gradients`
//     y_tangent    derivative of y along v
//     y_loss_grad  dS/dy
//
// The derivative of S with respect to y_tangent is y_grad. So a matrix product y = W x costs six: y, x_grad, y_tangent,
// x_loss_grad, and for the weights dS/dW = y_loss_grad x^T + y_grad x_tangent^T.
//
// Layer by layer (ponita_ff/network/convolution.py has the formulas), with u, r a pair's direction and distance:
//     s_i = w f_i + sum_j sum_l P_l(u_ij . n) R_l(r_ij) f_j,  h = K s + b,  f += W2 gelu(W1 norm(h) + b1) + b2
// The norm's weights are multiplied into W1 and b1, K is the fibre kernel on the grid; radial.h has R_l. Weights and
// their gradients have the layout of torch. Arrays live in the workspace between the two calls. Sums run in the same
// order whatever the number of threads.

#include "activation.h"
#include "network.h"
#include "radial.h"

extern "C" {

struct Dimensions {
    Shape shape;
    int64_t num_species, num_bessel, radial_hidden, radial_basis;
    int64_t hidden_units;  // of a block, without padding
    int64_t envelope_power;
    double cutoff;
    const void* fibre_angular;  // (degrees, ori', ori): quadrature weight of n' times P_l(n . n')
};

// Addresses of a network's parameters, or of where their gradients go; each as torch has it.
struct LayerParameters {
    void* fibre;                     // (degrees, channels), null without orientations
    void *self_weight, *bias;        // (channels)
    void* radial;                    // (degrees x channels, basis)
    void *norm, *norm_bias;          // (channels)
    void *expand, *expand_bias;      // (hidden, channels), (hidden)
    void *contract, *contract_bias;  // (channels, hidden), (channels)
    void *readout, *readout_bias;    // (channels), (1)
};

struct Parameters {
    void* embedding;                           // (species, channels)
    void *radial_hidden, *radial_hidden_bias;  // (radial hidden, bessel)
    void *radial_basis, *radial_basis_bias;    // (basis, radial hidden)
    const LayerParameters* layers;             // (num_layers)
};

struct Batch {
    int64_t atoms, max_neighbours, pairs, threads;
    const int64_t* neighbours;  // (atoms, max_neighbours)
    const int64_t* links;       // (atoms, max_neighbours): p + 1 for the edge along pair p, -(p + 1) against it, else 0
    const int64_t* ends;        // (pairs, 2): receiver and sender of the edge along the pair's vector
    const void* vectors;        // (pairs, 3): sender minus receiver
    const int64_t* species;     // (atoms)
    void* workspace;            // workspace_bytes_*()
};
}

namespace {

// ------------------------------------------------------------------------------------------- messages of one edge

// out(o, :) += K(o, :) one(o, :) + K_tangent(o, :) two(o, :) with K = sum_l A_l R_l and
// K_tangent = sum_l A_l R_l' r_tangent + A_tangent_l R_l.
template <typename T, int D>
void send_tangent(const Shape& shape, const T* angular, const T* angular_tangent, T distance_tangent, const T* values,
                  const T* derivatives, const T* one, const T* two, T* out) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t degrees = D ? D : shape.degrees, stride = shape.stride, ori_stride = shape.ori_stride;
    for (int64_t c = 0; c < stride; c += W) {
        Vector<T> value[D ? D : MAX_DEGREES], value_tangent[D ? D : MAX_DEGREES];
        for (int64_t l = 0; l < degrees; ++l) {
            value[l] = load(values + l * stride + c);
            value_tangent[l] = distance_tangent * load(derivatives + l * stride + c);
        }
        const int64_t start = panel_start<T>(shape, c);
        for (int64_t o = 0; o < shape.num_ori; ++o) {
            Vector<T> kernel = value[0], kernel_tangent = value_tangent[0];  // P_0 = 1
#pragma GCC unroll 13
            for (int64_t l = 1; l < degrees; ++l) {
                const Vector<T> factor = all(angular[l * ori_stride + o]);
                kernel += factor * value[l];
                kernel_tangent += factor * value_tangent[l];
                kernel_tangent += all(angular_tangent[l * ori_stride + o]) * value[l];
            }
            T* target = out + o * stride + c;
            const int64_t at = start + 2 * W * o;
            store(target, load(target) + kernel * load(one + at) + kernel_tangent * load(two + at));
        }
    }
}

// An array in panels at both ends of a pair.
template <typename T>
struct Ends {
    const T *receiver, *sender;
    INLINE Vector<T> at_receiver(int64_t at) const { return load(receiver + at); }
    INLINE Vector<T> at_sender(int64_t at) const { return load(sender + at); }
};

// Derivatives of E with respect to the cosines of a pair (added to `cosine_grads`, vectors over channels still to be
// summed) and to its distance (returned). `spatial_grads` are those for the spatial sums. Against the
// pair's vector P_l has the sign (-1)^l: even degrees see the sum of both messages, odd ones the difference.
template <typename T, int D>
T pair_gradient(const Shape& shape, const T* angular, const T* angular_derivatives, const T* values,
                const T* derivatives, const Ends<T>& features, const Ends<T>& spatial_grads, T* cosine_grads) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t degrees = D ? D : shape.degrees, stride = shape.stride, ori_stride = shape.ori_stride;
    Vector<T> distance_grad = all(T(0));
    for (int64_t c = 0; c < stride; c += W) {
        Vector<T> value[D ? D : MAX_DEGREES], moment[D ? D : MAX_DEGREES];
        for (int64_t l = 0; l < degrees; ++l) {
            value[l] = load(values + l * stride + c);
            moment[l] = all(T(0));
        }
        const int64_t start = panel_start<T>(shape, c);
        for (int64_t o = 0; o < shape.num_ori; ++o) {
            const int64_t at = start + 2 * W * o;
            const Vector<T> along = spatial_grads.at_receiver(at) * features.at_sender(at);
            const Vector<T> against = spatial_grads.at_sender(at) * features.at_receiver(at);
            const Vector<T> product[2] = {along + against, along - against};
            Vector<T> cosine_grad[2] = {all(T(0)), all(T(0))};
            moment[0] += product[0];
#pragma GCC unroll 13
            for (int64_t l = 1; l < degrees; ++l) {
                moment[l] += all(angular[l * ori_stride + o]) * product[l % 2];
                cosine_grad[l % 2] += all(angular_derivatives[l * ori_stride + o]) * value[l];
            }
            store(cosine_grads + o * W,
                  load(cosine_grads + o * W) + cosine_grad[0] * product[0] + cosine_grad[1] * product[1]);
        }
        for (int64_t l = 0; l < degrees; ++l) distance_grad += load(derivatives + l * stride + c) * moment[l];
    }
    return sum<T>(distance_grad);
}

// Derivatives of S with respect to R_l and R_l' of a pair, as a row and in panels of `panel_size`.
template <typename T, int D>
void pair_loss_gradients(const Shape& shape, const T* angular, const T* angular_tangent, T distance_tangent,
                         const Ends<T>& features, const Ends<T>& tangents, const Ends<T>& spatial_grads,
                         const Ends<T>& loss_grads, T* of_values, T* of_derivatives, T* value_panels,
                         T* derivative_panels, int64_t panel_size) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t degrees = D ? D : shape.degrees, stride = shape.stride, ori_stride = shape.ori_stride;
    for (int64_t c = 0; c < stride; c += W) {
        Vector<T> value[D ? D : MAX_DEGREES], derivative[D ? D : MAX_DEGREES];
        for (int64_t l = 0; l < degrees; ++l) value[l] = derivative[l] = all(T(0));
        const int64_t start = panel_start<T>(shape, c);
        for (int64_t o = 0; o < shape.num_ori; ++o) {
            const int64_t at = start + 2 * W * o;
            const Vector<T> f_i = features.at_receiver(at), f_j = features.at_sender(at);
            const Vector<T> grad_i = spatial_grads.at_receiver(at), grad_j = spatial_grads.at_sender(at);
            const Vector<T> along = grad_i * f_j, against = grad_j * f_i;
            const Vector<T> along_loss_grad = loss_grads.at_receiver(at) * f_j + grad_i * tangents.at_sender(at);
            const Vector<T> against_loss_grad = loss_grads.at_sender(at) * f_i + grad_j * tangents.at_receiver(at);
            const Vector<T> product[2] = {along + against, along - against};
            const Vector<T> loss_grad[2] = {along_loss_grad + against_loss_grad, along_loss_grad - against_loss_grad};
            value[0] += loss_grad[0];
            derivative[0] += product[0];
#pragma GCC unroll 13
            for (int64_t l = 1; l < degrees; ++l) {
                const Vector<T> factor = all(angular[l * ori_stride + o]);
                value[l] += factor * loss_grad[l % 2];
                value[l] += all(angular_tangent[l * ori_stride + o]) * product[l % 2];
                derivative[l] += factor * product[l % 2];
            }
        }
        for (int64_t l = 0; l < degrees; ++l) {
            const int64_t at = l * stride + c, place = at / (2 * W) * panel_size + at % (2 * W);
            const Vector<T> of_derivative = distance_tangent * derivative[l];
            store(of_values + at, value[l]);
            store(of_derivatives + at, of_derivative);
            store(value_panels + place, value[l]);
            store(derivative_panels + place, of_derivative);
        }
    }
}

template <typename T>
struct Messages {
    decltype(&send<T, 1, false>) send;
    decltype(&send_tangent<T, 1>) send_tangent;
    decltype(&pair_gradient<T, 1>) pair_gradient;
    decltype(&pair_loss_gradients<T, 1>) pair_loss_gradients;
};

template <typename T>
Messages<T> messages(int64_t degrees) {
    return for_degrees(degrees, [](auto known) {
        constexpr int D = decltype(known)::value;
        return Messages<T>{send<T, D, false>, send_tangent<T, D>, pair_gradient<T, D>, pair_loss_gradients<T, D>};
    });
}

// ---------------------------------------------------------------------------------------------------------- network

template <typename T>
class TrainingGraph {
    static constexpr int64_t W = Simd<T>::width;
    static constexpr int64_t FIBRE_SENDERS = 4;  // orientations n' whose sums registers hold at a time

    struct Link {
        int32_t neighbour, pair;
        T sign;  // 1: the edge's vector is the pair's, -1: it is the other way round
    };
    struct Pair {
        T direction[3], inverse_distance;
        T direction_tangent[3], distance_tangent;
    };
    struct Layer {
        // Rows of channels, except for features, features_tangent, spatial_grad and spatial_loss_grad: panels.
        T *features, *spatial, *normal, *inverse_deviation, *feature_grad, *normal_grad, *spatial_grad, *moment;
        T *features_tangent, *spatial_tangent, *normal_tangent, *along_tangent, *spatial_loss_grad, *moment_tangent;
        // Hidden units in panels of all rows (`unit`): x = W1 n + b1, gelu'(x), dE/d gelu(x), tangent of x.
        T *before, *derivative, *activated_grad, *before_tangent;
    };
    struct Scratch {
        T *rows, *hidden, *angular, *angular_derivatives, *cosine_grads, *tile, *fibre;
    };
    // What products read of the weights, one layer behind the other.
    struct Weights {
        T *fibre, *fibre_adjoint;  // (stride / W, ori, ori', W): receiver n, sender n'; the adjoint transposed
        T *self_weight, *bias, *contract_bias, *readout;  // (stride)
        T *expand, *contract_adjoint;                     // packed (stride -> hidden)
        T *contract, *expand_adjoint;                     // packed (hidden -> stride)
        T* expand_bias;                                   // (hidden)
        T *radial, *radial_adjoint;                       // packed (basis -> degrees x stride) and back
        T* readout_hidden;                                // (hidden), the last layer's alone: its readout through W2
    };

public:
    TrainingGraph(const Dimensions& dimensions, const Batch& batch, int64_t threads)
        : dimensions_(dimensions),
          shape_(dimensions.shape),
          batch_(batch),
          threads_(threads),
          row_(shape_.num_ori * shape_.stride),
          rows_(batch.atoms * shape_.num_ori),
          wide_(shape_.degrees * shape_.stride),
          messages_(messages<T>(shape_.degrees)),
          blocks_(shape_, batch.atoms, threads),
          arena_(batch.workspace),
          sizes_{dimensions.num_bessel, dimensions.radial_hidden, dimensions.radial_basis, dimensions.envelope_power,
                 dimensions.cutoff},
          radial_(sizes_, batch.pairs, arena_),
          bytes_(lay_out()),
          team_(threads, next_) {}

    int64_t bytes() const { return bytes_; }

    void prepare() {
        team_.prepare(4 * shape_.num_layers + 8);
        for (int64_t row = 0; row < blocks_.rows; ++row)
            places_[row] = row / shape_.num_ori * row_ + row % shape_.num_ori * 2 * W;
    }

    // Energies (atoms) and dE/dx (pairs, 3). Called by every thread.
    void energy_and_pair_gradients(int64_t thread, const Parameters& given, T* energies, T* pair_gradients) {
        const Scratch& s = scratch_[thread];
        const int64_t layers = shape_.num_layers, preparations = PREPARATIONS * layers + 2;
        int64_t stage = 0;
        team_.share(stage++, preparations + groups(), [&](int64_t item) {
            if (item < preparations)
                prepare_weights(item, given);
            else
                in_group(item - preparations, [&](int64_t pair) { measure(pair); });
        });
        team_.share(stage++, radial_.items() + blocks_.number, [&](int64_t item) {
            if (item < radial_.items())
                radial_.forward(item, [&](int64_t pair) { return 1.0 / double(pairs_[pair].inverse_distance); });
            else
                start(blocks_.begin(item - radial_.items()), blocks_.begin(item - radial_.items() + 1), given,
                      energies);
        });
        team_.share(stage++, radial_.items() * layers,
                    [&](int64_t item) { radial_functions(item % layers, item / layers); });
        for (int64_t layer = 0; layer < layers; ++layer)
            in_blocks(stage++, [&](int64_t begin, int64_t end) { forward(layer, begin, end, energies, s); });
        for (int64_t layer = layers - 1; layer >= 0; --layer)
            in_blocks(stage++, [&](int64_t begin, int64_t end) { backward(layer, begin, end, s); });
        in_pairs(stage++, [&](int64_t pair) { pair_gradient(pair, s, pair_gradients + 3 * pair); });
    }

    // Gradients of sum_i weights_i E_i + dE/dx . tangent; `weights` (atoms), `tangent` (pairs, 3).
    void loss_backward(int64_t thread, const Parameters& given, const T* weights, const T* tangent,
                       const Parameters& out) {
        const Scratch& s = scratch_[thread];
        const int64_t layers = shape_.num_layers;
        int64_t stage = 0;
        in_pairs(stage++, [&](int64_t pair) { measure_tangent(pair, tangent + 3 * pair); });
        for (int64_t layer = 0; layer < layers; ++layer)
            in_blocks(stage++, [&](int64_t begin, int64_t end) { forward_tangent(layer, begin, end, s); });
        for (int64_t layer = layers - 1; layer >= 0; --layer) {
            in_blocks(stage++, [&](int64_t begin, int64_t end) { backward_loss(layer, begin, end, weights, s); });
            const int64_t panels = shape_.hidden / (2 * W), vectors = shape_.stride / W;
            team_.share(stage++, 2 * panels + vectors, [&](int64_t item) {
                if (item < panels)
                    expand_gradient(layer, item, given.layers[layer], out.layers[layer], s);
                else if (item < 2 * panels)
                    contract_gradient(layer, item - panels, weights, out.layers[layer], s);
                else
                    vector_gradients(layer, (item - 2 * panels) * W, weights, out.layers[layer], s);
            });
        }
        in_blocks(stage++, [&](int64_t begin, int64_t end) { embedding_adjoint(begin, end, s); });
        in_pairs(stage++, [&](int64_t pair) { radial_loss_gradients(pair, s); });
        team_.share(stage++, radial_.items(), [&](int64_t item) {
            radial_adjoint(item);
            radial_.backward(item);
        });
        const int64_t panels = wide_ / (2 * W), matrices = layers * panels;
        team_.share(stage++, matrices + radial_.panels() + layers + 1, [&](int64_t item) {
            if (item < matrices)
                return radial_gradient(item / panels, item % panels, static_cast<T*>(out.layers[item / panels].radial),
                                       s);
            if ((item -= matrices) < radial_.panels()) {
                T* const matrix[2] = {static_cast<T*>(out.radial_hidden), static_cast<T*>(out.radial_basis)};
                T* const bias[2] = {static_cast<T*>(out.radial_hidden_bias), static_cast<T*>(out.radial_basis_bias)};
                return radial_.gradient(item, s.tile, matrix, bias);
            }
            if ((item -= radial_.panels()) < layers) return norm_gradient(item, weights, out.layers[item]);
            embedding_gradient(static_cast<T*>(out.embedding));
        });
    }

private:
    template <typename Work>
    void in_blocks(int64_t stage, Work&& work) {
        team_.share(stage, blocks_.number,
                    [&](int64_t block) { work(blocks_.begin(block), blocks_.begin(block + 1)); });
    }

    static constexpr int64_t FEW = 16;  // pairs that one thread takes at a time
    int64_t groups() const { return (batch_.pairs + FEW - 1) / FEW; }
    template <typename Work>
    void in_group(int64_t group, Work&& work) {
        for (int64_t pair = group * FEW; pair < std::min((group + 1) * FEW, batch_.pairs); ++pair) work(pair);
    }
    template <typename Work>
    void in_pairs(int64_t stage, Work&& work) {
        team_.share(stage, groups(), [&](int64_t group) { in_group(group, work); });
    }

    int64_t lay_out() {
        Arena& arena = arena_;
        const int64_t atoms = batch_.atoms, stride = shape_.stride, hidden = shape_.hidden, layers = shape_.num_layers;
        next_ = arena.take<std::atomic<int64_t>>(4 * shape_.num_layers + 8);
        counts_ = arena.take<int64_t>(atoms);
        links_ = arena.take<Link>(atoms * batch_.max_neighbours);
        pairs_ = arena.take<Pair>(batch_.pairs);
        for (int64_t index = 0; index < shape_.num_layers; ++index) {
            Layer& layer = layers_[index];
            for (T** piece : {&layer.features, &layer.spatial, &layer.normal, &layer.feature_grad, &layer.normal_grad,
                              &layer.spatial_grad, &layer.features_tangent, &layer.spatial_tangent,
                              &layer.normal_tangent, &layer.spatial_loss_grad})
                *piece = arena.take<T>(rows_ * stride);
            for (T** piece : {&layer.before, &layer.derivative, &layer.activated_grad, &layer.before_tangent})
                *piece = arena.take<T>(rows_ * hidden);
            for (T** piece : {&layer.moment, &layer.moment_tangent}) *piece = arena.take<T>(atoms * stride);
            for (T** piece : {&layer.inverse_deviation, &layer.along_tangent}) *piece = arena.take<T>(rows_);
        }
        for (T** piece : {&pooled_, &pooled_tangent_}) *piece = arena.take<T>(atoms * hidden);
        for (T** piece :
             {&feature_loss_grad_, &convolved_loss_grad_, &convolved_grad_, &left_[0], &left_[1], &left_[2], &left_[3]})
            *piece = arena.take<T>(rows_ * stride);
        for (T*& piece : right_) piece = arena.take<T>(rows_ * hidden);
        for (T** piece : {&weights_.fibre, &weights_.fibre_adjoint}) *piece = arena.take<T>(layers * fibre_size());
        for (T** piece : {&weights_.self_weight, &weights_.bias, &weights_.contract_bias, &weights_.readout})
            *piece = arena.take<T>(layers * stride);
        for (T** piece : {&weights_.expand, &weights_.expand_adjoint, &weights_.contract, &weights_.contract_adjoint})
            *piece = arena.take<T>(layers * stride * hidden);
        weights_.expand_bias = arena.take<T>(layers * hidden);
        weights_.readout_hidden = arena.take<T>(hidden);
        for (T** piece : {&weights_.radial, &weights_.radial_adjoint})
            *piece = arena.take<T>(layers * wide_ * radial_.width());
        for (T** piece : {&values_, &value_loss_grad_}) *piece = arena.take<T>(layers * 2 * batch_.pairs * wide_);
        norm_parts_ = arena.take<T>(layers * (hidden / (2 * W)) * 2 * stride);
        embedding_loss_grad_ = arena.take<T>(atoms * stride);
        // What depends on the number of threads comes last: the second call may get another one.
        places_ = arena.take<int64_t>(blocks_.rows);
        for (int64_t thread = 0; thread < threads_; ++thread) {
            Scratch& s = scratch_[thread];
            s.rows = arena.take<T>(blocks_.rows * stride);
            s.hidden = arena.take<T>(blocks_.rows * hidden);
            s.angular = arena.take<T>(shape_.degrees * shape_.ori_stride);
            s.angular_derivatives = arena.take<T>(shape_.degrees * shape_.ori_stride);
            s.cosine_grads = arena.take<T>(shape_.num_ori * W);
            s.tile = arena.take<T>(std::max(stride, radial_.tile_rows()) * 2 * W);
            s.fibre = arena.take<T>(shape_.num_ori * shape_.num_ori * W);
        }
        return arena.used(batch_.workspace);
    }

    // The part of an array over layers that belongs to one of them, of `size` elements.
    static const T* part(const void* array, int64_t layer, int64_t size) {
        return static_cast<const T*>(array) + layer * size;
    }
    static T* part(void* array, int64_t layer, int64_t size) { return static_cast<T*>(array) + layer * size; }

    // Where a row's hidden unit lies in an array of panels of all rows, (hidden / 2 W, rows, 2 W).
    INLINE int64_t unit(int64_t row, int64_t column) const { return in_panels<T>(rows_, row, column); }
    // Calls use(row, column) for every vector of hidden units of some rows, in the order in which panels lie.
    template <typename Use>
    INLINE void over_units(int64_t rows, Use&& use) const {
        for (int64_t panel = 0; panel < shape_.hidden; panel += 2 * W)
            for (int64_t row = 0; row < rows; ++row) use(row, panel), use(row, panel + W);
    }

    int64_t fibre_size() const { return shape_.num_ori * shape_.num_ori * shape_.stride; }
    // R_l of a pair in a layer, or its derivative; later dS/dR_l and dS/dR_l'.
    T* radial(int64_t pair, int64_t layer, bool derivative) const {
        return values_ + ((2 * layer + derivative) * batch_.pairs + pair) * wide_;
    }

    // ---------------------------------------------------------------------------------------------- first call

    static constexpr int64_t PREPARATIONS = 7;

    void prepare_weights(int64_t item, const Parameters& given) {
        const auto read = [](const void* from) { return static_cast<const T*>(from); };
        if (item < 2)
            return item ? radial_.prepare(1, read(given.radial_basis), read(given.radial_basis_bias))
                        : radial_.prepare(0, read(given.radial_hidden), read(given.radial_hidden_bias));
        const int64_t index = (item - 2) / PREPARATIONS, channels = shape_.channels, stride = shape_.stride;
        const int64_t units = dimensions_.hidden_units, hidden = shape_.hidden, matrix = stride * hidden;
        const LayerParameters& layer = given.layers[index];
        const T *norm = read(layer.norm), *none = nullptr;
        switch ((item - 2) % PREPARATIONS) {
            case 0:
                return pack_columns(read(layer.expand), channels, units, stride, hidden, norm,
                                    part(weights_.expand, index, matrix));
            case 1:
                return pack_rows(read(layer.expand), units, channels, hidden, stride, hidden, norm,
                                 part(weights_.expand_adjoint, index, matrix));
            case 2:
                return pack_columns(read(layer.contract), units, channels, hidden, stride, none,
                                    part(weights_.contract, index, matrix));
            case 3:
                return pack_rows(read(layer.contract), channels, units, stride, hidden, stride, none,
                                 part(weights_.contract_adjoint, index, matrix));
            case 4: return prepare_radial(index, read(layer.radial));
            case 5: return prepare_radial_adjoint(index, read(layer.radial));
            default: return prepare_vectors(index, layer);
        }
    }

    void prepare_radial(int64_t index, const T* matrix) {
        const int64_t basis = dimensions_.radial_basis, width = radial_.width();
        T* out = part(weights_.radial, index, wide_ * width);
        for (int64_t l = 0; l < shape_.degrees; ++l)
            pack_columns(matrix + l * shape_.channels * basis, basis, shape_.channels, width, shape_.stride,
                         static_cast<const T*>(nullptr), out + l * shape_.stride * width);
    }
    void prepare_radial_adjoint(int64_t index, const T* matrix) {
        const int64_t basis = dimensions_.radial_basis, width = radial_.width();
        T* out = part(weights_.radial_adjoint, index, wide_ * width);
        for (int64_t l = 0; l < shape_.degrees; ++l)
            pack_rows(matrix + l * shape_.channels * basis, shape_.channels, basis, shape_.stride, width, wide_,
                      static_cast<const T*>(nullptr), out + l * shape_.stride * 2 * W);
    }

    void prepare_vectors(int64_t index, const LayerParameters& layer) {
        const int64_t channels = shape_.channels, stride = shape_.stride, hidden = shape_.hidden;
        const auto copy = [&](const void* from, T* to) {
            std::fill(to, to + stride, T(0));
            std::copy_n(static_cast<const T*>(from), channels, to);
        };
        copy(layer.self_weight, part(weights_.self_weight, index, stride));
        copy(layer.bias, part(weights_.bias, index, stride));
        copy(layer.contract_bias, part(weights_.contract_bias, index, stride));
        copy(layer.readout, part(weights_.readout, index, stride));
        T* shift = part(weights_.expand_bias, index, hidden);
        std::fill(shift, shift + hidden, T(0));
        const T *expand = static_cast<const T*>(layer.expand), *norm_bias = static_cast<const T*>(layer.norm_bias);
        for (int64_t h = 0; h < dimensions_.hidden_units; ++h)
            shift[h] = static_cast<const T*>(layer.expand_bias)[h] + dot(expand + h * channels, norm_bias, channels);
        if (shape_.has_fibre) prepare_fibre(index, static_cast<const T*>(layer.fibre));
        if (!last(index)) return;
        const T *contract = static_cast<const T*>(layer.contract), *readout = static_cast<const T*>(layer.readout);
        std::fill(weights_.readout_hidden, weights_.readout_hidden + hidden, T(0));
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t h = 0; h < dimensions_.hidden_units; ++h)
                weights_.readout_hidden[h] += readout[c] * contract[c * dimensions_.hidden_units + h];
    }

    void prepare_fibre(int64_t index, const T* factors) {
        const T* angular = static_cast<const T*>(dimensions_.fibre_angular);
        const int64_t ori = shape_.num_ori;
        T *kernel = part(weights_.fibre, index, fibre_size()),
          *adjoint = part(weights_.fibre_adjoint, index, fibre_size());
        for (int64_t c = 0; c < shape_.stride; c += W, kernel += ori * ori * W, adjoint += ori * ori * W)
            for (int64_t n = 0; n < ori; ++n)
                for (int64_t m = 0; m < ori; ++m) {
                    Vector<T> value = all(T(0));
                    for (int64_t l = 0; l < shape_.degrees; ++l)
                        value += angular[(l * ori + m) * ori + n] * load_inside(factors + l * shape_.channels, c);
                    store(kernel + (n * ori + m) * W, value);
                    store(adjoint + (m * ori + n) * W, value);
                }
    }

    // A vector of channels from c on, of an array without padding.
    Vector<T> load_inside(const T* array, int64_t c) const {
        if (c + W <= shape_.channels) return load(array + c);
        Vector<T> value = all(T(0));
        for (int64_t k = 0; c + k < shape_.channels; ++k) value[k] = array[c + k];
        return value;
    }
    void store_inside(void* array, int64_t c, Vector<T> value) const {
        T* target = static_cast<T*>(array);
        for (int64_t k = 0; k < W && c + k < shape_.channels; ++k) target[c + k] = value[k];
    }

    void radial_functions(int64_t layer, int64_t item) {
        const int64_t first = radial_.begin(item), count = radial_.begin(item + 1) - first, width = radial_.width();
        for (const bool derivative : {false, true}) {
            T* out = radial(first, layer, derivative);
            product(Rows<T>{radial_.basis() + (derivative * batch_.pairs + first) * width, width}, count,
                    part(weights_.radial, layer, wide_ * width), width, wide_,
                    [&](int64_t row, int64_t column, Vector<T> value)
                        INLINE_LAMBDA { store(out + row * wide_ + column, value); });
        }
    }

    void measure(int64_t index) {
        const T* vector = static_cast<const T*>(batch_.vectors) + 3 * index;
        Pair& pair = pairs_[index];
        const T inverse = 1 / std::sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]);
        pair.inverse_distance = inverse;
        for (int k = 0; k < 3; ++k) pair.direction[k] = vector[k] * inverse;
    }

    void start(int64_t begin, int64_t end, const Parameters& given, T* energies) {
        T constant = 0;
        for (int64_t layer = 0; layer < shape_.num_layers; ++layer)
            constant += *static_cast<const T*>(given.layers[layer].readout_bias);
        constant *= total_weight<T>(shape_) / T(shape_.num_layers);
        for (int64_t atom = begin; atom < end; ++atom) {
            energies[atom] = constant;
            Link* link = links_ + atom * batch_.max_neighbours;
            for (int64_t slot = 0; slot < batch_.max_neighbours; ++slot) {
                const int64_t at = atom * batch_.max_neighbours + slot, which = batch_.links[at];
                if (!which) continue;
                *link++ = {int32_t(batch_.neighbours[at]), int32_t(std::abs(which) - 1), T(which > 0 ? 1 : -1)};
            }
            counts_[atom] = link - (links_ + atom * batch_.max_neighbours);
            const T* embedding = static_cast<const T*>(given.embedding) + batch_.species[atom] * shape_.channels;
            T* features = layers_[0].features + atom * row_;
            for (int64_t c = 0; c < shape_.stride; c += 2 * W) {
                const Vector<T> one = load_inside(embedding, c), two = load_inside(embedding, c + W);
                for (int64_t o = 0; o < shape_.num_ori; ++o, features += 2 * W)
                    store(features, one), store(features + W, two);
            }
            T* tangent = layers_[0].features_tangent + atom * row_;
            std::fill(tangent, tangent + row_, T(0));
        }
    }

    // P_l of an edge, or of the reversed edge, and the tangent of P_l if `tangent` is not null.
    void angular(const Link& link, bool reversed, T* values, T* tangent) const {
        const Pair& pair = pairs_[link.pair];
        const T sign = reversed ? -link.sign : link.sign;
        const T direction[3] = {sign * pair.direction[0], sign * pair.direction[1], sign * pair.direction[2]};
        legendre(shape_, direction, values, tangent);
        if (tangent) to_angular_tangent(pair, sign, tangent);
    }

    // Tangent of P_l from dP_l/dc: (dP_l/dc) (u_tangent . n).
    void to_angular_tangent(const Pair& pair, T sign, T* angular) const {
        const T* grid = static_cast<const T*>(shape_.orientations);
        const int64_t stride = shape_.ori_stride;
        for (int64_t o = 0; o < stride; o += W) {
            const Vector<T> cosine_tangent = sign * (load(grid + o) * pair.direction_tangent[0] +
                                                     load(grid + stride + o) * pair.direction_tangent[1] +
                                                     load(grid + 2 * stride + o) * pair.direction_tangent[2]);
            for (int64_t l = 0; l < shape_.degrees; ++l)
                store(angular + l * stride + o, load(angular + l * stride + o) * cosine_tangent);
        }
    }

    // w in + sum over the edges of each atom of K in; K of the reversed edges if `reversed`. Panels in, rows out.
    void sum_messages(int64_t layer, int64_t begin, int64_t end, bool reversed, const T* in, T* out, const Scratch& s) {
        const T* self_weight = part(weights_.self_weight, layer, shape_.stride);
        for (int64_t atom = begin; atom < end; ++atom, out += row_) {
            send_to_self(shape_, self_weight, in + atom * row_, out);
            for (int64_t k = 0; k < counts_[atom]; ++k) {
                const Link& link = links_[atom * batch_.max_neighbours + k];
                angular(link, reversed, s.angular, nullptr);
                messages_.send(shape_, s.angular, radial(link.pair, layer, false), in + link.neighbour * row_, out);
            }
        }
    }

    // w one + sum over edges of (K one + K_tangent two). Panels in, rows out.
    void sum_message_tangents(int64_t layer, int64_t begin, int64_t end, bool reversed, const T* one, const T* two,
                              T* out, const Scratch& s) {
        const T* self_weight = part(weights_.self_weight, layer, shape_.stride);
        for (int64_t atom = begin; atom < end; ++atom, out += row_) {
            send_to_self(shape_, self_weight, one + atom * row_, out);
            for (int64_t k = 0; k < counts_[atom]; ++k) {
                const Link& link = links_[atom * batch_.max_neighbours + k];
                const int64_t other = link.neighbour * row_;
                angular(link, reversed, s.angular, s.angular_derivatives);
                messages_.send_tangent(shape_, s.angular, s.angular_derivatives, pairs_[link.pair].distance_tangent,
                                       radial(link.pair, layer, false), radial(link.pair, layer, true), one + other,
                                       two + other, out);
            }
        }
    }

    // Fibre convolution of rows; the adjoint goes to panels. Without orientations: a copy.
    void convolve_fibre(int64_t layer, int64_t atoms, const T* in, const T* bias, T* out) const {
        if (shape_.has_fibre)
            return over_orientations(shape_, part(weights_.fibre, layer, fibre_size()), bias, atoms, in, out, false);
        std::copy(in, in + atoms * row_, out);
        if (bias) add_to_rows(shape_, bias, atoms * shape_.num_ori, out);
    }
    void convolve_fibre_adjoint(int64_t layer, int64_t atoms, const T* in, T* out) const {
        if (shape_.has_fibre)
            return over_orientations(shape_, part(weights_.fibre_adjoint, layer, fibre_size()),
                                     static_cast<const T*>(nullptr), atoms, in, out, true);
        std::copy(in, in + atoms * row_, out);  // one orientation: rows and panels are the same
    }

    void forward(int64_t index, int64_t begin, int64_t end, T* energies, const Scratch& s) {
        Layer& layer = layers_[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, first = begin * shape_.num_ori;
        const int64_t rows = (end - begin) * shape_.num_ori, matrix = stride * hidden;
        T* spatial = layer.spatial + begin * row_;
        std::fill(spatial, spatial + rows * stride, T(0));
        sum_messages(index, begin, end, false, layer.features, spatial, s);
        convolve_fibre(index, end - begin, spatial, part(weights_.bias, index, stride), s.rows);
        T* normal = layer.normal + begin * row_;
        normalise(shape_, s.rows, rows, normal, layer.inverse_deviation + first);

        const T* expand_bias = part(weights_.expand_bias, index, hidden);
        T *const before = layer.before, *const derivatives = layer.derivative, *const units = s.hidden;
        product(Rows<T>{normal, stride}, rows, part(weights_.expand, index, matrix), stride, hidden,
                [&](int64_t row, int64_t column, Vector<T> value)
                    INLINE_LAMBDA { store(before + unit(first + row, column), value + load(expand_bias + column)); });
        over_units(rows, [&](int64_t row, int64_t column) INLINE_LAMBDA {  // the product's sums fill the registers
            const int64_t at = unit(first + row, column);
            Vector<T> activated, derivative;
            gelu(load(before + at), activated, derivative);
            store(derivatives + at, derivative);
            store(units + in_panels<T>(rows, row, column), activated);
        });
        const T *contract_bias = part(weights_.contract_bias, index, stride),
                *readout = part(weights_.readout, index, stride);
        contract(index, begin, end, layer.features, contract_bias, pooled_, layer.moment, s);
        for (int64_t atom = begin; atom < end; ++atom) {
            Vector<T> total = all(T(0));
            for (int64_t c = 0; c < stride; c += W) total += load(layer.moment + atom * stride + c) * load(readout + c);
            energies[atom] += sum<T>(total) / T(shape_.num_layers);
        }
    }

    bool last(int64_t index) const { return index + 1 == shape_.num_layers; }

    // Next features, W2 s.hidden + bias + features, or their tangents where there is no bias; and the features pooled,
    // (atoms, stride). The last ones are only read out, linearly: there what W2 multiplies is pooled before.
    void contract(int64_t index, int64_t begin, int64_t end, const T* features, const T* bias, T* pooled, T* moment,
                  const Scratch& s) {
        const int64_t stride = shape_.stride, hidden = shape_.hidden, atoms = end - begin;
        const T *matrix = part(weights_.contract, index, stride * hidden), *before = features + begin * row_;
        moment += begin * stride;
        if (last(index)) {
            const T weight = total_weight<T>(shape_);
            pool(shape_, s.hidden, hidden, atoms, pooled += begin * hidden);
            product(Rows<T>{pooled, hidden}, atoms, matrix, hidden, stride,
                    [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                        value += pool_panels(shape_, before + row * row_, column);
                        if (bias) value += weight * load(bias + column);
                        store(moment + row * stride + column, value);
                    });
            return;
        }
        const Layer& next = layers_[index + 1];
        T* out = (bias ? next.features : next.features_tangent) + begin * row_;
        const int64_t rows = atoms * shape_.num_ori;
        product(Panels<T>{s.hidden, rows}, rows, matrix, hidden, stride,
                [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                    const int64_t place = places_[row] + panel_start<T>(shape_, column);
                    value += load(before + place);
                    store(out + place, bias ? value + load(bias + column) : value);
                });
        for (int64_t atom = 0; atom < atoms; ++atom)
            for (int64_t c = 0; c < stride; c += W)
                store(moment + atom * stride + c, pool_panels(shape_, out + atom * row_, c));
    }

    // Calls use(row, column, vector) for all of feature_grad W2, the derivative for the hidden units of a block;
    // `feature_grad` is the one for the features behind the layer. Of the last layer only the readout is behind
    // it: `factors` as in read_out_adjoint.
    template <typename Use>
    void contract_adjoint(int64_t index, int64_t begin, int64_t end, const T* feature_grad, const T* factors,
                          Use&& use) {
        const int64_t stride = shape_.stride, hidden = shape_.hidden, rows = (end - begin) * shape_.num_ori;
        if (!last(index))
            return product(Rows<T>{feature_grad, stride}, rows, part(weights_.contract_adjoint, index, stride * hidden),
                           stride, hidden, use);
        const T* through = static_cast<const T*>(weights_.readout_hidden);
        over_units(rows, [&](int64_t row, int64_t column) INLINE_LAMBDA {
            const T factor = readout_factor(begin + row / shape_.num_ori, row % shape_.num_ori, factors);
            use(row, column, factor * load(through + column));
        });
    }

    // Derivative of the energy with respect to the readout of an orientation, `factors` an atom's or null for 1.
    T readout_factor(int64_t atom, int64_t orientation, const T* factors) const {
        return static_cast<const T*>(shape_.weights)[orientation] * (factors ? factors[atom] : T(1)) /
               T(shape_.num_layers);
    }

    // Adds what the readout of a layer gives to the derivative for the features behind it.
    void read_out_adjoint(int64_t index, int64_t begin, int64_t end, const T* factors, T* out) const {
        const T* readout = part(weights_.readout, index, shape_.stride);
        for (int64_t atom = begin; atom < end; ++atom)
            for (int64_t o = 0; o < shape_.num_ori; ++o, out += shape_.stride) {
                const T weight = readout_factor(atom, o, factors);
                for (int64_t c = 0; c < shape_.stride; c += W)
                    store(out + c, load(out + c) + weight * load(readout + c));
            }
    }

    void backward(int64_t index, int64_t begin, int64_t end, const Scratch& s) {
        Layer& layer = layers_[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, first = begin * shape_.num_ori;
        const int64_t rows = (end - begin) * shape_.num_ori, matrix = stride * hidden;
        T* feature_grad = layer.feature_grad + begin * row_;
        if (index + 1 == shape_.num_layers) {
            std::fill(feature_grad, feature_grad + rows * stride, T(0));
        } else {
            const T* above = layers_[index + 1].feature_grad + begin * row_;
            std::copy(above, above + rows * stride, feature_grad);
            sum_messages(index + 1, begin, end, true, layers_[index + 1].spatial_grad, feature_grad, s);
        }
        read_out_adjoint(index, begin, end, nullptr, feature_grad);

        const T* const derivatives = layer.derivative;
        T *const activated_grad = layer.activated_grad, *const units = s.hidden;
        contract_adjoint(index, begin, end, feature_grad, nullptr,
                         [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                             const int64_t at = unit(first + row, column);
                             store(activated_grad + at, value);
                             store(units + in_panels<T>(rows, row, column), value * load(derivatives + at));
                         });
        T* normal_grad = layer.normal_grad + begin * row_;
        product(Panels<T>{units, rows}, rows, part(weights_.expand_adjoint, index, matrix), hidden, stride,
                [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                    store(normal_grad + row * stride + column, value);
                    store(s.rows + row * stride + column, value);
                });
        normalise_adjoint(shape_, layer.normal + begin * row_, layer.inverse_deviation + first, rows, s.rows);
        convolve_fibre_adjoint(index, end - begin, s.rows, layer.spatial_grad + begin * row_);
    }

    Ends<T> ends(int64_t pair, const T* array) const {
        return {array + batch_.ends[2 * pair] * row_, array + batch_.ends[2 * pair + 1] * row_};
    }

    // dE/dx = dE/dr u + sum_n dE/dc_n (n - c_n u) / r.
    void pair_gradient(int64_t index, const Scratch& s, T* out) const {
        const Pair& pair = pairs_[index];
        legendre(shape_, pair.direction, s.angular, s.angular_derivatives);
        std::fill(s.cosine_grads, s.cosine_grads + shape_.num_ori * W, T(0));
        T distance_grad = 0;
        for (int64_t layer = 0; layer < shape_.num_layers; ++layer)
            distance_grad += messages_.pair_gradient(
                shape_, s.angular, s.angular_derivatives, radial(index, layer, false), radial(index, layer, true),
                ends(index, layers_[layer].features), ends(index, layers_[layer].spatial_grad), s.cosine_grads);
        const T* grid = static_cast<const T*>(shape_.orientations);
        T direction_grad[3] = {0, 0, 0};
        for (int64_t o = 0; o < shape_.num_ori; ++o) {
            const T cosine_grad = sum<T>(load(s.cosine_grads + o * W));
            for (int k = 0; k < 3; ++k) direction_grad[k] += cosine_grad * grid[k * shape_.ori_stride + o];
        }
        const T along = direction_grad[0] * pair.direction[0] + direction_grad[1] * pair.direction[1] +
                        direction_grad[2] * pair.direction[2];
        for (int k = 0; k < 3; ++k)
            out[k] = distance_grad * pair.direction[k] +
                     (direction_grad[k] - along * pair.direction[k]) * pair.inverse_distance;
    }

    // --------------------------------------------------------------------------------------------- second call

    void measure_tangent(int64_t index, const T* tangent) {
        Pair& pair = pairs_[index];
        const T* u = pair.direction;
        pair.distance_tangent = u[0] * tangent[0] + u[1] * tangent[1] + u[2] * tangent[2];
        for (int k = 0; k < 3; ++k)
            pair.direction_tangent[k] = (tangent[k] - pair.distance_tangent * u[k]) * pair.inverse_distance;
    }

    void forward_tangent(int64_t index, int64_t begin, int64_t end, const Scratch& s) {
        Layer& layer = layers_[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, first = begin * shape_.num_ori;
        const int64_t rows = (end - begin) * shape_.num_ori;
        T* spatial = layer.spatial_tangent + begin * row_;
        std::fill(spatial, spatial + rows * stride, T(0));
        sum_message_tangents(index, begin, end, false, layer.features_tangent, layer.features, spatial, s);
        T *normal = layer.normal_tangent + begin * row_, *along = layer.along_tangent + first;
        convolve_fibre(index, end - begin, spatial, nullptr, normal);
        for (int64_t row = 0; row < rows; ++row)
            along[row] = dot(normal + row * stride, layer.normal + (first + row) * stride, stride) / T(shape_.channels);
        normalise_adjoint(shape_, layer.normal + begin * row_, layer.inverse_deviation + first, rows, normal);

        const T* const derivatives = layer.derivative;
        T *const before_tangent = layer.before_tangent, *const units = s.hidden;
        product(Rows<T>{normal, stride}, rows, part(weights_.expand, index, stride * hidden), stride, hidden,
                [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                    const int64_t at = unit(first + row, column);
                    store(before_tangent + at, value);
                    store(units + in_panels<T>(rows, row, column), value * load(derivatives + at));
                });
        contract(index, begin, end, layer.features_tangent, nullptr, pooled_tangent_, layer.moment_tangent, s);
    }

    static T dot(const T* one, const T* two, int64_t size) {
        Vector<T> total = all(T(0));
        int64_t k = 0;
        for (; k + W <= size; k += W) total += load(one + k) * load(two + k);
        T rest = 0;
        for (; k < size; ++k) rest += one[k] * two[k];
        return sum<T>(total) + rest;
    }

    void backward_loss(int64_t index, int64_t begin, int64_t end, const T* weights, const Scratch& s) {
        Layer& layer = layers_[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, first = begin * shape_.num_ori;
        const int64_t rows = (end - begin) * shape_.num_ori, matrix = stride * hidden;
        T* feature_loss_grad = feature_loss_grad_ + begin * row_;
        if (index + 1 == shape_.num_layers) {
            std::fill(feature_loss_grad, feature_loss_grad + rows * stride, T(0));
        } else {
            const Layer& above = layers_[index + 1];
            sum_message_tangents(index + 1, begin, end, true, above.spatial_loss_grad, above.spatial_grad,
                                 feature_loss_grad, s);
        }
        read_out_adjoint(index, begin, end, weights, feature_loss_grad);

        const T *const before = layer.before, *const before_tangent = layer.before_tangent;
        const T *const activated_grad = layer.activated_grad, *const derivatives = layer.derivative;
        T* const right[4] = {right_[0], right_[1], right_[2], right_[3]};
        contract_adjoint(index, begin, end, feature_loss_grad, weights,
                         [&](int64_t row, int64_t column, Vector<T> value)
                             INLINE_LAMBDA { store(right[0] + unit(first + row, column), value); });
        over_units(rows, [&](int64_t row, int64_t column) INLINE_LAMBDA {  // not in the product: as in `forward`
            const int64_t at = unit(first + row, column);
            const Vector<T> derivative = load(derivatives + at), tangent = load(before_tangent + at),
                            grad = load(activated_grad + at);
            Vector<T> activated, curvature;
            gelu_from_derivative(load(before + at), derivative, activated, curvature);
            store(right[0] + at, derivative * load(right[0] + at) + curvature * tangent * grad);
            store(right[1] + at, derivative * grad);
            store(right[2] + at, activated);
            store(right[3] + at, derivative * tangent);
        });
        T *convolved_loss_grad = convolved_loss_grad_ + begin * row_, *convolved_grad = convolved_grad_ + begin * row_;
        product(Panels<T>{right[0] + first * 2 * W, rows_}, rows, part(weights_.expand_adjoint, index, matrix), hidden,
                stride, [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                    store(convolved_loss_grad + row * stride + column, value);
                });
        const T* normal_grad = layer.normal_grad + begin * row_;
        std::copy(normal_grad, normal_grad + rows * stride, convolved_grad);
        normalise_adjoint(shape_, layer.normal + begin * row_, layer.inverse_deviation + first, rows, convolved_grad);
        normalise_adjoint(shape_, layer.normal + begin * row_, layer.inverse_deviation + first, rows, convolved_loss_grad);
        normalise_curvature(layer, first, rows, convolved_grad, convolved_loss_grad);
        convolve_fibre_adjoint(index, end - begin, convolved_loss_grad, layer.spatial_loss_grad + begin * row_);
        const T* left[4] = {layer.normal + begin * row_, layer.normal_tangent + begin * row_, feature_loss_grad,
                            layer.feature_grad + begin * row_};
        for (int k = 0; k < (last(index) ? 2 : 4); ++k) pack_left(left[k], stride, first, rows, rows_, left_[k]);
    }

    // Derivative of n_grad . J(h) h_tangent with respect to h, J the norm's Jacobian and d its inverse standard deviation (*
    // stands for _grad and a dot for _tangent): -d ((n* . n.) n / C + (n . h.) h* / C + (n* . n) n. / C), with h* = J
    // n* and n. = J h..
    void normalise_curvature(const Layer& layer, int64_t first, int64_t rows, const T* convolved_grad, T* out) const {
        const int64_t stride = shape_.stride;
        const T per_channel = T(1) / T(shape_.channels);
        for (int64_t row = first; row < first + rows; ++row, convolved_grad += stride, out += stride) {
            const T *normal = layer.normal + row * stride, *normal_tangent = layer.normal_tangent + row * stride;
            const T* normal_grad = layer.normal_grad + row * stride;
            const T of_normal = dot(normal_grad, normal_tangent, stride) * per_channel;
            const T of_tangent = dot(normal_grad, normal, stride) * per_channel;
            const T scale = -layer.inverse_deviation[row], of_grad = layer.along_tangent[row];
            for (int64_t c = 0; c < stride; c += W)
                store(out + c,
                      load(out + c) + scale * (of_normal * load(normal + c) + of_grad * load(convolved_grad + c) +
                                               of_tangent * load(normal_tangent + c)));
        }
    }

    // One panel's columns of the gradients of W1 and b1, and what they add to those of the norm.
    void expand_gradient(int64_t index, int64_t panel, const LayerParameters& given, const LayerParameters& out,
                         const Scratch& s) const {
        const int64_t stride = shape_.stride, channels = shape_.channels, start = panel * 2 * W;
        std::fill(s.tile, s.tile + stride * 2 * W, T(0));
        for (int k = 0; k < 2; ++k) outer_product(left_[k], right_[k] + start * rows_, stride, rows_, s.tile);
        T shift[2 * W];
        sum_rows(right_[0] + start * rows_, rows_, shift);
        const int64_t inside = std::clamp<int64_t>(dimensions_.hidden_units - start, 0, 2 * W);
        std::copy_n(shift, inside, static_cast<T*>(out.expand_bias) + start);
        T* norm_part = norm_parts_ + (index * (shape_.hidden / (2 * W)) + panel) * 2 * stride;
        std::fill(norm_part, norm_part + 2 * stride, T(0));
        const T *norm = static_cast<const T*>(given.norm), *norm_bias = static_cast<const T*>(given.norm_bias);
        for (int64_t j = 0; j < inside; ++j) {
            const T* weights = static_cast<const T*>(given.expand) + (start + j) * channels;
            T* gradient = static_cast<T*>(out.expand) + (start + j) * channels;
            for (int64_t c = 0; c < channels; ++c) {
                const T of_product = s.tile[c * 2 * W + j];
                gradient[c] = of_product * norm[c] + shift[j] * norm_bias[c];
                norm_part[c] += of_product * weights[c];
                norm_part[stride + c] += shift[j] * weights[c];
            }
        }
    }

    // The same of W2.
    void contract_gradient(int64_t index, int64_t panel, const T* weights, const LayerParameters& out,
                           const Scratch& s) const {
        const int64_t stride = shape_.stride, start = panel * 2 * W;
        if (last(index)) {
            last_contract_gradient(start, weights, s.tile);
        } else {
            std::fill(s.tile, s.tile + stride * 2 * W, T(0));
            for (int k = 2; k < 4; ++k) outer_product(left_[k], right_[k] + start * rows_, stride, rows_, s.tile);
        }
        const int64_t inside = std::clamp<int64_t>(dimensions_.hidden_units - start, 0, 2 * W);
        for (int64_t c = 0; c < shape_.channels; ++c)
            std::copy_n(s.tile + c * 2 * W, inside,
                        static_cast<T*>(out.contract) + c * dimensions_.hidden_units + start);
    }

    // The last W2 is read out at once: its gradient is the readout times the hidden units, pooled.
    void last_contract_gradient(int64_t start, const T* weights, T* tile) const {
        const T* readout = part(weights_.readout, shape_.num_layers - 1, shape_.stride);
        for (int64_t k = 0; k < 2 * W; k += W) {
            Vector<T> total = all(T(0));
            for (int64_t atom = 0; atom < batch_.atoms; ++atom) {
                const int64_t at = atom * shape_.hidden + start + k;
                total += weights[atom] * load(pooled_ + at) + load(pooled_tangent_ + at);
            }
            total /= T(shape_.num_layers);
            for (int64_t c = 0; c < shape_.stride; ++c) store(tile + c * 2 * W + k, readout[c] * total);
        }
    }

    // One vector of channels of the gradients of the fibre kernel, w, the biases and the readout.
    void vector_gradients(int64_t index, int64_t c, const T* weights, const LayerParameters& out,
                          const Scratch& s) const {
        const int64_t stride = shape_.stride;
        const Layer& layer = layers_[index];
        Vector<T> bias = all(T(0)), contract_bias = all(T(0)), readout = all(T(0));
        for (int64_t row = 0; row < rows_; ++row) {
            bias += load(convolved_loss_grad_ + row * stride + c);
            contract_bias += load(feature_loss_grad_ + row * stride + c);
        }
        for (int64_t atom = 0; atom < batch_.atoms; ++atom)
            readout +=
                weights[atom] * load(layer.moment + atom * stride + c) + load(layer.moment_tangent + atom * stride + c);
        store_inside(out.self_weight, c, self_weight_gradient(layer, c));
        store_inside(out.bias, c, bias);
        store_inside(out.contract_bias, c, contract_bias);
        store_inside(out.readout, c, readout / T(shape_.num_layers));
        if (!shape_.has_fibre) return;
        const int64_t ori = shape_.num_ori;
        for (int64_t n = 0; n < ori; ++n) {
            int64_t m = 0;
            for (; m + FIBRE_SENDERS <= ori; m += FIBRE_SENDERS) fibre_gradient<FIBRE_SENDERS>(layer, c, n, m, s.fibre);
            for (; m < ori; ++m) fibre_gradient<1>(layer, c, n, m, s.fibre);
        }
        const T* angular = static_cast<const T*>(dimensions_.fibre_angular);
        for (int64_t l = 0; l < shape_.degrees; ++l) {
            Vector<T> total = all(T(0));
            for (int64_t n = 0; n < ori; ++n)
                for (int64_t m = 0; m < ori; ++m)
                    total += angular[(l * ori + m) * ori + n] * load(s.fibre + (n * ori + m) * W);
            store_inside(static_cast<T*>(out.fibre) + l * shape_.channels, c, total);
        }
    }

    Vector<T> self_weight_gradient(const Layer& layer, int64_t c) const {
        Vector<T> total = all(T(0));
        for (int64_t atom = 0; atom < batch_.atoms; ++atom) {
            const int64_t first = atom * row_ + panel_start<T>(shape_, c);
            for (int64_t at = first; at < first + shape_.num_ori * 2 * W; at += 2 * W)
                total += load(layer.spatial_loss_grad + at) * load(layer.features + at) +
                         load(layer.spatial_grad + at) * load(layer.features_tangent + at);
        }
        return total;
    }

    // dL/dK(n, m, :), K from orientation m to n: sum over atoms of h_loss_grad(n) s(m) + h_grad(n) s_tangent(m).
    template <int64_t SENDERS>
    INLINE void fibre_gradient(const Layer& layer, int64_t c, int64_t n, int64_t m, T* out) const {
        const int64_t stride = shape_.stride;
        Vector<T> sums[SENDERS] = {};
        for (int64_t atom = 0; atom < batch_.atoms; ++atom) {
            const int64_t here = atom * row_ + n * stride + c, there = atom * row_ + m * stride + c;
            const Vector<T> loss_grad = load(convolved_loss_grad_ + here), grad = load(convolved_grad_ + here);
#pragma GCC unroll 4
            for (int64_t k = 0; k < SENDERS; ++k)
                sums[k] += loss_grad * load(layer.spatial + there + k * stride) +
                           grad * load(layer.spatial_tangent + there + k * stride);
        }
        for (int64_t k = 0; k < SENDERS; ++k) store(out + (n * shape_.num_ori + m + k) * W, sums[k]);
    }

    // Gradient of the first layer's features, which are the same at every orientation.
    void embedding_adjoint(int64_t begin, int64_t end, const Scratch& s) {
        T* loss_grad = feature_loss_grad_ + begin * row_;
        sum_message_tangents(0, begin, end, true, layers_[0].spatial_loss_grad, layers_[0].spatial_grad, loss_grad, s);
        for (int64_t atom = begin; atom < end; ++atom, loss_grad += row_)
            for (int64_t c = 0; c < shape_.stride; c += W) {
                Vector<T> total = all(T(0));
                for (int64_t o = 0; o < shape_.num_ori; ++o) total += load(loss_grad + o * shape_.stride + c);
                store(embedding_loss_grad_ + atom * shape_.stride + c, total);
            }
    }

    void embedding_gradient(T* out) const {
        const int64_t channels = shape_.channels;
        std::fill(out, out + dimensions_.num_species * channels, T(0));
        for (int64_t atom = 0; atom < batch_.atoms; ++atom)
            for (int64_t c = 0; c < channels; ++c)
                out[batch_.species[atom] * channels + c] += embedding_loss_grad_[atom * shape_.stride + c];
    }

    // Gradients of the norm, from those of W1 times its weights, and of the readout's constant.
    void norm_gradient(int64_t index, const T* weights, const LayerParameters& out) const {
        const int64_t panels = shape_.hidden / (2 * W), stride = shape_.stride;
        T *norm = static_cast<T*>(out.norm), *norm_bias = static_cast<T*>(out.norm_bias);
        std::fill(norm, norm + shape_.channels, T(0));
        std::fill(norm_bias, norm_bias + shape_.channels, T(0));
        const T* norm_part = norm_parts_ + index * panels * 2 * stride;
        for (int64_t panel = 0; panel < panels; ++panel, norm_part += 2 * stride)
            for (int64_t c = 0; c < shape_.channels; ++c)
                norm[c] += norm_part[c], norm_bias[c] += norm_part[stride + c];
        T total = 0;
        for (int64_t atom = 0; atom < batch_.atoms; ++atom) total += weights[atom];
        *static_cast<T*>(out.readout_bias) = total * total_weight<T>(shape_) / T(shape_.num_layers);
    }

    void radial_loss_gradients(int64_t index, const Scratch& s) const {
        const Pair& pair = pairs_[index];
        const int64_t pairs = batch_.pairs, panel = 2 * pairs * 2 * W;
        legendre(shape_, pair.direction, s.angular, s.angular_derivatives);
        to_angular_tangent(pair, T(1), s.angular_derivatives);
        for (int64_t at = 0; at < shape_.num_layers; ++at) {
            const Layer& layer = layers_[at];
            T* panels = part(value_loss_grad_, at, 2 * pairs * wide_) + index * 2 * W;
            messages_.pair_loss_gradients(shape_, s.angular, s.angular_derivatives, pair.distance_tangent,
                                          ends(index, layer.features), ends(index, layer.features_tangent),
                                          ends(index, layer.spatial_grad), ends(index, layer.spatial_loss_grad),
                                          radial(index, at, false), radial(index, at, true), panels,
                                          panels + pairs * 2 * W, panel);
        }
    }

    // From dS/dR_l of some pairs to dS/d basis.
    void radial_adjoint(int64_t item) {
        const int64_t first = radial_.begin(item), count = radial_.begin(item + 1) - first, width = radial_.width();
        for (const bool derivative : {false, true}) {
            T* out = radial_.loss_grad() + (derivative * batch_.pairs + first) * width;
            std::fill(out, out + count * width, T(0));
            for (int64_t layer = 0; layer < shape_.num_layers; ++layer)
                product(Rows<T>{radial(first, layer, derivative), wide_}, count,
                        part(weights_.radial_adjoint, layer, wide_ * width), wide_, width,
                        [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                            store(out + row * width + column, load(out + row * width + column) + value);
                        });
        }
    }

    // One panel's part of the gradient of a layer's radial matrix.
    void radial_gradient(int64_t layer, int64_t panel, T* out, const Scratch& s) const {
        const int64_t basis = dimensions_.radial_basis, rows = 2 * batch_.pairs, start = panel * 2 * W;
        std::fill(s.tile, s.tile + radial_.width() * 2 * W, T(0));
        outer_product(radial_.basis_left(), part(value_loss_grad_, layer, rows * wide_) + start * rows, radial_.width(),
                      rows, s.tile);
        const int64_t degree = start / shape_.stride, c = start % shape_.stride;
        const int64_t inside = std::clamp<int64_t>(shape_.channels - c, 0, 2 * W);
        for (int64_t j = 0; j < inside; ++j) {
            T* target = out + (degree * shape_.channels + c + j) * basis;
            for (int64_t k = 0; k < basis; ++k) target[k] = s.tile[k * 2 * W + j];
        }
    }

    const Dimensions& dimensions_;
    const Shape& shape_;
    const Batch& batch_;
    const int64_t threads_, row_, rows_, wide_;  // wide_: degrees x stride
    const Messages<T> messages_;
    const Blocks blocks_;
    std::atomic<int64_t>* next_;
    int64_t* counts_;
    Link* links_;
    Pair* pairs_;
    int64_t* places_;  // of each row of a block: where its first channels lie in the block's features
    Layer layers_[MAX_LAYERS];
    T *pooled_, *pooled_tangent_;  // (atoms, hidden): the last layer's hidden units, pooled, and their tangent
    T *feature_loss_grad_, *convolved_loss_grad_, *convolved_grad_, *left_[4], *right_[4];
    Weights weights_;
    T *values_, *value_loss_grad_;  // (layers, 2, pairs, wide): R_l and dR_l/dr, later their gradients; these in panels
    T *norm_parts_, *embedding_loss_grad_;
    Arena arena_;
    const RadialSizes sizes_;
    Radial<T> radial_;
    Scratch scratch_[MAX_THREADS];
    const int64_t bytes_;
    Team team_;
};

template <typename T, typename Run>
void run(const Dimensions* dimensions, const Batch* batch, Run&& work) {
    const auto make = [&](int64_t threads) {
        auto* graph = new TrainingGraph<T>(*dimensions, *batch, threads);
        graph->prepare();
        return graph;
    };
    on_threads(batch->threads, make, work);
}

template <typename T>
int64_t workspace_bytes(const Dimensions* dimensions, const Batch* batch) {
    if (!fits(dimensions->shape)) return -1;
    return most_bytes(batch->threads,
                      [&](int64_t threads) { return TrainingGraph<T>(*dimensions, *batch, threads).bytes(); });
}

template <typename T>
void energy_and_pair_gradients(const Dimensions* dimensions, const Batch* batch, const Parameters* given, T* energies,
                               T* pair_gradients) {
    run<T>(dimensions, batch, [&](TrainingGraph<T>& graph, int64_t thread) {
        graph.energy_and_pair_gradients(thread, *given, energies, pair_gradients);
    });
}

template <typename T>
void loss_backward(const Dimensions* dimensions, const Batch* batch, const Parameters* given, const T* factors,
                   const T* tangent, const Parameters* out) {
    run<T>(dimensions, batch, [&](TrainingGraph<T>& graph, int64_t thread) {
        graph.loss_backward(thread, *given, factors, tangent, *out);
    });
}

}  // namespace

extern "C" {

int64_t limit(const char* name) { return find_limit(name); }
int64_t struct_size(const char* name) {
    return find_value(name, {SHARED_STRUCT(Shape), SHARED_STRUCT(Dimensions), SHARED_STRUCT(LayerParameters),
                             SHARED_STRUCT(Parameters), SHARED_STRUCT(Batch)});
}

int64_t vector_width_f32() { return Simd<float>::width; }
int64_t vector_width_f64() { return Simd<double>::width; }
int64_t workspace_bytes_f32(const Dimensions* dimensions, const Batch* batch) {
    return workspace_bytes<float>(dimensions, batch);
}
int64_t workspace_bytes_f64(const Dimensions* dimensions, const Batch* batch) {
    return workspace_bytes<double>(dimensions, batch);
}
void energy_and_pair_gradients_f32(const Dimensions* dimensions, const Batch* batch, const Parameters* given,
                                   float* energies, float* pair_gradients) {
    energy_and_pair_gradients(dimensions, batch, given, energies, pair_gradients);
}
void energy_and_pair_gradients_f64(const Dimensions* dimensions, const Batch* batch, const Parameters* given,
                                   double* energies, double* pair_gradients) {
    energy_and_pair_gradients(dimensions, batch, given, energies, pair_gradients);
}
void loss_backward_f32(const Dimensions* dimensions, const Batch* batch, const Parameters* given, const float* factors,
                       const float* tangent, const Parameters* out) {
    loss_backward(dimensions, batch, given, factors, tangent, out);
}
void loss_backward_f64(const Dimensions* dimensions, const Batch* batch, const Parameters* given, const double* factors,
                       const double* tangent, const Parameters* out) {
    loss_backward(dimensions, batch, given, factors, tangent, out);
}
}
