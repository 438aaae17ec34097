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
checksum   (frames,)           CRC-32 of the frame, see `_checksum`
========== =================== =========================================

Version 1 had no checksums. Such files are read as before: changed numbers or offsets are not noticed in them.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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
_VERSION = 2
_BATCH = 256  # frames written at a time
_CHUNK = 1024  # rows (atoms or frames) of an HDF5 chunk; small, since frames are read in random order

_MAX_ATOMS = 10_000_000  # of a frame: no network takes more, and its arrays have 500 MB

_Table = dict[str, tuple[tuple[int, ...], str]]  # shape for each row and type of a dataset

_PER_ATOM: _Table = {"numbers": ((), "u1"), "positions": ((3,), "<f8"), "forces": ((3,), "<f8")}
_PER_FRAME: _Table = {"energy": ((), "<f8"), "cell": ((3, 3), "<f8"), "pbc": ((3,), "?")}
_STRESS: _Table = {"stress": ((3, 3), "<f8")}
_CHECKSUM: _Table = {"checksum": ((), "<u4")}
_OFFSETS: _Table = {"offsets": ((), "<i8")}


def _checksum(values: Mapping[str, Any]) -> int:
    """CRC-32 of a frame's values, one after the other as they are stored, in the order of the tables above."""
    found = 0
    for name, (_, dtype) in (_PER_ATOM | _PER_FRAME | _STRESS).items():
        if name in values:
            found = zlib.crc32(np.ascontiguousarray(values[name], dtype=dtype).data, found)
    return found


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
    columns = _PER_ATOM | _PER_FRAME | (_STRESS if has_stress else {}) | _CHECKSUM
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
    per_frame = [name for name in (*_PER_FRAME, *_STRESS) if name in file]
    for name in per_frame:
        _append(file[name], np.stack([np.asarray(getattr(frame, name)) for frame in batch]))
    names = [*_PER_ATOM, *per_frame]
    _append(file["checksum"], np.array([_checksum({n: getattr(frame, n) for n in names}) for frame in batch], "<u4"))
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
        DataError: Not such a file, a truncated or damaged one, or one of a newer version; contradictory units; data
            that lie in other files (external links, external storage, virtual datasets). Whether a frame is as it was
            written is checked when it is read.
    """

    def __init__(self, path: str | Path, *, units: Units | None = None, read_stress: bool = True) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._columns: dict[str, h5py.Dataset] = {}
        self._pid = -1
        what = f"{self.path}: truncated, damaged or not an HDF5 file of this package"
        with self._errors(what), h5py.File(self.path, "r") as file:
            version, self.units, self.provenance = self._check_header(file, units)
            stress, checksum = _STRESS if "stress" in file else {}, _CHECKSUM if version >= 2 else {}
            table = _PER_ATOM | _PER_FRAME | stress | checksum
            self._n_frames, self._n_atoms = self._check_columns(file, table)
        self._names, self._read_stress = tuple(table), read_stress

    @staticmethod
    @contextmanager
    def _errors(what: str) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # h5py raises many types of errors for damaged files
            raise DataError(f"{what}: {type(error).__name__}: {error}") from error

    def _check_header(self, file: h5py.File, stated: Units | None) -> tuple[int, Units, dict[str, Any]]:
        if not np.array_equal(file.attrs.get("format"), _FORMAT):
            raise DataError(
                f"{self.path}: an HDF5 file, but not one that ponita_ff wrote (its attribute "
                f"'format' is {file.attrs.get('format')!r:.80}, expected {_FORMAT!r})"
            )
        version = file.attrs["version"]
        if not isinstance(version, np.integer) or version < 1:
            raise DataError(f"{self.path}: its version is {version!r:.80}, expected a number from 1 to {_VERSION}")
        if version > _VERSION:
            raise DataError(
                f"{self.path}: written in version {version} of the format; this program reads "
                f"versions up to {_VERSION}; update ponita_ff"
            )
        texts = {name: file.attrs[name] for name in ("energy_unit", "length_unit", "provenance")}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise DataError(f"{self.path}: its attribute {name!r} is {text!r:.80}, expected text")
        try:
            known = Units(texts["energy_unit"], texts["length_unit"])
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from error
        units = require_units(self.path, stated, known, "the file states")
        provenance = json.loads(texts["provenance"])
        if not isinstance(provenance, dict):
            raise DataError(f"{self.path}: its provenance is {provenance!r:.80}, expected a JSON object; damaged")
        return int(version), units, provenance

    def _check_columns(self, file: h5py.File, table: _Table) -> tuple[int, int]:
        """Check types and shapes of all datasets; the numbers of frames and of atoms."""
        for name, (_, dtype) in (table | _OFFSETS).items():
            self._check_dataset(file, name, np.dtype(dtype).kind)
        n_frames, n_atoms = len(file["offsets"]) - 1, len(file["numbers"])
        for name, (shape, _) in table.items():
            expected = (n_atoms if name in _PER_ATOM else n_frames, *shape)
            if file[name].shape != expected:
                raise DataError(
                    f"{self.path}: dataset {name!r} has shape {file[name].shape}, expected {expected}; damaged"
                )
        if n_frames < 1 or file["offsets"][0] != 0 or file["offsets"][-1] != n_atoms:
            raise DataError(f"{self.path}: the offsets do not cover the {n_atoms} atoms; damaged")
        return n_frames, n_atoms

    def _check_dataset(self, file: h5py.File, name: str, kind: str) -> None:
        where = f"{self.path}: dataset {name!r}"
        link = file.get(name, getlink=True)
        if link is None:
            raise DataError(f"{where} is missing; the file is damaged")
        # Other files are never read: whoever made this one could have named any.
        if not isinstance(link, h5py.HardLink):
            target = getattr(link, "filename", "another place of this file")
            raise DataError(f"{where} is a link to {target}; links are not followed")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{where} is a {type(dataset).__name__.lower()}, not a dataset; the file is damaged")
        if dataset.external or dataset.is_virtual:
            raise DataError(f"{where} keeps its numbers in other files; these are not read")
        allowed = {"u": "iuf", "i": "iu", "f": "iuf", "b": "b"}[kind]
        if dataset.ndim == 0 or dataset.dtype.kind not in allowed:
            raise DataError(f"{where} holds {dataset.dtype} {dataset.shape}, expected an array of type {kind!r}")

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
        with self._errors(f"{where}: cannot be read, the file is damaged"):
            columns = self._open()
            begin, end = (int(i) for i in columns["offsets"][index : index + 2])
            if not 0 <= begin < end <= min(self._n_atoms, begin + _MAX_ATOMS):
                raise DataError(f"{where}: the offsets give it the atoms {begin} to {end} of {self._n_atoms}; damaged")
            values = {
                name: columns[name][begin:end] if name in _PER_ATOM else columns[name][index] for name in self._names
            }
            checksum = values.pop("checksum", None)
            if checksum is not None and checksum != _checksum(values):
                raise DataError(f"{where}: it is not as it was written (wrong checksum); the file is damaged")
            if not self._read_stress:
                values.pop("stress", None)
            return Frame.in_units(self.units, source=where, **values)

    def sizes(self) -> NDArray[np.int64]:
        with self._errors(f"{self.path}: cannot be read, the file is damaged"):
            sizes = np.diff(self._open()["offsets"][:].astype(np.int64))
        if sizes.min() < 1:
            raise DataError(
                f"{self.path}, frame {int(sizes.argmin())}: the offsets give it {sizes.min()} atoms; damaged"
            )
        return sizes

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
