"""What is audited: a calculator on a structure; and the geometry that several checks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS
from numpy.typing import NDArray

from ponita_ff.audit.settings import AuditSettings
from ponita_ff.data import Frame

__all__ = ["Array", "Bonds", "Relaxed", "Subject", "find_bonds"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bonds:
    """Bonds of a structure, found by covalent radii.

    Attributes:
        pairs: Atoms i < j, or periodic images of them, shape (bonds, 2).
        lengths: Å, shape (bonds,).
        shifts: Cell vectors (integers) from j's own cell to that of its bonded image, shape (bonds, 3).
    """

    pairs: NDArray[np.int64]
    lengths: Array
    shifts: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of bonds."""
        return len(self.pairs)

    def vectors(self, atoms: Atoms) -> Array:
        """From i to j in another geometry of the same atoms, Å, shape (bonds, 3)."""
        i, j = self.pairs.T
        return np.asarray(atoms.positions[j] - atoms.positions[i] + self.shifts @ atoms.cell.array)

    def largest_change(self, atoms: Atoms) -> float:
        """Largest difference of a length from that at the start, Å."""
        return float(np.abs(np.linalg.norm(self.vectors(atoms), axis=1) - self.lengths).max())


def find_bonds(atoms: Atoms) -> Bonds:
    """All pairs nearer than 1.2 times the sum of their covalent radii."""
    i, j, distance, shift = neighbor_list("ijdS", atoms, natural_cutoffs(atoms, mult=1.2))
    once = (i < j) | ((i == j) & np.array([tuple(s) > (0, 0, 0) for s in shift], dtype=bool))
    return Bonds(np.stack([i[once], j[once]], axis=1), distance[once], shift[once])


@dataclass(frozen=True)
class Relaxed:
    """A structure relaxed by the calculator.

    Attributes:
        atoms: Its geometry.
        converged: Whether the forces came below the limit.
        fmax: Largest force left, eV/Å.
    """

    atoms: Atoms
    converged: bool
    fmax: float


@dataclass
class Subject:
    """One calculator and what it is audited on.

    Attributes:
        calculator: Any of ASE's.
        structure: As the user gave it, without calculator or constraints.
        frames: Labelled frames, if any.
        settings: Of the audit.
        progress: Whether to show progress bars.
        snapshots: Geometries of NVT runs by temperature in K; the NVT check leaves them for the domain check.
    """

    calculator: Calculator
    structure: Atoms
    frames: Sequence[Frame] | None
    settings: AuditSettings
    progress: bool = False
    snapshots: dict[float, list[Atoms]] = field(default_factory=dict)

    def generator(self, *stream: int) -> np.random.Generator:
        """Random numbers of the audit's seed, a stream for each purpose."""
        return np.random.default_rng((self.settings.seed, *stream))

    def attach(self, atoms: Atoms) -> Atoms:
        """A copy with the calculator."""
        copy = atoms.copy()
        copy.calc = self.calculator
        return copy

    def rattled(self) -> Atoms:
        """The structure with thermal-like noise, the same for every calculator; nothing in it is symmetric."""
        atoms = self.attach(self.structure)
        atoms.positions += self.settings.rattle * self.generator(1).normal(size=atoms.positions.shape)
        return atoms

    @property
    def periodic(self) -> bool:
        """Whether the structure has any periodic direction."""
        return bool(self.structure.pbc.any())

    @cached_property
    def bonds(self) -> Bonds:
        """Bonds of the structure as given."""
        return find_bonds(self.structure)

    @cached_property
    def relaxed(self) -> Relaxed:
        """The structure relaxed in its cell, to the settings' ``modes.fmax``."""
        atoms = self.attach(self.structure)
        limit = self.settings.modes
        with BFGS(atoms, logfile=None) as optimiser:
            converged = bool(optimiser.run(fmax=limit.fmax, steps=limit.max_steps))
        return Relaxed(atoms, converged, largest_force(atoms))


def largest_force(atoms: Atoms) -> float:
    """Largest norm of a force, eV/Å."""
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def frame_atoms(frame: Frame, calculator: Any) -> Atoms:
    """A labelled frame with the calculator."""
    return Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc, calculator=calculator)


def evenly(number: int, at_most: int) -> NDArray[np.int64]:
    """Indices of at most so many of ``number`` things, evenly spaced, the first among them."""
    return np.unique(np.linspace(0, number, min(number, at_most), endpoint=False).astype(np.int64))
