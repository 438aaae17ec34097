"""Labelled configurations and sequences of them.

A dataset is any ``Sequence[Frame]``. Frames are always in eV and Å: readers convert, and refuse a file of unknown
units.

`Frame` is the one schema of a labelled frame: its constructor validates types, shapes and values. Readers pass what
they find, unconverted, to `Frame.in_units`.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import logging
import operator
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex, overload

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import get_distances
from numpy.typing import NDArray

from ponita_ff.units import Units

__all__ = [
    "DataError",
    "Frame",
    "FrameSequence",
    "InMemoryFrames",
    "JoinedFrames",
    "Subset",
    "check_plausible",
    "file_sha256",
    "files_sha256",
    "frame_sizes",
]

_LOG = logging.getLogger(__name__)

_MAX_ATOMS_FOR_OVERLAP_CHECK = 200
_MIN_DISTANCE = 0.01  # Å

#: Largest magnitude of a number in a frame: eV per atom, eV/Å, eV/Å³, Å. The total energy of the heaviest atom is
#: 1.5e6 eV; two of its nuclei 0.05 Å apart, bare, repel each other with 8e7 eV/Å; 1e8 eV/Å³ is 600 times the pressure
#: in the Sun; and float64 rounds positions of more than 1 cm to 1e-8 Å. What is beyond is damage, or in another unit.
_MAX_MAGNITUDE = 1e8

_MAX_INTEGER = 2**53  # beyond it, floating-point numbers are not exact

#: A stress is symmetric to numerical noise: this part of its largest component, and this many eV/Å³ (16 MPa).
_STRESS_ASYMMETRY = 0.01, 1e-4


class DataError(ValueError):
    """Data that cannot be used; the message names the file and frame and gives the reason."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One configuration with its energy and forces.

    Attributes:
        numbers: Atomic numbers, shape (n,), int64.
        positions: Shape (n, 3), float64, Å.
        cell: Shape (3, 3), float64, Å, one vector per row; zeros without periodicity.
        pbc: Shape (3,), bool.
        energy: Total energy of the configuration, eV.
        forces: Shape (n, 3), float64, eV/Å.
        stress: Shape (3, 3), float64, eV/Å³ with ASE's sign, or None.
        source: Origin of the frame for error messages, e.g. ``"file.xyz, frame 17"``.

    Raises:
        DataError: See `validate`, which the constructor calls.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None = None
    source: str = "unnamed frame"

    def __post_init__(self) -> None:
        self._coerce()
        self.validate()

    @classmethod
    def in_units(
        cls,
        units: Units,
        *,
        numbers: Any,
        positions: Any,
        cell: Any,
        pbc: Any,
        energy: Any,
        forces: Any,
        stress: Any = None,
        source: str,
    ) -> Frame:
        """A frame from values in ``units``, as a file holds them: any numbers or arrays.

        Raises:
            DataError: As the constructor.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
            return cls(
                numbers=numbers,
                positions=_as_real("positions", positions, source) * units.length_factor,
                cell=_as_real("cell", cell, source) * units.length_factor,
                pbc=pbc,
                energy=scalar_energy(energy, source) * units.energy_factor,
                forces=_as_real("forces", forces, source) * units.force_factor,
                stress=None if stress is None else _as_real("stress", stress, source) * units.stress_factor,
                source=source,
            )

    def _coerce(self) -> None:
        """Convert every field to its dtype; a frozen dataclass needs ``object.__setattr__``."""
        stress = None if self.stress is None else _as_real("stress", self.stress, self.source)
        fields: dict[str, Any] = {
            "numbers": as_integers("atomic numbers", self.numbers, self.source),
            "positions": _as_real("positions", self.positions, self.source),
            "cell": _as_real("cell", self.cell, self.source),
            "pbc": as_flags("pbc", self.pbc, self.source),
            "energy": scalar_energy(self.energy, self.source),
            "forces": _as_real("forces", self.forces, self.source),
            "stress": stress,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def validate(self) -> None:
        """Check shapes, magnitudes, elements, cell, stress and distances.

        Raises:
            DataError: No atoms; a wrong shape; NaN, infinity or a number beyond any physical magnitude (the message
                names the atom); an atomic number outside 1..118; a periodic direction without a cell vector, or with
                one of less than 0.01 Å; a stress that is not symmetric; two atoms at the same place (checked without
                periodic images, for at most 200 atoms).
        """
        self._check_shapes()
        self._check_magnitudes()
        if self.numbers.min() < 1 or self.numbers.max() > 118:
            i = int(np.flatnonzero((self.numbers < 1) | (self.numbers > 118))[0])
            self._fail(f"atom {i} has atomic number {self.numbers[i]}, not in 1..118")
        self._check_cell()
        if self.stress is not None:
            check_symmetric(self.stress, self.source)
        self._check_overlap()

    def _fail(self, what: str) -> NoReturn:
        raise DataError(f"{self.source}: {what}")

    def _check_shapes(self) -> None:
        n = self.numbers.shape[0] if self.numbers.ndim == 1 else -1
        if n == 0:
            self._fail("the frame has no atoms")
        expected = {"positions": (n, 3), "forces": (n, 3), "cell": (3, 3), "pbc": (3,)}
        if n < 0:
            self._fail(f"atomic numbers have shape {self.numbers.shape}, expected (n,)")
        if self.stress is not None:
            expected["stress"] = (3, 3)
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                self._fail(f"{name} has shape {found}, expected {shape} for {n} atoms")

    def _check_magnitudes(self) -> None:
        # "Not at most the limit" is true of NaN, too.
        if not abs(self.energy) <= _MAX_MAGNITUDE * len(self.numbers):
            self._fail(f"the energy is {self.energy}{_hint(self.energy, 'eV')}")
        for name, unit in (("positions", "Å"), ("forces", "eV/Å")):
            value = getattr(self, name)
            if not np.abs(value).max() <= _MAX_MAGNITUDE:
                i = int(np.flatnonzero(~(np.abs(value) <= _MAX_MAGNITUDE).all(axis=1))[0])
                self._fail(f"{name} of atom {i} are {value[i].tolist()}{_hint(value[i], unit)}")
        for name, unit in (("cell", "Å"), ("stress", "eV/Å³")):
            value = getattr(self, name)
            if value is not None and not np.abs(value).max() <= _MAX_MAGNITUDE:
                if not np.isfinite(value).all():
                    self._fail(f"the {name} holds NaN or infinity: {value.tolist()}")
                self._fail(f"the {name} is {value.tolist()}{_hint(value, unit)}")

    def _check_cell(self) -> None:
        vectors = self.cell[self.pbc]
        if not len(vectors):
            return
        if np.linalg.matrix_rank(vectors) < len(vectors):
            self._fail(
                f"pbc is {self.pbc.tolist()} but the cell {self.cell.tolist()} has no "
                "independent vector along each periodic direction"
            )
        if np.linalg.norm(vectors, axis=1).min() < _MIN_DISTANCE:
            self._fail(f"a vector of the cell {self.cell.tolist()} is shorter than {_MIN_DISTANCE} Å")

    def _check_overlap(self) -> None:
        n = len(self.numbers)
        if not 2 <= n <= _MAX_ATOMS_FOR_OVERLAP_CHECK:
            return
        delta = self.positions[:, None, :] - self.positions[None, :, :]
        squared = np.einsum("ijk,ijk->ij", delta, delta)
        np.fill_diagonal(squared, np.inf)
        if squared.min() < _MIN_DISTANCE**2:
            i, j = np.unravel_index(int(squared.argmin()), squared.shape)
            distance = float(np.sqrt(squared[i, j]))
            self._fail(f"atoms {i} and {j} are at the same place ({distance:.2g} Å apart)")

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    def to_atoms(self) -> Atoms:
        """The frame as ASE atoms with the labels in a `SinglePointCalculator`."""
        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc)
        results: dict[str, Any] = {"energy": self.energy, "forces": self.forces.copy()}
        if self.stress is not None:
            xx, yy, zz = np.diagonal(self.stress)
            yz, xz, xy = self.stress[1, 2], self.stress[0, 2], self.stress[0, 1]
            results["stress"] = np.array([xx, yy, zz, yz, xz, xy])
        atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms


def _hint(value: Any, unit: str) -> str:
    """The end of a message on a number that is too large."""
    if not np.isfinite(value).all():
        return ""
    return f" {unit}, more than any physical one ({_MAX_MAGNITUDE:g}); are the units right?"


def _as_array(name: str, value: Any, source: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:  # ragged lists, and whatever an object's own conversion raises
        raise DataError(f"{source}: {name} are not an array of numbers ({error})") from error


def check_real(name: str, array: NDArray[Any], source: str) -> None:
    """Check that an array is of real numbers: a conversion would take the real part of a complex one, and 1 for True.

    Raises:
        DataError: Complex numbers, booleans, text or objects.
    """
    if array.dtype.kind not in "fiu":
        raise DataError(f"{source}: {name} are not an array of numbers: expected real numbers, found {_content(array)}")


def _content(array: NDArray[Any]) -> str:
    kinds = {"c": "complex numbers", "b": "booleans (T or F)", "U": "text", "S": "text", "O": "objects"}
    what = kinds.get(array.dtype.kind, str(array.dtype))
    return f"{what}, {array.item()!r:.80}" if array.size == 1 else what


def _as_real(name: str, value: Any, source: str) -> NDArray[np.float64]:
    array = _as_array(name, value, source)
    check_real(name, array, source)
    return array.astype(np.float64, copy=False)


def as_integers(name: str, value: Any, source: str) -> NDArray[np.int64]:
    """Whole numbers as int64; floating-point numbers that are whole are taken.

    Raises:
        DataError: Not real numbers, or not whole ones.
    """
    array = _as_array(name, value, source)
    check_real(name, array, source)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise DataError(f"{source}: {name} are not whole numbers")
    if array.size and not (array.min() >= -_MAX_INTEGER and array.max() <= _MAX_INTEGER):
        raise DataError(f"{source}: {name} are too large")
    return array.astype(np.int64, copy=False)


def as_flags(name: str, value: Any, source: str) -> NDArray[np.bool_]:
    """Booleans, or the numbers 0 and 1.

    Raises:
        DataError: Anything else.
    """
    array = _as_array(name, value, source)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind not in "iuf" or not ((array == 0) | (array == 1)).all():
        raise DataError(f"{source}: {name} is {array.tolist()!r:.80}, expected true or false (or 1 or 0)")
    return array.astype(np.bool_, copy=False)


def scalar_energy(value: Any, source: str) -> float:
    """A total energy from a number or an array with one number.

    Raises:
        DataError: Not a real number, or several numbers (energies per atom).
    """
    array = _as_real("energy", value, source)
    if array.size != 1:
        raise DataError(
            f"{source}: the energy has shape {array.shape}; one total energy is expected, not energies per atom"
        )
    return float(array.ravel()[0])


def stress_matrix(value: Any, source: str) -> NDArray[np.float64]:
    """A stress in ASE's Voigt order (6,), flat (9,) or (3, 3), as a (3, 3) matrix.

    Raises:
        DataError: Any other shape.
    """
    array = _as_real("stress", value, source)
    if array.shape == (6,):
        xx, yy, zz, yz, xz, xy = array
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if array.shape in ((9,), (3, 3)):
        return array.reshape(3, 3)
    raise DataError(f"{source}: the stress has shape {array.shape}, expected (6,), (9,) or (3, 3)")


def check_symmetric(stress: NDArray[np.float64], source: str) -> None:
    """Check a stress (3, 3) in eV/Å³.

    Raises:
        DataError: It is not symmetric; an energy that does not change with rotation has a symmetric one.
    """
    relative, absolute = _STRESS_ASYMMETRY
    if np.abs(stress - stress.T).max() > relative * np.abs(stress).max() + absolute:
        raise DataError(f"{source}: the stress {stress.tolist()} is not symmetric")


class FrameSequence(Sequence[Frame]):
    """Base class of datasets: indices and slices in terms of ``_frame`` and ``__len__``.

    A slice is a `Subset`, which refers to the sequence and copies nothing.
    """

    @abstractmethod
    def _frame(self, index: int) -> Frame:
        """Frame number ``index``, which is in ``range(len(self))``."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Frame | Subset:
        if isinstance(index, slice):
            return Subset(self, range(len(self))[index])
        number, n = operator.index(index), len(self)
        if not -n <= number < n:
            raise IndexError(f"frame {number} of {n}")
        return self._frame(number % n)

    def sizes(self) -> NDArray[np.int64]:
        """Number of atoms of each frame, shape (n,)."""
        return np.fromiter((len(frame) for frame in self), dtype=np.int64, count=len(self))


