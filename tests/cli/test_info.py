"""ponita-ff info: what it prints, of forged metadata too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ponita_ff.cli import main
from ponita_ff.potential.file import save_potential


@pytest.fixture
def info(make_potential: Callable, tmp_path: Path) -> Callable[..., Result]:
    """Prints a small potential with such metadata."""

    def printed(*options: str, **metadata: Any) -> Result:
        path = tmp_path / "small.safetensors"
        save_potential(make_potential(channels=4, num_layers=1, l_max=1, num_ori=6), path, metadata)
        return CliRunner().invoke(main, ["info", str(path), *options])

    return printed


def test_what_it_prints(info: Callable[..., Result]) -> None:
    errors = {"test": {"energy_mae": 0.0012, "forces_mae": 0.003, "frames": 7}}
    result = info(name="small", data={"train": 5}, errors=errors)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[1] == "name              small"
    assert lines[3].startswith("network           channels=4, num_layers=1, widening=4, ") and "num_ori=6" in lines[3]
    assert lines[4:7] == [
        "cutoff            4.0 Å",
        "units             energy: eV, length: Angstrom, stress: eV/Angstrom^3",
        "reference (eV)    H -13.600000, C -1029.900000, O -2041.800000",
    ]
    assert lines[8:10] == [
        "data train        5",
        "errors test       energy MAE 1.200 meV, force MAE 3.000 meV/Å (7 frames)",
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        {"data": 5, "errors": "few", "name": None},
        {"data": [1], "errors": [], "reference_energies_from": {}},
        {"errors": {"test": 3, "validation": {"energy_mae": "x", "forces_mae": None}}},
        {"errors": {"test": {"forces": 0.01}}, "finetuning": [3, {"name": []}, {}]},
        {"finetuning": "much"},
    ],
)
def test_metadata_of_any_form_are_printed(metadata: dict[str, Any], info: Callable[..., Result]) -> None:
    result = info(**metadata)
    assert result.exit_code == 0, result.output
    assert json.loads(info("--json", **metadata).output)["metadata"] == metadata


def test_characters_that_are_not_for_terminals(info: Callable[..., Result]) -> None:
    result = info(name="\x1b[31mred\x07\ud800\nsha256 forged", data={"\u202e": "Å"})
    assert result.exit_code == 0, result.output
    assert "name              \\x1b[31mred\\x07\\ud800\\nsha256 forged" in result.output
    assert "data \\u202e" in result.output and "Å" in result.output


def test_metadata_with_two_names_of_one_thing(info: Callable[..., Result]) -> None:
    result = info(data={"further": 1, "extra_train": 2})
    assert result.exit_code == 1 and "small.safetensors has metadata that cannot be used" in result.output
