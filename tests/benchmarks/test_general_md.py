"""Dynamics, minima, water and speed of general potentials: short runs with EMT and a tiny potential."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from click.testing import CliRunner
from matplotlib.figure import Figure

pytest.importorskip("rdkit", reason="RDKit makes the conformers")
EMT = "ase.calculators.emt:EMT"


@pytest.fixture
def general_md(script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script("general_md")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "general_md")
    monkeypatch.setattr(module, "LISTED", tmp_path / "dynamics.smi")
    monkeypatch.setattr(module, "TIMED", {"water": "O"})
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: Path(path).write_bytes(b""))
    (tmp_path / "dynamics.smi").write_text("O\nCO\n", encoding="utf-8")
    return module


def call(module: ModuleType, *arguments: object) -> str:
    result = CliRunner().invoke(module.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return (module.RESULTS.parent / "general_md.md").read_text(encoding="utf-8")


def test_dynamics_go_on_where_they_were_stopped(general_md: ModuleType) -> None:
    arguments = ("whole", "--contender", EMT, "--ps", 0.05, "--nve-ps", 0.25)
    page = call(general_md, *arguments)
    assert "| ase.calculators.emt:EMT, 0.05 ps | 2 | 3–6 |" in page
    path = general_md.RESULTS.with_suffix(".json")
    results = json.loads(path.read_text(encoding="utf-8"))
    molecules = results["whole"]["ase.calculators.emt:EMT, 0.05 ps"]["molecules"]
    assert molecules["O"]["atoms"] == 3 and molecules["O"]["relaxed"]
    molecules["O"]["broken_at_ps"] = 0.01
    del molecules["CO"]
    path.write_text(json.dumps(results), encoding="utf-8")
    assert "| 2 | 3–6 | 0 | 0.01 |" in call(general_md, *arguments)


def test_the_reference_itself_has_the_same_minima(general_md: ModuleType, tmp_path: Path) -> None:
    same = f"{EMT}{{asap_cutoff: false}}"
    page = call(general_md, "minima", "--contender", EMT, "--reference", same, "--work", tmp_path / "work")
    assert "| ase.calculators.emt:EMT and ase.calculators.emt:EMT | 2 | 2 |" in page and page.count("0.000") == 1


def test_water_stays_whole_and_goes_on(
    general_md: ModuleType, tmp_path: Path, tiny_potential_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general_md, "WATERS", 8)
    arguments = ("water", "--contender", tiny_potential_path, "--work", tmp_path / "work")
    call(general_md, *arguments, "--ps", 0.04)
    page = call(general_md, *arguments, "--ps", 0.08)
    row = json.loads((tmp_path / "general_md.json").read_text(encoding="utf-8"))["water"]["tiny"]
    assert row["ps"] == 0.08 and row["atoms"] == 24 and "X-rays, 295 K" in page


def test_the_pair_distribution_of_points_without_order_is_one(general_md: ModuleType) -> None:
    generator = np.random.default_rng(0)
    frames = [Atoms("O200", generator.uniform(0, 12, (200, 3)), cell=[12] * 3, pbc=True) for _ in range(10)]
    distances, values = general_md.oxygen_distribution(frames)
    assert values[distances > 2].mean() == pytest.approx(1.0, abs=0.02)
    box = general_md.water_box(192)
    assert general_md.molecules_whole(box) and len(box) == 192
    assert box.get_masses().sum() / box.get_volume() / 0.6022 == pytest.approx(0.997, rel=1e-3)
    box.positions[1] += 3.0
    assert not general_md.molecules_whole(box)


def test_speed(general_md: ModuleType) -> None:
    assert "| ase.calculators.emt:EMT | " in call(general_md, "speed", "--contender", EMT, "--rounds", 1)
