"""Drawings of the concept pages, as SVG in the colours of the light or the dark scheme.

python docs/_code/drawings.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch


@dataclass(frozen=True)
class Colours:
    """Colours of a scheme: text, lines, fill of boxes, three kinds of things."""

    text: str
    line: str
    fill: str
    atom: str
    orientation: str
    bond: str


SCHEMES = {
    "light": Colours("#1f2933", "#52606d", "#eef3f5", "#0b6b7c", "#c2410c", "#7b8794"),
    "dark": Colours("#e4e7eb", "#a3b1bf", "#2b343d", "#6fc7d6", "#fb9a5a", "#9aa5b1"),
}


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colours: Colours, **more: Any) -> None:
    """A rounded box with text in its middle."""
    style = {"facecolor": colours.fill, "edgecolor": colours.line, "linewidth": 1.0} | more
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", **style))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10, color=colours.text)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, **more: Any) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0} | more
    axes.add_patch(FancyArrowPatch(start, end, color=colour, **style))


def network(figure: Figure, colours: Colours) -> None:
    """The network: from a structure to its energy and forces."""
    figure.set_size_inches(8.6, 6.3)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 12), ylim=(0, 8.8), aspect="equal")
    axes.set_axis_off()
    _box(axes, 0.3, 7.2, 3.4, 1.2, "structure\npositions, elements, cell", colours)
    _box(axes, 4.3, 7.2, 3.4, 1.2, "graph\npairs nearer than the cutoff", colours)
    _box(axes, 8.3, 7.2, 3.4, 1.2, "features\none vector per atom\nand orientation", colours)
    _arrow(axes, (3.7, 7.8), (4.3, 7.8), colours.line)
    _arrow(axes, (7.7, 7.8), (8.3, 7.8), colours.line)
    frame = FancyBboxPatch((0.3, 2.35), 11.4, 4.1, boxstyle="round,pad=0,rounding_size=0.15")
    frame.set(facecolor="none", edgecolor=colours.bond, linestyle="--", linewidth=1.1)
    axes.add_patch(frame)
    axes.text(0.55, 6.1, "a layer, repeated", fontsize=10, color=colours.text, style="italic")
    steps = (
        ("sum over neighbours", "at each orientation $n$:\n$R_l(r)\\,P_l(u\\!\\cdot\\! n)$", colours.atom),
        ("mix orientations", "at each atom:\n$w_l\\,P_l(n\\!\\cdot\\! n')$", colours.orientation),
        ("mix channels", "at each atom and orientation:\nnorm, expand, GELU, contract", colours.line),
    )
    for index, (title, text, colour) in enumerate(steps):
        x = 0.7 + 3.65 * index
        _box(axes, x, 3.35, 3.3, 2.3, "", colours, edgecolor=colour, linewidth=1.8)
        axes.text(x + 1.65, 5.15, title, ha="center", fontsize=11, color=colour, weight="bold")
        axes.text(x + 1.65, 4.2, text, ha="center", va="center", fontsize=9.5, color=colours.text)
        if index:
            _arrow(axes, (x - 0.35, 4.5), (x, 4.5), colours.line)
    _arrow(axes, (10.0, 7.2), (10.0, 6.55), colours.line)
    axes.plot([0.5, 0.5, 11.45, 11.45], [4.5, 2.85, 2.85, 4.5], color=colours.bond, linewidth=1.2)
    axes.plot([0.5, 0.7], [4.5, 4.5], color=colours.bond, linewidth=1.2)
    axes.plot([11.3, 11.45], [4.5, 4.5], color=colours.bond, linewidth=1.2)
    axes.text(6, 2.5, "added to what came in", ha="center", fontsize=9, color=colours.text)
    _arrow(axes, (6, 2.35), (6, 1.75), colours.line)
    _box(axes, 0.3, 0.4, 3.4, 1.3, "reference energies\nrepulsion of nuclei (ZBL)", colours)
    _box(axes, 4.3, 0.4, 3.4, 1.3, "energy\nmean over orientations,\nsum over atoms", colours, linewidth=1.8)
    _box(axes, 8.3, 0.4, 3.4, 1.3, "forces, stress\nexact derivatives", colours, linewidth=1.8)
    _arrow(axes, (3.7, 1.05), (4.3, 1.05), colours.line)
    _arrow(axes, (7.7, 1.05), (8.3, 1.05), colours.line)


_MOLECULE = np.array([[0.0, 0.0], [1.15, 0.65], [2.35, 0.05]])


def _molecule(axes: Axes, colours: Colours) -> None:
    for start, end in ((0, 1), (1, 2)):
        axes.plot(*_MOLECULE[[start, end]].T, color=colours.bond, linewidth=2.5, zorder=1)
    axes.plot(*_MOLECULE.T, "o", color=colours.atom, markersize=17, zorder=3)


def _spokes(axes: Axes, centre: np.ndarray, angles: np.ndarray, colour: str, length: float = 0.62) -> None:
    for angle in angles:
        tip = centre + length * np.array([np.cos(angle), np.sin(angle)])
        _arrow(axes, tuple(centre), tuple(tip), colour, zorder=2, mutation_scale=8)


def spaces(figure: Figure, colours: Colours) -> None:
    """The family of spaces that features may live on, and the invariants of a pair in each."""
    figure.set_size_inches(9, 3.9)
    columns = (
        ("positions, $\\mathbb{R}^3$", "PNITA, num_ori: 0", "distance", "exactly invariant;\nknows no angles"),
        (
            "and directions, $\\mathbb{R}^3\\!\\times S^2$",
            "PONITA, the default",
            "distance, bond to direction,\ndirection to direction",
            "knows angles;\ninvariant up to the grid",
        ),
        (
            "and frames, $SE(3)$",
            "in the paper, not here",
            "all six numbers\nof one pose seen from another",
            "knows all;\nmany more grid points",
        ),
    )
    for index, (title, name, invariants, remark) in enumerate(columns):
        axes = figure.add_axes((index / 3, 0, 1 / 3, 1))
        axes.set(xlim=(-1.1, 3.5), ylim=(-3.2, 2.8), aspect="equal")
        axes.set_axis_off()
        _molecule(axes, colours)
        if index == 1:
            for atom in _MOLECULE:
                _spokes(axes, atom, np.arange(8) * np.pi / 4 + 0.2, colours.orientation)
        if index == 2:
            for number, atom in enumerate(_MOLECULE):
                turn = 0.5 + 0.9 * number
                _spokes(axes, atom, np.array([turn]), colours.orientation, 0.85)
                _spokes(axes, atom, np.array([turn + np.pi / 2]), colours.text, 0.85)
        axes.text(1.2, 2.3, title, ha="center", fontsize=11.5, color=colours.text, weight="bold")
        axes.text(1.2, 1.75, name, ha="center", fontsize=9.5, color=colours.atom)
        axes.text(1.2, -1.35, invariants, ha="center", va="center", fontsize=9.5, color=colours.text)
        axes.text(1.2, -2.5, remark, ha="center", va="center", fontsize=9.5, color=colours.line, style="italic")


def _icosahedron() -> np.ndarray:
    golden = (1 + 5**0.5) / 2
    corners = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    points = np.array([np.roll(corner, shift) for corner in corners for shift in range(3)], dtype=float)
    return points / np.linalg.norm(points[0])


def grid(figure: Figure, colours: Colours) -> None:
    """The grid of twelve orientations, and a bond in the frame of the grid before and after a rotation."""
    figure.set_size_inches(8.6, 3.8)
    points = _icosahedron()
    tilt = np.array([[1, 0, 0], [0, np.cos(0.35), -np.sin(0.35)], [0, np.sin(0.35), np.cos(0.35)]])
    turn = np.array([[np.cos(0.3), 0, np.sin(0.3)], [0, 1, 0], [-np.sin(0.3), 0, np.cos(0.3)]])
    seen = points @ (tilt @ turn).T
    edge = min(np.linalg.norm(a - b) for a, b in combinations(points, 2))
    titles = ("a bond points at an orientation", "turned: it points between three")
    corner = seen[np.argmax(seen[:, 0] + 0.4 * seen[:, 2])]
    pairs = {(i, j) for i, j in combinations(range(12), 2) if np.linalg.norm(points[i] - points[j]) < 1.01 * edge}
    faces = (corners for corners in combinations(range(12), 3) if pairs.issuperset(combinations(corners, 2)))
    face = max(faces, key=lambda corners: seen[list(corners)].mean(0) @ np.array([0.75, 0.1, 0.65]))
    for index, title in enumerate(titles):
        axes = figure.add_axes((index / 2, 0, 0.5, 1))
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.35, 1.5), aspect="equal")
        axes.set_axis_off()
        for i, j in sorted(pairs):
            front = (seen[i, 2] + seen[j, 2]) > 0
            axes.plot(*seen[[i, j], :2].T, color=colours.bond, linewidth=1.1, alpha=0.8 if front else 0.25)
        for point in seen:
            size, alpha = (8, 1.0) if point[2] > 0 else (5, 0.4)
            axes.plot(*point[:2], "o", color=colours.orientation, markersize=size, alpha=alpha)
        direction = corner if index == 0 else seen[list(face)].mean(0)
        direction = direction / np.linalg.norm(direction)
        _arrow(axes, (0, 0), tuple(1.32 * direction[:2]), colours.atom, linewidth=3, mutation_scale=18, zorder=5)
        axes.plot(0, 0, "o", color=colours.atom, markersize=13, zorder=6)
        axes.text(0, 1.32, title, ha="center", fontsize=11, color=colours.text)


DRAWINGS: dict[str, Callable[[Figure, Colours], None]] = {"network": network, "spaces": spaces, "grid": grid}


def svg(name: str, scheme: str) -> str:
    """A drawing as SVG.

    Args:
        name: Of the drawing.
        scheme: ``light`` or ``dark``.
    """
    # Without salt, the names inside would differ from build to build.
    with matplotlib.rc_context({"svg.hashsalt": name, "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}):
        figure = Figure()
        FigureCanvasSVG(figure)
        DRAWINGS[name](figure, SCHEMES[scheme])
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    for name in DRAWINGS:
        for scheme in SCHEMES:
            path = Path(sys.argv[1]) / f"{name}-{scheme}.svg"
            path.write_text(svg(name, scheme), encoding="utf-8")
            print(path)
