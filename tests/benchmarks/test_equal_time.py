"""Curves of test error against training time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase.build import molecule
from click.testing import CliRunner

from ponita_ff import load_potential
from ponita_ff.data import read_frames
from ponita_ff.training.evaluate import evaluate


@pytest.fixture(scope="module")
def equal_time(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("equal_time")


def test_weights_are_those_of_their_time(equal_time: ModuleType) -> None:
    now = [0.0]
    curve = equal_time.Curve(60.0, lambda: now[0])
    for now[0] in np.arange(0.0, 60.5, 0.5):
        curve.tick(now[0])
    rows = curve.errors(61.0, lambda weights: (2 * weights, weights))
    assert [row["minutes"] * 60 for row in rows] == [1, 2, 4, 8, 15, 30, 45, 61]
    assert [row["force_mae"] for row in rows[:-1]] == pytest.approx([60e3 * row["minutes"] for row in rows[:-1]])
    assert [row["energy_mae"] for row in rows] == [2 * row["force_mae"] for row in rows]


def write_springs(folder: Path) -> None:
    """Water whose atoms are held together by springs, in the units of rMD17."""
    generator, atoms = np.random.default_rng(0), molecule("H2O")
    lengths = atoms.get_all_distances()
    for part, number in (("train", 1000), ("test", 20)):
        coords = atoms.positions + 0.05 * generator.normal(size=(number, 3, 3))
        vectors = coords[:, :, None] - coords[:, None]
        distances = np.linalg.norm(vectors, axis=-1)
        stretch = distances - lengths
        directions = vectors / np.where(distances == 0.0, 1.0, distances)[..., None]
        np.savez(
            folder / f"rmd17_water_{part}_01.npz",
            nuclear_charges=atoms.numbers,
            coords=coords,
            energies=50.0 * np.square(stretch).sum((1, 2)),
            forces=-200.0 * (stretch[..., None] * directions).sum(2),
        )


def test_own_run(equal_time: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_springs(tmp_path)
    settings = {
        "model": {"cutoff": 4.0, "num_ori": 6, "channels": 8, "num_layers": 1, "l_max": 1},
        "optimiser": {"warmup_steps": 10, "learning_rate": 0.01, "muon_lr_multiplier": 1.0},
    }
    monkeypatch.setattr(equal_time, "SETTINGS", settings)
    arguments = ["--data", tmp_path, "--molecule", "water", "--contender", "ponita_ff", "--minutes", "0.1"]
    done = CliRunner().invoke(
        equal_time.main, [*map(str, arguments), "--out", str(tmp_path / "out"), "--run", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "equal_time.json").read_text(encoding="utf-8"))["water"]["ponita_ff"]
    minutes = [row["minutes"] for row in found["curve"]]
    assert minutes == sorted(minutes)
    assert minutes[-1] == pytest.approx(0.1, rel=0.2)
    # The end of the curve is the potential that the run wrote, and it has learned something on the way.
    errors = evaluate(
        load_potential(tmp_path / "run" / "potential.safetensors"), read_frames(tmp_path / "rmd17_water_test_01.npz")
    ).errors
    assert found["curve"][-1]["force_mae"] == pytest.approx(1e3 * errors.forces_mae, rel=1e-5)
    assert found["curve"][-1]["force_mae"] < 0.7 * found["curve"][0]["force_mae"]
    page = (tmp_path / "out" / "equal_time.md").read_text(encoding="utf-8")
    assert f"| {found['curve'][-1]['force_mae']:.2f} |" in page
    assert (tmp_path / "out" / "equal_time.png").read_bytes().startswith(b"\x89PNG")


def test_missing_data_is_named(equal_time: ModuleType, tmp_path: Path) -> None:
    arguments = ["--data", str(tmp_path), "--molecule", "water", "--contender", "ponita_ff"]
    done = CliRunner().invoke(equal_time.main, arguments)
    assert done.exit_code == 2
    assert "rmd17_water_train_01.npz" in done.output
