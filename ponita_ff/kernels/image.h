// A potential in one piece of memory, for programs that have no Python in them (the LAMMPS plugin,
// ponita_ff/hosts/pair_ponita.cpp). ponita_ff/backends/native/image.py makes it.
//
// Every address in it is a place, counted from its first byte, until `open_image` makes it an address.
#pragma once

#include "engine.h"

struct Image {
    int64_t magic;  // IMAGE_MAGIC
    int64_t bytes;  // of all
    int64_t image_bytes, model_bytes, layer_bytes, vector_bytes;  // what it was made for
    int64_t item_bytes;                                           // of float or double
    int64_t addresses, num_addresses;                             // places of all addresses but this
    int64_t num_species, num_types, num_rotations;
    double scale, zbl_cutoff;         // zbl_cutoff: 0 where there is no ZBL repulsion
    const int64_t* atomic_numbers;    // (species)
    const double* reference_energies;  // (species), eV
    const int64_t* types;             // (types): species of each of the other program's types of atoms
    const double* rotations;          // (rotations, 3, 3)
    const Model* model;
};

namespace {

constexpr int64_t IMAGE_MAGIC = 0x31304154494e4f50;  // "PONITA01"

// The image in some bytes, aligned as for vectors; null where they hold another thing, or one of other sources.
inline const Image* open_image(char* start, int64_t bytes) {
    Image* image = reinterpret_cast<Image*>(start);
    if (bytes < int64_t(sizeof(Image)) || image->magic != IMAGE_MAGIC) return nullptr;
    if (image->bytes != bytes || image->image_bytes != sizeof(Image) || image->model_bytes != sizeof(Model) ||
        image->layer_bytes != sizeof(Layer) || image->vector_bytes != PONITA_VECTOR_BYTES)
        return nullptr;
    const int64_t* places = reinterpret_cast<const int64_t*>(start + image->addresses);
    for (int64_t k = 0; k < image->num_addresses; ++k) {
        int64_t place;
        std::memcpy(&place, start + places[k], sizeof place);
        char* const address = start + place;
        std::memcpy(start + places[k], &address, sizeof address);
    }
    return image;
}

}  // namespace
