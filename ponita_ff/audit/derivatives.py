"""Checks: forces and stress against finite differences of the energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress

from ponita_ff.audit.result import Measure, NotDone, Outcome
from ponita_ff.audit.subject import Array, Subject

__all__ = ["central_difference", "energy_noise", "finite_difference_forces", "finite_difference_stress"]

#: Standard deviation of the five-point formula's result, times step over the energies' own: √(2·8² + 2·1²) / 12.
_NOISE_GAIN = np.sqrt(130.0) / 12.0

#: Noise within so many standard deviations is no fault: the largest of hundreds of components is looked at.
_SIGMAS = 5.0

#: Å between the points that show the rounding noise, and their number.
_NOISE_SPACING, _NOISE_POINTS = 1e-4, 24


def central_difference(energy: Callable[[float], float], steps: Sequence[float]) -> Array:
    """dE/dx at 0 by the central five-point formula at every step h, shape (steps,).

    [8 E(h) − 8 E(−h) − E(2h) + E(−2h)] / 12h, whose error falls as h⁴ (Abramowitz and Stegun, 25.3.6).
    """
    points = {round(sign * factor * h, 12) for h in steps for factor in (1, 2) for sign in (-1, 1)}
    value = {x: energy(x) for x in points}

    def at(x: float) -> float:
        return value[round(x, 12)]

    return np.array([(8 * (at(h) - at(-h)) - at(2 * h) + at(-2 * h)) / (12 * h) for h in steps])


def energy_noise(atoms: Atoms, generator: np.random.Generator) -> float:
    """Standard deviation of the energy's rounding noise, eV.

    Energies along a random line of a few 10⁻³ Å, less a cubic polynomial: what a smooth surface cannot explain.
    """
    direction = generator.normal(size=atoms.positions.shape)
    direction /= np.linalg.norm(direction, axis=1).max()
    x = np.linspace(-0.5, 0.5, _NOISE_POINTS)
    energies = []
    for value in x:
        moved = _moved(atoms, atoms.positions + value * _NOISE_POINTS * _NOISE_SPACING * direction)
        energies.append(moved.get_potential_energy())
    residual = np.array(energies) - energies[0]
    residual -= np.polyval(np.polyfit(x, residual, 3), x)
    return float(np.sqrt(np.sum(residual**2) / (len(x) - 4)))


def _moved(atoms: Atoms, positions: Array) -> Atoms:
    copy = atoms.copy()
    copy.positions = positions
    copy.calc = atoms.calc
    return copy


def _judge(
    name: str, unit: str, found: Array, wanted: Array, steps: Sequence[float], limit: float, noise: float
) -> tuple[Measure, Array, list[str]]:
    """The best step's largest difference against the limit, or against what noise makes inevitable.

    Args:
        name, unit: Of the measure.
        found: By the calculator, shape (...).
        wanted: By differences, shape (steps, ...).
        steps: Of the differences.
        limit: In ``unit``.
        noise: Standard deviation that rounding gives a difference, times the step.
    """
    differences = np.abs(found - wanted).reshape(len(steps), -1).max(axis=1)
    best = int(np.argmin(differences))
    floor = _SIGMAS * noise / steps[best]
    note = f"limit raised from {limit:g}: rounding noise of the energy" if floor > limit else ""
    measure = Measure(name, float(differences[best]), unit, max(limit, floor), note=note)
    notes = [f"The best step was {steps[best]:g}."]
    if measure.verdict == "fail" and np.abs(found + wanted[best]).max() < 0.5 * np.abs(found - wanted[best]).max():
        notes.append(f"{name.split(',')[0].capitalize()}: THE SIGN IS WRONG: minus the value agrees.")
    return measure, differences, notes


def finite_difference_forces(subject: Subject) -> Outcome:
    """Forces against central differences of the energy, at several steps.

    Arrays: ``steps`` (k,) Å; ``differences`` (k,) eV/Å, the largest of all components; ``noise_floor`` (k,) eV/Å.
    """
    settings = subject.settings.forces
    atoms = subject.rattled()
    generator = subject.generator(3)
    noise = energy_noise(atoms, generator)
    count = min(settings.max_atoms, len(atoms))
    chosen = np.sort(generator.choice(len(atoms), size=count, replace=False))

    def energy(x: float, atom: int, axis: int) -> float:
        positions = atoms.positions.copy()
        positions[atom, axis] += x
        return float(_moved(atoms, positions).get_potential_energy())

    wanted = np.zeros((len(settings.steps), count, 3))
    for row, atom in enumerate(chosen):
        for axis in range(3):
            wanted[:, row, axis] = -central_difference(partial(energy, atom=atom, axis=axis), settings.steps)
    gained = _NOISE_GAIN * noise
    name = "forces, largest difference from −ΔE/Δx"
    found = atoms.get_forces()[chosen]
    measure, differences, notes = _judge(name, "eV/Å", found, wanted, settings.steps, settings.limit, gained)
    rounding = Measure("rounding noise of the energy", noise, "eV", settings.noise_limit)
    steps = np.array(settings.steps)
    arrays = {"steps": steps, "differences": differences, "noise_floor": gained / steps}
    return Outcome([measure, rounding], arrays, notes)


def finite_difference_stress(subject: Subject) -> Outcome:
    """Stress against central differences of the energy with respect to strain: σ = (1/V) ∂E/∂ε, as ASE defines it.

    The cell is first strained by a few per cent, so that there is a stress whose sign can be seen.

    Arrays: ``steps`` (k,); ``differences`` (k,) eV/Å³; ``stress``, ``numerical`` (6,) eV/Å³ in Voigt order.
    """
    settings = subject.settings.stress
    if not subject.structure.pbc.all():
        raise NotDone("the structure is not periodic in all directions")
    atoms = subject.rattled()
    _strain(atoms, np.array([[-0.02, 0.005, 0.004], [0.005, -0.03, 0.003], [0.004, 0.003, -0.01]]))
    try:
        found = atoms.get_stress()
    except (PropertyNotImplementedError, NotImplementedError):
        raise NotDone("the calculator implements no stress") from None
    noise = energy_noise(atoms, subject.generator(4))

    def energy(x: float, unit: Array) -> float:
        copy = atoms.copy()
        copy.calc = atoms.calc
        _strain(copy, x * unit)
        return float(copy.get_potential_energy())

    units = [voigt_6_to_full_3x3_stress(row) for row in np.diag([1, 1, 1, 0.5, 0.5, 0.5])]
    slopes = [central_difference(partial(energy, unit=unit), settings.steps) for unit in units]
    wanted = np.stack(slopes, axis=1) / atoms.get_volume()
    gained = _NOISE_GAIN * noise / atoms.get_volume()
    name = "stress, largest difference from ΔE/VΔε"
    measure, differences, notes = _judge(name, "eV/Å³", found, wanted, settings.steps, settings.limit, gained)
    best = int(np.argmin(differences))
    arrays = {"steps": np.array(settings.steps), "differences": differences}
    return Outcome([measure], {**arrays, "stress": found, "numerical": wanted[best]}, notes)


def _strain(atoms: Atoms, strain: Array) -> None:
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
