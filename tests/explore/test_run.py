"""Exploration of water from a small potential of methanol, labelled with EMT; all made by the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from explore_calculators import calls
from methanol import make_frames

from ponita_ff.data import read_frames
from ponita_ff.explore import Explored, ExploreError, ExploreSettings, explore
from ponita_ff.potential.file import load_potential
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.evaluate import evaluate
from ponita_ff.training.run import train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential of methanol, trained a little."""
    folder = tmp_path_factory.mktemp("base")
    write(folder / "frames.xyz", [frame.to_atoms() for frame in make_frames(20)], format="extxyz")
    settings: dict[str, Any] = {
        "data": {"path": str(folder / "frames.xyz"), "train": 16, "validation": 4},
        "model": {"cutoff": 4.0, "num_ori": 6, "channels": 8, "num_layers": 1, "l_max": 2},
        "optimiser": {"steps": 200, "batch_size": 4, "learning_rate": 0.01, "muon_lr_multiplier": 1.0},
    }
    train(TrainConfig.from_mapping(settings), folder / "run", progress=False)
    return folder / "run" / "potential.safetensors"


def quick(folder: Path) -> dict[str, Any]:
    """Settings of an exploration that takes seconds; its calculator counts in a folder."""
    (folder / "calls").mkdir()
    return {
        "method": f"explore_calculators:CountedEMT{{folder: {folder / 'calls'}}}",
        "budget": 11,
        "first": 6,
        "per_round": 3,
        "members": 2,
        "picoseconds": 0.08,
        "walkers": 2,
        "every": 2,
        "threshold": 1e-4,
        "stop": 50.0,
        "displacement": 0.06,
        "training": {
            "optimiser.steps": 120,
            "optimiser.learning_rate": 6e-3,
            "optimiser.muon_lr_multiplier": 1.0,
            "optimiser.checkpoint_every": 10,
        },
    }


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return quick(tmp_path)


def run(base: Path, values: dict[str, Any], out: Path) -> Explored:
    return explore([molecule("H2O")], base, ExploreSettings.from_mapping(values), out, progress=False)


def labelled(out: Path) -> list[Atoms]:
    """All labelled frames, round by round."""
    return [atoms for path in sorted(out.glob("round-*/labelled.xyz")) for atoms in read(path, index=":")]


