"""What runs in a worker, which may be another process or machine: the calculation of one frame's labels."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, FileIOCalculator
from ase.calculators.genericfileio import GenericFileIOCalculator
from numpy.typing import NDArray

from ponita_ff.data.frames import DataError, Frame, stress_matrix
from ponita_ff.labels.methods import Method

__all__ = [
    "Failure",
    "Labels",
    "Outcome",
    "Task",
    "Work",
    "check_setup",
    "label",
    "one_line",
    "run",
    "set_temporary_folder",
]

Result = TypeVar("Result")
Done = TypeVar("Done", covariant=True)

_MAX_REASON_LENGTH = 500


class Work(Protocol[Done]):
    """A task for a worker; it can be pickled."""

    @property
    def source(self) -> str:
        """Name of the task for error messages, e.g. ``"frames.xyz, frame 7"``."""
        ...

    def run(self) -> Done | Failure:
        """Do it, in the worker; every error is returned, never raised."""
        ...

    def retry(self) -> Self:
        """The same task for another attempt. It must differ, since Dask would return the first outcome otherwise."""
        ...


def run(task: Work[Result]) -> Result | Failure:
    """Run a task: what is submitted to executors."""
    return task.run()


@dataclass(frozen=True)
class Task:
    """A frame to label.

    Attributes:
        number: Index in the input, from 0.
        source: Name of the frame for error messages, e.g. ``"frames.xyz, frame 7"``.
        atoms: Elements, positions (Å), cell (Å) and periodicity.
        method: The method of the labels.
        retries: How often it was submitted again because a worker process died.
    """

    number: int
    source: str
    atoms: Atoms
    method: Method
    retries: int = 0

    def retry(self) -> Task:
        """The same task for another attempt."""
        return replace(self, retries=self.retries + 1)

    def run(self) -> Outcome:
        """`label`."""
        return label(self)


@dataclass(frozen=True, eq=False)
class Labels:
    """Energy, forces and stress of a frame.

    Attributes:
        energy: eV; the free energy if the calculator has one, since forces are its negative gradient.
        forces: Shape (n, 3), eV/Å.
        stress: Shape (3, 3), eV/Å³ with ASE's sign, or None.
        program: Name and version of the program that calculated them.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None
    program: str


@dataclass(frozen=True)
class Failure:
    """The reason why a task has no result, in one line."""

    reason: str


Outcome = Labels | Failure


def label(task: Task) -> Outcome:
    """Calculate the labels of a frame; every error is returned as a `Failure`, never raised."""
    try:
        _frame(task, 0.0, np.zeros((len(task.atoms), 3)), None)  # raises DataError for an invalid geometry
        with ExitStack() as stack:
            calculator = task.method.calculator()
            set_temporary_folder(calculator, stack)
            atoms = task.atoms.copy()
            atoms.calc = calculator
            return _calculate(task, atoms)
    except DataError as error:  # its message names the frame
        return Failure(one_line(str(error)))
    except (Exception, SystemExit) as error:  # calculators may raise anything
        return Failure(one_line(f"{task.source}: {type(error).__name__}: {error}"))


def check_setup(method: Method) -> str | Failure:
    """Name and version of the program, or why it cannot be loaded and set up in this process."""
    try:
        method.calculator()
        return method.program()
    except (Exception, SystemExit) as error:
        return Failure(one_line(f"{type(error).__name__}: {error}"))


def _calculate(task: Task, atoms: Atoms) -> Labels:
    calculator: Any = atoms.calc
    forces = atoms.get_forces()  # before the energy: some calculators skip the forces otherwise
    results = getattr(calculator, "results", {})
    energy = results["free_energy"] if "free_energy" in results else atoms.get_potential_energy()
    periodic = bool(atoms.pbc.all()) and "stress" in calculator.implemented_properties
    stress = stress_matrix(atoms.get_stress(), task.source) if periodic else None
    frame = _frame(task, energy, forces, stress)
    return Labels(frame.energy, frame.forces, frame.stress, task.method.program())


def _frame(task: Task, energy: Any, forces: Any, stress: Any) -> Frame:
    """The labelled frame, validated as the readers of this package do it."""
    atoms = task.atoms
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    return Frame(atoms.numbers, atoms.positions, cell, atoms.pbc, energy, forces, stress, task.source)


def set_temporary_folder(calculator: BaseCalculator, stack: ExitStack) -> None:
    """Programs that exchange files in the current folder would overwrite the files of each other."""
    if not isinstance(calculator, FileIOCalculator | GenericFileIOCalculator):
        return
    if Path(calculator.directory) == Path():
        calculator.directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="label-"))


def one_line(text: str) -> str:
    """A text without line breaks, its end left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON_LENGTH else f"{line[: _MAX_REASON_LENGTH - 1]}…"
