"""Fine-tuning, from a small potential of methanol to water, all made by the tests."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from methanol import make_frames

from ponita_ff.data import InMemoryFrames, read_frames
from ponita_ff.potential.file import load_potential, read_header
from ponita_ff.training import run as training_run
from ponita_ff.training.config import ConfigError, TrainConfig
from ponita_ff.training.evaluate import evaluate
from ponita_ff.training.finetune import ErrorChange, finetune, finetune_config
from ponita_ff.training.replay import split_replay, with_reference_energies_of
from ponita_ff.training.run import train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential of methanol, trained a little, with frames to replay beside it."""
    folder = tmp_path_factory.mktemp("base")
    write(folder / "frames.xyz", [frame.to_atoms() for frame in make_frames(20)], format="extxyz")
    settings: dict[str, Any] = {
        "data": {"path": str(folder / "frames.xyz"), "train": 16, "validation": 4},
        "model": {"cutoff": 4.0, "num_ori": 6, "channels": 8, "num_layers": 2, "l_max": 2},
        "optimiser": {"steps": 300, "batch_size": 4, "learning_rate": 0.01, "muon_lr_multiplier": 1.0},
    }
    train(TrainConfig.from_mapping(settings), folder / "run", progress=False)
    write(folder / "run" / "replay.xyz", [frame.to_atoms() for frame in make_frames(15, seed=3)], format="extxyz")
    return folder / "run" / "potential.safetensors"


@pytest.fixture
def water_path(water: list[Atoms], tmp_path: Path) -> Path:
    path = tmp_path / "water.xyz"
    write(path, water, format="extxyz")
    return path


def run(base: Path, data: Path, out: Path, **overrides: Any) -> dict[str, ErrorChange]:
    """Fine-tune for a second."""
    short = {
        "optimiser.steps": 150,
        "optimiser.learning_rate": 5e-3,
        "optimiser.muon_lr_multiplier": 1.0,
        "optimiser.batch_size": 4,
    }
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    config = finetune_config(base, [data], overrides=short | given)
    return {change.name: change for change in finetune(config, out, progress=False)}


def test_it_learns_the_new_and_keeps_the_old(base: Path, water_path: Path, tmp_path: Path) -> None:
    changes = run(base, water_path, tmp_path / "run")
    new, known = changes["new: validation"], changes["replay holdout"]
    assert (new.frames, known.frames) == (2, 5)
    assert new.forces_after < 0.5 * new.forces_before
    forgetful = run(base, water_path, tmp_path / "alone", data__replay_share=1e-3)["replay holdout"]
    assert forgetful.forces_before == known.forces_before
    assert known.forces_after < 0.5 * forgetful.forces_after


def test_the_file_records_where_it_comes_from(base: Path, water_path: Path, tmp_path: Path) -> None:
    changes = run(base, water_path, tmp_path / "run")
    metadata = read_header(tmp_path / "run" / "potential.safetensors")["metadata"]
    assert metadata["started_from"]["weights_sha256"] == read_header(base)["weights_sha256"]
    assert metadata["finetuning"] == [dataclasses.asdict(change) for change in changes.values()]
    assert metadata["data"]["replay"] == 10
    assert metadata["data"]["replay_file"] == "replay.xyz"
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["finetuning"] == metadata["finetuning"]
    assert load_potential(tmp_path / "run" / "potential.safetensors").species == (1, 6, 8)


