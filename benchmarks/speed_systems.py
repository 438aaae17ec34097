"""What the speed benchmark computes: molecules and boxes of water, and the arithmetic that a network needs for them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.build import molecule
from numpy.typing import NDArray

from ponita_ff.network.config import PonitaConfig
from ponita_ff.published.network import PublishedConfig
from ponita_ff.structure.neighbours import neighbour_list

__all__ = ["Flops", "aspirin", "count_flops", "directed_edges", "ethanol", "make_system", "water_box"]

SEED = 2026

#: Atoms per Å³ of a box: liquid water's.
DENSITY = 0.1

#: Aspirin, Å: hand-built of standard bond lengths and angles, the ester group across the ring's plane. Not relaxed.
_ASPIRIN = (
    ("C", 1.390, 0.000, 0.000),  # the ring
    ("C", 0.695, 1.204, 0.000),
    ("C", -0.695, 1.204, 0.000),
    ("C", -1.390, 0.000, 0.000),
    ("C", -0.695, -1.204, 0.000),
    ("C", 0.695, -1.204, 0.000),
    ("H", -1.235, 2.139, 0.000),
    ("H", -2.470, 0.000, 0.000),
    ("H", -1.235, -2.139, 0.000),
    ("H", 1.235, -2.139, 0.000),
    ("C", 2.880, 0.000, 0.000),  # the acid: C, =O, –O, H
    ("O", 3.539, -1.015, 0.000),
    ("O", 3.425, 1.224, 0.000),
    ("H", 4.388, 1.106, 0.000),
    ("O", 1.390, 2.408, 0.000),  # the ester: –O–, C, =O, methyl
    ("C", 1.619, 3.013, -1.196),
    ("O", 1.249, 2.555, -2.242),
    ("C", 2.377, 4.294, -1.014),
    ("H", 1.800, 4.972, -0.384),
    ("H", 2.546, 4.758, -1.986),
    ("H", 3.336, 4.085, -0.540),
)


def ethanol() -> Atoms:
    """Ethanol of ASE's own table, 9 atoms."""
    return molecule("CH3CH2OH")


def aspirin() -> Atoms:
    """Aspirin, 21 atoms, a sensible geometry but no minimum of anything."""
    return Atoms([row[0] for row in _ASPIRIN], [row[1:] for row in _ASPIRIN])


def _lattice(molecules: int) -> tuple[int, int, int]:
    """Sides of a nearly cubic lattice of about so many sites."""
    longest = round(molecules ** (1 / 3)) + 2
    sides = combinations_with_replacement(range(1, longest + 1), 3)
    compact = [s for s in sides if s[2] <= max(s[0] + 1, 4 / 3 * s[0])]
    return min(compact, key=lambda s: (abs(s[0] * s[1] * s[2] - molecules), s[2] - s[0]))


def _random_rotations(number: int, seed: int) -> NDArray[np.float64]:
    """Rotation matrices, shape (number, 3, 3)."""
    matrices = np.linalg.qr(np.random.default_rng(seed).normal(size=(number, 3, 3)))[0]
    turned: NDArray[np.float64] = matrices * np.sign(np.linalg.det(matrices))[:, None, None]
    return turned


def water_box(atoms: int, seed: int = SEED) -> Atoms:
    """Periodic box of randomly turned water molecules on a lattice, at :data:`DENSITY`.

    Args:
        atoms: About how many: rounded to whole molecules on a nearly cubic lattice.
        seed: Of the rotations.
    """
    if atoms < 3:
        raise ValueError(f"a box of water needs at least 3 atoms, got {atoms}")
    sides = _lattice(round(atoms / 3))
    number = sides[0] * sides[1] * sides[2]
    spacing = (3 / DENSITY) ** (1 / 3)
    sites = spacing * np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), axis=-1).reshape(-1, 3)
    water = molecule("H2O")
    turned = water.positions - water.get_center_of_mass()
    positions = np.einsum("nij,aj->nai", _random_rotations(number, seed), turned) + sites[:, None]
    return Atoms(list(water.symbols) * number, positions.reshape(-1, 3), cell=spacing * np.array(sides), pbc=True)


def make_system(name: str) -> Atoms:
    """``ethanol``, ``aspirin`` or ``water-<atoms>``."""
    if name.startswith("water-"):
        return water_box(int(name.removeprefix("water-")))
    return {"ethanol": ethanol, "aspirin": aspirin}[name]()