def test_rounds_until_the_budget_is_spent(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    found = run(base, values, tmp_path / "out")
    assert found.outcome == "the budget of 11 labels is spent"
    assert [(r.number, r.labels, r.chosen) for r in found.rounds] == [(1, 6, 3), (2, 9, 2), (3, 11, 0)]
    frames = labelled(tmp_path / "out")
    assert len(frames) == found.labels == 11
    assert set(calls(tmp_path / "calls").values()) == {1}
    # What is chosen lies in its round's dynamics, and the committee disagreed there.
    for round_ in (1, 2):
        folder = tmp_path / "out" / f"round-{round_}"
        walked = np.array([atoms.positions for atoms in read(folder / "walked.xyz", index=":")])
        for atoms in read(folder / "candidates.xyz", index=":"):
            assert np.abs(walked - atoms.positions).max(axis=(1, 2)).min() == 0.0
    # Deviations count by what the round before has shown them to be worth; those of the first, by what it shows itself.
    for told, factor in zip(found.rounds, 2 * (found.rounds[0].calibration,), strict=False):
        walked_json = tmp_path / "out" / f"round-{told.number}" / "walked.json"
        raw = json.loads(walked_json.read_text(encoding="utf-8"))["spread"]
        assert factor is not None and told.spread_95 == pytest.approx(factor * np.quantile(raw, 0.95))
    assert found.rounds[0].calibration != pytest.approx(1.0, rel=1e-3)
    # The committee differs, and knows what its base knew not.
    members = [load_potential(path) for path in found.members]
    water = read_frames(tmp_path / "out" / "round-0" / "labelled.xyz")
    errors = [evaluate(potential, water).errors.forces_mae for potential in (*members, load_potential(base))]
    assert max(errors[:2]) < 0.6 * errors[2]
    assert errors[0] != errors[1]


def test_a_committee_that_agrees_ends_it(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    lenient = {**values, "threshold": 1e6, "stop": 1e7}
    found = run(base, lenient, tmp_path / "out")
    assert "differs by less than 1e+06" in found.outcome
    # Its first agreement was not believed: nothing had told what it was worth.
    assert [(r.labels, r.chosen) for r in found.rounds] == [(6, 3), (9, 0)]
    # More is wanted of it: the same folder goes on, and nothing is labelled again.
    more = run(base, {**lenient, "threshold": 1e-4}, tmp_path / "out")
    assert more.labels == 11
    assert set(calls(tmp_path / "calls").values()) == {1}
    assert len(calls(tmp_path / "calls")) == 11


def test_walkers_stop_before_nonsense(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    found = run(base, {**values, "budget": 7, "stop": 2e-4, "threshold": 1e-4}, tmp_path / "out")
    assert found.rounds[0].stopped == 2
    spread = json.loads((tmp_path / "out" / "round-1" / "walked.json").read_text(encoding="utf-8"))["spread"]
    assert sum(value >= 2e-4 for value in spread) == 2


SHORT = {"budget": 8, "per_round": 2}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Explored, list[Atoms]]:
    """An exploration that nobody disturbed, and its labelled frames."""
    folder = tmp_path_factory.mktemp("whole")
    return run(base, quick(folder) | SHORT, folder / "out"), labelled(folder / "out")


def test_the_report(whole: tuple[Explored, list[Atoms]]) -> None:
    found, _ = whole
    out = found.members[0].parent
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["outcome"] == found.outcome
    assert [row["labels"] for row in report["rounds"]] == [6, 8]
    first, last = report["rounds"]
    assert first["chosen_force_mae"] > 0
    assert first["calibration"] > 0
    assert last["chosen_force_mae"] is None
    assert 0 < first["spread_median"] <= first["spread_95"]
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "wait_for", ["round-0/labelled.xyz.journal.jsonl", "round-1/member-1", "round-1/candidates.xyz"]
)
def test_killed_and_started_again(
    wait_for: str, base: Path, values: dict[str, Any], whole: tuple[Explored, list[Atoms]], tmp_path: Path
) -> None:
    """It loses no label, makes none twice, and ends as if nothing had been."""
    write(tmp_path / "water.xyz", molecule("H2O"))
    program = (
        "import json, sys; from pathlib import Path; from ase.io import read\n"
        "from ponita_ff.explore import ExploreSettings, explore\n"
        "if __name__ == '__main__':\n"
        "    explore([read(sys.argv[1])], sys.argv[2], ExploreSettings.from_mapping(json.loads(sys.argv[3])), "
        "Path(sys.argv[4]), progress=False)\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    out, settings = tmp_path / "out", values | SHORT
    arguments = [str(tmp_path / "water.xyz"), str(base), json.dumps(settings), str(out)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), *arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not (out / wait_for).exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = run(base, settings, out)
    assert found.labels == 8
    # A label may have been made and killed before it was written down: one at most.
    counted = calls(tmp_path / "calls")
    assert len(counted) == 8
    assert sum(counted.values()) <= 9
    undisturbed, frames = whole
    assert [r.spread_95 for r in undisturbed.rounds] == [r.spread_95 for r in found.rounds]
    for one, other in zip(labelled(out), frames, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


def test_other_settings_are_refused(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    run(base, {**values, "threshold": 49.0}, tmp_path / "out")
    with pytest.raises(ExploreError, match=r"begun with other settings; go on with .*temperature: 500"):
        run(base, {**values, "temperature": 300.0}, tmp_path / "out")
    with pytest.raises(ExploreError, match="no structure"):
        explore([], base, ExploreSettings.from_mapping(values), tmp_path / "none")
