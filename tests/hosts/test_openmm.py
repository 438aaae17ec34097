"""OpenMM: found by its name, the calculator's numbers in OpenMM's units, mixed systems, spread, what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.data import chemical_symbols

from ponita_ff.calculator import PonitaCalculator
from ponita_ff.potential.file import PotentialFileError
from ponita_ff.potential.potential import Potential

openmm: Any = pytest.importorskip("openmm", reason="needs pip install 'ponita-ff[openmm]'")
openmmml: Any = pytest.importorskip("openmmml", reason="needs pip install 'ponita-ff[openmm]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from openmm import app, unit

    from ponita_ff.hosts.openmm import SpreadReporter
    from ponita_ff.hosts.openmm_entry import PonitaImplFactory
MLPotential = openmmml.MLPotential

MakePotential = Callable[..., Potential]
MakeSystem = Callable[[str], Atoms]

EV = units.mol / units.kJ  # eV in kJ/mol
FS = 1e-3  # in OpenMM's ps


@pytest.fixture(autouse=True)
def registered() -> None:
    """As the entry point does, for a source tree that is not installed."""
    MLPotential.registerImplFactory("ponita", PonitaImplFactory())


def topology_of(atoms: Atoms, bonds: list[tuple[int, int]] = []) -> Any:  # noqa: B006 - not changed
    """One residue, with the cell of periodic atoms."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    nodes = [topology.addAtom(f"A{i}", app.Element.getBySymbol(s), residue) for i, s in enumerate(atoms.symbols)]
    for first, second in bonds:
        topology.addBond(nodes[first], nodes[second])
    if atoms.pbc.any():
        topology.setPeriodicBoxVectors(np.asarray(atoms.cell) * unit.angstrom)
    return topology


def context_of(system: Any, positions: np.ndarray, timestep: float = 0.5 * FS) -> Any:
    """In double precision."""
    context = openmm.Context(system, openmm.VerletIntegrator(timestep), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions * unit.angstrom)
    return context


def results(context: Any) -> tuple[float, np.ndarray]:
    """Potential energy (eV) and forces (eV/Å)."""
    state = context.getState(energy=True, forces=True)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom) / EV
    return state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) / EV, forces


def reduced(atoms: Atoms) -> Atoms:
    """The same crystal in a cell as OpenMM wants it."""
    box = np.diag([4.5, 4.1, 4.4])
    box[1, 0], box[2, 0], box[2, 1] = 0.7, -0.5, 0.9
    atoms.set_cell(box, scale_atoms=True)
    return atoms


def test_the_entry_point() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    entries = pyproject["project"]["entry-points"]["openmmml.potentials"]
    assert EntryPoint("ponita", entries["ponita"], "openmmml.potentials").load() is PonitaImplFactory
    # openmmml loads it whenever it is imported, whatever potential is then used, and whoever imports it first.
    for start in ("import openmmml", "import ponita_ff.hosts.openmm"):
        code = f"{start}, openmmml, sys; sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("dtype", "energy_error", "force_error"), [("float32", 1e-6, 1e-5), ("float64", 1e-9, 1e-9)])
@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_the_calculators_numbers(
    name: str, dtype: str, energy_error: float, force_error: float, tiny_potential: Potential, make_system: MakeSystem
) -> None:
    atoms = make_system(name)
    atoms = reduced(atoms) if atoms.pbc.any() else atoms
    potential = MLPotential("ponita", potential=tiny_potential, device="cpu", dtype=dtype)
    system = potential.createSystem(topology_of(atoms))
    assert system.usesPeriodicBoundaryConditions() == (name == "crystal")
    context = context_of(system, atoms.positions)
    atoms.calc = PonitaCalculator(tiny_potential, device="cpu", dtype=dtype)
    for shift in (0.0, 0.05):
        atoms.positions[0] += shift
        context.setPositions(atoms.positions * unit.angstrom)
        energy, forces = results(context)
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=energy_error)
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=force_error)
    if name == "crystal":
        atoms.set_cell(1.02 * atoms.cell)
        context.setPeriodicBoxVectors(*(np.asarray(atoms.cell) * unit.angstrom))
        assert results(context)[0] == pytest.approx(atoms.get_potential_energy(), abs=energy_error)


