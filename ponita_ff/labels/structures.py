"""Reading of frames to label, from any file that ASE reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties

from ponita_ff.data.extxyz import marked_units
from ponita_ff.data.frames import DataError
from ponita_ff.data.structures import iter_structures
from ponita_ff.labels.methods import LabelError

__all__ = ["kept_info", "read_structures"]

#: Keys of the format, and names that would be read as a label or its unit.
_RESERVED = {"lattice", "properties", "pbc", "level_of_theory", *all_properties}
_LABEL_KEY = re.compile(r".*(unit|energy|forces?|stress|virial)s?(_spread)?$", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z_][\w.-]*")


def read_structures(frames: str | Path | Iterable[Atoms]) -> tuple[str, list[Atoms]]:
    """Read elements, positions (Å), cell (Å), periodicity and comments of frames.

    Constraints, velocities, magnetic moments, charges and labels are dropped; calculators do not see them.

    Args:
        frames: A file that ASE reads, or ASE's atoms. Extended XYZ that states another unit of length is converted.

    Returns:
        A prefix that names the file in messages on its frames (``"frames.xyz, "``; empty without a file), and the
        frames.

    Raises:
        LabelError: No such file, or one that ASE cannot read (with the frame); no frames; a frame without atoms.
        DataError: Stated units that are not understood.
    """
    if isinstance(frames, str | Path):
        prefix, images = f"{Path(frames).name}, ", _read(Path(frames))
    else:
        prefix, images = "", iter(frames)
    structures = [_clean(atoms, f"{prefix}frame {number}") for number, atoms in enumerate(images)]
    if not structures:
        raise LabelError(f"{prefix or 'frames to label: '}no frames")
    return prefix, structures


def _read(path: Path) -> Iterator[Atoms]:
    try:
        yield from iter_structures(path)
    except DataError as error:
        raise LabelError(str(error)) from error


def _clean(atoms: Atoms, source: str) -> Atoms:
    if len(atoms) == 0:
        raise LabelError(f"{source}: the frame has no atoms")
    units = marked_units(atoms.info, source)
    factor = 1.0 if units is None else units.length_factor
    cell, positions = atoms.cell.array * factor, atoms.positions * factor
    return Atoms(atoms.numbers, positions, cell=cell, pbc=atoms.pbc, info=kept_info(atoms.info))


def kept_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """The comments of a frame that can be written again and are not labels, e.g. ``trajectory=3``."""
    return {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in info.items()
        if isinstance(key, str)
        and _KEY.fullmatch(key)
        and key.lower() not in _RESERVED
        and not _LABEL_KEY.fullmatch(key)
        and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return value.isprintable() and '"' not in value and "\\" not in value
    return isinstance(value, bool | int | float | np.integer | np.floating | np.bool_)
