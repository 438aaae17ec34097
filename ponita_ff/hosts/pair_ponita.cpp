// LAMMPS: `pair_style ponita`, with the native engine in every process and no more than one cutoff of ghost atoms.
//
//     plugin load ./ponitaplugin.so
//     pair_style  ponita                         # float64, rotations 6
//     pair_coeff  * * ethanol-rmd17 H C O        # the element of each atom type
//
// An atom's features depend on its neighbours' features of the layer before. Those of ghosts are fetched from the
// processes that own them (forward communication, before each layer but the first), and so are the gradients of their
// spatial sums on the way back (before each layer's messages, whose adjoint is a sum over neighbours as well:
// kernels/engine.h). Last, what an edge's gradient gives to a ghost goes to its owner (reverse communication). For L
// layers that is 2 L - 1 exchanges of one atom's features, and one of three numbers.
//
// `ponita-ff lammps-plugin` (hosts/lammps_plugin.py) compiles this file. The potential is read by Python, once, by the
// first process (hosts/lammps_model.py), which hands its image (kernels/image.h) to the others.

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "lammps.h"
#include "library.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "../kernels/image.h"

// As LAMMPS' lammpsplugin.h declares them, which is not among the headers that it installs.
extern "C" {
struct lammpsplugin_t {
    const char *version, *style, *name, *info, *author;
    void* (*creator)(void*);
    void* handle;
};
typedef void (*lammpsplugin_regfunc)(lammpsplugin_t*, void*);
}

namespace {

using LAMMPS_NS::bigint;

constexpr double COINCIDENT = 0.05;  // as ponita_ff/structure/graph.py has it
constexpr double COULOMB = 14.399645478425668;  // e^2 / (4 pi epsilon0), eV A; this and below: energy/repulsion.py
constexpr double COEFFICIENTS[4] = {0.18175, 0.50986, 0.28022, 0.02817};
constexpr double EXPONENTS[4] = {3.19980, 0.94229, 0.40290, 0.20162};

// ZBL energy of a pair, and its derivative with respect to the distance: ZBL.pair_terms of energy/repulsion.py.
double zbl(double charge_i, double charge_j, double r, double cutoff, double* slope) {
    const double inverse_length = (std::pow(charge_i, 0.23) + std::pow(charge_j, 0.23)) / 0.46850;
    double screening = 0, screening_slope = 0;
    for (int k = 0; k < 4; ++k) {
        const double term = COEFFICIENTS[k] * std::exp(-EXPONENTS[k] * r * inverse_length);
        screening += term;
        screening_slope -= EXPONENTS[k] * inverse_length * term;
    }
    const double u = std::min(r / cutoff, 1.0), rest = (1 - u) * (1 - u) * (1 - u);
    const double steep = rest * (1 + 3 * u + 6 * u * u), steep_slope = -30 * u * u * (1 - u) * (1 - u) / cutoff;
    const double coulomb = COULOMB * charge_i * charge_j / r;
    *slope = coulomb * (screening_slope * steep + screening * steep_slope - screening * steep / r);
    return coulomb * screening * steep;
}

// Memory that begins where vectors and cache lines do.
class Bytes {
public:
    char* get(int64_t bytes) {
        if (bytes > bytes_) {
            free_.reset();
            bytes_ = (bytes + bytes / 8 + 63) / 64 * 64;  // the number of atoms changes all the time
            free_.reset(static_cast<char*>(std::aligned_alloc(64, bytes_)));
            if (!free_) bytes_ = 0;
        }
        return free_.get();
    }
    int64_t bytes() const { return bytes_; }

private:
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };
    std::unique_ptr<char, Free> free_;
    int64_t bytes_ = 0;
};

// For a shell: one word.
std::string quoted(const std::string& word) {
    std::string text = "'";
    for (const char c : word) text += c == '\'' ? "'\\''" : std::string(1, c);
    return text + "'";
}

}  // namespace

