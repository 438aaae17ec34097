"""Tables and figure of the speed benchmark, from its ``speed.json`` alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pages import table
from peers import PEERS

from ponita_ff.files import write_atomically, write_text
from ponita_ff.training.plots import plain_numbers

__all__ = ["render", "write_reports"]

Row = dict[str, Any]

FORMS = {"shipped": "ethanol-rmd17", "default": "default form", "published": "published form"}

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
COLOURS = {
    ("default", "native"): "#1f4e8c",
    ("default", "auto"): "#1f4e8c",
    ("default", "compiled"): "#4f86c6",
    ("default", "eager"): "#a9c5e6",
    ("shipped", "native"): "#2c6e49",
    ("shipped", "auto"): "#2c6e49",
    ("shipped", "compiled"): "#5aa57a",
    ("shipped", "eager"): "#afd6be",
    ("published", "eager"): "#d1652b",
}
PEER_COLOURS = ("#8c564b", "#9467bd", "#7f7f7f", "#bcbd22", "#17becf")

#: Heads of the columns that :func:`rates` fills.
RATES = ("ConvNeXt GFLOP/s", "all GFLOP/s", "all over matrix product")


def write_reports(results: dict[str, Any], folder: Path) -> None:
    """Write ``speed.md`` and ``speed.png``."""
    write_text(folder / "speed.md", render(results))
    draw(results, folder / "speed.png")


# ----------------------------------------------------------------------------------------------------------- words


def name_of(row: Row) -> str:
    """Return the name of a contender for the reader."""
    form = FORMS.get(row["form"], row["form"])
    modes = {"loop": "one by one", "batch": "all at once"}
    backend = "" if row["task"] in modes and row["backend"] == "auto" else row["backend"]
    return ", ".join(filter(None, (form, backend, modes.get(row["task"]))))


def system_of(row: Row) -> str:
    """Return the name of a system with its number of atoms."""
    atoms = row.get("atoms")
    if row["system"].startswith("water-"):
        return f"{atoms:,} atoms" if atoms else f"about {int(row['system'].removeprefix('water-')):,} atoms"
    return f"{row['system']} ({atoms} atoms)" if atoms else row["system"]


def digits(value: float) -> str:
    """Format a number with three significant digits, without powers of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def with_spread(values: dict[str, float], convert: Callable[[float], float]) -> str:
    """Format median (10th–90th percentile) after a conversion, which may reverse the order."""
    low, high = sorted((convert(values["p10"]), convert(values["p90"])))
    return f"{digits(convert(values['median']))} ({digits(low)}–{digits(high)})"


def ratio(row: Row) -> str:
    """Format the ratio to the contender compared with, which has 1 itself."""
    return with_spread(row["ratio"], float) if "ratio" in row else "1"


def failed(row: Row, width: int) -> list[str]:
    """Return the cells of a row without results."""
    return [row["failure"], *[""] * (width - 1)]


def rates(row: Row, product: float | None) -> list[str]:
    """Format useful GFLOP/s of the ConvNeXt products and in total, and the total relative to the matrix product."""
    if "flops" not in row:
        return ["", "", ""]
    convnext, total = (1e-9 * row["flops"][part] / row["seconds"]["median"] for part in ("convnext", "total"))
    return [digits(convnext), digits(total), f"{100 * total / product:.0f} %" if product else ""]


def groups(section: dict[str, Any]) -> Iterator[tuple[list[Row], float | None]]:
    """Yield the rows of each group of contenders, and the GFLOP/s of the matrix product that ends the group.

    None instead of the GFLOP/s if no product was measured.
    """
    rows: list[Row] = []
    for row in section["rows"]:
        if rows and row["system"] != rows[0]["system"]:
            yield rows, None
            rows = []
        if row["task"] == "product":
            yield rows, None if "failure" in row else 1e-9 * row["flops"]["total"] / row["seconds"]["median"]
            rows = []
        else:
            rows.append(row)
    if rows:
        yield rows, None


# ---------------------------------------------------------------------------------------------------------- tables


