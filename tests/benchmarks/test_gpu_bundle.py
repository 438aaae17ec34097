"""The folder of packages for a machine with a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner


@pytest.mark.parametrize(("size", "code"), [(10, 0), (30, 1)])
def test_what_is_fetched(
    size: int, code: int, script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = script("gpu_bundle")
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    with (tmp_path / "wheel").open("wb") as file:
        file.truncate(size * 1_000_000)
    (tmp_path / "ase" / "test").mkdir(parents=True)
    done = CliRunner().invoke(bundle.main, ["--python", "3.13", "--out", str(tmp_path), "--also", "tqdm"])
    assert done.exit_code == code
    assert not (tmp_path / "ase" / "test").exists()
    alone, whole = commands
    assert alone[-4:] == ["--no-deps", "ase", "matscipy", "tqdm"]
    assert whole[-1] == "pydantic"
    assert "--no-deps" not in whole
    assert all(command[command.index("--python-version") + 1] == "3.13" for command in commands)
    assert ("more than 24" in done.output) == bool(code)


def test_pip_that_fails(script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = script("gpu_bundle")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: SimpleNamespace(returncode=1))
    done = CliRunner().invoke(bundle.main, ["--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "pip could not fetch ase, matscipy for Python 3.12" in done.output
