"""A sound calculator, and wrappers that plant one defect each."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


class Springs(Calculator):
    """Harmonic springs between all pairs of a molecule's atoms, relaxed at its own geometry: sound in every way."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as the base class declares it

    def __init__(self, molecule: Atoms, stiffness: float = 30.0) -> None:
        super().__init__()
        self.lengths = molecule.get_all_distances()
        self.stiffness = stiffness

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        vectors = atoms.positions[None] - atoms.positions[:, None]
        distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(atoms))
        stretch = np.where(np.eye(len(atoms)) > 0, 0.0, distances - self.lengths)
        energy = 0.25 * self.stiffness * np.sum(stretch**2)
        forces = self.stiffness * np.sum((stretch / distances)[..., None] * vectors, axis=1)
        self.results = {"energy": float(energy), "forces": forces}


class Altered(Calculator):
    """Another calculator's results, altered by ``alter`` in place."""

    def __init__(self, calculator: Calculator) -> None:
        super().__init__()
        self.inner = calculator
        self.implemented_properties = calculator.implemented_properties

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        copy = atoms.copy()
        copy.calc = self.inner
        wanted = [name for name in ("energy", "forces", "stress") if name in self.implemented_properties]
        if not atoms.pbc.all():
            wanted = [name for name in wanted if name != "stress"]
        self.results = {name: np.array(self.inner.get_property(name, copy)) for name in wanted}
        self.results["energy"] = float(self.results["energy"])
        self.alter(atoms, self.results)

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        """Nothing."""


class NonConservative(Altered):
    """A force with curl: no energy has it as its derivative."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        centred = atoms.positions - atoms.positions.mean(axis=0)
        results["forces"] = results["forces"] + 0.3 * np.cross(centred, [0.0, 0.0, 1.0])


class WrongStress(Altered):
    """Pressure instead of stress."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        results["stress"] = -results["stress"]


class Jump(Altered):
    """An energy that jumps, and a force that jumps, where the first two atoms are 2 Å apart."""

    energy, force = 0.0, 0.0

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        vector = atoms.positions[1] - atoms.positions[0]
        distance = np.linalg.norm(vector)
        if distance > 2.0:
            results["energy"] += self.energy + self.force * (distance - 2.0)
            results["forces"][1] -= self.force * vector / distance
            results["forces"][0] += self.force * vector / distance


class Anisotropic(Altered):
    """A field along x, with the right forces: only rotations tell."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        x = atoms.positions[:, 0] - atoms.positions[:, 0].mean()
        results["energy"] += 0.05 * float(np.sum(x**2))
        results["forces"][:, 0] -= 0.1 * x


class Hole(Altered):
    """Atoms that attract each other at short range, with the right forces."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        for i in range(len(atoms)):
            for j in range(i):
                vector = atoms.positions[i] - atoms.positions[j]
                well = 40.0 * np.exp(-((np.linalg.norm(vector) / 0.3) ** 2))
                results["energy"] -= well
                results["forces"][i] -= 2 * well * vector / 0.3**2
                results["forces"][j] += 2 * well * vector / 0.3**2


class Rounded(Altered):
    """An energy in single precision of some size, as ``step`` says."""

    step = 1e-5

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        results["energy"] = self.step * round(results["energy"] / self.step)


class Shifted(Altered):
    """Energies and forces with known errors."""

    energy, hydrogen_force = 0.0, 0.0

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        results["energy"] += self.energy
        results["forces"][atoms.numbers == 1] += self.hydrogen_force


class Committee(Altered):
    """Says how unsure it is: the more, the longer the first bond."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        results["forces_std"] = np.full((len(atoms), 3), np.linalg.norm(atoms.positions[1] - atoms.positions[0]))


class Failing(Altered):
    """Refuses geometries whose first two atoms are nearer than 0.8 Å."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        if np.linalg.norm(atoms.positions[1] - atoms.positions[0]) < 0.8:
            raise ValueError("the structure is far outside anything")
