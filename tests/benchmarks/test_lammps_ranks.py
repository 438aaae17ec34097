"""The page of LAMMPS holds what was measured; the cost on paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner


def test_the_page_and_the_model(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    pages, benchmark = script("pages"), script("lammps_ranks")
    page = tmp_path / "page"
    refused = CliRunner().invoke(benchmark.main, ["model", "--page", str(page)])
    assert refused.exit_code == 1 and "measure first" in refused.output
    found = {"atoms": 1000, "volume": 10000.0, "steps": 5, "ms": 400.0, "ghosts": [2000.0, 2100.0, 1900.0]}
    found |= {"energy_difference": 1e-7, "force_difference": 2e-6, "largest_force": 4.25}
    pages.add_result(page, benchmark.report, "compare", "pair style, 1 rank(s), float32", found)
    crash = {"killed": True, "exit_code": 9, "said": "BAD TERMINATION", "even": True, "odd": False}
    pages.add_result(page, benchmark.report, "crash", "2 ranks", crash)
    moved = {"atoms": 243, "ps": 10.0, "migrations": 9, "migrated": 7, "drift": 1.5, "rms": 0.25, "temperature": 300.0}
    pages.add_result(page, benchmark.report, "migrate", "243 atoms", moved)
    result = CliRunner().invoke(benchmark.main, ["model", "--page", str(page)])
    assert result.exit_code == 0, (result.output, result.exception)
    (model,) = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["model"].values()
    # 10,000 atoms in a cube of 46.4 Å, ghosts one cutoff (5 Å) and the skin (1 Å) further on each side.
    assert model["own"] == 10_000 and model["side"] == pytest.approx(46.416, abs=1e-3)
    assert model["pair style"]["ghosts"] == pytest.approx(0.1 * 58.416**3 - 10_000, rel=1e-4)
    assert model["pair style"]["exchanges"] == 7 and model["pair style"]["row"] == 12 * 64 * 4
    assert model["pair style"]["compute_ms"] == pytest.approx(4000)
    assert model["pair style"]["share"] < 0.1 < model["reference"]["ghosts"] / 10_000
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "| pair style, 1 rank(s), float32 | 400 | 2000 | 1.0e-07 | 2.0e-06 |" in text
    assert "the largest force is 4.2 eV/Å" in text
    assert "exit code 9" in text and "readable and continued: even." in text
    assert "7 atoms changed their process, 9 times" in text
