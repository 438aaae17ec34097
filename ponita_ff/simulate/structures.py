"""Structures as a user names them."""

from __future__ import annotations

from pathlib import Path

from ase import Atoms
from ase.build import molecule

from ponita_ff.data.frames import DataError
from ponita_ff.data.structures import last_structure
from ponita_ff.files import exists
from ponita_ff.potential.companions import committee_members
from ponita_ff.potential.file import find_potential

__all__ = ["StructureError", "read_structure"]

#: Beside the file of a shipped potential: the structure that its card was measured with.
_STRUCTURE_FILE = "structure.xyz"


class StructureError(ValueError):
    """A structure that cannot be had; the message names it and says what was expected."""


def read_structure(text: str | None, potential: str) -> Atoms:
    """One structure, without a calculator.

    Args:
        text: A file that ASE reads (its last image counts), or a molecule that ``ase.build.molecule`` knows; None for
            the structure that lies beside the potential's file.
        potential: Name or file of the potential; several may be joined by commas.

    Raises:
        StructureError: For neither, or a file that ASE cannot read.
        FileNotFoundError: Without ``text``, where there is no such potential.
    """
    if text is None:
        beside = find_potential(committee_members(potential)[0]).with_name(_STRUCTURE_FILE)
        if not beside.is_file():
            raise StructureError(
                f"give STRUCTURE, a file that ASE reads or a molecule such as CH3CH2OH: no {_STRUCTURE_FILE} lies "
                f"beside {potential}"
            )
        return _read(beside)
    if exists(Path(text)):
        return _read(Path(text))
    try:
        return molecule(text)
    except (KeyError, NotImplementedError):
        raise StructureError(
            f"{text:.300}: there is no such file, nor a molecule of that name in ase.build.molecule"
        ) from None


def _read(path: Path) -> Atoms:
    try:
        atoms = last_structure(path)
    except DataError as error:
        raise StructureError(str(error)) from error
    if len(atoms) == 0:
        raise StructureError(f"{path}: the structure has no atoms")
    atoms.calc = None
    return atoms
