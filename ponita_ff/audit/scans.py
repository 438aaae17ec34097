"""Checks: the energy surface along scans must be smooth, and repulsive where atoms come close."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import find_mic
from numpy.typing import NDArray

from ponita_ff.audit.result import Measure, NotDone, Outcome
from ponita_ff.audit.settings import ScanSettings
from ponita_ff.audit.subject import Array, Subject
from ponita_ff.network.orientations import rotation_about

__all__ = ["Path", "Point", "short_range", "smoothness"]


@dataclass(frozen=True)
class Point:
    """What the calculator says at one point of a path.

    Attributes:
        energy: eV.
        slope: dE/ds from the forces (or the stress), eV/Å; None where the calculator cannot tell it.
        forces: Shape (n, 3), eV/Å.
    """

    energy: float
    slope: float | None
    forces: Array


@dataclass(frozen=True)
class Path:
    """A line through configuration space.

    Attributes:
        name: For the page.
        values: The parameter s, Å that the atoms concerned have moved, equally spaced, shape (k,).
        structure: Atoms, with their calculator, at s.
        slope: dE/ds of these atoms by the chain rule; None where it cannot be told.
    """

    name: str
    values: Array
    structure: Callable[[float], Atoms]
    slope: Callable[[Atoms, float], float | None]

    def point(self, s: float) -> Point:
        """Calculate at s."""
        atoms = self.structure(s)
        return Point(float(atoms.get_potential_energy()), self.slope(atoms, s), np.array(atoms.get_forces()))


# ----------------------------------------------------------------------------------------------- paths


def straight(name: str, atoms: Atoms, direction: Array, values: Array) -> Path:
    """Atoms moved by s · direction, which has shape (n, 3) and unit length for each atom that moves."""

    def structure(s: float) -> Atoms:
        copy = atoms.copy()
        copy.positions = atoms.positions + s * direction
        copy.calc = atoms.calc
        return copy

    return Path(name, values, structure, lambda moved, _: -float(np.sum(moved.get_forces() * direction)))


def turn(atoms: Atoms, axis: Array, spacing: float) -> Path:
    """The whole molecule turned by half a turn about an axis; s is the arc of its outermost atom."""
    centred = atoms.copy()
    centred.calc = atoms.calc
    centred.positions -= atoms.get_center_of_mass()
    radius = float(np.linalg.norm(np.cross(axis, centred.positions), axis=1).max())

    def structure(s: float) -> Atoms:
        copy = centred.copy()
        copy.positions = centred.positions @ rotation_about(axis, s / radius).T
        copy.calc = atoms.calc
        return copy

    def slope(moved: Atoms, _: float) -> float:
        return -float(np.sum(moved.get_forces() * np.cross(axis, moved.positions))) / radius

    return Path("molecule turned", np.arange(0.0, np.pi * radius, spacing), structure, slope)


def expand(atoms: Atoms, factor: float, spacing: float) -> Path:
    """Cell and atoms scaled alike from 0.95 to ``factor``; s is the change of the shortest cell vector's length.

    The slope is V tr σ over the length, where the calculator has a stress (all directions periodic).
    """
    length = float(atoms.cell.lengths()[atoms.pbc].min())

    def structure(s: float) -> Atoms:
        copy = atoms.copy()
        copy.calc = atoms.calc
        copy.set_cell(atoms.cell.array * (1 + s / length), scale_atoms=True)
        return copy

    def slope(scaled: Atoms, s: float) -> float | None:
        if not scaled.pbc.all():
            return None
        try:
            trace = float(scaled.get_stress()[:3].sum())
        except (PropertyNotImplementedError, NotImplementedError):
            return None
        return scaled.get_volume() * trace / (length + s)

    return Path("cell expanded", np.arange(-0.05 * length, (factor - 1) * length, spacing), structure, slope)


def fragment(pairs: NDArray[np.int64], first: int, second: int) -> set[int]:
    """Atoms on ``second``'s side of the bond first–second; ``{second}`` alone where the bond is part of a ring."""
    neighbours: dict[int, set[int]] = {}
    for i, j in pairs:
        neighbours.setdefault(int(i), set()).add(int(j))
        neighbours.setdefault(int(j), set()).add(int(i))
    side, queue = {second}, [second]
    while queue:
        atom = queue.pop()
        new = neighbours.get(atom, set()) - side - ({first} if atom == second else set())
        side |= new
        queue.extend(new)
    return {second} if first in side else side


