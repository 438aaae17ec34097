"""Where a committee's dynamics go, and how much its members differ there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin

from ponita_ff.audit.dynamics import thermal_momenta
from ponita_ff.calculator import PonitaCalculator
from ponita_ff.explore.settings import ExploreSettings
from ponita_ff.uncertainty import UncertainForces, UncertaintyMonitor

__all__ = ["Walk", "displaced", "walk"]

#: 1/fs; heat reaches every vibration of a molecule within a tenth of a picosecond.
_FRICTION = 0.01


@dataclass
class Walk:
    """A round's dynamics.

    Attributes:
        frames: That were looked at.
        spread: Of each, eV/Å: the largest standard deviation of an atom's force.
        ended: Picoseconds that each walker got before it left for nonsense, or its whole time.
        stopped: How many did.
    """

    frames: list[Atoms] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    stopped: int = 0


def displaced(structures: Sequence[Atoms], number: int, size: float, generator: np.random.Generator) -> list[Atoms]:
    """Copies with atoms displaced at random, evenly from a tenth of ``size`` (Å, root mean square) to all of it."""
    frames = []
    for index in range(number):
        atoms = structures[index % len(structures)].copy()
        amplitude = size * (0.1 + 0.9 * (index + 1) / number)
        atoms.positions += amplitude / np.sqrt(3) * generator.normal(size=(len(atoms), 3))
        frames.append(atoms)
    return frames


def walk(
    calculator: PonitaCalculator, starts: Sequence[Atoms], settings: ExploreSettings, generator: np.random.Generator
) -> Walk:
    """Langevin dynamics from each start, looked at every few steps, until its time is over or the committee is lost."""
    found = Walk()
    every = max(1, round(settings.every / settings.timestep))
    steps = max(every, round(1000 * settings.picoseconds / settings.timestep / len(starts)))
    for start in starts:
        atoms = Atoms(start.numbers, start.positions, cell=start.cell, pbc=start.pbc)
        atoms.calc = calculator
        thermal_momenta(atoms, settings.temperature, generator)
        monitor = UncertaintyMonitor(atoms, stop=settings.stop)
        dynamics = Langevin(
            atoms,
            settings.timestep * units.fs,
            temperature_K=settings.temperature,
            friction=_FRICTION / units.fs,
            rng=generator,
            fixcm=False,
        )

        def look(monitor: UncertaintyMonitor = monitor, atoms: Atoms = atoms) -> None:
            try:
                monitor()
            finally:  # where it stops is worth a label most of all
                found.frames.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
                found.spread.append(monitor.history[-1])

        dynamics.attach(look, interval=every)
        try:
            dynamics.run(steps)
        except UncertainForces:
            found.stopped += 1
        found.ended.append(dynamics.get_number_of_steps() * settings.timestep / 1000)
    return found
