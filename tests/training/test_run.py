"""Whole runs: data, stages, results."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from ponita_ff.data import DataError
from ponita_ff.locks import LockedError
from ponita_ff.outputs import OutputError, claim_folder
from ponita_ff.potential.file import load_potential, read_header
from ponita_ff.provenance import weights_hash
from ponita_ff.training.config import TrainConfig
from ponita_ff.training.run import prepare_data, train
from ponita_ff.training.trainer import Trainer


def run(settings: dict[str, Any], out: Path, resume: bool = False, **optimiser: Any) -> str:
    """Train and return the hash of the weights."""
    settings = {**settings, "optimiser": {**settings["optimiser"], **optimiser}}
    train(TrainConfig.from_mapping(settings), out, resume=resume, progress=False)
    return str(read_header(out / "potential.safetensors")["weights_sha256"])


@pytest.mark.usefixtures("drawn_plots")
def test_training_lowers_the_error_and_writes_all_results(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path, steps=150, learning_rate=0.02, ema_decay=0.9)
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        rows = [float(row["validation_forces_mae"]) for row in csv.DictReader(file)]
    assert len(rows) == 15
    assert rows[-1] < 0.5 * rows[0]
    for name in ("potential.safetensors", "config.yaml", "split.json", "report.json", "report.html"):
        assert (tmp_path / name).stat().st_size > 0
    for name in ("learning_curve.png", "parity.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").glob("events*"))
    header = read_header(tmp_path / "potential.safetensors")
    assert header["metadata"]["errors"]["test"]["frames"] == 4
    assert header["metadata"]["data"]["train"] == 12
    assert header["domain"]["frames"] == 12
    assert len(header["metadata"]["data"]["files_sha256"]) == 1


def test_same_seed_same_weights_other_seed_others(settings: dict[str, Any], tmp_path: Path) -> None:
    first = run(settings, tmp_path / "a")
    assert run(settings, tmp_path / "b") == first
    assert run({**settings, "seed": 1}, tmp_path / "c") != first


def test_a_final_stage_starts_from_the_trained_potential(settings: dict[str, Any], tmp_path: Path) -> None:
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


def test_a_run_with_a_final_stage_resumes_in_either_stage(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["final_stage"] = {"num_ori": 12, "share": 0.5}
    whole = run(settings, tmp_path / "whole")
    original = Trainer._train_step
    steps = 0

    def stop_twice(self: Trainer, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps in (8, 24):  # after seven steps of the first stage, then after two or more of the final one
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


def test_finished_folder_is_not_overwritten(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path, steps=5)
    with pytest.raises(ValueError, match="already holds a run"):
        run(settings, tmp_path, steps=5)


def test_more_test_frames_than_there_are_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["data"]["train"] = 19
    with pytest.raises(DataError, match="27 frames asked, but there are 20"):
        prepare_data(TrainConfig.from_mapping(settings).data, tmp_path)


def test_missing_data_file_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["data"]["path"] = str(tmp_path / "nowhere.xyz")
    with pytest.raises((DataError, OSError), match=r"nowhere\.xyz"):
        run(settings, tmp_path)


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


def test_all_extra_training_frames_are_trained_on(
    settings: dict[str, Any], frames_path: Path, water: list[Atoms], tmp_path: Path
) -> None:
    path = tmp_path / "water.xyz"
    write(path, water, format="extxyz")
    config = TrainConfig.from_mapping({**settings, "data": {**settings["data"], "extra_train": [str(path)]}})
    data = prepare_data(config.data, tmp_path)
    assert [len(frame) for frame in data.train] == 12 * [6] + 8 * [3]
    assert (len(data.validation), len(data.test)) == (4, 4)
    assert (data.provenance["extra_train_file"], data.provenance["extra_train"]) == ("water.xyz", 8)


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


def test_shipped_file_equals_the_average(settings: dict[str, Any], tmp_path: Path) -> None:
    average = train(TrainConfig.from_mapping(settings), tmp_path, progress=False)
    loaded = load_potential(tmp_path / "potential.safetensors").state_dict()
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    assert weights_hash(loaded) == read_header(tmp_path / "potential.safetensors")["weights_sha256"]


# ------------------------------------------------------------------------------------------ folders


def test_two_runs_do_not_share_a_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    with claim_folder(tmp_path), pytest.raises(LockedError, match=f"using the folder .*: process {os.getpid()} on"):
        run(settings, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".ponita_ff"}


@pytest.mark.parametrize("anew", [True, False])
def test_a_folder_that_is_deleted_or_begun_anew_meanwhile(
    anew: bool, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    original = Trainer._train_step

    def delete_at_7(self: Trainer, *args: Any) -> Any:
        if self.state.step == 7:
            shutil.rmtree(out)
            if anew:
                out.mkdir()
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_train_step", delete_at_7)
    with pytest.raises(FileNotFoundError, match=r"the folder .*out was deleted, moved or begun anew by another run"):
        run(settings, out)
    assert not list(tmp_path.glob("out/*"))


def stop_before_the_first_checkpoint(settings: dict[str, Any], out: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_train_step", stop)
        run(settings, out)
    assert not (out / "checkpoint.pt").exists() and (out / "config.yaml").exists()


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop_before_the_first_checkpoint(settings, tmp_path)
    assert "begins anew" not in caplog.text
    run(settings, tmp_path, steps=3)  # other settings than before: nothing is lost
    assert "was stopped before its first checkpoint: it begins anew" in caplog.text
    assert TrainConfig.from_yaml(tmp_path / "config.yaml").optimiser.steps == 3


def test_a_split_of_other_settings_is_not_used_again(settings: dict[str, Any], tmp_path: Path) -> None:
    stop_before_the_first_checkpoint(settings, tmp_path)
    settings["data"] |= {"train": 10}
    run(settings, tmp_path, steps=2)
    assert read_header(tmp_path / "potential.safetensors")["metadata"]["data"]["train"] == 10


def test_a_user_s_own_files_are_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    """Settings that are those of the run stay as they are, comments and all; others are not overwritten."""
    text = yaml.safe_dump(settings) + "# my comment\n"
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(OutputError, match=r"config\.yaml holds other settings, and no run to continue"):
        run(settings, tmp_path, steps=2)
    stop_before_the_first_checkpoint(settings, tmp_path)
    with pytest.raises(OutputError, match=r"config\.yaml holds other settings"):
        run(settings, tmp_path, steps=2)
    run(settings, tmp_path)
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == text


def test_a_potential_without_a_checkpoint_is_not_overwritten(settings: dict[str, Any], tmp_path: Path) -> None:
    before = run(settings, tmp_path, steps=2)
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(OutputError, match=r"potential\.safetensors exists without a checkpoint\.pt"):
        run(settings, tmp_path, steps=3)
    assert read_header(tmp_path / "potential.safetensors")["weights_sha256"] == before
    train(TrainConfig.from_mapping(settings), tmp_path, progress=False, force=True)
    assert read_header(tmp_path / "potential.safetensors")["weights_sha256"] != before


def test_a_finished_run_does_nothing_again(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings["optimiser"] |= {"steps": 5}
    before = run(settings, tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*[a-z].*")}
    assert "already finished" not in caplog.text
    assert run(settings, tmp_path, resume=True) == before
    assert "already finished" in caplog.text and "holds 5 steps" in caplog.text
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*[a-z].*")} == written
    run(settings, tmp_path, resume=True, steps=6)
    assert read_header(tmp_path / "potential.safetensors")["metadata"]["training"]["steps"] == 6


def test_paths_in_the_settings_of_a_run_are_absolute(
    settings: dict[str, Any], frames_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it goes on from anywhere; a checkpoint of an earlier version holds relative ones."""
    monkeypatch.chdir(frames_path.parent)
    settings["data"] |= {"path": frames_path.name}
    run(settings, tmp_path / "run", steps=5)
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    old = {name: value for name, value in content.items() if name not in ("sha256", "finished")} | {"version": 4}
    old["config"] = old["config"].replace(str(frames_path), frames_path.name)
    torch.save(old, tmp_path / "run" / "checkpoint.pt")
    run(settings, tmp_path / "run", resume=True, steps=6)
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.from_yaml(tmp_path / "run" / "config.yaml", {"optimiser.steps": 7})
    train(config, tmp_path / "run", resume=True, progress=False)


def test_a_log_that_is_no_table_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path, steps=10)
    with (tmp_path / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("20,none\n")
    with pytest.raises(ValueError, match=r"metrics\.csv, line 3: not a row of numbers"):
        run(settings, tmp_path, resume=True, steps=20)