def bond_paths(subject: Subject, atoms: Atoms, settings: ScanSettings) -> list[Path]:
    """One bond of each pair of elements, the shortest, stretched with all that hangs on its lighter side.

    In periodic structures, where there is no side, one atom moves to and fro along the bond.
    """
    found: dict[tuple[int, int], int] = {}
    bonds = subject.bonds
    for index in np.argsort(bonds.lengths, kind="stable"):
        low, high = sorted(int(z) for z in atoms.numbers[bonds.pairs[index]])
        found.setdefault((low, high), int(index))
    paths = []
    for (low, high), index in sorted(found.items(), key=lambda item: item[0][::-1], reverse=True)[: settings.bonds]:
        i, j = (int(atom) for atom in bonds.pairs[index])
        if i == j:
            continue  # an atom's bond with its own image cannot be stretched
        axis = bonds.vectors(atoms)[index]
        axis /= np.linalg.norm(axis)
        name = f"bond {chemical_symbols[high]}{i if atoms.numbers[i] == high else j}"
        name += f"–{chemical_symbols[low]}{j if atoms.numbers[i] == high else i}"
        direction = np.zeros_like(atoms.positions)
        if subject.periodic:
            direction[j] = axis
            values = np.arange(-settings.squeeze, settings.squeeze, settings.spacing)
        else:
            mine, other = fragment(bonds.pairs, i, j), fragment(bonds.pairs, j, i)
            moving, sign = (mine, 1.0) if len(mine) <= len(other) else (other, -1.0)
            direction[sorted(moving)] = sign * axis
            values = np.arange(-settings.squeeze, settings.stretch, settings.spacing)
        paths.append(straight(name, atoms, direction, values))
    return paths


def pull_path(atoms: Atoms, settings: ScanSettings) -> Path:
    """The outermost atom pulled straight away from the centre of mass, through any cutoff."""
    arms = atoms.positions - atoms.get_center_of_mass()
    outer = int(np.argmax(np.linalg.norm(arms, axis=1)))
    direction = np.zeros_like(arms)
    direction[outer] = arms[outer] / np.linalg.norm(arms[outer])
    values = np.arange(0.0, settings.pull, settings.spacing)
    return straight(f"{atoms.symbols[outer]}{outer} pulled away", atoms, direction, values)


def all_paths(subject: Subject) -> list[Path]:
    """Every scan of a structure."""
    settings = subject.settings.scans
    atoms = subject.attach(subject.structure)
    paths = bond_paths(subject, atoms, settings)
    if subject.periodic:
        return [*paths, expand(atoms, settings.expansion, settings.spacing)]
    if len(atoms) > 1:
        axis = subject.generator(5).normal(size=3)
        axis /= np.linalg.norm(axis)
        paths += [pull_path(atoms, settings), turn(atoms, axis, settings.spacing)]
    return paths


# ----------------------------------------------------------------------------------------------- jumps


def unevenness(values: Array) -> Array:
    """How far each interval's difference is from the mean of its neighbours' differences.

    Args:
        values: Shape (k, ...), at equal spacing.

    Returns:
        Shape (k − 1,), the largest over the other axes; small where ``values`` are smooth.
    """
    differences = np.diff(values.reshape(len(values), -1), axis=0)
    padded = np.pad(differences, ((1, 1), (0, 0)), mode="edge")
    return np.asarray(np.abs(differences - 0.5 * (padded[:-2] + padded[2:])).max(axis=1))


def suspects(values: Array, number: int) -> list[int]:
    """Intervals that may hold a jump: the most uneven ones, and the most uneven ones against their surroundings."""
    rough = unevenness(values)
    half = 5
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(rough, half, mode="reflect"), 2 * half + 1)
    relative = rough / (np.median(windows, axis=1) + 1e-3 * np.median(rough) + 1e-12)
    return sorted({int(i) for order in (rough, relative) for i in np.argsort(order)[-number:]})


def unexplained(points: list[Point], spacing: float) -> Array:
    """Energies less the integral of their slopes (trapezoid), eV, shape (k,): of a sound calculator nearly constant."""
    energies = np.array([point.energy for point in points])
    slopes = np.array([0.0 if point.slope is None else point.slope for point in points])
    energies[1:] -= np.cumsum(0.5 * spacing * (slopes[:-1] + slopes[1:]))
    return energies


def energy_gap(a: Point, b: Point, width: float) -> float:
    """|E_b − E_a| beyond what the slopes at both ends explain (trapezoid), eV."""
    explained = 0.0 if a.slope is None or b.slope is None else 0.5 * width * (a.slope + b.slope)
    return abs(b.energy - a.energy - explained)


def force_gap(a: Point, b: Point, _: float) -> float:
    """Largest difference of a force component, eV/Å."""
    return float(np.abs(b.forces - a.forces).max())


