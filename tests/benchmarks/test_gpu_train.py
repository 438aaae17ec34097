"""Training for minutes: from packed frames to archives, on the CPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import numpy as np
import pytest
import yaml
from ase.build import molecule
from click.testing import CliRunner

from ponita_ff.cli import main as ponita_ff_command
from ponita_ff.data import Frame, read_frames, write_hdf5
from ponita_ff.potential.file import load_potential
from ponita_ff.training.config import TrainConfig

Script = Callable[[str], ModuleType]

#: The smallest network.
MODEL = {"channels": 4, "num_layers": 1, "l_max": 1, "num_ori": 6, "widening": 1}


def packed(script: Script, folder: Path) -> Path:
    rng = np.random.default_rng(0)
    atoms = molecule("H2O")
    frames = [
        Frame(
            atoms.numbers,
            atoms.positions + 0.02 * rng.normal(size=(3, 3)),
            np.zeros((3, 3)),
            np.zeros(3, dtype=bool),
            energy=-2000.0 + 0.1 * float(rng.normal()),
            forces=rng.normal(size=(3, 3)),
            source="made",
        )
        for _ in range(20)
    ]
    write_hdf5(folder / "water.h5", frames, {})
    script("gpu_pack").pack([folder / "water.h5"], folder / "packed.npz")
    (folder / "water.h5").unlink()
    return folder / "packed.npz"


def job(folder: Path, steps: int = 2) -> Path:
    """Two runs, the second from the first."""
    settings = {
        "data": {"path": "data/water.h5", "train": 16, "validation": 4},
        "model": MODEL,
        "optimiser": {"batch_size": 4, "steps": steps, "validate_every": 2},
    }
    second = {**settings, "potential": {"start": "first/potential.safetensors"}}
    runs = [
        {"name": "first", "settings": settings, "batch_size": 16, "reserve": 1.0},
        {"name": "second", "settings": second, "reserve": 1.0},
    ]
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"runs": runs}), encoding="utf-8")
    return path


def call(script: Script, *arguments: str | Path) -> Any:
    return CliRunner().invoke(script("gpu_train").main, [str(argument) for argument in arguments])


class Here:
    """Stands in for the process of a run: the same command, in this process, which has imported torch already."""

    def __init__(self, command: list[str], cwd: Path, stdout: TextIO, stderr: int) -> None:
        assert command[:3] == [sys.executable, "-m", "ponita_ff"] and stderr == subprocess.STDOUT
        with contextlib.chdir(cwd):
            done = CliRunner().invoke(ponita_ff_command, command[3:])
        stdout.write(done.output)
        self._code = done.exit_code

    def wait(self, timeout: float | None = None) -> int:
        return self._code

    def kill(self) -> None:
        """It has ended."""


def test_two_runs(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In that module alone: kernels may have to be compiled, which takes processes too.
    stand_in = SimpleNamespace(**{**vars(subprocess), "Popen": Here})
    monkeypatch.setattr(script("gpu_train"), "subprocess", stand_in)
    arguments = ("run", packed(script, tmp_path), job(tmp_path), "--work", tmp_path / "work")
    done = call(script, *arguments, "--minutes", "20", "--out", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "first: finished" in done.output
    for name in ("potentials", "checkpoints"):
        with tarfile.open(tmp_path / "out" / f"{name}.tar") as archive:
            archive.extractall(tmp_path / name, filter="data")
    load_potential(tmp_path / "potentials" / "second" / "potential.safetensors")
    assert (tmp_path / "checkpoints" / "second" / "checkpoint.pt").is_file()
    config = TrainConfig.from_yaml(tmp_path / "potentials" / "first" / "config.yaml")
    assert config.optimiser.batch_size == 16
    assert config.optimiser.learning_rate == pytest.approx(2e-3)
    assert 500 < (config.optimiser.seconds or 0) < 590
    # On another machine it goes on from what came back.
    shutil.rmtree(tmp_path / "work")
    arguments = ("run", tmp_path / "packed.npz", job(tmp_path, steps=4), "--work", tmp_path / "work")
    rest = ("--only", "second", "--continue", tmp_path / "out", "--out", tmp_path / "again")
    done = call(script, *arguments, *rest, "--minutes", "20", "--device", "cpu")
    assert done.exit_code == 0, done.output
    metrics = (tmp_path / "work" / "second" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in metrics] == ["step", "2.0", "4.0"]


def test_packed_frames_are_written_again(script: Script, tmp_path: Path) -> None:
    result = call(script, "unpack", packed(script, tmp_path), tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert len(read_frames(tmp_path / "again" / "water.h5")) == 20
    assert "water.h5: 20 frames" in result.output


def test_what_is_refused(script: Script, tmp_path: Path) -> None:
    data, work = packed(script, tmp_path), tmp_path / "work"
    rest = ("--minutes", "1", "--out", tmp_path / "out", "--work", work, "--device", "cpu")
    wrong = tmp_path / "wrong.yaml"
    for text, message in (
        ("runs: []", "runs: List should have at least 1 item"),
        ("runs: [{name: ../up, settings: {}}]", "runs.0.name"),
        ("runs: [{name: a, settings: {}}, {name: a, settings: {}}]", "every run needs a name of its own"),
        ("runs: [{name: a, settings: {data: {path: data/none.h5, train: 1, validation: 1}}}]", "data/none.h5"),
        ("runs: [{name: a, settings: {data: {path: x}, optimizer: {}}}]", "optimizer: Extra inputs"),
    ):
        wrong.write_text(text, encoding="utf-8")
        done = call(script, "run", data, wrong, *rest)
        assert done.exit_code == 1
        assert message in done.output
    done = call(script, "run", data, job(tmp_path), *rest, "--only", "third")
    assert "no run with the name third" in done.output
    done = call(script, "run", wrong, job(tmp_path), *rest)
    assert "not packed frames, or damaged" in done.output
    assert done.exit_code == 1


def test_a_run_whose_time_is_over_is_stopped(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets time for its checkpoint; what it leaves is delivered meanwhile."""
    training = script("gpu_train")
    monkeypatch.setattr(training, "INTERVAL", 0.1)
    monkeypatch.setattr(training, "settings_of", lambda *args: TrainConfig.model_validate({"data": {"path": "x"}}))
    slow = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *args: (pathlib.Path('a/checkpoint.pt').touch(), sys.exit(3)))\n"
        "pathlib.Path('a/potential.safetensors').write_text('here')\n"
        "time.sleep(60)\n"
    )
    popen = training.subprocess.Popen
    monkeypatch.setattr(
        training.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", slow], **options)
    )
    session = training.Session(tmp_path / "work", tmp_path / "out", "cpu", time.monotonic() + 60)
    run = training.RunOfJob(name="a", settings={})
    (tmp_path / "work").mkdir()
    assert session.train(run, 4.0) == "stopped, its time was over: --continue goes on"
    assert (tmp_path / "work" / "a" / "checkpoint.pt").exists()
    with tarfile.open(tmp_path / "out" / "potentials.tar") as archive:
        assert "a/potential.safetensors" in archive.getnames()