def test_readouts_alone(base: Path, water_path: Path, tmp_path: Path) -> None:
    run(base, water_path, tmp_path / "run", optimiser__trainable="readouts")
    before, after = (load_potential(path).state_dict() for path in (base, tmp_path / "run" / "potential.safetensors"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"network.readouts.{i}.{k}" for i in (0, 1) for k in ("weight", "bias")} | {"reference_energies"}


def test_low_rank_resumes_bit_for_bit(base: Path, water_path: Path, tmp_path: Path) -> None:
    """The factors are part of the checkpoint."""
    whole = finetune_config(base, [water_path], overrides={"optimiser.steps": 20, "optimiser.trainable": "low-rank"})
    finetune(whole, tmp_path / "whole", progress=False)
    half = whole.model_copy(deep=True)
    half.optimiser.checkpoint_every = 5
    stopped = TrainStopped(half, tmp_path / "stopped")
    stopped.run()
    finetune(half, tmp_path / "stopped", resume=True, progress=False)
    hashes = [read_header(tmp_path / n / "potential.safetensors")["weights_sha256"] for n in ("whole", "stopped")]
    assert hashes[0] == hashes[1]


class TrainStopped:
    """A run that is interrupted after ten steps."""

    def __init__(self, config: TrainConfig, out: Path) -> None:
        self.config, self.out = config, out

    def run(self) -> None:
        from ponita_ff.training import trainer

        step = trainer.Trainer._train_step

        def until(self: Any, *arguments: Any) -> Any:
            if self.state.step == 10:
                raise KeyboardInterrupt
            return step(self, *arguments)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(trainer.Trainer, "_train_step", until)
            finetune(self.config, self.out, progress=False)


def test_relative_paths_go_on_from_anywhere(
    base: Path, water_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.chdir(water_path.parent)
    relative = [Path(os.path.relpath(path)) for path in (base, water_path)]
    config = finetune_config(relative[0], [relative[1]], overrides={"optimiser.steps": 3})
    changes = finetune(config, Path("run"), progress=False)
    assert caplog.text.count("reference energies: ") == 1  # not once for each potential that is measured
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = tmp_path / "run"
    longer = TrainConfig.from_yaml(out / "config.yaml", {"optimiser.steps": 4})
    more = finetune(longer, out, resume=True, progress=False)
    assert [change.forces_before for change in more] == [change.forces_before for change in changes]
    written = (out / "potential.safetensors").stat().st_mtime_ns
    assert finetune(longer, out, resume=True, progress=False) == more
    assert "already finished" in caplog.text
    assert (out / "potential.safetensors").stat().st_mtime_ns == written


def test_replay_at_another_level_of_theory(base: Path, water_path: Path, tmp_path: Path) -> None:
    """The new frames' energies lie elsewhere; what the base knew is still compared at its own level."""
    water = make_frames(8, seed=5)
    shifted = InMemoryFrames(dataclasses.replace(f, energy=f.energy + 5000.0) for f in water)
    path = tmp_path / "shifted.xyz"
    write(path, [frame.to_atoms() for frame in shifted], format="extxyz")
    changes = run(base, path, tmp_path / "run")
    known = split_replay(read_frames(base.with_name("replay.xyz")))[1]
    own = evaluate(load_potential(base), known).errors
    assert changes["replay holdout"].energy_before == pytest.approx(own.energy_mae, rel=1e-4)
    assert changes["replay holdout"].forces_before == pytest.approx(own.forces_mae, rel=1e-4)
    assert changes["new: validation"].energy_before < 5.0
    potential, origin = load_potential(tmp_path / "run" / "potential.safetensors"), load_potential(base)
    moved = with_reference_energies_of(potential, water, origin)
    shift = np.array([new.energy - old.energy for new, old in zip(moved, water, strict=True)])
    np.testing.assert_allclose(shift, 5000.0, atol=1.0)


def test_a_final_stage_replays_at_the_new_level(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts from a potential of the new level, but the replayed frames are still the base's."""
    shifted = [dataclasses.replace(frame, energy=frame.energy + 5000.0) for frame in make_frames(8, seed=5)]
    write(tmp_path / "shifted.xyz", [frame.to_atoms() for frame in shifted], format="extxyz")
    seen: list[list[float]] = []

    class Spy(training_run.Trainer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.append([frame.energy for frame in args[2]])

    monkeypatch.setattr(training_run, "Trainer", Spy)
    run(base, tmp_path / "shifted.xyz", tmp_path / "run", optimiser__steps=4, final_stage={"num_ori": 12, "share": 0.5})
    first, last = seen
    assert last == pytest.approx(first, abs=0.1)
    assert load_potential(tmp_path / "run" / "potential.safetensors").network.config.num_ori == 12


def test_replay_of_what_the_base_never_knew(base: Path, water_path: Path, tmp_path: Path) -> None:
    strange = [Atoms("SH2", positions=[[0, 0, 0], [1.3, 0, 0], [0, 1.3, 0]], info={"energy": -1.0})]
    strange[0].arrays["forces"] = np.zeros((3, 3))
    write(tmp_path / "strange.xyz", strange, format="extxyz")
    config = finetune_config(base, [water_path], replay=[tmp_path / "strange.xyz"])
    with pytest.raises(ValueError, match=r"strange\.xyz.*\[16\].*does not know"):
        finetune(config, tmp_path / "run", progress=False)


def test_no_replay_is_said_aloud(
    base: Path, water_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = finetune_config(base, [water_path], replay=[], overrides={"optimiser.steps": 2})
    changes = finetune(config, tmp_path / "run", progress=False)
    assert [change.name for change in changes] == ["new: validation"]
    assert "will forget" in caplog.text


def test_mistakes_are_named(base: Path, water_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 frames are too few to fine-tune on"):
        finetune_config(base, [water_path], frames=2)
    with pytest.raises(ConfigError, match=r"optimiser\.trainable"):
        finetune_config(base, [water_path], overrides={"optimiser.trainable": "everything"})
    with pytest.raises(FileNotFoundError, match="neither a file nor a shipped potential"):
        finetune_config("nothing", [water_path])


def test_few_frames_get_a_short_schedule(base: Path, water_path: Path) -> None:
    steps = [finetune_config(base, [water_path], frames=n).optimiser.steps for n in (5, 50, 500, 5000)]
    assert steps == sorted(steps)  # type: ignore[type-var]
    assert steps[0] == 1000
    assert steps[-1] == 20000
    assert finetune_config(base, [water_path], frames=5000, most_steps=6000).optimiser.steps == 6000