def jump(path: Path, low: float, high: float, gap: Callable[[Point, Point, float], float], halvings: int) -> float:
    """What is left of a gap in an interval that is halved again and again, going on with the half that holds more.

    A continuous function's gap shrinks with the interval, a jump's does not. What would go in one more halving, as far
    as the last one tells, is taken off: a steep slope is no jump.
    """
    a, b = path.point(low), path.point(high)
    before = gap(a, b, high - low)
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        c = path.point(middle)
        before = gap(a, b, high - low)
        if gap(a, c, middle - low) >= gap(c, b, high - middle):
            high, b = middle, c
        else:
            low, a = middle, c
    return max(2 * gap(a, b, high - low) - before, 0.0)


def slope_errors(points: list[Point], spacing: float) -> Array:
    """(E_k+1 − E_k) less the integral of the slope, per Å, for all but the first and last interval; NaN for no slope.

    The integral is that of the cubic through four points: h/24 (−g_k−1 + 13 g_k + 13 g_k+1 − g_k+2).
    """
    slopes = np.array([np.nan if point.slope is None else point.slope for point in points])
    energies = np.array([point.energy for point in points])
    integral = (-slopes[:-3] + 13 * slopes[1:-2] + 13 * slopes[2:-1] - slopes[3:]) / 24
    return np.asarray(np.diff(energies)[1:-1] / spacing - integral)


def slope_error(path: Path, low: float, high: float, parts: int = 16) -> float:
    """The same for one interval, its integral from ``parts`` times as many points, so that no error of it is left."""
    spacing = (high - low) / parts
    points = [path.point(low + k * spacing) for k in range(-1, parts + 2)]
    return float(abs(slope_errors(points, spacing).mean()))


@dataclass(frozen=True)
class Scan:
    """One path, calculated: what is wrong with it, and arrays for the plot.

    Attributes:
        energy: Largest jump of the energy, eV.
        force: Largest jump of a force component, eV/Å.
        slope: Largest difference of the force along the path from the energy's derivative, eV/Å; NaN for no slope.
        arrays: See `smoothness`.
    """

    energy: float
    force: float
    slope: float
    arrays: dict[str, Array | float]


def scan(path: Path, settings: ScanSettings) -> Scan:
    """Calculate a path and look for jumps in it."""
    points = [path.point(float(s)) for s in path.values]
    energies = np.array([point.energy for point in points])
    jumps = {}
    for name, values, gap in (
        ("energy", unexplained(points, settings.spacing), energy_gap),
        ("force", np.array([point.forces for point in points]), force_gap),
    ):
        found = [(0.0, float(path.values[0]))]
        for i in suspects(values, settings.suspects):
            low, high = float(path.values[i]), float(path.values[i + 1])
            found.append((jump(path, low, high, gap, settings.halvings), low))
        jumps[name] = max(found)
    errors = np.abs(slope_errors(points, settings.spacing))
    wrong = [(float("nan"), float(path.values[0]))]
    if np.isfinite(errors).all() and len(errors):
        # Where the coarse integral disagrees most, look again with a fine one.
        intervals = [path.values[[i + 1, i + 2]].tolist() for i in np.argsort(errors)[-settings.suspects :]]
        wrong = [(slope_error(path, low, high), low) for low, high in intervals]
    jumps["slope"] = max(wrong)
    slopes = np.array([np.nan if point.slope is None else point.slope for point in points])
    origin = int(np.abs(path.values).argmin())
    arrays: dict[str, Array | float] = {"s": path.values, "energy": energies - energies[origin], "slope": slopes}
    worst: dict[str, Array | float] = {f"{name}_worst_at": where for name, (_, where) in jumps.items()}
    return Scan(jumps["energy"][0], jumps["force"][0], jumps["slope"][0], arrays | worst)


def smoothness(subject: Subject) -> Outcome:
    """Scans of stretched bonds, of an atom pulled out, of the molecule turned; of an expanding cell.

    Arrays: one mapping per path with ``s`` (k,) Å, ``energy`` (k,) eV from where nothing has moved, ``slope`` (k,) eV/Å
    by the forces, and ``energy_worst_at``, ``force_worst_at``, ``slope_worst_at`` Å.
    """
    settings = subject.settings.scans
    scans = {path.name: scan(path, settings) for path in all_paths(subject)}
    if not scans:
        raise NotDone("one atom alone has nothing to scan")

    def worst(attribute: str) -> tuple[float, str]:
        known = [(getattr(s, attribute), name) for name, s in scans.items() if np.isfinite(getattr(s, attribute))]
        return max(known, default=(float("nan"), ""))

    measures, notes = [], []
    for title, attribute, unit, limit in (
        ("jump of the energy, largest", "energy", "eV", settings.energy_limit),
        ("jump of a force, largest", "force", "eV/Å", settings.force_limit),
        ("force against the scan's derivative", "slope", "eV/Å", settings.slope_limit),
    ):
        value, where = worst(attribute)
        if not where:
            measures.append(Measure(title, None, unit, note="needs the calculator's stress"))
            continue
        measures.append(Measure(title, value, unit, limit))
        if measures[-1].verdict == "fail":
            notes.append(f"{title.capitalize()}: {where}, at {scans[where].arrays[f'{attribute}_worst_at']:.2f} Å.")
    return Outcome(measures, {name: found.arrays for name, found in scans.items()}, notes)