namespace LAMMPS_NS {

class PairPonita : public Pair {
public:
    explicit PairPonita(LAMMPS* lmp) : Pair(lmp) {
        manybody_flag = one_coeff = no_virial_fdotr_compute = 1;
        single_enable = restartinfo = 0;
        centroidstressflag = CENTROID_NOTAVAIL;
    }

    ~PairPonita() override {
        if (copymode || !allocated) return;
        memory->destroy(setflag);
        memory->destroy(cutsq);
    }

    // pair_style ponita [float32 | float64] [rotations N]
    void settings(int narg, char** arg) override {
        dtype_.clear(), rotations_ = 0;
        for (int k = 0; k < narg; ++k) {
            const std::string word = arg[k];
            if (word == "float32" || word == "float64")
                dtype_ = word;
            else if (word == "rotations" && k + 1 < narg)
                rotations_ = utils::inumeric(FLERR, arg[++k], false, lmp);
            else
                error->all(FLERR, "pair_style ponita takes 'float32' or 'float64', and 'rotations N', not '{}'", word);
        }
        if (rotations_ < 0) error->all(FLERR, "pair_style ponita: rotations must be at least 1");
    }

    // pair_coeff * * POTENTIAL ELEMENT ...
    void coeff(int narg, char** arg) override {
        const int types = atom->ntypes;
        if (narg < 3 || std::string(arg[0]) != "*" || std::string(arg[1]) != "*" || narg != 3 + types)
            error->all(FLERR,
                       "pair_style ponita needs 'pair_coeff * * POTENTIAL' and then one element for each of the {} atom "
                       "types; {} were given",
                       types, std::max(0, narg - 3));
        read(arg[2], std::vector<std::string>(arg + 3, arg + narg));
        if (!allocated) {
            memory->create(setflag, types + 1, types + 1, "pair:setflag");
            memory->create(cutsq, types + 1, types + 1, "pair:cutsq");
            allocated = 1;
        }
        for (int i = 1; i <= types; ++i)
            for (int j = 1; j <= types; ++j) setflag[i][j] = 1;
        const Shape& shape = image_->model->shape;
        row_bytes_ = shape.num_ori * shape.stride * image_->item_bytes;
        comm_forward = int((row_bytes_ + sizeof(double) - 1) / sizeof(double));
        comm_reverse = comm_reverse_off = 3;
    }

    void init_style() override {
        if (!image_) error->all(FLERR, "pair_style ponita has no potential: give pair_coeff first");
        if (std::string(update->unit_style) != "metal")
            error->all(FLERR, "pair_style ponita computes in eV and Angstrom: it needs 'units metal', not 'units {}'",
                       update->unit_style);
        if (atom->molecular != Atom::ATOMIC)
            for (int k = 1; k < 4; ++k)
                if (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
                    error->all(FLERR,
                               "pair_style ponita needs all pairs, and LAMMPS leaves out those that are bonded: put "
                               "'special_bonds lj/coul 1 1 1' into the input");
        if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol)
            error->all(FLERR, "pair_style ponita needs all pairs: it cannot run with 'neigh_modify exclude'");
        // LAMMPS makes its buffers for the pair style that it holds: a hybrid asks its parts before they have potentials.
        Pair* const held = force->pair;
        held->comm_forward = std::max(held->comm_forward, comm_forward);
        held->comm_reverse = std::max(held->comm_reverse, comm_reverse);
        held->comm_reverse_off = std::max(held->comm_reverse_off, comm_reverse_off);
        neighbor->add_request(this, NeighConst::REQ_FULL);
    }

    double init_one(int, int) override { return image_->model->cutoff; }

