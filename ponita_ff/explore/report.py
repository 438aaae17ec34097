"""What an exploration has found so far, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ponita_ff.files import write_atomically, write_json
from ponita_ff.training.plots import plain_numbers

__all__ = ["Round", "write_report"]


@dataclass(frozen=True)
class Round:
    """One round: what the committee made of ``labels`` labels found in its dynamics, and what it was wrong by.

    Attributes:
        number: From 1.
        labels: Labels that it was trained on.
        validation_force_mae: eV/Å, mean over the members, each on its own validation frames.
        spread_median, spread_95: eV/Å, of the frames of its dynamics: standard deviation of the most uncertain atom's
            force, times the last calibration that a round before found, or, where none did, the round's own.
        stopped: Walkers that were stopped, of ``walkers``.
        walkers: How many walked.
        chosen: Frames that were worth a label.
        chosen_force_mae: eV/Å, of the committee's mean on these before it was trained on them; None where none were.
        calibration: Factor of the forces' deviations that these frames ask for; None where there are none.
    """

    number: int
    labels: int
    validation_force_mae: float
    spread_median: float
    spread_95: float
    stopped: int
    walkers: int
    chosen: int
    chosen_force_mae: float | None
    calibration: float | None


def write_report(rounds: Sequence[Round], threshold: float, outcome: str, folder: Path) -> None:
    """``report.json`` and ``report.png``."""
    content = {"outcome": outcome, "threshold": threshold, "rounds": [asdict(one) for one in rounds]}
    write_json(folder / "report.json", content)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [one.labels for one in rounds]
    seen = [one for one in rounds if one.chosen_force_mae is not None]
    left.plot(labels, [1e3 * one.validation_force_mae for one in rounds], "o-", label="validation frames")
    left.plot([r.labels for r in seen], [1e3 * (r.chosen_force_mae or 0) for r in seen], "s--", label="chosen next")
    left.set(xlabel="labels", ylabel="force MAE (meV/Å)", title="error", yscale="log")
    right.plot(labels, [one.spread_median for one in rounds], "o-", label="median of the dynamics")
    right.plot(labels, [one.spread_95 for one in rounds], "s-", label="95 % of frames below")
    right.axhline(threshold, color="0.4", linestyle="--", label="threshold")
    right.set(
        xlabel="labels", ylabel="deviation of the most uncertain force (eV/Å)", title="disagreement", yscale="log"
    )
    for axes in (left, right):
        plain_numbers(axes.yaxis)
        axes.grid(which="both", alpha=0.3)
        axes.legend()
    FigureCanvasAgg(figure)
    write_atomically(folder / "report.png", lambda path: figure.savefig(path, dpi=150, format="png"))
