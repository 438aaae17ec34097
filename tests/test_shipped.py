"""Shipped potentials: their files, their cards, and their errors on real data where that is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.io import read
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from ponita_ff import PonitaCalculator, load_potential
from ponita_ff.data import read_frames
from ponita_ff.network.orientations import rotation_group
from ponita_ff.potential.file import find_potential, read_header
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.evaluate import evaluate

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "potentials").glob("*/potential.safetensors"))
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
    row = f"| `{folder.name}` | {1e3 * errors['forces_mae']:.2f} | {1e3 * errors['energy_mae']:.2f} |"
    assert row in (ROOT / "README.md").read_text(encoding="utf-8")
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


def test_ethanol_relaxes_and_stays_whole_at_constant_energy() -> None:
    atoms = molecule("CH3CH2OH")
    atoms.calc = PonitaCalculator("ethanol-rmd17", device="cpu")
    assert BFGS(atoms, logfile=None).run(fmax=0.02, steps=100)
    thermal = np.sqrt(units.kB * 600.0 * atoms.get_masses())[:, None]
    atoms.set_momenta(thermal * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    start, before = atoms.get_total_energy(), atoms.get_all_distances()
    VelocityVerlet(atoms, 0.5 * units.fs).run(400)
    assert abs(atoms.get_total_energy() - start) / len(atoms) < 1e-3
    bonds = (before > 0) & (before < 1.65)
    assert np.abs(atoms.get_all_distances() - before)[bonds].max() < 0.5


def test_ethanol_is_exactly_invariant_under_the_grid_s_own_group() -> None:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    calculator = PonitaCalculator("ethanol-rmd17", device="cpu", dtype="float64")
    energies = []
    for rotation in rotation_group("icosahedral"):
        turned = atoms.copy()
        turned.positions = atoms.positions @ rotation.T
        energies.append(calculator.get_property("energy", turned))
    assert np.ptp(energies) < 1e-9


def test_ethanol_on_real_frames() -> None:
    path = DATA / "rmd17" / "rmd17_ethanol_test_01.npz"
    if not path.is_file():
        pytest.skip("no rMD17 data here (set PONITA_FF_DATA to the folder with rmd17/)")
    potential = load_potential("ethanol-rmd17")
    errors = evaluate(potential, read_frames(path, index=slice(None, None, 10))).errors
    assert errors.frames == 100
    assert errors.forces_mae < 8e-3
    assert errors.energy_mae < 1.5e-3