def test_archives_hold_what_fits(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = script("gpu_train")
    monkeypatch.setattr(training, "ARCHIVE_MB", 0.1)
    work = tmp_path / "work"
    for number, (name, size) in enumerate((("old", 60_000), ("new", 60_000))):
        (work / name).mkdir(parents=True)
        (work / name / "checkpoint.pt").write_bytes(b"0" * size)
        (work / name / "log.txt").touch()
        os.utime(work / name / "log.txt", (number, number))
    training.Session(work, tmp_path, "cpu", 0.0).deliver()
    with tarfile.open(tmp_path / "checkpoints.tar") as archive:
        assert archive.getnames() == ["new/checkpoint.pt"]
    assert "checkpoints.tar has no room for old/checkpoint.pt" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["organic-wb97x", "rmd17", "batch-rule"])
def test_prepared_jobs(name: str, script: Script, tmp_path: Path) -> None:
    """Their settings can be used, once their files are there."""
    training = script("gpu_train")
    found = training.Job.from_yaml(Path(training.__file__).parent / "gpu_jobs" / f"{name}.yaml")
    for run in found.runs:
        for path in ("data", run.name):
            (tmp_path / path).mkdir(exist_ok=True)
        config = TrainConfig.from_mapping({**run.settings, "optimiser": {**run.settings["optimiser"], "time": "1s"}})
        for path in config.inputs:
            if path.parts[0] == "data":
                (tmp_path / path).touch()
        made = training.settings_of(run, 60.0, tmp_path)
        (tmp_path / run.name / "potential.safetensors").touch()
        assert made.optimiser.seconds == 60.0
        assert made.optimiser.batch_size == (run.batch_size or config.optimiser.batch_size)
        if name == "rmd17":
            assert made.final_stage is not None
            assert run.settings["name"] == run.name
            assert run.name.split("-")[0] in str(made.data.path)
    assert len(found.runs) == {"organic-wb97x": 2, "rmd17": 10, "batch-rule": 6}[name]
