"""The check on a GPU: it runs on the CPU, and loses nothing that was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from click.testing import CliRunner


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_part_on_the_cpu(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    check = script("gpu_check")
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--here"]
    with torch.random.fork_rng():
        done = CliRunner().invoke(check.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    found = rows(tmp_path)
    assert [row["part"] for row in found if row["name"] == "end of part"] == list(check.PARTS)
    assert not [row for row in found if "error" in row and isinstance(row["error"], str)]
    named = {(row["part"], row["name"]): row for row in found}
    assert named["kernels", "errors torch.float32 (3, 12, 64)"]["slopes, angular"] < 1e-5
    assert named["results", "ethanol float32"]["forces_error"] < 1e-3
    assert named["results", "gradient torch.float32"]["error"] < 1e-3
    assert named["md", "NVE of ethanol"]["steps_per_s"] > 0
    assert named["training", "batch of 2, recorded"]["frames_per_s"] > 0


def test_a_part_that_fails_takes_no_other_with_it(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any
) -> None:
    check = script("gpu_check")

    def failing(_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(check.PARTS, "md", failing)
    check.run_part(check.Check("md", "cpu", True, tmp_path))
    failed, end = rows(tmp_path)
    assert failed["error"] == "RuntimeError: out of memory"
    assert end["name"] == "end of part"


def test_time_limits(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    check = script("gpu_check")
    check.run_in_process([sys.executable, "-c", "import time; time.sleep(60)"], "md", 0.2, tmp_path)
    check.run_in_process([sys.executable, "-c", "import sys; sys.exit(3)"], "large", 20.0, tmp_path)
    assert [(row["part"], row["reason"]) for row in rows(tmp_path)] == [
        ("md", "its 0 s were over"),
        ("large", "exit status 3"),
    ]
    assert set(check.LIMITS) == set(check.PARTS)
    done = CliRunner().invoke(check.main, ["--out", str(tmp_path), "--seconds", "5"], catch_exceptions=False)
    assert done.exit_code == 0
    assert {row["name"] for row in rows(tmp_path)[2:]} == {"left out"}