def directed_edges(atoms: Atoms, cutoff: float | None) -> int:
    """Number of pairs i←j within the cutoff, both directions counted."""
    cell = np.asarray(atoms.cell) if atoms.pbc.any() else None
    return len(neighbour_list(atoms.positions, cutoff, cell, atoms.pbc).receivers)


# ------------------------------------------------------------------------------------------- useful arithmetic

#: A multiplication and an addition.
MULTIPLY_ADD = 2

#: Energy, and the energy's gradient, which multiplies by the same matrices transposed.
PASSES = 2

#: Matrix products of a ConvNeXt block: channels to the widened ones and back.
PRODUCTS = 2


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one evaluation of energy and forces.

    Attributes:
        convnext: Of the ConvNeXt blocks' matrix products alone.
        total: With the convolutions over neighbours and over orientations.
    """

    convnext: float
    total: float


def spatial_flops(l_max: int) -> int:
    """The force-field form's convolution over neighbours, per edge, orientation, channel and layer, there and back.

    Forwards, k = Σ_l R_l P_l (l_max multiply-adds, P_0 being 1) and s += k f: 2 (l_max + 1).

    Backwards, from the sum's cotangent g: p = g f (1); Σ_n P_l p for dE/dr (1 for l = 0, 2 for each other l);
    t = Σ_l R_l P_l' for dE/dc (l_max − 1 multiply-adds, P_1' being 1) and Σ_c t p (2); k again (2 l_max) and the
    feature's cotangent += k g (2). Together 6 l_max + 4. What is needed once an edge, not once an orientation (radial
    functions, Legendre polynomials), is left out, as are norms and activations.
    """
    forward = MULTIPLY_ADD * (l_max + 1)
    backward = 6 * l_max + 4
    return forward + backward


def _convnext_flops(atoms: int, orientations: int, channels: int, widening: int, layers: int) -> float:
    """2 passes × 2 products × 2·C·W·C operations at every atom, orientation and layer, but for the last product.

    Its result is only read out, a sum over orientations that may come before: it takes one row an atom, and none on
    the way back, where the readout's product with its matrix is the same for all.
    """
    row = MULTIPLY_ADD * channels * widening * channels
    rows = PASSES * PRODUCTS * orientations * layers - PASSES * orientations + 1
    return float(row * rows * atoms)


def _fibre_flops(atoms: int, orientations: int, channels: int, layers: int) -> float:
    """Sum over n' for every n, with a kernel that is worked out beforehand; the adjoint costs the same."""
    return float(PASSES * MULTIPLY_ADD * orientations**2 * channels * atoms * layers)


def _published_spatial_flops(edges: int, config: PublishedConfig) -> float:
    """The published convolution over neighbours, whose kernel is a network of its own at every edge and orientation.

    Of it, its two matrix products once (they serve all layers) and w·basis once a layer, there and back (weights take
    no gradient here), and per channel k f added up (2), g f (1) and k g added up (2).
    """
    attributes = 2 if config.num_ori else 1
    features = sum(attributes**power for power in range(1, config.degree + 1))
    network = PASSES * MULTIPLY_ADD * config.channels * (features + config.basis_dim)
    per_layer = PASSES * MULTIPLY_ADD * config.basis_dim * config.channels + 5 * config.channels
    return float(edges * max(config.num_ori, 1) * (network + config.num_layers * per_layer))


def count_flops(config: PonitaConfig | PublishedConfig, atoms: int, edges: int) -> Flops:
    """Useful operations of one evaluation of energy and forces; what an implementation does besides is not counted.

    Args:
        config: Shape of the network.
        atoms: Number of atoms.
        edges: Directed edges within the cutoff.
    """
    orientations, channels, layers = max(config.num_ori, 1), config.channels, config.num_layers
    convnext = _convnext_flops(atoms, orientations, channels, config.widening, layers)
    fibre = _fibre_flops(atoms, orientations, channels, layers) if config.num_ori else 0.0
    if isinstance(config, PublishedConfig):
        spatial = _published_spatial_flops(edges, config)
    else:
        spatial = float(spatial_flops(config.l_max) * edges * orientations * channels * layers)
    return Flops(convnext, convnext + spatial + fibre)
