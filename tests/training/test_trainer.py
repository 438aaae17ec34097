"""The loop: it learns, it resumes bit for bit, it loses nothing when the machine fails."""

from __future__ import annotations

import csv
import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from ponita_ff.data import DataError, InMemoryFrames
from ponita_ff.network.orientations import random_rotations
from ponita_ff.potential.file import load_potential, read_header
from ponita_ff.provenance import weights_hash
from ponita_ff.training.build import build_potential
from ponita_ff.training.config import ConfigError, TrainConfig
from ponita_ff.training.evaluate import frame_graph
from ponita_ff.training.run import prepare_data, train
from ponita_ff.training.trainer import Trainer


def run(settings: dict[str, Any], out: Path, resume: bool = False, **optimiser: Any) -> str:
    """Train and return the hash of the weights."""
    settings = {**settings, "optimiser": {**settings["optimiser"], **optimiser}}
    train(TrainConfig.from_mapping(settings), out, resume=resume, progress=False)
    return str(read_header(out / "potential.safetensors")["weights_sha256"])


def test_training_lowers_the_error_and_writes_all_results(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path, steps=150, learning_rate=0.02, ema_decay=0.9)
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        rows = [float(row["validation_forces_mae"]) for row in csv.DictReader(file)]
    assert len(rows) == 15
    assert rows[-1] < 0.5 * rows[0]
    for name in ("potential.safetensors", "config.yaml", "split.json", "report.json"):
        assert (tmp_path / name).stat().st_size > 0
    for name in ("learning_curve.png", "parity.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").glob("events*"))
    header = read_header(tmp_path / "potential.safetensors")
    assert header["metadata"]["errors"]["test"]["frames"] == 4
    assert header["metadata"]["data"]["train"] == 12


def test_same_seed_same_weights_other_seed_others(settings: dict[str, Any], tmp_path: Path) -> None:
    first = run(settings, tmp_path / "a")
    assert run(settings, tmp_path / "b") == first
    assert run({**settings, "seed": 1}, tmp_path / "c") != first


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


