"""The page of other engines holds what was measured."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner


def test_the_page(script: Callable[[str], ModuleType]) -> None:
    hardware = {"hardware": "a machine"}
    slow, fast = {"median": 40.0, "min": 30.0, "max": 50.0}, {"median": 10.0, "min": 9.0, "max": 11.0}
    setting = {"rounds": 3, "threads": 1, **hardware}
    page = script("hosts").report(
        {
            "torch-sim": {"4": {"replicas": 4, "steps": 5, "torch_sim_ms": fast, "ase_ms": slow, **setting}},
            "ipi": {"8": {"beads": 8, "batch_ms": fast, "separate_ms": slow, **setting}},
            "nve": {"OpenMM": {"ps": 10.0, "slope": 1.25, "error": 0.5, "rms": 0.75, **hardware}},
        }
    )
    assert "| TorchSim | 10.00 (9.00–11.00) | 400 |" in page
    assert "TorchSim takes 0.25 times as long as ASE." in page
    assert "MACE" not in page
    assert "A batch takes 0.25 times as long." in page
    assert "| OpenMM | 10 | 1.2 ± 0.5 | 0.75 |" in page
    assert page.endswith("Measured on a machine.\n")


def test_the_page_with_mace(script: Callable[[str], ModuleType]) -> None:
    times = {"torch_sim_ms": 10.0, "ase_ms": 40.0, "mace_ms": 100.0}
    measured = {name: {"median": value, "min": value, "max": value} for name, value in times.items()}
    setting = {"replicas": 4, "steps": 5, "rounds": 3, "threads": 1, "hardware": "a machine"}
    page = script("hosts").report({"torch-sim": {"4": setting | measured}})
    assert "| TorchSim, MACE-OFF23 small | 100.00 (100.00–100.00) | 40 |" in page
    assert "MACE takes 10.0 times as long." in page


@pytest.mark.filterwarnings("ignore")  # of the engines' making
@pytest.mark.parametrize(
    ("engine", "command", "key"),
    [
        ("torch_sim", ["torch-sim", "--replicas", "2", "--steps", "2", "--rounds", "2"], "torch-sim"),
        ("ipi", ["ipi", "--beads", "2", "--rounds", "2"], "ipi"),
    ],
)
def test_measuring(
    engine: str, command: list[str], key: str, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"needs {engine}")
    result = CliRunner().invoke(script("hosts").main, [*command, "--page", str(tmp_path / "page")])
    assert result.exit_code == 0, (result.output, result.exception)
    ((_, measured),) = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))[key].items()
    assert all(value["median"] > 0 for value in measured.values() if isinstance(value, dict))
    assert (tmp_path / "page.md").is_file()


@pytest.mark.filterwarnings("ignore")
def test_engines_conserve_the_same_energy(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    for engine in ("torch_sim", "openmmml", "ipi"):
        if importlib.util.find_spec(engine) is None:
            pytest.skip(f"needs {engine}")
    result = CliRunner().invoke(script("hosts").main, ["nve", "--ps", "0.05", "--page", str(tmp_path / "page")])
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))["nve"]
    # The same start; i-PI draws its own.
    assert found["TorchSim"]["rms"] == pytest.approx(found["OpenMM"]["rms"], rel=0.3)
    assert 0 < found["i-PI"]["rms"] < 10
