"""The calculator as ASE and its users drive it."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import LinearCombinationCalculator, MixedCalculator
from ase.constraints import Hookean
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS
from ase.vibrations import Vibrations, VibrationsData

from ponita_ff import PonitaCalculator, PotentialFileError
from ponita_ff.potential.potential import Potential
from ponita_ff.simulate.frames import as_traj_keeps_it, with_results
from ponita_ff.structure.graph import build_graph

Make = Callable[..., Potential]


def count_evaluations(calculator: PonitaCalculator, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that grows by one at each evaluation of the network: whether stress was computed."""
    calls: list[bool] = []
    evaluate = calculator._evaluate

    def counted(graph: Any, stress: bool) -> dict[str, Any]:
        calls.append(stress)
        return evaluate(graph, stress)

    monkeypatch.setattr(calculator, "_evaluate", counted)
    return calls


def set_momenta(atoms: Atoms, seed: int) -> None:
    """Momenta as at 300 K."""
    width = np.sqrt(atoms.get_masses() * units.kB * 300.0)
    atoms.set_momenta(width[:, None] * np.random.default_rng(seed).normal(size=(len(atoms), 3)))


# --------------------------------------------------------------------------------------------- results


def test_results_of_a_crystal(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("crystal")
    atoms.calc = PonitaCalculator(tiny_potential)
    stress = atoms.get_stress()
    results = atoms.calc.results
    assert (
        set(results)
        == {"energy", "free_energy", "energies", "forces", "stress"}
        == set(atoms.calc.implemented_properties)
    )
    assert type(results["energy"]) is float
    shapes = {"energies": (4,), "forces": (4, 3), "stress": (6,)}
    for name, shape in shapes.items():
        assert isinstance(results[name], np.ndarray)
        assert results[name].shape == shape, name
        assert results[name].dtype == np.float64, name
    assert results["energies"].sum() == pytest.approx(results["energy"], abs=1e-9)
    assert results["free_energy"] == results["energy"] == atoms.get_potential_energy(force_consistent=True)
    graph = build_graph(atoms.numbers, atoms.positions, 4.0, np.asarray(atoms.cell), atoms.pbc)
    matrix = tiny_potential(graph, stress=True).stress[0].numpy()
    voigt = [matrix[a, b] for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    assert stress == pytest.approx(voigt, abs=1e-12)
    assert len({round(abs(value), 9) for value in voigt}) == 6  # so that a wrong order would show


def test_a_structure_that_was_refused_has_no_results(tiny_potential: Potential) -> None:
    calculator = PonitaCalculator(tiny_potential)
    good, bad = molecule("H2O"), molecule("H2O")
    energy = calculator.get_property("energy", good)
    bad.positions[1] = np.nan
    with pytest.raises(ValueError):
        calculator.calculate(bad)
    assert calculator.get_property("energy", good) == energy
    with pytest.raises(ValueError):
        calculator.calculate(bad)
    with pytest.raises(ValueError):
        calculator.get_property("energy", bad)


def test_results_are_float64_from_a_float32_network(make_potential: Make, make_system: Callable) -> None:
    atoms = make_system("crystal")
    atoms.calc = PonitaCalculator(make_potential(dtype=torch.float32))
    assert atoms.get_stress().dtype == atoms.get_forces().dtype == atoms.get_potential_energies().dtype == np.float64


def test_forces_against_finite_differences_of_ase(system: Atoms, tiny_potential: Potential) -> None:
    system.calc = PonitaCalculator(tiny_potential)
    assert np.abs(system.get_forces() - calculate_numerical_forces(system, eps=1e-4)).max() <= 1e-6


@pytest.mark.parametrize("name", ["crystal", "one atom in a tiny cell", "two atoms in a tiny cell"])
@pytest.mark.parametrize("zbl_cutoff", [None, 1.8])
def test_stress_against_finite_differences_of_ase(name, zbl_cutoff, make_potential: Make, make_system) -> None:
    atoms = make_system(name)
    atoms.calc = PonitaCalculator(make_potential(zbl_cutoff=zbl_cutoff, num_layers=1))
    assert np.abs(atoms.get_stress() - calculate_numerical_stress(atoms, eps=1e-5)).max() <= 1e-6
    assert np.abs(atoms.get_stress()).max() > 1e-3


def test_pressure_of_a_compressed_crystal_is_positive(make_potential: Make) -> None:
    atoms = Atoms("C", cell=np.eye(3) * 1.2, pbc=True, calculator=PonitaCalculator(make_potential(zbl_cutoff=2.0)))
    assert -atoms.get_stress()[:3].mean() > 0.1


def test_stress_costs_nothing_until_it_is_asked_for(tiny_potential, make_system, monkeypatch) -> None:
    atoms = make_system("crystal")
    atoms.calc = PonitaCalculator(tiny_potential)
    calls = count_evaluations(atoms.calc, monkeypatch)
    atoms.get_forces()
    assert "stress" not in atoms.calc.results
    atoms.get_stress()
    atoms.rattle(0.01)
    atoms.get_forces()
    atoms.get_stress()
    assert calls == [False, True, True]
    # A molecule after the crystal, with the same calculator.
    other = make_system("molecule")
    other.calc = atoms.calc
    other.get_forces()
    assert calls == [False, True, True, False]


# -------------------------------------------------------------------------------------------- ASE's cache


def test_nothing_is_computed_twice(tiny_potential, make_system, monkeypatch) -> None:
    atoms = make_system("crystal")
    atoms.calc = PonitaCalculator(tiny_potential)
    calls = count_evaluations(atoms.calc, monkeypatch)
    for _ in range(3):
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.get_potential_energies()
        atoms.copy()
    assert len(calls) == 1


CHANGES: dict[str, Callable[[Atoms], None]] = {
    "positions": lambda atoms: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 0.01),
    "cell": lambda atoms: atoms.set_cell(np.asarray(atoms.cell) * 1.01),
    "cell and positions": lambda atoms: atoms.set_cell(np.asarray(atoms.cell) * 1.01, scale_atoms=True),
    "pbc": lambda atoms: atoms.set_pbc((True, False, True)),
    "numbers": lambda atoms: atoms.numbers.__setitem__(1, 6),
    "one atom fewer": lambda atoms: atoms.__delitem__(2),
    "order": lambda atoms: atoms.set_positions(atoms.positions[[1, 0, 2, 3]]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_computed(change: str, tiny_potential, make_system, monkeypatch) -> None:
    atoms = make_system("crystal")
    atoms.calc = PonitaCalculator(tiny_potential)
    calls = count_evaluations(atoms.calc, monkeypatch)
    before = atoms.get_potential_energy()
    CHANGES[change](atoms)
    after = atoms.get_potential_energy()
    assert len(calls) == 2
    assert abs(after - before) > 1e-7
    fresh = PonitaCalculator(tiny_potential, skin=0.0)
    assert after == pytest.approx(fresh.get_property("energy", atoms), abs=1e-9)
    assert atoms.get_forces() == pytest.approx(fresh.get_forces(atoms), abs=1e-9)


def test_results_survive_a_later_calculation(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    atoms.calc = PonitaCalculator(tiny_potential)
    forces = atoms.get_forces()
    kept = forces.copy()
    atoms.rattle(0.1)
    atoms.get_forces()
    assert np.array_equal(forces, kept)


def test_a_refused_structure_leaves_no_results_behind(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    atoms.calc = PonitaCalculator(tiny_potential)
    energy = atoms.get_potential_energy()
    good = atoms.positions.copy()
    atoms.positions[0, 0] = np.nan
    for _ in range(2):
        with pytest.raises(ValueError, match="not finite"):
            atoms.get_potential_energy()
    assert not atoms.calc.results
    atoms.positions = good
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-12)


# ---------------------------------------------------------------------------------------------- at work


def test_relaxation_of_a_cell(make_potential: Make, make_system: Callable) -> None:
    atoms = make_system("crystal")
    atoms.calc = PonitaCalculator(make_potential(channels=8, num_layers=1, zbl_cutoff=1.8))
    before = atoms.get_potential_energy()
    with BFGS(FrechetCellFilter(atoms), logfile=None) as optimiser:
        converged = optimiser.run(fmax=0.02, steps=150)
    assert converged
    assert atoms.get_potential_energy() < before - 0.01
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.02


def test_dynamics_conserve_energy(make_potential: Make, make_system: Callable) -> None:
    totals = {}
    for timestep in (0.5, 0.25):
        atoms = make_system("molecule")
        atoms.calc = PonitaCalculator(make_potential(zbl_cutoff=1.2))
        set_momenta(atoms, seed=0)
        energies, kinetic = [], []
        with VelocityVerlet(atoms, timestep * units.fs, logfile=None) as dynamics:
            for _ in dynamics.irun(round(25 / timestep)):
                energies.append(atoms.get_total_energy())
                kinetic.append(atoms.get_kinetic_energy())
        totals[timestep] = np.ptp(energies)
        assert totals[timestep] < 0.01 * np.ptp(kinetic)
    # Of second order in the time step: what is left is the integrator's error, not the potential's.
    assert totals[0.25] < 0.35 * totals[0.5]


def band(calculators: list[PonitaCalculator], make_system: Callable, shared: bool) -> np.ndarray:
    """Energies of a band of images after a few steps."""
    first, last = make_system("molecule"), make_system("molecule")
    last.rattle(0.1, seed=3)
    images = [first, *(first.copy() for _ in range(3)), last]
    for image, calculator in zip(images, calculators, strict=True):
        image.calc = calculator
    neb = NEB(images, allow_shared_calculator=shared, method="improvedtangent")
    neb.interpolate()
    with BFGS(neb, logfile=None) as optimiser:
        optimiser.run(fmax=0.0, steps=4)
    return np.array([image.get_potential_energy() for image in images])


def test_elastic_band_with_one_calculator_for_all_images(make_potential: Make, make_system: Callable) -> None:
    potential = make_potential(channels=8, num_layers=1)
    one = PonitaCalculator(potential)
    shared = band([one] * 5, make_system, shared=True)
    own = band([PonitaCalculator(potential) for _ in range(5)], make_system, shared=False)
    assert shared == pytest.approx(own, abs=1e-9)
    assert np.ptp(shared) > 1e-4


def test_vibrations_agree_with_the_hessian(tmp_path: Path, make_potential: Make) -> None:
    atoms = molecule("H2O")
    atoms.calc = PonitaCalculator(make_potential(channels=8, zbl_cutoff=1.5))
    with BFGS(atoms, logfile=None) as optimiser:
        optimiser.run(fmax=1e-4, steps=200)
    vibrations = Vibrations(atoms, delta=1e-3, nfree=4, name=str(tmp_path / "vib"))
    vibrations.run()
    numerical = vibrations.get_energies()
    hessian = atoms.calc.get_hessian(atoms)
    analytical = VibrationsData.from_2d(atoms, hessian).get_energies()
    # Squares: imaginary ones too, and near zero the roots would blow up.
    assert (numerical**2).real == pytest.approx((analytical**2).real, rel=1e-4, abs=1e-8)
    assert np.abs(analytical).max() > 0.01
    root = np.repeat(atoms.get_masses() ** -0.5, 3)
    eigenvalues = np.linalg.eigvalsh(root[:, None] * hessian * root)
    scale = units._hbar * units.m / np.sqrt(units._e * units._amu)  # √(eV/Å²/u) as an angular frequency, in eV
    assert (analytical**2).real == pytest.approx(eigenvalues * scale**2, rel=1e-6, abs=1e-12)


def test_hessian_against_differences_of_forces(system: Atoms, make_potential: Make) -> None:
    calculator = PonitaCalculator(make_potential(num_layers=1, zbl_cutoff=1.8))
    hessian = calculator.get_hessian(system)
    step, rows = 1e-4, []
    for index in range(3 * len(system)):
        forces = []
        for sign in (1, -1):
            moved = system.copy()
            moved.positions.flat[index] += sign * step
            forces.append(calculator.get_forces(moved).flatten())
        rows.append((forces[1] - forces[0]) / (2 * step))
    assert hessian.shape == (3 * len(system),) * 2
    assert np.abs(hessian - np.array(rows)).max() < 1e-5
    assert np.array_equal(hessian, hessian.T)


def test_hessian_block(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    calculator = PonitaCalculator(tiny_potential)
    with pytest.raises(ValueError, match="atoms"):
        calculator.get_hessian()
    whole = calculator.get_hessian(atoms)
    columns = np.concatenate([np.arange(3 * i, 3 * i + 3) for i in (5, 2)])
    assert calculator.get_hessian(atoms, indices=[5, 2]) == pytest.approx(whole[np.ix_(columns, columns)], abs=1e-10)
    calculator.get_forces(atoms)
    assert np.array_equal(calculator.get_hessian(), calculator.get_hessian(atoms))
    for indices in ([], [9], [-1], [0.5], [True, False] * 4):
        with pytest.raises(ValueError, match="indices must be atoms 0 to 8"):
            calculator.get_hessian(atoms, indices=indices)


def test_hessian_of_atoms_in_one_place_is_refused(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    atoms.positions[2] = atoms.positions[1]
    with pytest.raises(ValueError, match="atoms 1 and 2 are in one place"):
        PonitaCalculator(tiny_potential).get_hessian(atoms)


def test_hessian_leaves_the_results_alone(tiny_potential, make_system, monkeypatch) -> None:
    atoms, other = make_system("molecule"), make_system("crystal")
    atoms.calc = PonitaCalculator(tiny_potential)
    energy = atoms.get_potential_energy()
    calls = count_evaluations(atoms.calc, monkeypatch)
    atoms.calc.get_hessian(other, indices=[0])
    assert atoms.get_potential_energy() == energy
    assert not calls
    atoms.positions[0, 0] += 0.01
    expected = PonitaCalculator(tiny_potential).get_property("energy", atoms)
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-9)


def test_combinations_with_itself(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    one, other = PonitaCalculator(tiny_potential), PonitaCalculator(tiny_potential)
    energy, forces = one.get_property("energy", atoms), one.get_forces(atoms)
    for combined in (LinearCombinationCalculator([one, other], [0.25, 0.75]), MixedCalculator(one, other, 0.5, 0.5)):
        fresh = atoms.copy()
        fresh.calc = combined
        assert fresh.get_potential_energy() == pytest.approx(energy, rel=1e-12)
        assert fresh.get_forces() == pytest.approx(forces, abs=1e-12)
        fresh.rattle(0.05, seed=2)
        assert fresh.get_forces() == pytest.approx(PonitaCalculator(tiny_potential).get_forces(fresh), abs=1e-9)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_a_copy_of_a_used_calculator_is_one_of_its_own(duplicate, tiny_potential: Potential, make_system) -> None:
    atoms = make_system("molecule")
    original = PonitaCalculator(tiny_potential)
    energy = original.get_property("energy", atoms)
    second = duplicate(original)
    assert second.get_property("energy", atoms) == energy
    atoms.rattle(0.05, seed=4)
    moved = original.get_property("energy", atoms)
    assert second.get_property("energy", atoms) == moved
    second.potential.network.readouts[0].bias.add_(1.0)
    second.reset()
    assert second.get_property("energy", atoms) != moved
    original.reset()
    assert original.get_property("energy", atoms) == moved


def test_a_structure_with_its_calculator_can_be_copied(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    atoms.calc = PonitaCalculator(tiny_potential)
    energy = atoms.get_potential_energy()
    assert copy.deepcopy(atoms).get_potential_energy() == energy


def test_two_dtypes_side_by_side(make_potential: Make, make_system: Callable) -> None:
    potential, atoms = make_potential(), make_system("molecule")
    double, single = PonitaCalculator(potential), PonitaCalculator(potential, dtype="float32")
    exact, rounded = double.get_forces(atoms), single.get_forces(atoms)
    assert potential.dtype == double.potential.dtype == torch.float64
    assert single.potential.dtype == torch.float32
    assert 0 < np.abs(exact - rounded).max() < 1e-4
    double.reset()
    assert np.array_equal(double.get_forces(atoms), exact)


def test_dtype_as_torch_spells_it(tiny_potential: Potential) -> None:
    assert PonitaCalculator(tiny_potential, dtype=torch.float32).potential.dtype == torch.float32


def test_path_and_potential_give_the_same(tiny_potential_path: Path, make_system: Callable) -> None:
    from ponita_ff import load_potential

    atoms = make_system("molecule")
    energies = [
        PonitaCalculator(source).get_property("energy", atoms)
        for source in (tiny_potential_path, str(tiny_potential_path), load_potential(tiny_potential_path))
    ]
    assert energies[0] == energies[1] == energies[2]


def rattled_copies(atoms: Atoms, number: int) -> list[Atoms]:
    """Copies of one structure, each moved differently."""
    copies = [atoms.copy() for _ in range(number)]
    for seed, one in enumerate(copies):
        one.rattle(0.05, seed=seed)
    return copies


def slow_down(calculator: PonitaCalculator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave other threads time between a calculation and the look-up of its result."""
    calculate = calculator.calculate

    def slow(*arguments: Any) -> None:
        calculate(*arguments)
        time.sleep(2e-3)

    monkeypatch.setattr(calculator, "calculate", slow)


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_threads_that_share_a_calculator_get_their_own_values(
    backend: str, make_potential: Make, make_system: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = PonitaCalculator(make_potential(dtype=torch.float32), backend=backend)
    systems = rattled_copies(make_system("crystal"), 4)
    expected = [PonitaCalculator(shared.potential, backend=backend).get_property("forces", one) for one in systems]
    slow_down(shared, monkeypatch)

    def wrong(index: int) -> int:
        atoms = systems[index].copy()
        atoms.calc = shared
        found = []
        for _ in range(5):
            atoms.calc.discard_state()
            found.append(atoms.get_forces())
            atoms.get_potential_energy()
        return sum(not np.allclose(forces, expected[index], atol=1e-5) for forces in found)

    with ThreadPoolExecutor(len(systems)) as pool:
        assert list(pool.map(wrong, range(len(systems)))) == [0] * len(systems)


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_threads_that_share_a_potential_get_their_own_values(
    backend: str, make_potential: Make, make_system: Callable
) -> None:
    potential = make_potential(dtype=torch.float32)
    systems = rattled_copies(make_system("molecule"), 8)
    expected = [potential.clone().evaluate([one], backend=backend) for one in systems]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(potential.evaluate, [one], backend=backend) for one in 5 * systems]
    for job, right in zip(jobs, 5 * expected, strict=True):
        assert job.result().forces[0] == pytest.approx(right.forces[0], abs=1e-5)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_a_copy_shares_no_lock_and_no_neighbour_list(duplicate, tiny_potential: Potential, make_system) -> None:
    original = PonitaCalculator(tiny_potential)
    first, second = rattled_copies(make_system("molecule"), 2)
    before = original.get_property("energy", first)
    other = duplicate(original)
    assert other._lock is not original._lock
    assert other._graphs is not original._graphs
    assert other.get_property("energy", second) == PonitaCalculator(tiny_potential).get_property("energy", second)
    assert np.array_equal(original._graphs._graph["positions"].numpy(), first.positions)
    assert original.get_property("energy", first) == before


def test_the_calculator_has_its_own_copy(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    calculator = PonitaCalculator(tiny_potential)
    energy = calculator.get_property("energy", atoms)
    tiny_potential.network.embedding.weight.zero_()
    calculator.reset()
    assert calculator.get_property("energy", atoms) == energy


def test_finer_grid_and_rotations_as_options(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    by_hand = tiny_potential.clone()
    by_hand.set_grid(32)
    by_hand.average_rotations(2)
    expected = PonitaCalculator(by_hand).get_property("energy", atoms)
    calculator = PonitaCalculator(tiny_potential, num_ori=32, rotations=2)
    assert calculator.get_property("energy", atoms) == pytest.approx(expected, abs=1e-12)
    assert abs(expected - PonitaCalculator(tiny_potential).get_property("energy", atoms)) > 1e-6


# ------------------------------------------------------------------------------------------------- skin


def trajectory(
    atoms: Atoms, potential: Potential, skin: float, steps: int, wrap_at: int | None
) -> tuple[np.ndarray, int]:
    """Positions after each step of dynamics, and how often a neighbour list was made."""
    atoms = atoms.copy()
    atoms.calc = PonitaCalculator(potential, skin=skin)
    if not atoms.pbc.any():
        # Random weights bind nothing: springs keep the motion regular, so that rounding stays small.
        atoms.set_constraint([Hookean(index, tuple(x), k=0.5, rt=0.0) for index, x in enumerate(atoms.positions)])
    set_momenta(atoms, seed=1)
    positions = []
    with VelocityVerlet(atoms, 0.5 * units.fs, logfile=None) as dynamics:
        for _ in dynamics.irun(steps):
            if len(positions) == wrap_at:
                atoms.wrap()
            positions.append(atoms.positions.copy())
    return np.array(positions), atoms.calc._graphs.rebuilds


@pytest.mark.parametrize(("name", "steps"), [("molecule", 350), ("crystal", 150)])
def test_skin_changes_no_trajectory(name: str, steps: int, make_potential: Make, make_system: Callable) -> None:
    potential = make_potential(channels=4, num_layers=1, l_max=1, num_ori=6, cutoff=2.5, zbl_cutoff=1.4, scale=0.05)
    atoms = make_system(name)
    wrap_at = steps // 2 if name == "crystal" else None
    without, every = trajectory(atoms, potential, 0.0, steps, wrap_at)
    with_skin, few = trajectory(atoms, potential, 0.5, steps, wrap_at)
    assert np.abs(with_skin - without).max() <= 1e-10
    assert every >= steps
    assert 5 <= few < 0.2 * steps
    assert np.abs(without - without[0]).max() > 0.5  # atoms did move by more than the skin


def test_dispersion_on_top(tiny_potential: Potential) -> None:
    """As the guide to relaxation has it: ASE adds what DFT-D4 gives."""
    dftd4 = pytest.importorskip("dftd4.ase")
    from ase.calculators.mixing import SumCalculator

    atoms = molecule("CH3OH")
    parts = [PonitaCalculator(tiny_potential), dftd4.DFTD4(method="wb97x_2008")]
    energies = [part.get_potential_energy(atoms) for part in parts]
    forces = [part.get_forces(atoms) for part in parts]
    atoms.calc = SumCalculator(parts)
    assert -0.1 < energies[1] < 0
    assert atoms.get_potential_energy() == pytest.approx(sum(energies), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), forces[0] + forces[1], atol=1e-9)


# ------------------------------------------------------------------------------------------- committees


def committee(make_potential: Make) -> list[Potential]:
    """Three members that differ in weights, cutoff, scale and reference energies."""
    return [
        make_potential(seed=0),
        make_potential(seed=1, cutoff=3.0, scale=0.5, zbl_cutoff=1.8),
        make_potential(seed=3, references={1: -13.0, 6: -1030.0, 8: -2042.0}, num_layers=1),
    ]


def test_committee_is_the_mean_and_tells_the_spread(system: Atoms, make_potential: Make) -> None:
    members = committee(make_potential)
    calculator = PonitaCalculator(members)
    names = ["energy", "free_energy", "energies", "forces", *(["stress"] if system.pbc.all() else [])]
    for _ in range(2):
        alone = [PonitaCalculator(member, skin=0.0) for member in members]
        for name in names:
            values = np.array([one.get_property(name, system) for one in alone])
            assert calculator.get_property(name, system) == pytest.approx(values.mean(axis=0), abs=1e-9), name
        energies = np.array([one.get_property("energy", system) for one in alone])
        forces = np.array([one.get_property("forces", system) for one in alone])
        assert calculator.get_property("energy_std", system) == calculator.results["energy_std"]
        deviation = np.sqrt(np.square(energies - energies.mean()).sum() / 3)
        assert calculator.results["energy_std"] == pytest.approx(deviation, abs=1e-9)
        spread = np.sqrt(np.square(forces - forces.mean(axis=0)).sum(axis=0) / 3)
        assert calculator.get_property("forces_std", system) == pytest.approx(spread, abs=1e-9)
        assert calculator.results["forces_std"].shape == (len(system), 3)
        assert deviation > 0.1
        system.rattle(0.05, seed=5)  # within the skin: the longest cutoff's list serves all


def test_committee_is_not_more_than_asked_for(make_potential: Make, make_system: Callable) -> None:
    atoms = make_system("molecule")
    atoms.calc = PonitaCalculator([make_potential()])
    atoms.get_forces()
    assert set(atoms.calc.results) == {"energy", "free_energy", "energies", "forces"}
    with pytest.raises(PropertyNotImplementedError, match="energy_std"):
        atoms.calc.get_property("energy_std", atoms)
    assert "energy_std" not in PonitaCalculator.implemented_properties


def test_committee_of_files(tiny_potential_path: Path, make_system: Callable) -> None:
    atoms = make_system("molecule")
    energy = PonitaCalculator(tiny_potential_path).get_property("energy", atoms)
    both = PonitaCalculator((tiny_potential_path, str(tiny_potential_path)), dtype="float32")
    assert both.get_property("energy", atoms) == pytest.approx(energy, abs=1e-12)
    assert both.get_property("energy_std", atoms) == 0.0


def test_committee_refuses_what_one_member_does_not_know(make_potential: Make) -> None:
    narrower = Potential(make_potential().network, [1, 6, 7], {})
    calculator = PonitaCalculator([make_potential(), narrower])
    assert np.isfinite(calculator.get_property("energy", Atoms("CH", positions=[[0, 0, 0], [0, 0, 1.1]])))
    for symbols, unknown in (("CO", "O"), ("CN", "N")):
        for _ in range(2):
            with pytest.raises(ValueError, match=f"atom 1 is {unknown} "):
                calculator.get_property("energy", Atoms(symbols, positions=[[0, 0, 0], [0, 0, 1.1]]))


def test_committee_whose_members_write_into_one_place(make_potential: Make, make_system: Callable, monkeypatch) -> None:
    """As those compiled for a GPU may."""
    members, atoms = committee(make_potential), make_system("molecule")
    expected = PonitaCalculator(members)
    forces = expected.get_forces(atoms)
    calculator = PonitaCalculator(members)
    place: list[torch.Tensor] = []

    def reusing(predict: Callable) -> Callable:
        def predicted(graph: Any, stress: bool) -> list[torch.Tensor]:
            values = predict(graph, stress)
            if not place:
                place.extend(value.clone() for value in values)
            return [old.copy_(new) for old, new in zip(place, values, strict=True)]

        return predicted

    monkeypatch.setattr(calculator, "_predictors", [reusing(predict) for predict in calculator._predictors])
    assert np.array_equal(calculator.get_forces(atoms), forces)
    assert calculator.results["energy_std"] == expected.results["energy_std"] > 0.1


def test_committee_without_members() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PonitaCalculator([])


def test_hessian_of_a_committee_is_that_of_its_energy(make_potential: Make, make_system: Callable) -> None:
    atoms, members = make_system("two atoms in a tiny cell"), committee(make_potential)
    each = [PonitaCalculator(member).get_hessian(atoms) for member in members]
    assert PonitaCalculator(members).get_hessian(atoms) == pytest.approx(np.mean(each, axis=0), abs=1e-9)
    assert np.abs(each[0] - each[1]).max() > 1e-2


def test_committee_in_files_and_bands_of_ase(tmp_path: Path, make_potential: Make, make_system: Callable) -> None:
    atoms = make_system("molecule")
    atoms.calc = PonitaCalculator(committee(make_potential))
    forces = atoms.get_forces()
    for name in ("frame.xyz", "frame.traj"):
        write(tmp_path / name, atoms)
        assert read(tmp_path / name).get_forces() == pytest.approx(forces, abs=1e-6)
    assert np.array_equal(atoms.get_properties(["forces"])["forces"], forces)
    assert np.ptp(band([atoms.calc] * 5, make_system, shared=True)) > 1e-4


# ---------------------------------------------------------------------------------------------- warm-up


def trace(calculator: PonitaCalculator) -> dict[str, Any]:
    """Everything that a calculation leaves behind."""
    return {name: value for name, value in vars(calculator).items() if name != "_predictors"}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("other", ["molecule", "crystal"])
def test_warmup_leaves_no_trace(used: bool, other: str, tiny_potential, make_system, monkeypatch) -> None:
    atoms = make_system("molecule")
    calculator = PonitaCalculator(tiny_potential)
    if used:
        atoms.calc = calculator
        atoms.get_forces()
        atoms.calc = None
    before = dict(trace(calculator))
    results, rebuilds = dict(calculator.results), calculator._graphs.rebuilds
    moved = make_system(other)
    moved.rattle(0.5, seed=6)
    calculator.warmup(moved, stress=other == "crystal")
    after = trace(calculator)
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)
    assert calculator.results == results
    assert calculator._graphs.rebuilds == rebuilds
    calls = count_evaluations(calculator, monkeypatch)
    expected = PonitaCalculator(tiny_potential).get_forces(atoms)
    assert np.array_equal(calculator.get_forces(atoms), expected)
    assert calls == ([] if used else [False])


def test_warmup_of_what_cannot_be_leaves_no_trace_either(tiny_potential: Potential, make_system: Callable) -> None:
    atoms = make_system("molecule")
    calculator = PonitaCalculator(tiny_potential)
    energy = calculator.get_property("energy", atoms)
    before = dict(trace(calculator))
    with pytest.raises(ValueError, match="atom 0 is S"):
        calculator.warmup(Atoms("S"))
    with pytest.raises(ValueError, match="stress needs a cell"):
        calculator.warmup(atoms, stress=True)
    assert all(trace(calculator)[name] is before[name] for name in before)
    assert calculator.get_property("energy", atoms) == energy


def test_warmup_compiles(make_potential: Make, make_system: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    potential = make_potential(channels=4, num_layers=1, l_max=1, num_ori=6)
    atoms, calculator = make_system("molecule"), PonitaCalculator(potential, backend="compiled")
    assert not compiled
    calculator.warmup(atoms)
    assert len(compiled) == 1
    calculator.get_forces(atoms)
    assert len(compiled) == 1


# ---------------------------------------------------------------------------------------- cost of a step


def test_one_transfer_a_step_and_no_other_wait(make_potential: Make, make_system: Callable, monkeypatch) -> None:
    """Whatever waits for a device would show in these methods of tensors."""
    atoms = make_system("molecule")
    atoms.calc = PonitaCalculator([make_potential(zbl_cutoff=1.5), make_potential(seed=1)], backend="eager")
    atoms.get_forces()
    waits: list[str] = []
    for name in ("cpu", "item", "tolist", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        method = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *args: Any, name: str = name, method: Any = method) -> Any:
            waits.append(name)
            return method(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    atoms.positions[0, 0] += 0.01
    atoms.get_forces()
    assert waits == ["cpu"]


def test_species_are_checked_when_numbers_change_only(tiny_potential, make_system, monkeypatch) -> None:
    atoms = make_system("molecule")
    calculator = PonitaCalculator(tiny_potential)
    checks: list[int] = []
    monkeypatch.setattr(calculator.potential, "check_species", lambda numbers: checks.append(len(numbers)))
    for _ in range(3):
        calculator.get_forces(atoms)
        atoms.positions[0, 0] += 0.01
    assert checks == [9]
    atoms.numbers[0] = 8
    calculator.get_forces(atoms)
    assert checks == [9, 9]


@pytest.mark.parametrize("cutoff", [4.0, 2.0])
@pytest.mark.parametrize("skin", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("images", [False, True])
def test_atoms_that_come_into_one_place_are_caught_on_the_way(
    cutoff: float, skin: float, images: bool, make_potential: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two atoms approach each other in small steps: the check may be left out only while they cannot have met."""
    calculator = PonitaCalculator(make_potential(cutoff=cutoff, channels=4, num_layers=1, l_max=0), skin=skin)
    # What the network makes of them has no part in it.
    zeros = [torch.zeros(shape, dtype=torch.float64) for shape in ((1,), (3,), (3, 3))]
    monkeypatch.setattr(calculator, "_predict", lambda graph, stress: zeros)
    for start in (0.2, 0.54, 0.56, 1.2, 2.6):
        distance, refused = start, False
        while distance > 0.0 and not refused:
            left = 5.0 - distance if images else distance
            atoms = Atoms("COH", positions=[[2.5, 1.9, 1.6], [0, 0, 0], [left, 0, 0]], cell=np.eye(3) * 5, pbc=images)
            atoms.positions[1:, 0] -= 0.3 * distance  # both move
            if distance < 0.05:
                with pytest.raises(ValueError, match="atoms 1 and 2 are in one place"):
                    calculator.get_forces(atoms)
                refused = True
            else:
                calculator.get_forces(atoms)
            distance -= 0.02
        assert refused


def device_calculator(potential: Potential) -> PonitaCalculator:
    """A calculator that makes lists as it would on a GPU, for nine atoms or more."""
    calculator = PonitaCalculator(potential)
    calculator._graphs.device_list_atoms = 9
    return calculator


def test_lists_made_on_the_device_change_nothing(make_potential: Make, make_system: Callable) -> None:
    potential = make_potential(channels=4, num_layers=1, l_max=1, num_ori=6)
    calculator = device_calculator(potential)
    molecule_, crystal = make_system("molecule"), make_system("crystal").repeat((3, 1, 1))
    small = make_system("crystal")
    generator = np.random.default_rng(0)
    for step in range(12):
        # The same atoms again and others in between, of sizes on both sides of the limit.
        for atoms in (molecule_, molecule_, crystal, small):
            if step % 3 == 2:
                calculator.get_forces(small)
            atoms.positions += 0.07 * generator.normal(size=(len(atoms), 3))
            fresh = PonitaCalculator(potential, skin=0.0)
            assert calculator.get_forces(atoms) == pytest.approx(fresh.get_forces(atoms), abs=1e-9)
    crystal.set_cell(np.asarray(crystal.cell) * 1.01)
    fresh = PonitaCalculator(potential, skin=0.0)
    assert calculator.get_property("energy", crystal) == pytest.approx(fresh.get_property("energy", crystal), abs=1e-9)


def test_the_device_is_asked_about_its_list_only_when_atoms_moved(tiny_potential, make_system, monkeypatch) -> None:
    calculator, atoms = device_calculator(tiny_potential), make_system("molecule")
    asked: list[int] = []
    calculator.get_forces(atoms)
    update = calculator._graphs._device_lists.update
    monkeypatch.setattr(calculator._graphs._device_lists, "update", lambda *args: asked.append(1) or update(*args))
    atoms.positions[0, 0] += 0.24
    calculator.get_forces(atoms)
    assert not asked
    for change in ("positions", "cell", "pbc", "numbers"):
        if change == "positions":
            atoms.positions[0, 0] += 0.02
        elif change == "cell":
            atoms.set_cell(np.eye(3) * 12)
        elif change == "pbc":
            atoms.set_pbc((True, False, False))
        else:
            atoms.numbers[0] = 8
        calculator.get_forces(atoms)
        assert bool(asked) == (change != "cell"), change  # which nothing depends on without pbc
        asked.clear()
        fresh = PonitaCalculator(tiny_potential, skin=0.0)
        assert calculator.get_forces(atoms) == pytest.approx(fresh.get_forces(atoms), abs=1e-9), change


# -------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def calculator(tiny_potential: Potential) -> PonitaCalculator:
    return PonitaCalculator(tiny_potential)


def test_unknown_element(calculator: PonitaCalculator) -> None:
    with pytest.raises(ValueError, match=r"atom 1 is N .*knows H, C, O"):
        calculator.get_property("energy", Atoms("CN", positions=[[0, 0, 0], [0, 0, 1.2]]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pbc", [False, True])
def test_position_that_is_no_number(value: float, pbc: bool, calculator: PonitaCalculator) -> None:
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, value, 1.2]], cell=np.eye(3) * 6, pbc=pbc)
    with pytest.raises(ValueError, match=r"position of atom 1 .*not finite"):
        calculator.get_property("energy", atoms)


def test_position_that_becomes_no_number_during_a_run(calculator: PonitaCalculator, make_system: Callable) -> None:
    atoms = make_system("molecule")
    calculator.get_forces(atoms)
    atoms.positions[4] = np.nan
    with pytest.raises(ValueError, match=r"position of atom 4 .*not finite"):
        calculator.get_forces(atoms)


@pytest.mark.parametrize("pbc", [False, True])
def test_no_atoms(pbc: bool, calculator: PonitaCalculator) -> None:
    with pytest.raises(ValueError, match="no atoms"):
        calculator.get_property("energy", Atoms(cell=np.eye(3) * 5, pbc=pbc))


def test_no_structure(calculator: PonitaCalculator) -> None:
    with pytest.raises(ValueError, match="atoms"):
        calculator.calculate()


@pytest.mark.parametrize("pbc", [False, True])
def test_one_atom_works(pbc: bool, calculator: PonitaCalculator) -> None:
    atoms = Atoms("O", cell=np.eye(3) * 10, pbc=pbc, calculator=calculator)
    assert -2051.8 < atoms.get_potential_energy() < -2031.8
    assert np.array_equal(atoms.get_forces(), np.zeros((1, 3)))
    if pbc:
        assert np.array_equal(atoms.get_stress(), np.zeros(6))


@pytest.mark.parametrize("images", [False, True])
def test_two_atoms_in_one_place(images: bool, calculator: PonitaCalculator) -> None:
    atoms = Atoms("COH", positions=[[0, 0, 0], [0, 0, 1.2], [0, 0, 1.21]])
    if images:  # in one place through the boundary only
        atoms = Atoms("COH", positions=[[0, 0, 0], [0, 1.2, 0.1], [5.0, 1.2, 0.1]], cell=np.eye(3) * 5, pbc=True)
    with pytest.raises(ValueError, match="atoms 1 and 2 are in one place"):
        calculator.get_property("energy", atoms)


def test_pbc_without_a_cell(calculator: PonitaCalculator) -> None:
    with pytest.raises(ValueError, match=r"pbc is True along a but cell vector a is zero"):
        calculator.get_property("energy", Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.2]], pbc=True))


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_stress_without_full_pbc(pbc, calculator: PonitaCalculator) -> None:
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.2]], cell=np.eye(3) * 6, pbc=pbc, calculator=calculator)
    with pytest.raises(ValueError, match="stress needs a cell that is periodic in all directions"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()


def test_property_that_it_does_not_have(calculator: PonitaCalculator, make_system: Callable) -> None:
    atoms = make_system("molecule")
    atoms.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match="dipole"):
        atoms.get_dipole_moment()


def test_unknown_shipped_name() -> None:
    with pytest.raises(FileNotFoundError, match="'etanol-rmd17' is neither a file nor a shipped potential"):
        PonitaCalculator("etanol-rmd17")


def test_random_bytes(tmp_path: Path) -> None:
    (tmp_path / "noise.safetensors").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(PotentialFileError, match=r"noise\.safetensors is not a whole potential file"):
        PonitaCalculator(tmp_path / "noise.safetensors")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "nothing.safetensors").touch()
    with pytest.raises(PotentialFileError, match=r"nothing\.safetensors is empty"):
        PonitaCalculator(tmp_path / "nothing.safetensors")


