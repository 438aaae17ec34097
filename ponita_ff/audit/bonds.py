"""Covalent bonds of a structure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

__all__ = ["Bonds", "find_bonds"]

#: A bond is at most this many times as long as the sum of the covalent radii.
_BOND_FACTOR = 1.2


@dataclass(frozen=True)
class Bonds:
    """Covalent bonds i–j of a structure.

    Attributes:
        pairs: Indices i and j of the bonded atoms, each bond once, shape (bonds, 2).
        lengths: Bond lengths in the structure, Å, shape (bonds,).
        shifts: Integer cell vectors from j to its periodic image that is bonded to i, shape (bonds, 3).
    """

    pairs: NDArray[np.int64]
    lengths: NDArray[np.float64]
    shifts: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of bonds."""
        return len(self.pairs)

    def vectors(self, atoms: Atoms) -> NDArray[np.float64]:
        """Return the vectors from i to j in another geometry of the same atoms, Å, shape (bonds, 3)."""
        i, j = self.pairs.T
        return np.asarray(atoms.positions[j] - atoms.positions[i] + self.shifts @ atoms.cell.array)

    def largest_change(self, atoms: Atoms) -> float:
        """Return the largest change of a bond length in another geometry of the same atoms, Å."""
        return float(np.abs(np.linalg.norm(self.vectors(atoms), axis=1) - self.lengths).max())


def find_bonds(atoms: Atoms) -> Bonds:
    """Find all pairs of atoms closer than 1.2 times the sum of their covalent radii."""
    i, j, distance, shift = neighbor_list("ijdS", atoms, natural_cutoffs(atoms, mult=_BOND_FACTOR))
    # Every pair is listed in both directions; an atom and its own image are told apart by the sign of the shift.
    once = (i < j) | ((i == j) & np.array([tuple(s) > (0, 0, 0) for s in shift], dtype=bool))
    return Bonds(np.stack([i[once], j[once]], axis=1), distance[once], shift[once])
