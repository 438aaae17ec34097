"""Packed data sets for ``gpu_train.py``: labelled frames in fixed point, a few megabytes that travel with a checkout.

Positions and forces of a frame are whole multiples of a step, counted from its lowest value along each axis. The step
is the frame's own: its widest axis divided by what so many bits count to. Energies, cells and stresses stay float64.
What that changes at most is checked when frames are packed, and stands in the file. Forces have 16 bits.
Positions have 24, because a bond pulls atoms back with some 50 eV/Å for each Å: 16 bits of a molecule of 7 Å would be
wrong by some meV/Å in forces, as much as the errors of a good potential.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponita_ff.data import DataError, Frame, file_sha256, read_frames, write_hdf5
from ponita_ff.files import write_atomically

__all__ = ["LARGEST_ERRORS", "LIMIT_MB", "POSITION_BITS", "PackedSet", "pack", "unpack"]

#: Largest file, MB.
LIMIT_MB = 40.0

#: Bits of a coordinate and of a force component.
POSITION_BITS, FORCE_BITS = 24, 16

#: Largest errors of a coordinate, Å, and of a force component, eV/Å.
LARGEST_ERRORS = (1e-4, 2e-3)

_FORMAT, _VERSION = "ponita_ff packed frames", 1


@dataclass(frozen=True)
class PackedSet:
    """What a packed file says of one data set in it.

    Attributes:
        frames: Number of frames.
        position_error: Largest error of a coordinate, Å.
        force_error: Largest error of a force component, eV/Å.
        sha256: Of the file that was packed.
    """

    frames: int
    position_error: float
    force_error: float
    sha256: str


def pack(files: list[Path], out: Path, position_bits: int = POSITION_BITS) -> dict[str, PackedSet]:
    """Pack files of labelled frames into one, each a set with the file's name.

    Args:
        files: Any that :func:`ponita_ff.data.read_frames` reads, with units.
        out: The packed file.
        position_bits: 16 or 24.

    Returns:
        What was packed, by name.

    Raises:
        DataError: For frames that cannot be read or that fixed point changes too much, two files of one name, or too
            large a file; ``out`` is then not written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    sets: dict[str, PackedSet] = {}
    for file in files:
        if file.stem in sets:
            raise DataError(f"{file}: there is another file with the name {file.stem}; rename one of them")
        frames = [*read_frames(file)]
        packed = _encode(frames, position_bits)
        errors = _errors(file, frames, packed)
        sets[file.stem] = PackedSet(len(frames), *errors, file_sha256(file))
        arrays |= {f"{file.stem}/{name}": values for name, values in packed.items()}
    about = {"format": _FORMAT, "version": _VERSION, "sets": {name: vars(packed) for name, packed in sets.items()}}

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez_compressed(stream, about=np.array(json.dumps(about)), **arrays)
        size = path.stat().st_size / 1e6
        if size > LIMIT_MB:
            raise DataError(f"{out} would have {size:.0f} MB, more than {LIMIT_MB:g}: pack fewer frames")

    write_atomically(out, write)
    return sets


def unpack(path: Path, folder: Path) -> dict[str, PackedSet]:
    """Write every set of a packed file as HDF5, ``folder/NAME.h5``; those that are there already stay.

    Raises:
        DataError: For a file that is not packed frames, or of a newer version.
    """
    about, arrays = _load(path)
    sets = {name: PackedSet(**values) for name, values in about["sets"].items()}
    for name, packed in sets.items():
        target = folder / f"{name}.h5"
        if not target.exists():
            own = {key.removeprefix(f"{name}/"): values for key, values in arrays.items() if key.startswith(f"{name}/")}
            write_hdf5(target, _decode(own, name), {"packed": path.name, "source_sha256": packed.sha256})
    return sets


