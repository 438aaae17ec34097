"""Calculators for the tests of labels, where spawned processes can import them: ``tests`` is on their path too."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, FileIOCalculator, all_changes

#: Å: bond lengths of frames 0, 1, 2, …
SHORTEST, STEP = 0.7, 0.01
STIFFNESS = 30.0  # eV/Å²


def make_frames(count: int) -> list[Atoms]:
    """H2 molecules that `Spring` can tell apart."""
    return [Atoms("H2", [[0.0, 0.0, 0.0], [0.0, 0.0, SHORTEST + STEP * number]]) for number in range(count)]


def expected_energy(number: int) -> float:
    """Of `Spring`, eV."""
    return 0.5 * STIFFNESS * (STEP * number) ** 2


class Spring(Calculator):
    """A harmonic bond that leaves a file in ``folder`` for every calculation, named by the frame's number.

    Args:
        folder: Where the files go; each holds the process, and the number of threads that it began with.
        fail: Frames for which it raises.
        nan: Frames whose force on atom 1 is not a number.
        die: Frames that kill the process, every time.
        die_once: Frames that kill it the first time.
        seconds: That a calculation takes.
        meet: Processes that must have begun a calculation before any of them ends.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as the base class declares it

    def __init__(
        self,
        folder: str,
        fail: Sequence[int] = (),
        nan: Sequence[int] = (),
        die: Sequence[int] = (),
        die_once: Sequence[int] = (),
        seconds: float = 0.0,
        meet: int = 1,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.fail, self.nan, self.die, self.die_once = fail, nan, die, die_once
        self.seconds, self.meet = seconds, meet

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        vector = atoms.positions[1] - atoms.positions[0]
        length = float(np.linalg.norm(vector))
        number = round((length - SHORTEST) / STEP)
        first = not any(self.folder.glob(f"{number}-*"))
        trace = self.folder / f"{number}-{uuid4().hex}"
        trace.with_suffix(".new").write_text(f"{os.getpid()} {threads_at_start()}", encoding="utf-8")
        trace.with_suffix(".new").rename(trace)  # whole, or not there
        if number in self.die or (number in self.die_once and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if number in self.fail:
            raise RuntimeError(f"frame {number} is not\nto my liking")
        time.sleep(self.seconds)
        deadline = time.monotonic() + 60
        while len(processes(self.folder)) < self.meet and time.monotonic() < deadline:
            time.sleep(0.02)
        pull = STIFFNESS * (length - SHORTEST) / length * vector
        if number in self.nan:
            pull = pull * np.nan
        self.results = {"energy": 0.5 * STIFFNESS * (length - SHORTEST) ** 2, "forces": np.array([pull, -pull])}


def threads_at_start() -> str:
    """OMP_NUM_THREADS in the environment with which this process began, before any Python ran in it."""
    environment = Path("/proc/self/environ")
    if not environment.exists():
        return os.environ.get("OMP_NUM_THREADS", "")
    entries = dict(entry.partition(b"=")[::2] for entry in environment.read_bytes().split(b"\0"))
    return entries.get(b"OMP_NUM_THREADS", b"").decode()


def calls(folder: Path) -> Counter[int]:
    """How often `Spring` calculated each frame."""
    return Counter(int(path.name.partition("-")[0]) for path in folder.iterdir() if not path.suffix)


def processes(folder: Path) -> set[int]:
    """The processes in which `Spring` calculated."""
    return {int(path.read_text(encoding="utf-8").split()[0]) for path in folder.iterdir() if not path.suffix}


class ByFile(FileIOCalculator):
    """A program that reads and writes files of fixed names where it stands."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as the base class declares it

    def __init__(self) -> None:
        program = (
            "import sys; z = float(open('in').read()); import time; time.sleep(0.05); open('out', 'w').write(str(z))"
        )
        super().__init__(command=f'{sys.executable} -c "{program}"')

    def write_input(self, atoms: Any, properties: Any = None, system_changes: Any = None) -> None:
        super().write_input(atoms, properties, system_changes)
        (Path(self.directory) / "in").write_text(str(atoms.positions[1, 2]), encoding="utf-8")

    def read_results(self) -> None:
        energy = float((Path(self.directory) / "out").read_text(encoding="utf-8"))
        self.results = {"energy": energy, "forces": np.zeros((2, 3))}


class Entropic(Calculator):
    """Forces are the derivative of the free energy; the other energy is extrapolated, as plane-wave programs do."""

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - as the base class declares it

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": -1.0, "free_energy": -2.0, "forces": np.zeros((len(atoms), 3))}


class Unmakeable(Calculator):
    """A program that is not set up."""

    def __init__(self) -> None:
        raise RuntimeError("the licence has expired")


class Deadly(Calculator):
    """A program whose library crashes when it is loaded."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
