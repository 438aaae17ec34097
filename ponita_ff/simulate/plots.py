"""Pictures of runs, as PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["COLOURS", "STYLE", "formula_text", "picture", "plot_with_mean"]

Array = NDArray[np.float64]

STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}
COLOURS = ("#1f5fa8", "#d1652b", "#3a8f5c", "#7a4fa3")

#: fs of the window of running means.
_SMOOTH = 100.0


@contextmanager
def picture(
    path: Path,
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] = (8.0, 4.5),
    widths: Sequence[float] | None = None,
) -> Iterator[list[Any]]:
    """Panels, row by row; the PNG is written on leaving.

    Args:
        path: PNG file.
        rows: Panels above each other; they share the horizontal axis.
        columns: Panels beside each other.
        size: Inches.
        widths: Relative widths of the columns.
    """
    # Without pyplot, which keeps global state and may want a display.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, sharex="col", squeeze=False, width_ratios=widths).ravel()
        yield list(panels)
        figure.align_ylabels()
        figure.savefig(path, dpi=150)


def formula_text(formula: str) -> str:
    """A chemical formula with its numbers as subscripts, for matplotlib."""
    return re.sub(r"(\d+)", r"$_{\1}$", formula)


def plot_with_mean(panel: Any, time: Array, values: Array, colour: str, label: str) -> None:
    """Values faintly, and their running mean over 100 fs (less in a very short run) on top.

    Args:
        panel: matplotlib's axes.
        time: Equally spaced, ps, shape (n,).
        values: What to plot, shape (n,).
        colour: Of both lines.
        label: Of the running mean.
    """
    panel.plot(time, values, color=colour, linewidth=0.5, alpha=0.35)
    width = max(1, min(round(_SMOOTH / (1000 * (time[1] - time[0]))), len(values) // 10))
    mean = np.convolve(values, np.full(width, 1 / width), mode="valid")
    panel.plot(time[width // 2 :][: len(mean)], mean, color=colour, linewidth=1.6, label=label, zorder=3)
