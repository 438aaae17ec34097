"""The comparison of general potentials, on frames and labels made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from click.testing import CliRunner
from labelled_here import labels_in_this_process

__all__ = ["labels_in_this_process"]


@pytest.fixture
def general(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("general")


def labelled(atoms: Atoms, shift: float, **info: Any) -> Atoms:
    """Labels of EMT, but for a constant in the energy."""
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy() + shift, atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    atoms.info |= info
    return atoms


def shaken(seed: int, shift: float) -> Atoms:
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=seed)
    return labelled(atoms, shift)


def pulled_apart(distance: int) -> Atoms:
    """Two waters; the farther, the larger the error that is put into the energy."""
    atoms = molecule("H2O") + molecule("H2O")
    atoms.positions[3:] += [3.0 + distance, 0, 0]
    return labelled(atoms, 5.0 + 0.1 * distance, complex="water", distance=distance)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for folder in ("3bpa", "s66x8", "qm22"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "3bpa" / "train_300K.xyz", [shaken(seed, 0.0) for seed in range(3)], format="extxyz")
    write(tmp_path / "qm22" / "n_methylacetamide.xyz", [shaken(seed, 7.0) for seed in range(11)], format="extxyz")
    write(tmp_path / "s66x8" / "s66x8_wb97x_631gd.xyz", [pulled_apart(place) for place in range(8)], format="extxyz")
    return tmp_path


def test_errors_of_a_method_are_those_that_were_put_in(
    general: ModuleType,
    data: Path,
    tmp_path: Path,
    labels_in_this_process: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(general, "RESULTS", tmp_path)
    monkeypatch.setattr(general, "label_frames", labels_in_this_process)
    arguments = ["zero-shot", "--data", data, "--work", tmp_path / "work", "--contender", "ase.calculators.emt:EMT"]
    result = CliRunner().invoke(general.main, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    row = json.loads((tmp_path / "general.json").read_text(encoding="utf-8"))["zero-shot"]["ase.calculators.emt:EMT"]
    assert {name: row[name]["frames"] for name in row if name != "hardware"} == {
        "3bpa": 3,
        "s66x8": 8,
        "n-methylacetamide": 3,
    }
    assert max(row[name]["forces"] for name in ("3bpa", "s66x8", "n-methylacetamide")) < 1e-3
    assert row["n-methylacetamide"]["energies"] < 1e-3  # the shift does not count
    assert row["s66x8"]["interaction"] == pytest.approx(1e3 * 0.1 * (7 - 2), abs=1e-3)
    assert row["s66x8"]["energies"] == pytest.approx(1e3 * 0.1 * np.mean(np.abs(np.arange(8) - 3.5)), abs=1e-3)
    page = (tmp_path / "general.md").read_text(encoding="utf-8")
    assert "| 3BPA at 300 K, 3 frames: forces | 0.0 |" in page and page.count("E(1) − E(2) | 500.0 |") == 1


def test_a_committee_is_the_mean_of_its_members(
    general: ModuleType, data: Path, tmp_path: Path, tiny_potential_path: Path
) -> None:
    frames = general.from_ase("3bpa", data / "3bpa" / "train_300K.xyz")
    one = general.predicted(str(tiny_potential_path), frames, tmp_path)
    two = general.predicted(f"{tiny_potential_path},{tiny_potential_path}", frames, tmp_path)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    assert general.force_error(one[1], frames) == pytest.approx(general.force_error(two[1], frames), rel=1e-5)


def test_few_frames_of_a_file(
    general: ModuleType, data: Path, tmp_path: Path, tiny_potential_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general, "RESULTS", tmp_path)
    file = str(data / "qm22" / "n_methylacetamide.xyz")
    arguments = [
        "few-frames",
        "--name",
        "ethanol",
        "--base",
        str(tiny_potential_path),
        "--train",
        file,
        "--frames",
        "5",
    ]
    arguments += ["--test", file, "--work", str(tmp_path / "work"), "--set", "optimiser.steps=4"]
    arguments += ["--teacher", "gfn2-xtb", "--taught", str(tiny_potential_path)]
    result = CliRunner().invoke(general.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    ((key, row),) = json.loads((tmp_path / "general.json").read_text(encoding="utf-8"))["few-frames"].items()
    assert key.startswith("ethanol, 5 frames,") and key.endswith(", gfn2-xtb before, optimiser.steps=4")
    assert set(row["tests"]) == {"base", "taught", "after"}
    before, taught, after = (row["tests"][stage]["n_methylacetamide"] for stage in ("base", "taught", "after"))
    assert before["forces"] > 0 and before == taught and before != after
    few = read(next((tmp_path / "work").glob("*/few.xyz")), ":")
    assert len(few) == 5 and len({atoms.get_potential_energy() for atoms in few}) == 5
    assert f"| {after['forces']:.1f} |" in (tmp_path / "general.md").read_text(encoding="utf-8")
