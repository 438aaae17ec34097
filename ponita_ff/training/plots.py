"""Plots of training runs, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ponita_ff.training.evaluate import Evaluation

__all__ = ["plain_numbers", "plot_learning_curve", "plot_parity"]


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG without pyplot, which has global state and may need a display."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


#: High over low end of an axis from which labels at 1, 2, 5 run into each other.
_WIDE_RANGE = 500.0


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: at 1, 2, 5, 10, …, or where these are too many at 1, 10, …

    Call it after the limits are set.
    """
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _WIDE_RANGE * low else (1,), numticks=12))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def plot_learning_curve(
    history: Sequence[Mapping[str, float]], path: Path, first_stage: Sequence[Mapping[str, float]] = ()
) -> None:
    """Validation errors of the averaged weights against steps, both axes logarithmic.

    Args:
        history: Rows of ``metrics.csv``.
        path: The PNG file.
        first_stage: Rows of the first stage, on a coarser grid, in a run with a final stage.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    offset = first_stage[-1]["step"] if first_stage else 0.0
    if first_stage:
        axes.axvline(offset, color="0.5", linestyle=":", label="final stage (finer grid)")
    steps = [*(row["step"] for row in first_stage), *(offset + row["step"] for row in history)]
    rows = [*first_stage, *history]
    for key, label, marker in (
        ("validation_forces_mae", "force MAE (meV/Å)", "o"),
        ("validation_energy_mae", "energy MAE (meV)", "s"),
    ):
        axes.loglog(steps, [1e3 * row[key] for row in rows], marker=marker, markersize=3, label=label)
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    axes.set_xlabel("training step")
    axes.set_ylabel("validation error")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_parity(result: Evaluation, title: str, path: Path) -> None:
    """Predicted against reference energies per atom and force components.

    Args:
        result: Predictions and labels.
        title: Title of the figure.
        path: The PNG file.
    """
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    per_atom, label = result.energy / result.num_atoms, result.energy_label / result.num_atoms
    centre = float(np.mean(label))
    panels = (
        (left, label - centre, per_atom - centre, "energy per atom − mean (eV)", result.errors.energy_mae, "meV"),
        (right, result.forces_label.ravel(), result.forces.ravel(), "force (eV/Å)", result.errors.forces_mae, "meV/Å"),
    )
    for axes, x, y, name, error, unit in panels:
        axes.plot([x.min(), x.max()], [x.min(), x.max()], color="0.6", linewidth=1, zorder=0)
        axes.plot(x, y, ".", markersize=3, alpha=0.5, rasterized=True)
        axes.set_xlabel(f"reference {name}")
        axes.set_ylabel(f"predicted {name}")
        axes.set_title(f"MAE {1e3 * error:.2f} {unit}", fontsize=10)
    figure.suptitle(title)
    _save(figure, path)
