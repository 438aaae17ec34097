"""Reading of labelled configurations in any supported format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ponita_ff.data.asedb import AseDbFrames
from ponita_ff.data.extxyz import iter_extxyz
from ponita_ff.data.frames import DataError, Frame, FrameSequence, InMemoryFrames
from ponita_ff.data.hdf5 import Hdf5Frames
from ponita_ff.data.npz import NpzFrames
from ponita_ff.files import why_not_a_file
from ponita_ff.units import Units

__all__ = ["read_frames"]


def _check_file(path: Path) -> None:
    problem = why_not_a_file(path)
    if problem is not None:
        raise DataError(f"{path!s:.300}: {problem}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")


def read_frames(
    path: str | Path,
    *,
    units: Units | None = None,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    index: slice | None = None,
    read_stress: bool = True,
) -> Sequence[Frame]:
    """Read a labelled dataset; the suffix determines the format.

    Args:
        path: ``.npz`` (rMD17 or sGDML keys), ``.xyz``/``.extxyz`` (also ``.gz``), ``.h5``/``.hdf5`` (written by
            `write_hdf5`) or ``.db`` (ASE's SQLite).
        units: Units of the file. Required if the file does not state them; an error if it states others.
        energy_key, forces_key, stress_key: Names of the labels, if they are not the default ones.
        index: The frames to read; None: all.
        read_stress: Whether to read stresses; False is required if only some frames have one.

    Returns:
        The frames, at least one. Those of ``.npz``, ``.h5`` and ``.db`` are read or built when they are accessed.

    Raises:
        DataError: Unknown suffix; missing, empty or damaged file; missing labels; unknown or contradictory units; an
            invalid frame; no frames.
    """
    path = Path(path)
    _check_file(path)
    suffix = Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    keys = {"energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key}
    frames: FrameSequence
    if suffix in (".xyz", ".extxyz"):
        frames = InMemoryFrames(iter_extxyz(path, units=units, index=index, read_stress=read_stress, **keys))
        index = None
    elif path.suffix.lower() == ".npz":
        _refuse_keys(path, {"stress_key": stress_key}, "stresses in .npz files are not read")
        frames = NpzFrames(path, units=units, energy_key=energy_key, forces_key=forces_key)
    elif path.suffix.lower() in (".h5", ".hdf5"):
        _refuse_keys(path, keys, "the HDF5 format has fixed names")
        frames = Hdf5Frames(path, units=units, read_stress=read_stress)
    elif path.suffix.lower() == ".db":
        _refuse_keys(path, keys, "an ASE database has fixed columns for the labels")
        frames = AseDbFrames(path, units=units, read_stress=read_stress)
    else:
        raise DataError(
            f"{path}: unknown suffix {path.suffix!r}; known are .npz, .xyz, .extxyz (also with .gz), .h5, .hdf5 and .db"
        )
    selected = frames if index is None else frames[index]
    if len(selected) == 0:
        raise DataError(f"{path}: no frames" + (f" at index {index}" if len(frames) else ""))
    return selected


def _refuse_keys(path: Path, keys: dict[str, str | None], reason: str) -> None:
    given = [name for name, value in keys.items() if value is not None]
    if given:
        raise DataError(f"{path}: {', '.join(given)} cannot be given for this format: {reason}")
