"""State of an interrupted run: one file written whole or not at all, and growing files that are cut back to it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.md.md import MolecularDynamics
from numpy.typing import NDArray

from ponita_ff.files import write_atomically

__all__ = ["FileMark", "RestartError", "State", "dynamics_variables", "set_dynamics_variables"]

_FORMAT = "ponita_ff md 1"

#: Bytes at the start of ASE's trajectory files that change when frames are added: counts and where the table of frames
#: lies. A table that grows moves to the file's end and leaves the old one as it was.
_HEAD = 48


class RestartError(ValueError):
    """A run that cannot go on from its files; the message names the file and says what to do."""


@dataclass(frozen=True)
class FileMark:
    """How far a growing file was written when the state was saved.

    Attributes:
        size: Bytes.
        head: The first bytes of the file, in hexadecimal.
    """

    size: int
    head: str

    @classmethod
    def of(cls, path: Path) -> FileMark:
        """Mark of a file that nobody is writing at the moment; what it holds is on the disk afterwards."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
            head = file.read(_HEAD)
            return cls(os.fstat(file.fileno()).st_size, head.hex())

    def cut_back(self, path: Path) -> None:
        """Take away what was written after the mark.

        Raises:
            RestartError: Where the file is missing or shorter.
        """
        if not path.is_file() or path.stat().st_size < self.size:
            raise RestartError(f"{path} is missing or was shortened: the run cannot go on; give another folder (--out)")
        with path.open("r+b") as file:
            file.write(bytes.fromhex(self.head))
            file.truncate(self.size)
            os.fsync(file.fileno())


@dataclass
class State:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        identity: What must be the same when it goes on: settings and hashes of the potentials.
        numbers: Atomic numbers, shape (n,).
        start: Positions at the start of the run, Å, shape (n, 3).
        start_cell: Cell at the start, Å, shape (3, 3).
        step: Steps done.
        positions: Å, shape (n, 3).
        momenta: ASE's units, shape (n, 3).
        cell: Å, shape (3, 3).
        generator: State of the random-number generator.
        variables: Of thermostat and barostat, by name.
        marks: Of the growing files, by name.
    """

    identity: dict[str, Any]
    numbers: NDArray[np.int64]
    start: NDArray[np.float64]
    start_cell: NDArray[np.float64]
    step: int
    positions: NDArray[np.float64]
    momenta: NDArray[np.float64]
    cell: NDArray[np.float64]
    generator: dict[str, Any]
    variables: dict[str, NDArray[np.float64]]
    marks: dict[str, FileMark]

    _ARRAYS = ("numbers", "start", "start_cell", "positions", "momenta", "cell")

    def save(self, path: Path) -> None:
        """Write whole or not at all.

        Raises:
            OSError: Naming the file and the reason; the state before is untouched.
        """
        facts = {
            "format": _FORMAT,
            "identity": self.identity,
            "step": self.step,
            "generator": self.generator,
            "marks": {name: [mark.size, mark.head] for name, mark in self.marks.items()},
        }
        arrays = {name: getattr(self, name) for name in self._ARRAYS}
        arrays |= {f"variable:{name}": value for name, value in self.variables.items()}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, facts=np.array(json.dumps(facts)), **arrays)

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read such a file.

        Raises:
            RestartError: If the file is not a saved state.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                facts = json.loads(str(file["facts"]))
                if facts["format"] != _FORMAT:
                    raise RestartError(
                        f"{path} was written by another version of ponita_ff: give another folder (--out)"
                    )
                variables = {key.partition(":")[2]: file[key] for key in file.files if key.startswith("variable:")}
                arrays = {name: file[name] for name in cls._ARRAYS}
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            if isinstance(error, RestartError):
                raise
            raise RestartError(f"{path} is not the state of a run ({error}): give another folder (--out)") from None
        marks = {name: FileMark(*mark) for name, mark in facts["marks"].items()}
        return cls(
            identity=facts["identity"],
            step=facts["step"],
            generator=facts["generator"],
            variables=variables,
            marks=marks,
            **arrays,
        )


def _owners(dynamics: MolecularDynamics) -> Iterator[tuple[str, Any]]:
    """The integrator, and its thermostat and barostat where these are objects of their own."""
    yield "", dynamics
    for name, value in vars(dynamics).items():
        if type(value).__module__.startswith("ase.md."):
            yield f"{name}.", value


def dynamics_variables(dynamics: MolecularDynamics) -> dict[str, NDArray[np.float64]]:
    """All real numbers and arrays of them that an integrator of ASE holds, by name.

    ASE offers no state of thermostats; constants among these (time step, masses) do no harm.
    """
    found = {}
    for prefix, owner in _owners(dynamics):
        for name, value in vars(owner).items():
            if isinstance(value, float | np.floating) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
                found[prefix + name] = np.array(value, dtype=np.float64)
    return found


def set_dynamics_variables(dynamics: MolecularDynamics, variables: dict[str, NDArray[np.float64]]) -> None:
    """Set what :func:`dynamics_variables` found in an integrator of the same kind."""
    for prefix, owner in _owners(dynamics):
        for name in list(vars(owner)):
            if prefix + name in variables:
                value = variables[prefix + name]
                setattr(owner, name, value.copy() if value.ndim else float(value))