def test_energy_is_conserved() -> None:
    atoms = molecule("CH3CH2OH")
    system = MLPotential("ponita", potential="ethanol-rmd17", device="cpu").createSystem(topology_of(atoms))
    context = context_of(system, atoms.positions)
    context.setVelocitiesToTemperature(300, 1)
    totals = []
    for _ in range(40):  # 0.2 ps
        context.getIntegrator().step(10)
        state = context.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy()) / unit.kilojoule_per_mole / EV)
    assert state.getKineticEnergy() / unit.kilojoule_per_mole / EV > 0.1
    assert np.ptp(totals) < 0.02
    assert abs(np.mean(totals[-10:]) - np.mean(totals[:10])) < 2e-3


def mixed() -> tuple[Any, Any, np.ndarray, list[int]]:
    """Ethanol (atoms 3 to 11) after one TIP3P water, in a box: topology, MM system, positions (Å), ethanol's atoms."""
    ethanol, water = molecule("CH3CH2OH"), molecule("H2O")
    water.positions += [0.0, 0.0, 4.0]
    both = water + ethanol
    both.set_cell([20.0, 20.0, 20.0])
    both.pbc = True
    topology = topology_of(both, [(0, 1), (0, 2), (3, 4), (4, 5), (5, 6)])
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*(np.asarray(both.cell) * unit.angstrom))
    nonbonded = openmm.NonbondedForce()
    nonbonded.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    nonbonded.setCutoffDistance(0.9)
    charges = {"H": 0.1, "C": 0.05, "O": -0.4}
    bonds = openmm.HarmonicBondForce()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
        nonbonded.addParticle(charges[atom.element.symbol], 0.3, 0.2)
    bonds.addBond(0, 1, 0.09572, 462750.4)
    bonds.addBond(0, 2, 0.09572, 462750.4)
    bonds.addBond(3, 4, 0.15, 250000.0)
    system.addForce(nonbonded)
    system.addForce(bonds)
    return topology, system, both.positions, list(range(3, 12))


def test_a_ligand_in_water() -> None:
    topology, system, positions, ligand = mixed()
    potential = MLPotential("ponita", potential="ethanol-rmd17", device="cpu")
    hybrid = potential.createMixedSystem(topology, system, ligand)
    # What the ligand has in itself is the potential's; the rest is as it was.
    energy, forces = results(context_of(hybrid, positions))
    without = copy.deepcopy(hybrid)
    (index,) = (i for i, f in enumerate(without.getForces()) if isinstance(f, openmm.PythonForce))
    without.removeForce(index)
    rest, rest_forces = results(context_of(without, positions))
    atoms = molecule("CH3CH2OH")
    atoms.calc = PonitaCalculator("ethanol-rmd17", device="cpu")
    assert energy - rest == pytest.approx(atoms.get_potential_energy(), abs=2e-6)
    np.testing.assert_allclose((forces - rest_forces)[ligand], atoms.get_forces(), rtol=0, atol=1e-5)
    np.testing.assert_allclose((forces - rest_forces)[:3], 0.0, atol=1e-12)
    assert np.abs(rest_forces[ligand]).max() > 1e-4  # the water is felt
    # The ligand may lie across the box's boundary, each atom in the image that OpenMM likes.
    across = positions + np.array([0.0, 10.0, 0.0])
    across[:, 1] %= 20.0
    assert results(context_of(hybrid, across))[0] == pytest.approx(energy, abs=1e-5)


def test_from_mechanics_to_the_potential() -> None:
    topology, system, positions, ligand = mixed()
    potential = MLPotential("ponita", potential="ethanol-rmd17", device="cpu")
    hybrid = potential.createMixedSystem(topology, system, ligand, interpolate=True)
    context = context_of(hybrid, positions)
    found = []
    for part in (0.0, 0.5, 1.0):
        context.setParameter("lambda_interpolate", part)
        found.append(results(context)[0])
    whole = potential.createMixedSystem(topology, system, ligand)
    assert found[2] == pytest.approx(results(context_of(whole, positions))[0], abs=1e-4)
    assert abs(found[2] - found[0]) > 4000  # eV: mechanics knows no energies of atoms
    assert found[1] == pytest.approx((found[0] + found[2]) / 2, abs=1e-4)


