"""Calculators and structures from their names on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.collections import g2

from ponita_ff.audit.settings import AuditError
from ponita_ff.data import DataError, Frame
from ponita_ff.data.structures import last_structure
from ponita_ff.files import exists
from ponita_ff.python_path import PythonPath, PythonPathError

__all__ = ["choose_structure", "make_calculator", "make_calculators"]


def make_calculator(text: str, device: str = "auto", dtype: str | None = None) -> Calculator:
    """Create a calculator from its name on the command line.

    Args:
        text: Name or file of a potential of this package; several, separated by commas, for a committee; or the Python
            path of a class or function that returns an ASE calculator, such as ``ase.calculators.emt:EMT``, with
            keyword arguments as in ``ase.calculators.lj:LennardJones{sigma: 3.4, epsilon: 0.01}``.
        device: Device of this package's potentials.
        dtype: Precision of this package's potentials; None for that of the file.

    Raises:
        AuditError: Naming the calculator and the reason why it cannot be used.
    """
    path = PythonPath.parse(text)
    if path is not None:
        try:
            return path.calculator()
        except PythonPathError as error:
            raise AuditError(str(error)) from error
    from ponita_ff.calculator import PonitaCalculator

    try:
        return PonitaCalculator(text, device=device, dtype=dtype)
    except FileNotFoundError as error:
        raise AuditError(
            f"{error}; another calculator is named by its Python path, e.g. ase.calculators.emt:EMT"
        ) from None
    except (OSError, ValueError) as error:
        raise AuditError(f"cannot use {text}: {error}") from error


def make_calculators(texts: Sequence[str], device: str = "auto", dtype: str | None = None) -> dict[str, Calculator]:
    """Create several calculators.

    Args:
        texts: Names on the command line; see `make_calculator`.
        device: Device of this package's potentials.
        dtype: Precision of this package's potentials; None for that of the file.

    Returns:
        Calculators by their names on the page: the part after the colon of a Python path if that is unique, otherwise
        the name on the command line.

    Raises:
        AuditError: For a name that occurs twice, or a calculator that cannot be used.
    """
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if list(texts).count(text) > 1)
        raise AuditError(f"{twice} is named twice")
    short = [text.partition(":")[2] if PythonPath.parse(text) else text for text in texts]
    names = short if len(set(short)) == len(short) else texts
    return {name: make_calculator(text, device, dtype) for name, text in zip(names, texts, strict=True)}


def choose_structure(text: str | None, frames: Sequence[Frame] | None) -> Atoms:
    """Return the structure to audit.

    Args:
        text: A file that ASE can read, of which the last structure is taken, or a molecule of ``ase.build.molecule``.
        frames: Labelled frames. Without ``text``, the structure is the frame of lowest energy among those with the
            composition of the first.

    Raises:
        AuditError: If both are missing, or if the file cannot be read.
    """
    if text is None:
        if not frames:
            raise AuditError(
                "give --structure FILE (or a molecule such as CH3CH2OH), or --data FILE with labelled frames"
            )
        same_composition = [frame for frame in frames if sorted(frame.numbers) == sorted(frames[0].numbers)]
        return min(same_composition, key=lambda frame: frame.energy).to_atoms()
    if not exists(Path(text)):
        if text in g2.names:
            return molecule(text)
        raise AuditError(
            f"--structure {text:.300}: there is no such file, nor a molecule of that name in ase.build.molecule"
        )
    try:
        return last_structure(text)
    except DataError as error:
        raise AuditError(f"--structure {error}") from error