def render_latency(section: dict[str, Any]) -> list[str]:
    """One evaluation of a molecule."""
    lines = ["One evaluation of energy and forces through the ASE calculator.", ""]
    head = ["contender", "ms", "times native", "ready after (s)", *RATES]
    for rows, product in groups(section):
        cells = [
            [name_of(row), *failed(row, len(head) - 1)]
            if "failure" in row
            else [
                name_of(row),
                with_spread(row["seconds"], lambda s: 1e3 * s),
                ratio(row),
                digits(row["make_s"] + row["first_s"]),
                *rates(row, product),
            ]
            for row in rows
        ]
        title = next((system_of(row) for row in rows if "atoms" in row), rows[0]["system"])
        lines += [f"### {title.capitalize()}", "", *table(head, cells), ""]
        lines += [f"Matrix product (2048³, float32): {digits(product)} GFLOP/s.", ""] if product else []
    return lines


def render_boxes(section: dict[str, Any]) -> list[str]:
    """One evaluation of boxes."""
    lines = [
        "One evaluation of energy, forces and stress of a periodic box of water, 0.1 atoms/Å³, cutoff 5 Å (other force "
        f"fields: their own), in at most {section['memory_limit_gib']:g} GiB of address space.",
        "",
    ]
    head = ["box", "contender", "ms", "µs per atom", "times native", *RATES]
    cells = []
    for rows, product in groups(section):
        title = next((system_of(row) for row in rows if "atoms" in row), system_of(rows[0]))
        for row in rows:
            if "failure" in row:
                cells.append([title, name_of(row), *failed(row, len(head) - 1)])
                continue
            time, per_atom = row["seconds"], 1e6 * row["seconds"]["median"] / row["atoms"]
            milliseconds = with_spread(time, lambda s: 1e3 * s)
            cells.append([title, name_of(row), milliseconds, digits(per_atom), ratio(row), *rates(row, product)])
    return [*lines, *table(head, cells), ""]


def by_molecule(section: dict[str, Any], head: Sequence[str], measured: Callable[[Row], list[str]]) -> list[str]:
    """Return a table with one line for each molecule and contender: the results, or why there are none."""
    cells = [
        [system_of(row), name_of(row), *failed(row, len(head) - 2)] if "failure" in row else measured(row)
        for rows, _ in groups(section)
        for row in rows
    ]
    return [*table(head, cells), ""]


def render_md(section: dict[str, Any]) -> list[str]:
    """Molecular dynamics."""
    lines = ["Velocity Verlet through ASE; what is outside the network: neighbour list, graph, checks, ASE itself.", ""]
    head = ["molecule", "contender", "steps/s", "ns/day", "ms per step", "of it outside the network (ms)"]

    def measured(row: Row) -> list[str]:
        step, inside = row["seconds"], row["inside"]["median"]
        outside = step["median"] - inside
        return [
            system_of(row),
            name_of(row),
            with_spread(step, lambda s: 1 / s),
            digits(86_400 * 1e-6 * row["timestep_fs"] / step["median"]),
            digits(1e3 * step["median"]),
            f"{digits(1e3 * outside)} ({100 * outside / step['median']:.0f} %)",
        ]

    return lines + by_molecule(section, head, measured)


def render_training(section: dict[str, Any]) -> list[str]:
    """Training steps."""
    lines = ["Loss of energies and forces, its gradient, clipping and Adam; float32, published settings.", ""]
    head = ["molecule", "contender", "steps/s", "ms per step", "times native", "ready after (s)"]

    def measured(row: Row) -> list[str]:
        return [
            f"{system_of(row)}, batch of {row['batch_size']}",
            name_of(row),
            with_spread(row["seconds"], lambda s: 1 / s),
            digits(1e3 * row["seconds"]["median"]),
            ratio(row),
            digits(row["make_s"] + row["first_s"]),
        ]

    return lines + by_molecule(section, head, measured)


