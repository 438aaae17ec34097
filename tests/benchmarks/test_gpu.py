"""The check on a GPU: it runs on the CPU, and loses nothing that was measured."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

Script = Callable[[str], ModuleType]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_part_on_the_cpu(script: Script, tmp_path: Path) -> None:
    gpu = script("gpu")
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        done = CliRunner().invoke(
            gpu.main, ["--out", str(tmp_path), "--device", "cpu", "--quick", "--here"], catch_exceptions=False
        )
    torch.set_num_threads(threads)
    assert done.exit_code == 0
    found = rows(tmp_path)
    ended = [row["part"] for row in found if row["name"] in ("end of part", "left out")]
    assert list(dict.fromkeys(ended)) == list(gpu.PARTS)
    assert not [row for row in found if isinstance(row.get("error"), str)]
    named = {(row["part"], row["name"]): row for row in found}
    assert named["kernels", "errors torch.float32 (3, 12, 64)"]["slopes, angular"] < 1e-5
    for kind in ("recorded", "eager", "batched"):
        assert named["correctness", f"ethanol, ethanol-rmd17, float64, {kind}"]["forces"] < 1e-10
        assert 0 < named["correctness", f"ethanol, ethanol-rmd17, float32, {kind}"]["forces"] < 1e-3
    for kind in ("plain", "resident"):
        assert named["correctness", f"gradient, torch.float32, {kind}"]["relative_error"] < 1e-3
        assert named["training", f"batch of 2, {kind}"]["frames_per_s"] > 0
    assert named["speed", "ethanol, ethanol-rmd17, recorded, dynamics"]["steps_per_s"] > 0
    assert named["replicas", "3 replicas, engines"]["replicas_per_s"] > 0
    for name in ("a step of ethanol", "a step of training, batch of 2"):
        assert 0 < named["share", name]["share_of_tflops"] < 1
        assert named["share", name]["mb"] > 1
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "| ethanol, ethanol-rmd17, recorded | 9 |" in page
    assert "steps/s of ethanol through ASE ≥ 1,500" in page
    assert "mace-torch is not installed here" in page or "MACE-OFF23 small | 9" in page
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_a_part_that_fails_takes_no_other_with_it(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = script("gpu")

    def failing(_: Any) -> None:
        logging.getLogger("ponita_ff.backends").warning("launches cannot be recorded")
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.PARTS, "speed", (failing, 1.0))
    gpu.run_part(gpu.Check("speed", "cpu", True, tmp_path))
    warned, failed, end = rows(tmp_path)
    assert warned["message"] == "launches cannot be recorded"
    assert failed["error"] == "RuntimeError: out of memory"
    assert end["name"] == "end of part"
    script("gpu_report").write_report(tmp_path)
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "| speed | failed | RuntimeError: out of memory |" in page
    assert "| speed | warning | launches cannot be recorded |" in page


def test_time_limits(script: Script, tmp_path: Path) -> None:
    gpu = script("gpu")
    gpu.run_in_process([sys.executable, "-c", "import time; time.sleep(60)"], "speed", 0.2, tmp_path)
    gpu.run_in_process([sys.executable, "-c", "import sys; sys.exit(3)"], "large", 20.0, tmp_path)
    assert [(row["part"], row["reason"]) for row in rows(tmp_path)] == [
        ("speed", "its 0 s were over"),
        ("large", "exit status 3"),
    ]
    done = CliRunner().invoke(gpu.main, ["--out", str(tmp_path), "--seconds", "5"], catch_exceptions=False)
    assert done.exit_code == 0
    assert {row["reason"] for row in rows(tmp_path)[2:]} == {"no time left"}
    assert gpu.TOTAL <= 8 * 60


def test_goals(script: Script, tmp_path: Path) -> None:
    """From lines as a GPU gives them; a later line of the same name replaces an earlier one."""
    parts, report = script("gpu_parts"), script("gpu_report")
    name = "ethanol, ethanol-rmd17, recorded"
    speed: dict[str, Any] = {"part": "speed", "system": "ethanol", "atoms": 9}
    for rate in (100.0, 1600.0):
        parts.append(tmp_path, {**speed, "name": f"{name}, dynamics", "steps_per_s": rate, "drift_ev": 0.0})
    parts.append(tmp_path, {**speed, "name": name, "ms": 0.5, "peak_gb": 0.1, "kb_per_atom": 7.0})
    mace = {"part": "MACE-OFF23 small", "system": "ethanol", "atoms": 9}
    parts.append(tmp_path, {**mace, "name": "ethanol, MACE, dynamics", "steps_per_s": 200.0, "drift_ev": 0.0})
    training = {"name": "batch of 64, resident", "frames": 64, "kind": "resident", "ms": 4.0}
    parts.append(tmp_path, {"part": "training", **training, "frames_per_s": 16000.0})
    parts.append(
        tmp_path, {"part": "cpu", "name": "two cores", "frames": 5, "backend": "native", "frames_per_s": 800.0}
    )
    report.write_report(tmp_path)
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "| steps/s of ethanol through ASE ≥ 1,500 | 1600 | yes |" in page
    assert "| ms of a step of 999 atoms of water ≤ 3 | not measured |  |" in page
    assert "| frames/s of training, in those of two cores ≥ 30 | 20 | no |" in page
    assert "| steps/s of ethanol over those of the fastest peer > 1 | 8 | yes |" in page
    assert f"| {name} | 9 | 0.5 | 1600 | 0.1 | 7 |" in page
