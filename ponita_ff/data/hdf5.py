"""The streamed format of this package: frames of any size in one HDF5 file.

The atoms of all frames lie one after the other; ``offsets`` says where each frame begins. Writing
and reading take one frame (or a small batch) at a time, so that a set may exceed the memory.

========== =================== =========================================
dataset    shape               meaning
========== =================== =========================================
numbers    (atoms,)            atomic numbers
positions  (atoms, 3)          Å
forces     (atoms, 3)          eV/Å
offsets    (frames + 1,)       first atom of each frame; the last is the number of atoms
energy     (frames,)           eV
cell       (frames, 3, 3)      Å, zeros where there is none
pbc        (frames, 3)         bool
stress     (frames, 3, 3)      eV/Å³, only where every frame has one
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
from ponita_ff.units import Units

__all__ = ["Hdf5Frames", "write_hdf5"]

_FORMAT = "ponita_ff frames"
_VERSION = 1
_BATCH = 256  # frames written at a time
_CHUNK = 1024  # rows (atoms or frames) of an HDF5 chunk: small, since reads are at random places

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
    """Write frames one batch at a time; the file appears under its name only when complete.

    Parameters
    ----------
    path
        The file; an existing one is replaced.
    frames
        Any iterable, e.g. a generator over a file larger than memory.
    provenance
        Where the data come from; stored as JSON.
    compression
        ``"gzip"`` gives files of perhaps 80 % of the size and slower reading.

    Returns
    -------
    int
        Number of frames written.

    Raises
    ------
    DataError
        No frames; a stress in some frames only; provenance that is not JSON; a file that cannot
        be written.
    """
    path = Path(path)
    try:
        text = json.dumps(dict(provenance), sort_keys=True)
    except TypeError as error:
        raise DataError(f"{path}: the provenance cannot be written as JSON: {error}") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            n_frames = _write_batches(file, iter(frames), compression, path)
            file.attrs.update(
                {
                    "format": _FORMAT,
                    "version": _VERSION,
                    "energy_unit": "eV",
                    "length_unit": "Angstrom",
                    "provenance": text,
                }
            )
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
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
    """Frames of a file written by `write_hdf5`, each read when it is asked for.

    The file is opened once per process, at the first frame, so that the object can be pickled
    and handed to the workers of a data loader, forked ones too.

    Parameters
    ----------
    path
        The file.
    units
        May be stated; an error if the file says otherwise.
    read_stress
        False ignores stresses.

    Raises
    ------
    DataError
        Not such a file, a truncated one, or one of a newer version; contradictory units.
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
                f"up to {_VERSION}. Please update ponita_ff"
            )
        try:
            known = Units(str(file.attrs["energy_unit"]), str(file.attrs["length_unit"]))
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from error
        units = require_units(self.path, stated, known, "the file says")
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
        # A handle inherited through fork shares its file position with the parent's.
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = h5py.File(self.path, "r"), os.getpid()
            # Looking a dataset up by name costs as much as reading a frame of it.
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
