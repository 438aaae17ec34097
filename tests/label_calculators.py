"""Calculators for the tests of labels, where spawned processes can import them: ``tests`` is on their path too."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, FileIOCalculator, all_changes

from ponita_ff.labels.methods import Method
from ponita_ff.labels.results import Labels, of_ensemble

#: Å: bond lengths of frames 0, 1, 2, …
SHORTEST, STEP = 0.7, 0.01
STIFFNESS = 30.0  # eV/Å²


def make_frames(count: int) -> list[Atoms]:
    """H2 molecules that `Spring` can tell apart."""
    return [Atoms("H2", [[0.0, 0.0, 0.0], [0.0, 0.0, SHORTEST + STEP * number]]) for number in range(count)]


def make_chains(sizes: Sequence[int]) -> list[Atoms]:
    """Chains of hydrogen atoms; the first bond has the length of the frame's number, all others that of 0."""
    chains = []
    for number, size in enumerate(sizes):
        heights = SHORTEST * np.arange(size)
        heights[1:] += STEP * number
        chains.append(Atoms("H" * size, [[0.0, 0.0, height] for height in heights]))
    return chains


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


@dataclass(frozen=True)
class Morse(Method):
    """An ensemble of Morse potentials between all pairs of atoms; it fills smaller frames up, as networks do.

    Attributes:
        folder: Where a file for every calculation of a frame goes; it holds the process and the name of the batch.
        fail: Frames for which it raises; it does so before any of the batch is calculated.
        nan: Frames whose forces are not numbers.
        nan_spread: Frames whose spread is not a number.
        die: Frames that kill the process.
        weights: Name of the parameters, of which the hash is made.
    """

    batch_atoms = 20
    ensemble = True

    name: str = "morse"
    charge: int | None = 0
    multiplicity: int | None = 1
    folder: str = ""
    fail: tuple[int, ...] = ()
    nan: tuple[int, ...] = ()
    nan_spread: tuple[int, ...] = ()
    die: tuple[int, ...] = ()
    weights: str = "public"

    def calculator(self) -> Calculator:
        return Spring(self.folder)  # only made, to check the set-up

    def program(self) -> str:
        return "morse 1.0"

    def weights_sha256(self) -> tuple[str, ...]:
        return (self.weights * 9,)

    def check(self, frames: Iterable[tuple[str, Atoms]]) -> None:
        """All frames can be calculated."""

    def compute(self, frames: Sequence[Atoms]) -> list[Labels]:
        batch = uuid4().hex
        numbers = [round((atoms.positions[1, 2] - SHORTEST) / STEP) for atoms in frames]
        for number in numbers:
            (Path(self.folder) / f"{number}-{uuid4().hex}").write_text(f"{os.getpid()} {batch}", encoding="utf-8")
        if set(numbers) & set(self.die):
            os.kill(os.getpid(), signal.SIGKILL)
        if set(numbers) & set(self.fail):
            raise RuntimeError(f"frames {numbers} are not to my liking")
        energies, forces = self._members(frames)
        found = []
        for index, (number, atoms) in enumerate(zip(numbers, frames, strict=True)):
            own = forces[:, index, : len(atoms)]
            own = own * np.nan if number in self.nan else own
            labels = of_ensemble(energies[:, index], own, self.program())
            if number in self.nan_spread and labels.forces_spread is not None:
                labels.forces_spread[0] = np.nan
            found.append(labels)
        return found

    @staticmethod
    def _members(frames: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
        """Energies, shape (members, b), and forces, shape (members, b, n, 3), with padding."""
        size = max(map(len, frames))
        positions = np.zeros((len(frames), size, 3))
        real = np.zeros((len(frames), size), dtype=bool)
        for index, atoms in enumerate(frames):
            positions[index, : len(atoms)], real[index, : len(atoms)] = atoms.positions, True
        pairs = real[:, :, None] & real[:, None, :] & ~np.eye(size, dtype=bool)
        vectors = positions[:, None, :] - positions[:, :, None]
        lengths = np.where(pairs, np.linalg.norm(vectors, axis=-1), 1.0)
        depth, steepness, length = (np.array(one)[:, None, None, None] for one in MORSE)
        decay = np.exp(-steepness * (lengths - length))
        energies = 0.5 * (depth * ((1 - decay) ** 2 - 1) * pairs).sum((2, 3))
        pull = 2 * depth * steepness * (1 - decay) * decay * pairs / lengths
        return energies, (pull[..., None] * vectors).sum(3)


#: Of the members of `Morse`: depth in eV, steepness in 1/Å, length in Å.
MORSE = ((4.0, 4.2, 4.5), (1.9, 2.0, 2.2), (0.74, 0.75, 0.73))


def batches(folder: Path) -> list[list[int]]:
    """The frames of each batch of `Morse`, those of one batch in order."""
    found: dict[str, list[int]] = {}
    for path in folder.iterdir():
        found.setdefault(path.read_text(encoding="utf-8").split()[1], []).append(int(path.name.partition("-")[0]))
    return sorted(map(sorted, found.values()))


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
