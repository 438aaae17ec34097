"""A potential in one piece of memory: the engine computes from it what it does from the network."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms

from ponita_ff.backends.native.engine import NativeNetwork
from ponita_ff.backends.native.image import MAGIC, potential_image
from ponita_ff.kernels.build import KernelError, compiler
from ponita_ff.kernels.loader import Kernels
from ponita_ff.kernels.structs import Image, Layer, Model
from ponita_ff.potential.potential import Potential
from ponita_ff.structure.graph import build_graph

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")


def opened(data: bytes) -> tuple[ctypes.Array, Image]:
    """The image with places made addresses, as image.h does it."""
    memory = ctypes.create_string_buffer(data, len(data))
    start = ctypes.addressof(memory)
    image = Image.from_buffer(memory)
    for place in np.frombuffer(data, dtype="<i8", count=image.num_addresses, offset=image.addresses):
        field = ctypes.c_int64.from_buffer(memory, int(place))
        field.value += start
    return memory, image


def array(address: int, kind: type, *shape: int) -> np.ndarray:
    """What lies at an address."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [{"num_ori": 20, "l_max": 2}, {"num_ori": 12}, {"num_ori": 0}], ids=str)
def test_the_same_numbers(
    grid: dict, dtype: torch.dtype, make_potential: Callable[..., Potential], make_system: Callable[[str], Atoms]
) -> None:
    potential = make_potential(dtype=dtype, scale=0.3, zbl_cutoff=1.1, **grid)
    potential.average_rotations(2)
    kernels = Kernels("engine", dtype)
    item = potential.network.embedding.weight.element_size()
    data = potential_image(potential, kernels.width * item, [2, 0, 0, 1])
    assert data.startswith(MAGIC)
    memory, image = opened(data)
    assert image.bytes == len(data) and image.item_bytes == item
    assert (image.scale, image.zbl_cutoff) == (0.3, 1.1)
    assert array(image.atomic_numbers, ctypes.c_int64, image.num_species).tolist() == [1, 6, 8]
    assert array(image.types, ctypes.c_int64, image.num_types).tolist() == [2, 0, 0, 1]
    references = array(image.reference_energies, ctypes.c_double, image.num_species)
    np.testing.assert_array_equal(references, potential.reference_energies)
    np.testing.assert_array_equal(array(image.rotations, ctypes.c_double, 2, 3, 3), potential.rotations)

    engine = NativeNetwork(potential.network)
    atoms = make_system("molecule")
    graph = build_graph(atoms.numbers, atoms.positions, potential.cutoff)
    species = potential.species_of(graph)
    expected = engine(graph, species)
    engine._weights.model = Model.from_address(image.model)
    start = ctypes.addressof(memory)
    layers = ctypes.cast(engine._weights.model.layers, ctypes.c_void_p).value
    assert start < image.model < start + len(data) and layers is not None and start < layers < start + len(data)
    engine._weights.layers = (Layer * 1)()
    engine._weights.tensors.clear()  # nothing of the network itself is used any more
    for found, right in zip(engine(graph, species), expected, strict=True):
        np.testing.assert_array_equal(found, right)


def test_other_vectors_give_other_padding(make_potential: Callable[..., Potential]) -> None:
    sizes = [len(potential_image(make_potential(dtype=torch.float32, channels=3), width)) for width in (16, 64)]
    assert sizes[0] < sizes[1]


def test_a_network_without_kernels(make_potential: Callable[..., Potential]) -> None:
    potential = make_potential()
    potential.network.extra = 1
    with pytest.raises(KernelError, match="extra"):
        potential_image(potential, 32)
