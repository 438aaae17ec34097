"""Bonds of a structure, and how far they have moved since: a run whose bonds break has left what a potential knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

__all__ = ["BOND_CHANGE_LIMIT", "Bonds", "find_bonds"]

#: Å by which a bond of an intact molecule may differ from its first length: the criterion of Fu et al., "Forces are not
#: enough", arXiv:2210.07237.
BOND_CHANGE_LIMIT = 0.5


@dataclass(frozen=True)
class Bonds:
    """Bonds of a structure and their lengths in it.

    Attributes:
        pairs: Atoms i < j, or periodic images of them, shape (bonds, 2).
        lengths: Å, shape (bonds,).
        shifts: Cell vectors (integers) from the cell of j to that of its bonded image, shape (bonds, 3).
    """

    pairs: NDArray[np.int64]
    lengths: NDArray[np.float64]
    shifts: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of bonds."""
        return len(self.pairs)

    def changes(self, atoms: Atoms) -> NDArray[np.float64]:
        """Differences of the lengths in another geometry of the same atoms from the first ones, Å, shape (bonds,)."""
        first, second = self.pairs.T
        vectors = atoms.positions[second] - atoms.positions[first] + self.shifts @ atoms.cell.array
        differences: NDArray[np.float64] = np.linalg.norm(vectors, axis=1) - self.lengths
        return differences

    def largest_change(self, atoms: Atoms) -> float:
        """Largest absolute difference of a length from the first one, Å; 0 where there are no bonds."""
        return float(np.abs(self.changes(atoms)).max(initial=0.0))


def find_bonds(atoms: Atoms) -> Bonds:
    """All pairs nearer than 1.2 times the sum of their covalent radii (ASE's ``natural_cutoffs``)."""
    first, second, distance, shift = neighbor_list("ijdS", atoms, natural_cutoffs(atoms, mult=1.2))
    once = (first < second) | ((first == second) & np.array([tuple(s) > (0, 0, 0) for s in shift], dtype=bool))
    return Bonds(np.stack([first[once], second[once]], axis=1), distance[once], shift[once])