def test_a_finish_goes_on_with_the_trained_potential(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["final_stage"] = {"num_ori": 12, "share": 0.4, "learning_rate": 1e-4, "warmup_steps": 2}
    run(settings, tmp_path)
    first, last = (read_header(folder / "potential.safetensors") for folder in (tmp_path / "first", tmp_path))
    assert (first["network"]["num_ori"], last["network"]["num_ori"]) == (6, 12)
    assert (first["metadata"]["training"]["steps"], last["metadata"]["training"]["steps"]) == (18, 12)
    assert last["metadata"]["started_from"]["weights_sha256"] == first["weights_sha256"]
    assert last["metadata"]["started_from"]["num_ori"] == 6
    assert last["weights_sha256"] != first["weights_sha256"]
    assert TrainConfig.from_yaml(tmp_path / "config.yaml").final_stage is not None
    with pytest.raises(ValueError, match="already holds a run"):
        run(settings, tmp_path)


def test_a_run_with_a_finish_stopped_in_either_part_goes_on(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["final_stage"] = {"num_ori": 12, "share": 0.5}
    whole = run(settings, tmp_path / "whole")
    original = Trainer._train_step
    steps = 0

    def stop_twice(self: Trainer, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps in (8, 24):  # seven steps of the first part, then two or more of the second
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_train_step", stop_twice)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "parts")
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "parts", resume=True)
    assert (tmp_path / "parts" / "first" / "potential.safetensors").exists()
    monkeypatch.undo()
    assert run(settings, tmp_path / "parts", resume=True) == whole


def test_killed_and_resumed_equals_uninterrupted(config_path: Path, tmp_path: Path) -> None:
    """SIGKILL at a random moment, three times, then resume to the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def command(*arguments: object) -> list[str]:
        options = ["--set", "optimiser.steps=400", "--no-progress", "--threads", "1"]
        return [sys.executable, "-m", "ponita_ff", "train", *map(str, arguments), *options]

    subprocess.run(command(config_path, "--out", tmp_path / "whole"), check=True, env=environment)
    killed, folder = 0, tmp_path / "killed"
    arguments: tuple[object, ...] = (config_path, "--out", folder)
    for _ in range(3):
        process = subprocess.Popen(command(*arguments), env=environment)
        started = (folder / "checkpoint.pt").exists()
        while process.poll() is None and not started:
            started = (folder / "checkpoint.pt").exists()
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 1.0) + (5.0 if "--resume" in arguments else 0.0))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        arguments = ("--resume", folder)
    assert killed >= 1, "the run ended before it could be killed"
    subprocess.run(command("--resume", folder), check=True, env=environment)
    hashes = [read_header(tmp_path / name / "potential.safetensors")["weights_sha256"] for name in ("whole", "killed")]
    assert hashes[0] == hashes[1]


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
    """A file-size limit stands in for a full disk, inside torch's and the kernel's own code."""
    code = (
        "import resource, signal, sys, yaml\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from ponita_ff.training.config import TrainConfig\n"
        "from ponita_ff.training.run import train\n"
        "config = TrainConfig.from_mapping(yaml.safe_load(sys.stdin.read()))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n    train(config, Path(sys.argv[1]), progress=False)\n"
        "except OSError as error:\n    print('refused:', error)\n"
    )
    import yaml

    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        input=yaml.safe_dump(settings),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "refused: " in result.stdout
    assert "cannot write" in result.stdout
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_unwritable_folder_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot write .*file"):
        run(settings, blocked / "out")


def test_finished_folder_is_not_overwritten(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path, steps=5)
    with pytest.raises(ValueError, match="--resume"):
        run(settings, tmp_path, steps=5)


def test_resume_with_other_settings_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path, steps=5)
    with pytest.raises(ValueError, match="other settings"):
        run({**settings, "rotate": False}, tmp_path, resume=True)


def test_resume_without_or_with_damaged_checkpoint_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        run(settings, tmp_path / "empty", resume=True)
    run(settings, tmp_path / "run", steps=5)
    path = tmp_path / "run" / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), "version": 1}, path)
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
    run(settings, tmp_path, steps=None, time="3s", validate_every=5)
    assert 2.9 < time.monotonic() - start < 20.0
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates[-1] < 0.05 * max(rates)


def test_non_finite_loss_stops_with_advice(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="learning_rate"):
        run(settings, tmp_path, learning_rate=1e30, clip_norm=1e30, warmup_steps=0, steps=2000)


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
    from ponita_ff.training.trainer import _rotate_structures

    graph = batch_graphs([frame_graph(frames[i], 4.0) for i in range(2)])
    before = graph.clone()
    _rotate_structures(graph, torch.from_numpy(random_rotations(2, (3,))))
    assert not torch.allclose(graph.positions, before.positions)
    for part in (slice(0, 6), slice(6, 12)):
        torch.testing.assert_close(
            torch.cdist(graph.positions[part], graph.positions[part]),
            torch.cdist(before.positions[part], before.positions[part]),
        )
        work = [(g.forces[part] * (g.positions[part] - g.positions[part][0])).sum() for g in (graph, before)]
        torch.testing.assert_close(work[0], work[1])


def test_more_test_frames_than_there_are_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["data"]["train"] = 19
    with pytest.raises(DataError, match="27 frames asked, but there are 20"):
        prepare_data(TrainConfig.from_mapping(settings).data, tmp_path)


def test_missing_data_file_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["data"]["path"] = str(tmp_path / "nowhere.xyz")
    with pytest.raises((DataError, OSError), match=r"nowhere\.xyz"):
        run(settings, tmp_path)


def test_reference_energies_and_scale(settings: dict[str, Any], frames: InMemoryFrames, tmp_path: Path) -> None:
    config = TrainConfig.from_mapping(settings)
    potential = build_potential(config, frames)
    counts = torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)
    mean = np.mean([frame.energy for frame in frames])
    assert float(counts @ potential.reference_energies) == pytest.approx(mean, abs=1e-9)
    forces = np.concatenate([frame.forces for frame in frames])
    assert potential.scale == pytest.approx(np.sqrt(np.square(forces).mean()))
    settings["potential"] = {"reference_energies": {"H": -1.0, "C": -2.0, "O": -3.0}, "extra_species": ["N"]}
    with pytest.raises(ConfigError, match="7"):
        build_potential(TrainConfig.from_mapping(settings), frames)
    settings["potential"]["reference_energies"]["N"] = -4.0
    potential = build_potential(TrainConfig.from_mapping(settings), frames)
    assert potential.species == (1, 6, 7, 8)
    assert potential.reference_energies.tolist() == [-1.0, -2.0, -4.0, -3.0]


def test_several_files_are_trained_on_together(
    settings: dict[str, Any], frames_path: Path, water: list[Atoms], tmp_path: Path
) -> None:
    """As one file that holds the frames of both; water beside methanol, so that sizes and species differ."""
    write(tmp_path / "water.xyz", water, format="extxyz")
    write(tmp_path / "all.xyz", [*read(frames_path, ":"), *water], format="extxyz")
    settings["data"] |= {"train": 20, "validation": 6, "test_frames": 2}
    settings["data"]["path"] = [str(frames_path), str(tmp_path / "water.xyz")]
    several = run(settings, tmp_path / "several")
    provenance = read_header(tmp_path / "several" / "potential.safetensors")["metadata"]["data"]
    assert provenance["file"] == "frames.xyz, water.xyz"
    settings["data"]["path"] = str(tmp_path / "all.xyz")
    assert run(settings, tmp_path / "one") == several


def test_protocol_of_several_files_splits_each(settings: dict[str, Any], tmp_path: Path) -> None:
    atoms = molecule("OH")
    for name in ("one", "two"):
        np.savez(
            tmp_path / f"{name}.npz",
            nuclear_charges=atoms.numbers,
            coords=np.broadcast_to(atoms.positions, (1000, 2, 3)),
            energies=np.arange(1000.0),
            forces=np.zeros((1000, 2, 3)),
            e_unit="eV",
            r_unit="Ang",
        )
    files = [str(tmp_path / f"{name}.npz") for name in ("one", "two")]
    config = TrainConfig.from_mapping({**settings, "data": {"path": files, "test": files, "protocol": "rmd17"}})
    data = prepare_data(config.data, tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (1900, 100, 2000)
    assert [frame.energy for frame in data.train[:950]] == [frame.energy for frame in data.train[950:]]
    assert data.provenance["test_file"] == "one.npz, two.npz"


def test_further_frames_all_train(
    settings: dict[str, Any], frames_path: Path, water: list[Atoms], tmp_path: Path
) -> None:
    path = tmp_path / "water.xyz"
    write(path, water, format="extxyz")
    config = TrainConfig.from_mapping({**settings, "data": {**settings["data"], "extra_train": [str(path)]}})
    data = prepare_data(config.data, tmp_path)
    assert [len(frame) for frame in data.train] == 12 * [6] + 8 * [3]
    assert (len(data.validation), len(data.test)) == (4, 4)
    assert (data.provenance["extra_train_file"], data.provenance["extra_train"]) == ("water.xyz", 8)


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


def test_the_finished_potential_averages_over_rotations(settings: dict[str, Any], tmp_path: Path) -> None:
    """Training does not see them, so that a finished run may be given others without another step."""
    plain = run(settings, tmp_path / "plain")
    settings["potential"] = {"rotations": 4}
    assert len(load_potential(tmp_path / "plain" / "potential.safetensors").rotations) == 1
    config = TrainConfig.from_mapping(settings)
    train(config, tmp_path / "plain", resume=True, progress=False)
    averaged = load_potential(tmp_path / "plain" / "potential.safetensors")
    assert len(averaged.rotations) == 4
    assert averaged.metadata["training"]["steps"] == 30
    averaged.average_rotations(1)
    assert weights_hash(averaged.state_dict()) == plain


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


def test_shipped_file_equals_the_average(settings: dict[str, Any], tmp_path: Path) -> None:
    average = train(TrainConfig.from_mapping(settings), tmp_path, progress=False)
    loaded = load_potential(tmp_path / "potential.safetensors").state_dict()
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    assert weights_hash(loaded) == read_header(tmp_path / "potential.safetensors")["weights_sha256"]
