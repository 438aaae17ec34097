"""Calculators and structures as the command line names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase.io
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.collections import g2

from ponita_ff.audit.settings import AuditError
from ponita_ff.data import Frame
from ponita_ff.python_path import PythonPath, PythonPathError

__all__ = ["choose_structure", "make_calculator", "make_calculators"]


def make_calculator(text: str, device: str = "auto", dtype: str | None = None) -> Calculator:
    """A calculator by its name on the command line.

    Args:
        text: A shipped potential or the path of one; several joined by commas make a committee; or a Python path such
            as ``ase.calculators.emt:EMT`` of something that makes a calculator when called, with keyword arguments as
            in ``ase.calculators.lj:LennardJones{sigma: 3.4, epsilon: 0.01}``.
        device: Of our own potentials.
        dtype: Of our own potentials; None for the file's own.

    Raises:
        AuditError: Naming what could not be made a calculator, and why.
    """
    path = PythonPath.parse(text)
    if path is not None:
        try:
            return path.calculator()
        except PythonPathError as error:
            raise AuditError(str(error)) from error
    from ponita_ff.calculator import PonitaCalculator

    members = [text] if Path(text).is_file() else text.split(",")
    try:
        return PonitaCalculator(members if len(members) > 1 else text, device=device, dtype=dtype)
    except FileNotFoundError as error:
        raise AuditError(
            f"{error}; another calculator is named by its Python path, e.g. ase.calculators.emt:EMT"
        ) from None
    except (OSError, ValueError) as error:
        raise AuditError(f"cannot use {text}: {error}") from error


def make_calculators(texts: Sequence[str], device: str = "auto", dtype: str | None = None) -> dict[str, Calculator]:
    """Calculators by their names on the page: as typed, or what follows the colon where that is unique."""
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if list(texts).count(text) > 1)
        raise AuditError(f"{twice} is named twice")
    short = [text.partition(":")[2] if PythonPath.parse(text) else text for text in texts]
    names = short if len(set(short)) == len(short) else texts
    return {name: make_calculator(text, device, dtype) for name, text in zip(names, texts, strict=True)}


def choose_structure(text: str | None, frames: Sequence[Frame] | None) -> Atoms:
    """The structure to audit.

    Args:
        text: A file that ASE reads (its last image counts), or a molecule of ``ase.build.molecule``.
        frames: Labelled frames; without ``text`` the one of lowest energy among those like the first.

    Raises:
        AuditError: For neither, or a file that cannot be read.
    """
    if text is None:
        if not frames:
            raise AuditError(
                "give --structure FILE (or a molecule such as CH3CH2OH), or --data FILE with labelled frames"
            )
        alike = [frame for frame in frames if sorted(frame.numbers) == sorted(frames[0].numbers)]
        return min(alike, key=lambda frame: frame.energy).to_atoms()
    if not Path(text).exists():
        if text in g2.names:
            return molecule(text)
        raise AuditError(
            f"--structure {text}: there is no such file, nor a molecule of that name in ase.build.molecule"
        )
    try:
        atoms = ase.io.read(text, index=-1)
    except Exception as error:  # ASE's readers raise anything
        raise AuditError(f"--structure {text}: ASE cannot read it ({type(error).__name__}: {error})") from error
    assert isinstance(atoms, Atoms)
    return atoms
