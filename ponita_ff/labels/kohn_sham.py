"""Density functionals for ASE through PySCF."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.data import chemical_symbols
from ase.units import Bohr, Hartree

__all__ = ["KohnSham", "basis_problem", "functional_problem"]

#: Hartree. With the default of PySCF, 1e-9, errors of forces are up to some tenths of meV/Å.
_ENERGY_TOLERANCE = 1e-10
_MAX_CYCLES = 150

#: Of the density fitting. Against exact integrals at ωB97X/6-31G(d) forces differ by at most 0.7 meV/Å
#: (benchmarks/organic_wb97x).
_AUXILIARY_BASIS = "cc-pvtz-jkfit"
#: With density fitting the integration grid takes most of the time. The field is converged on coarse grids first: their
#: levels in PySCF, and the tolerances of the energy, Hartree.
_COARSE_GRIDS = ((0, 1e-4), (1, 1e-7))


class KohnSham(Calculator):
    """Energies (eV) and forces (eV/Å) of molecules: restricted Kohn-Sham for singlets, else unrestricted.

    The integration grid is the default of PySCF. Elements for which the basis set defines an effective core potential
    are calculated with it. Every calculation starts from atomic densities, not from an earlier result.

    Args:
        functional: Name in PySCF: ``pbe``, ``b3lyp``, ``wb97m-v``, ``hf``, …
        basis: Name in PySCF: ``def2-svp``, ``6-31g*``, …
        charge: Total charge in elementary charges.
        multiplicity: 2S + 1.
        cartesian: Six Cartesian d functions instead of five spherical ones, and so on, as in Gaussian's 6-31G(d).
        density_fitting: Fit the density with cc-pVTZ-JKFIT where it has all elements of the structure, else with the
            auxiliary basis that PySCF chooses, which is less accurate for small basis sets (up to 4 meV/Å).

    Raises:
        CalculationFailed: From a calculation: the self-consistent field does not converge, or the atoms are periodic.
        ModuleNotFoundError: From a calculation: PySCF is not installed.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - declared like this in the base class

    def __init__(
        self,
        functional: str,
        basis: str,
        charge: int = 0,
        multiplicity: int = 1,
        *,
        cartesian: bool = False,
        density_fitting: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            functional=functional,
            basis=basis,
            charge=charge,
            multiplicity=multiplicity,
            cartesian=cartesian,
            density_fitting=density_fitting,
            **kwargs,
        )

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Calculate energy (eV) and, if requested, forces (eV/Å) into ``results``."""
        super().calculate(atoms, properties, system_changes)
        assert isinstance(self.atoms, Atoms)
        if self.atoms.pbc.any():
            raise CalculationFailed("KohnSham calculates molecules only; these atoms are periodic")
        mean_field = self._mean_field(self.atoms)
        try:
            self._converge(mean_field)
            energy = float(mean_field.e_tot) * Hartree
            self.results = {"energy": energy, "free_energy": energy}
            if "forces" in properties:
                self.results["forces"] = self._forces(mean_field)
        finally:
            if self.parameters["density_fitting"]:
                # Cycles of references would keep the integrals, which are most of the memory, for some time.
                mean_field.with_df.reset()

    def _converge(self, mean_field: Any) -> None:
        mean_field.kernel(self._coarse_density(mean_field) if self.parameters["density_fitting"] else None)
        if not mean_field.converged:
            raise CalculationFailed(f"the self-consistent field did not converge in {_MAX_CYCLES} cycles")

    @staticmethod
    def _forces(mean_field: Any) -> Any:
        gradient = mean_field.nuc_grad_method()
        # The integration grid moves with the atoms. By default PySCF neglects that, and forces are not the exact
        # gradient of the energy: for ethanol in def2-SVP, errors are up to 2 meV/Å with PBE and 8 meV/Å with r²SCAN.
        # The additional time is negligible.
        gradient.grid_response = True
        return -gradient.kernel() * (Hartree / Bohr)

    def _mean_field(self, atoms: Atoms) -> Any:
        from pyscf import dft, gto

        parameters: Mapping[str, Any] = self.parameters
        basis, symbols = parameters["basis"], atoms.get_chemical_symbols()
        molecule = gto.M(
            # In Bohr by ASE's value, by which forces are converted to eV/Å, too.
            atom=list(zip(symbols, atoms.positions / Bohr, strict=True)),
            unit="Bohr",
            basis=basis,
            ecp=_core_potentials(basis, symbols),
            charge=parameters["charge"],
            spin=parameters["multiplicity"] - 1,
            cart=parameters["cartesian"],
            verbose=0,
        )
        mean_field = dft.RKS(molecule) if parameters["multiplicity"] == 1 else dft.UKS(molecule)
        mean_field.xc = parameters["functional"]
        mean_field.conv_tol = _ENERGY_TOLERANCE
        mean_field.max_cycle = _MAX_CYCLES
        mean_field.chkfile = None  # no checkpoint files
        if parameters["density_fitting"]:
            has_all = all(basis_problem(_AUXILIARY_BASIS, symbol) is None for symbol in set(symbols))
            mean_field = mean_field.density_fit(auxbasis=_AUXILIARY_BASIS if has_all else None)
        return mean_field

    def _coarse_density(self, mean_field: Any) -> Any:
        """A density matrix to begin with: that of coarse grids, with the fitted integrals of the final calculation."""
        density = None
        for level, tolerance in _COARSE_GRIDS:
            coarse = mean_field.copy()
            coarse.grids = type(mean_field.grids)(mean_field.mol)
            coarse.grids.level, coarse.conv_tol, coarse.conv_check = level, tolerance, False
            coarse.kernel(density)
            density = coarse.make_rdm1()
        return density


def _core_potentials(basis: str, symbols: Iterable[str]) -> dict[str, str]:
    """Effective core potentials by element; without them PySCF uses a valence basis for all electrons."""
    from pyscf.gto.mole import bse_predefined_ecp

    name, numbers = bse_predefined_ecp(basis, sorted(set(symbols)))
    return {chemical_symbols[number]: name for number in numbers or ()}


def functional_problem(functional: str) -> str | None:
    """The reason why PySCF cannot use a functional; None if it can."""
    from pyscf.dft import libxc
    from pyscf.scf.dispersion import parse_dft

    try:
        pure, _, dispersion = parse_dft(functional)
        libxc.parse_xc(pure)
    except (KeyError, ValueError, NotImplementedError) as error:
        return f"PySCF has no functional {functional!r} ({error.args[0] if error.args else error})"
    if dispersion and find_spec("pyscf.dispersion") is None:
        return f"the dispersion correction of {functional!r} needs another package: pip install pyscf-dispersion"
    return None


def basis_problem(basis: str, symbol: str) -> str | None:
    """The reason why PySCF has no basis functions for an element; None if it has."""
    from pyscf import gto

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a recommendation of another package
            gto.basis.load(basis, symbol)
    except (KeyError, RuntimeError, ValueError, OSError):
        return f"PySCF has no basis set {basis!r} for it; common ones are sto-3g, 6-31g*, def2-svp, def2-tzvp, …"
    return None