# ----------------------------------------------------------------------------------------- short range


def closest_pairs(atoms: Atoms) -> list[tuple[int, int]]:
    """For each pair of elements, the two atoms that are nearest to each other."""
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    np.fill_diagonal(distances, np.inf)
    pairs = []
    for low, high in combinations_with_replacement(sorted(set(atoms.numbers)), 2):
        block = np.where((atoms.numbers[:, None] == high) & (atoms.numbers[None, :] == low), distances, np.inf)
        if np.isfinite(block.min()):
            i, j = np.unravel_index(int(block.argmin()), block.shape)
            pairs.append((int(i), int(j)))
    return pairs


def push_together(atoms: Atoms, first: int, second: int, distances: Array) -> tuple[Array, Array]:
    """Energy (eV) and repulsion −dE/dr (eV/Å) of two atoms put at ``distances`` (k,) about their midpoint.

    All others stay where they are.
    """
    vector = find_mic(atoms.positions[second] - atoms.positions[first], atoms.cell, atoms.pbc)[0]
    axis, middle = vector / np.linalg.norm(vector), atoms.positions[first] + 0.5 * vector
    energies, repulsions = [], []
    for r in distances:
        moved = atoms.copy()
        moved.positions[first], moved.positions[second] = middle - 0.5 * r * axis, middle + 0.5 * r * axis
        moved.calc = atoms.calc
        forces = moved.get_forces()
        energies.append(moved.get_potential_energy())
        repulsions.append(0.5 * float((forces[second] - forces[first]) @ axis))
    return np.array(energies), np.array(repulsions)


def short_range(subject: Subject) -> Outcome:
    """Two atoms of each pair of elements pushed together, inside any bond: repulsive all the way, no hole, a high wall.

    Arrays: one mapping per pair of elements with ``r`` (k,) Å falling, ``energy`` (k,) eV from the structure as given,
    ``repulsion`` (k,) eV/Å.
    """
    settings = subject.settings.short_range
    if settings.end >= settings.begin:
        raise NotDone("short_range.end must be below short_range.begin")
    atoms = subject.attach(subject.structure)
    scale = np.linspace(settings.begin, settings.end, settings.points)
    start = atoms.get_potential_energy()
    arrays: dict[str, dict[str, Array]] = {}
    for i, j in closest_pairs(atoms):
        r = scale * (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])
        energy, repulsion = push_together(atoms, i, j, r)
        name = f"{atoms.symbols[i]}–{atoms.symbols[j]}"
        arrays[name] = {"r": r, "energy": energy - start, "repulsion": repulsion}
    if not arrays:
        raise NotDone("one atom alone has no pair")
    # On the way in, how far the energy falls below the highest value that it has had.
    holes = {name: float((np.maximum.accumulate(a["energy"]) - a["energy"]).max()) for name, a in arrays.items()}
    weakest = {name: float(a["repulsion"].min()) for name, a in arrays.items()}
    heights = {name: float(a["energy"].max()) for name, a in arrays.items()}
    deepest, softest = max(holes, key=holes.__getitem__), min(weakest, key=weakest.__getitem__)
    measures = [
        Measure("hole on the way in, deepest", holes[deepest], "eV", settings.hole_limit),
        Measure("repulsion of a pair, weakest", weakest[softest], "eV/Å", settings.force_limit, "at least"),
        Measure("height of the wall, lowest", min(heights.values()), "eV", settings.height_limit, "at least"),
    ]
    wrong = [name for name in arrays if holes[name] > settings.hole_limit or weakest[name] < settings.force_limit]
    lowest = min(heights, key=heights.__getitem__)
    notes = [f"Pairs: {', '.join(arrays)}; weakest repulsion: {softest}; lowest wall: {lowest}."]
    if wrong:
        notes.append(f"Not repulsive everywhere: {', '.join(wrong)}.")
    return Outcome(measures, dict(arrays), notes)
