"""Density functionals through PySCF: forces are the derivative of the energy, and energies are PySCF's own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.units import Hartree

from ponita_ff.data import read_frames
from ponita_ff.labels import KohnSham, find_method, kohn_sham, label_frames

pyscf = pytest.importorskip("pyscf", reason="needs PySCF")

pytestmark = pytest.mark.filterwarnings("ignore")  # of PySCF's own making


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """PySCF leaves files to the garbage collection, which warns of them: here, where warnings are ignored."""
    yield
    gc.collect()


def rattled(name: str) -> Atoms:
    """A molecule off its minimum, and off all symmetry."""
    atoms = molecule(name)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize(
    ("name", "functional", "multiplicity"),
    [("H2O", "r2scan", 1), ("H2O", "hf", 1), ("NH2", "pbe", 2), ("NH", "b3lyp", 3)],
)
def test_forces_are_the_negative_gradient_of_the_energy(name: str, functional: str, multiplicity: int) -> None:
    """Along a direction in which all coordinates change, by a difference of fourth order."""
    atoms, step = rattled(name), 4e-3
    atoms.calc = KohnSham(functional, "sto-3g", multiplicity=multiplicity)
    forces = atoms.get_forces()
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-4)
    direction = np.random.default_rng(0).normal(size=forces.shape)
    energies = []
    for shift in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions += shift * step * direction
        moved.calc = KohnSham(functional, "sto-3g", multiplicity=multiplicity)
        energies.append(moved.get_potential_energy())
    slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
    assert np.sum(forces * direction) == pytest.approx(-slope, abs=2e-4)


@pytest.mark.parametrize(("charge", "multiplicity", "restricted"), [(0, 1, True), (1, 2, False), (0, 3, False)])
def test_energies_are_those_of_pyscf(charge: int, multiplicity: int, restricted: bool) -> None:
    from pyscf import dft, gto

    atoms = rattled("H2O")
    atoms.calc = KohnSham("pbe", "6-31g", charge, multiplicity)
    where = list(zip(atoms.symbols, atoms.positions, strict=True))
    mole = gto.M(atom=where, basis="6-31g", charge=charge, spin=multiplicity - 1, verbose=0)
    field = (dft.RKS if restricted else dft.UKS)(mole, xc="pbe")
    assert atoms.get_potential_energy() == pytest.approx(field.kernel() * Hartree, abs=1e-5)


def test_heavy_elements_have_the_core_potential_of_their_basis() -> None:
    atoms = Atoms("HI", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.6]])
    atoms.calc = KohnSham("pbe", "def2-svp")
    # 25 electrons of I with def2's core potential of 28; all of its 53 would be at −188,000 eV.
    assert -8200 < atoms.get_potential_energy() < -8000


def test_a_field_that_does_not_converge_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kohn_sham, "_MAX_CYCLES", 2)
    atoms = rattled("H2O")
    atoms.calc = KohnSham("pbe", "sto-3g")
    with pytest.raises(CalculationFailed, match="did not converge in 2 cycles"):
        atoms.get_potential_energy()


def test_density_fitting_and_cartesian_functions_give_the_published_labels() -> None:
    """A frame of benchmarks/organic_wb97x, whose own script converges it in another way."""
    with np.load(Path(__file__).parents[2] / "benchmarks" / "organic_wb97x" / "labels.npz") as labels:
        sizes = labels["size"].astype(int)
        index = int(np.argmin(sizes))
        where = slice(int(sizes[:index].sum()), int(sizes[: index + 1].sum()))
        atoms = Atoms(labels["numbers"][where], labels["positions"][where])
        energy, forces = float(labels["energy"][index]), labels["forces"][where]
    atoms.calc = find_method("wb97x/6-31g*/density-fitting/cartesian").calculator()
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-3)
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-3)


def test_stages_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for stages in (kohn_sham._COARSE_GRIDS, ()):
        monkeypatch.setattr(kohn_sham, "_COARSE_GRIDS", stages)
        atoms = rattled("NH2")
        atoms.calc = KohnSham("pbe", "sto-3g", multiplicity=2, density_fitting=True)
        found.append(atoms.get_forces())
    np.testing.assert_allclose(*found, atol=1e-4)


def test_fields_are_set_up_as_the_name_says() -> None:
    def field(method: str, atoms: Atoms) -> Any:
        calculator = find_method(method).calculator()
        assert isinstance(calculator, KohnSham)
        return calculator._mean_field(atoms)

    water = molecule("H2O")
    plain = field("pbe/6-31g*", water)
    assert plain.mol.nao == 18 and getattr(plain, "with_df", None) is None
    assert field("pbe/6-31g*/cartesian", water).mol.nao == 19
    fitted = field("pbe/6-31g*/density-fitting", water)
    assert (
        fitted.mol.nao == 18 and fitted.with_df.auxbasis == "cc-pvtz-jkfit" and fitted.grids.level == plain.grids.level
    )
    # It has no functions for potassium.
    assert (
        field("pbe/def2-svp/density-fitting", Atoms("KH", [[0, 0, 0], [0, 0, 2.3]])).with_df.auxbasis != "cc-pvtz-jkfit"
    )


def test_crystals_are_refused() -> None:
    atoms = bulk("Si")
    atoms.calc = KohnSham("pbe", "sto-3g")
    with pytest.raises(CalculationFailed, match="molecules only"):
        atoms.get_potential_energy()


def test_labels_of_a_cation_in_a_process_of_its_own(tmp_path: Path) -> None:
    atoms = rattled("H2O")
    result = label_frames([atoms], "pbe/sto-3g", tmp_path / "out.xyz", charge=1, multiplicity=2)
    (frame,) = read_frames(result.path)
    atoms.calc = KohnSham("pbe", "sto-3g", 1, 2)
    assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-5)
    comment = result.path.read_text(encoding="utf-8").splitlines()[1]
    for entry in ("method=pbe/sto-3g", f'program="PySCF {pyscf.__version__}"', "charge=1", "multiplicity=2"):
        assert entry in comment
