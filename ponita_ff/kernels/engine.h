// Energy, forces and virial of the force-field form in one hand-written pass forwards and one backwards.
//
// Forward, layer by layer, for atom i, orientation n, channel c (ponita_ff/network/convolution.py has the formulas):
//     s_i = w f_i + sum_j sum_l P_l(u_ij . n) R_l(r_ij) f_j  spatial convolution, R_l from a table
//     h_i = sum_n' K(n', n) s_i(n') + b                      fibre convolution, K fixed (fine grids: harmonics.h)
//     f_i += W2 gelu(W1 norm(h_i) + b1) + b2                 two matrix products
// Backward is the adjoint of each line. What makes it fast:
//   - a block of a few atoms goes through a whole layer at once, so that all between two features stays in cache;
//   - nothing as large as edges x orientations x channels exists: kernels live in registers;
//   - P_l(-c) = (-1)^l P_l(c) and R_l is the same both ways, so that the adjoint of the sum over neighbours is a
//     sum over neighbours again: no scatter, no locks, the same bits whatever the number of threads;
//   - a block's last layer goes back as soon as it has gone forward: what it keeps for that is still in cache;
//   - one parallel region an evaluation, whose threads meet at 2 barriers a layer; to average over rotations,
//     rotated copies of all atoms go through it together (atom a of copy k is atom a + k atoms), and `collect` takes
//     the mean.
// Features, and gradients of spatial sums, are kept as panels (network.h).
//
// Where an atom's neighbours are computed by other processes (the LAMMPS plugin, hosts/pair_ponita.cpp), each stage is
// called by itself, and in between the caller fills in what ghosts have: features before a layer, gradients of spatial
// sums behind it. Since the adjoint is a sum over neighbours too, both go from owners to ghosts.

#pragma once

#include "activation.h"
#include "harmonics.h"

struct Layer {
    const void* table;          // (intervals + 1, 3, degrees, stride): R_l, R_l' times the spacing h, R_l'' times h^2
    const void* fibre;          // (stride / W, ori, ori', W): receiver n, sender n'; or (harmonics, stride)
    const void* fibre_adjoint;  // (stride / W, ori', ori, W); or null
    const void* self_weight;    // (stride): w, the factor of an atom's own features in the sum
    const void* bias;           // (stride)
    const void* expand;         // packed (stride -> hidden), with the norm's weight in it, and centred for harmonics
    const void* expand_bias;    // (hidden), with the norm's bias in it
    const void* contract;       // packed (hidden -> stride)
    const void* contract_bias;  // (stride)
    const void* contract_adjoint;  // packed (stride -> hidden)
    const void* expand_adjoint;    // packed (hidden -> stride)
    const void* readout;           // (stride)
    double readout_bias;
};

struct Model {
    Shape shape;
    int64_t intervals;  // of the radial table
    double cutoff;
    const void* embedding;       // (species, stride)
    const void* readout_hidden;  // (hidden): the last layer's readout through W2
    int64_t num_harmonics;       // of the fibre convolution (harmonics.h); 0: it does not go through harmonics
    const void* synthesis;       // (ori, harmonics): Y_k(n)
    const void* analysis;        // (ori, harmonics): times the quadrature's weights
    const Layer* layers;
};

struct Task {
    int64_t atoms, max_neighbours, structures, copies, threads;
    int64_t ghosts;  // neighbours that other processes compute: they come behind the atoms
    const double *positions, *offsets;  // offsets: null where there are none
    const int64_t *neighbours, *reverse, *species, *batch;
    const int64_t* counts;    // slots in use of each atom; null: all
    const double* rotations;  // (copies, 3, 3); or null, for one copy as it is
    void* workspace;          // workspace_bytes_*()
    double *energies, *gradient, *virial;
};