    void compute(int eflag, int vflag) override {
        ev_init(eflag, vflag);
        if (list->inum != atom->nlocal)
            error->one(FLERR, "pair_style ponita must act on all atoms: use it alone, or in 'hybrid/overlay'");
        atoms_ = atom->nlocal, all_ = atoms_ + atom->nghost;
        energies_.assign(atoms_, 0.0);
        gradient_.assign(3 * all_, 0.0);
        virials_.assign(9 * atoms_, 0.0);
        find_neighbours();
        if (image_->item_bytes == sizeof(float))
            network<float>();
        else
            network<double>();
        repulsion();
        comm->reverse_comm(this);
        hand_over();
    }

    int pack_forward_comm(int number, int* atoms, double* out, int, int*) override {
        for (int k = 0; k < number; ++k, out += comm_forward)
            std::memcpy(out, exchanged_ + atoms[k] * row_bytes_, row_bytes_);
        return number * comm_forward;
    }

    void unpack_forward_comm(int number, int first, double* in) override {
        for (int k = 0; k < number; ++k, in += comm_forward)
            std::memcpy(exchanged_ + (first + k) * row_bytes_, in, row_bytes_);
    }

    int pack_reverse_comm(int number, int first, double* out) override {
        std::copy_n(gradient_.data() + 3 * int64_t(first), 3 * int64_t(number), out);
        return 3 * number;
    }

    void unpack_reverse_comm(int number, int* atoms, double* in) override {
        for (int k = 0; k < number; ++k)
            for (int i = 0; i < 3; ++i) gradient_[3 * int64_t(atoms[k]) + i] += *in++;
    }

    double memory_usage() override {
        return double(model_memory_.bytes() + workspace_.bytes() + 8 * (neighbours_.size() + gradient_.size()));
    }

private:
    // ------------------------------------------------------------------------------------------------ the potential

    void read(const std::string& potential, const std::vector<std::string>& elements) {
        image_ = nullptr;
        std::string answer;
        if (comm->me == 0) answer = ask_python(potential, elements);
        bigint bytes = bigint(answer.size());
        MPI_Bcast(&bytes, 1, MPI_LMP_BIGINT, 0, world);
        char* memory = model_memory_.get(std::max<bigint>(bytes, 1));
        if (!memory) error->one(FLERR, "pair_style ponita: there is no memory for {}", potential);
        std::copy(answer.begin(), answer.end(), memory);
        constexpr bigint PIECE = 1 << 30;  // MPI counts in int
        for (bigint start = 0; start < bytes; start += PIECE)
            MPI_Bcast(memory + start, int(std::min(PIECE, bytes - start)), MPI_BYTE, 0, world);
        const std::string beginning(memory, std::min<bigint>(bytes, 8));
        const bool is_image = beginning == std::string(reinterpret_cast<const char*>(&IMAGE_MAGIC), 8);
        image_ = is_image ? open_image(memory, bytes) : nullptr;
        if (is_image && !image_)
            error->all(FLERR,
                       "this plugin was compiled from another version of ponita_ff than {} has: compile it again with "
                       "'ponita-ff lammps-plugin'",
                       python());
        if (!image_ && bytes)
            error->all(FLERR, "pair_style ponita, potential {}: {}", potential, std::string(memory, bytes));
        if (!image_)
            error->all(FLERR,
                       "pair_style ponita reads the potential by '{} -m ponita_ff.hosts.lammps_model', which gave no "
                       "answer: the environment variable PONITA_FF_PYTHON names another Python that has ponita_ff",
                       python());
    }

    static std::string python() {
        const char* named = std::getenv("PONITA_FF_PYTHON");
        return named && *named ? named : PONITA_PYTHON;
    }

    // What hosts/lammps_model.py prints.
    std::string ask_python(const std::string& potential, const std::vector<std::string>& elements) const {
        std::string command = quoted(python()) + " -m ponita_ff.hosts.lammps_model " +
                              std::to_string(PONITA_VECTOR_BYTES) + " " + quoted(dtype_) + " " +
                              std::to_string(rotations_) + " " + quoted(potential);
        for (const std::string& element : elements) command += " " + quoted(element);
        std::string answer;
        if (FILE* pipe = popen(command.c_str(), "r")) {
            char piece[65536];
            while (const size_t number = fread(piece, 1, sizeof piece, pipe)) answer.append(piece, number);
            pclose(pipe);
        }
        return answer;
    }