def test_a_saved_system_goes_on(tiny_potential: Potential, make_system: MakeSystem) -> None:
    atoms = make_system("molecule")
    system = MLPotential("ponita", potential=tiny_potential, device="cpu").createSystem(topology_of(atoms))
    text = openmm.XmlSerializer.serialize(system)
    again = openmm.XmlSerializer.deserialize(text)
    assert results(context_of(again, atoms.positions))[0] == results(context_of(system, atoms.positions))[0]


def test_a_committees_spread(make_potential: MakePotential, make_system: MakeSystem, tmp_path: Path) -> None:
    members = [make_potential(seed=seed, scale=0.05, zbl_cutoff=1.0) for seed in range(2)]
    atoms = make_system("molecule")
    topology = topology_of(atoms)
    potential = MLPotential("ponita", potential=members, device="cpu")
    with pytest.raises(ValueError, match="make the system first"):
        SpreadReporter(tmp_path / "early.csv", 1, potential)
    simulation = app.Simulation(
        topology,
        potential.createSystem(topology),
        openmm.VerletIntegrator(0.1 * FS),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(atoms.positions * unit.angstrom)
    simulation.reporters.append(SpreadReporter(tmp_path / "spread.csv", 2, potential))
    simulation.step(4)
    header, *lines = (tmp_path / "spread.csv").read_text(encoding="utf-8").splitlines()
    assert header == "step,energy_std_eV,largest_force_std_eV_per_A"
    atoms.positions = simulation.context.getState(positions=True).getPositions(asNumpy=True) / unit.angstrom
    atoms.calc = PonitaCalculator(members, device="cpu")
    atoms.get_forces()
    step, energy, force = map(float, lines[-1].split(","))
    assert [int(line.split(",")[0]) for line in lines] == [2, 4] and step == 4
    assert energy == pytest.approx(atoms.calc.results["energy_std"], rel=1e-5)
    assert force == pytest.approx(np.linalg.norm(atoms.calc.results["forces_std"], axis=1).max(), rel=1e-5)
    single = MLPotential("ponita", potential=members[0], device="cpu")
    single.createSystem(topology)
    with pytest.raises(ValueError, match="a spread needs a committee"):
        SpreadReporter(tmp_path / "single.csv", 1, single)


def test_what_is_refused(tiny_potential: Potential, make_system: MakeSystem, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not a potential")
    with pytest.raises(PotentialFileError, match=r"damaged\.safetensors"):
        MLPotential("ponita", potential=damaged)
    with pytest.raises(TypeError, match="say which potential"):
        MLPotential("ponita")
    with pytest.raises(TypeError, match="devise"):
        MLPotential("ponita", potential=tiny_potential, devise="cpu")
    potential = MLPotential("ponita", potential=tiny_potential, device="cpu")
    atoms = make_system("molecule")
    with pytest.raises(TypeError, match=r"createSystem has no argument \['dtype'\]"):
        potential.createSystem(topology_of(atoms), dtype="float64")
    atoms.numbers[5] = chemical_symbols.index("Cl")
    with pytest.raises(ValueError, match="atom 5 is Cl"):
        potential.createSystem(topology_of(atoms))
    topology, system, _, ligand = mixed()
    next(a for a in topology.atoms() if a.index == 7).element = app.Element.getBySymbol("Br")
    with pytest.raises(ValueError, match="atom 7 is Br"):
        potential.createMixedSystem(topology, system, ligand)
    topology = topology_of(make_system("molecule"))
    next(a for a in topology.atoms() if a.index == 7).element = None
    with pytest.raises(ValueError, match=r"atom 7 \(A7\) of the topology has no element"):
        potential.createSystem(topology)


@pytest.mark.parametrize("box", [False, True])
def test_positions_in_other_units(box: bool, tiny_potential: Potential) -> None:
    atoms = molecule("CH3CH2OH", vacuum=5.0 if box else None, pbc=box)
    system = MLPotential("ponita", potential=tiny_potential, device="cpu").createSystem(
        topology_of(atoms, [(0, 1), (1, 2), (2, 3)])
    )
    if box:
        system.setDefaultPeriodicBoxVectors(*(10 * np.asarray(atoms.cell) * unit.angstrom))
    context = context_of(system, 10 * atoms.positions)
    with pytest.raises(Exception, match=r"the median bond of the topology has 14.* Å: positions are in other units"):
        results(context)
