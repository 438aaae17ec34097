"""Checks: forces and stress against finite differences of the energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress

from ponita_ff.audit.result import CheckResult, CheckSkipped, Measurement
from ponita_ff.audit.target import Array, AuditTarget

__all__ = ["central_difference", "energy_noise", "finite_difference_forces", "finite_difference_stress"]

#: Standard deviation of the five-point formula's result, times the step, divided by that of the energies:
#: √(2·8² + 2·1²) / 12.
_NOISE_GAIN = np.sqrt(130.0) / 12.0

#: Differences within this many standard deviations of the noise do not fail: they are the largest of many components.
_NOISE_SIGMAS = 5.0

#: Spacing (Å) and number of the points that the rounding noise is estimated from.
_NOISE_SPACING, _NOISE_POINTS = 1e-4, 24

#: Strain of the cell for the check of the stress, so that the stress is not zero and its sign can be tested.
_PRESTRAIN = np.array([[-0.02, 0.005, 0.004], [0.005, -0.03, 0.003], [0.004, 0.003, -0.01]])


def central_difference(energy: Callable[[float], float], steps: Sequence[float]) -> Array:
    """Return dE/dx at x = 0 by the five-point central difference, for every step h.

    [8 E(h) − 8 E(−h) − E(2h) + E(−2h)] / 12h; the error is of order h⁴ (Abramowitz and Stegun, 25.3.6).

    Args:
        energy: Energy as a function of x.
        steps: Steps h, in the unit of x.

    Returns:
        Shape (steps,).
    """
    # Steps that are multiples of each other share points; rounding makes these equal.
    points = {round(sign * factor * h, 12) for h in steps for factor in (1, 2) for sign in (-1, 1)}
    values = {x: energy(x) for x in points}

    def at(x: float) -> float:
        return values[round(x, 12)]

    return np.array([(8 * (at(h) - at(-h)) - at(2 * h) + at(-2 * h)) / (12 * h) for h in steps])


def energy_noise(atoms: Atoms, generator: np.random.Generator) -> float:
    """Estimate the standard deviation of the energy's rounding noise, eV.

    Residual of a cubic polynomial fitted to energies on a random line of a few 10⁻³ Å.

    Args:
        atoms: The structure, with a calculator.
        generator: Draws the direction of the line.
    """
    direction = generator.normal(size=atoms.positions.shape)
    direction /= np.linalg.norm(direction, axis=1).max()
    x = np.linspace(-0.5, 0.5, _NOISE_POINTS)
    energies = []
    for value in x:
        moved = _with_positions(atoms, atoms.positions + value * _NOISE_POINTS * _NOISE_SPACING * direction)
        energies.append(moved.get_potential_energy())
    residual = np.array(energies) - energies[0]
    residual -= np.polyval(np.polyfit(x, residual, 3), x)
    return float(np.sqrt(np.sum(residual**2) / (len(x) - 4)))


def _with_positions(atoms: Atoms, positions: Array) -> Atoms:
    """Return a copy with other positions and the same calculator."""
    copy = atoms.copy()
    copy.positions = positions
    copy.calc = atoms.calc
    return copy


def _compare(
    name: str,
    unit: str,
    analytic: Array,
    numerical: Array,
    steps: Sequence[float],
    limit: float,
    noise: float,
) -> tuple[Measurement, Array, list[str]]:
    """Compare analytic with numerical derivatives at the step where they agree best.

    Args:
        name: Name of the measurement.
        unit: Its unit.
        analytic: Derivatives given by the calculator, shape (...).
        numerical: Derivatives by differences, shape (steps, ...).
        steps: Steps of the differences.
        limit: Limit of the largest difference, in ``unit``; raised to the noise level where that is higher.
        noise: Standard deviation of a numerical derivative due to rounding, times the step.

    Returns:
        The measurement, the largest difference at each step of shape (steps,), and notes.
    """
    differences = np.abs(analytic - numerical).reshape(len(steps), -1).max(axis=1)
    best = int(np.argmin(differences))
    floor = _NOISE_SIGMAS * noise / steps[best]
    note = f"limit raised from {limit:g}: rounding noise of the energy" if floor > limit else ""
    measurement = Measurement(name, float(differences[best]), unit, max(limit, floor), note=note)
    notes = [f"The best step was {steps[best]:g}."]
    opposite = np.abs(analytic + numerical[best]).max() < 0.5 * np.abs(analytic - numerical[best]).max()
    if measurement.verdict == "fail" and opposite:
        notes.append(f"{name.split(',')[0].capitalize()}: THE SIGN IS WRONG: the negative value agrees.")
    return measurement, differences, notes


def finite_difference_forces(target: AuditTarget) -> CheckResult:
    """Compare forces with central differences of the energy, at several steps.

    Returns:
        Arrays ``steps`` (k,), Å; ``differences`` (k,), eV/Å, the largest of all components; ``noise_floor`` (k,), eV/Å,
        one standard deviation.
    """
    settings = target.settings.forces
    atoms = target.rattled()
    generator = target.generator(3)
    noise = energy_noise(atoms, generator)
    count = min(settings.max_atoms, len(atoms))
    chosen = np.sort(generator.choice(len(atoms), size=count, replace=False))

    def energy(x: float, atom: int, axis: int) -> float:
        positions = atoms.positions.copy()
        positions[atom, axis] += x
        return float(_with_positions(atoms, positions).get_potential_energy())

    numerical = np.zeros((len(settings.steps), count, 3))
    for row, atom in enumerate(chosen):
        for axis in range(3):
            numerical[:, row, axis] = -central_difference(partial(energy, atom=atom, axis=axis), settings.steps)
    force_noise = _NOISE_GAIN * noise
    name = "forces, largest difference from −ΔE/Δx"
    analytic = atoms.get_forces()[chosen]
    measurement, differences, notes = _compare(
        name, "eV/Å", analytic, numerical, settings.steps, settings.limit, force_noise
    )
    rounding = Measurement("rounding noise of the energy", noise, "eV", settings.noise_limit)
    steps = np.array(settings.steps)
    arrays = {"steps": steps, "differences": differences, "noise_floor": force_noise / steps}
    return CheckResult([measurement, rounding], arrays, notes)


def finite_difference_stress(target: AuditTarget) -> CheckResult:
    """Compare the stress of a strained cell with central differences of the energy with respect to strain.

    σ = (1/V) ∂E/∂ε, ASE's definition.

    Returns:
        Arrays ``steps`` (k,), dimensionless strains; ``differences`` (k,), eV/Å³; ``stress`` and ``numerical`` (6,),
        eV/Å³, in Voigt order.

    Raises:
        CheckSkipped: For structures that are not periodic in all directions and calculators without stress.
    """
    settings = target.settings.stress
    if not target.structure.pbc.all():
        raise CheckSkipped("the structure is not periodic in all directions")
    atoms = target.rattled()
    _strain(atoms, _PRESTRAIN)
    try:
        analytic = atoms.get_stress()
    except (PropertyNotImplementedError, NotImplementedError):
        raise CheckSkipped("the calculator implements no stress") from None
    noise = energy_noise(atoms, target.generator(4))

    def energy(x: float, unit: Array) -> float:
        copy = atoms.copy()
        copy.calc = atoms.calc
        _strain(copy, x * unit)
        return float(copy.get_potential_energy())

    units = [voigt_6_to_full_3x3_stress(row) for row in np.diag([1, 1, 1, 0.5, 0.5, 0.5])]
    slopes = [central_difference(partial(energy, unit=unit), settings.steps) for unit in units]
    numerical = np.stack(slopes, axis=1) / atoms.get_volume()
    stress_noise = _NOISE_GAIN * noise / atoms.get_volume()
    name = "stress, largest difference from ΔE/VΔε"
    measurement, differences, notes = _compare(
        name, "eV/Å³", analytic, numerical, settings.steps, settings.limit, stress_noise
    )
    best = int(np.argmin(differences))
    arrays = {"steps": np.array(settings.steps), "differences": differences}
    return CheckResult([measurement], {**arrays, "stress": analytic, "numerical": numerical[best]}, notes)


def _strain(atoms: Atoms, strain: Array) -> None:
    """Apply a strain of shape (3, 3) to cell and atoms."""
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
