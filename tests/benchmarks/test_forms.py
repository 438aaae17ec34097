"""The comparison of forms of network: sizes, a whole small run that is stopped and goes on, the page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase.build import molecule
from click.testing import CliRunner

from ponita_ff.network.config import FORM_CONFIGS


@pytest.fixture(scope="module")
def forms(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("forms")


def write_springs(folder: Path) -> None:
    """A molecule whose atoms are held together by springs, under the name of ethanol and in the units of rMD17."""
    generator, atoms = np.random.default_rng(0), molecule("H2O")
    lengths = atoms.get_all_distances()
    (folder / "rmd17").mkdir()
    for part, number in (("train", 1000), ("test", 20)):
        coords = atoms.positions + 0.05 * generator.normal(size=(number, 3, 3))
        vectors = coords[:, :, None] - coords[:, None]
        distances = np.linalg.norm(vectors, axis=-1)
        stretch = distances - lengths
        directions = vectors / np.where(distances == 0.0, 1.0, distances)[..., None]
        np.savez(
            folder / "rmd17" / f"rmd17_ethanol_{part}_01.npz",
            nuclear_charges=atoms.numbers,
            coords=coords,
            energies=50.0 * np.square(stretch).sum((1, 2)),
            forces=-200.0 * (stretch[..., None] * directions).sum(2),
        )


def test_all_forms_are_there_with_as_many_weights(forms: ModuleType) -> None:
    assert {settings["form"] for settings in forms.FORMS.values()} == set(FORM_CONFIGS)
    for settings in forms.FORMS.values():
        assert forms.sized(settings).num_weights(3) == pytest.approx(forms.TARGET, rel=0.1)
    assert forms.sized(forms.FORMS["PONITA"]).channels == 48


def test_run_and_report(forms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_springs(tmp_path)
    monkeypatch.setattr(forms, "TARGET", 3000)
    monkeypatch.setattr(forms, "VALIDATION", 4)
    small = {"cutoff": 3.0, "num_layers": 1, "l_max": 1, "num_bessel": 3, "radial_hidden": 8, "radial_basis": 8}
    chosen = {"PONITA": {"form": "force-field", "num_ori": 6}, "oriented points": {"form": "oriented-points"}}
    monkeypatch.setattr(forms, "FORMS", {name: settings | small for name, settings in chosen.items()})
    nve = {"timesteps": [0.5], "picoseconds": 0.02}
    scans = {"bonds": 1, "stretch": 1.2, "detach": 1.2, "spacing": 0.2, "bisections": 4, "bisected_intervals": 1}
    quick = {"nve": nve, "scans": scans, "rotations": {"number": 3}, "modes": {"max_steps": 5}}
    monkeypatch.setattr(forms, "AUDIT", quick)
    places = ["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    for form, extra in (("PONITA", ["--no-rotate"]), ("oriented points", [])):
        arguments = [
            "--form",
            form,
            "--molecule",
            "ethanol",
            "--frames",
            "20",
            "--steps",
            "6",
            "--physics",
            *places,
            *extra,
        ]
        done = CliRunner().invoke(forms.main, ["run", *arguments])
        assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "forms.json").read_text(encoding="utf-8"))
    (group,) = found
    assert group == "ethanol, 20 frames, 6 steps"
    assert list(found[group]) == ["PONITA, no rotation", "oriented points"]
    invariant, other = found[group]["oriented points"], found[group]["PONITA, no rotation"]
    assert invariant["steps"] == 6
    assert len(invariant["curve"]) == 6
    assert invariant["rotation_force"] < 1e-3 < other["rotation_force"]
    page = (tmp_path / "forms.md").read_text(encoding="utf-8")
    assert f"| {other['validation_forces']:.2f} | {other['test_forces']:.2f} |" in page
    # A run that was done trains no more; the page is written anew by itself.
    config = forms.run_settings(form, forms.data_settings(tmp_path, "ethanol", 20), None, 6, True, False)
    (folder,) = (tmp_path / "runs").glob("*oriented_points")
    began = (folder / "potential.safetensors").read_bytes()
    assert forms.train(config, folder, forms.is_started(folder), progress=False).metadata["training"]["steps"] == 6
    assert (folder / "potential.safetensors").read_bytes() == began
    (tmp_path / "forms.md").unlink()
    assert CliRunner().invoke(forms.main, ["report", "--out", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "forms.md").read_text(encoding="utf-8").startswith("# Forms of network")
    assert (tmp_path / "forms.png").read_bytes().startswith(b"\x89PNG")


def test_plan_lists_what_is_left_as_commands(forms: ModuleType, tmp_path: Path) -> None:
    places = ["--data", str(tmp_path), "--runs", str(tmp_path), "--out", str(tmp_path)]
    lines = CliRunner().invoke(forms.main, ["plan", *places]).output.splitlines()
    assert len(lines) == 12 * 6 + 6 * 3 + 12 * 2
    command = shlex.split(lines[-1])
    assert command[:3] == ["python", "benchmarks/forms.py", "run"]
    assert {"3bpa", "400", "--minutes", "--physics"} <= set(command)
    group, key = forms.names("PNITA", "ethanol", 200, forms.MINUTES[0], None)
    (tmp_path / "forms.json").write_text(json.dumps({group: {key: {}}}), encoding="utf-8")
    assert len(CliRunner().invoke(forms.main, ["plan", *places]).output.splitlines()) == len(lines) - 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "give either --minutes or --steps"),
        (["--steps", "3", "--minutes", "3"], "give either --minutes or --steps"),
        (["--steps", "3"], "rmd17_ethanol_train_01.npz"),
        (["--steps", "3", "--native"], "has no native kernels"),
    ],
)
def test_mistakes_are_named(extra: list[str], message: str, forms: ModuleType, tmp_path: Path) -> None:
    places = ["--data", str(tmp_path), "--runs", str(tmp_path), "--out", str(tmp_path)]
    arguments = ["--form", "oriented points", "--molecule", "ethanol", "--frames", "20", *places, *extra]
    done = CliRunner().invoke(forms.main, ["run", *arguments])
    assert done.exit_code == 2
    assert message in done.output.replace("\n", "")
