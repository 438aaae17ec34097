"""The notebooks run in their fast mode, and are kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "md_examples" / "notebooks").glob("*.ipynb"))


def code(path: Path) -> list[str]:
    """The code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells in one namespace, as a kernel runs them; Jupyter shows figures by itself."""
    if path.stem == "my_molecule":
        pytest.importorskip("rdkit")
    monkeypatch.setenv("PONITA_FF_FAST", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    namespace: dict[str, object] = {}
    for number, cell in enumerate(code(path)):
        exec(compile(cell, f"{path.name}, code cell {number}", "exec"), namespace)
    assert namespace["FAST"] is True


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_cells_need_no_shell(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None and cell["metadata"] == {}
    assert not any(line.startswith(("%", "!")) for cell in code(path) for line in cell.splitlines())
