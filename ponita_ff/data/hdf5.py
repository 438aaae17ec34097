"""The HDF5 format of this package, for frames of any size and data sets larger than memory.

The atoms of all frames are stored one after the other, and ``offsets`` holds where each frame begins. Frames are
written in small batches and read one at a time.

========== =================== =========================================
dataset    shape               meaning
========== =================== =========================================
numbers    (atoms,)            atomic numbers
positions  (atoms, 3)          Å
forces     (atoms, 3)          eV/Å
offsets    (frames + 1,)       first atom of each frame; the last is the number of atoms
energy     (frames,)           eV
cell       (frames, 3, 3)      Å, zeros without periodicity
pbc        (frames, 3)         bool
stress     (frames, 3, 3)      eV/Å³, only if every frame has one
========== =================== =========================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ponita_ff.data.frames import DataError, Frame, FrameSequence, require_units
from ponita_ff.files import write_atomically
from ponita_ff.units import Units

__all__ = ["Hdf5Frames", "write_hdf5"]

_FORMAT = "ponita_ff frames"
_VERSION = 1
_BATCH = 256  # frames written at a time
_CHUNK = 1024  # rows (atoms or frames) of an HDF5 chunk; small, since frames are read in random order

_PER_ATOM: dict[str, tuple[tuple[int, ...], str]] = {
    "numbers": ((), "u1"),
    "positions": ((3,), "f8"),
    "forces": ((3,), "f8"),
}
_PER_FRAME: dict[str, tuple[tuple[int, ...], str]] = {
    "energy": ((), "f8"),
    "cell": ((3, 3), "f8"),
    "pbc": ((3,), "?"),
}
_STRESS: tuple[tuple[int, ...], str] = ((3, 3), "f8")


def write_hdf5(
    path: str | Path,
    frames: Iterable[Frame],
    provenance: Mapping[str, Any],
    *,
    compression: Literal["gzip"] | None = None,
) -> int:
    """Write frames in batches; the file gets its name only when it is complete.

    Args:
        path: The file; an existing file is replaced, a missing folder is created.
        frames: Any iterable, e.g. a generator over a file larger than memory.
        provenance: Origin of the data; stored as JSON.
        compression: ``"gzip"`` makes files smaller (to about 80 %) and reading slower.

    Returns:
        The number of frames written.

    Raises:
        DataError: No frames; a stress in some frames only; provenance that is not JSON; a file that cannot be written.
    """
    path = Path(path)
    try:
        text = json.dumps(dict(provenance), sort_keys=True)
    except TypeError as error:
        raise DataError(f"{path}: the provenance cannot be written as JSON: {error}") from error
    attributes = {
        "format": _FORMAT,
        "version": _VERSION,
        "energy_unit": "eV",
        "length_unit": "Angstrom",
        "provenance": text,
    }
    n_frames = 0

    def write(temporary: Path) -> None:
        nonlocal n_frames
        with h5py.File(temporary, "w") as file:
            n_frames = _write_batches(file, iter(frames), compression, path)
            file.attrs.update(attributes)

    try:
        write_atomically(path, write)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
    return n_frames


def _write_batches(file: h5py.File, frames: Iterator[Frame], compression: str | None, path: Path) -> int:
    has_stress: bool | None = None
    n_frames = n_atoms = 0
    while batch := list(islice(frames, _BATCH)):
        if has_stress is None:
            has_stress = batch[0].stress is not None
            _create(file, has_stress, compression)
        for frame in batch:
            if (frame.stress is not None) != has_stress:
                raise DataError(
                    f"{path}: {frame.source} has {'no' if has_stress else 'a'} stress, unlike the frames before it"
                )
        _append_batch(file, batch, n_atoms)
        n_frames += len(batch)
        n_atoms += sum(len(frame) for frame in batch)
    if n_frames == 0:
        raise DataError(f"{path}: there are no frames to write")
    return n_frames


def _create(file: h5py.File, has_stress: bool, compression: str | None) -> None:
    columns = _PER_ATOM | _PER_FRAME | ({"stress": _STRESS} if has_stress else {})
    for name, (shape, dtype) in columns.items():
        file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(_CHUNK, *shape),
            dtype=dtype,
            compression=compression,
        )
    file.create_dataset("offsets", data=np.zeros(1, "i8"), maxshape=(None,), chunks=(_CHUNK,))


def _append_batch(file: h5py.File, batch: list[Frame], n_atoms: int) -> None:
    for name in _PER_ATOM:
        _append(file[name], np.concatenate([getattr(frame, name) for frame in batch]))
    for name in (*_PER_FRAME, "stress"):
        if name in file:
            _append(file[name], np.stack([np.asarray(getattr(frame, name)) for frame in batch]))
    _append(file["offsets"], n_atoms + np.cumsum([len(frame) for frame in batch]))


def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    n = len(dataset)
    dataset.resize(n + len(values), axis=0)
    dataset[n:] = values


class Hdf5Frames(FrameSequence):
    """Frames of a file written by `write_hdf5`, each read when it is accessed.

    The file is opened once per process, at the first access. So the object can be pickled and used in the workers of a
    data loader, forked ones included.

    Args:
        path: The file.
        units: Optional; an error if they differ from those that the file states.
        read_stress: Whether to read stresses.

    Raises:
        DataError: Not such a file, a truncated one, or one of a newer version; contradictory units.
    """

    def __init__(self, path: str | Path, *, units: Units | None = None, read_stress: bool = True) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._columns: dict[str, h5py.Dataset] = {}
        self._pid = -1
        try:
            with h5py.File(self.path, "r") as file:
                self.units, self.provenance = self._check_header(file, units)
                self._n_frames = self._check_shapes(file)
                self._has_stress = read_stress and "stress" in file
        except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as error:
            raise DataError(f"{self.path}: truncated, damaged or not an HDF5 file of this package: {error}") from error

    def _check_header(self, file: h5py.File, stated: Units | None) -> tuple[Units, dict[str, Any]]:
        if file.attrs.get("format") != _FORMAT:
            raise DataError(
                f"{self.path}: an HDF5 file, but not one that ponita_ff wrote (its attribute "
                f"'format' is {file.attrs.get('format')!r}, expected {_FORMAT!r})"
            )
        version = int(file.attrs["version"])
        if version > _VERSION:
            raise DataError(
                f"{self.path}: written in version {version} of the format; this program reads "
                f"versions up to {_VERSION}; update ponita_ff"
            )
        try:
            known = Units(str(file.attrs["energy_unit"]), str(file.attrs["length_unit"]))
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from error
        units = require_units(self.path, stated, known, "the file states")
        return units, json.loads(str(file.attrs["provenance"]))

    def _check_shapes(self, file: h5py.File) -> int:
        n_frames, n_atoms = len(file["offsets"]) - 1, len(file["numbers"])
        columns = {name: (n_atoms, shape) for name, (shape, _) in _PER_ATOM.items()}
        columns |= {name: (n_frames, shape) for name, (shape, _) in _PER_FRAME.items()}
        if "stress" in file:
            columns["stress"] = (n_frames, _STRESS[0])
        for name, (rows, shape) in columns.items():
            if file[name].shape != (rows, *shape):
                raise DataError(
                    f"{self.path}: dataset {name!r} has shape {file[name].shape}, expected "
                    f"{(rows, *shape)}; the file is damaged"
                )
        if n_frames < 1 or file["offsets"][0] != 0 or file["offsets"][-1] != n_atoms:
            raise DataError(f"{self.path}: the offsets do not cover the {n_atoms} atoms; damaged")
        return n_frames

    def _open(self) -> dict[str, h5py.Dataset]:
        # A file handle inherited by fork shares its position with that of the parent.
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = h5py.File(self.path, "r"), os.getpid()
            # The look-up of a dataset by name takes as long as reading a frame from it.
            self._columns = dict(self._file.items())
        return self._columns

    def __len__(self) -> int:
        return self._n_frames

    def _frame(self, index: int) -> Frame:
        where = f"{self.path.name}, frame {index}"
        try:
            columns = self._open()
            begin, end = (int(i) for i in columns["offsets"][index : index + 2])
            return Frame(
                numbers=columns["numbers"][begin:end].astype(np.int64),
                positions=columns["positions"][begin:end] * self.units.length_factor,
                cell=columns["cell"][index] * self.units.length_factor,
                pbc=columns["pbc"][index],
                energy=float(columns["energy"][index]) * self.units.energy_factor,
                forces=columns["forces"][begin:end] * self.units.force_factor,
                stress=columns["stress"][index] * self.units.stress_factor if self._has_stress else None,
                source=where,
            )
        except (OSError, KeyError, RuntimeError) as error:
            raise DataError(f"{where}: cannot be read, the file is damaged: {error}") from error

    def sizes(self) -> NDArray[np.int64]:
        return np.diff(self._open()["offsets"][:]).astype(np.int64)

    def close(self) -> None:
        """Close the file; a later access opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file, self._columns = None, {}

    def __enter__(self) -> Hdf5Frames:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_columns": {}, "_pid": -1}
