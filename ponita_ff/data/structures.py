"""Structures, labelled or not, from any file that ASE reads; XYZ files are read by `ponita_ff.data.xyz`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import ase.io
from ase import Atoms
from ase.io.formats import filetype

from ponita_ff.data.frames import DataError
from ponita_ff.data.xyz import iter_texts
from ponita_ff.files import exists, why_not_a_file

__all__ = ["iter_structures", "last_structure"]


def iter_structures(path: str | Path) -> Iterator[Atoms]:
    """All structures of a file, one after the other, with what ASE finds beside them; none is left out.

    Raises:
        DataError: No such file, or one that ASE cannot read (with the frame).
    """
    path = Path(path)
    if _is_xyz(path):
        for text in iter_texts(path):
            yield text.parse()[0]
        return
    number = 0
    try:
        for atoms in ase.io.iread(path, index=slice(None), do_not_split_by_at_sign=True):
            yield atoms
            number += 1
    except Exception as error:  # ASE's readers may raise anything
        raise DataError(
            f"{path.name}, frame {number} or before: ASE cannot read it ({type(error).__name__}: {error})"
        ) from error


def last_structure(path: str | Path) -> Atoms:
    """The last structure of a file, or of a folder that ASE reads as one.

    Raises:
        DataError: As `iter_structures`; or there is none.
    """
    path = Path(path)
    if not (exists(path) and path.is_dir()) and _is_xyz(path):
        texts = deque(iter_texts(path), maxlen=1)
        if not texts:
            raise DataError(f"{path}: there are no structures in it")
        return texts[0].parse()[0]
    try:
        atoms = ase.io.read(path, index=-1, do_not_split_by_at_sign=True)
    except Exception as error:  # ASE's readers may raise anything
        raise DataError(f"{path}: ASE cannot read it ({type(error).__name__}: {error})") from error
    assert isinstance(atoms, Atoms)
    return atoms


def _is_xyz(path: Path) -> bool:
    problem = why_not_a_file(path)
    if problem is not None:
        raise DataError(f"{path!s:.300}: {problem}")
    try:
        return filetype(str(path)) == "extxyz"
    except Exception as error:  # as above
        raise DataError(f"{path}: ASE cannot read it ({type(error).__name__}: {error})") from error