namespace {

template <typename T>
struct Edge {
    int32_t neighbour, slot, cell;  // cell: interval of the radial table
    T fraction, inverse_distance, direction[3];
};

// ---------------------------------------------------------------------------------------------- kernels of an edge

// Weights of value, first and second derivative at an interval's left end, then at its right: quintic Hermite
// interpolation.
template <typename T>
void hermite(T t, T* weights) {
    const T two = t * t, three = two * t, four = three * t, five = four * t;
    weights[0] = 1 - 10 * three + 15 * four - 6 * five;
    weights[1] = t - 6 * three + 8 * four - 3 * five;
    weights[2] = T(0.5) * (two - 3 * three + 3 * four - five);
    weights[3] = 10 * three - 15 * four + 6 * five;
    weights[4] = -4 * three + 7 * four - 3 * five;
    weights[5] = T(0.5) * (three - 2 * four + five);
}

// Their derivatives, times `scale`.
template <typename T>
void hermite_derivatives(T t, T scale, T* weights) {
    const T two = t * t, three = two * t, four = three * t;
    weights[0] = scale * (-30 * two + 60 * three - 30 * four);
    weights[1] = scale * (1 - 18 * two + 32 * three - 15 * four);
    weights[2] = scale * T(0.5) * (2 * t - 9 * two + 12 * three - 5 * four);
    weights[3] = -weights[0];
    weights[4] = scale * (-12 * two + 28 * three - 15 * four);
    weights[5] = scale * T(0.5) * (3 * two - 8 * three + 5 * four);
}

// R_l, and dR_l/dr if DERIVATIVES, (degrees, stride). `factor` (stride), if any, multiplies.
template <bool DERIVATIVES, typename T>
void radial(const Model& model, const T* table, const Edge<T>& edge, const T* factor, T* values, T* derivatives) {
    constexpr int64_t W = Simd<T>::width;
    const Shape& shape = model.shape;
    const int64_t size = shape.degrees * shape.stride;
    const T* entries = table + 3 * size * edge.cell;  // both ends lie behind each other
    T weights[6], derivative_weights[6];
    hermite(edge.fraction, weights);
    if constexpr (DERIVATIVES)
        hermite_derivatives(edge.fraction, T(model.intervals / model.cutoff), derivative_weights);
    for (int64_t l = 0; l < shape.degrees; ++l)
        for (int64_t c = 0; c < shape.stride; c += W) {
            const int64_t k = l * shape.stride + c;
            Vector<T> value = all(T(0)), derivative = all(T(0));
#pragma GCC unroll 6
            for (int end = 0; end < 6; ++end) {
                const Vector<T> entry = load(entries + end * size + k);
                value += weights[end] * entry;
                if constexpr (DERIVATIVES) derivative += derivative_weights[end] * entry;
            }
            const Vector<T> scale = factor ? load(factor + c) : all(T(1));
            store(values + k, scale * value);
            if constexpr (DERIVATIVES) store(derivatives + k, scale * derivative);
        }
}

// ---------------------------------------------------------------------------------------------- one edge's messages

// Adjoint of one message K f -> receiver, whose cotangent is `gradient`: adds K gradient to `out` (not if CONSTANT),
// and gives the derivatives of the message's energy: with respect to each cosine (`cosine_grads`, vectors over channels
// still to be added up) and, returned, with respect to the distance.
template <typename T, int D, bool CONSTANT>
T receive(const Shape& shape, const T* angular, const T* angular_derivatives, const T* values, const T* derivatives,
          const T* features, const T* gradient, T* out, T* cosine_grads) {
    constexpr int64_t W = Simd<T>::width;
    const int64_t degrees = D ? D : shape.degrees, stride = shape.stride, ori_stride = shape.ori_stride;
    Vector<T> distance_grad = all(T(0));
    for (int64_t o = 0; o < shape.num_ori; ++o) store(cosine_grads + o * W, all(T(0)));
    for (int64_t c = 0; c < stride; c += W) {
        Vector<T> radial_value[D ? D : MAX_DEGREES], moment[D ? D : MAX_DEGREES];
        for (int64_t l = 0; l < degrees; ++l) {
            radial_value[l] = load(values + l * stride + c);
            moment[l] = all(T(0));
        }
        const int64_t start = panel_start<T>(shape, c);
        for (int64_t o = 0; o < shape.num_ori; ++o) {
            const Vector<T> g = load(gradient + start + 2 * W * o);
            const Vector<T> product = CONSTANT ? g : g * load(features + start + 2 * W * o);
            Vector<T> kernel = radial_value[0],
                      derivative = degrees > 1 ? radial_value[1] : all(T(0));  // P_0 = 1, P_1' = 1
            moment[0] += product;
#pragma GCC unroll 13
            for (int64_t l = 1; l < degrees; ++l) {
                const Vector<T> factor = all(angular[l * ori_stride + o]);
                moment[l] += factor * product;
                if (l > 1) derivative += all(angular_derivatives[l * ori_stride + o]) * radial_value[l];
                if constexpr (!CONSTANT) kernel += factor * radial_value[l];
            }
            store(cosine_grads + o * W, load(cosine_grads + o * W) + derivative * product);
            if constexpr (!CONSTANT) store(out + o * stride + c, load(out + o * stride + c) + kernel * g);
        }
        for (int64_t l = 0; l < degrees; ++l) distance_grad += load(derivatives + l * stride + c) * moment[l];
    }
    return sum<T>(distance_grad);
}

template <typename T>
struct Messages {
    decltype(&send<T, 1, false>) send, send_constant;
    decltype(&receive<T, 1, false>) receive, receive_constant;
};

template <typename T>
Messages<T> messages(int64_t degrees) {
    return for_degrees(degrees, [](auto known) {
        constexpr int D = decltype(known)::value;
        return Messages<T>{send<T, D, false>, send<T, D, true>, receive<T, D, false>, receive<T, D, true>};
    });
}

template <typename T>
class Engine {
    static constexpr int64_t W = Simd<T>::width;

    struct Scratch {
        int64_t last;  // where the last layer's share of what is kept begins
        T *rows, *more_rows, *hidden, *pooled, *angular, *angular_derivatives, *values, *derivatives, *cosine_grads;
        T *coefficients, *summed, *scaled, *scaled_transposed, *dots;  // with harmonics
    };

public:
    Engine(const Model& model, const Task& task, int64_t threads)
        : model_(model),
          shape_(model.shape),
          task_(task),
          threads_(threads),
          row_(shape_.num_ori * shape_.stride),
          messages_(messages<T>(shape_.degrees)),
          blocks_(shape_, task.atoms * task.copies, threads),
          bytes_(lay_out()),
          team_(threads, next_) {}

