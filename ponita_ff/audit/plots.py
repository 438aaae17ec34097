"""Pictures of the page: one function per check, all calculators in the same axes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ponita_ff.audit.result import Outcome

__all__ = ["PLOTS", "draw", "png"]

#: Colour-blind safe (Okabe and Ito), without yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}

#: eV up to which the short-range wall is shown.
WALL = 20.0

#: Styles for what a plot distinguishes within a calculator: time steps, temperatures.
DASHES = ("-", "--", ":", "-.")

Outcomes = Mapping[str, Outcome]


def draw(check: str, outcomes: Outcomes) -> Figure | None:
    """The picture of a check for all calculators that have arrays; None where there is nothing to draw."""
    known = {name: outcome for name, outcome in outcomes.items() if outcome.arrays}
    if not known:
        return None
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(outcomes)}
    with matplotlib.rc_context(STYLE):
        # Without pyplot, which keeps global state and may want a display.
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        PLOTS[check](figure, known, colours)
    return figure


def png(figure: Figure, dpi: int = 130) -> str:
    """A figure as a ``data:`` address, to stand in a page by itself."""
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, dpi=dpi, format="png", metadata={"Software": None})
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")


def _axes(figure: Figure, number: int, columns: int = 3, rows_each: int = 1, height: float = 2.9) -> list[Any]:
    """Axes for ``number`` panels, row by row; of ``rows_each`` axes above each other."""
    width = min(columns, number)
    lines = -(-number // width)
    figure.set_size_inches(3.6 * width if width > 1 else 5.5, height * lines * (1 if rows_each == 1 else 1.5))
    grid = figure.subplots(lines * rows_each, width, squeeze=False)
    panels = [
        grid[line * rows_each : (line + 1) * rows_each, column] for line in range(lines) for column in range(width)
    ]
    for unused in panels[number:]:
        for axes in unused:
            axes.set_axis_off()
    return [panel[0] if rows_each == 1 else list(panel) for panel in panels[:number]]


def _legend(figure: Figure, colours: Mapping[str, str], outcomes: Outcomes) -> None:
    """One legend of the calculators above all panels."""
    handles = [matplotlib.lines.Line2D([], [], color=colours[name], label=name) for name in outcomes]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))


def _narrow(axes: Axes, values: list[Any], floor: float, factor: float = 20.0) -> None:
    """Show the calmest curve in full where others are ``factor`` times as wide, and at least ``floor``."""
    finite = [v[np.isfinite(v)] for v in map(np.asarray, values) if np.isfinite(v).any()]
    spans = [max(float(np.ptp(v)), floor) for v in finite]
    if spans and (max(spans) > factor * min(spans) or max(spans) == floor):
        calm = finite[int(np.argmin(spans))]
        room = 0.5 * min(spans) if max(spans) == floor else 0.2 * factor * min(spans)
        axes.set_ylim(float(calm.min()) - room, float(calm.max()) + room)


def _labels(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
    energy, forces, distance = _axes(figure, 3)
    for name, outcome in outcomes.items():
        a = outcome.arrays
        centre = a["energy_label"].mean()
        style: dict[str, Any] = {"color": colours[name], "markersize": 2, "alpha": 0.4, "rasterized": True}
        shift = a["energy"].mean()
        energy.plot(1e3 * (a["energy_label"] - centre), 1e3 * (a["energy"] - shift), ".", **style)
        forces.plot(a["forces_label"].ravel(), a["forces"].ravel(), ".", **style)
        distance.plot(a["bin_centre"], 1e3 * a["bin_mae"], "o-", color=colours[name], markersize=3)
    some = next(iter(outcomes.values())).arrays
    reference = 1e3 * (some["energy_label"] - some["energy_label"].mean())
    for axes, values in ((energy, reference), (forces, some["forces_label"])):
        ends = [float(values.min()), float(values.max())]
        axes.plot(ends, ends, color="0.4", linewidth=0.8, zorder=3)
        pad = 0.3 * (ends[1] - ends[0])
        axes.set_ylim(ends[0] - pad, ends[1] + pad)
    energy.set(xlabel="label (meV/atom)", ylabel="calculator (meV/atom)", title="energy, each from its mean")
    forces.set(xlabel="label (eV/Å)", ylabel="calculator (eV/Å)", title="force components")
    distance.set(xlabel="nearest neighbour (Å)", ylabel="force MAE (meV/Å)", title="error by distance", yscale="log")
    _legend(figure, colours, outcomes)


def _rotations(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
    (axes,) = _axes(figure, 1)
    for row, (name, outcome) in enumerate(outcomes.items()):
        energies = outcome.arrays["energies"]
        # Spread out in height by rank, so that dots do not hide each other: a fixed pattern, no random numbers.
        offset = 0.25 * np.sin(2.4 * np.arange(len(energies)))
        axes.plot(energies, row + offset, ".", color=colours[name], markersize=4, alpha=0.7)
    axes.set_yticks(range(len(outcomes)), list(outcomes))
    axes.set_ylim(len(outcomes) - 0.4, -0.6)
    axes.set(xlabel="energy over rotations, from its mean (meV)")
    widest = max(float(np.abs(outcome.arrays["energies"]).max()) for outcome in outcomes.values())
    if widest < 1e-3:
        axes.set_xlim(-1e-3, 1e-3)
    axes.locator_params(axis="x", nbins=5)  # a long name leaves little room, and more numbers would touch
    figure.set_size_inches(6.5, 1.1 + 0.6 * len(outcomes))


def _steps(unit: str, step: str) -> Callable[[Figure, Outcomes, Mapping[str, str]], None]:
    def plot(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
        (axes,) = _axes(figure, 1)
        for name, outcome in outcomes.items():
            a = outcome.arrays
            axes.loglog(a["steps"], a["differences"], "o-", markersize=4, color=colours[name], label=name)
            if "noise_floor" in a and a["noise_floor"].min() > 0:
                axes.loglog(a["steps"], 5 * a["noise_floor"], "--", linewidth=0.8, color=colours[name])
        ticks = next(iter(outcomes.values())).arrays["steps"]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel=step, ylabel=f"largest difference ({unit})")
        axes.legend()

    return plot


def _smoothness(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
    names = list(dict.fromkeys(path for outcome in outcomes.values() for path in outcome.arrays))
    for path, (upper, lower) in zip(names, _axes(figure, len(names), columns=4, rows_each=2), strict=True):
        energies, slopes = [], []
        for name, outcome in outcomes.items():
            a = outcome.arrays.get(path)
            if a is None:
                continue
            s, energy, slope = np.asarray(a["s"]), np.asarray(a["energy"]), np.asarray(a["slope"])
            upper.plot(s, energy, color=colours[name])
            middle = 0.5 * (s[1:] + s[:-1])
            every = max(1, len(middle) // 40)
            derivative = np.diff(energy) / np.diff(s)
            lower.plot(s, -slope, color=colours[name])
            lower.plot(middle[::every], -derivative[::every], ".", color=colours[name], markersize=3)
            energies.append(energy)
            slopes.append(-slope)
        upper.set(title=path, ylabel="energy (eV)")
        lower.set(xlabel="moved by (Å)", ylabel="force along (eV/Å)")
        _narrow(upper, energies, 5e-3)
        _narrow(lower, slopes, 2e-2)
    _legend(figure, colours, outcomes)


def _short_range(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
    pairs = list(dict.fromkeys(pair for outcome in outcomes.values() for pair in outcome.arrays))
    for pair, axes in zip(pairs, _axes(figure, len(pairs), height=2.5), strict=True):
        for name, outcome in outcomes.items():
            if pair in outcome.arrays:
                axes.plot(outcome.arrays[pair]["r"], outcome.arrays[pair]["energy"], color=colours[name])
        axes.axhline(0, color="0.6", linewidth=0.6)
        axes.set(title=pair, xlabel="distance (Å)", ylabel="energy (eV)")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -WALL), min(high, WALL))
    _legend(figure, colours, outcomes)


def _modes(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
    (axes,) = _axes(figure, 1)
    figure.set_size_inches(8, 1.2 + 0.5 * (len(outcomes) + 1))
    rows = [(name, outcome.arrays["frequencies"], colours[name]) for name, outcome in outcomes.items()]
    reference = next((o.arrays["reference"] for o in outcomes.values() if "reference" in o.arrays), None)
    if reference is not None:
        rows.append(("reference", reference, "0.4"))
    for row, (_, values, colour) in enumerate(rows):
        axes.vlines(values, row - 0.35, row + 0.35, color=colour, linewidth=1)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set(xlabel="frequency (cm$^{-1}$), imaginary ones below zero")


def _nve(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
    steps = list(dict.fromkeys(step for outcome in outcomes.values() for step in outcome.arrays))
    for step, axes in zip(steps, _axes(figure, len(steps)), strict=True):
        values = []
        for name, outcome in outcomes.items():
            if step in outcome.arrays:
                a = outcome.arrays[step]
                axes.plot(a["time"], a["energy"], color=colours[name], linewidth=0.6, alpha=0.6)
                axes.plot(a["time"], np.polyval(np.polyfit(a["time"], a["energy"], 1), a["time"]), color=colours[name])
                values.append(a["energy"])
        axes.set(title=f"time step {step}", xlabel="time (ps)", ylabel="total energy (meV/atom)")
        _narrow(axes, values, 1e-3, 30.0)
    _legend(figure, colours, outcomes)


def _nvt(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
    runs = list(dict.fromkeys(run for outcome in outcomes.values() for run in outcome.arrays))
    for run, axes in zip(runs, _axes(figure, len(runs)), strict=True):
        for name, outcome in outcomes.items():
            if run in outcome.arrays:
                a = outcome.arrays[run]
                axes.plot(a["time"], a["bond_change"], color=colours[name], linewidth=0.6)
                axes.axhline(a["limit"], color="0.3", linewidth=0.8, linestyle="--")
                axes.set_ylim(0, 2 * a["limit"])
                if len(a["time"]):
                    axes.plot(a["time"][-1], a["bond_change"][-1], "o", color=colours[name], markersize=3)
        axes.set(title=run, xlabel="time (ps)", ylabel="largest bond change (Å)")
    _legend(figure, colours, outcomes)


def _domain(figure: Figure, outcomes: Outcomes, colours: Mapping[str, str]) -> None:
    (axes,) = _axes(figure, 1)
    keys = dict.fromkeys(key for outcome in outcomes.values() for key in outcome.arrays)
    dashes = dict(zip((key for key in keys if key[0].isdigit()), 3 * DASHES, strict=False))
    for name, outcome in outcomes.items():
        for run, dash in dashes.items():
            if run in outcome.arrays:
                values = np.sort(outcome.arrays[run])
                part = np.arange(1, len(values) + 1) / len(values)
                axes.step(values, part, dash, where="post", color=colours[name], label=f"{name}, {run}")
        axes.plot(outcome.arrays["structure"], 0, "v", color=colours[name], clip_on=False, label=f"{name}, structure")
    axes.axvline(1, color="0.3", linewidth=0.8)
    axes.set_xlim(0, min(max(axes.get_xlim()[1], 1.3), 4))
    axes.set(xlabel="distance from the frames (1: their range)", ylabel="part of the run below", ylim=(0, 1.02))
    figure.set_size_inches(8, 3.4)
    figure.legend(loc="outside right upper", fontsize=8)


PLOTS: dict[str, Callable[[Figure, Outcomes, Mapping[str, str]], None]] = {
    "labels": _labels,
    "rotations": _rotations,
    "forces": _steps("eV/Å", "step (Å)"),
    "stress": _steps("eV/Å³", "strain"),
    "smoothness": _smoothness,
    "short_range": _short_range,
    "modes": _modes,
    "nve": _nve,
    "nvt": _nvt,
    "domain": _domain,
}
