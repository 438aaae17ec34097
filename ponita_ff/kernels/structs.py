"""The structures that Python hands to the C++ kernels, field by field as the sources declare them.

Their sizes are compared with those of C++ when a library is loaded (:func:`ponita_ff.kernels.loader.load`).
"""

from __future__ import annotations

import ctypes

__all__ = [
    "STRUCTS",
    "Batch",
    "Dimensions",
    "Image",
    "Layer",
    "LayerParameters",
    "MessageShape",
    "Model",
    "Parameters",
    "Shape",
    "Task",
]

_Fields = tuple[tuple[str, type], ...]


def _integers(*names: str) -> _Fields:
    return tuple((name, ctypes.c_int64) for name in names)


def _pointers(*names: str) -> _Fields:
    return tuple((name, ctypes.c_void_p) for name in names)


class Shape(ctypes.Structure):
    """A network's shape (network.h)."""

    _fields_ = (
        *_integers("num_ori", "ori_stride", "degrees", "channels", "stride", "hidden", "num_layers", "has_fibre"),
        ("norm_eps", ctypes.c_double),
        *_pointers("orientations", "weights"),
    )


class Layer(ctypes.Structure):
    """A layer's weights for inference (engine.h)."""

    _fields_ = (
        *_pointers("table", "fibre", "fibre_adjoint", "self_weight", "bias"),
        *_pointers("expand", "expand_bias", "contract", "contract_bias", "contract_adjoint", "expand_adjoint"),
        *_pointers("readout"),
        ("readout_bias", ctypes.c_double),
    )


class Model(ctypes.Structure):
    """A network's weights for inference (engine.h)."""

    _fields_ = (
        ("shape", Shape),
        *_integers("intervals"),
        ("cutoff", ctypes.c_double),
        *_pointers("embedding", "readout_hidden"),
        *_integers("num_harmonics"),
        *_pointers("synthesis", "analysis"),
        ("layers", ctypes.POINTER(Layer)),
    )


class Task(ctypes.Structure):
    """One evaluation: a graph, memory, and where the results go (engine.h)."""

    _fields_ = (
        *_integers("atoms", "max_neighbours", "structures", "copies", "threads", "ghosts"),
        *_pointers("positions", "offsets", "neighbours", "reverse", "species", "batch", "counts"),
        *_pointers("rotations", "workspace"),
        *_pointers("energies", "gradient", "virial"),
    )


class Image(ctypes.Structure):
    """What a potential in one piece of memory begins with (image.h)."""

    _fields_ = (
        *_integers("magic", "bytes", "image_bytes", "model_bytes", "layer_bytes", "vector_bytes", "item_bytes"),
        *_integers("addresses", "num_addresses", "num_species", "num_types", "num_rotations"),
        ("scale", ctypes.c_double),
        ("zbl_cutoff", ctypes.c_double),
        *_pointers("atomic_numbers", "reference_energies", "types", "rotations", "model"),
    )


class Dimensions(ctypes.Structure):
    """A network's shape for training (training.cpp)."""

    _fields_ = (
        ("shape", Shape),
        *_integers("num_species", "num_bessel", "radial_hidden", "radial_basis", "hidden_units", "envelope_power"),
        ("cutoff", ctypes.c_double),
        *_pointers("fibre_angular"),
    )


class LayerParameters(ctypes.Structure):
    """Addresses of a layer's parameters, or of their gradients (training.cpp)."""

    _fields_ = _pointers(
        *("fibre", "self_weight", "bias", "radial", "norm", "norm_bias"),
        *("expand", "expand_bias", "contract", "contract_bias", "readout", "readout_bias"),
    )


class Parameters(ctypes.Structure):
    """Addresses of a network's parameters, or of their gradients (training.cpp)."""

    _fields_ = (
        *_pointers("embedding", "radial_hidden", "radial_hidden_bias", "radial_basis", "radial_basis_bias"),
        ("layers", ctypes.POINTER(LayerParameters)),
    )


class Batch(ctypes.Structure):
    """A training batch: its pairs and memory (training.cpp)."""

    _fields_ = (
        *_integers("atoms", "max_neighbours", "pairs", "threads"),
        *_pointers("neighbours", "links", "ends", "vectors", "species", "workspace"),
    )


class MessageShape(ctypes.Structure):
    """Sizes and topology of a sum over neighbours (messages.cpp)."""

    _fields_ = (
        *_integers("atoms", "max_neighbours", "degrees", "orientations", "channels", "threads"),
        *_pointers("neighbours", "reverse", "active"),
    )


#: Structures of each library.
STRUCTS: dict[str, tuple[type[ctypes.Structure], ...]] = {
    "activation": (),
    "engine": (Shape, Layer, Model, Task, Image),
    "messages": (MessageShape,),
    "training": (Shape, Dimensions, LayerParameters, Parameters, Batch),
}