    // ------------------------------------------------------------------------------------------------ an evaluation

    // The table of neighbours within the cutoff, as engine.h takes it, and the species of all atoms.
    void find_neighbours() {
        const double cutoff = image_->model->cutoff;
        double** const x = atom->x;
        species_.resize(all_);
        for (int64_t i = 0; i < all_; ++i) species_[i] = image_->types[atom->type[i] - 1];
        counts_.assign(atoms_, 0);
        found_.clear();
        starts_.assign(atoms_, 0);
        for (int k = 0; k < list->inum; ++k) {
            const int i = list->ilist[k];
            const int* const neighbours = list->firstneigh[i];
            starts_[i] = int64_t(found_.size());
            for (int m = 0; m < list->numneigh[i]; ++m) {
                const int j = neighbours[m] & NEIGHMASK;
                const double vector[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
                const double squared = vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2];
                if (squared >= cutoff * cutoff) continue;
                if (squared < COINCIDENT * COINCIDENT)
                    error->one(FLERR, "atoms {} and {} are in one place ({:.2g} Angstrom apart)", atom->tag[i],
                               atom->tag[j], std::sqrt(squared));
                found_.push_back(j);
            }
            counts_[i] = int64_t(found_.size()) - starts_[i];
        }
        max_neighbours_ = 1;
        for (const int64_t count : counts_) max_neighbours_ = std::max(max_neighbours_, count);
        neighbours_.resize(atoms_ * max_neighbours_);
        for (int64_t i = 0; i < atoms_; ++i)
            std::copy_n(found_.begin() + starts_[i], counts_[i], neighbours_.begin() + i * max_neighbours_);
    }

    // The network's part of energies, gradient and virials, as the mean over the rotations.
    template <typename T>
    void network() {
        const Model& model = *image_->model;
        const double factor = image_->scale / double(image_->num_rotations);
        for (int64_t copy = 0; copy < image_->num_rotations; ++copy) {
            Task task{};
            task.atoms = atoms_, task.ghosts = all_ - atoms_, task.max_neighbours = max_neighbours_;
            task.copies = task.threads = 1;
            task.positions = all_ ? atom->x[0] : nullptr;
            task.neighbours = neighbours_.data(), task.counts = counts_.data(), task.species = species_.data();
            task.rotations = image_->num_rotations > 1 ? image_->rotations + 9 * copy : nullptr;
            task.workspace = workspace_.get(Engine<T>(model, task, 1).bytes());
            if (!task.workspace) error->one(FLERR, "pair_style ponita: there is no memory for {} atoms", all_);
            Engine<T> engine(model, task, 1);
            engine.prepare();
            engine.measure();
            const int64_t layers = model.shape.num_layers;
            for (int64_t layer = 0; layer < layers; ++layer) {
                if (layer) fetch_for_ghosts(engine.features(layer));
                engine.forward(layer);
            }
            for (int64_t layer = layers - 1; layer >= 0; --layer) {
                fetch_for_ghosts(engine.spatial_gradient(layer));
                engine.adjoint(layer);
            }
            for (int64_t i = 0; i < atoms_; ++i) energies_[i] += factor * engine.energies()[i];
            engine.scatter(gradient_.data(), virials_.data());
        }
        for (double& value : gradient_) value *= factor;
        for (double& value : virials_) value *= factor;
    }

    template <typename T>
    void fetch_for_ghosts(T* values) {
        exchanged_ = reinterpret_cast<char*>(values);
        comm->forward_comm(this);
    }

