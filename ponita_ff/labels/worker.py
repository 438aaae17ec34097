"""What runs in a worker, which may be another process or machine: the calculation of the labels of some frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from ase import Atoms

from ponita_ff.data.frames import DataError, Frame, stress_matrix
from ponita_ff.labels.methods import Method
from ponita_ff.labels.results import Labels

__all__ = [
    "Failure",
    "FrameToLabel",
    "Outcome",
    "Task",
    "Work",
    "check_setup",
    "label",
    "one_line",
    "run",
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

    def parts(self) -> Sequence[Self]:
        """The smaller tasks that it consists of; itself alone if it cannot be divided."""
        ...


def run(task: Work[Result]) -> Result | Failure:
    """Run a task: what is submitted to executors."""
    return task.run()


@dataclass(frozen=True)
class FrameToLabel:
    """A frame to label.

    Attributes:
        number: Index in the input, from 0.
        source: Name of the frame for error messages, e.g. ``"frames.xyz, frame 7"``.
        atoms: Elements, positions (Å), cell (Å) and periodicity.
    """

    number: int
    source: str
    atoms: Atoms


@dataclass(frozen=True)
class Task:
    """A batch of frames to label: one, or several for methods that calculate many at once.

    Attributes:
        frames: The frames.
        method: The method of the labels.
        retries: How often it was submitted again because a worker process died.
    """

    frames: tuple[FrameToLabel, ...]
    method: Method
    retries: int = 0

    @property
    def source(self) -> str:
        """Name for error messages."""
        first, *others = self.frames
        return f"{first.source} and {len(others)} others" if others else first.source

    def retry(self) -> Task:
        """The same task for another attempt."""
        return replace(self, retries=self.retries + 1)

    def parts(self) -> Sequence[Task]:
        """A task for each frame."""
        return [replace(self, frames=(frame,)) for frame in self.frames]

    def run(self) -> tuple[Outcome, ...]:
        """`label`."""
        return label(self)


@dataclass(frozen=True)
class Failure:
    """The reason why a task has no result, in one line."""

    reason: str


Outcome = Labels | Failure


def label(task: Task) -> tuple[Outcome, ...]:
    """Calculate the labels of each frame; every error is returned as the `Failure` of its frame, never raised."""
    # An invalid geometry is refused before a calculation.
    refused = [_refusal(frame) for frame in task.frames]
    valid = [frame for frame, refusal in zip(task.frames, refused, strict=True) if refusal is None]
    calculated = iter(_calculate(task.method, valid))
    return tuple(next(calculated) if refusal is None else refusal for refusal in refused)


def check_setup(method: Method) -> str | Failure:
    """Name and version of the program, or why it cannot be loaded and set up in this process."""
    try:
        method.calculator()
        return method.program()
    except (Exception, SystemExit) as error:
        return Failure(one_line(f"{type(error).__name__}: {error}"))


def _calculate(method: Method, frames: Sequence[FrameToLabel]) -> list[Outcome]:
    """Outcomes of valid frames. If a batch raises an error, its frames are calculated one by one."""
    try:
        found = method.compute([frame.atoms for frame in frames]) if frames else []
        labels = list(zip(frames, found, strict=True))
    except (Exception, SystemExit) as error:  # calculators may raise anything
        if len(frames) > 1:
            return [outcome for frame in frames for outcome in _calculate(method, [frame])]
        return [Failure(one_line(f"{frames[0].source}: {type(error).__name__}: {error}"))]
    return [_validated(frame, each) for frame, each in labels]


def _refusal(frame: FrameToLabel) -> Failure | None:
    """Why a geometry is invalid."""
    try:
        _frame(frame, 0.0, np.zeros((len(frame.atoms), 3)), None)
    except DataError as error:  # its message names the frame
        return Failure(one_line(str(error)))
    return None


def _validated(frame: FrameToLabel, labels: Labels) -> Outcome:
    """Labels with their final types and shapes; a failure where they are not finite or of other shapes."""
    try:
        stress = None if labels.stress is None else stress_matrix(labels.stress, frame.source)
        valid = _frame(frame, labels.energy, labels.forces, stress)
        energy_spread, forces_spread = _spreads(frame, labels)
    except DataError as error:
        return Failure(one_line(str(error)))
    return Labels(valid.energy, valid.forces, valid.stress, labels.program, energy_spread, forces_spread)


def _spreads(frame: FrameToLabel, labels: Labels) -> tuple[float | None, Any]:
    if labels.energy_spread is None or labels.forces_spread is None:
        return None, None
    energy, forces = float(labels.energy_spread), np.asarray(labels.forces_spread, dtype=np.float64)
    if forces.shape != (len(frame.atoms),) or not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise DataError(f"{frame.source}: the spreads over the ensemble are not one finite number for each atom")
    return energy, forces


def _frame(frame: FrameToLabel, energy: Any, forces: Any, stress: Any) -> Frame:
    """The labelled frame, validated as the readers of this package do it."""
    atoms = frame.atoms
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    return Frame(atoms.numbers, atoms.positions, cell, atoms.pbc, energy, forces, stress, frame.source)


def one_line(text: str) -> str:
    """A text without line breaks, its end left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON_LENGTH else f"{line[: _MAX_REASON_LENGTH - 1]}…"