    int64_t bytes() const { return bytes_; }

    // Called once, before all threads run.
    void prepare() {
        team_.prepare(2 * shape_.num_layers + 2);
        for (int64_t row = 0; row < blocks_.rows; ++row)
            places_[row] = row / shape_.num_ori * row_ + row % shape_.num_ori * 2 * W;
    }

    // Called by every thread.
    void run(int64_t thread) {
        const Scratch& scratch = scratch_[thread];
        int64_t stage = 0;
        in_blocks(stage++, [&](int64_t begin, int64_t end) { measure(begin, end); });
        for (int64_t layer = 0; layer < shape_.num_layers; ++layer)
            in_blocks(stage++, [&](int64_t begin, int64_t end) { forward(layer, begin, end, scratch); });
        for (int64_t layer = shape_.num_layers - 1; layer >= 0; --layer)
            in_blocks(stage++, [&](int64_t begin, int64_t end) { adjoint(layer, begin, end, scratch); });
        in_blocks(stage++, [&](int64_t begin, int64_t end) { collect(begin, end); });
        if (thread == 0) sum_virial();
    }

    // The stages one by one, on one thread, of one copy.
    void measure() {
        in_blocks([&](int64_t begin, int64_t end) { measure(begin, end); });
        for (int64_t atom = task_.atoms; atom < task_.atoms + task_.ghosts; ++atom) embed(atom, atom);
    }
    // Needs the features of ghosts unless it is the first layer.
    void forward(int64_t layer) {
        in_blocks([&](int64_t begin, int64_t end) { forward(layer, begin, end, scratch_[0]); });
    }
    // Back through a layer's messages and what comes before them. Needs the gradient of ghosts' spatial sums.
    void adjoint(int64_t layer) {
        in_blocks([&](int64_t begin, int64_t end) { adjoint(layer, begin, end, scratch_[0]); });
    }
    int64_t features_size() const { return row_; }  // of an atom
    T* features(int64_t layer) { return features_[layer]; }
    T* spatial_gradient(int64_t layer) { return spatial_[layer % 2]; }
    const double* energies() const { return energies_; }
    // Adds each edge's gradient to both its ends, ghosts too, and its virial (9) to the atom that sends.
    void scatter(double* gradient, double* virials) const {
        for (int64_t atom = 0; atom < task_.atoms; ++atom)
            for (int64_t k = 0; k < counts_[atom]; ++k) {
                const Edge<T>& edge = edges_[atom * task_.max_neighbours + k];
                double vector[3], along[3];
                vector_of(atom, edge.slot, vector);
                rotate_back(rotation_of(atom), edge_gradients_ + 3 * (atom * task_.max_neighbours + edge.slot), along);
                for (int i = 0; i < 3; ++i) {
                    gradient[3 * atom + i] += along[i];
                    gradient[3 * int64_t(edge.neighbour) + i] -= along[i];
                    for (int j = 0; j < 3; ++j) virials[9 * atom + 3 * i + j] -= along[i] * vector[j];
                }
            }
    }

private:
    template <typename Work>
    void in_blocks(Work&& work) {
        for (int64_t block = 0; block < blocks_.number; ++block) work(blocks_.begin(block), blocks_.begin(block + 1));
    }

    template <typename Work>
    void in_blocks(int64_t stage, Work&& work) {
        team_.share(stage, blocks_.number,
                    [&](int64_t block) { work(blocks_.begin(block), blocks_.begin(block + 1)); });
    }

    int64_t lay_out() {
        Arena arena(task_.workspace);
        const int64_t atoms = blocks_.atoms, layers = shape_.num_layers, degrees = shape_.degrees;
        const int64_t known = atoms + task_.ghosts;
        const int64_t block_atoms = blocks_.rows / shape_.num_ori;
        next_ = arena.take<std::atomic<int64_t>>(2 * layers + 2);
        counts_ = arena.take<int64_t>(atoms);
        edges_ = arena.take<Edge<T>>(atoms * task_.max_neighbours);
        edge_gradients_ = arena.take<T>(atoms * task_.max_neighbours * 3);
        embedded_ = arena.take<const T*>(known);
        energies_ = arena.take<double>(atoms);
        virials_ = arena.take<double>(task_.atoms * 9);
        for (int64_t layer = 0; layer < layers; ++layer) {
            features_[layer] = arena.take<T>(layer ? known * row_ : 0);  // the first layer's are the embedding
            const int64_t kept = layer + 1 < layers ? atoms : threads_ * block_atoms;
            normal_[layer] = arena.take<T>(kept * row_);
            inverse_deviation_[layer] = arena.take<T>(kept * shape_.num_ori);
            gelu_derivatives_[layer] = arena.take<T>(kept * shape_.num_ori * shape_.hidden);
            expanded_[layer] = arena.take<T>(kept * model_.num_harmonics * shape_.hidden);
        }
        feature_grad_ = arena.take<T>(atoms * row_);
        spatial_[0] = arena.take<T>(known * row_);
        spatial_[1] = arena.take<T>(known * row_);
        places_ = arena.take<int64_t>(blocks_.rows);
        for (int64_t thread = 0; thread < threads_; ++thread) {
            Scratch& s = scratch_[thread];
            s.last = thread * block_atoms;
            s.rows = arena.take<T>(blocks_.rows * shape_.stride);
            s.more_rows = arena.take<T>(blocks_.rows * shape_.stride);
            s.hidden = arena.take<T>(blocks_.rows * shape_.hidden);
            s.pooled = arena.take<T>(block_atoms * shape_.hidden);
            s.angular = arena.take<T>(degrees * shape_.ori_stride);
            s.angular_derivatives = arena.take<T>(degrees * shape_.ori_stride);
            s.values = arena.take<T>(degrees * shape_.stride);
            s.derivatives = arena.take<T>(degrees * shape_.stride);
            s.cosine_grads = arena.take<T>(shape_.num_ori * W);
            const int64_t coefficient_rows = block_atoms * model_.num_harmonics;
            s.coefficients = arena.take<T>(coefficient_rows * shape_.stride);
            s.summed = arena.take<T>(coefficient_rows * shape_.hidden);
            for (T** piece : {&s.scaled, &s.scaled_transposed})
                *piece = arena.take<T>(shape_.num_ori * model_.num_harmonics);
            s.dots = arena.take<T>(model_.num_harmonics ? shape_.num_ori * W : 0);
        }
        return arena.used(task_.workspace);
    }

