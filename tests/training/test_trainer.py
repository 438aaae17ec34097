"""The loop: it learns, it resumes bit for bit, it loses nothing when the machine fails."""

from __future__ import annotations

import csv
import dataclasses
import errno
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from forked import command, started

from ponita_ff.cli import main
from ponita_ff.data import InMemoryFrames
from ponita_ff.network.orientations import random_rotations
from ponita_ff.potential.file import read_header
from ponita_ff.signals import Terminated
from ponita_ff.training import trainer
from ponita_ff.training.build import build_potential
from ponita_ff.training.checkpoint import read_checkpoint
from ponita_ff.training.config import ConfigError, TrainConfig
from ponita_ff.training.evaluate import frame_graph
from ponita_ff.training.optimisers import Optimiser
from ponita_ff.training.run import prepare_data, train
from ponita_ff.training.trainer import Trainer


def run(settings: dict[str, Any], out: Path, resume: bool = False, **optimiser: Any) -> str:
    """Train and return the hash of the weights."""
    settings = {**settings, "optimiser": {**settings["optimiser"], **optimiser}}
    train(TrainConfig.from_mapping(settings), out, resume=resume, progress=False)
    return str(read_header(out / "potential.safetensors")["weights_sha256"])


def test_stopped_and_resumed_equals_uninterrupted(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(settings, tmp_path / "whole")
    original = Trainer._train_step

    def stop_at_17(self: Trainer, *args: Any) -> Any:
        if self.state.step == 17:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_train_step", stop_at_17)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "parts")
    monkeypatch.undo()
    assert run(settings, tmp_path / "parts", resume=True) == whole
    logs = [(tmp_path / part / "metrics.csv").read_text(encoding="utf-8") for part in ("whole", "parts")]
    steps = [[line.split(",")[0] for line in log.splitlines()] for log in logs]
    assert steps[0] == steps[1]


def test_killed_and_resumed_equals_uninterrupted(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL soon after a checkpoint of a new run, SIGTERM in a step of the resumed run; then resume to the end."""
    settings["optimiser"] |= {"steps": 120}
    whole = run(settings, tmp_path / "whole")
    config, folder = tmp_path / "config.yaml", tmp_path / "killed"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    kill_after_checkpoint([str(config), "--out", str(folder)], folder / "checkpoint.pt")
    killed_at, step = step_of(folder), Optimiser.step

    def terminated(self: Optimiser, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Optimiser, "step", terminated)
        assert CliRunner().invoke(main, ["train", "--resume", str(folder), "--no-progress"]).exit_code == 143
    assert killed_at < step_of(folder) < 120
    assert run(settings, folder, resume=True) == whole


def test_the_end_is_validated_whenever_the_time_is_over(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is between two looks at the clock, after the third step."""
    looks = iter([0.0, 0.1, 0.2, 0.3, 0.4, 0.9])
    monkeypatch.setattr(Trainer, "_fraction_done", lambda self: next(looks, 1.0))
    run(settings, tmp_path / "run", validate_every=1000)
    (row,) = trainer.read_metrics(tmp_path / "run")
    assert row["step"] == 3 and row["validation_forces_mae"] > 0


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_stop_signal_loses_no_step(
    number: int, kind: type[BaseException], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the middle of a step; the step is finished and saved, though no checkpoint was due."""
    settings["optimiser"] |= {"checkpoint_every": 1000}
    whole = run(settings, tmp_path / "whole")
    original = Optimiser.step

    def interrupted(self: Optimiser, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 17:
            os.kill(os.getpid(), number)
        original(self, *arguments)

    steps = 0
    monkeypatch.setattr(Optimiser, "step", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(settings, tmp_path / "stopped")
    assert type(caught.value) is kind and signal.getsignal(number) == before
    assert step_of(tmp_path / "stopped") == 17
    assert run(settings, tmp_path / "stopped", resume=True) == whole
    assert steps == 30


def step_of(folder: Path) -> int:
    """Of the checkpoint."""
    return read_checkpoint(folder / "checkpoint.pt", torch.device("cpu"))["state"]["step"]


def test_a_checkpoint_is_written_once_a_minute_however_slow_the_steps(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = Trainer.save_checkpoint

    def count(self: Trainer) -> None:
        saved.append(self.state.step)
        save(self)

    monkeypatch.setattr(Trainer, "save_checkpoint", count)
    assert trainer._CHECKPOINT_INTERVAL == 60.0
    run(settings, tmp_path / "fast", steps=6, checkpoint_every=1000)
    monkeypatch.setattr(trainer, "_CHECKPOINT_INTERVAL", 0.0)
    run(settings, tmp_path / "slow", steps=6, checkpoint_every=1000)
    assert saved == [6, 1, 2, 3, 4, 5, 6, 6]


def test_early_stopping_is_not_undone_by_resuming(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was killed after its last checkpoint, before its potential was written."""
    scores = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr("ponita_ff.training.trainer.validation_score", lambda *_: next(scores))
    best = run(settings, tmp_path, steps=1000, patience=2)
    (tmp_path / "potential.safetensors").unlink()
    assert run(settings, tmp_path, steps=1000, patience=2, resume=True) == best
    assert step_of(tmp_path) == 30


def kill_after_checkpoint(arguments: list[str], checkpoint: Path) -> None:
    """Train in another process and kill it when it has written a checkpoint."""
    threads = str(torch.get_num_threads())  # as in this process, so that sums are rounded alike
    with started(command, ["train", *arguments, "--no-progress", "--threads", threads]) as process:
        while process.is_alive() and not checkpoint.exists():
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.1))
    assert process.exitcode == -signal.SIGKILL


def test_full_disk_is_one_clear_error_and_keeps_the_checkpoint(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = 0
    original = torch.save

    def save(content: Any, path: Path) -> None:
        nonlocal saves
        saves += 1
        if saves == 3:
            Path(path).write_bytes(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt.*No space left"):
        run(settings, tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["state"]["step"] == 10
    assert not list(tmp_path.glob(".*.tmp"))
    monkeypatch.undo()
    run(settings, tmp_path, resume=True)


def test_really_full_disk(settings: dict[str, Any], tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk, inside torch's and the kernel's own code."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # Python ignores the signal that goes with it
    try:
        with pytest.raises(OSError, match="cannot write"):
            run(settings, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob(".*.tmp"))


def test_unwritable_folder_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot write .*file"):
        run(settings, blocked / "out")


def test_resume_with_other_settings_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path, steps=5)
    with pytest.raises(ValueError, match="other settings"):
        run({**settings, "rotate": False}, tmp_path, resume=True)


def test_resume_without_or_with_damaged_checkpoint_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        run(settings, tmp_path / "empty", resume=True)
    run(settings, tmp_path / "run", steps=5)
    path = tmp_path / "run" / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), "version": 3}, path)
    with pytest.raises(ValueError, match="made by another version of ponita_ff"):
        run(settings, tmp_path / "run", resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a complete training checkpoint"):
        run(settings, tmp_path / "run", resume=True)


def test_early_stopping(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponita_ff.training.trainer.validation_score", lambda *_: 1.0)
    run(settings, tmp_path, steps=1000, patience=2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["step"] == 30


def test_early_stopping_keeps_the_best_weights(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = run(settings, tmp_path / "ten", steps=10, patience=2)
    scores = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr("ponita_ff.training.trainer.validation_score", lambda *_: next(scores))
    # The schedule's length differs, so the first ten steps are compared through a constant learning rate.
    monkeypatch.setattr(Trainer, "learning_rate", lambda *_: 0.01)
    stopped = run(settings, tmp_path / "stopped", steps=1000, patience=2)
    scores = iter([1.0])
    assert run(settings, tmp_path / "constant", steps=10, patience=2) == stopped != best


def test_time_budget_ends_the_run_and_the_schedule(settings: dict[str, Any], tmp_path: Path) -> None:
    start = time.monotonic()
    run(settings, tmp_path, steps=None, time="1s", validate_every=5)
    assert 0.95 < time.monotonic() - start < 20.0
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates[-1] < 0.05 * max(rates)


def test_non_finite_loss_stops_with_advice(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="learning_rate"):
        run(settings, tmp_path, learning_rate=1e30, clip_norm=1e30, warmup_steps=0, steps=2000)


def test_a_last_update_that_is_not_finite_writes_nothing(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Optimiser.step

    def diverge(self: Optimiser, *arguments: Any) -> None:
        step(self, *arguments)
        self.weights.values[0] = torch.inf

    monkeypatch.setattr(Optimiser, "step", diverge)
    with pytest.raises(FloatingPointError, match=r"not finite after step 1: lower optimiser\.learning_rate"):
        run(settings, tmp_path, steps=1)
    assert not list(tmp_path.glob("*.safetensors")) and not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_settings_that_are_not_finite_are_refused(settings: dict[str, Any], value: float) -> None:
    settings["optimiser"]["learning_rate"] = value
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rate: .*finite"):
        TrainConfig.from_mapping(settings)


def test_streamed_set_gives_the_same_weights(
    settings: dict[str, Any], frames: InMemoryFrames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ponita_ff.data import write_hdf5

    path = tmp_path / "frames.h5"
    write_hdf5(path, frames, provenance={"made by": "test"})
    settings = {**settings, "data": {**settings["data"], "path": str(path)}}
    cached = run(settings, tmp_path / "cached")
    monkeypatch.setattr("ponita_ff.training.trainer._MAX_CACHED_FRAMES", 0)
    assert run(settings, tmp_path / "streamed") == cached
    assert run({**settings, "workers": 1}, tmp_path / "workers") == cached


def test_rotations_are_uniform_rotations() -> None:
    matrices = random_rotations(2000, (0, 1))
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.eye(3)[None].repeat(2000, 0), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0)
    assert np.abs(matrices.mean(0)).max() < 0.05
    # A uniform rotation sends any axis anywhere on the sphere: second moments are those of the sphere.
    np.testing.assert_allclose(np.square(matrices).mean(0), 1 / 3, atol=0.03)


def test_rotation_augmentation_keeps_distances_and_labels(settings: dict[str, Any], frames: InMemoryFrames) -> None:
    from ponita_ff.structure.graph import batch_graphs
    from ponita_ff.training.resident import rotate_structures

    graph = batch_graphs([frame_graph(frames[i], 4.0) for i in range(2)])
    before = graph.clone()
    rotate_structures(graph, torch.from_numpy(random_rotations(2, (3,))))
    assert not torch.allclose(graph.positions, before.positions)
    for part in (slice(0, 6), slice(6, 12)):
        torch.testing.assert_close(
            torch.cdist(graph.positions[part], graph.positions[part]),
            torch.cdist(before.positions[part], before.positions[part]),
        )
        work = [(g.forces[part] * (g.positions[part] - g.positions[part][0])).sum() for g in (graph, before)]
        torch.testing.assert_close(work[0], work[1])


def test_an_element_that_the_sample_missed_is_named(
    settings: dict[str, Any], frames: InMemoryFrames, tmp_path: Path
) -> None:
    config = TrainConfig.from_mapping(settings)
    potential = build_potential(config, frames)
    numbers = np.where(frames[0].numbers == 8, 16, frames[0].numbers)
    strange = dataclasses.replace(frames[0], numbers=numbers, source="big.h5, frame 9")
    trainer = Trainer(potential, config, [strange] * 4, frames, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"big\.h5, frame 9: atom \d is S .* does not know"):
        trainer.run()


def test_average_soon_forgets_the_first_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    """However slow the average: after n steps it spans about a tenth of them, and it is the one that was asked for."""
    settings["optimiser"] |= {"steps": 12, "ema_decay": 0.999}
    seen: list[torch.Tensor] = []
    config = TrainConfig.from_mapping(settings)
    data = prepare_data(config.data, tmp_path)
    trainer = Trainer(build_potential(config, data.train), config, data.train, data.validation, tmp_path, False)
    step = trainer.optimiser.step

    def watched(*arguments: Any) -> None:
        step(*arguments)
        seen.append(trainer.optimiser.weights.values.clone())

    trainer.optimiser.step = watched  # type: ignore[method-assign]
    trainer.run()
    expected = seen[0]
    for number, weights in enumerate(seen):
        decay = min(0.999, number / (number + 10))
        expected = decay * expected + (1 - decay) * weights
    torch.testing.assert_close(trainer.ema_weights.values, expected)
