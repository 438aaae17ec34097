"""The command line: what a user types, and what a user's mistake gets."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from click.testing import CliRunner, Result
from label_calculators import Morse, make_chains
from safetensors.torch import save_file

from ponita_ff import PonitaCalculator
from ponita_ff.cli import main
from ponita_ff.data.download import DownloadError
from ponita_ff.potential.file import load_potential


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


@pytest.mark.usefixtures("drawn_pictures")
def test_evaluate_prints_the_same_errors_as_the_file_holds(run_folder: Path) -> None:
    path = run_folder / "run" / "potential.safetensors"
    out = run_folder / "evaluation"
    result = call("evaluate", path, run_folder / "frames.xyz", "--out", out)
    assert result.exit_code == 0, result.output
    errors = json.loads((out / "errors.json").read_text(encoding="utf-8"))
    assert f"{1e3 * errors['forces_mae']:.3f} meV/Å" in result.output
    assert errors["frames"] == 12
    assert (out / "parity.png").stat().st_size > 0


def test_evaluate_says_that_these_are_training_frames(run_folder: Path, tmp_path: Path) -> None:
    path, data = run_folder / "run" / "potential.safetensors", run_folder / "frames.xyz"
    said = "The potential was trained on frames of frames.xyz: these errors are no test of it."
    assert said in call("evaluate", path, data).output
    other = tmp_path / "other.xyz"
    write(other, read(data, "3:8"), format="extxyz")
    assert "trained on frames" not in call("evaluate", path, other).output


def test_evaluate_counts_frames_outside_the_training_data(run_folder: Path, tmp_path: Path) -> None:
    inside = call("evaluate", run_folder / "run" / "potential.safetensors", run_folder / "frames.xyz").output
    assert re.search(r"training data +0 frames are outside", inside)
    water = molecule("H2O")
    water.calc = EMT()
    water.get_forces()
    write(tmp_path / "water.xyz", water, format="extxyz")
    outside = call("evaluate", run_folder / "run" / "potential.safetensors", tmp_path / "water.xyz").output
    assert re.search(r"training data +1 frames are outside", outside)


def test_evaluate_at_another_level_of_theory_gives_errors_after_a_shift(run_folder: Path, tmp_path: Path) -> None:
    path = run_folder / "run" / "potential.safetensors"
    frames = read(run_folder / "frames.xyz", ":")
    for atoms in frames:
        numbers = atoms.numbers
        energy = atoms.get_potential_energy() - 14.0 * (numbers == 1).sum() - 1000.0 * (numbers == 6).sum()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=atoms.get_forces())
    write(tmp_path / "other.xyz", frames, format="extxyz")
    result = call("evaluate", path, tmp_path / "other.xyz", "--out", tmp_path / "out")
    assert "of another level of theory" in result.output
    assert "another level" not in call("evaluate", path, run_folder / "frames.xyz").output
    errors = json.loads((tmp_path / "out" / "errors.json").read_text(encoding="utf-8"))
    shifted = errors["after_shift_per_element"]
    assert errors["energy_mae_per_atom"] > 100
    assert shifted["energy_mae"] < 1
    assert shifted["forces_mae"] == errors["forces_mae"]
    assert f"{1e3 * shifted['energy_mae']:.3f} meV" in result.output


def test_evaluate_by_a_backend(run_folder: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", run_folder / "run" / "potential.safetensors", run_folder / "frames.xyz", "--backend")
    result = call(*arguments, "eager", "--out", tmp_path / "single")
    assert result.exit_code == 0, result.output
    double = call(*arguments, "eager", "--dtype", "float64", "--device", "cpu", "--out", tmp_path / "double")
    assert double.exit_code == 0, double.output
    errors = [json.loads((tmp_path / name / "errors.json").read_text("utf-8")) for name in ("single", "double")]
    assert errors[0]["forces_mae"] != errors[1]["forces_mae"] == pytest.approx(errors[0]["forces_mae"], rel=1e-3)
    refused = call(*arguments, "fast")
    assert refused.exit_code == 2
    assert "'fast' is not one of 'auto', 'native', 'compiled', 'eager'" in refused.output
    refused = call(*arguments, "eager", "--device", "nothing")
    assert refused.exit_code == 1
    assert "device 'nothing' cannot be used here" in refused.output


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (lambda folder: (folder / "config.yaml", "--out", folder / "run"), 30),  # the same command
        (lambda folder: ("--out", folder / "run"), 40),
        (lambda folder: ("--resume", folder / "run"), 50),  # the spelling of before
    ],
)
def test_a_longer_run_goes_on(run_folder: Path, arguments: Callable[[Path], tuple[object, ...]], steps: int) -> None:
    result = call("train", *arguments(run_folder), "--set", f"optimiser.steps={steps}", "--no-progress")
    assert result.exit_code == 0, result.output
    report = json.loads((run_folder / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["training"]["steps"] == steps


def test_another_run_does_not_go_on_in_the_same_folder(run_folder: Path) -> None:
    arguments = ("train", run_folder / "config.yaml", "--out", run_folder / "run", "--no-progress")
    result = call(*arguments, "--set", "loss.forces=2")
    assert result.exit_code == 1
    assert "settings" in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["info", "no-such-potential"], "neither a file nor a shipped potential"),
        (["evaluate", "no-such-potential", "x.xyz"], "neither a file nor a shipped potential"),
        (["compile", "no-such-potential"], "neither a file nor a shipped potential"),
        (["package", "no-such-potential"], "neither a file nor a shipped potential"),  # the name of before
        (["compile", "ethanol-rmd17", "--dtype", "float16"], "float16"),
        (["explore", "ethanol-rmd17", "--method", "gfn2-xtb", "--budget", "9", "--out", "x"], "give STRUCTURES"),
        (["explore", "ethanol-rmd17", "x.xyz", "--budget", "9", "--out", "x"], "method"),
        (["finetune", "ethanol-rmd17", "x.xyz", "--out", "x", "--settings", "nowhere.yaml"], "nowhere.yaml"),
        (["md", "no-such-potential", "H2O", "--out", "x"], "neither a file nor a shipped potential"),
        (["md", "ethanol-rmd17", "H2OO", "--out", "x"], "there is no such file, nor a molecule of that name"),
        (["md", "ethanol-rmd17", "--ps", "1", "--steps", "1", "--out", "x"], "--ps or --steps"),
        (["md", "ethanol-rmd17", "--ensemble", "npt", "--out", "x"], "npt needs a cell that is periodic"),
        (["md", "ethanol-rmd17", "N2", "--out", "x"], "N (Z = 7), which this potential does not know"),
        (["md", "ethanol-rmd17", "--calibration", "nowhere.json", "--out", "x"], "nowhere.json"),
        (["relax", "ethanol-rmd17", "--pressure", "1", "--out", "x"], "--cell"),
        (["relax", "ethanol-rmd17", "--cell", "--out", "x"], "only a cell that is periodic"),
        (["predict", "ethanol-rmd17", "nowhere.xyz", "-o", "x.xyz"], "nowhere.xyz: there is no such file"),
        (["predict", "ethanol-rmd17", "nowhere.xyz", "-o", "x.cif"], "ends in one of"),
        (["config", "label"], "label"),
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
        (["label", "nowhere.xyz", "--method", "gfn2-xtb", "--weights", "w", "--out", "x.xyz"], "it takes no arguments"),
        (["label", "nowhere.xyz", "--method", "ani-2x", "--weights", "w", "--out", "x.xyz"], "--weights"),
        (["label", "nowhere.xyz", "--method", "gfn2-xtb", "--max-spread", "1", "--out", "x.xyz"], "for ensembles"),
        (["label", "nowhere.xyz", "--method", "gfn2-xtb", "--max-spread", "0", "--out", "x.xyz"], "--max-spread"),
        (["label", "nowhere.xyz", "--method", "gfn2-xtb", "--out", "x.xyz", "--processes", "0"], "--processes"),
        (["download", "qm9", "ethanol"], "qm9"),
        (["download", "rmd17", "water"], "water"),
    ],
)
def test_mistakes_end_in_one_sentence(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    # Any other exception is one that the user would see as a traceback.
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code != 0
    assert expected in result.output


def test_finetune_tells_errors_before_and_after(run_folder: Path, tmp_path: Path) -> None:
    base, frames = run_folder / "run" / "potential.safetensors", run_folder / "frames.xyz"
    printed = tmp_path / "settings.yaml"
    printed.write_text(call("config", "finetune").output, encoding="utf-8")
    arguments = ["finetune", base, frames, "--out", tmp_path / "tuned", "--replay", frames, "--no-progress"]
    arguments += ["--settings", printed]  # the defaults: they change nothing
    result = call(*arguments, "--frames", 8, "--test", frames, "--set", "optimiser.steps=4")
    assert result.exit_code == 0, result.output
    for row in (r"new: validation \(2\)", r"new: test \(12\)", r"replay holdout \(4\)"):
        assert re.search(row + r" +\d+\.\d -> \d+\.\d +\d+\.\d -> \d+\.\d", result.output)
    assert "replay holdout: frames of the training of POTENTIAL, not trained on here" in result.output
    assert (tmp_path / "tuned" / "potential.safetensors").is_file()
    # The same command goes on, and so does the spelling of before.
    again = call(*arguments, "--frames", 8, "--test", frames, "--set", "optimiser.steps=6")
    assert again.exit_code == 0, again.output
    again = call("finetune", base, frames, "--out", tmp_path / "tuned", "--resume", "--set", "optimiser.steps=8")
    assert again.exit_code == 0, again.output
    report = json.loads((tmp_path / "tuned" / "report.json").read_text(encoding="utf-8"))
    assert report["training"]["steps"] == 8
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


@pytest.mark.usefixtures("labels_in_this_process")
def test_explore_trains_a_committee(run_folder: Path, tmp_path: Path) -> None:
    base, out = run_folder / "run" / "potential.safetensors", tmp_path / "out"
    write(tmp_path / "start.xyz", molecule("CH3OH"), format="extxyz")
    settings = {"first": 6, "members": 2, "picoseconds": 0.02, "walkers": 1, "every": 2, "training": {}}
    settings["training"] = {"optimiser.steps": 10, "optimiser.checkpoint_every": 10}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    options = ("--method", "ase.calculators.emt:EMT", "--budget", 6, "--settings", tmp_path / "settings.yaml")
    result = call("explore", base, tmp_path / "start.xyz", *options, "--out", out, "--no-progress")
    assert result.exit_code == 0, result.output
    assert "ended: the budget of 6 labels is spent (6 labels, 1 rounds)" in result.output
    members = [out / "committee-0.safetensors", out / "committee-1.safetensors"]
    assert f"committee: {members[0]} {members[1]}" in result.output
    PonitaCalculator(members)
    # The same command does nothing again; so does the spelling of before.
    made = [member.stat().st_mtime_ns for member in out.glob("round-*/member-*/potential.safetensors")]
    again = call("explore", tmp_path / "start.xyz", "--base", base, *options, "--out", out, "--no-progress")
    assert again.exit_code == 0, again.output
    assert [member.stat().st_mtime_ns for member in out.glob("round-*/member-*/potential.safetensors")] == made


def test_import_of_a_published_checkpoint(tmp_path: Path) -> None:
    """A network of one layer without orientations, under the names of the published code."""
    hidden, basis = 8, 6
    shapes = {
        "x_embedder.weight": (hidden, 9),
        "basis_fn.1.weight": (hidden, 2),
        "basis_fn.1.bias": (hidden,),
        "basis_fn.3.weight": (basis, hidden),
        "basis_fn.3.bias": (basis,),
        "interaction_layers.0.conv.kernel.weight": (hidden, basis),
        "interaction_layers.0.conv.bias": (hidden,),
        "interaction_layers.0.linear_1.weight": (2 * hidden, hidden),
        "interaction_layers.0.linear_1.bias": (2 * hidden,),
        "interaction_layers.0.linear_2.weight": (hidden, 2 * hidden),
        "interaction_layers.0.linear_2.bias": (hidden,),
        "interaction_layers.0.norm.weight": (hidden,),
        "interaction_layers.0.norm.bias": (hidden,),
        "read_out_layers.0.weight": (1, hidden),
        "read_out_layers.0.bias": (1,),
    }
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["interaction_layers.0.conv.callibrated"] = torch.tensor(True)
    save_file(state, tmp_path / "published.safetensors")
    out = tmp_path / "imported.safetensors"
    result = call("import", tmp_path / "published.safetensors", out, "--species", "H,C,O", "--scale", 0.5)
    assert result.exit_code == 0, result.output
    assert result.output == f"potential: {out}\n"
    imported = load_potential(out)
    assert imported.species == (1, 6, 8) and imported.scale == 0.5
    atoms = molecule("CH3OH")
    atoms.calc = PonitaCalculator(out, backend="eager")
    assert np.isfinite(atoms.get_forces()).all()


def test_download_goes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(dataset: str, name: str, folder: Path) -> Path:
        asked.append((dataset, name, folder))
        if name == "water":
            raise DownloadError("unknown molecule 'water'")
        return folder / "file.npz"

    monkeypatch.setattr("ponita_ff.data.download.download", fetch)
    result = call("download", "rmd17", "ethanol", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert asked == [("rmd17", "ethanol", tmp_path)]
    assert result.output == f"ready: {tmp_path / 'file.npz'}\n"
    refused = call("download", "rmd17", "water", "--out", tmp_path)
    assert refused.exit_code == 1
    assert refused.output == "Error: unknown molecule 'water'\n"


def test_potentials_are_listed() -> None:
    result = call("potentials")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert re.fullmatch(
        r"ethanol-rmd17 +H C O +PBE/def2-SVP +950 +3\.28 +0\.68", next(x for x in lines if "ethanol" in x)
    )
    facts = {fact["name"]: fact for fact in json.loads(call("potentials", "--json").output)}
    assert len(facts) == len(lines) - 2
    assert facts["organic-rmd17"]["elements"] == ["H", "C", "N", "O"]
    assert Path(facts["organic-rmd17"]["file"]).is_file()


def test_label_says_about_what_an_ensemble_disagrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, out = tmp_path / "frames.xyz", tmp_path / "labelled.xyz"
    write(frames, make_chains([2, 3, 2]))
    monkeypatch.setattr("ponita_ff.labels.run.find_method", lambda method, **_: Morse(folder=str(tmp_path)))
    arguments = ("label", frames, "--method", "morse", "--out", out, "--no-progress")
    result = call(*arguments, "--max-spread", "1e-6")
    assert result.exit_code == 0 and "labelled: 0 of 3 frames\n" in result.output and not out.exists()
    others = tmp_path / "labelled.disagreed.xyz"
    expected = f"disagreed: 3 of 3 frames have a force with a spread above 1e-06 eV/Å; they are in {others}, without"
    assert expected in result.output
    result = call(*arguments, "--max-spread", "100")
    assert result.exit_code == 0 and f"labelled: 3 of 3 frames in {out}" in result.output
    assert "disagreed" not in result.output and not others.exists()


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
