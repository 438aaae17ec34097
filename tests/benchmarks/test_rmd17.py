"""The table of shipped rMD17 potentials says what their files say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import units

from ponita_ff import load_potential
from ponita_ff.data import file_sha256
from ponita_ff.potential.file import find_potential, read_header, save_potential


@pytest.fixture(scope="module")
def rmd17(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("rmd17")


def run(rmd17: ModuleType, patch: pytest.MonkeyPatch, *arguments: str) -> None:
    patch.setattr(sys, "argv", ["rmd17.py", *arguments])
    rmd17.main()


def test_figures_are_those_of_the_files(rmd17: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(rmd17, monkeypatch, "--out", str(tmp_path))
    table = (tmp_path / "rmd17.md").read_text(encoding="utf-8")
    rows = json.loads((tmp_path / "rmd17.json").read_text(encoding="utf-8"))
    for molecule, published in rmd17.PUBLISHED.items():
        line, *ways = [line for line in table.splitlines() if line.startswith(f"| {molecule} |")]
        if molecule not in rows:
            assert "not shipped" in line
            continue
        assert len(ways) == 1 and rmd17.WAYS[rows[molecule]["shipped"]] in line
        metadata = read_header(find_potential(f"{molecule}-rmd17"))["metadata"]
        errors = metadata["errors"]["test"]
        assert f"| {1e3 * errors['forces_mae']:.2f} / {1e3 * errors['energy_mae']:.2f} |" in line
        assert f"| {1e3 * errors['forces_mae'] / published['PONITA'][0]:.2f} |" in line
        assert f"{metadata['training']['seconds'] / 3600:.2f}" in line


def test_a_start_from_another_potential_counts(rmd17: ModuleType) -> None:
    base = {"name": "base", "num_ori": 12, "training": {"seconds": 3600.0, "hardware": "a"}}
    first = {"name": "own", "num_ori": 20, "training": {"seconds": 60.0, "hardware": "b"}, "started_from": base}
    last = {"training": {"seconds": 1800.0, "hardware": "b"}, "started_from": first}
    stages = rmd17.training_hours({"metadata": last, "network": {"num_ori": 32}}, "own")
    assert [(s["stage"], s["hours"], s["hardware"]) for s in stages] == [
        ("base, 12 orientations", 1.0, "a"),
        ("20 orientations", pytest.approx(1 / 60), "b"),
        ("32 orientations", 0.5, "b"),
    ]


def lineage(*stages: dict) -> dict:
    """A header whose first stage is the last of its training."""
    metadata: dict = {}
    for stage in reversed(stages):
        metadata = stage | {"started_from": metadata or None}
    return {"metadata": metadata}


def test_ways_of_training_are_told_apart(rmd17: ModuleType) -> None:
    own, base = {"name": "own"}, {"name": "base"}
    taught = own | {"finetuning": [{"name": "new: validation", "forces_taught": 0.1}]}
    assert rmd17.way_of(lineage(own, own), "own") == "random"
    assert rmd17.way_of(lineage(own, base), "own") == "base"
    assert rmd17.way_of(lineage(own, taught, {"name": "labels"}, base), "own") == "taught"


def test_a_potential_that_is_not_shipped_stays_in_the_table(
    rmd17: ModuleType, tmp_path: Path, make_potential: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.safetensors"
    errors = {"test": {"forces_mae": 0.0123, "energy_mae": 0.0045, "frames": 3}}
    training = {"seconds": 36.0, "hardware": "a"}
    taught = [{"name": "new: validation", "forces_taught": 0.1}]
    record = {"name": "few", "errors": errors, "training": training, "finetuning": taught}
    save_potential(make_potential(channels=4, num_layers=1, l_max=1, num_ori=6), path, record)
    for arguments in (["--beside", f"ethanol={path}"], []):
        run(rmd17, monkeypatch, "--out", str(tmp_path), *arguments)
        page = (tmp_path / "rmd17.md").read_text(encoding="utf-8")
        (line,) = [line for line in page.splitlines() if line.startswith("| ethanol |") and "12.30 / 4.50" in line]
        assert line.endswith("| 12.30 / 4.50 |")
    for wrong in ("ethanol", f"water={path}", "ethanol=missing"):
        with pytest.raises(SystemExit):
            run(rmd17, monkeypatch, "--out", str(tmp_path), "--beside", wrong)


def test_errors_are_measured_again_on_the_frames_that_the_file_names(
    rmd17: ModuleType, tmp_path: Path, make_potential: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = make_potential(channels=4, num_layers=1, l_max=1, num_ori=6)
    generator = np.random.default_rng(0)
    coords = np.array([[0, 0, 0], [0, 0, 1.2]]) + 0.05 * generator.normal(size=(6, 2, 3))
    unit = units.kcal / units.mol
    data = tmp_path / "rmd17_ethanol_test_01.npz"
    labels = {"energies": generator.normal(size=6), "forces": generator.normal(size=(6, 2, 3))}
    np.savez(data, nuclear_charges=np.array([6, 8]), coords=coords, **labels)
    path = tmp_path / "one.safetensors"
    save_potential(potential, path, {"data": {"test_sha256": file_sha256(data)}})
    monkeypatch.setattr(rmd17, "find_potential", lambda name: path)

    found = rmd17.measured_errors(path, "ethanol", tmp_path)

    from ase import Atoms

    predicted = load_potential(path).evaluate([Atoms([6, 8], positions) for positions in coords])
    forces = np.stack(predicted.forces)
    assert found["frames"] == 6
    assert found["forces_mae"] == pytest.approx(np.abs(forces - unit * labels["forces"]).mean(), rel=1e-6)
    assert found["energy_mae"] == pytest.approx(np.abs(predicted.energies - unit * labels["energies"]).mean(), rel=1e-6)

    np.savez(data, nuclear_charges=np.array([6, 8]), coords=coords + 0.1, **labels)
    with pytest.raises(SystemExit, match="not the file"):
        rmd17.measured_errors(path, "ethanol", tmp_path)
