"""The command ``ponita-ff audit``: exit codes, files and messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from click.testing import CliRunner, Result

from ponita_ff.cli import main


def call(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


@pytest.fixture(scope="module")
def copper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled crystal, as structure and as data."""
    path = tmp_path_factory.mktemp("audit") / "copper.xyz"
    frames = []
    for seed in range(5):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.03, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    write(path, frames, format="extxyz")
    return path


def test_exit_code_0_where_all_limits_hold(copper_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("ase.calculators.emt:EMT", "--data", copper_file, "--quick", "--out", out, "--no-progress")
    result = call(*arguments, "--only", "labels,rotations,modes")
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {".ponita_ff", "audit.html", "audit.json"}
    assert "net torque, largest: not defined for periodic" in result.output  # never silently passed
    assert call(*arguments, "--only", "labels,rotations,modes", "--strict").exit_code == 1


def test_exit_code_1_where_one_is_broken(copper_file: Path, tmp_path: Path) -> None:
    settings = tmp_path / "strict.yaml"
    settings.write_text(yaml.safe_dump({"modes": {"reference": [1.0] * 9}}), encoding="utf-8")
    arguments = ("ase.calculators.emt:EMT", "--structure", copper_file, "--out", tmp_path, "--only", "modes")
    result = call(*arguments, "--settings", settings, "--no-progress")
    assert result.exit_code == 1, result.output
    assert "FAILED        EMT: modes: frequencies, RMS difference from reference" in result.output
    result = call(*arguments, "--settings", settings, "--set", "modes.reference_limit=1e6", "--no-progress")
    assert result.exit_code == 0, result.output


def test_our_own_potential_with_the_lengths_as_options(tiny_potential_path: Path, tmp_path: Path) -> None:
    arguments = (tiny_potential_path, "--structure", "CH3OH", "--quick", "--nve-ps", 0.2, "--nvt-ps", 0.1)
    result = call(*arguments, "--temperature", 100, "--only", "nve,nvt,stress", "--out", tmp_path, "--no-progress")
    assert result.exit_code in (0, 1), result.output
    values = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert values["settings"]["nve"]["picoseconds"] == 0.2 and values["settings"]["nvt"]["picoseconds"] == 0.1
    checks = values["calculators"][str(tiny_potential_path)]
    assert [m["name"] for m in checks["nve"]["measurements"]] == ["NVE drift at 0.5 fs", "NVE drift at 1 fs"]
    assert checks["nve"]["error"] is None and checks["nvt"]["error"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "POTENTIAL"),
        (["no-such", "--structure", "H2O"], "'no-such' is neither a file nor a shipped potential"),
        (["ase.calculators.emt:EMTT", "--structure", "H2O"], "cannot find ase.calculators.emt:EMTT"),
        (["no_such_package.thing:Calc", "--structure", "H2O"], "expected package.module:Name"),
        (["ase.calculators.emt:EMT{asap: [}", "--structure", "H2O"], "keyword arguments"),
        (["ase.build:molecule", "--structure", "H2O"], "cannot make ase.build:molecule"),
        (["ase.atoms:Atoms", "--structure", "H2O"], "expected an ASE calculator"),
        (["ase.calculators.emt:EMT"], "--structure FILE"),
        (["ase.calculators.emt:EMT", "--structure", "nowhere.xyz"], "--structure nowhere.xyz"),
        (["ase.calculators.emt:EMT", "--structure", "SiH4"], "EMT cannot calculate energy and forces"),
        (["ase.calculators.emt:EMT", "--data", "nowhere.xyz"], "nowhere.xyz"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--settings", "nowhere.yaml"], "nowhere.yaml"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--set", "nve.lim=1"], "nve.lim"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--set", "nve=1"], "nve"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--nve-ps", "-1"], "nve.picoseconds"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--only", "nvee"], "no such check: nvee"),
        (["ase.calculators.emt:EMT", "ase.calculators.emt:EMT", "--structure", "H2O"], "named twice"),
        (["ase.calculators.emt:EMT", "--structure", "H2O", "--energy-unit", "eV"], "--length-unit"),
    ],
)
def test_mistakes_exit_with_2_and_one_message(arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = call(*arguments, "--out", tmp_path / "out", "--no-progress", "--quick")
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_structure_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "structure.xyz"
    path.write_text("this is no structure", encoding="utf-8")
    result = call("ase.calculators.emt:EMT", "--structure", path)
    assert result.exit_code == 2
    assert f"--structure {path.name}, frame 0 (line 1): not readable as extended XYZ" in result.output.replace(
        "\n", " "
    )
