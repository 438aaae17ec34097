"""A potential in one piece of memory (kernels/image.h), for programs that compute without Python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import numpy as np

from ponita_ff.backends.native.engine import NativeNetwork, NativeWeights
from ponita_ff.backends.native.support import check_network
from ponita_ff.energy.model import EnergyModel
from ponita_ff.kernels.layout import round_up
from ponita_ff.kernels.loader import Kernels
from ponita_ff.kernels.structs import Image, Layer, Model

__all__ = ["MAGIC", "potential_image"]

#: What an image begins with.
MAGIC = b"PONITA01"

#: Pieces begin at multiples of this: vectors are aligned, and each is on cache lines of its own.
_ALIGNMENT = 64


def potential_image(model: EnergyModel, vector_bytes: int, types: Sequence[int] = ()) -> bytes:
    """The image of a potential.

    The native engine is compared with torch before (``comparison.py``).

    Args:
        model: On the CPU, float32 or float64.
        vector_bytes: Size of the vector registers that the other program was compiled for.
        types: Index among the model's species of each of that program's types of atoms.

    Raises:
        KernelError: Where the kernels do not implement this network, or cannot be had.
    """
    network = check_network(model.network)
    NativeNetwork(network)
    item_bytes = network.embedding.weight.element_size()
    limit = Kernels("engine", model.dtype).limit("MAX_HARMONICS")
    weights = NativeWeights(network, vector_bytes // item_bytes, limit)
    references, rotations = (v.double().contiguous().numpy() for v in (model.reference_energies, model.rotations))
    numbers, mapped = np.array(model.species, dtype=np.int64), np.array(types, dtype=np.int64)
    head = Image(
        magic=int.from_bytes(MAGIC, "little"),
        image_bytes=ctypes.sizeof(Image),
        model_bytes=ctypes.sizeof(Model),
        layer_bytes=ctypes.sizeof(Layer),
        vector_bytes=vector_bytes,
        item_bytes=item_bytes,
        num_species=len(numbers),
        num_types=len(mapped),
        num_rotations=len(rotations),
        scale=model.scale,
        zbl_cutoff=model.zbl_cutoff or 0.0,
        atomic_numbers=numbers.ctypes.data,
        reference_energies=references.ctypes.data,
        types=mapped.ctypes.data,
        rotations=rotations.ctypes.data,
        model=ctypes.addressof(weights.model),
    )
    pieces = [(ctypes.addressof(head), bytes(head)), (ctypes.addressof(weights.model), bytes(weights.model))]
    pieces += [(ctypes.addressof(weights.layers), bytes(weights.layers))]
    pieces += [(tensor.data_ptr(), tensor.numpy().tobytes()) for tensor in weights.tensors]
    pieces += [(array.ctypes.data, array.tobytes()) for array in (numbers, references, mapped, rotations)]
    places = _places(pieces)
    memory = bytearray(sum(round_up(len(data), _ALIGNMENT) for _, data in pieces))
    for address, data in pieces:
        memory[places[address] : places[address] + len(data)] = data
    fields = [*_addresses(Image), *(places[ctypes.addressof(weights.model)] + field for field in _addresses(Model))]
    first = places[ctypes.addressof(weights.layers)]
    for index in range(len(weights.layers)):
        fields += [first + index * ctypes.sizeof(Layer) + field for field in _addresses(Layer)]
    used = [field for field in fields if _integer(memory, field)]
    for field in used:
        memory[field : field + 8] = places[_integer(memory, field)].to_bytes(8, "little")
    found = Image.from_buffer(memory)
    found.addresses, found.num_addresses = len(memory), len(used)
    found.bytes = len(memory) + 8 * len(used)
    return bytes(memory) + np.array(used, dtype="<i8").tobytes()


def _places(pieces: Sequence[tuple[int, bytes]]) -> dict[int, int]:
    """Where each piece, known by its address here, begins."""
    places, end = {}, 0
    for address, data in pieces:
        places[address] = end
        end += round_up(len(data), _ALIGNMENT)
    return places


def _addresses(struct: type[ctypes.Structure], start: int = 0) -> Iterator[int]:
    """Places of the addresses in a structure, also in those that it holds."""
    for name, kind, *_ in struct._fields_:
        place = start + getattr(struct, name).offset
        if issubclass(kind, ctypes.Structure):
            yield from _addresses(kind, place)
        elif issubclass(kind, ctypes.c_void_p | ctypes._Pointer):
            yield place


def _integer(memory: bytearray, place: int) -> int:
    return int.from_bytes(memory[place : place + 8], "little")