    // ZBL: of each pair either atom has half.
    void repulsion() {
        const double cutoff = image_->zbl_cutoff;
        double** const x = atom->x;
        for (int64_t i = 0; cutoff > 0 && i < atoms_; ++i)
            for (int64_t k = 0; k < counts_[i]; ++k) {
                const int64_t j = neighbours_[i * max_neighbours_ + k];
                const double vector[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
                const double r =
                    std::sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]);
                if (r >= cutoff) continue;
                double slope;
                energies_[i] += 0.5 * zbl(charge_of(i), charge_of(j), r, cutoff, &slope);
                for (int a = 0; a < 3; ++a) {
                    const double half = 0.5 * slope / r * vector[a];
                    gradient_[3 * i + a] -= half;
                    gradient_[3 * j + a] += half;
                    for (int b = 0; b < 3; ++b) virials_[9 * i + 3 * a + b] += half * vector[b];
                }
            }
    }

    double charge_of(int64_t i) const { return double(image_->atomic_numbers[species_[i]]); }

    // To LAMMPS: its virial is the derivative with respect to strain with the other sign.
    void hand_over() {
        static constexpr int ROW[6] = {0, 1, 2, 0, 0, 1}, COLUMN[6] = {0, 1, 2, 1, 2, 2};
        double total = 0, checked = 0;
        for (int64_t i = 0; i < atoms_; ++i) {
            const double energy = energies_[i] + image_->reference_energies[species_[i]];
            total += energy;
            if (eflag_atom) eatom[i] += energy;
            for (int a = 0; a < 3; ++a) {
                atom->f[i][a] -= gradient_[3 * i + a];
                checked += gradient_[3 * i + a];
            }
            const double* const own = virials_.data() + 9 * i;
            for (int k = 0; k < 6; ++k) {
                const double share = -0.5 * (own[3 * ROW[k] + COLUMN[k]] + own[3 * COLUMN[k] + ROW[k]]);
                if (vflag_global) virial[k] += share;
                if (vflag_atom) vatom[i][k] += share;
            }
        }
        if (!std::isfinite(total) || !std::isfinite(checked))
            error->one(FLERR,
                       "pair_style ponita: energy or forces are not finite: the structure is far outside anything the "
                       "potential was trained on");
        if (eflag_global) eng_vdwl += total;
    }

    std::string dtype_;
    int rotations_ = 0;
    Bytes model_memory_, workspace_;
    const Image* image_ = nullptr;
    int64_t atoms_ = 0, all_ = 0;  // all: with ghosts
    int64_t max_neighbours_ = 1, row_bytes_ = 0;
    std::vector<int64_t> species_, counts_, starts_, found_, neighbours_;
    std::vector<double> energies_, gradient_, virials_;
    char* exchanged_ = nullptr;
};

}  // namespace LAMMPS_NS

static void* create(void* lmp) { return new LAMMPS_NS::PairPonita(static_cast<LAMMPS_NS::LAMMPS*>(lmp)); }

extern "C" void lammpsplugin_init(void* given, void* handle, void* registrar) {
    auto* const lmp = static_cast<LAMMPS_NS::LAMMPS*>(given);
    if (lmp->num_ver != PONITA_LAMMPS_VERSION || lammps_extract_setting(lmp, "tagint") != int(sizeof(LAMMPS_NS::tagint)) ||
        lammps_extract_setting(lmp, "bigint") != int(sizeof(LAMMPS_NS::bigint)))
        lmp->error->all(FLERR,
                        "this ponita plugin was compiled for version {} of LAMMPS and integers of {} and {} bytes, and "
                        "this LAMMPS is version {}: compile it again with 'ponita-ff lammps-plugin'",
                        PONITA_LAMMPS_VERSION, sizeof(LAMMPS_NS::tagint), sizeof(LAMMPS_NS::bigint), lmp->num_ver);
    lammpsplugin_t plugin{lmp->version, "pair", "ponita", "PONITA force fields (ponita_ff)", "ponita_ff", create, handle};
    reinterpret_cast<lammpsplugin_regfunc>(registrar)(&plugin, lmp);
}