def _load(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
    except Exception as error:  # zipfile, zlib and NumPy raise many types of errors for damaged bytes
        raise DataError(f"{path}: not packed frames, or damaged ({error}): make it with gpu_train.py pack") from None
    if about.get("format") != _FORMAT or about.get("version") != _VERSION:
        raise DataError(f"{path}: packed by another version, {about.get('version')}: pack the frames again")
    return about, arrays


# ------------------------------------------------------------------------------------------------ fixed point


def _encode(frames: list[Frame], position_bits: int) -> dict[str, NDArray[Any]]:
    sizes = np.array([len(frame) for frame in frames], dtype="<i4")
    arrays: dict[str, NDArray[Any]] = {
        "sizes": sizes,
        "numbers": np.concatenate([frame.numbers for frame in frames]).astype("u1"),
        "energy": np.array([frame.energy for frame in frames]),
        **_to_fixed("positions", np.concatenate([frame.positions for frame in frames]), sizes, position_bits),
        **_to_fixed("forces", np.concatenate([frame.forces for frame in frames]), sizes, FORCE_BITS),
    }
    if any(frame.pbc.any() for frame in frames):
        arrays |= {name: np.stack([getattr(frame, name) for frame in frames]) for name in ("cell", "pbc")}
    stresses = [frame.stress for frame in frames if frame.stress is not None]
    if len(stresses) == len(frames):
        arrays["stress"] = np.stack(stresses)
    return arrays


def _to_fixed(name: str, values: NDArray[np.float64], sizes: NDArray[Any], bits: int) -> dict[str, NDArray[Any]]:
    """Lowest values and step of each frame, and the multiples as bytes (bits / 8, N, 3): the lowest byte first."""
    starts = np.cumsum(sizes) - sizes
    lowest = np.minimum.reduceat(values, starts)
    widest = (np.maximum.reduceat(values, starts) - lowest).max(1)
    step = np.where(widest > 0, widest, 1.0) / (2**bits - 1)
    counts = np.rint((values - np.repeat(lowest, sizes, 0)) / np.repeat(step, sizes)[:, None]).astype("<u4")
    planes = np.stack([(counts >> shift).astype("u1") for shift in range(0, bits, 8)])
    return {f"{name}_lowest": lowest, f"{name}_step": step, name: planes}


def _from_fixed(name: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    sizes = arrays["sizes"]
    counts = sum(plane.astype("<u4") << (8 * place) for place, plane in enumerate(arrays[name]))
    step, lowest = arrays[f"{name}_step"], arrays[f"{name}_lowest"]
    values: NDArray[np.float64] = np.repeat(lowest, sizes, 0) + counts * np.repeat(step, sizes)[:, None]
    return values


def _decode(arrays: Mapping[str, NDArray[Any]], source: str) -> Iterator[Frame]:
    sizes = arrays["sizes"]
    positions, forces = _from_fixed("positions", arrays), _from_fixed("forces", arrays)
    for index, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
        atoms = slice(int(end - size), int(end))
        yield Frame(
            numbers=arrays["numbers"][atoms].astype(np.int64),
            positions=positions[atoms],
            cell=arrays["cell"][index] if "cell" in arrays else np.zeros((3, 3)),
            pbc=arrays["pbc"][index] if "pbc" in arrays else np.zeros(3, dtype=bool),
            energy=float(arrays["energy"][index]),
            forces=forces[atoms],
            stress=arrays["stress"][index] if "stress" in arrays else None,
            source=f"{source}, frame {index}",
        )


def _errors(file: Path, frames: list[Frame], packed: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    """Largest errors of positions and forces.

    Raises:
        DataError: Naming a frame where they are too large.
    """
    largest = []
    for name, limit, unit in zip(("positions", "forces"), LARGEST_ERRORS, ("Å", "eV/Å"), strict=True):
        error = np.abs(_from_fixed(name, packed) - np.concatenate([getattr(frame, name) for frame in frames])).max(1)
        worst = int(error.argmax())
        if not error[worst] <= limit:
            frame = int(np.searchsorted(np.cumsum(packed["sizes"]), worst, side="right"))
            raise DataError(
                f"{file}, frame {frame}: fixed point changes its {name} by {error[worst]:.2g} {unit}, more than "
                f"{limit:g}: leave the frame out{', or take 24 bits' if name == 'positions' else ''}"
            )
        largest.append(float(error[worst]))
    return largest[0], largest[1]
