"""Pictures of training runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ponita_ff.training import plots


def test_a_learning_curve_continues_that_of_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: figures.append(figure))

    def row(step: int, forces: float) -> dict[str, float]:
        return {"step": step, "validation_forces_mae": forces, "validation_energy_mae": 2 * forces}

    first, history = [row(10, 0.5), row(25, 0.4)], [row(5, 0.3), row(8, 0.2)]
    plots.plot_learning_curve(history, tmp_path / "alone.png")
    plots.plot_learning_curve(history, tmp_path / "both.png", first)
    alone, both = (figure.axes[0].get_lines() for figure in figures)
    assert [list(line.get_xdata()) for line in alone] == [[5, 8], [5, 8]]
    finer, forces, energy = both
    assert set(finer.get_xdata()) == {25}
    assert list(forces.get_xdata()) == list(energy.get_xdata()) == [10, 25, 30, 33]
    assert list(forces.get_ydata()) == [500, 400, 300, 200]
