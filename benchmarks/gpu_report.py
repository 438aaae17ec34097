"""Table and picture of what ``gpu.py`` has measured: OUT/gpu.md and OUT/gpu.png of OUT/results.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_parts import RESULTS, SMALL
from pages import table
from peers import GPU_PEERS

from ponita_ff.files import write_text

__all__ = ["write_report"]

Row = dict[str, Any]

#: Parts whose results have tables of their own; anything else is listed as it is.
_STEPS = ("speed", "large", "compiled", *GPU_PEERS)


def read_rows(out: Path) -> list[Row]:
    """All results, the last of each name in a part."""
    found: dict[tuple[str, str], Row] = {}
    for line in (out / RESULTS).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        key = (row["part"], row["name"] if row["name"] != "warning" else row["message"])
        found.pop(key, None)
        found[key] = row
    return list(found.values())


def write_report(out: Path) -> None:
    """Write both files.

    Args:
        out: Folder with the results, at least one.
    """
    rows = read_rows(out)
    write_text(out / "gpu.md", _page(rows))
    _plot(rows, out / "gpu.png")


def _page(rows: list[Row]) -> str:
    facts = next((row for row in rows if row["name"] == "facts"), {})
    where = facts.get("gpu") or f"CPU, {facts.get('cpus')} cores: a dry run" if facts else "not known"
    lines = ["# On a GPU", "", "*Written by `python benchmarks/gpu.py`; all numbers come from `results.jsonl`.*", ""]
    lines += [f"Device: {where}. {_versions(facts)}", "", "![steps and training](gpu.png)", ""]
    lines += ["## Goals", "", *table(("goal", "found", "reached"), _goals(rows)), ""]
    lines += ["## Steps", "", *table(("", "atoms", "ms", "MD steps/s", "GB", "kB/atom"), _steps(rows)), ""]
    lines += ["## Training of ethanol", "", *table(("", "ms", "frames/s", "GB"), _training(rows)), ""]
    lines += ["## Replicas", "", *table(("", "ms", "replicas/s", "GB"), _replicas(rows)), ""]
    lines += ["## Errors against float64 on the CPU", "", *table(("", "largest error"), _errors(rows)), ""]
    lines += ["## Kernels, and shares of the device's rates", "", *table(("", ""), _others(rows)), ""]
    lines += ["## Left out, failed, warned", "", *table(("part", "", "why"), _failures(rows)), ""]
    return "\n".join(lines)


def _versions(facts: Row) -> str:
    versions = {name: version for name, version in facts.get("versions", {}).items() if version}
    return ", ".join([f"Python {facts.get('python')}", *(f"{name} {version}" for name, version in versions.items())])


def _number(value: Any, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _cells(row: Row, *keys: str) -> list[str]:
    return [_number(row.get(key)) for key in keys]


def _of(rows: list[Row], *parts: str) -> Iterator[Row]:
    return (row for row in rows if row["part"] in parts and "error" not in row)


def _steps(rows: list[Row]) -> Iterator[list[str]]:
    dynamics = {row["name"]: row["steps_per_s"] for row in rows if "steps_per_s" in row and "drift_ev" in row}
    for row in _of(rows, *_STEPS):
        if "ms" in row and "atoms" in row:
            rate = _number(dynamics.get(f"{row['name']}, dynamics"))
            yield [row["name"], str(row["atoms"]), _number(row["ms"]), rate, *_cells(row, "peak_gb", "kb_per_atom")]
    for name in GPU_PEERS:
        reason = next((row["reason"] for row in rows if row["part"] == name and row["name"] == "left out"), None)
        if reason is not None:
            yield [name, "", f"left out: {reason}", "", "", ""]


def _training(rows: list[Row]) -> Iterator[list[str]]:
    for row in _of(rows, "training", "cpu"):
        if "frames_per_s" in row:
            name = f"two cores of its CPU, {row['backend']}, batch of {row['frames']}" if row["part"] == "cpu" else None
            yield [name or row["name"], *_cells(row, "ms", "frames_per_s", "peak_gb")]


def _replicas(rows: list[Row]) -> Iterator[list[str]]:
    for row in _of(rows, "replicas"):
        if "replicas_per_s" in row:
            yield [row["name"], *_cells(row, "ms", "replicas_per_s", "peak_gb")]


def _errors(rows: list[Row]) -> Iterator[list[str]]:
    units = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}
    for row in _of(rows, "correctness", "compiled"):
        values = [f"{key} {row[key]:.2g} {unit}" for key, unit in units.items() if key in row]
        if row["name"].startswith("gradient"):
            values = [
                f"{row['relative_error']:.2g} of its largest component",
                f"repeats bit for bit: {row['same_bits']}",
            ]
        if "largest_force_error" in row:
            values = [f"forces {row['largest_force_error']:.2g} eV/Å, mean {row['mean_force_error']:.2g}"]
        if row["name"] == "waits of a step":
            values = [str(row["number"])]
        if values:
            yield [row["name"], "; ".join(values)]
    for row in _of(rows, "kernels"):
        if row["name"].startswith("errors"):
            yield [f"kernels, {row['name']}", "; ".join(f"{key} {row[key]:.2g}" for key in row if ", " in key)]


def _others(rows: list[Row]) -> Iterator[list[str]]:
    for row in _of(rows, "machine", "kernels", "share"):
        if "ms" in row:
            values = [f"{key} {_number(value)}" for key, value in row.items() if isinstance(value, float)]
            yield [row["name"], ", ".join(values)]


def _failures(rows: list[Row]) -> Iterator[list[str]]:
    for row in rows:
        reason = row.get("reason") or row.get("message") or row.get("error")
        if isinstance(reason, str):
            yield [row["part"], row["name"], reason.replace("|", "/").replace("\n", " ")]


# ------------------------------------------------------------------------------------------------------ goals


def _goals(rows: list[Row]) -> Iterator[list[str]]:
    by_name = {row["name"]: row for row in rows if "error" not in row}
    ethanol = by_name.get(f"ethanol, {SMALL}, recorded, dynamics", {}).get("steps_per_s")
    water = by_name.get(f"water-999, {SMALL}, recorded", {}).get("ms")
    atoms = max((row["atoms"] for row in _of(rows, "large") if "ms" in row), default=None)
    frames = max((row["frames_per_s"] for row in _of(rows, "training") if "frames_per_s" in row), default=None)
    cpu = next((row["frames_per_s"] for row in _of(rows, "cpu") if "frames_per_s" in row), None)
    ratio = None if frames is None or cpu is None else frames / cpu
    tests: list[tuple[str, float | None, Callable[[float], bool]]] = [
        ("steps/s of ethanol through ASE ≥ 1,500", ethanol, lambda value: value >= 1500),
        ("ms of a step of 999 atoms of water ≤ 3", water, lambda value: value <= 3),
        ("atoms in memory ≥ 99,999 (100,000 in whole molecules)", atoms, lambda value: value >= 99_999),
        ("frames/s of training, in those of two cores ≥ 30", ratio, lambda value: value >= 30),
        ("steps/s of ethanol over those of the fastest peer > 1", _over_peers(rows, ethanol), lambda value: value > 1),
    ]
    for text, value, reached in tests:
        found = "not measured" if value is None else _number(value)
        yield [text, found, "" if value is None else "yes" if reached(value) else "no"]


def _over_peers(rows: list[Row], own: float | None) -> float | None:
    rates = [r["steps_per_s"] for r in _of(rows, *GPU_PEERS) if "drift_ev" in r and r.get("system") == "ethanol"]
    return None if own is None or not rates else own / max(rates)


# ---------------------------------------------------------------------------------------------------- picture


def _plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    series: dict[str, list[tuple[float, float]]] = {}
    for row in _of(rows, *_STEPS):
        if "ms" in row and "atoms" in row:
            series.setdefault(row["name"].split(", ", 1)[1], []).append((row["atoms"], row["ms"]))
    for name, points in series.items():
        left.plot(*zip(*sorted(points), strict=True), "o-", label=name)
    left.set(xscale="log", yscale="log", xlabel="atoms", ylabel="ms of a step through ASE")
    bars = [cells for cells in _training(rows) if cells[2]]
    right.barh([cells[0] for cells in bars], [float(cells[2]) for cells in bars])
    right.set(xlabel="frames per second of training")
    if series:
        left.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
