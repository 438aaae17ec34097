"""The report of an exploration, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ponita_ff.files import write_atomically, write_json
from ponita_ff.training.plots import plain_numbers

__all__ = ["REPORT_FILES", "Round", "write_report"]

#: In the folder of an exploration.
REPORT_FILES = ("report.json", "report.png")


@dataclass(frozen=True)
class Round:
    """Summary of one round.

    Attributes:
        number: Number of the round, from 1.
        labels: Number of labels that the committee was trained on.
        validation_force_mae: Force MAE, eV/Å, mean over the members, each on its own validation frames.
        uncertainty_median: Median uncertainty of the sampled frames, eV/Å: standard deviation of the most uncertain
            atom's force, times the calibration of the last round before that has one, else that of this round.
        uncertainty_95: The 95 % quantile of the same, eV/Å.
        stopped: Number of trajectories that were stopped by their uncertainty.
        trajectories: Number of trajectories.
        selected: Number of frames that were selected and labelled.
        selected_force_mae: Force MAE of the committee's mean on the selected frames before training on them, eV/Å;
            None without any.
        calibration: Factor by which the selected frames calibrate standard deviations of forces; None without any.
    """

    number: int
    labels: int
    validation_force_mae: float
    uncertainty_median: float
    uncertainty_95: float
    stopped: int
    trajectories: int
    selected: int
    selected_force_mae: float | None
    calibration: float | None


def write_report(rounds: Sequence[Round], threshold: float, outcome: str, folder: Path) -> None:
    """Write ``report.json`` and ``report.png``.

    Args:
        rounds: All rounds so far.
        threshold: Uncertainty below which frames are not labelled, eV/Å.
        outcome: Why the exploration has ended, or that it is in progress.
        folder: Folder of the exploration.
    """
    content = {"outcome": outcome, "threshold": threshold, "rounds": [asdict(one) for one in rounds]}
    write_json(folder / REPORT_FILES[0], content)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [one.labels for one in rounds]
    selecting = [one for one in rounds if one.selected_force_mae is not None]
    left.plot(labels, [1e3 * one.validation_force_mae for one in rounds], "o-", label="validation frames")
    selected_errors = [1e3 * (one.selected_force_mae or 0) for one in selecting]
    left.plot([one.labels for one in selecting], selected_errors, "s--", label="selected frames")
    left.set(xlabel="labels", ylabel="force MAE (meV/Å)", title="error", yscale="log")
    right.plot(labels, [one.uncertainty_median for one in rounds], "o-", label="median of the dynamics")
    right.plot(labels, [one.uncertainty_95 for one in rounds], "s-", label="95 % quantile of the dynamics")
    right.axhline(threshold, color="0.4", linestyle="--", label="threshold")
    right.set(xlabel="labels", ylabel="force uncertainty (eV/Å)", title="uncertainty", yscale="log")
    for axes in (left, right):
        plain_numbers(axes.yaxis)
        axes.grid(which="both", alpha=0.3)
        axes.legend()
    FigureCanvasAgg(figure)
    write_atomically(folder / REPORT_FILES[1], lambda path: figure.savefig(path, dpi=150, format="png"))
