"""Kinds of frames: functions of a start with a calculator, settings and random numbers.

Each is a generator of `Draft`, so that the frames before an error of the calculator are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from numpy.typing import NDArray

from ponita_ff.audit.dynamics import thermal_momenta
from ponita_ff.sample.geometry import Connectivity, placed, rotation_about, single_bonds_outside_rings
from ponita_ff.sample.settings import (
    BondSettings,
    ClusterScanSettings,
    ContactSettings,
    MdSettings,
    MinimumSettings,
    ModeSettings,
    TorsionSettings,
)
from ponita_ff.structure.rigid import FixRigidMotion, rigid_motions

__all__ = ["Draft", "Start", "bonds", "cluster_scan", "contacts", "md", "minimum", "modes", "relax", "torsions"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Draft:
    """A frame that has not passed the filters.

    Attributes:
        positions: Å, shape (n, 3).
        info: How it came about, e.g. ``{"temperature": 300.0}``: for the comment line of extended XYZ.
    """

    positions: Array
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Start:
    """What frames start from.

    Attributes:
        atoms: Relaxed, with a calculator.
        connectivity: Bonds that it must have.
        path: Positions during its relaxation, the last ones those of ``atoms``.
        converged: Whether the relaxation reached its limit.
    """

    atoms: Atoms
    connectivity: Connectivity
    path: Sequence[Array]
    converged: bool

    @property
    def is_molecule(self) -> bool:
        """Whether it is not periodic in any direction, and has bonds."""
        return not self.atoms.pbc.any() and len(self.connectivity.bonds) > 0

    def copy(self) -> Atoms:
        """A copy of the relaxed atoms, with the same calculator."""
        atoms = self.atoms.copy()
        atoms.calc = self.atoms.calc
        return atoms


def relax(atoms: Atoms, connectivity: Connectivity, fmax: float, steps: int) -> Start:
    """Relax a structure; it moves.

    Translation and rotation of a molecule are held (:class:`ponita_ff.FixRigidMotion`).

    Args:
        atoms: With a calculator.
        connectivity: Bonds that it must have.
        fmax: Largest force to reach, eV/Å.
        steps: After which to end in any case.
    """
    path: list[Array] = []
    if not atoms.pbc.any():
        atoms.set_constraint(FixRigidMotion())
    with BFGS(atoms, logfile=None) as optimiser:
        optimiser.attach(lambda: path.append(atoms.positions.copy()))
        converged = bool(optimiser.run(fmax=fmax, steps=steps))
    atoms.set_constraint()
    return Start(atoms, connectivity, path, converged)


def minimum(start: Start, settings: MinimumSettings, _: np.random.Generator) -> Iterator[Draft]:
    """The relaxed structure, then others evenly spaced on the path to it, of which the first is the unrelaxed one."""
    last = len(start.path) - 1
    yield Draft(start.path[last], {"relaxation_step": last, "relaxed": start.converged})
    others = np.linspace(0, last, settings.frames)[:-1].astype(int).tolist()
    for step in dict.fromkeys(others):
        if step != last:
            yield Draft(start.path[step], {"relaxation_step": step, "relaxed": False})


def md(start: Start, settings: MdSettings, generator: np.random.Generator) -> Iterator[Draft]:
    """Langevin dynamics, one trajectory for each temperature; a single atom has none."""
    if len(start.atoms) < 2:
        return
    interval = max(1, round(settings.interval / settings.timestep))
    temperatures = _temperatures(settings, generator)
    for number, temperature in enumerate(temperatures):
        atoms = start.copy()
        thermal_momenta(atoms, temperature, generator)
        dynamics = Langevin(
            atoms,
            settings.timestep * units.fs,
            temperature_K=temperature,
            friction=1 / (settings.relaxation_time * units.fs),
            rng=generator,
            fixcm=False,
        )
        dynamics.run(round(settings.equilibration / settings.timestep))
        for _ in range(number, settings.frames, len(temperatures)):
            dynamics.run(interval)
            time = dynamics.get_number_of_steps() * settings.timestep
            yield Draft(atoms.positions.copy(), {"temperature": temperature, "time_fs": time})


def modes(start: Start, settings: ModeSettings, generator: np.random.Generator) -> Iterator[Draft]:
    """Random displacements along the normal modes, of the classical harmonic amplitudes at each temperature in turn."""
    atoms = start.copy()
    if not 2 <= len(atoms) <= settings.max_atoms:
        return
    # Here, since it loads matplotlib.
    from scipy.linalg import null_space

    from ponita_ff.audit.normal_modes import hessian_by_differences

    masses = atoms.get_masses()
    weights = np.repeat(masses, 3) ** -0.5
    hessian = hessian_by_differences(atoms, settings.displacement) * np.outer(weights, weights)
    vibrations = null_space(rigid_motions(atoms, masses).T)
    stiffness, vectors = np.linalg.eigh(vibrations.T @ hessian @ vibrations)
    stiffness = np.maximum(np.abs(stiffness), _stiffness(settings.softest))
    temperatures = _temperatures(settings, generator)
    for number in range(settings.frames):
        temperature = temperatures[number % len(temperatures)]
        amplitudes = generator.normal(size=len(stiffness)) * np.sqrt(units.kB * temperature / stiffness)
        shift = ((vibrations @ vectors @ amplitudes) * weights).reshape(-1, 3)
        yield Draft(start.atoms.positions + shift, {"temperature": temperature})


def _temperatures(settings: MdSettings | ModeSettings, generator: np.random.Generator) -> list[float]:
    """The temperatures, or as many random ones of them as there are frames."""
    number = min(settings.frames, len(settings.temperatures))
    chosen = sorted(generator.choice(len(settings.temperatures), number, replace=False).tolist())
    return [settings.temperatures[index] for index in chosen]


def _stiffness(wavenumber: float) -> float:
    """Eigenvalue of a mass-weighted Hessian, eV/Å²/u, of a wavenumber in cm⁻¹."""
    return float((wavenumber * units.invcm / (units._hbar * 1e10 / np.sqrt(units._e * units._amu))) ** 2)


def torsions(start: Start, settings: TorsionSettings, generator: np.random.Generator) -> Iterator[Draft]:
    """Rotatable bonds in turn, each turned by angles from equal parts of the circle; then a short relaxation."""
    found = single_bonds_outside_rings(start.atoms, start.connectivity) if start.is_molecule else []
    if not found:
        return
    found = [found[index] for index in generator.permutation(len(found))]
    for number in range(settings.frames):
        torsion = found[number % len(found)]
        turns = len(range(number % len(found), settings.frames, len(found)))
        angle = 2 * np.pi * (number // len(found) + generator.random()) / turns
        atoms = start.copy()
        _, first, second, _ = torsion
        side = start.connectivity.side(first, second)
        origin = atoms.positions[first]
        turn = rotation_about(atoms.positions[second] - origin, angle)
        atoms.positions[side] = origin + (atoms.positions[side] - origin) @ turn.T
        if settings.steps:
            relax(atoms, start.connectivity, 0.05, settings.steps)
        degrees = float(atoms.get_dihedral(*torsion))
        yield Draft(atoms.positions.copy(), {"torsion": "-".join(map(str, torsion)), "angle": round(degrees, 2)})


def bonds(start: Start, settings: BondSettings, generator: np.random.Generator) -> Iterator[Draft]:
    """Random bonds outside rings, their lengths evenly over the range; all atoms are rattled."""
    found = start.connectivity.outside_rings() if start.is_molecule else []
    if not found:
        return
    factors = _evenly(settings.shortest, settings.longest, settings.frames, generator)
    for factor in factors:
        first, second = found[generator.integers(len(found))]
        positions = _rattled(start.atoms, settings.rattle, generator)
        axis = positions[second] - positions[first]
        positions[start.connectivity.side(first, second)] += (factor - 1.0) * axis
        yield Draft(positions, {"bond": f"{first}-{second}", "length_factor": round(float(factor), 4)})


def contacts(parts: Sequence[Start], settings: ContactSettings, generator: np.random.Generator) -> Iterator[Draft]:
    """Molecules at random orientations, the distances evenly over the logarithm of the range."""
    logarithms = _evenly(np.log(settings.nearest), np.log(settings.farthest), settings.frames, generator)
    for factor in np.exp(logarithms):
        moved = [part.atoms.copy() for part in parts]
        for atoms in moved:
            atoms.positions = _rattled(atoms, settings.rattle, generator)
        yield Draft(placed(moved, factor, generator).positions, {"contact_factor": round(float(factor), 4)})


def cluster_scan(
    start: Start, size: int, settings: ClusterScanSettings, generator: np.random.Generator
) -> Iterator[Draft]:
    """The last molecule moved to distances evenly over the logarithm of the range.

    Args:
        start: The relaxed cluster.
        size: Number of atoms of its last molecule.
        settings: Range and number.
        generator: Source of random numbers.
    """
    logarithms = _evenly(np.log(settings.nearest), np.log(settings.farthest), settings.frames, generator)
    for number, factor in enumerate(np.exp(logarithms)):
        positions = start.atoms.positions.copy()
        rest, last = positions[:-size], positions[-size:]
        gap = last[None] - rest[:, None]
        distance = np.linalg.norm(gap, axis=-1)
        nearest = np.unravel_index(np.argmin(distance), distance.shape)
        axis = last.mean(0) - rest.mean(0) if number % 2 else gap[nearest]
        last += (factor - 1.0) * distance[nearest] * axis / max(np.linalg.norm(axis), 1e-9)
        yield Draft(positions, {"distance_factor": round(float(factor), 4)})


def _evenly(low: float, high: float, number: int, generator: np.random.Generator) -> Array:
    """One random value from each of so many equal parts of a range, in random order."""
    parts = (generator.permutation(number) + generator.random(number)) / number
    return np.asarray(low + (high - low) * parts)


def _rattled(atoms: Atoms, deviation: float, generator: np.random.Generator) -> Array:
    return np.asarray(atoms.positions + deviation * generator.normal(size=(len(atoms), 3)))
