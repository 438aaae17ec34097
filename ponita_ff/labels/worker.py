"""One frame's labels, in whatever process or machine the frame was sent to."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, FileIOCalculator
from ase.calculators.genericfileio import GenericFileIOCalculator
from numpy.typing import NDArray

from ponita_ff.data.frames import DataError, Frame, stress_matrix
from ponita_ff.labels.methods import Method

__all__ = ["Failure", "Labels", "Outcome", "Task", "introduce", "label"]

_LONGEST_REASON = 500


@dataclass(frozen=True)
class Task:
    """A frame to label.

    Attributes:
        number: Its place in the input, from 0.
        source: What errors call it, e.g. ``"frames.xyz, frame 7"``.
        atoms: Elements, positions, cell and periodicity.
        method: What makes the labels.
        deaths: Processes that have died of it so far.
    """

    number: int
    source: str
    atoms: Atoms
    method: Method
    deaths: int = 0

    def died(self) -> Task:
        """The same task once more. It differs from the first, which Dask would otherwise take for done."""
        return replace(self, deaths=self.deaths + 1)


@dataclass(frozen=True, eq=False)
class Labels:
    """What was calculated.

    Attributes:
        energy: eV; the one of which the forces are the derivative, where a calculator has several.
        forces: Shape (n, 3), eV/Å.
        stress: Shape (3, 3), eV/Å³ with ASE's sign, or None.
        program: Name and version of what calculated it.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None
    program: str


@dataclass(frozen=True)
class Failure:
    """Why a frame has no labels, in one line."""

    reason: str


Outcome = Labels | Failure


def label(task: Task) -> Outcome:
    """Calculate the labels of a frame. Whatever goes wrong is the outcome, never an exception."""
    try:
        _frame(task, 0.0, np.zeros((len(task.atoms), 3)), None)  # refuses geometries that no program can do
        with ExitStack() as stack:
            calculator = task.method.calculator()
            _give_own_folder(calculator, stack)
            atoms = task.atoms.copy()
            atoms.calc = calculator
            return _calculate(task, atoms)
    except DataError as error:  # names the frame itself
        return Failure(_one_line(str(error)))
    except (Exception, SystemExit) as error:  # programs raise anything
        return Failure(_one_line(f"{task.source}: {type(error).__name__}: {error}"))


def introduce(method: Method) -> str | Failure:
    """Name and version of the program, if it can be loaded and set up here: asked before any frame is sent."""
    try:
        method.calculator()
        return method.program()
    except (Exception, SystemExit) as error:
        return Failure(_one_line(f"{type(error).__name__}: {error}"))


def _calculate(task: Task, atoms: Atoms) -> Labels:
    calculator: Any = atoms.calc
    forces = atoms.get_forces()  # first: a calculator that is asked for the energy alone may give no more
    results = getattr(calculator, "results", {})
    energy = results["free_energy"] if "free_energy" in results else atoms.get_potential_energy()
    periodic = bool(atoms.pbc.all()) and "stress" in calculator.implemented_properties
    stress = stress_matrix(atoms.get_stress(), task.source) if periodic else None
    frame = _frame(task, energy, forces, stress)
    return Labels(frame.energy, frame.forces, frame.stress, task.method.program())


def _frame(task: Task, energy: Any, forces: Any, stress: Any) -> Frame:
    """The labelled frame as this package's readers see it, so that they will take what is written."""
    atoms = task.atoms
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    return Frame(atoms.numbers, atoms.positions, cell, atoms.pbc, energy, forces, stress, task.source)


def _give_own_folder(calculator: BaseCalculator, stack: ExitStack) -> None:
    """Programs that talk through files in the current folder would read each other's."""
    if not isinstance(calculator, FileIOCalculator | GenericFileIOCalculator):
        return
    if Path(calculator.directory) == Path():
        calculator.directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="label-"))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 1]}…"
