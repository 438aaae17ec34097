"""``--out`` of every command: what the command did not write needs ``--force``, and an input is never overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.build import molecule
from ase.io import read, write
from click.testing import CliRunner, Result
from methanol import make_frames

from ponita_ff.cli import main
from ponita_ff.outputs import claim_folder
from ponita_ff.potential.file import save_potential
from ponita_ff.simulate.md import VelocityVerlet

OTHERS = "somebody else's"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def here(make_potential: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two potentials, labelled frames, a structure and settings, in which commands run."""
    for seed in (0, 1):
        save_potential(make_potential(seed=seed, scale=0.05, zbl_cutoff=1.0), tmp_path / f"{seed}.safetensors")
    write(tmp_path / "frames.xyz", [frame.to_atoms() for frame in make_frames(6)], format="extxyz")
    write(tmp_path / "structure.xyz", molecule("CH3OH"), format="extxyz")
    settings = {
        "data": {"path": "frames.xyz", "train": 4, "validation": 2},
        "model": {"cutoff": 4.0, "num_ori": 6, "channels": 8, "num_layers": 1, "l_max": 2},
        "optimiser": {"steps": 2},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMITTEE = "out/committee-0.safetensors"

#: Command without its output, and what it writes: a file, or a folder and a file in it.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "predict": ("predict 0.safetensors structure.xyz -o out.xyz", "out.xyz", ""),
    "calibrate": ("calibrate 0.safetensors 1.safetensors --data frames.xyz --out out.json", "out.json", ""),
    "import": ("import model.ckpt out.safetensors", "out.safetensors", ""),
    "compile": ("compile 0.safetensors", "0.pt2", ""),
    "lammps-plugin": ("lammps-plugin --out out.so", "out.so", ""),
    "label": ("label frames.xyz --method ase.calculators.emt:EMT --out out.xyz", "out.xyz", ""),
    "evaluate": ("evaluate 0.safetensors frames.xyz --out out", "out", "errors.json"),
    "relax": ("relax 0.safetensors structure.xyz --out out", "out", "log.csv"),
    "md": ("md 0.safetensors structure.xyz --out out", "out", "trajectory.traj"),
    "audit": ("audit 0.safetensors --structure structure.xyz --out out", "out", "audit.html"),
    "train": ("train train.yaml --out out", "out", "potential.safetensors"),
    "finetune": ("finetune 0.safetensors frames.xyz --out out", "out", "report.json"),
    "explore": (
        "explore 0.safetensors structure.xyz --method ase.calculators.emt:EMT --budget 20 --out out",
        "out",
        "report.json",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_files_of_others_are_not_overwritten(name: str, here: Path) -> None:
    command, out, inside = COMMANDS[name]
    path = here / out / inside if inside else here / out
    path.parent.mkdir(exist_ok=True)
    path.write_text(OTHERS, encoding="utf-8")
    result = call(*command.split())
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit)
    written = Path(out, inside) if inside else Path(out)
    assert f"{written} exists, and this program did not write it" in result.output.replace("\n", " ")
    assert path.read_text(encoding="utf-8") == OTHERS


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("calibrate 0.safetensors 1.safetensors --data frames.xyz --out 0.safetensors", "0.safetensors"),
        ("calibrate 0.safetensors,1.safetensors --data frames.xyz --out 1.safetensors", "1.safetensors"),
        ("calibrate 0.safetensors 1.safetensors --data frames.xyz --out frames.xyz", "frames.xyz"),
        ("predict 0.safetensors frames.xyz -o frames.xyz", "frames.xyz"),
        ("label frames.xyz --method ase.calculators.emt:EMT --out frames.xyz", "frames.xyz"),
        ("import 0.safetensors 0.safetensors", "0.safetensors"),
        ("relax 0.safetensors out/relaxed.xyz --out out", "out/relaxed.xyz"),
        ("md 0.safetensors out/final.xyz --out out", "out/final.xyz"),
        ("evaluate out/errors.json frames.xyz --out out", "out/errors.json"),
        ("finetune out/potential.safetensors frames.xyz --out out", "out/potential.safetensors"),
        (
            "explore out/committee-0.safetensors structure.xyz --method x --budget 20 --out out",
            "out/committee-0.safetensors",
        ),
    ],
)
def test_an_input_is_never_overwritten(command: str, path: str, here: Path) -> None:
    target = here / path
    if not target.exists():
        target.parent.mkdir()
        shutil.copy("0.safetensors" if path.endswith("safetensors") else "structure.xyz", target)
    before = target.read_bytes()
    result = call(*command.split(), "--force")
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit)
    assert f"{path} is an input of this command" in result.output.replace("\n", " ")
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", ["predict", "calibrate", "relax"])
def test_a_command_overwrites_what_it_wrote_itself(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponita_ff.simulate.relax.plot_relaxation", lambda *_: None)
    command = COMMANDS[name][0].split()
    more = ["--fmax", "1000"] if name == "relax" else []
    for _ in range(2):
        result = call(*command, *more)
        assert result.exit_code == 0, result.output


def test_force_overwrites_what_others_wrote(here: Path) -> None:
    (here / "out.xyz").write_text(OTHERS, encoding="utf-8")
    result = call(*COMMANDS["predict"][0].split(), "--force")
    assert result.exit_code == 0, result.output
    assert read(here / "out.xyz").info["predicted_by"].startswith("ponita-ff")


@pytest.mark.parametrize("name", ["relax", "md", "train", "finetune", "explore"])
def test_a_folder_in_use_is_refused(name: str, here: Path) -> None:
    with claim_folder(here / "out"):
        result = call(*COMMANDS[name][0].split())
    assert result.exit_code == 1
    assert f"another run is using the folder out: process {os.getpid()} on " in result.output.replace("\n", " ")


def interrupting(function: Callable[..., Any], at: int, number: int) -> Callable[..., Any]:
    """A function that a stop signal interrupts at its so manyeth call."""
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_md_that_was_stopped_goes_on(number: int, code: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponita_ff.simulate.md.plot_md", lambda *_: None)
    command = (
        "md 0.safetensors CH3OH --ensemble nve --steps 12 --allow-broken --log-every 1 --frame-every 1 --state-every 2"
    )
    options = [*command.split(), "--device", "cpu", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(VelocityVerlet, "step", interrupting(VelocityVerlet.step, 9, number))
        result = call(*options, "stopped")
    assert result.exit_code == code
    assert "stopped; the same command goes on from the last saved state" in result.output.replace("\n", " ")
    assert call(*options, "stopped").exit_code == 0
    assert call(*options, "whole").exit_code == 0
    assert (here / "stopped" / "log.csv").read_bytes() == (here / "whole" / "log.csv").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_labels_of_a_stopped_run_are_kept(number: int, code: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from ponita_ff.labels import run as labels_run
    from ponita_ff.labels.journal import Journal
    from ponita_ff.labels.pool import ExternalExecutor

    with ThreadPoolExecutor(1) as executor, monkeypatch.context() as patch:
        patch.setattr(labels_run, "ProcessPool", lambda method, *_: ExternalExecutor(executor, method))
        with monkeypatch.context() as stopping:
            stopping.setattr(Journal, "add", interrupting(Journal.add, 4, number))
            result = call(*COMMANDS["label"][0].split())
        assert result.exit_code == code and "the labels so far are in out.xyz.journal.jsonl" in result.output.replace(
            "\n", " "
        )
        lines = (here / "out.xyz.journal.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["frame"] for line in lines[1:]] == [0, 1, 2]
        assert not (here / "out.xyz").exists()
        again = call(*COMMANDS["label"][0].split())
    assert again.exit_code == 0 and "labelled: 6 of 6 frames" in again.output
    after = (here / "out.xyz.journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert after[: len(lines)] == lines and len(after) == 7
    assert {path.name for path in here.glob("*out.xyz*")} == {"out.xyz", "out.xyz.journal.jsonl"}


def test_a_stopped_training_is_told_how_to_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ponita_ff.training.trainer import Trainer

    for name in ("plot_learning_curve", "plot_parity", "write_report_page"):
        monkeypatch.setattr(f"ponita_ff.training.run.{name}", lambda *_: None)
    monkeypatch.setattr(Trainer, "_train_step", interrupting(Trainer._train_step, 1, signal.SIGTERM))
    result = call("train", "train.yaml", "--out", "out")
    assert result.exit_code == 143 and "the same command goes on from the last checkpoint" in result.output
    assert (here / "out" / "checkpoint.pt").is_file()
    assert call("train", "--out", "out").exit_code == 0
    finished = call("train", "--resume", "out")
    assert finished.exit_code == 0
