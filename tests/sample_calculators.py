"""A cheap force field for the tests of sampling, where spawned processes can import it: ``tests`` is on their path."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ponita_ff.structure.bonds import find_bonds

STIFFNESS = 30.0  # eV/Å²


def springs_of(atoms: Atoms) -> np.ndarray[Any, Any]:
    """Whether two atoms are bonded, or bonded to a common one, shape (n, n)."""
    bonded = np.zeros((len(atoms), len(atoms)), dtype=bool)
    for i, j in find_bonds(atoms).pairs:
        bonded[i, j] = bonded[j, i] = True
    near = bonded | (bonded.astype(int) @ bonded.astype(int) > 0)
    return near & ~np.eye(len(atoms), dtype=bool)


class ForceField(Calculator):
    """Springs between atoms one or two bonds apart, relaxed in the first geometry that it sees; repulsion of others.

    Args:
        folder: Where each calculator leaves a file named by its process, if given.
        seconds: That making one takes.
        fail: Formula for which it raises.
        nan: Formula whose forces are not numbers.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as the base class declares it

    def __init__(self, folder: str | None = None, seconds: float = 0.0, fail: str = "", nan: str = "") -> None:
        super().__init__()
        self.fail, self.nan = fail, nan
        self.first: dict[bytes, tuple[Any, Any]] = {}
        if folder is not None:
            (Path(folder) / f"{os.getpid()}-{uuid4().hex}").touch()
        time.sleep(seconds)

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        formula = atoms.get_chemical_formula()
        if formula == self.fail:
            raise RuntimeError(f"{formula} is not\nto my liking")
        lengths, springs = self.first.setdefault(
            atoms.numbers.tobytes(), (atoms.get_all_distances(), springs_of(atoms))
        )
        vectors = atoms.positions[None] - atoms.positions[:, None]
        distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(atoms))
        stretch = np.where(springs, distances - lengths, 0.0)
        others = ~springs & ~np.eye(len(atoms), dtype=bool)
        repulsion = np.where(others, 2.0 * np.exp(-(distances - 1.5) / 0.3), 0.0)
        energy = 0.25 * STIFFNESS * np.sum(stretch**2) + 0.5 * np.sum(repulsion)
        slope = STIFFNESS * stretch - repulsion / 0.3
        forces = np.sum((slope / distances)[..., None] * vectors, axis=1)
        self.results = {"energy": float(energy), "forces": forces * (np.nan if formula == self.nan else 1.0)}