def test_pickle_is_never_executed(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harmed",)

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(PotentialFileError, match=r"model\.pt.*pickled checkpoint .* is never loaded"):
        PonitaCalculator(tmp_path / "model.pt")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("dtype", ["float16", "double", torch.int64, torch.bfloat16, 64])
def test_wrong_dtype(dtype: Any, tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match=rf"dtype must be 'float32' or 'float64'.*{dtype}"):
        PonitaCalculator(tiny_potential, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:x"])
def test_unknown_device(device: str, tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used here"):
        PonitaCalculator(tiny_potential, device=device)


def test_unknown_option(tiny_potential: Potential) -> None:
    with pytest.raises(TypeError, match="devise"):
        PonitaCalculator(tiny_potential, devise="cpu")  # type: ignore[call-arg]


@pytest.mark.parametrize("num_ori", [7, 13, 0, -1])
def test_unknown_grid(num_ori: int, tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match=f"num_ori={num_ori}"):
        PonitaCalculator(tiny_potential, num_ori=num_ori)


def test_no_rotations(tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match="number of rotations must be a whole number of at least 1, got 0"):
        PonitaCalculator(tiny_potential, rotations=0)


@pytest.mark.parametrize("skin", [-0.1, float("nan"), float("inf"), "0.5", None])
def test_wrong_skin(skin: Any, tiny_potential: Potential) -> None:
    with pytest.raises(ValueError, match="skin must be a finite length"):
        PonitaCalculator(tiny_potential, skin=skin)


def test_set_refuses_parameters(calculator: PonitaCalculator) -> None:
    with pytest.raises(TypeError, match="foo"):
        calculator.set(foo=1)
    assert calculator.set() == {}


@pytest.mark.parametrize("potential", [None, 3, {"network": 1}, torch.nn.Linear(1, 1, device="meta")])
def test_potential_of_a_wrong_type(potential: Any) -> None:
    with pytest.raises(TypeError, match=f"potential must be .* got {type(potential).__name__}"):
        PonitaCalculator(potential)


def test_energy_that_is_not_finite(make_potential: Make) -> None:
    potential = make_potential()
    potential.network.readouts[0].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"not finite.*shortest distance 1\.200 Å"):
        PonitaCalculator(potential).get_property("energy", Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.2]]))


