"""The calculator under audit, with the structure, frames and settings that all checks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS
from numpy.typing import NDArray

from ponita_ff.audit.settings import AuditSettings
from ponita_ff.data import Frame
from ponita_ff.structure.bonds import Bonds, find_bonds

__all__ = ["Array", "AuditTarget", "RelaxedStructure", "evenly_spaced"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RelaxedStructure:
    """Result of a relaxation.

    Attributes:
        atoms: The relaxed geometry.
        converged: Whether the largest force fell below the limit.
        fmax: Largest norm of a remaining force, eV/Å.
    """

    atoms: Atoms
    converged: bool
    fmax: float


@dataclass
class AuditTarget:
    """One calculator and the system it is audited on.

    Attributes:
        calculator: Any ASE calculator.
        structure: Structure given by the user, without calculator and constraints.
        frames: Labelled frames, or None.
        settings: Settings of the audit.
        progress: Whether to show progress bars.
        snapshots: Geometries visited by the NVT runs, by temperature in K. Filled by the NVT check and read by the
            check of the training domain.
    """

    calculator: Calculator
    structure: Atoms
    frames: Sequence[Frame] | None
    settings: AuditSettings
    progress: bool = False
    snapshots: dict[float, list[Atoms]] = field(default_factory=dict)

    def generator(self, *stream: int) -> np.random.Generator:
        """Return a random generator seeded by the audit's seed and the number of a stream, one for each purpose."""
        return np.random.default_rng((self.settings.seed, *stream))

    def attach(self, atoms: Atoms) -> Atoms:
        """Return a copy of ``atoms`` with the calculator attached."""
        copy = atoms.copy()
        copy.calc = self.calculator
        return copy

    def rattled(self) -> Atoms:
        """Return the structure with Gaussian noise on the positions, the same noise for every calculator."""
        atoms = self.attach(self.structure)
        atoms.positions += self.settings.rattle * self.generator(1).normal(size=atoms.positions.shape)
        return atoms

    @property
    def periodic(self) -> bool:
        """Whether the structure is periodic in any direction."""
        return bool(self.structure.pbc.any())

    @cached_property
    def bonds(self) -> Bonds:
        """Bonds of the structure as given."""
        return find_bonds(self.structure)

    @cached_property
    def relaxed(self) -> RelaxedStructure:
        """The structure relaxed in its fixed cell until the largest force is below ``modes.fmax``."""
        atoms = self.attach(self.structure)
        limit = self.settings.modes
        with BFGS(atoms, logfile=None) as optimiser:
            converged = bool(optimiser.run(fmax=limit.fmax, steps=limit.max_steps))
        fmax = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        return RelaxedStructure(atoms, converged, fmax)


def evenly_spaced(number: int, at_most: int) -> NDArray[np.int64]:
    """Return at most ``at_most`` evenly spaced indices below ``number``, beginning with 0."""
    return np.unique(np.linspace(0, number, min(number, at_most), endpoint=False).astype(np.int64))
