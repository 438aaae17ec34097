"""NumPy archives of frames of one molecule, with the array names of rMD17 or of sGDML (MD17, MD22)."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ponita_ff.data.frames import DataError, Frame, FrameSequence, as_integers, check_real, require_units
from ponita_ff.units import Units, canonical_energy_unit, canonical_length_unit

__all__ = ["NpzFrames"]

_MAX_DEFLATION = 1032  # of zlib: larger archives in smaller files do not exist


@dataclass(frozen=True)
class _ArrayNames:
    """Names of the four arrays in a family of files."""

    family: str
    numbers: str
    positions: str
    energies: str
    forces: str

    def all(self) -> tuple[str, ...]:
        return (self.numbers, self.positions, self.energies, self.forces)


_RMD17 = _ArrayNames("rMD17", "nuclear_charges", "coords", "energies", "forces")
_SGDML = _ArrayNames("sGDML", "z", "R", "E", "F")


class NpzFrames(FrameSequence):
    """Frames of an ``.npz`` file, each built when it is accessed.

    Args:
        path: The file. Pickled (object) arrays are refused and never executed.
        units: Needed unless the file has ``e_unit`` and ``r_unit`` (as sGDML writes them) or is an rMD17 file by its
            keys and by a name that starts with ``rmd17_`` (kcal/mol and Å).
        energy_key, forces_key: Names of the label arrays, if they are not those of rMD17 or sGDML.

    Raises:
        DataError: Not an ``.npz`` file; missing arrays; arrays that do not fit together; NaN in a label; unknown or
            contradictory units.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        units: Units | None = None,
        energy_key: str | None = None,
        forces_key: str | None = None,
    ) -> None:
        self.path = Path(path)
        with _open(self.path) as archive:
            arrays = self._find_arrays(archive, energy_key, forces_key)
            self.units = self._find_units(archive, arrays, units)
            self._numbers = archive.read(arrays.numbers)
            self._positions = archive.read(arrays.positions)
            self._energies = archive.read(arrays.energies)
            self._forces = archive.read(arrays.forces)
        self._check(arrays)

    def _find_arrays(self, archive: _Archive, energy_key: str | None, forces_key: str | None) -> _ArrayNames:
        found = archive.keys
        geometry = [names for names in (_RMD17, _SGDML) if {names.numbers, names.positions} <= found]
        if not geometry:
            raise DataError(
                f"{self.path}: found the keys {sorted(found)}; expected {_RMD17.all()} "
                f"(rMD17) or {_SGDML.all()} (sGDML)"
            )
        base = geometry[0]
        arrays = _ArrayNames(
            base.family,
            base.numbers,
            base.positions,
            energy_key or base.energies,
            forces_key or base.forces,
        )
        missing = [key for key in arrays.all() if key not in found]
        if missing:
            raise DataError(
                f"{self.path}: found the keys {sorted(found)}, but not {missing} "
                "(energies and forces are needed for every frame)"
            )
        if "lattice" in found:
            # Without its lattice, a crystal would be read as a cluster.
            raise DataError(f"{self.path}: periodic .npz files are not supported; convert to .extxyz")
        return arrays

    def _find_units(self, archive: _Archive, arrays: _ArrayNames, stated: Units | None) -> Units:
        parsers = {"e_unit": canonical_energy_unit, "r_unit": canonical_length_unit}
        texts = {key: self._text(archive, key) for key in parsers if key in archive.keys}
        if not texts and arrays.all() == _RMD17.all() and self.path.name.startswith("rmd17_"):
            return require_units(self.path, stated, Units("kcal/mol", "Angstrom"), "rMD17 files are in")
        understood: dict[str, str] = {}
        why = "the file has no e_unit and r_unit"
        for key, text in texts.items():
            try:
                understood[key] = parsers[key](text)
            except ValueError as error:
                why = f"its {key} {text!r} is not understood: {error}"
        if len(understood) == 2:
            return require_units(
                self.path, stated, Units(understood["e_unit"], understood["r_unit"]), "the file states"
            )
        if understood and stated is not None:
            # One unit of the file can contradict those that the user states, too.
            known = Units(understood.get("e_unit", stated.energy), understood.get("r_unit", stated.length))
            return require_units(self.path, stated, known, f"the file states {understood}")
        return require_units(self.path, stated, None, why)

    def _text(self, archive: _Archive, key: str) -> str:
        value = archive.read(key)
        item = value.ravel()[0] if value.size == 1 else value.tolist()
        return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)

    def _check(self, arrays: _ArrayNames) -> None:
        """Check all frames at once, so that a training run does not fail hours later."""
        numbers, positions, energies, forces = self._numbers, self._positions, self._energies, self._forces
        if positions.ndim != 3 or positions.shape[2] != 3:
            raise DataError(f"{self.path}: {arrays.positions} has shape {positions.shape}, expected (frames, atoms, 3)")
        n_frames, n_atoms, _ = positions.shape
        if n_frames == 0 or n_atoms == 0:
            raise DataError(f"{self.path}: no frames, or frames without atoms: {arrays.positions} {positions.shape}")
        if energies.shape == (n_frames, 1):
            energies = energies.reshape(n_frames)
        wrong = [
            f"{key} {array.shape}"
            for key, array, shapes in (
                (arrays.numbers, numbers, ((n_atoms,), (n_frames, n_atoms))),
                (arrays.energies, energies, ((n_frames,),)),
                (arrays.forces, forces, ((n_frames, n_atoms, 3),)),
            )
            if array.shape not in shapes
        ]
        if wrong:
            raise DataError(
                f"{self.path}: {', '.join(wrong)} do not fit {arrays.positions} "
                f"{positions.shape}, {n_frames} frames of {n_atoms} atoms"
            )
        self._energies = energies
        as_integers(arrays.numbers, numbers, str(self.path))
        for key, array in ((arrays.energies, energies), (arrays.forces, forces), (arrays.positions, positions)):
            check_real(key, array, str(self.path))
            self._check_finite(key, array)

    def _check_finite(self, key: str, array: NDArray[Any]) -> None:
        good = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        bad = np.flatnonzero(~good)
        if bad.size:
            raise DataError(
                f"{self.path}, frame {int(bad[0])}: {key} missing (NaN or infinity); "
                f"the same in {bad.size} of {len(array)} frames"
            )

    def __len__(self) -> int:
        return len(self._positions)

    def sizes(self) -> NDArray[np.int64]:
        return np.full(len(self), self._positions.shape[1], dtype=np.int64)

    def _frame(self, index: int) -> Frame:
        return Frame.in_units(
            self.units,
            numbers=(self._numbers if self._numbers.ndim == 1 else self._numbers[index]).copy(),
            positions=self._positions[index],
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=np.bool_),
            energy=self._energies[index],
            forces=self._forces[index],
            source=f"{self.path.name}, frame {index}",
        )


