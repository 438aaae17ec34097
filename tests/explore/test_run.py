"""Exploration of water from a small potential of methanol, labelled with EMT; all made by the tests."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from explore_calculators import calls
from forked import started
from labelled_here import explore_here
from matplotlib.figure import Figure
from methanol import make_frames

from ponita_ff.data import read_frames
from ponita_ff.explore import ExplorationResult, ExploreError, ExploreSettings, explore
from ponita_ff.explore import run as explore_run
from ponita_ff.explore.dynamics import DynamicsResult
from ponita_ff.labels import LabelResult, label_frames
from ponita_ff.labels.journal import Journal
from ponita_ff.labels.pool import ExternalExecutor
from ponita_ff.potential.file import load_potential, save_potential
from ponita_ff.potential.potential import Potential
from ponita_ff.training.config import CHECKPOINT_FILE, TrainConfig
from ponita_ff.training.evaluate import evaluate
from ponita_ff.training.run import train

FILES = Path(__file__).parents[1] / "files"


class Stopped(BaseException):
    """Ends an exploration in this process at a given point, as a signal would."""


@pytest.fixture(autouse=True, scope="module")
def without_processes_and_pictures() -> Iterator[None]:
    """Most of the time would go into processes that label and pictures of the training, which other tests check."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setattr(explore_run, "label_frames", partial(label_frames, executor=executor))
        patch.setattr(ExternalExecutor, "max_pending", 1)  # every label is in the journal before the next begins
        patch.setattr(Figure, "savefig", lambda self, path, **options: Path(path).write_bytes(b""))
        yield


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
        "budget": 8,
        "initial_labels": 6,
        "labels_per_round": 2,
        "members": 2,
        "simulation_time": 0.04,
        "trajectories": 2,
        "sample_interval": 2,
        "threshold": 1e-4,
        "stop_threshold": 50.0,
        "displacement": 0.06,
        "training": {
            "optimiser.steps": 30,
            "optimiser.learning_rate": 6e-3,
            "optimiser.muon_lr_multiplier": 1.0,
            "optimiser.checkpoint_every": 10,
        },
    }


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return quick(tmp_path)


def run(base: Path, values: dict[str, Any], out: Path) -> ExplorationResult:
    return explore([molecule("H2O")], base, ExploreSettings.from_mapping(values), out, progress=False)


def labelled(out: Path) -> list[Atoms]:
    """All labelled frames, round by round."""
    return [atoms for path in sorted(out.glob("round-*/labelled.xyz")) for atoms in read(path, index=":")]