# ------------------------------------------------------------------------------------- what files keep


def test_repr_names_potential_and_hash() -> None:
    calculator = PonitaCalculator("ethanol-rmd17", device="cpu")
    digest = calculator.parameters["sha256"]
    assert len(digest) == 64 and digest == PonitaCalculator("ethanol-rmd17", dtype="float64").parameters["sha256"]
    expected = f"PonitaCalculator('ethanol-rmd17', sha256={digest[:12]}, dtype=float32, backend={calculator.backend})"
    assert repr(calculator) == expected


def test_a_database_keeps_names_hashes_and_options(make_potential: Make, tmp_path: Path) -> None:
    members = [make_potential(seed=seed) for seed in (0, 1)]
    members[0].metadata["name"] = "first"
    atoms = molecule("H2O")
    atoms.calc = PonitaCalculator(members, rotations=2)
    atoms.get_forces()
    with connect(tmp_path / "some.db") as database:
        database.write(atoms)
        row = database.get(1)
    kept = row.calculator_parameters
    assert row.calculator == "ponita" and kept == atoms.calc.todict()
    assert kept["potential"] == "first,unnamed" and (kept["dtype"], kept["rotations"]) == ("float64", 2)
    first, second = kept["sha256"].split(",")
    assert first != second and first == PonitaCalculator(members[0]).parameters["sha256"]
    copied = pickle.loads(pickle.dumps(atoms.calc))
    assert copied.todict() == kept and repr(copied) == repr(atoms.calc)


