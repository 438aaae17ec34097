"""The benchmark of active learning: what it compares, and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ase.io import read
from click.testing import CliRunner
from labelled_here import labels_in_this_process

__all__ = ["labels_in_this_process"]

EMT = "ase.calculators.emt:EMT"


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """With results of its own and short dynamics."""
    module = script("active")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "EQUILIBRATION_PS", 0.005)
    monkeypatch.setattr(module, "SIMULATION_PS", 0.05)
    return module


def call(benchmark: ModuleType, *arguments: str) -> None:
    result = CliRunner().invoke(benchmark.main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)


def test_frames_are_the_method_s_own_and_apart(benchmark: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "frames.xyz"
    call(
        benchmark, "frames", "--structure", "H2CO", "--method", EMT, "--number", "3", "--every", "2", "--out", str(out)
    )
    frames = read(out, ":")
    assert len(frames) == 3
    assert abs(frames[0].positions - frames[1].positions).max() > 1e-4
    again = frames[1].copy()
    again.calc = benchmark.find_method(EMT).calculator()
    assert again.get_potential_energy() == pytest.approx(frames[1].get_potential_energy(), abs=1e-6)


def test_explore_against_dynamics_and_sampling(
    benchmark: ModuleType,
    tmp_path: Path,
    tiny_potential_path: Path,
    labels_in_this_process: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "label_frames", labels_in_this_process)
    few = ("--structure", "H2CO", "--method", EMT, "--every", "2", "--tests", "4", "--work", str(tmp_path / "work"))
    settings = ("--set", "optimiser.steps=5", "--set", "optimiser.warmup_steps=1")
    call(benchmark, "explore", *few, "--base", str(tiny_potential_path), "--budget", "4", *settings)
    (result,) = json.loads((tmp_path / "active.json").read_text(encoding="utf-8"))["explore"].values()
    assert result["labels"] == len(read(tmp_path / "work" / "random.xyz", ":")) == 4
    assert all(
        result[kind][whose] > 0 for kind in ("explored", "random", "sampled") for whose in ("member", "committee")
    )
    assert result["explored"] != result["random"] != result["sampled"]
    page = (tmp_path / "active.md").read_text(encoding="utf-8")
    assert f"| {result['explored']['member']:.1f} | {result['explored']['committee']:.1f} |" in page


def test_time_of_labels(benchmark: ModuleType, tmp_path: Path) -> None:
    call(benchmark, "labels", "--structure", "H2CO", "--method", EMT, "--frames", "3", "--work", str(tmp_path))
    (result,) = json.loads((tmp_path / "active.json").read_text(encoding="utf-8"))["labels"].values()
    assert (len(read(tmp_path / "labels-1.xyz", ":")), len(read(tmp_path / "labels-2.xyz", ":"))) == (3, 3)
    page = (tmp_path / "active.md").read_text(encoding="utf-8")
    assert f"| {result['one']:.1f} | {result['two']:.1f} |" in page
