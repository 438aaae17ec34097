"""Shipped potentials: their files, their cards, and their errors on real data where that is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.io import read
from ase.optimize import BFGS

from ponita_ff import PonitaCalculator, load_potential
from ponita_ff.audit.dynamics import energy_drift, run_nve, thermal_momenta
from ponita_ff.audit.normal_modes import frequencies
from ponita_ff.audit.rotational_invariance import rotation_scan
from ponita_ff.data import read_frames
from ponita_ff.network.orientations import random_rotations, rotation_group
from ponita_ff.potential.file import find_potential, read_header
from ponita_ff.structure.bonds import find_bonds
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.evaluate import evaluate

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "potentials").glob("*/potential.safetensors"))
#: A figure may be this many times as large as on the model card.
MARGIN = 1.2

#: Of the 200 rotations of the card.
NUM_ROTATIONS = 24

DATA = Path(os.environ.get("PONITA_FF_DATA", ROOT.parent / "shared" / "data"))


def test_there_is_one() -> None:
    assert "ethanol-rmd17" in {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_card_belongs_to_its_file(folder: Path) -> None:
    header = read_header(find_potential(folder.name))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["weights_sha256"] == header["weights_sha256"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    errors = header["metadata"]["errors"]["test"]
    assert f"{1e3 * errors['energy_mae']:.2f} | {1e3 * errors['forces_mae']:.2f}" in text
    for name in ("parity.png", "learning_curve.png", "nve.png"):
        assert name in text
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_settings_are_valid_and_make_this_network(folder: Path) -> None:
    config = TrainConfig.from_yaml(folder / "config.yaml")
    network = read_header(find_potential(folder.name))["network"]
    expected = config.model.model_dump(exclude_none=True)
    if config.final_stage is not None:
        expected["num_ori"] = config.final_stage.num_ori
    for name, value in expected.items():
        assert network[name] == value


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_structure_is_the_relaxed_molecule(folder: Path) -> None:
    atoms = read(folder / "structure.xyz")
    potential = load_potential(folder.name)
    found = potential.evaluate([atoms])
    assert np.abs(found.forces[0]).max() < 5e-3
    assert set(atoms.numbers) <= set(potential.species)
    rattled = atoms.copy()
    rattled.rattle(0.03, seed=0)
    assert potential.evaluate([rattled]).energies[0] > found.energies[0] + 0.05


def test_ethanol_relaxes_to_the_structure_of_its_card() -> None:
    atoms = molecule("CH3CH2OH")
    atoms.calc = PonitaCalculator("ethanol-rmd17", device="cpu")
    assert BFGS(atoms, logfile=None).run(fmax=0.005, steps=100)
    relaxed = read(ROOT / "potentials" / "ethanol-rmd17" / "structure.xyz")
    np.testing.assert_allclose(atoms.get_all_distances(), relaxed.get_all_distances(), atol=0.02)


def card_of(folder: Path) -> dict[str, Any]:
    """Figures of the model card."""
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


def distorted(folder: Path, dtype: str) -> Atoms:
    """The distorted structure that the card's figures belong to, with a calculator."""
    relaxed = read(folder / "structure.xyz")
    atoms = Atoms(relaxed.numbers, relaxed.positions)
    atoms.rattle(0.05, seed=0)
    atoms.calc = PonitaCalculator(folder.name, device="cpu", dtype=dtype)
    return atoms


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_rotations_change_no_more_than_the_card_says(folder: Path) -> None:
    scan = rotation_scan(distorted(folder, "float64"), random_rotations(NUM_ROTATIONS, (2026,)))
    energies, row = 1e3 * scan.energies[1:], card_of(folder)["rotations"][0]
    assert np.ptp(energies) < MARGIN * row["peak_to_peak_meV"]
    assert energies.std() < MARGIN * row["std_meV"]
    assert 1e3 * scan.torques.max() < MARGIN * row["max_torque_meV"]
    assert scan.net_forces.max() < 1e-12


def test_forces_of_ethanol_are_as_exact_as_the_card_says() -> None:
    folder = ROOT / "potentials" / "ethanol-rmd17"
    atoms = distorted(folder, "float64")
    difference = np.abs(atoms.get_forces() - calculate_numerical_forces(atoms, eps=1e-4)).max()
    assert difference < MARGIN * card_of(folder)["forces_against_central_differences_eV_per_A"]


def test_frequencies_of_ethanol_are_those_of_the_card() -> None:
    folder = ROOT / "potentials" / "ethanol-rmd17"
    atoms = read(folder / "structure.xyz")
    calculator = PonitaCalculator(folder.name, device="cpu", dtype="float64")
    found = frequencies(calculator.get_hessian(atoms), atoms.get_masses())
    np.testing.assert_allclose(found, card_of(folder)["frequencies_invcm"], atol=0.1)


def test_dynamics_of_ethanol_is_as_stable_as_the_card_says() -> None:
    """The first quarter of a picosecond of the card's NVE run."""
    folder = ROOT / "potentials" / "ethanol-rmd17"
    atoms, card = read(folder / "structure.xyz"), card_of(folder)["nve"]
    atoms.calc = PonitaCalculator(folder.name, device="cpu")
    thermal_momenta(atoms, 600.0, np.random.default_rng(7))
    run = run_nve(atoms, card["timestep_fs"], 0.25, find_bonds(atoms))
    drift = energy_drift(run)
    assert drift.fluctuation < MARGIN * card["rms_fluctuation_meV_per_atom"]
    assert abs(drift.slope - card["drift_meV_per_atom_per_ns"]) < 2 * drift.standard_error
    assert max(run.bond_change) < MARGIN * card["largest_bond_change_A"]
    assert np.mean(run.temperature) == pytest.approx(card["mean_temperature_K"], rel=0.05)


def test_ethanol_is_exactly_invariant_under_the_grid_s_own_group() -> None:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    calculator = PonitaCalculator("ethanol-rmd17", device="cpu", dtype="float64")
    energies = []
    for rotation in rotation_group("icosahedral")[::4]:
        turned = atoms.copy()
        turned.positions = atoms.positions @ rotation.T
        energies.append(calculator.get_property("energy", turned))
    assert np.ptp(energies) < 1e-9


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_errors_on_real_frames_are_those_of_the_card(folder: Path) -> None:
    metadata = read_header(find_potential(folder.name))["metadata"]
    paths = [DATA / "rmd17" / name for name in metadata["data"]["test_file"].split(", ")]
    if not all(path.is_file() for path in paths):
        pytest.skip("no rMD17 data here (set PONITA_FF_DATA to the folder with rmd17/)")
    # Every tenth frame of one molecule, every hundredth of ten: 100 frames.
    frames = [frame for path in paths for frame in read_frames(path, index=slice(None, None, 10 * len(paths)))]
    errors = evaluate(load_potential(folder.name), frames, backend="auto").errors
    assert errors.frames == 100
    assert errors.forces_mae < MARGIN * metadata["errors"]["test"]["forces_mae"]
    assert errors.energy_mae < MARGIN * metadata["errors"]["test"]["energy_mae"]
