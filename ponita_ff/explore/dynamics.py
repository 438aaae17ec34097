"""Frames to label: displaced structures, and frames of a committee's dynamics with its uncertainty there."""

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

__all__ = ["DynamicsResult", "displaced_structures", "run_dynamics"]

#: 1/fs; with it, heat reaches all vibrations of a molecule within 0.1 ps.
_FRICTION = 0.01

#: Share of a trajectory that is not sampled: it begins at a labelled frame, which may be far hotter.
_EQUILIBRATION = 0.1


@dataclass
class DynamicsResult:
    """The sampled frames of a round's dynamics.

    Attributes:
        frames: The frames of all trajectories, one trajectory after the other.
        uncertainties: Uncertainty of each frame, eV/Å: largest standard deviation of an atom's force.
        times: Simulated time of each trajectory, ps.
        stopped: Number of trajectories that were stopped by their uncertainty.
    """

    frames: list[Atoms] = field(default_factory=list)
    uncertainties: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    stopped: int = 0


def displaced_structures(
    structures: Sequence[Atoms], number: int, displacement: float, generator: np.random.Generator
) -> list[Atoms]:
    """Copies of structures with random (normal) displacements of all atoms.

    Args:
        structures: Structures to copy, in turn.
        number: Number of copies.
        displacement: Root mean square displacement per atom of the last copy, Å. Those of the others increase evenly
            from a tenth of it.
        generator: Source of random numbers.
    """
    frames = []
    for index in range(number):
        atoms = structures[index % len(structures)].copy()
        amplitude = displacement * (0.1 + 0.9 * (index + 1) / number)
        atoms.positions += amplitude / np.sqrt(3) * generator.normal(size=(len(atoms), 3))
        frames.append(atoms)
    return frames


def run_dynamics(
    calculator: PonitaCalculator,
    starts: Sequence[Atoms],
    settings: ExploreSettings,
    stop_threshold: float,
    generator: np.random.Generator,
) -> DynamicsResult:
    """Langevin dynamics from each start until its time is over or the committee is too uncertain.

    The first tenth of each trajectory is sampled only where it is stopped: its start may be far hotter.

    Args:
        calculator: The committee.
        starts: First frame of each trajectory.
        settings: Temperature, times and sampling interval.
        stop_threshold: Uncertainty at which a trajectory is stopped, eV/Å, not calibrated.
        generator: Source of random numbers.
    """
    result = DynamicsResult()
    interval = max(1, round(settings.sample_interval / settings.timestep))
    steps = max(interval, round(1000 * settings.simulation_time / settings.timestep / len(starts)))
    for start in starts:
        atoms = Atoms(start.numbers, start.positions, cell=start.cell, pbc=start.pbc)
        atoms.calc = calculator
        thermal_momenta(atoms, settings.temperature, generator)
        monitor = UncertaintyMonitor(atoms, stop=stop_threshold)
        dynamics = Langevin(
            atoms,
            settings.timestep * units.fs,
            temperature_K=settings.temperature,
            friction=_FRICTION / units.fs,
            rng=generator,
            fixcm=False,
        )

        def sample(monitor: UncertaintyMonitor = monitor, atoms: Atoms = atoms, dynamics: Langevin = dynamics) -> None:
            stopped = True
            try:
                monitor()
                stopped = False
            finally:  # the frame at which a trajectory is stopped is sampled, too: it is the most uncertain one
                if stopped or dynamics.get_number_of_steps() >= _EQUILIBRATION * steps:
                    result.frames.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
                    result.uncertainties.append(monitor.history[-1])

        dynamics.attach(sample, interval=interval)
        try:
            dynamics.run(steps)
        except UncertainForces:
            result.stopped += 1
        result.times.append(dynamics.get_number_of_steps() * settings.timestep / 1000)
    return result