    const double* rotation_of(int64_t atom) const {
        return task_.rotations ? task_.rotations + 9 * (atom / task_.atoms) : nullptr;
    }

    // x_j - x_i + offset of a slot, Å, not rotated. Atoms of the first copy.
    void vector_of(int64_t atom, int64_t slot, double* out) const {
        const int64_t at = atom * task_.max_neighbours + slot;
        for (int k = 0; k < 3; ++k)
            out[k] = task_.positions[3 * task_.neighbours[at] + k] - task_.positions[3 * atom + k] +
                     (task_.offsets ? task_.offsets[3 * at + k] : 0.0);
    }

    // Edges within the cutoff, in the order of their slots.
    void measure(int64_t begin, int64_t end) {
        const double cutoff = model_.cutoff, per_length = model_.intervals / cutoff;
        for (int64_t atom = begin; atom < end; ++atom) {
            Edge<T>* edge = edges_ + atom * task_.max_neighbours;
            const double* rotation = rotation_of(atom);
            const int64_t first = atom % task_.atoms;  // the same atom in the first copy
            const int64_t slots = task_.counts ? task_.counts[first] : task_.max_neighbours;
            for (int64_t slot = 0; slot < slots; ++slot) {
                double plain[3], rotated[3];
                vector_of(first, slot, plain);
                const double distance = std::sqrt(plain[0] * plain[0] + plain[1] * plain[1] + plain[2] * plain[2]);
                T* gradient = edge_gradients_ + 3 * (atom * task_.max_neighbours + slot);
                gradient[0] = gradient[1] = gradient[2] = 0;
                if (!(distance < cutoff)) continue;
                for (int k = 0; k < 3; ++k)
                    rotated[k] = !rotation
                                     ? plain[k]
                                     : plain[0] * rotation[k] + plain[1] * rotation[3 + k] + plain[2] * rotation[6 + k];
                const double place = distance * per_length;
                const int64_t cell = std::min(int64_t(place), model_.intervals - 1);
                edge->neighbour = int32_t(task_.neighbours[first * task_.max_neighbours + slot] + atom - first);
                edge->slot = int32_t(slot);
                edge->cell = int32_t(cell);
                edge->fraction = T(place - double(cell));
                edge->inverse_distance = T(1 / distance);
                for (int k = 0; k < 3; ++k) edge->direction[k] = T(rotated[k] / distance);
                ++edge;
            }
            counts_[atom] = edge - (edges_ + atom * task_.max_neighbours);
            embed(atom, first);
            energies_[atom] = 0;
        }
    }

    void embed(int64_t atom, int64_t first) {
        embedded_[atom] = static_cast<const T*>(model_.embedding) + task_.species[first] * shape_.stride;
    }

    const T* embedding(int64_t atom) const { return embedded_[atom]; }

    // Where a layer keeps what its way back needs of a block.
    int64_t kept(int64_t index, int64_t begin, const Scratch& s) const {
        return index + 1 < shape_.num_layers ? begin : s.last;
    }

    // What an atom sends to itself; the first layer's features are the same at every orientation.
    void send_to_self(int64_t index, int64_t atom, T* out, const Scratch& s) const {
        const T* self_weight = static_cast<const T*>(model_.layers[index].self_weight);
        if (index) return ::send_to_self(shape_, self_weight, features_[index] + atom * row_, out);
        for (int64_t c = 0; c < shape_.stride; c += W)
            store(s.values + c, load(self_weight + c) * load(embedding(atom) + c));
        add_to_rows(shape_, s.values, shape_.num_ori, out);
    }