def test_members_start_from_what_a_teacher_taught(
    base: Path, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a teacher teaches is tested with it; here the base is given back under another name."""
    found: list[Any] = []

    def taught(given: Path, structures: list[Atoms], settings: Any, folder: Path, **options: Any) -> Path:
        found.append((given, len(structures), settings.method, settings.frames, folder))
        folder.mkdir(parents=True)
        write(folder / "labels.xyz", [frame.to_atoms() for frame in make_frames(5)], format="extxyz")
        return Path(shutil.copyfile(base, tmp_path / "taught.safetensors"))

    monkeypatch.setattr(explore_run, "taught", taught)
    values |= {"budget": 3, "initial_labels": 3, "teacher": "gfn2-xtb", "teacher_frames": 50}
    result = run(base, values, tmp_path / "out")
    assert found == [(base, 1, "gfn2-xtb", 50, tmp_path / "out" / "teacher")]
    config = yaml.safe_load((result.members[0].parent / "round-1" / "member-0" / "config.yaml").read_text("utf-8"))
    assert config["potential"]["start"] == str(tmp_path / "taught.safetensors")
    # The first frames are some of the teacher's, without its labels.
    first, known = read(tmp_path / "out" / "round-0" / "candidates.xyz", ":"), [f.to_atoms() for f in make_frames(5)]
    assert len(first) == 3 and all(atoms.calc is None for atoms in first)
    for atoms in first:
        assert min(np.abs(atoms.positions - other.positions).max() for other in known) < 1e-6


def test_a_share_of_the_labels_goes_to_random_frames() -> None:
    sampled = [Atoms("H2", positions=[[0, 0, 0], [0, 0, distance]]) for distance in np.linspace(0.5, 1.5, 41)]
    uncertain = list(range(30, 41))  # the longest bonds

    def bonds(share: float, seed: int) -> list[float]:
        values = {"method": "any", "budget": 8, "initial_labels": 1, "labels_per_round": 4, "random_share": share}
        settings, generator = ExploreSettings.from_mapping(values), np.random.default_rng(seed)
        chosen = explore_run._selected(sampled, uncertain, [], 8, settings, generator)
        return [atoms.get_distance(0, 1) for atoms in chosen]

    assert min(bonds(0.0, 1)) >= 1.25 and bonds(0.0, 1) == bonds(0.0, 2)
    half = bonds(0.5, 1)
    assert len(set(half)) == 4 and sum(bond >= 1.25 for bond in half) >= 2 and half != bonds(0.5, 2)
    assert np.mean([np.mean(bonds(1.0, seed)) for seed in range(50)]) == pytest.approx(1.0, abs=0.06)


def test_rounds_until_the_budget_is_spent(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    values |= {"budget": 11, "labels_per_round": 3, "training": {**values["training"], "optimiser.steps": 120}}
    found = run(base, values, tmp_path / "out")
    assert found.outcome == "the budget of 11 labels is spent"
    assert [(r.number, r.labels, r.selected) for r in found.rounds] == [(1, 6, 3), (2, 9, 2), (3, 11, 0)]
    frames = labelled(tmp_path / "out")
    assert len(frames) == found.labels == 11
    assert set(calls(tmp_path / "calls").values()) == {1}
    # Selected frames are sampled frames of their round's dynamics, and the committee was uncertain there.
    for number in (1, 2):
        folder = tmp_path / "out" / f"round-{number}"
        sampled = np.array([atoms.positions for atoms in read(folder / "dynamics.xyz", index=":")])
        for atoms in read(folder / "candidates.xyz", index=":"):
            assert np.abs(sampled - atoms.positions).max(axis=(1, 2)).min() == 0.0
    # Uncertainties are calibrated by the round before; those of the first round, by that round itself.
    for summary, factor in zip(found.rounds, 2 * (found.rounds[0].calibration,), strict=False):
        path = tmp_path / "out" / f"round-{summary.number}" / "dynamics.json"
        raw = json.loads(path.read_text(encoding="utf-8"))["uncertainties"]
        assert factor is not None and summary.uncertainty_95 == pytest.approx(factor * np.quantile(raw, 0.95))
    assert found.rounds[0].calibration != pytest.approx(1.0, rel=1e-3)
    # The members differ, and have learnt what the base did not know.
    members = [load_potential(path) for path in found.members]
    water = read_frames(tmp_path / "out" / "round-0" / "labelled.xyz")
    errors = [evaluate(potential, water).errors.forces_mae for potential in (*members, load_potential(base))]
    assert max(errors[:2]) < 0.6 * errors[2]
    assert errors[0] != errors[1]


def test_a_committee_that_agrees_ends_it(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    lenient = {**values, "threshold": 1e6, "stop_threshold": 1e7}
    found = run(base, lenient, tmp_path / "out")
    assert "differs by less than 1e+06" in found.outcome
    # The agreement of the first round does not end it, since nothing has calibrated its uncertainties.
    assert [(r.labels, r.selected) for r in found.rounds] == [(6, 2), (8, 0)]
    # A smaller threshold and a larger budget continue it in the same folder; nothing is labelled twice.
    more = run(base, {**lenient, "threshold": 1e-4, "budget": 9}, tmp_path / "out")
    assert more.labels == 9
    assert set(calls(tmp_path / "calls").values()) == {1}
    assert len(calls(tmp_path / "calls")) == 9


def test_committees_that_choose_frames_train_for_a_share_and_the_last_for_all_steps(
    base: Path, values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="ponita_ff.explore")
    out = tmp_path / "out"
    found = run(base, {**values, "budget": 20, "threshold": 1e6, "stop_threshold": 1e7}, out)
    assert "differs by less than" in found.outcome and found.labels == 8

    def steps(folder: Path) -> int:
        return int(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["optimiser"]["steps"])

    assert [steps(out / f"round-{number}" / "member-1") for number in (1, 2)] == [8, 8]
    assert steps(out / "final-2" / "member-1") == 30
    for member, path in enumerate(found.members):
        final = out / "final-2" / f"member-{member}" / "potential.safetensors"
        assert path.read_bytes() == final.read_bytes()
    # It says where it is, and how long it may take yet.
    assert "round 1: member 1 of 2, 6 labels of at most 20" in caplog.messages
    assert "round 1: dynamics, 0.04 ps" in caplog.messages and "round 1: labelling 2 frames" in caplog.messages
    assert any(line.startswith("round 2: member 2 of 2, 8 labels of at most 20; about") for line in caplog.messages)
    assert any(line.startswith("final committee: member 1 of 2, 8 labels") for line in caplog.messages)


def test_the_stop_threshold_is_compared_with_calibrated_uncertainties(
    make_potential: Callable[..., Potential], values: dict[str, Any], tmp_path: Path
) -> None:
    members = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, path in enumerate(members):
        save_potential(make_potential(seed=seed, scale=0.02, zbl_cutoff=1.0, channels=8, num_layers=1), path)
    frames = list(make_frames(4))

    def sample(stop_threshold: float, factor: float) -> DynamicsResult:
        settings = ExploreSettings.from_mapping({**values, "stop_threshold": stop_threshold})
        folder = tmp_path / f"stop {stop_threshold}, factor {factor}"
        return explore_run._sample_dynamics(members, frames, settings, folder, 1, factor)

    limit = float(np.median(sample(1e6, 1.0).uncertainties))
    plain, calibrated = sample(limit, 1.0), sample(2.0 * limit, 2.0)
    assert plain.stopped == calibrated.stopped > 0
    assert (plain.times, len(plain.frames)) == (calibrated.times, len(calibrated.frames))
    np.testing.assert_allclose(calibrated.uncertainties, 2.0 * np.array(plain.uncertainties))


class Whole(NamedTuple):
    """An exploration that was not interrupted, and its settings, folder and labelled frames."""

    result: ExplorationResult
    values: dict[str, Any]
    out: Path
    frames: list[Atoms]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    values = quick(folder)
    result = run(base, values, folder / "out")
    return Whole(result, values, folder / "out", labelled(folder / "out"))


def test_the_report(whole: Whole) -> None:
    report = json.loads((whole.out / "report.json").read_text(encoding="utf-8"))
    assert report["outcome"] == whole.result.outcome
    assert [row["labels"] for row in report["rounds"]] == [6, 8]
    first, last = report["rounds"]
    assert first["selected_force_mae"] > 0
    assert first["calibration"] > 0
    assert last["selected_force_mae"] is None
    assert 0 < first["uncertainty_median"] <= first["uncertainty_95"]
    assert (whole.out / "report.png").exists()
    assert whole.result.members == [whole.out / f"committee-{member}.safetensors" for member in range(2)]


def stop_after_a_label(patch: pytest.MonkeyPatch) -> None:
    add = Journal.add

    def add_and_stop(self: Journal, *arguments: Any) -> None:
        add(self, *arguments)
        raise Stopped

    patch.setattr(Journal, "add", add_and_stop)


def stop_before_labels_of_a_round(patch: pytest.MonkeyPatch) -> None:
    label = explore_run.label_frames

    def label_or_stop(frames: Path, *arguments: Any, **options: Any) -> LabelResult:
        if frames.parent.name == "round-1":
            raise Stopped
        return label(frames, *arguments, **options)

    patch.setattr(explore_run, "label_frames", label_or_stop)


def continue_and_check(base: Path, values: dict[str, Any], folder: Path, whole: Whole) -> None:
    """No label of the journals is calculated again, and the result is as if the exploration had not been stopped."""
    out, before = folder / "out", calls(folder / "calls")
    journals = out.glob("round-*/labelled.xyz.journal.jsonl")
    kept = sum(len(path.read_text(encoding="utf-8").splitlines()) - 1 for path in journals)
    assert 0 < kept < 8
    found = run(base, values, out)
    assert (calls(folder / "calls") - before).total() == 8 - kept
    assert found.labels == 8
    assert found.rounds == whole.result.rounds
    for one, other in zip(labelled(out), whole.frames, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


@pytest.mark.parametrize("stop", [stop_after_a_label, stop_before_labels_of_a_round])
def test_stopped_and_continued(
    stop: Callable[[pytest.MonkeyPatch], None], base: Path, values: dict[str, Any], whole: Whole, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop(patch)
        run(base, values, tmp_path / "out")
    continue_and_check(base, values, tmp_path, whole)


def test_killed_in_training_and_continued(base: Path, values: dict[str, Any], whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(explore_here, molecule("H2O"), base, values, out) as process:
        deadline = time.monotonic() + 240
        while not (out / "round-1" / "member-0" / CHECKPOINT_FILE).exists():
            assert process.is_alive(), "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "round-1" / "candidates.xyz").exists()
    continue_and_check(base, values, tmp_path, whole)


def test_other_settings_are_refused(base: Path, whole: Whole) -> None:
    with pytest.raises(ExploreError, match=r"begun with other settings; continue with temperature: 500.0, or give"):
        run(base, {**whole.values, "temperature": 300.0}, whole.out)
    with pytest.raises(ExploreError, match="no structure"):
        explore([], base, ExploreSettings.from_mapping(whole.values), whole.out)


@pytest.mark.parametrize(
    "wrong", ["no JSON", "[]", '{"uncertainties": [0.1], "times": ["1"], "stopped": 0}', '{"uncertainties": [0.1]}']
)
def test_dynamics_that_are_damaged_are_named(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "dynamics.json"
    path.write_text(wrong, encoding="utf-8")
    with pytest.raises(ExploreError, match=r"dynamics\.json is damaged; delete it to run the dynamics again"):
        explore_run._read_dynamics(path)


def test_settings_that_are_damaged_are_named(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("no JSON", encoding="utf-8")
    with pytest.raises(ExploreError, match=r"settings\.json holds no settings of an exploration"):
        run(base, values, tmp_path)


def test_an_exploration_begun_by_an_earlier_version_is_continued(base: Path, whole: Whole, tmp_path: Path) -> None:
    """Its settings and files have other names."""
    out = tmp_path / "out"
    shutil.copytree(whole.out, out)
    old = json.loads((FILES / "explore_settings_before_renames.json").read_text(encoding="utf-8"))
    old |= {name: whole.values[name] for name in ("method", "training")} | {"picoseconds": 0.04}
    (out / "settings.json").write_text(json.dumps(old), encoding="utf-8")
    for path in sorted(out.glob("round-*/dynamics.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        content = {"spread": content["uncertainties"], "ended": content["times"], "stopped": content["stopped"]}
        path.with_name("walked.json").write_text(json.dumps(content), encoding="utf-8")
        path.with_name("dynamics.xyz").rename(path.with_name("walked.xyz"))
        path.unlink()
    times = [path.stat().st_mtime_ns for path in sorted(out.glob("round-*/walked.xyz"))]
    before = calls(Path(whole.values["method"].partition(": ")[2].rstrip("}")))
    found = run(base, whole.values, out)
    assert found.rounds == whole.result.rounds
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("round-*/dynamics.xyz"))] == times
    assert calls(Path(whole.values["method"].partition(": ")[2].rstrip("}"))) == before
    assert not list(out.glob("round-*/walked*"))
