"""Energy and forces of a molecule at ωB97X/6-31G(d) with Cartesian d functions, the level of ANI-2x, by PySCF.

Density fitting with a large auxiliary basis, grid level 3, forces with the response of the grid, one thread. The
self-consistent field is converged on two coarse grids first and finished on the fine one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.units import Bohr, Hartree
from pyscf import dft, gto, lib

FUNCTIONAL, BASIS, AUXILIARY, GRID = "wb97x", "6-31g*", "cc-pvtz-jkfit", 3
#: Ha. The norm of the orbital gradient decides (leaves up to 0.6 meV/Å in the forces); the tolerance is the energy's.
GRADIENT, TOLERANCE = 1e-4, 1e-6
METHOD = (
    f"{FUNCTIONAL}/{BASIS} cartesian, density fitting {AUXILIARY}, grid level {GRID}, orbital gradient {GRADIENT:g} Ha"
)


class NotConverged(RuntimeError):
    """The self-consistent field did not converge by DIIS, by level shift and by the second-order solver."""


def molecule(numbers: np.ndarray, positions: np.ndarray) -> gto.Mole:
    """Return a neutral singlet.

    Args:
        numbers: Atomic numbers, shape (n,).
        positions: Å, shape (n, 3).
    """
    symbols = [chemical_symbols[number] for number in numbers]
    atoms = list(zip(symbols, np.asarray(positions, float) / Bohr, strict=True))
    return gto.M(atom=atoms, unit="Bohr", basis=BASIS, cart=True, verbose=0, max_memory=2000)


def field(mol: gto.Mole, grid: int, tolerance: float, gradient: float | None = None, auxiliary: str = AUXILIARY) -> Any:
    """Return a restricted Kohn-Sham calculation that has not been run.

    Args:
        mol: The molecule.
        grid: PySCF's level of the integration grid.
        tolerance: Convergence of the energy, Ha.
        gradient: Convergence of the norm of the orbital gradient, Ha. None: PySCF's default.
        auxiliary: Auxiliary basis of the density fitting.
    """
    found = dft.RKS(mol, xc=FUNCTIONAL).density_fit(auxbasis=auxiliary)
    found.grids.level, found.conv_tol, found.conv_tol_grad = grid, tolerance, gradient
    found.max_cycle, found.chkfile, found.conv_check = 60, None, False
    return found


def converged(mol: gto.Mole) -> Any:
    """Converge on two coarse grids, then on the fine one; if that fails, use ``stubborn``."""
    fitted = density = None
    for stage in ((0, 1e-4, None), (1, 1e-7, GRADIENT), (GRID, TOLERANCE, GRADIENT)):
        found = field(mol, *stage)
        found.with_df = fitted or found.with_df  # the fitted integrals do not depend on the grid
        found.kernel(density)
        fitted, density = found.with_df, found.make_rdm1()
    return found if found.converged else stubborn(mol)


def stubborn(mol: gto.Mole) -> Any:
    """Converge with a level shift, then to second order, what DIIS does not converge.

    Raises:
        NotConverged: If that fails as well.
    """
    shifted = field(mol, GRID, TOLERANCE, GRADIENT)
    shifted.level_shift, shifted.max_cycle = 0.3, 150
    shifted.kernel()
    found = shifted.newton()
    found.kernel(shifted.mo_coeff, shifted.mo_occ)
    if not found.converged:
        raise NotConverged("DIIS, level shift and second order failed")
    return found.undo_soscf()


def label(numbers: np.ndarray, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the energy (eV) and the forces (eV/Å, shape (n, 3)) of a neutral singlet.

    Args:
        numbers: Atomic numbers, shape (n,).
        positions: Å, shape (n, 3).

    Raises:
        NotConverged: If no solver converges.
    """
    lib.num_threads(1)
    found = converged(molecule(numbers, positions))
    gradient = found.nuc_grad_method()
    gradient.grid_response = True
    return float(found.e_tot) * Hartree, -gradient.kernel() * (Hartree / Bohr)