    void forward(int64_t index, int64_t begin, int64_t end, const Scratch& s) {
        const Layer& layer = model_.layers[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, rows = (end - begin) * shape_.num_ori;
        const T* features = features_[index];
        std::fill(s.rows, s.rows + rows * stride, T(0));
        for (int64_t atom = begin; atom < end; ++atom) {
            T* out = s.rows + (atom - begin) * row_;
            send_to_self(index, atom, out, s);
            for (int64_t k = 0; k < counts_[atom]; ++k) {
                const Edge<T>& edge = edges_[atom * task_.max_neighbours + k];
                const T* factor = index ? nullptr : embedding(edge.neighbour);
                legendre(shape_, edge.direction, s.angular, static_cast<T*>(nullptr));
                radial<false>(model_, static_cast<const T*>(layer.table), edge, factor, s.values, s.derivatives);
                if (index)
                    messages_.send(shape_, s.angular, s.values, features + edge.neighbour * row_, out);
                else
                    messages_.send_constant(shape_, s.angular, s.values, nullptr, out);
            }
        }
        if (model_.num_harmonics)
            for_harmonics(model_.num_harmonics,
                          [&](auto known) { expand_harmonics<decltype(known)::value>(index, begin, end, s); });
        else
            expand(index, begin, end, s);
        T* const derivatives = gelu_derivatives_[index] + kept(index, begin, s) * shape_.num_ori * hidden;
        T* const units = s.hidden;
        // Not in the product: its sums fill the registers.
        for (int64_t at = 0; at < rows * hidden; at += W) {
            Vector<T> derivative, activated;
            gelu(load(units + at), activated, derivative);
            store(units + at, activated);
            store(derivatives + at, derivative);
        }
        if (index + 1 == shape_.num_layers) {
            read_out_last(index, begin, end, s);
            return backward(index, begin, end, s);
        }
        T* out = features_[index + 1] + begin * row_;
        const T* contract_bias = static_cast<const T*>(layer.contract_bias);
        product(Panels<T>{units, rows}, rows, static_cast<const T*>(layer.contract), hidden, stride,
                [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                    const int64_t place = places_[row] + panel_start<T>(shape_, column);
                    const T* before =
                        index ? features + begin * row_ + place : embedding(begin + row / shape_.num_ori) + column;
                    store(out + place, value + load(contract_bias + column) + load(before));
                });
        read_out(layer, begin, end, out);
    }

    // From a block's spatial sums in s.rows to its hidden units, in panels: fibre convolution, norm, W1.
    void expand(int64_t index, int64_t begin, int64_t end, const Scratch& s) {
        const Layer& layer = model_.layers[index];
        const int64_t stride = shape_.stride, rows = (end - begin) * shape_.num_ori;
        T* convolved = s.rows;
        if (shape_.has_fibre)
            over_orientations(shape_, static_cast<const T*>(layer.fibre), static_cast<const T*>(layer.bias),
                              end - begin, s.rows, convolved = s.more_rows, false);
        else
            add_to_rows(shape_, static_cast<const T*>(layer.bias), rows, convolved);
        const int64_t place = kept(index, begin, s);
        T* normal = normal_[index] + place * row_;
        normalise(shape_, convolved, rows, normal, inverse_deviation_[index] + place * shape_.num_ori);
        const T* expand_bias = static_cast<const T*>(layer.expand_bias);
        T* const units = s.hidden;
        product(Rows<T>{normal, stride}, rows, static_cast<const T*>(layer.expand), stride, shape_.hidden,
                [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                    store(units + in_panels<T>(rows, row, column), value + load(expand_bias + column));
                });
    }

    // The same through K harmonics.
    template <int K>
    void expand_harmonics(int64_t index, int64_t begin, int64_t end, const Scratch& s) {
        const Layer& layer = model_.layers[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, ori = shape_.num_ori, atoms = end - begin;
        const int64_t rows = atoms * ori, coefficient_rows = atoms * K;
        const T *factors = static_cast<const T*>(layer.fibre), *bias = static_cast<const T*>(layer.bias);
        const T* const synthesis = static_cast<const T*>(model_.synthesis);
        const T* const analysis = static_cast<const T*>(model_.analysis);
        for (int64_t atom = 0; atom < atoms; ++atom) {
            T* coefficients = s.coefficients + atom * K * stride;
            analyse<K>(shape_, analysis, s.rows + atom * row_, [&](int k, int64_t c, Vector<T> sum) INLINE_LAMBDA {
                store(coefficients + k * stride + c,
                      sum * load(factors + k * stride + c) + (k ? all(T(0)) : load(bias + c)));
            });
            synthesise<K>(shape_, synthesis, coefficients, s.more_rows + atom * row_, false);
        }
        const int64_t place = kept(index, begin, s);
        T *normal = normal_[index] + place * row_, *inverse_deviation = inverse_deviation_[index] + place * ori;
        normalise(shape_, s.more_rows, rows, normal, inverse_deviation);

        T *const expanded = expanded_[index] + place * K * hidden, *const units = s.hidden;
        product(Rows<T>{s.coefficients, stride}, coefficient_rows, static_cast<const T*>(layer.expand), stride, hidden,
                [&](int64_t row, int64_t column, Vector<T> value)
                    INLINE_LAMBDA { store(expanded + in_panels<T>(coefficient_rows, row, column), value); });
        const T* expand_bias = static_cast<const T*>(layer.expand_bias);
        for (int64_t atom = 0; atom < atoms; ++atom) {
            scale_rows(shape_, K, synthesis, inverse_deviation + atom * ori, s.scaled, static_cast<T*>(nullptr));
            for (int64_t start = 0; start < hidden; start += 2 * W) {
                T* const out = units + start * rows + atom * ori * 2 * W;
                product(Rows<T>{s.scaled, K}, ori, expanded + start * coefficient_rows + atom * K * 2 * W, K, 2 * W,
                        [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                            store(out + row * 2 * W + column, value + load(expand_bias + start + column));
                        });
            }
        }
    }

    // From the gradient with respect to the hidden units, in s.hidden, to that for the spatial sums, in panels.
    void expand_adjoint(int64_t index, int64_t begin, int64_t end, T* out, const Scratch& s) {
        const Layer& layer = model_.layers[index];
        const int64_t stride = shape_.stride, ori = shape_.num_ori, rows = (end - begin) * ori;
        T* gradient = shape_.has_fibre ? s.rows : out;
        product(Panels<T>{s.hidden, rows}, rows, static_cast<const T*>(layer.expand_adjoint), shape_.hidden, stride,
                [&](int64_t row, int64_t column, Vector<T> value)
                    INLINE_LAMBDA { store(gradient + row * stride + column, value); });
        const int64_t place = kept(index, begin, s);
        normalise_adjoint(shape_, normal_[index] + place * row_, inverse_deviation_[index] + place * ori, rows, gradient);
        if (shape_.has_fibre)
            over_orientations(shape_, static_cast<const T*>(layer.fibre_adjoint), static_cast<const T*>(nullptr),
                              end - begin, gradient, out, true);
    }

    // The same through K harmonics. Units are x = y / d(n) + b1: 1 / d(n) has a gradient of its own, the sum of
    // dE/dx y.
    template <int K>
    void expand_harmonics_adjoint(int64_t index, int64_t begin, int64_t end, T* out, const Scratch& s) {
        const Layer& layer = model_.layers[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, ori = shape_.num_ori, atoms = end - begin;
        const int64_t rows = atoms * ori, coefficient_rows = atoms * K;
        const T* const synthesis = static_cast<const T*>(model_.synthesis);
        const T* const analysis = static_cast<const T*>(model_.analysis);
        const int64_t place = kept(index, begin, s);
        const T *normal = normal_[index] + place * row_, *inverse_deviation = inverse_deviation_[index] + place * ori;
        const T* const expanded = expanded_[index] + place * K * hidden;
        T *const dots = s.dots, *const summed = s.summed;
        for (int64_t atom = 0; atom < atoms; ++atom) {
            scale_rows(shape_, K, synthesis, inverse_deviation + atom * ori, s.scaled, s.scaled_transposed);
            std::fill(dots, dots + ori * W, T(0));
            for (int64_t start = 0; start < hidden; start += 2 * W) {
                const T* const gradient = s.hidden + start * rows + atom * ori * 2 * W;
                T* const to = summed + start * coefficient_rows + atom * K * 2 * W;
                product(Rows<T>{s.scaled_transposed, ori}, K, gradient, ori, 2 * W,
                        [&](int64_t row, int64_t column, Vector<T> value)
                            INLINE_LAMBDA { store(to + row * 2 * W + column, value); });
                product(Rows<T>{synthesis, K}, ori, expanded + start * coefficient_rows + atom * K * 2 * W, K, 2 * W,
                        [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                            T* dot = dots + row * W;
                            store(dot, load(dot) + value * load(gradient + row * 2 * W + column));
                        });
            }
            T* const through = dots;  // factor of each orientation's normalised row
            for (int64_t o = 0; o < ori; ++o) {
                const T inverse = inverse_deviation[atom * ori + o];
                through[o] = sum<T>(load(dots + o * W)) * inverse * inverse / T(shape_.channels);
            }
            scale_rows(shape_, K, synthesis, through, s.scaled, static_cast<T*>(nullptr));
            T* const coefficients = s.coefficients + atom * K * stride;
            analyse<K>(shape_, s.scaled, normal + atom * row_, [&](int k, int64_t c, Vector<T> sum) INLINE_LAMBDA {
                store(coefficients + k * stride + c, sum);
            });
        }
        const T* factors = static_cast<const T*>(layer.fibre);
        product(Panels<T>{summed, coefficient_rows}, coefficient_rows, static_cast<const T*>(layer.expand_adjoint),
                hidden, stride, [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                    T* const at = s.coefficients + row * stride + column;
                    store(at, (value - load(at)) * load(factors + row % K * stride + column));
                });
        for (int64_t atom = 0; atom < atoms; ++atom)
            synthesise<K>(shape_, analysis, s.coefficients + atom * K * stride, out + atom * row_, true);
    }

    void read_out(const Layer& layer, int64_t begin, int64_t end, const T* features) {
        const T* readout = static_cast<const T*>(layer.readout);
        for (int64_t atom = begin; atom < end; ++atom, features += row_) {
            Vector<T> total = all(T(0));
            for (int64_t c = 0; c < shape_.stride; c += W)
                total += pool_panels(shape_, features, c) * load(readout + c);
            add_energy(layer, atom, sum<T>(total));
        }
    }

    // The last features are only read out, linearly: what W2 multiplies may be pooled before.
    void read_out_last(int64_t index, int64_t begin, int64_t end, const Scratch& s) {
        const Layer& layer = model_.layers[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, atoms = end - begin;
        const T *readout = static_cast<const T*>(layer.readout), *bias = static_cast<const T*>(layer.contract_bias);
        const T weight = total_weight<T>(shape_);
        pool(shape_, s.hidden, hidden, atoms, s.pooled);
        product(Rows<T>{s.pooled, hidden}, atoms, static_cast<const T*>(layer.contract), hidden, stride,
                [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
                    const int64_t atom = begin + row;
                    value += weight * load(bias + column);
                    value += index ? pool_panels(shape_, features_[index] + atom * row_, column)
                                   : weight * load(embedding(atom) + column);
                    store(s.rows + row * stride + column, value * load(readout + column));
                });
        for (int64_t atom = 0; atom < atoms; ++atom) {
            Vector<T> total = all(T(0));
            for (int64_t c = 0; c < stride; c += W) total += load(s.rows + atom * stride + c);
            add_energy(layer, begin + atom, sum<T>(total));
        }
    }

    void add_energy(const Layer& layer, int64_t atom, T value) {
        energies_[atom] += (double(value) + total_weight<T>(shape_) * layer.readout_bias) / shape_.num_layers;
    }

    // Adjoint of the messages that left each atom in a layer, also to itself; `gradient` is that of the layer's spatial
    // sums. Adds to
    // the atoms' gradients (unless it is the first layer) and to those of the edges.
    void messages_adjoint(int64_t index, int64_t begin, int64_t end, const T* gradient, const Scratch& s) {
        const T *table = static_cast<const T*>(model_.layers[index].table), *features = features_[index];
        const T* self_weight = static_cast<const T*>(model_.layers[index].self_weight);
        for (int64_t atom = begin; atom < end; ++atom) {
            if (index) ::send_to_self(shape_, self_weight, gradient + atom * row_, feature_grad_ + atom * row_);
            for (int64_t k = 0; k < counts_[atom]; ++k) {
                const Edge<T>& edge = edges_[atom * task_.max_neighbours + k];
                // The message from here to there: its vector is this edge's, reversed.
                const T back[3] = {-edge.direction[0], -edge.direction[1], -edge.direction[2]};
                const T* received = gradient + edge.neighbour * row_;
                legendre(shape_, back, s.angular, s.angular_derivatives);
                radial<true>(model_, table, edge, index ? nullptr : embedding(atom), s.values, s.derivatives);
                const T distance_grad =
                    index ? messages_.receive(shape_, s.angular, s.angular_derivatives, s.values, s.derivatives,
                                              features + atom * row_, received, feature_grad_ + atom * row_,
                                              s.cosine_grads)
                          : messages_.receive_constant(shape_, s.angular, s.angular_derivatives, s.values,
                                                       s.derivatives, nullptr, received, nullptr, s.cosine_grads);
                add_edge_gradient(edge, back, distance_grad, s,
                                  edge_gradients_ + 3 * (atom * task_.max_neighbours + edge.slot));
            }
        }
    }

    // d/dvector of a function of r and c_n = u . n: df/dr u + sum_n df/dc_n (n - c_n u) / r.
    void add_edge_gradient(const Edge<T>& edge, const T* direction, T distance_grad, const Scratch& s, T* out) const {
        const T* grid = static_cast<const T*>(shape_.orientations);
        Vector<T> sums[3] = {};
        for (int64_t o = 0; o < shape_.num_ori; ++o) {
            const Vector<T> cosine_grad = load(s.cosine_grads + o * W);
            for (int k = 0; k < 3; ++k) sums[k] += all(grid[k * shape_.ori_stride + o]) * cosine_grad;
        }
        const T direction_grad[3] = {sum<T>(sums[0]), sum<T>(sums[1]), sum<T>(sums[2])};
        const T along =
            direction_grad[0] * direction[0] + direction_grad[1] * direction[1] + direction_grad[2] * direction[2];
        for (int k = 0; k < 3; ++k)
            out[k] += distance_grad * direction[k] + (direction_grad[k] - along * direction[k]) * edge.inverse_distance;
    }

    void backward(int64_t index, int64_t begin, int64_t end, const Scratch& s) {
        const Layer& layer = model_.layers[index];
        const int64_t stride = shape_.stride, hidden = shape_.hidden, ori = shape_.num_ori;
        const int64_t rows = (end - begin) * ori;
        T* feature_grad = feature_grad_ + begin * row_;
        if (index + 1 == shape_.num_layers)
            std::fill(feature_grad, feature_grad + rows * stride, T(0));
        else
            messages_adjoint(index + 1, begin, end, spatial_[(index + 1) % 2], s);
        const T *readout = static_cast<const T*>(layer.readout), *weights = static_cast<const T*>(shape_.weights);
        for (int64_t row = 0; row < rows; ++row) {
            const T weight = weights[row % ori] / T(shape_.num_layers);
            for (int64_t c = 0; c < stride; c += W)
                store(feature_grad + row * stride + c,
                      load(feature_grad + row * stride + c) + weight * load(readout + c));
        }

        const T* const derivatives = gelu_derivatives_[index] + kept(index, begin, s) * ori * hidden;
        T* const units = s.hidden;
        const auto activate = [&](int64_t row, int64_t column, Vector<T> value) INLINE_LAMBDA {
            const int64_t at = in_panels<T>(rows, row, column);
            store(units + at, value * load(derivatives + at));
        };
        if (index + 1 == shape_.num_layers) {
            const T* through = static_cast<const T*>(model_.readout_hidden);
            for (int64_t k = 0; k < hidden; k += W) {
                const Vector<T> unit = load(through + k) / T(shape_.num_layers);
                for (int64_t row = 0; row < rows; row += ori)
                    for (int64_t o = 0; o < ori; ++o) activate(row + o, k, weights[o] * unit);
            }
        } else {
            product(Rows<T>{feature_grad, stride}, rows, static_cast<const T*>(layer.contract_adjoint), stride, hidden,
                    activate);
        }
        T* out = spatial_[index % 2] + begin * row_;
        if (!model_.num_harmonics) return expand_adjoint(index, begin, end, out, s);
        for_harmonics(model_.num_harmonics,
                      [&](auto known) { expand_harmonics_adjoint<decltype(known)::value>(index, begin, end, out, s); });
    }

    // From the gradient with respect to a layer's spatial sums to that of the layer before, or to the end.
    void adjoint(int64_t index, int64_t begin, int64_t end, const Scratch& s) {
        if (index) return backward(index - 1, begin, end, s);
        messages_adjoint(0, begin, end, spatial_[0], s);
    }

    // Energy, gradient and share of the virial of each atom of the first copy, as means over all.
    void collect(int64_t begin, int64_t end) {
        for (int64_t atom = begin; atom < std::min(end, task_.atoms); ++atom) {
            double energy = 0, gradient[3] = {0, 0, 0}, virial[9] = {};
            for (int64_t copy = 0; copy < task_.copies; ++copy) {
                energy += energies_[copy * task_.atoms + atom];
                add_gradient(atom, copy, gradient, virial);
            }
            task_.energies[atom] = energy / double(task_.copies);
            for (int k = 0; k < 3; ++k) task_.gradient[3 * atom + k] = gradient[k] / double(task_.copies);
            for (int k = 0; k < 9; ++k) virials_[9 * atom + k] = virial[k] / double(task_.copies);
        }
    }

    // dE/dx_i: dE/dx_edge summed over the edges that i sends, minus those that it receives.
    void add_gradient(int64_t atom, int64_t copy, double* gradient, double* virial) const {
        const int64_t moved = copy * task_.atoms, here = atom + moved;
        const double* rotation = rotation_of(here);
        for (int64_t k = 0; k < counts_[here]; ++k) {
            const int64_t slot = edges_[here * task_.max_neighbours + k].slot, at = atom * task_.max_neighbours + slot;
            const T* sent = edge_gradients_ + 3 * (here * task_.max_neighbours + slot);
            const int64_t back = (task_.neighbours[at] + moved) * task_.max_neighbours + task_.reverse[at];
            double vector[3], edge_gradient[3];
            vector_of(atom, slot, vector);
            rotate_back(rotation, sent, edge_gradient);
            for (int i = 0; i < 3; ++i) {
                for (int j = 0; j < 3; ++j) virial[3 * i + j] -= edge_gradient[i] * vector[j];
                gradient[i] += edge_gradient[i];
            }
            rotate_back(rotation, edge_gradients_ + 3 * back, edge_gradient);
            for (int i = 0; i < 3; ++i) gradient[i] -= edge_gradient[i];
        }
    }

    static void rotate_back(const double* rotation, const T* vector, double* out) {
        for (int k = 0; k < 3; ++k)
            out[k] = !rotation ? vector[k]
                               : vector[0] * rotation[3 * k] + vector[1] * rotation[3 * k + 1] +
                                     vector[2] * rotation[3 * k + 2];
    }

    void sum_virial() {
        std::fill(task_.virial, task_.virial + 9 * task_.structures, 0.0);
        for (int64_t atom = 0; atom < task_.atoms; ++atom)
            for (int64_t k = 0; k < 9; ++k) task_.virial[9 * task_.batch[atom] + k] += virials_[9 * atom + k];
    }

    const Model& model_;
    const Shape& shape_;
    const Task& task_;
    const int64_t threads_, row_;
    const Messages<T> messages_;
    const Blocks blocks_;
    std::atomic<int64_t>* next_;
    int64_t* counts_;
    Edge<T>* edges_;
    T* edge_gradients_;
    const T** embedded_;
    double *energies_, *virials_;
    T *features_[MAX_LAYERS], *normal_[MAX_LAYERS], *inverse_deviation_[MAX_LAYERS], *gelu_derivatives_[MAX_LAYERS];
    T* expanded_[MAX_LAYERS];  // W1 of the harmonics, panels of each block
    T *feature_grad_, *spatial_[2];
    int64_t* places_;  // of each row of a block: where its first channels lie in the block's features
    Scratch scratch_[MAX_THREADS];
    const int64_t bytes_;
    Team team_;
};

}  // namespace
