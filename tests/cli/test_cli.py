"""The command line: what a user types, and what a user's mistake gets."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from click.testing import CliRunner, Result

from ponita_ff import PonitaCalculator
from ponita_ff.cli import main


def call(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the command on frames made here, with its data and settings beside it."""
    folder = tmp_path_factory.mktemp("cli")
    generator = np.random.default_rng(0)
    frames = []
    for _ in range(12):
        atoms = molecule("CH3OH")
        atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    write(folder / "frames.xyz", frames, format="extxyz")
    settings: dict[str, Any] = {
        "name": "cli-test",
        "data": {"path": "frames.xyz", "train": 8, "validation": 2, "test_frames": 2},
        "model": {"cutoff": 4.0, "num_ori": 6, "channels": 8, "num_layers": 1, "l_max": 2},
        "optimiser": {"steps": 20, "batch_size": 4, "validate_every": 10, "checkpoint_every": 10},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    result = call("train", folder / "config.yaml", "--out", folder / "run", "--no-progress")
    assert result.exit_code == 0, result.output
    assert f"potential: {folder / 'run' / 'potential.safetensors'}" in result.output
    return folder


def test_train_leaves_a_potential(run_folder: Path) -> None:
    assert (run_folder / "run" / "potential.safetensors").is_file()


def test_info_prints_provenance_errors_and_one_weights_hash(run_folder: Path) -> None:
    path = run_folder / "run" / "potential.safetensors"
    result = call("info", path)
    assert result.exit_code == 0, result.output
    header = json.loads(call("info", path, "--json").output)
    assert len(re.findall(rf"weights SHA-256 +{header['weights_sha256']}", result.output)) == 1
    for expected in ("cli-test", "frames.xyz", "least squares", "force MAE", "torch", "cutoff            4.0 Å"):
        assert expected in result.output


def test_evaluate_prints_the_same_errors_as_the_file_holds(run_folder: Path) -> None:
    path = run_folder / "run" / "potential.safetensors"
    out = run_folder / "evaluation"
    result = call("evaluate", path, run_folder / "frames.xyz", "--out", out)
    assert result.exit_code == 0, result.output
    errors = json.loads((out / "errors.json").read_text(encoding="utf-8"))
    assert f"{1e3 * errors['forces_mae']:.3f} meV/Å" in result.output
    assert errors["frames"] == 12
    assert (out / "parity.png").stat().st_size > 0


def test_evaluate_by_a_backend(run_folder: Path) -> None:
    arguments = ("evaluate", run_folder / "run" / "potential.safetensors", run_folder / "frames.xyz", "--backend")
    result = call(*arguments, "eager")
    assert result.exit_code == 0, result.output
    result = call(*arguments, "fast")
    assert isinstance(result.exception, SystemExit)
    assert "backend must be one of auto, native, compiled, eager" in result.output


def test_resume_of_a_longer_run(run_folder: Path) -> None:
    result = call("train", "--resume", run_folder / "run", "--set", "optimiser.steps=30", "--no-progress")
    assert result.exit_code == 0, result.output
    report = json.loads((run_folder / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["training"]["steps"] == 30


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["info", "no-such-potential"], "neither a file nor a shipped potential"),
        (["evaluate", "no-such-potential", "x.xyz"], "neither a file nor a shipped potential"),
        (["package", "no-such-potential"], "neither a file nor a shipped potential"),
        (["package", "ethanol-rmd17", "--dtype", "float16"], "float16"),
        (["train", "nowhere.yaml", "--out", "x"], "nowhere.yaml"),
        (["train", "nowhere.yaml"], "--out"),
        (["train", "--out", "x"], "CONFIG"),
        (["train", "--resume", "nowhere"], "nothing to resume"),
        (["train", "x.yaml", "--out", "x", "--tme", "5m"], "--tme"),
        (["import", "nowhere.ckpt", "x.safetensors"], "nowhere.ckpt"),
        (["import", "nowhere.ckpt", "x.safetensors", "--species", "H,Xx"], "Xx"),
        (["label", "nowhere.xyz", "--method", "ase.calculators.emt:EMT", "--out", "x.xyz"], "no such file"),
        (["label", "nowhere.xyz", "--method", "gfn9", "--out", "x.xyz"], "unknown method 'gfn9'"),
        (["label", "nowhere.xyz", "--method", "gfn2-xtb", "--out", "x.dat"], "extended XYZ"),
        (["label", "nowhere.xyz", "--out", "x.xyz"], "--method"),
        (["label", "nowhere.xyz", "--method", "gfn2-xtb", "--out", "x.xyz", "--processes", "0"], "--processes"),
        (["download", "qm9", "ethanol"], "qm9"),
        (["download", "rmd17", "water"], "water"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = call(*arguments)
    # Any other exception is one that the user would see as a traceback.
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code != 0
    assert expected in result.output


def test_finetune_tells_errors_before_and_after(run_folder: Path, tmp_path: Path) -> None:
    base, frames = run_folder / "run" / "potential.safetensors", run_folder / "frames.xyz"
    arguments = ["finetune", base, frames, "--out", tmp_path / "tuned", "--replay", frames, "--no-progress"]
    result = call(*arguments, "--frames", 8, "--test", frames, "--set", "optimiser.steps=4")
    assert result.exit_code == 0, result.output
    for row in (r"new: validation \(2\)", r"new: test \(12\)", r"replay holdout \(4\)"):
        assert re.search(row + r" +\d+\.\d -> \d+\.\d +\d+\.\d -> \d+\.\d", result.output)
    assert (tmp_path / "tuned" / "potential.safetensors").is_file()
    again = call("finetune", base, frames, "--out", tmp_path / "tuned", "--resume", "--set", "optimiser.steps=6")
    assert again.exit_code == 0, again.output
    assert call(*arguments, "--no-replay").exit_code == 2


def test_calibrate_writes_what_the_calculator_takes(run_folder: Path, tmp_path: Path) -> None:
    members = [run_folder / "run" / "potential.safetensors", tmp_path / "other" / "potential.safetensors"]
    made = call("train", run_folder / "config.yaml", "--out", tmp_path / "other", "--set", "seed=1", "--no-progress")
    assert made.exit_code == 0, made.output
    out = tmp_path / "committee.json"
    result = call("calibrate", *members, "--data", run_folder / "frames.xyz", "--out", out)
    assert result.exit_code == 0, result.output
    assert re.search(r"factors: energy \d+\.\d\d, forces \d+\.\d\d \(12 frames\)", result.output)
    PonitaCalculator(members, calibration=out)
    alone = call("calibrate", members[0], "--data", run_folder / "frames.xyz", "--out", out)
    assert alone.exit_code == 1
    assert "two members or more" in alone.output


def test_import_refuses_a_pickle_and_never_runs_it(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harmed",)

    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Harm(), protocol=2))
    result = call("import", tmp_path / "model.ckpt", tmp_path / "x.safetensors")
    assert result.exit_code != 0
    assert "model.ckpt" in result.output
    assert not (tmp_path / "harmed").exists()


def test_wrong_set_option_is_named(run_folder: Path) -> None:
    config = run_folder / "config.yaml"
    for setting in ("optimiser.stepz=3", "optimiser.steps", "optimiser.steps=["):
        result = call("train", config, "--out", run_folder / "x", "--set", setting)
        assert isinstance(result.exception, SystemExit)
        assert setting.partition("=")[0] in result.output


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "PASSIVE 1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"), ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7")],
)
def test_threads_wait_as_shared_machines_like_it_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name[:4] not in ("OMP_", "GOMP")} | given
    program = "import os, ponita_ff.cli; print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_evaluate_names_the_frame_with_an_unknown_element(tmp_path: Path) -> None:
    atoms = molecule("CH3Cl")
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    write(tmp_path / "frames.xyz", atoms, format="extxyz")
    result = call("evaluate", "ethanol-rmd17", tmp_path / "frames.xyz")
    assert result.exit_code == 1
    assert "frames.xyz, frame 0: atom 1 is Cl (Z = 17), which this potential does not know" in result.output


def test_label_says_what_came_of_it(tmp_path: Path) -> None:
    frames, out = tmp_path / "frames.xyz", tmp_path / "labelled.xyz"
    write(frames, [molecule(name) for name in ("H2O", "SiH4", "SiCl4", "CH3SH", "CH3Cl", "C2H6")], format="extxyz")
    arguments = ("label", frames, "--method", "ase.calculators.emt:EMT", "--out", out, "--no-progress")
    result = call(*arguments, "--processes", 2)
    assert result.exit_code == 0, result.output
    assert f"labelled: 2 of 6 frames in {out}" in result.output
    assert "Warning: 4 of 6 frames have no labels:" in result.output
    assert "  frames.xyz, frame 1: NotImplementedError: No EMT-potential for Si" in result.output
    assert "… and 1 more" in result.output
    assert f"{out}.journal.jsonl" in result.output
    assert len(read(out, ":")) == 2
    write(frames, molecule("SiH4"), format="extxyz")
    out = tmp_path / "none.xyz"
    result = call("label", frames, "--method", "ase.calculators.emt:EMT", "--out", out, "--no-progress")
    assert result.exit_code == 1 and "no frame could be labelled" in result.output and not out.exists()