class _Archive:
    """The arrays of an ``.npz`` file by name: a zip file of ``.npy`` files, whose checksums cover header and data.

    NumPy alone trusts the size in an array's header: it allocates that much, and the checksum is compared only if the
    data end there.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._zip = path, archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            if key in self._members:
                raise DataError(f"{path}: array {key!r} is there twice")
            self._members[key] = info
            archive.open(info).close()  # compares the name with the second place where it is stored
        self.keys = frozenset(self._members)

    def read(self, key: str) -> NDArray[Any]:
        info = self._members[key]
        self._check_size(key, info)
        with self._zip.open(info) as member:
            array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
            assert not member.read(1), "the checksum is compared at the end"
        return array

    def _check_size(self, key: str, info: zipfile.ZipInfo) -> None:
        where = f"{self._path}: array {key!r} cannot be read"
        deflation = _MAX_DEFLATION if info.compress_type == zipfile.ZIP_DEFLATED else 1
        possible = min(info.compress_size, self._path.stat().st_size) * deflation
        if info.file_size > possible:
            raise DataError(f"{where}: it claims {info.file_size} bytes, but the file can hold {possible}")
        if info.file_size > _memory():
            raise DataError(f"{where}: its {info.file_size} bytes do not fit in memory; convert it to .h5 in parts")
        with self._zip.open(info) as member:
            readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            shape, _, dtype = readers[npy.read_magic(member)](member)
            left = info.file_size - member.tell()
        if dtype.hasobject:
            raise DataError(f"{where}: it would have to be unpickled, which runs code")
        size = math.prod(shape) * dtype.itemsize
        if size != left:
            raise DataError(
                f"{where}: its header states {shape} of {dtype}, {size} bytes, but {left} are there; damaged"
            )


def _memory() -> float:
    """Bytes of memory of this machine; infinite where they are not known."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on every system
        return np.inf


@contextmanager
def _open(path: Path) -> Iterator[_Archive]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Archive(path, archive)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many types of errors for damaged bytes
        with path.open("rb") as file:
            single = file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
        what = "holds a single array, not an .npz archive" if single else "not a readable .npz file"
        raise DataError(f"{path}: {what} ({type(error).__name__}: {error})") from error
