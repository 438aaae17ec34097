"""The labels of a frame, and how an ASE calculator gives them."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, FileIOCalculator
from ase.calculators.genericfileio import GenericFileIOCalculator
from numpy.typing import NDArray

__all__ = ["Labels", "by_calculator", "of_ensemble", "set_temporary_folder"]


@dataclass(frozen=True, eq=False)
class Labels:
    """Energy, forces and stress of a frame, and how much an ensemble disagrees about them.

    Attributes:
        energy: eV; the free energy if the calculator has one, since forces are its negative gradient.
        forces: Shape (n, 3), eV/Å.
        stress: Shape (3, 3), eV/Å³ with ASE's sign, or None.
        program: Name and version of the program that calculated them.
        energy_spread: Standard deviation of the energy over the members, eV; None without an ensemble.
        forces_spread: Shape (n,), eV/Å: for each atom the root mean square over the members of the norm of the
            difference from the mean force; None without an ensemble.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None
    program: str
    energy_spread: float | None = None
    forces_spread: NDArray[np.float64] | None = None


def by_calculator(calculator: BaseCalculator, atoms: Atoms, program: str) -> Labels:
    """Labels by an ASE calculator, as it gives them: not validated, and the stress in ASE's order."""
    with ExitStack() as stack:
        set_temporary_folder(calculator, stack)
        atoms = atoms.copy()
        atoms.calc = calculator
        forces = atoms.get_forces()  # before the energy: some calculators skip the forces otherwise
        results: dict[str, Any] = getattr(calculator, "results", {})
        energy = results["free_energy"] if "free_energy" in results else atoms.get_potential_energy()
        periodic = bool(atoms.pbc.all()) and "stress" in calculator.implemented_properties
        return Labels(energy, forces, atoms.get_stress() if periodic else None, program)


def of_ensemble(energies: NDArray[np.float64], forces: NDArray[np.float64], program: str) -> Labels:
    """Means and spreads over the members.

    Args:
        energies: eV, shape (members,).
        forces: eV/Å, shape (members, n, 3).
        program: Name and version of the program.
    """
    mean = forces.mean(axis=0)
    spread = np.sqrt(np.square(forces - mean).sum(axis=2).mean(axis=0))
    return Labels(float(energies.mean()), mean, None, program, float(energies.std()), spread)


def set_temporary_folder(calculator: BaseCalculator, stack: ExitStack) -> None:
    """Programs that exchange files in the current folder would overwrite the files of each other."""
    if not isinstance(calculator, FileIOCalculator | GenericFileIOCalculator):
        return
    if Path(calculator.directory) == Path():
        calculator.directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="label-"))
