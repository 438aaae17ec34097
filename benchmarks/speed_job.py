"""What the speed benchmark and its worker processes agree on: the job, and the task that is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from speed_systems import SEED

__all__ = ["Job", "Task", "evaluation_task"]


@dataclass(frozen=True)
class Job:
    """What a worker is to do.

    Attributes:
        task: ``evaluate``, ``md``, ``train``, ``batch`` (many structures at once), ``loop`` (one after the other),
            ``product`` (matrix products) or ``idle``.
        form: ``shipped``, ``default`` or ``published`` (the two forms at the published settings), or a peer's name.
        backend: Backend of the calculator or of training.
        system: Name of the system; see `speed_systems.make_system`.
        quick: Whether to use tiny networks and short runs.
        memory_gib: Largest address space of the process, GiB; None for no limit.
    """

    task: str
    form: str = ""
    backend: str = ""
    system: str = ""
    quick: bool = False
    memory_gib: float | None = None

    def pick(self, sizes: tuple[int, int]) -> int:
        """Return the size for a full run or that for a quick one."""
        return sizes[self.quick]


@dataclass
class Task:
    """Something that is run repeatedly and timed.

    Attributes:
        run: Runs it once.
        units: Number of evaluations, steps or structures in one run.
        facts: Facts for the results.
        network_seconds: Returns the seconds spent in the network so far; None if this is not measured.
    """

    run: Callable[[], None]
    units: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    network_seconds: Callable[[], float] | None = None


def evaluation_task(calculator: Calculator, atoms: Atoms, stress: bool, facts: dict[str, Any]) -> Task:
    """Return the task of one evaluation of energy and forces, with stress if the structure is periodic.

    Args:
        calculator: Any ASE calculator.
        atoms: The structure; its positions change a little before every evaluation.
        stress: Whether the calculator provides the stress.
        facts: Facts for the results.
    """
    # Stress first: one pass then gives everything, as in simulations that need the stress.
    wanted = ("stress", "forces", "energy") if stress and atoms.pbc.all() else ("forces", "energy")
    displacement = 1e-4 * np.random.default_rng(SEED).normal(size=atoms.positions.shape)
    start, runs = atoms.positions.copy(), [0]

    def run() -> None:
        runs[0] += 1
        atoms.positions[:] = start + displacement * (runs[0] % 7)
        for name in wanted:
            calculator.get_property(name, atoms)

    return Task(run, facts={"atoms": len(atoms), **facts})
