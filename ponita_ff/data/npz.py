"""NumPy archives of frames of one molecule, with the array names of rMD17 or of sGDML (MD17, MD22)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ponita_ff.data.frames import DataError, Frame, FrameSequence, require_units
from ponita_ff.units import Units

__all__ = ["NpzFrames"]


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
            known, why = self._known_units(archive, arrays)
            self.units = require_units(self.path, units, known, why)
            self._numbers = self._read(archive, arrays.numbers)
            self._positions = self._read(archive, arrays.positions)
            self._energies = self._read(archive, arrays.energies)
            self._forces = self._read(archive, arrays.forces)
        self._check(arrays)

    def _find_arrays(self, archive: NpzFile, energy_key: str | None, forces_key: str | None) -> _ArrayNames:
        found = set(archive.files)
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

    def _known_units(self, archive: NpzFile, arrays: _ArrayNames) -> tuple[Units | None, str]:
        markers = {key: self._text(archive, key) for key in ("e_unit", "r_unit")}
        if all(markers.values()):
            try:
                return Units(str(markers["e_unit"]), str(markers["r_unit"])), "the file states"
            except ValueError as error:
                return None, f"its e_unit and r_unit are not understood: {error}"
        if arrays.all() == _RMD17.all() and self.path.name.startswith("rmd17_"):
            return Units("kcal/mol", "Angstrom"), "rMD17 files are in"
        return None, "the file has no e_unit and r_unit"

    def _text(self, archive: NpzFile, key: str) -> str | None:
        if key not in archive.files:
            return None
        value = np.asarray(self._read(archive, key))
        if value.size != 1:
            return None
        item = value.ravel()[0]
        return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)

    def _read(self, archive: NpzFile, key: str) -> NDArray[Any]:
        try:
            array: NDArray[Any] = archive[key]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            hint = " (it would have to be unpickled, which runs code)" * ("pickle" in str(error))
            raise DataError(f"{self.path}: array {key!r} cannot be read{hint}: {error}") from error
        return array

    def _check(self, arrays: _ArrayNames) -> None:
        if self._positions.ndim != 3 or self._positions.shape[2] != 3:
            raise DataError(
                f"{self.path}: {arrays.positions} has shape {self._positions.shape}, expected (frames, atoms, 3)"
            )
        n_frames, n_atoms, _ = self._positions.shape
        energies = self._energies
        if energies.shape in ((n_frames,), (n_frames, 1)):
            self._energies = energies.reshape(n_frames)
        wrong = [
            f"{key} {array.shape}"
            for key, array, shapes in (
                (arrays.numbers, self._numbers, ((n_atoms,), (n_frames, n_atoms))),
                (arrays.energies, self._energies, ((n_frames,),)),
                (arrays.forces, self._forces, ((n_frames, n_atoms, 3),)),
            )
            if array.shape not in shapes
        ]
        if wrong:
            raise DataError(
                f"{self.path}: {', '.join(wrong)} do not fit {arrays.positions} "
                f"{self._positions.shape}, {n_frames} frames of {n_atoms} atoms"
            )
        self._check_finite(arrays)

    def _check_finite(self, arrays: _ArrayNames) -> None:
        # All frames are checked at once, so that a training run does not fail hours later.
        for key, array in (
            (arrays.energies, self._energies),
            (arrays.forces, self._forces),
            (arrays.positions, self._positions),
        ):
            if not np.issubdtype(array.dtype, np.number):
                raise DataError(f"{self.path}: {key} holds {array.dtype}, not numbers")
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
        numbers = self._numbers if self._numbers.ndim == 1 else self._numbers[index]
        return Frame(
            numbers=numbers.astype(np.int64),
            positions=self._positions[index].astype(np.float64) * self.units.length_factor,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=np.bool_),
            energy=float(self._energies[index]) * self.units.energy_factor,
            forces=self._forces[index].astype(np.float64) * self.units.force_factor,
            source=f"{self.path.name}, frame {index}",
        )


@contextmanager
def _open(path: Path) -> Iterator[NpzFile]:
    # Opened here, since NumPy leaves a file open that it cannot read.
    with path.open("rb") as handle:
        try:
            archive = np.load(handle, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a readable .npz file: {error}") from error
        if not isinstance(archive, NpzFile):
            raise DataError(f"{path}: holds a single array, not an .npz archive")
        with archive:
            yield archive
