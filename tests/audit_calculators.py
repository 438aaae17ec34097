"""A correct calculator, wrappers that add one defect each, and what the audit's tests do with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ponita_ff.audit import AuditSettings, CheckResult, Measurement, audit
from ponita_ff.data import Frame


class Springs(Calculator):
    """Harmonic springs between all pairs of atoms, relaxed in the molecule given: correct in every respect."""

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
    """Results of another calculator, changed in place by ``alter``."""

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
        """Change the results; this class changes nothing."""


class Turned(Altered):
    """A torque that depends on how the molecule is turned, as of a finite grid of orientations."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        arms = atoms.positions - atoms.positions.mean(axis=0)
        field = 0.01 * np.sin(3 * arms)
        results["energy"] -= 0.01 / 3 * float(np.cos(3 * arms).sum())
        results["forces"] -= field - field.mean(axis=0)


class NonConservative(Altered):
    """A force with curl, which is the derivative of no energy."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        centred = atoms.positions - atoms.positions.mean(axis=0)
        results["forces"] = results["forces"] + 0.3 * np.cross(centred, [0.0, 0.0, 1.0])


class WrongStress(Altered):
    """Stress of the wrong sign."""

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
    """An external field along x, with consistent forces: only rotations reveal it."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        x = atoms.positions[:, 0] - atoms.positions[:, 0].mean()
        results["energy"] += 0.05 * float(np.sum(x**2))
        results["forces"][:, 0] -= 0.1 * x


class Hole(Altered):
    """Attraction at short range, with consistent forces."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        for i in range(len(atoms)):
            for j in range(i):
                vector = atoms.positions[i] - atoms.positions[j]
                well = 40.0 * np.exp(-((np.linalg.norm(vector) / 0.3) ** 2))
                results["energy"] -= well
                results["forces"][i] -= 2 * well * vector / 0.3**2
                results["forces"][j] += 2 * well * vector / 0.3**2


class Rounded(Altered):
    """An energy rounded to multiples of ``step``, eV."""

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
    """Provides ``forces_std``, which grows with the distance of the first two atoms."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        results["forces_std"] = np.full((len(atoms), 3), np.linalg.norm(atoms.positions[1] - atoms.positions[0]))


class Failing(Altered):
    """Raises an error if the first two atoms are closer than 0.8 Å."""

    def alter(self, atoms: Atoms, results: dict[str, Any]) -> None:
        if np.linalg.norm(atoms.positions[1] - atoms.positions[0]) < 0.8:
            raise ValueError("the structure is far outside anything")


def run_check(
    check: str, calculator: Calculator, atoms: Atoms, settings: AuditSettings, frames: Any = None
) -> CheckResult:
    """Run one check of one calculator."""
    return audit({"it": calculator}, atoms, frames, settings, only=[check]).results["it"][check]


def find_measurement(result: CheckResult, beginning: str) -> Measurement:
    """Return the only measurement whose name begins like this."""
    (found,) = [measurement for measurement in result.measurements if measurement.name.startswith(beginning)]
    return found


def labelled_frames(calculator: Calculator, atoms: Atoms, number: int = 20, noise: float = 0.05) -> list[Frame]:
    """Return frames with noise (standard deviation in Å) on the positions, labelled by a calculator."""
    generator, frames = np.random.default_rng(0), []
    for _ in range(number):
        copy = atoms.copy()
        copy.positions += noise * generator.normal(size=copy.positions.shape)
        copy.calc = calculator
        labels = {"energy": copy.get_potential_energy(), "forces": copy.get_forces()}
        frames.append(Frame(copy.numbers, copy.positions, copy.cell.array, copy.pbc, **labels))
    return frames
