"""Plots of the page: one function per check, with all calculators in the same axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ponita_ff.audit.result import CheckResult
from ponita_ff.page.template import data_url

__all__ = ["PLOTS", "draw", "png"]

#: Colours that people with colour vision deficiency can tell apart (Okabe and Ito), without yellow.
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

#: Largest energy shown in the short-range plots, eV.
MAX_WALL_ENERGY = 20.0

#: Line styles for several curves of one calculator.
DASHES = ("-", "--", ":", "-.")

Results = Mapping[str, CheckResult]

#: Draws the results of a check into a figure; the last argument has the colour of each calculator.
Plot = Callable[[Figure, Results, Mapping[str, str]], None]


def draw(check: str, results: Results) -> Figure | None:
    """Plot the results of a check for all calculators that have arrays.

    Args:
        check: Name of the check.
        results: Results by calculator.

    Returns:
        The figure; None if there are no arrays.
    """
    known = {name: result for name, result in results.items() if result.arrays}
    if not known:
        return None
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(results)}
    with matplotlib.rc_context(STYLE):
        # Not pyplot, which keeps global state and may need a display.
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        PLOTS[check](figure, known, colours)
    return figure


def png(figure: Figure, dpi: int = 130) -> str:
    """Return a figure as a ``data:`` URL of a PNG image."""
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, dpi=dpi, format="png", metadata={"Software": None})
    return data_url(buffer.getvalue())


def _axes(figure: Figure, number: int, columns: int = 3, rows_each: int = 1, height: float = 2.9) -> list[Any]:
    """Create axes for ``number`` panels, row by row, each panel with ``rows_each`` axes above each other."""
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


def _legend(figure: Figure, colours: Mapping[str, str], results: Results) -> None:
    """Add one legend of the calculators above all panels."""
    handles = [matplotlib.lines.Line2D([], [], color=colours[name], label=name) for name in results]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))


def _narrow(axes: Axes, values: list[Any], floor: float, factor: float = 20.0) -> None:
    """Limit the y axis so that the curve of the smallest range stays visible.

    Args:
        axes: The axes.
        values: Values of the curves.
        floor: Smallest range to show.
        factor: The axis is limited if the largest range exceeds the smallest by this factor.
    """
    finite = [v[np.isfinite(v)] for v in map(np.asarray, values) if np.isfinite(v).any()]
    spans = [max(float(np.ptp(v)), floor) for v in finite]
    if spans and (max(spans) > factor * min(spans) or max(spans) == floor):
        narrowest = finite[int(np.argmin(spans))]
        room = 0.5 * min(spans) if max(spans) == floor else 0.2 * factor * min(spans)
        axes.set_ylim(float(narrowest.min()) - room, float(narrowest.max()) + room)


def _label_errors(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
    """Calculated against labelled energies and forces, and force errors by distance."""
    energy, forces, distance = _axes(figure, 3)
    for name, result in results.items():
        a = result.arrays
        centre = a["energy_label"].mean()
        style: dict[str, Any] = {"color": colours[name], "markersize": 2, "alpha": 0.4, "rasterized": True}
        shift = a["energy"].mean()
        energy.plot(1e3 * (a["energy_label"] - centre), 1e3 * (a["energy"] - shift), ".", **style)
        forces.plot(a["forces_label"].ravel(), a["forces"].ravel(), ".", **style)
        distance.plot(a["bin_centre"], 1e3 * a["bin_mae"], "o-", color=colours[name], markersize=3)
    some = next(iter(results.values())).arrays
    reference = 1e3 * (some["energy_label"] - some["energy_label"].mean())
    for axes, values in ((energy, reference), (forces, some["forces_label"])):
        ends = [float(values.min()), float(values.max())]
        axes.plot(ends, ends, color="0.4", linewidth=0.8, zorder=3)
        pad = 0.3 * (ends[1] - ends[0])
        axes.set_ylim(ends[0] - pad, ends[1] + pad)
    energy.set(xlabel="label (meV/atom)", ylabel="calculator (meV/atom)", title="energy, relative to its mean")
    forces.set(xlabel="label (eV/Å)", ylabel="calculator (eV/Å)", title="force components")
    distance.set(xlabel="nearest neighbour (Å)", ylabel="force MAE (meV/Å)", title="error by distance")
    if any((result.arrays["bin_mae"] > 0).any() for result in results.values()):
        distance.set_yscale("log")
    _legend(figure, colours, results)


def _rotations(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
    """Energies of all orientations."""
    (axes,) = _axes(figure, 1)
    for row, (name, result) in enumerate(results.items()):
        energies = result.arrays["energies"]
        # Shifted in height by a fixed pattern, so that dots do not hide each other.
        offset = 0.25 * np.sin(2.4 * np.arange(len(energies)))
        axes.plot(energies, row + offset, ".", color=colours[name], markersize=4, alpha=0.7)
    axes.set_yticks(range(len(results)), list(results))
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set(xlabel="relative energy (meV)")
    widest = max(float(np.abs(result.arrays["energies"]).max()) for result in results.values())
    if widest < 1e-3:
        axes.set_xlim(-1e-3, 1e-3)
    axes.locator_params(axis="x", nbins=5)  # with long names, more numbers would overlap
    figure.set_size_inches(6.5, 1.1 + 0.6 * len(results))


def _finite_differences(unit: str, step: str) -> Plot:
    """Return the plot of the differences against the step, for derivatives of a given unit."""

    def plot(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
        (axes,) = _axes(figure, 1)
        for name, result in results.items():
            a = result.arrays
            axes.loglog(a["steps"], a["differences"], "o-", markersize=4, color=colours[name], label=name)
            if "noise_floor" in a and a["noise_floor"].min() > 0:
                axes.loglog(a["steps"], 5 * a["noise_floor"], "--", linewidth=0.8, color=colours[name])
        ticks = next(iter(results.values())).arrays["steps"]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel=step, ylabel=f"largest difference ({unit})")
        axes.legend()

    return plot


def _smoothness(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
    """Energy and force along every path."""
    names = list(dict.fromkeys(path for result in results.values() for path in result.arrays))
    for path, (upper, lower) in zip(names, _axes(figure, len(names), columns=4, rows_each=2), strict=True):
        energies, slopes = [], []
        for name, result in results.items():
            a = result.arrays.get(path)
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
        lower.set(xlabel="displacement (Å)", ylabel="force along (eV/Å)")
        _narrow(upper, energies, 5e-3)
        _narrow(lower, slopes, 2e-2)
    _legend(figure, colours, results)


def _short_range(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
    """Energy of every pair of elements against the distance."""
    pairs = list(dict.fromkeys(pair for result in results.values() for pair in result.arrays))
    for pair, axes in zip(pairs, _axes(figure, len(pairs), height=2.5), strict=True):
        for name, result in results.items():
            if pair in result.arrays:
                axes.plot(result.arrays[pair]["r"], result.arrays[pair]["energy"], color=colours[name])
        axes.axhline(0, color="0.6", linewidth=0.6)
        axes.set(title=pair, xlabel="distance (Å)", ylabel="energy (eV)")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -MAX_WALL_ENERGY), min(high, MAX_WALL_ENERGY))
    _legend(figure, colours, results)


def _modes(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
    """Frequencies as vertical lines, one row for each calculator."""
    (axes,) = _axes(figure, 1)
    figure.set_size_inches(8, 1.2 + 0.5 * (len(results) + 1))
    rows = [(name, result.arrays["frequencies"], colours[name]) for name, result in results.items()]
    reference = next((o.arrays["reference"] for o in results.values() if "reference" in o.arrays), None)
    if reference is not None:
        rows.append(("reference", reference, "0.4"))
    for row, (_, values, colour) in enumerate(rows):
        axes.vlines(values, row - 0.35, row + 0.35, color=colour, linewidth=1)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set(xlabel="frequency (cm$^{-1}$), imaginary ones negative")


def _nve(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
    """Total energy against time, with its regression line."""
    steps = list(dict.fromkeys(step for result in results.values() for step in result.arrays))
    for step, axes in zip(steps, _axes(figure, len(steps)), strict=True):
        values = []
        for name, result in results.items():
            if step in result.arrays:
                a = result.arrays[step]
                axes.plot(a["time"], a["energy"], color=colours[name], linewidth=0.6, alpha=0.6)
                axes.plot(a["time"], np.polyval(np.polyfit(a["time"], a["energy"], 1), a["time"]), color=colours[name])
                values.append(a["energy"])
        axes.set(title=f"time step {step}", xlabel="time (ps)", ylabel="total energy (meV/atom)")
        _narrow(axes, values, 1e-3, 30.0)
    _legend(figure, colours, results)


def _nvt(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
    """Largest bond change against time."""
    runs = list(dict.fromkeys(run for result in results.values() for run in result.arrays))
    for run, axes in zip(runs, _axes(figure, len(runs)), strict=True):
        for name, result in results.items():
            if run in result.arrays:
                a = result.arrays[run]
                axes.plot(a["time"], a["bond_change"], color=colours[name], linewidth=0.6)
                axes.axhline(a["limit"], color="0.3", linewidth=0.8, linestyle="--")
                axes.set_ylim(0, 2 * a["limit"])
                if len(a["time"]):
                    axes.plot(a["time"][-1], a["bond_change"][-1], "o", color=colours[name], markersize=3)
        axes.set(title=run, xlabel="time (ps)", ylabel="largest bond change (Å)")
    _legend(figure, colours, results)


def _domain(figure: Figure, results: Results, colours: Mapping[str, str]) -> None:
    """Cumulative distribution of the distances from the frames."""
    (axes,) = _axes(figure, 1)
    keys = dict.fromkeys(key for result in results.values() for key in result.arrays)
    dashes = dict(zip((key for key in keys if key[0].isdigit()), 3 * DASHES, strict=False))
    for name, result in results.items():
        for run, dash in dashes.items():
            if run in result.arrays:
                values = np.sort(result.arrays[run])
                fraction = np.arange(1, len(values) + 1) / len(values)
                axes.step(values, fraction, dash, where="post", color=colours[name], label=f"{name}, {run}")
        axes.plot(result.arrays["structure"], 0, "v", color=colours[name], clip_on=False, label=f"{name}, structure")
    axes.axvline(1, color="0.3", linewidth=0.8)
    axes.set_xlim(0, min(max(axes.get_xlim()[1], 1.3), 4))
    axes.set(xlabel="distance from the frames (1: limit of their domain)", ylabel="cumulative fraction", ylim=(0, 1.02))
    figure.set_size_inches(8, 3.4)
    figure.legend(loc="outside right upper", fontsize=8)


#: Plot of each check by its name; see `ponita_ff.audit.run.CHECKS`.
PLOTS: dict[str, Plot] = {
    "labels": _label_errors,
    "rotations": _rotations,
    "forces": _finite_differences("eV/Å", "step (Å)"),
    "stress": _finite_differences("eV/Å³", "strain"),
    "smoothness": _smoothness,
    "short_range": _short_range,
    "modes": _modes,
    "nve": _nve,
    "nvt": _nvt,
    "domain": _domain,
}
