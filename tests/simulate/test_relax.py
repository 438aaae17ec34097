"""Relaxation: convergence, cell, and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read
from audit_calculators import Springs, Turned

from ponita_ff import PonitaCalculator
from ponita_ff.potential.potential import Potential
from ponita_ff.simulate.relax import OPTIMISERS, optimise, relax_structure


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.usefixtures("drawn_pictures")
def test_a_shaken_molecule_comes_to_rest(optimiser: str, tmp_path: Path) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = EMT()
    found = relax_structure(atoms, tmp_path, optimiser, fmax=0.05, steps=300, progress=False)
    assert found.converged and found.fmax[-1] < 0.05
    assert found.energy[-1] < found.energy[0]
    relaxed, frames = read(tmp_path / "relaxed.xyz"), read(tmp_path / "relax.traj", ":")
    assert len(frames) == found.steps + 1
    np.testing.assert_allclose(relaxed.positions, frames[-1].positions, atol=1e-7)
    assert relaxed.get_potential_energy() == pytest.approx(found.energy[-1])
    lines = (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "step,energy_eV,fmax_eV_per_A"
    assert [float(value) for value in lines[-1].split(",")] == [found.steps, found.energy[-1], found.fmax[-1]]
    assert (tmp_path / "relax.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_relaxes_against_a_pressure(tmp_path: Path) -> None:
    volumes = []
    for pressure in (0.0, 5.0):
        atoms = bulk("Cu")
        atoms.set_cell(1.05 * atoms.cell.array, scale_atoms=True)
        atoms.calc = EMT()
        found = relax_structure(atoms, tmp_path, fmax=0.01, cell=True, pressure=pressure, progress=False)
        assert found.converged
        # Along the stress, ASE's cell coordinates have the force −V (σ + p).
        np.testing.assert_allclose(-atoms.get_stress()[:3] / 0.00624150907, pressure, atol=0.2)
        volumes.append(found.volume[-1])
    assert volumes[1] < volumes[0]
    assert "volume_A3" in (tmp_path / "log.csv").read_text(encoding="utf-8")


def test_what_cannot_converge_says_so(tmp_path: Path) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = EMT()
    found = optimise(atoms, OPTIMISERS["BFGS"], 1e-6, 2, tmp_path / "relax.traj", progress=False)
    assert not found.converged and found.steps == 2
    with pytest.raises(ValueError, match="only a cell that is periodic"):
        optimise(atoms, OPTIMISERS["BFGS"], 0.1, 2, tmp_path / "relax.traj", cell=True, progress=False)


@pytest.mark.usefixtures("drawn_pictures")
def test_a_structure_at_rest_makes_a_picture_too(tmp_path: Path) -> None:
    atoms = bulk("Cu")
    atoms.calc = EMT()
    found = relax_structure(atoms, tmp_path, progress=False)
    assert found.converged and found.steps == 0
    assert (tmp_path / "relax.png").read_bytes().startswith(b"\x89PNG")


def test_a_molecule_is_held_as_a_whole_and_what_was_held_is_reported(tmp_path: Path) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = Turned(Springs(atoms.copy()))
    atoms.rattle(0.05, seed=1)
    found = optimise(atoms, OPTIMISERS["BFGS"], 1e-5, 60, tmp_path / "relax.traj", progress=False)
    assert found.converged and found.fmax[-1] < 1e-5
    assert found.unprojected_fmax == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max())
    assert found.unprojected_fmax > 1e-3
    assert atoms.constraints == [] and read(tmp_path / "relax.traj").constraints == []
    free = optimise(atoms, OPTIMISERS["BFGS"], 1e-5, 1, tmp_path / "free.traj", progress=False, hold_rigid_motion=False)
    assert not free.converged and free.unprojected_fmax is None


@pytest.mark.parametrize("kind", ["constrained", "periodic"])
def test_what_is_not_free_is_not_held(kind: str, tmp_path: Path) -> None:
    atoms = molecule("CH3OH") if kind == "constrained" else bulk("Cu")
    atoms.set_constraint(FixAtoms([0]) if kind == "constrained" else None)
    atoms.calc = EMT()
    found = optimise(atoms, OPTIMISERS["BFGS"], 0.05, 3, tmp_path / "relax.traj", progress=False)
    assert found.unprojected_fmax is None
    assert len(read(tmp_path / "relax.traj").constraints) == len(atoms.constraints) == (kind == "constrained")


def test_a_molecule_that_breaks_is_reported(tmp_path: Path) -> None:
    far, near = Atoms("OH", [[0, 0, 0], [0, 0, 2.0]]), Atoms("OH", [[0, 0, 0], [0, 0, 0.97]])
    near.calc = Springs(far)
    found = optimise(near, OPTIMISERS["BFGS"], 0.01, 50, tmp_path / "relax.traj", progress=False)
    assert found.converged and found.broken == "the bond O0–H1 has changed from 0.97 to 2.00 Å"


def test_spread_of_a_committee_is_in_the_files(make_potential: Callable[..., Potential], tmp_path: Path) -> None:
    atoms = molecule("CH3OH")
    atoms.info["energy_std"] = 99.0  # of an earlier calculation
    atoms.calc = PonitaCalculator([make_potential(seed=seed, scale=0.05, zbl_cutoff=1.0) for seed in (0, 1)])
    relax_structure(atoms, tmp_path, fmax=0.01, steps=2, progress=False)
    expected = atoms.calc.results
    relaxed, last = read(tmp_path / "relaxed.xyz"), read(tmp_path / "relax.traj")
    assert relaxed.info["energy_std"] == pytest.approx(expected["energy_std"], rel=1e-6)
    np.testing.assert_allclose(relaxed.arrays["forces_std"], expected["forces_std"], atol=1e-7)
    assert last.info["energy_std"] == expected["energy_std"]
    np.testing.assert_array_equal(last.info["forces_std"], expected["forces_std"])
    np.testing.assert_array_equal(last.get_forces(), expected["forces"])