def frame_sizes(frames: Sequence[Frame]) -> NDArray[np.int64]:
    """Number of atoms of each frame, shape (n,); frames are not read where the dataset knows their sizes."""
    return (frames if isinstance(frames, FrameSequence) else InMemoryFrames(frames)).sizes()


class InMemoryFrames(FrameSequence):
    """Frames held in a list."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = list(frames)

    def __len__(self) -> int:
        return len(self._frames)

    def _frame(self, index: int) -> Frame:
        return self._frames[index]


class Subset(FrameSequence):
    """Some frames of another sequence, in a given order, without copying them.

    Raises:
        DataError: An index is outside ``range(len(frames))``.
    """

    def __init__(self, frames: Sequence[Frame], indices: Sequence[int]) -> None:
        # A range is kept as it is: the indices of a million frames need not be stored.
        self._indices = indices if isinstance(indices, range) else tuple(indices)
        if self._indices:
            low, high = min(self._indices), max(self._indices)
            if low < 0 or high >= len(frames):
                raise DataError(f"indices {low}..{high} requested of {len(frames)} frames (0..{len(frames) - 1})")
        self._parent = frames

    def __len__(self) -> int:
        return len(self._indices)

    def _frame(self, index: int) -> Frame:
        return self._parent[self._indices[index]]

    def sizes(self) -> NDArray[np.int64]:
        return frame_sizes(self._parent)[list(self._indices)]


class JoinedFrames(FrameSequence):
    """The concatenation of several sequences, without copying them."""

    def __init__(self, parts: Sequence[Sequence[Frame]]) -> None:
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _frame(self, index: int) -> Frame:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]

    def sizes(self) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, np.int64), *map(frame_sizes, self._parts)])


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_sha256(paths: Sequence[str | Path]) -> str:
    """A hash of several files in their order: the file's own for one file, else that of the concatenated hashes."""
    hashes = [file_sha256(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def require_units(path: Path, stated: Units | None, known: Units | None, why: str) -> Units:
    """The units to read ``path`` with, or an error when they are unknown or contradictory.

    Args:
        path: The file, for the error message.
        stated: Units that the user states, if any.
        known: Units that the file or its format states, if any.
        why: The source of ``known``, or why they are unknown, for the error message.

    Raises:
        DataError: Neither are given, or they contradict each other.
    """
    if stated is None and known is None:
        raise DataError(
            f"{path}: the units are unknown ({why}). State them, for example units=Units(energy='kcal/mol', "
            "length='Angstrom'); in a settings file, data.units; for 'ponita-ff evaluate', --energy-unit and "
            "--length-unit"
        )
    if stated is not None and known is not None and stated != known:
        raise DataError(f"{path}: units are stated as {stated}, but {why}: {known}")
    units = stated if stated is not None else known
    assert units is not None
    return units


def check_plausible(frames: Sequence[Frame], *, max_frames: int = 100) -> None:
    """Check a sample of the frames for signs of wrong units.

    Args:
        frames: The dataset.
        max_frames: Size of the sample; its frames are evenly spaced.

    Raises:
        DataError: The median nearest-neighbour distance is outside 0.5–5 Å; the root mean square force component is
            above 100 eV/Å; or the magnitude of a total energy is above twice the sum over atoms of 13.6 eV · Z^2.4,
            roughly the energy of all electrons of an atom. Energies of electronic structure codes are below that in
            eV, and all-electron energies above it in kcal/mol, kJ/mol or meV.

    Note:
        This does not find all wrong units: Bohr read as Å, for instance, passes for most molecules.
    """
    step = max(1, -(-len(frames) // max_frames))
    sample = [frames[i] for i in range(0, len(frames), step)]
    if not sample:
        raise DataError("no frames to check")
    name = sample[0].source
    distances = np.concatenate([_nearest_neighbours(frame) for frame in sample])
    if distances.size and not 0.5 <= (median := float(np.median(distances))) <= 5.0:
        raise DataError(
            f"{name} and others: the median nearest-neighbour distance is {median:.3g} Å; are the units right?"
        )
    force_rms = float(np.sqrt(np.mean(np.concatenate([f.forces.ravel() for f in sample]) ** 2)))
    if force_rms > 100.0:
        raise DataError(
            f"{name} and others: the forces are {force_rms:.3g} eV/Å (root mean square); are the units right?"
        )
    for frame in sample:
        bound = 2.0 * float(np.sum(13.6 * frame.numbers.astype(float) ** 2.4))
        if abs(frame.energy) > bound:
            raise DataError(
                f"{frame.source}: an energy of {frame.energy:.6g} eV is more than twice that of "
                f"all electrons of its {len(frame)} atoms; are the units right?"
            )


def _nearest_neighbours(frame: Frame, max_atoms: int = 200) -> NDArray[np.float64]:
    """Distances (Å) of the first ``max_atoms`` atoms to their nearest neighbours or periodic images."""
    vectors = frame.cell[frame.pbc]
    image = float(np.linalg.norm(vectors, axis=1).min()) if len(vectors) else np.inf
    if len(frame) == 1:
        return np.array([image]) if np.isfinite(image) else np.empty(0)
    some = frame.positions[:max_atoms]
    _, distances = get_distances(some, frame.positions, cell=frame.cell, pbc=frame.pbc)
    distances[np.arange(len(some)), np.arange(len(some))] = np.inf
    nearest: NDArray[np.float64] = np.minimum(distances.min(axis=1), image)
    return nearest