def test_what_ase_writes_of_a_committee(make_potential: Make, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = PonitaCalculator([make_potential(seed=seed) for seed in (0, 1)])
    atoms.get_forces()
    kept = with_results(atoms, atoms.calc.results)
    write(tmp_path / "all.xyz", kept)
    write(tmp_path / "some.traj", as_traj_keeps_it(kept))
    write(tmp_path / "plain.traj", atoms)
    text, binary, plain = read(tmp_path / "all.xyz"), read(tmp_path / "some.traj"), read(tmp_path / "plain.traj")
    assert text.info["energy_std"] == pytest.approx(atoms.calc.results["energy_std"], rel=1e-6)
    np.testing.assert_allclose(text.arrays["forces_std"], atoms.calc.results["forces_std"], atol=1e-7)
    assert binary.info["energy_std"] == atoms.calc.results["energy_std"]
    np.testing.assert_array_equal(binary.info["forces_std"], atoms.calc.results["forces_std"])
    assert plain.get_potential_energy() == atoms.get_potential_energy()
    assert plain.calc.parameters["sha256"] == atoms.calc.parameters["sha256"]


def test_two_atoms_in_one_place_with_repulsion(make_potential: Make) -> None:
    """numpy computes the repulsion beside the native kernels, and warned of a division by zero before the refusal."""
    potential = make_potential(dtype=torch.float32, zbl_cutoff=1.0)
    with pytest.raises(ValueError, match="atoms 0 and 1 are in one place"):
        PonitaCalculator(potential, device="cpu").get_property("forces", Atoms("OH", positions=np.zeros((2, 3))))


def test_a_position_that_overflows_is_refused_without_a_warning(calculator: PonitaCalculator) -> None:
    atoms = molecule("H2O")
    atoms.calc = calculator
    atoms.get_forces()  # so that there is a neighbour list to compare with
    atoms.positions[1, 1] = 1e300
    with pytest.raises(ValueError, match=r"position of atom 1 is .* larger than 1e\+09 Å"):
        atoms.get_forces()