def render_memory(section: dict[str, Any]) -> list[str]:
    """Peak memory."""
    idle = next((row for row in section["rows"] if row["task"] == "idle" and "peak_bytes" in row), None)
    lines = [
        "Largest resident set of a process that evaluates one box once, with forces and stress; nothing subtracted."
    ]
    lines += [f"A process that only imports takes {digits(idle['peak_bytes'] / 2**20)} MiB." if idle else "", ""]
    head = ["box", "contender", "peak (MiB)", "KiB per atom"]
    cells = []
    for row in section["rows"]:
        if row["task"] != "evaluate":
            continue
        if "failure" in row:
            cells.append([system_of(row), name_of(row), *failed(row, 2)])
            continue
        peak = row["peak_bytes"]
        cells.append([system_of(row), name_of(row), digits(peak / 2**20), digits(peak / 2**10 / row["atoms"])])
    return [*lines, *table(head, cells), ""]


def render_batch(section: dict[str, Any]) -> list[str]:
    """Many structures."""
    replicas = next((row["replicas"] for row in section["rows"] if "replicas" in row), 0)
    lines = [f"Energies and forces of {replicas:,} distorted replicas of ethanol.", ""]
    head = ["contender", "structures/s", "ms per structure", "times one by one", *RATES]
    cells = [
        [name_of(row), *failed(row, 6)]
        if "failure" in row
        else [
            name_of(row),
            with_spread(row["seconds"], lambda s: 1 / s),
            digits(1e3 * row["seconds"]["median"]),
            ratio(row),
            *rates(row, product),
        ]
        for rows, product in groups(section)
        for row in rows
    ]
    return [*lines, *table(head, cells), ""]


TITLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "latency": ("Latency of molecules", render_latency),
    "boxes": ("Periodic boxes", render_boxes),
    "md": ("Molecular dynamics", render_md),
    "training": ("Training", render_training),
    "memory": ("Memory", render_memory),
    "batch": ("Many structures", render_batch),
}

INTRODUCTION = """\
# Speed

*Written by `python benchmarks/speed.py`; every number comes from `speed.json` beside this file.*

Medians, with the 10th to 90th percentile in brackets. Contenders took turns, each in a process of its own; "times …" is
a ratio of times, taken within each round and then its median; "ready after" is the time until the first result, which
sets up or compiles. Default and published form have the published settings
(20 orientations, 128 channels, 5 layers; the published form has no cutoff for molecules) and random weights, which make
no difference to speed; `ethanol-rmd17` is the shipped, smaller potential. All compute in float32 on the CPU.

GFLOP/s count useful arithmetic alone (`benchmarks/speed_systems.py` has the formulas): the matrix products of the
ConvNeXt blocks, and these with both convolutions. Radial functions, norms and activations are work as well, but not
counted.

![Speed](speed.png)
"""


def render(results: dict[str, Any]) -> str:
    """Return all tables as Markdown."""
    lines = INTRODUCTION.splitlines()
    if any(section["quick"] for section in results.values()):
        lines += ["", "**A quick trial of the script with tiny networks: these figures mean nothing.**"]
    for name, section in results.items():
        title, write = TITLES[name]
        lines += ["", f"## {title}", "", *write(section), *_facts(section)]
    return "\n".join(lines) + "\n"


def _facts(section: dict[str, Any]) -> list[str]:
    machine = section["machine"]
    load = machine.get("load_average_before")
    words = [
        machine.get("hardware", "unknown machine"),
        f"torch {machine.get('torch')}",
        f"Python {machine.get('python')}",
        f"OMP_WAIT_POLICY={machine.get('wait_policy')}, GOMP_SPINCOUNT={machine.get('spin_count')}",
        *([f"load average {load:.2f} before the start"] if load is not None else []),
        section["date"],
        f"commit {section['commit']}",
    ]
    absent = f" Not installed: {', '.join(section['absent_peers'])}." if section["absent_peers"] else ""
    packages = sorted({row["package"] for row in section["rows"] if "package" in row})
    peers = f" Other force fields: {', '.join(packages)}." if packages else ""
    return [f"<sub>`{section['command']}`: {', '.join(words)}.{peers}{absent}</sub>"]


