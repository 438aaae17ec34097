"""Systems of the speed benchmark: molecules and boxes of water. Needs numpy, SciPy and ASE only."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.build import molecule
from scipy.spatial.transform import Rotation

__all__ = ["SEED", "aspirin", "ethanol", "make_system", "water_box"]

SEED = 2026

#: Number density of liquid water, atoms/Å³.
DENSITY = 0.1

#: Aspirin in Å, built from standard bond lengths and angles, with the ester group perpendicular to the ring.
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
    """Return ethanol from ASE's collection, 9 atoms."""
    return molecule("CH3CH2OH")


def aspirin() -> Atoms:
    """Return aspirin, 21 atoms, in a reasonable geometry that is not relaxed."""
    return Atoms([row[0] for row in _ASPIRIN], [row[1:] for row in _ASPIRIN])


def _lattice(molecules: int) -> tuple[int, int, int]:
    """Return the sides of a nearly cubic lattice with about this number of sites."""
    longest = round(molecules ** (1 / 3)) + 2
    sides = combinations_with_replacement(range(1, longest + 1), 3)
    compact = [s for s in sides if s[2] <= max(s[0] + 1, 4 / 3 * s[0])]
    return min(compact, key=lambda s: (abs(s[0] * s[1] * s[2] - molecules), s[2] - s[0]))


def water_box(atoms: int, seed: int = SEED) -> Atoms:
    """Return a periodic box of randomly rotated water molecules on a lattice, at the density of liquid water.

    Args:
        atoms: Number of atoms, rounded to whole molecules on a nearly cubic lattice.
        seed: Seed of the rotations.

    Raises:
        ValueError: For fewer atoms than one molecule has.
    """
    if atoms < 3:
        raise ValueError(f"a box of water needs at least 3 atoms, got {atoms}")
    sides = _lattice(round(atoms / 3))
    number = sides[0] * sides[1] * sides[2]
    spacing = (3 / DENSITY) ** (1 / 3)
    sites = spacing * np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), axis=-1).reshape(-1, 3)
    water = molecule("H2O")
    centred = water.positions - water.get_center_of_mass()
    rotations = Rotation.random(number, np.random.default_rng(seed))
    positions = np.einsum("nij,aj->nai", rotations.as_matrix(), centred) + sites[:, None]
    return Atoms(list(water.symbols) * number, positions.reshape(-1, 3), cell=spacing * np.array(sides), pbc=True)


def make_system(name: str) -> Atoms:
    """Return a system by name: ``ethanol``, ``aspirin`` or ``water-<atoms>``."""
    if name.startswith("water-"):
        return water_box(int(name.removeprefix("water-")))
    return {"ethanol": ethanol, "aspirin": aspirin}[name]()
