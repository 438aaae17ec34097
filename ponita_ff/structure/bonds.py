"""Covalent bonds of a structure, and how much their lengths change: a molecule whose bonds break is no longer whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

__all__ = ["BOND_CHANGE_LIMIT", "Bonds", "bond_fragment", "find_bonds"]

#: Å by which a bond length of a whole molecule may change: the criterion of Fu et al., "Forces are not enough",
#: arXiv:2210.07237.
BOND_CHANGE_LIMIT = 0.5


@dataclass(frozen=True)
class Bonds:
    """Bonds of a structure and their lengths in it.

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
        """Vectors from i to j in another geometry of the same atoms, Å, shape (bonds, 3)."""
        i, j = self.pairs.T
        return np.asarray(atoms.positions[j] - atoms.positions[i] + self.shifts @ atoms.cell.array)

    def changes(self, atoms: Atoms) -> NDArray[np.float64]:
        """Changes of the bond lengths in another geometry of the same atoms, Å, shape (bonds,)."""
        return np.asarray(np.linalg.norm(self.vectors(atoms), axis=1) - self.lengths)

    def largest_change(self, atoms: Atoms) -> float:
        """Largest change of a bond length in another geometry of the same atoms, Å; 0 where there are no bonds."""
        return float(np.abs(self.changes(atoms)).max(initial=0.0))

    def describe_largest_change(self, atoms: Atoms) -> str:
        """The bond that differs most in another geometry, with both lengths, in words; there must be a bond."""
        changes = self.changes(atoms)
        worst = int(np.abs(changes).argmax())
        first, second = (f"{atoms.symbols[index]}{index}" for index in self.pairs[worst])
        length = self.lengths[worst]
        return f"the bond {first}–{second} has changed from {length:.2f} to {length + changes[worst]:.2f} Å"


def find_bonds(atoms: Atoms) -> Bonds:
    """All pairs nearer than 1.2 times the sum of their covalent radii (ASE's ``natural_cutoffs``)."""
    i, j, distance, shift = neighbor_list("ijdS", atoms, natural_cutoffs(atoms, mult=1.2))
    # Every pair is listed in both directions; an atom and its own image are told apart by the sign of the shift.
    once = (i < j) | ((i == j) & np.array([tuple(s) > (0, 0, 0) for s in shift], dtype=bool))
    return Bonds(np.stack([i[once], j[once]], axis=1), distance[once], shift[once])


def bond_fragment(pairs: NDArray[np.int64], first: int, second: int) -> set[int]:
    """The atoms on ``second``'s side of the bond first–second.

    Args:
        pairs: All bonds, shape (bonds, 2).
        first: Index of one atom of the bond.
        second: Index of the other.

    Returns:
        The fragment with ``second``; only ``{second}`` if the bond is part of a ring.
    """
    neighbours: dict[int, set[int]] = {}
    for i, j in pairs:
        neighbours.setdefault(int(i), set()).add(int(j))
        neighbours.setdefault(int(j), set()).add(int(i))
    side, queue = {second}, [second]
    while queue:
        atom = queue.pop()
        new = neighbours.get(atom, set()) - side - ({first} if atom == second else set())
        side |= new
        queue.extend(new)
    return {second} if first in side else side