# ---------------------------------------------------------------------------------------------------------- figure


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw four panels; sections that have not been measured are marked."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 9.5), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2, gridspec_kw={"height_ratios": (1.5, 1)}).flatten()
        panels = (
            ("latency", "One evaluation of a molecule", _draw_latency),
            ("boxes", "Periodic boxes: time per atom", _draw_boxes),
            ("training", "Training", _draw_training),
            ("batch", "1,000 replicas of ethanol", _draw_batch),
        )
        for panel, (name, title, write) in zip(axes, panels, strict=True):
            panel.set_title(title, loc="left")
            rows = [row for row in results.get(name, {"rows": []})["rows"] if "seconds" in row]
            rows = [row for row in rows if row["task"] != "product"]
            if rows:
                write(panel, rows)
            else:
                panel.text(0.5, 0.5, "not measured", ha="center", va="center", transform=panel.transAxes)
                panel.set_axis_off()
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def _draw_latency(axes: Axes, rows: Sequence[Row]) -> None:
    _bars(axes, rows, lambda seconds: 1e3 * seconds, "ms, energy and forces (logarithmic)", system_of)


def _draw_training(axes: Axes, rows: Sequence[Row]) -> None:
    _bars(axes, rows, lambda s: 1 / s, f"steps per second, batches of {rows[0]['batch_size']} (logarithmic)", system_of)


def _draw_batch(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_title(f"{rows[0]['replicas']:,} replicas of ethanol", loc="left")
    _bars(axes, rows, lambda seconds: 1 / seconds, "structures per second (logarithmic)", lambda row: "")


def _bars(
    axes: Axes, rows: Sequence[Row], convert: Callable[[float], float], unit: str, title: Callable[[Row], str]
) -> None:
    """Draw horizontal bars with their 10th to 90th percentiles, grouped under titles."""
    place, ticks, names = 0.0, [], []
    for heading, group in groupby(rows, key=title):
        if heading:
            axes.text(0.01, place - 0.1, heading, transform=axes.get_yaxis_transform(), weight="bold", va="center")
            place += 0.9
        for row in group:
            value = convert(row["seconds"]["median"])
            low, high = sorted(convert(row["seconds"][part]) for part in ("p10", "p90"))
            hatch = "///" if row["task"] == "loop" else None
            axes.barh(place, value, color=colour_of(row), height=0.78, hatch=hatch, edgecolor="white")
            axes.plot([low, high], [place, place], color="black", linewidth=1.2)
            axes.annotate(
                digits(value), (max(value, high), place), xytext=(5, 0), textcoords="offset points", va="center"
            )
            ticks.append(place)
            names.append(name_of(row))
            place += 1.0
        place += 0.4
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(place - 0.4, 5.0), -0.8)  # few bars stay slender
    axes.set_xscale("log")
    values = [convert(row["seconds"][part]) for row in rows for part in ("p10", "median", "p90")]
    # Bars on a logarithmic axis have no natural start: leave the shortest some length, and the numbers some room.
    axes.set_xlim(0.4 * min(values), 2.5 * max(values))
    plain_numbers(axes.xaxis)
    axes.set_xlabel(unit)


def colour_of(row: Row) -> str:
    """Return the colour of a contender, the same in all panels."""
    if row["form"] in PEERS:
        return PEER_COLOURS[list(PEERS).index(row["form"]) % len(PEER_COLOURS)]
    return COLOURS[row["form"], row["backend"]]


def _draw_boxes(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw time per atom against the number of atoms, constant for linear scaling."""

    def contender(row: Row) -> tuple[str, str]:
        return row["form"], row["backend"]

    for _, group in groupby(sorted(rows, key=contender), key=contender):
        line = sorted(group, key=lambda row: row["atoms"])
        atoms = [row["atoms"] for row in line]
        middle, low, high = (
            [1e6 * row["seconds"][part] / row["atoms"] for row in line] for part in ("median", "p10", "p90")
        )
        axes.plot(atoms, middle, marker="o", color=colour_of(line[0]), label=name_of(line[0]))
        axes.fill_between(atoms, low, high, color=colour_of(line[0]), alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("atoms")
    axes.set_ylabel("µs per atom, energy, forces and stress")
    sizes = sorted({row["atoms"] for row in rows})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    plain_numbers(axes.yaxis)
    axes.grid(alpha=0.25)
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * 1.5)
    axes.legend(loc="upper right")  # where memory or patience ends first
